/**
 * `npm run test:faults`: the compiled binary against a Key4C that goes wrong in every way we could think of,
 * and then heals. Each cell of the table that it prints is a test; the rules are in verdict.ts.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { join } from "node:path";
import { status } from "@grpc/grpc-js";
import { startEmulator } from "../../src/emulator/emulator.ts";
import { missing, testWith } from "../needs.ts";
import { makePki } from "../pki.ts";
import { temporaryDirectory } from "../support.ts";
import type { Role } from "./callers.ts";
import { play, type Row } from "./cell.ts";
import { FakeKey4C } from "./fake.ts";
import { FAULTS, type Fault, KEY4C_NAME, LASTING, type Setup, type Situation } from "./faults.ts";
import { type Wrapped, wrapUnderNewKeks } from "./material.ts";
import { FakeProxy } from "./proxy.ts";
import { complaints, longestOf } from "./verdict.ts";

/** Local KEKs that callers ask for in the fault, and as many for the time after. */
const KEKS = 256;
const NAMES = `DNS:${KEY4C_NAME},IP:127.0.0.1`;
const FAULT_TIMEOUT_MS = 240_000;
/** And those that last, side by side. */
const LASTING_TIMEOUT_MS = 420_000;

const emulator = startEmulator({
  host: "127.0.0.1",
  port: 0,
  keyIds: ["demo"],
  dataFile: undefined,
  control: false,
});
const pki = makePki();
const otherPki = makePki();
const elsewhere = { url: "", requests: 0 };
const elsewhereServer = Bun.serve({
  hostname: "127.0.0.1",
  port: 0,
  fetch() {
    elsewhere.requests += 1;
    return Response.json({});
  },
});
elsewhere.url = elsewhereServer.url.href.replace(/\/$/, "");
let wrapped: Wrapped[] = [];
const table: string[] = [];

beforeAll(async () => {
  await pki.issue("server", NAMES);
  await otherPki.issue("server", NAMES);
  await pki.issue("elsewhere", "DNS:elsewhere.example");
  await pki.issueExpired("expired", NAMES);
  await pki.issueSelfSigned("self", NAMES);
  wrapped = await wrapUnderNewKeks(emulator.url, 2 * KEKS);
});

afterAll(async () => {
  const columns = ["fault", "when", "Status", "Encrypt", "Decrypt, known", "Decrypt, not known"];
  const figures = ["state", "longest RPC ms", "noticed ms", "healed ms", "peak MiB", "log lines"];
  const head = [...columns, ...figures];
  console.log(["", row(head), row(head.map(() => "---")), ...table].join("\n"));
  await Promise.all([emulator.stop(), elsewhereServer.stop(true)]);
});

const row = (cells: readonly (string | number)[]) => `| ${cells.join(" | ")} |`;

function shown(fault: Fault, situation: Situation, seen: Row): string {
  const { during, state, noticedMs, recoveredMs, peakMiB, stateLines, otherLines } = seen;
  const codes = (role: Role) =>
    during
      .codesOf(role)
      .map((code) => status[code])
      .sort()
      .join(" ");
  return row([
    ...[fault.name, situation, codes("status"), codes("encrypt"), codes("known"), codes("unseen")],
    ...[
      state,
      Math.round(longestOf(seen)),
      Math.round(noticedMs),
      Math.round(recoveredMs),
      peakMiB,
    ],
    `${stateLines} + ${otherLines.length}`,
  ]);
}

async function playOne(fault: Fault, situation: Situation): Promise<Row> {
  const directory = temporaryDirectory();
  const fake = new FakeKey4C(emulator.url);
  const setup: Setup = {
    fake,
    proxy: new FakeProxy(() => fake.port),
    pki,
    otherPki,
    caFile: join(directory, "ca.pem"),
    userIdFile: join(directory, "user-id"),
    hostsFile: join(directory, "hosts"),
    elsewhere,
  };
  const material = { during: wrapped.slice(0, KEKS), after: wrapped.slice(KEKS) };
  const seen = await play(fault, situation, setup, material);
  table.push(shown(fault, situation, seen));
  return seen;
}

/** FAULTS=REGEX plays some only, for whoever works on one. */
const wanted = new RegExp(process.env["FAULTS"] ?? "");
const faults = FAULTS.filter(({ name }) => wanted.test(name));

describe.each(faults)("$name", (fault) => {
  // A name can only be made to fail where the plugin has a hosts file of its own.
  const { situations } = fault;
  const needs = fault.way === "name" ? (["mount namespaces"] as const) : [];
  const testFault = testWith(...needs);
  let rows: PromiseSettledResult<Row>[] = [];
  beforeAll(async () => {
    if (missing(...needs).length > 0) {
      return; // this runs even where every test is skipped
    }
    // At once: each has its own plugin and its own Key4C.
    rows = await Promise.allSettled(situations.map((situation) => playOne(fault, situation)));
  }, FAULT_TIMEOUT_MS);
  testFault.each([...situations])("%s", (situation) => {
    expectFine(fault, situation, rows[situations.indexOf(situation)]);
  });
});

const lasting = faults.filter(({ lastingState }) => lastingState !== undefined);
describe(`held for ${LASTING}`, () => {
  let rows: PromiseSettledResult<Row>[] = [];
  beforeAll(async () => {
    rows = await Promise.allSettled(lasting.map((fault) => playOne(fault, LASTING)));
  }, LASTING_TIMEOUT_MS);
  test.each(lasting)("$name", (fault) => {
    expectFine(fault, LASTING, rows[lasting.indexOf(fault)]);
  });
});

function expectFine(
  fault: Fault,
  situation: Situation,
  played: PromiseSettledResult<Row> | undefined,
): void {
  if (played?.status !== "fulfilled") {
    throw played?.reason ?? new Error("not played to its end");
  }
  expect({ situation, complaints: complaints(fault, situation, played.value) }).toEqual({
    situation,
    complaints: [],
  });
}
