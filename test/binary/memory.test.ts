/** What is left of a key in the memory of the compiled binary after its revocation. */
import { expect } from "bun:test";
import { closeSync, openSync, readFileSync, readSync } from "node:fs";
import { figure } from "../e2e/process.ts";
import { testWith } from "../needs.ts";
import { runBinary } from "../support.ts";
import { bendKey4C, launchOk, startKey4C, wrap } from "./bent-key4c.ts";

/** Wiped at once; this is for the garbage collector. */
const LATER_MS = Number(process.env["LATER_MS"] ?? 10_000);
const CHUNK_BYTES = 1 << 20;
const PAGE_BYTES = 4_096;
/** Of /proc/PID/pagemap: the highest bits of an entry say that the page is in memory, or in swap (proc(5)). */
const ENTRY_BYTES = 8;
const IN_MEMORY = 0x40;

function hasPages(entries: Buffer): boolean {
  for (let at = ENTRY_BYTES - 1; at < entries.length; at += ENTRY_BYTES) {
    if ((entries[at] ?? 0) >= IN_MEMORY) {
      return true;
    }
  }
  return false;
}

/** Counts a text in what a process may write to. */
function countIn(pid: number, wanted: readonly Buffer[]): number {
  const maps = readFileSync(`/proc/${pid}/maps`, "utf8").split("\n");
  const memory = openSync(`/proc/${pid}/mem`, "r");
  const pages = openSync(`/proc/${pid}/pagemap`, "r");
  const entries = Buffer.alloc((CHUNK_BYTES / PAGE_BYTES) * ENTRY_BYTES);
  const longest = Math.max(...wanted.map(({ length }) => length));
  let count = 0;
  for (const [, from = "", to = ""] of maps.flatMap((line) => {
    const found = /^([0-9a-f]+)-([0-9a-f]+) rw/.exec(line);
    return found === null ? [] : [found];
  })) {
    const [start, end] = [Number.parseInt(from, 16), Number.parseInt(to, 16)];
    const buffer = Buffer.alloc(CHUNK_BYTES + longest - 1);
    for (let at = start; at < end; at += CHUNK_BYTES) {
      // The engine reserves gigabytes that it never touches.
      readSync(pages, entries, 0, entries.length, (at / PAGE_BYTES) * ENTRY_BYTES);
      if (!hasPages(entries)) {
        continue;
      }
      let length = 0;
      try {
        length = readSync(memory, buffer, 0, Math.min(buffer.length, end - at), at);
      } catch {
        continue; // not mapped any more, or not readable
      }
      const chunk = buffer.subarray(0, length);
      for (const text of wanted) {
        for (let found = chunk.indexOf(text); found >= 0; found = chunk.indexOf(text, found + 1)) {
          count += found < CHUNK_BYTES ? 1 : 0; // what lies behind is the next chunk's
        }
      }
    }
    buffer.fill(0);
  }
  closeSync(memory);
  closeSync(pages);
  return count;
}

testWith("root")("after a revocation no local KEK is in memory as it was used", async () => {
  const { url } = await startKey4C();
  const key4c = bendKey4C(url);
  const localKeks = new Set<string>();
  key4c.behaviour = async ({ path, honest }) => {
    const response = await honest();
    if (path.endsWith("/decrypt")) {
      const { plaintext } = (await response.clone().json()) as { plaintext?: string };
      if (plaintext !== undefined) {
        localKeks.add(plaintext);
      }
    }
    return response;
  };
  const env = { KMS_REVOCATION_GRACE: "0s", KMS_LOCAL_KEK_MAX_USES: "20" };
  const plugin = await launchOk(key4c.url, env);
  for (let deks = 0; deks < 50; deks++) {
    await wrap(plugin);
  }
  const raw = () =>
    countIn(
      plugin.pid,
      [...localKeks].map((text) => Buffer.from(text, "base64")),
    );
  expect(localKeks.size).toBeGreaterThan(3);
  expect(raw()).toBeGreaterThan(3); // it would be found
  const disabled = await runBinary(["emulator", "disable", "--key-id", "demo"], {
    env: { KEY4C_URL: url },
  });
  expect(disabled.exitCode).toBe(0);
  await plugin.untilState("revoked");
  await Bun.sleep(LATER_MS);
  figure(
    `${LATER_MS / 1_000} s after a revocation, of ${localKeks.size} local KEKs: ${raw()} in raw bytes, ${countIn(
      plugin.pid,
      [...localKeks].map((text) => Buffer.from(text)),
    )} in base64`,
  );
  expect(raw()).toBe(0);
});
