/** The fake KMS is what each plugin expects of its own: none of them is here when the fake is changed. */
import { afterAll, beforeAll, expect } from "bun:test";
import { testWith } from "../../needs.ts";
import { buildGo, cleanUp } from "../servers.ts";
import { disabled, outage } from "./failures.ts";
import { type OpenKms, startFake } from "./fake.ts";
import { eachDek } from "./plugins.ts";

const DEK = Buffer.alloc(32, 7).toString("base64");
const GCP = "/v1/projects/p/locations/l/keyRings/r/cryptoKeys/k";
const OVH =
  "/api/11111111-1111-4111-8111-111111111111/v1/servicekey/22222222-2222-4222-8222-222222222222";

/** Where, and the names of what is encrypted and of what comes of it. */
const APIS: Readonly<
  Record<string, readonly [path: (operation: string) => string, plain: string, cipher: string]>
> = {
  Key4C: [(operation) => `/v1/keys/key-1/${operation}`, "plaintext", "ciphertext"],
  AWS: [() => "/", "Plaintext", "CiphertextBlob"],
  Azure: [(operation) => `/testvault.vault.azure.net/keys/k/v/${operation}`, "value", "value"],
  GCP: [(operation) => `${GCP}:${operation}`, "plaintext", "ciphertext"],
  Vault: [(operation) => `/v1/transit/${operation}/kms`, "plaintext", "ciphertext"],
  OVH: [(operation) => `${OVH}/${operation}`, "plaintext", "ciphertext"],
};

/** A first build in Go takes a minute, on a busy machine several. */
const BUILD_MS = 300_000;

let openKms: OpenKms;
beforeAll(async () => {
  if (Bun.which("go") !== null) {
    openKms = await startFake();
  }
}, BUILD_MS);
afterAll(cleanUp);

testWith("go").each(Object.entries(APIS))("%s", async (name, [path, plain, cipher]) => {
  const kms = await openKms();
  const call = async (operation: string, body: object) => {
    const target = `TrentService.${operation === "encrypt" ? "Encrypt" : "Decrypt"}`;
    const answer = await fetch(`http://127.0.0.1:${kms.port}${path(operation)}`, {
      method: "POST",
      headers: name === "AWS" ? { "X-Amz-Target": target } : {},
      body: JSON.stringify(body),
    });
    const told = (await answer.json()) as Record<string, string> & {
      data?: Record<string, string>;
    };
    return { isOk: answer.ok, members: told.data ?? told };
  };
  const { members: wrapped } = await call("encrypt", { [plain]: DEK });
  const ciphertext = wrapped[cipher];
  expect(ciphertext).not.toBe(DEK);
  const { members: unwrapped } = await call("decrypt", { [cipher]: ciphertext });
  expect(Buffer.from(unwrapped[plain] ?? "", "base64")).toEqual(Buffer.from(DEK, "base64"));
  expect(await kms.calls()).toEqual({ all: 2, decrypt: 1 });
  await kms.set({ mode: "disabled" });
  expect(await call("decrypt", { [cipher]: ciphertext })).toMatchObject({ isOk: false });
  await kms.set({ mode: "refuse" });
  await expect(call("decrypt", { [cipher]: ciphertext })).rejects.toThrow();
  await kms.set({ mode: "ok" });
  expect(await call("decrypt", { [cipher]: ciphertext })).toMatchObject({ isOk: true });
});

testWith("go")(
  "a server that asks for each DEK answers nothing in an outage, and obeys at once",
  async () => {
    const each = eachDek(buildGo("each", "./peers/each"));
    const [refused, revoked] = await Promise.all([
      outage(each, "refuse", 10_000, openKms), // calls are made in it, whatever the machine does
      disabled(each, openKms),
    ]);
    expect(refused.answered).toEqual({ encrypt: 0, decrypt: 0, status: 0 });
    expect(refused.isRestarted).toBeNull();
    expect(refused.usedAfterMs).not.toBeNull();
    expect(revoked.obeyedAfterMs).toBeLessThan(5_000);
    expect(revoked.usedAfterMs).not.toBeNull();
  },
  BUILD_MS + 60_000,
);
