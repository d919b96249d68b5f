/** How long the one thread is held by the largest pieces of work there are: no call is answered meanwhile. */
import { randomBytes } from "node:crypto";
import { loadavg } from "node:os";
import { join } from "node:path";
import { fromBinary } from "@bufbuild/protobuf";
import { PluginError } from "../../src/failures/plugin-error.ts";
import { DecryptRequestSchema } from "../../src/gen/v2/api_pb.ts";
import { Metrics } from "../../src/health/metrics.ts";
import { decodeEnvelope, encodeEnvelope, kekHeader, LocalKek } from "../../src/keys/envelope.ts";
import { CacheSpace } from "../../src/keys/kek-cache.ts";
import { Key } from "../../src/keys/key.ts";
import { keyNameHash, NO_KCV } from "../../src/keys/key-id.ts";
import { LookThrough } from "../../src/keys/look-through.ts";
import { MAX_WRAPPED_KEK_BYTES } from "../../src/keys/wrapping.ts";
import { AuthorityFilter } from "../../src/socket/authority.ts";
import { MAX_MESSAGE_BYTES } from "../../src/socket/rpc.ts";
import { systemClock } from "../../src/system/clock.ts";
import { createLog } from "../../src/system/log.ts";
import { hasMoreFields } from "../../src/system/protobuf.ts";
import { median } from "./servers.ts";

/** The default of KMS_LOCAL_KEK_CACHE_SIZE. */
const CACHED = 16_384;
const MAX_CIPHER_BYTES = 65_535;
const MAX_ANSWER_BYTES = 64 * 1024;
const BOUND_MS = 2;
const NAME = keyNameHash("demo");
const STORED_TAILS = join(import.meta.dir, "results/tails.json");

/** @param options.store what is measured becomes what PERFORMANCE.md says */
export async function tails(quick: boolean, { store }: { readonly store: boolean }): Promise<void> {
  const fastestMs: Record<string, number> = {};
  const [load = Number.NaN] = loadavg(); // what else the machine does
  console.log(`| what | fastest ms | median ms | below ${BOUND_MS} ms |\n|---|---|---|---|`);
  for (const [name, prepare] of Object.entries(PIECES)) {
    const tookMs: number[] = [];
    for (let round = 0; round < (quick ? 7 : 21); round++) {
      const piece = prepare();
      Bun.gc(true); // what comes before must not be paid for here
      const beginMs = performance.now();
      piece();
      tookMs.push(performance.now() - beginMs);
      await Bun.sleep(5);
    }
    const fastest = Math.min(...tookMs);
    fastestMs[name] = fastest;
    const cells = [
      fastest.toFixed(2),
      median(tookMs).toFixed(2),
      fastest < BOUND_MS ? "yes" : "NO",
    ];
    console.log(`| ${name} | ${cells.join(" | ")} |`);
  }
  if (store) {
    const stored = { load: Math.round(load * 10) / 10, fastestMs };
    await Bun.write(STORED_TAILS, `${JSON.stringify(stored, null, 2)}\n`);
  }
}

function header(wrappedLocalKek: string) {
  const fields = { keyNameHash: NAME, keyVersion: 1, kcvHash: NO_KCV, aadSent: true };
  return kekHeader({ ...fields, wrappedLocalKek });
}

const headers = Array.from({ length: CACHED }, (_, at) => header(`${at}-`.padEnd(88, "x")));

const silentLog = createLog({ level: "error", format: "json", write: () => {} });

function full(): Key {
  const limits = { outageGraceMs: undefined, revocationGraceMs: 0 };
  const space = new CacheSpace(CACHED, systemClock);
  const key = new Key("demo", { limits, space, lookThrough: () => {}, clock: systemClock });
  key.wraps = true; // else the first would be its canary
  for (const one of headers) {
    key.keep({ header: one, localKek: new LocalKek(randomBytes(32)) });
  }
  return key;
}

function repeated(length: number, ...unit: readonly number[]): Buffer {
  return Buffer.alloc(length, Buffer.from(unit));
}

function refusedOrNot(decode: () => unknown): () => unknown {
  return () => {
    try {
      return decode();
    } catch (error) {
      return error;
    }
  };
}

