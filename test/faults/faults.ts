/** What a Key4C, or the way to it, can do wrong. */
import { randomBytes } from "node:crypto";
import { copyFileSync, renameSync, writeFileSync } from "node:fs";
import { status } from "@grpc/grpc-js";
import type { Pki } from "../pki.ts";
import { answerBytes, answerHonestly, type Behaviour, type FakeKey4C } from "./fake.ts";
import type { FakeProxy } from "./proxy.ts";

export const SITUATIONS = ["at start", "idle", "64 callers"] as const;
/** A fault that lasts, under a few callers. */
export const LASTING = "150 s";
export type Situation = (typeof SITUATIONS)[number] | typeof LASTING;

/** What one cell of the campaign has to itself. */
export interface Setup {
  readonly fake: FakeKey4C;
  readonly proxy: FakeProxy;
  readonly pki: Pki;
  /** Another authority, with a certificate for the same host. */
  readonly otherPki: Pki;
  readonly caFile: string;
  readonly userIdFile: string;
  readonly hostsFile: string;
  /** Where redirects lead. */
  readonly elsewhere: { readonly url: string; requests: number };
}

export interface Fault {
  readonly name: string;
  /** What the decrypt of a local KEK gets meanwhile that Key4C has to unwrap. */
  readonly code: status;
  /** What it may get besides, until a probe has met the fault. */
  readonly firstCode?: status;
  /** What Status and Encrypt get of a plugin that starts into it. */
  readonly startCode: status;
  /** What a plugin becomes that was ok; "ok" where the probe meets nothing of it. */
  readonly state: "degraded" | "ok";
  /** How long one attempt may hang. */
  readonly attemptMs: number;
  /** How long it may take to learn of the end, besides. */
  readonly learnMs: number;
  /** How long, after the recovery, a local KEK may stay unreadable that was asked for in the fault. */
  readonly lastKekMs: number;
  /** How the plugin finds Key4C: at its address, by a name in a hosts file of its own, or through a proxy. */
  readonly way: "address" | "name" | "proxy";
  readonly situations: readonly Situation[];
  /** What a plugin becomes that was ok, where the fault is also held for 150 s. */
  readonly lastingState?: "degraded" | "mismatch" | "revoked";
  begin(setup: Setup): void;
  end(setup: Setup): void;
}

/** Of the client, see ATTEMPT_TIMEOUT_MS in src/key4c/calls.ts. */
const ATTEMPT_TIMEOUT_MS = 2_500;
/** An unwrap under way may hang once more and pause (MAX_RETRY_DELAY_MS) before it meets the mended Key4C. */
const UNWRAP_UNDER_WAY_MS = 4_500;
/** DNS_TTL_SECONDS in src/system/process.ts, and the second that Bun rounds it up by. */
const NAME_IS_BELIEVED_MS = 6_000;
/** REFUSAL_MS and DOUBT_MS in src/keys: as long is a refused or a doubtful local KEK believed. */
const REFUSAL_MS = 10_000;
/** DENIED_PAUSE_MS in the client, and a probe: as long is a secret that was refused not tried again. */
const DENIED_PAUSE_MS = 32_200;
/** Of src/keys/standing.ts, with the jitter on top: the fourth pause is the longest that a short fault meets. */
const THROTTLED_PAUSE_MS = 8_800;
const MAX_RETRY_AFTER_WITHOUT_KEK_MS = 16_500;
/** A thousand times what an answer may have. */
const FLOOD_BYTES = 64 * 1024 * 1024;
const FLOOD_CHUNK = Buffer.alloc(256 * 1024, 0x20);
const DRIP_MS = 100;

const fault = (name: string, behaviour: Behaviour, facts: Partial<Fault> = {}): Fault => ({
  name,
  code: status.UNAVAILABLE,
  startCode: facts.code ?? status.UNAVAILABLE,
  state: "degraded",
  attemptMs: 0,
  learnMs: 0,
  lastKekMs: UNWRAP_UNDER_WAY_MS,
  way: "address",
  situations: SITUATIONS,
  begin: ({ fake }) => {
    fake.behaviour = behaviour;
  },
  end: ({ fake }) => {
    fake.behaviour = answerHonestly;
  },
  ...facts,
});

