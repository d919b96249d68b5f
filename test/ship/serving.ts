/** A plugin that runs somewhere else, asked through its socket by the binary of this machine. */
import { expect } from "bun:test";
import { randomBytes } from "node:crypto";
import { run } from "../e2e/process.ts";
import { NO_CONFIG_FILE } from "../no-config.ts";
import { BINARY } from "../support.ts";

/** Waits until Status is ok, then has a DEK wrapped and unwrapped, with both APIs. */
export async function expectServing(socket: string, wait = "20s"): Promise<void> {
  const env = { ...NO_CONFIG_FILE, KMS_ENDPOINT: `unix://${socket}` };
  await run([BINARY, "status", "--wait", wait], env);
  const dek = randomBytes(32).toString("hex");
  for (const api of ["v1", "v2"]) {
    const wrapped = Bun.spawn([BINARY, "encrypt", "--api", api], { env, stdin: Buffer.from(dek) });
    const bytes = await wrapped.stdout.bytes();
    const unwrapped = Bun.spawn([BINARY, "decrypt"], { env, stdin: bytes });
    expect(await unwrapped.stdout.text()).toBe(dek);
  }
}