/** The number of the field whose entries are messages. */
const ANNOTATIONS = new Set([DecryptRequestSchema.field.annotations.number]);

/** As a request is: what is refused for its number of fields is not decoded. */
function decodeRequest(bytes: Buffer): () => unknown {
  return refusedOrNot(
    () => hasMoreFields(bytes, 32, ANNOTATIONS) || fromBinary(DecryptRequestSchema, bytes),
  );
}

/** Each makes what it needs, and returns the piece of work. */
const PIECES: Readonly<Record<string, () => () => unknown>> = {
  "/metrics with 136 series of RPCs": () => {
    const metrics = new Metrics();
    const record = metrics.histogram("rpc", "RPCs.", ["api", "method", "code"]);
    for (let series = 0; series < 136; series++) {
      const code = `CODE_${series % 17}`;
      record({ api: `v${series % 2}`, method: `M${series}`, code }, series / 100);
    }
    return () => metrics.text();
  },
  "a v1 cipher of the largest wrapped local KEK": () => {
    const one = header("x".repeat(MAX_WRAPPED_KEK_BYTES));
    const cipher = encodeEnvelope(new LocalKek(randomBytes(32)).seal(one, randomBytes(32)), true);
    return () => decodeEnvelope(cipher);
  },
  "a v1 cipher of 65,535 bytes of small fields": () => {
    const fields = repeated(MAX_CIPHER_BYTES - 4, 0x78, 1);
    const cipher = Buffer.concat([Buffer.from("k4c\x01"), fields]);
    return refusedOrNot(() => decodeEnvelope(cipher));
  },
  "a request of 128 KiB of small fields": () =>
    decodeRequest(repeated(MAX_MESSAGE_BYTES - 5, 0x78, 1)),
  "a request of 128 KiB of annotations": () =>
    decodeRequest(repeated(MAX_MESSAGE_BYTES - 5, 0x22, 4, 0x0a, 2, 0x61, 0x62)),
  "a request of one annotation of 128 KiB of small fields": () => {
    const inner = repeated(MAX_MESSAGE_BYTES - 9, 0x78, 1);
    const length = [
      (inner.length & 127) | 128,
      ((inner.length >> 7) & 127) | 128,
      inner.length >> 14,
    ];
    return decodeRequest(Buffer.concat([Buffer.from([0x22, ...length]), inner]));
  },
  "an answer of Key4C of 64 KiB, flat": () => {
    const members = Array.from({ length: 4_800 }, (_, at) => [`k${at}`, at]);
    const text = JSON.stringify(Object.fromEntries(members)).slice(0, MAX_ANSWER_BYTES);
    return () => JSON.parse(text);
  },
  "an answer of Key4C of 64 KiB, nested": () => {
    const text = "[".repeat(MAX_ANSWER_BYTES / 2) + "]".repeat(MAX_ANSWER_BYTES / 2);
    return () => JSON.parse(text);
  },
  "1,000 lines of log": () => {
    const lines: string[] = [];
    const log = createLog({ level: "info", format: "json", write: (line) => lines.push(line) });
    return () => {
      for (let line = 0; line < 1_000; line++) {
        log.warn("RPC failed", { method: "/v2.KeyManagementService/Decrypt", kind: "invalid" });
      }
    };
  },
  "a header block of 16 KiB": () => {
    const frame = Buffer.from([0, 0x40, 0, 1, 4, 0, 0, 0, 1]);
    const preface = Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    const chunk = Buffer.concat([preface, frame, repeated(16_384, 0x82)]);
    return () => new AuthorityFilter().transform(chunk);
  },
  "16,384 local KEKs are dropped, as a revocation does": () => {
    const key = full();
    return () => key.record(new PluginError("keyUnusable", "disabled", { isByContract: true }));
  },
  "16,384 local KEKs begin to be asked for, as a mismatch does": () => {
    const key = full();
    const never = () => new Promise<never>(() => {});
    const service = { describe: never, wrap: never, unwrap: never };
    return () => {
      const lookThrough = new LookThrough(service, systemClock, silentLog);
      lookThrough.add(key, key.holds);
      lookThrough.resume([key]);
    };
  },
};