const SLOW = { attemptMs: ATTEMPT_TIMEOUT_MS };
const UNUSABLE = { code: status.FAILED_PRECONDITION };
const DENIED = { ...UNUSABLE, learnMs: DENIED_PAUSE_MS };
/** What was wrapped this moment is not given back either: Key4C is not well. */
const GIVES_NOTHING_BACK = { firstCode: status.INVALID_ARGUMENT, lastKekMs: REFUSAL_MS };
/** No fault to a caller, or none that a probe can meet. */
const WELL = { code: status.OK, state: "ok" } as const;
const THROTTLED = { code: status.RESOURCE_EXHAUSTED, learnMs: THROTTLED_PAUSE_MS };
/** With a local KEK in hand it is obeyed for 5 minutes, which is left to the simulation. */
const THROTTLED_LONG = {
  code: status.RESOURCE_EXHAUSTED,
  learnMs: MAX_RETRY_AFTER_WITHOUT_KEK_MS,
  situations: ["at start"],
} as const;

const says =
  (code: number, text: string, ...headers: string[]): Behaviour =>
  (exchange) =>
    exchange.answer(code, text, headers);
const throttles = (...headers: string[]) => says(429, '{"code":"THROTTLED"}', ...headers);

/** Sends the pieces that `next` gives, one after the other, for as long as the client takes them. */
const pours =
  (head: string, next: () => string | Uint8Array | undefined, pauseMs = 0): Behaviour =>
  async (exchange) => {
    let going = await exchange.write(head);
    for (let piece = next(); going && piece !== undefined; piece = next()) {
      going = await exchange.write(piece);
      await Bun.sleep(pauseMs);
    }
  };
const HEAD = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";

/** 64 MB in chunks, made anew for every answer. */
const flood =
  (head: string, frame: (chunk: Buffer) => string | Uint8Array): Behaviour =>
  (exchange) => {
    let left = FLOOD_BYTES / FLOOD_CHUNK.length;
    return pours(head, () => (left-- > 0 ? frame(FLOOD_CHUNK) : undefined))(exchange);
  };

const isDecrypt = (path: string) => path.endsWith("/decrypt");
const onlyDecrypts =
  (behaviour: Behaviour): Behaviour =>
  (exchange) =>
    isDecrypt(exchange.path) ? behaviour(exchange) : answerHonestly(exchange);

/** Well-formed, and nothing of what was asked for. */
const WRONG_SHAPES = [
  ...["[]", "null", "7", '"text"', "{}", '{"plaintext":7}', '{"plaintext":""}', '{"version":"3"}'],
  ...[
    '{"version":-1,"state":"ENABLED"}',
    '{"version":1.5}',
    '{"ciphertext":{}}',
    '{"__proto__":{}}',
  ],
  ...[`{"plaintext":"${"A".repeat(42)}"}`, `{"plaintext":"${"?".repeat(44)}"}`],
  `${"[".repeat(30_000)}${"]".repeat(30_000)}`,
];
let shapeAt = 0;

/** A server whose certificate is changed, and with it every connection. */
const serves = (name: string, whose: "pki" | "otherPki" = "pki") => ({
  begin: (setup: Setup) => setup.fake.listen({ pki: setup[whose], name }),
  end: ({ fake, pki }: Setup) => fake.listen({ pki, name: "server" }),
});

/** Another address: what the name meant before must not be believed for ever. */
const NEW_ADDRESS = "127.0.0.2";
export const KEY4C_NAME = "key4c.test";

export function hosts(address: string | undefined): string {
  return `127.0.0.1 localhost\n${address === undefined ? "" : `${address} ${KEY4C_NAME}\n`}`;
}

/** A proxy that answers so to every CONNECT, and has ended what went through it. */
const proxyAnswers = (refusal: string): Partial<Fault> => ({
  way: "proxy",
  begin: ({ proxy }) => {
    proxy.refusal = refusal;
    proxy.cut();
  },
  end: ({ proxy }) => {
    proxy.refusal = undefined;
  },
});

