/** Key4C is many: replicas that disagree, and connections that stay with one of them. */
import { expect, test } from "bun:test";
import { randomBytes } from "node:crypto";
import { wrapBoth } from "../faults/callers.ts";
import type { Wrapped } from "../faults/material.ts";
import { emulator } from "../support.ts";
import {
  type Asked,
  bendKey4C,
  expectReadable,
  launchOk,
  unwrap,
  withoutKcv,
} from "./bent-key4c.ts";

const MANY_MS = 120_000;
const ENCRYPTS = 200;
/** At every so many of them a caller needs what only Key4C has. */
const READ_AT = 40;

/**
 * Other key material stands behind the same key and version since a failover. Connections that are kept lead to the
 * former replica, every new one to the other.
 */
async function failsOver(env: Record<string, string>) {
  const [survivor, former] = [emulator(), emulator()];
  const kept = new Set<number>();
  const key4c = bendKey4C(survivor.url);
  key4c.behaviour = ({ connection, honest }: Asked) => {
    kept.add(connection);
    return honest();
  };
  const profile = withoutKcv();
  const plugin = await launchOk(key4c.url, { ...profile, ...env });
  const other = await launchOk(survivor.url, { ...profile, KMS_LOCAL_KEK_MAX_USES: "1" });
  const ofOther: Wrapped[] = [];
  for (let n = 0; n <= ENCRYPTS / READ_AT; n++) {
    ofOther.push(await wrapBoth(other.client, randomBytes(32)));
  }
  // Only what callers need is asked on connections that are kept.
  await unwrap(plugin, ofOther.pop() as Wrapped);
  const asked = { former: 0, survivor: 0 };
  key4c.behaviour = ({ connection, honest }: Asked) => {
    const isKept = kept.has(connection);
    asked[isKept ? "former" : "survivor"] += 1;
    return isKept ? honest(former.url) : honest();
  };
  return { key4c, plugin, profile, asked, ofOther };
}

test.each(["1", "20"])(
  "nothing is acknowledged that only a kept connection can read: KMS_LOCAL_KEK_MAX_USES=%s",
  async (uses) => {
    const { key4c, plugin, profile, asked, ofOther } = await failsOver({
      KMS_LOCAL_KEK_MAX_USES: uses,
      KMS_PROBE_INTERVAL: "500ms",
    });
    const acknowledged: Wrapped[] = [];
    const keks = new Set<string>();
    for (let n = 0; n < ENCRYPTS; n++) {
      const wrapped = await wrapBoth(plugin.client, randomBytes(32));
      keks.add(String(Object.values(wrapped.v2.annotations)[0]));
      acknowledged.push(wrapped);
      if (n % READ_AT === 0) {
        await unwrap(plugin, ofOther.pop() as Wrapped).catch(() => {}); // the former replica cannot
      }
    }
    expect(keks.size).toBeGreaterThan(5); // it was renewed
    expect(asked.former).toBeGreaterThan(0); // and the kept connection was there to be used
    key4c.behaviour = undefined;
    await expectReadable(key4c.url, acknowledged, profile);
  },
  MANY_MS,
);