/** As a careful administrator does it: never half a file. */
function replace(file: string, by: (temporary: string) => void): void {
  by(`${file}.new`);
  renameSync(`${file}.new`, file);
}

export const FAULTS: readonly Fault[] = [
  fault("none", answerHonestly, WELL), // the others' figures are to be seen beside it
  fault("refuses connections", answerHonestly, {
    begin: ({ fake }) => fake.close(),
    end: serves("server").end,
  }),
  fault("accepts, and never speaks TLS", () => {}, {
    ...SLOW,
    begin: ({ fake }) => {
      fake.listen(undefined);
    },
    end: serves("server").end,
  }),
  fault("never answers", () => {}, { ...SLOW, lastingState: "degraded" }),
  fault(
    "hangs after the headers",
    pours(`${HEAD}Content-Length: 99\r\n\r\n`, () => undefined),
    SLOW,
  ),
  fault(
    "drips the answer",
    async (exchange) => {
      const { status: code, text } = await exchange.honest();
      const bytes = answerBytes(code, text).split("");
      await pours("", () => bytes.shift(), DRIP_MS)(exchange);
    },
    SLOW,
  ),
  fault(
    "drips headers without end",
    pours(HEAD, () => "X-More: 1\r\n", DRIP_MS),
    SLOW,
  ),
  fault("closes in mid-body", async (exchange) => {
    const { status: code, text } = await exchange.honest();
    await exchange.write(answerBytes(code, text).slice(0, -9));
    exchange.end();
  }),
  fault("resets after the request", (exchange) => exchange.reset()),
  // No fault to a caller: an idle connection is closed at the other end every day.
  fault(
    "closes each connection it kept",
    async (exchange) => {
      await answerHonestly(exchange);
      await Bun.sleep(Math.random() * 20);
      exchange.end();
    },
    WELL,
  ),
  fault(
    "forgets each connection it kept, as a NAT does",
    async (exchange) => {
      await answerHonestly(exchange);
      exchange.ignoreTheRest();
    },
    { ...WELL, ...SLOW },
  ),
  fault("garbage instead of HTTP", async (exchange) => {
    await exchange.write(randomBytes(300));
    exchange.end();
  }),
  fault(
    "answers twice",
    async (exchange) => {
      const { status: code, text } = await exchange.honest();
      await exchange.write(answerBytes(code, text).repeat(2));
    },
    WELL,
  ),
  fault("a page instead of JSON", says(200, "<html>Welcome</html>")),
  fault("unexpected JSON", (exchange) =>
    exchange.answer(200, WRONG_SHAPES[shapeAt++ % WRONG_SHAPES.length] ?? ""),
  ),
  fault(
    "64 MB",
    flood(`${HEAD}Content-Length: ${FLOOD_BYTES}\r\n\r\n`, (chunk) => chunk),
  ),
  fault(
    "64 MB in chunks",
    flood(`${HEAD}Transfer-Encoding: chunked\r\n\r\n`, (chunk) =>
      Buffer.concat([Buffer.from(`${chunk.length.toString(16)}\r\n`), chunk, Buffer.from("\r\n")]),
    ),
  ),
  fault(
    "64 MB of headers",
    flood(HEAD, (chunk) => `X-More: ${chunk.toString()}x\r\n`),
  ),
  fault(
    "a wrong ciphertext",
    async (exchange) => {
      const other = { plaintext: randomBytes(32).toString("base64") };
      const isEncrypt = exchange.path.endsWith("/encrypt");
      const body = isEncrypt
        ? JSON.stringify({ ...JSON.parse(exchange.body), ...other })
        : undefined;
      const { status: code, text } = await exchange.honest(body);
      await exchange.answer(code, text);
    },
    { ...WELL, startCode: status.UNAVAILABLE },
  ),
  fault(
    "a wrong plaintext",
    onlyDecrypts((exchange) =>
      exchange.answer(200, JSON.stringify({ plaintext: randomBytes(32).toString("base64") })),
    ),
    GIVES_NOTHING_BACK,
  ),
  fault(
    "calls every ciphertext invalid",
    onlyDecrypts(says(400, '{"code":"INVALID_CIPHERTEXT"}')),
    GIVES_NOTHING_BACK,
  ),
  fault("401", says(401, '{"code":"DENIED"}'), { ...DENIED, lastingState: "degraded" }),
  fault("403", says(403, '{"code":"DENIED"}'), DENIED),
  fault("403, a gateway's page", says(403, "<html>Forbidden</html>"), DENIED),
  fault("404", says(404, '{"code":"KEY_NOT_FOUND"}'), { ...UNUSABLE, lastingState: "mismatch" }),
  fault("404, a gateway's in JSON", says(404, '{"code":404}'), { lastingState: "degraded" }),
  fault("409", says(409, '{"code":"KEY_DISABLED"}'), { ...UNUSABLE, lastingState: "revoked" }),
  fault("500", says(500, '{"code":"INTERNAL"}')),
  fault("503", says(503, "<html>Unavailable</html>", "Retry-After: 1")),
  fault("429", throttles(), { ...THROTTLED, lastingState: "degraded" }),
  fault("429, Retry-After: 0", throttles("Retry-After: 0"), THROTTLED),
  fault("429, Retry-After: 2", throttles("Retry-After: 2"), { ...THROTTLED, learnMs: 2_200 }),
  fault("429, Retry-After: 3600", throttles("Retry-After: 3600"), THROTTLED_LONG),
  fault("429, Retry-After: -5", throttles("Retry-After: -5"), THROTTLED),
  fault("429, Retry-After: soon", throttles("Retry-After: soon"), THROTTLED),
  fault(
    "429, Retry-After: a date in the past",
    throttles("Retry-After: Wed, 21 Oct 2015 07:28:00 GMT"),
    THROTTLED,
  ),
  fault(
    "429, Retry-After: a date in the future",
    throttles("Retry-After: Wed, 21 Oct 2099 07:28:00 GMT"),
    THROTTLED_LONG,
  ),
  fault("redirects", answerHonestly, {
    begin: ({ fake, elsewhere }) => {
      fake.behaviour = ({ answer, path }) => answer(307, "", [`Location: ${elsewhere.url}${path}`]);
    },
  }),
  fault("an expired certificate", answerHonestly, serves("expired")),
  fault("a certificate for another host", answerHonestly, serves("elsewhere")),
  fault("a self-signed certificate", answerHonestly, serves("self")),
  fault("a rotated CA; KEY4C_CA_FILE replaced", answerHonestly, {
    ...serves("server", "otherPki"),
    end: ({ caFile, otherPki }) =>
      replace(caFile, (temporary) => copyFileSync(otherPki.file("ca.pem"), temporary)),
  }),
  fault(
    "a token that is no longer valid; KMS_USER_ID_FILE replaced",
    (exchange) =>
      exchange.userId === "renewed"
        ? answerHonestly(exchange)
        : exchange.answer(401, '{"code":"DENIED"}'),
    {
      ...UNUSABLE,
      end: ({ userIdFile }) =>
        replace(userIdFile, (temporary) => writeFileSync(temporary, "renewed\n")),
    },
  ),
  fault("a name that does not resolve, then another address", answerHonestly, {
    way: "name",
    learnMs: NAME_IS_BELIEVED_MS,
    begin: ({ fake, hostsFile }) => {
      fake.close();
      writeFileSync(hostsFile, hosts(undefined));
    },
    end: ({ fake, hostsFile, pki }) => {
      fake.listen({ pki, name: "server" }, NEW_ADDRESS);
      writeFileSync(hostsFile, hosts(NEW_ADDRESS));
    },
  }),
  fault(
    "a proxy that cannot resolve the name",
    answerHonestly,
    proxyAnswers("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"),
  ),
  fault("a proxy that does not answer", answerHonestly, { ...SLOW, ...proxyAnswers("") }),
];
