/** Restarts and reboots of a machine while Key4C is unreachable, with KMS_PERSISTENT_CACHE. */
import { afterAll, beforeAll, expect } from "bun:test";
import { commandsOf } from "../documents/blocks.ts";
import { eventually, figure } from "../e2e/process.ts";
import { cases } from "./cases.ts";
import { KEY4C_FILES, type Outage, REACHABLE, startKey4C, UNREACHABLE } from "./key4c.ts";
import { Machine } from "./machine.ts";
import { INSTALL_SERVICE, RELEASE, releaseArchive } from "./runbook.ts";

const SERVICE = "key4c-kms-plugin.service";
const KEY_UNIT = "key4c-kms-cache-key.service";
const KEY_FILE = "/run/key4c-kms-cache-key/key";

let machine: Machine;
beforeAll(async () => {
  machine = await Machine.boot({
    name: "cache",
    files: { [RELEASE]: await releaseArchive(), ...KEY4C_FILES },
  });
  await startKey4C(machine);
}, 600_000);
afterAll(() => machine?.remove(), 60_000);

const hostCase = cases("persistent cache", async () => {
  const { stdout } = await machine.try(
    `systemctl status 'key4c-kms-*' | cat; journalctl -b -n 60 --no-pager`,
  );
  return stdout;
});

const mainPid = async () => Number(await machine.run(`systemctl show -P MainPID ${SERVICE}`));
const isOk = () => machine.run("key4c-kms-plugin status --wait 60s");
const bootId = async () => (await machine.run("cat /proc/sys/kernel/random/boot_id")).trim();

/** Key4C answers, and the plugin has heard it. */
const back = `${REACHABLE}
  for i in $(seq 300); do curl -s 127.0.0.1:9640/readyz | grep -q '^ok' && exit; sleep 0.2; done; exit 1`;

/** Wraps a DEK into a file. */
const wrap = (name: string) =>
  machine.run(`echo -n ${name}-of-a-secret | key4c-kms-plugin encrypt > /root/${name}`);
const unwrap = (name: string) => machine.run(`key4c-kms-plugin decrypt < /root/${name}`);

/** After something that ended the process: all that was wrapped is read, and more is wrapped. @returns milliseconds */
async function isServed(...names: readonly string[]): Promise<number> {
  const startMs = performance.now();
  await isOk();
  const tookMs = performance.now() - startMs;
  for (const name of names) {
    expect(await unwrap(name)).toBe(`${name}-of-a-secret`);
  }
  const fresh = `fresh-${crypto.randomUUID()}`;
  await wrap(fresh);
  expect(await unwrap(fresh)).toBe(`${fresh}-of-a-secret`);
  return Math.round(tookMs);
}

hostCase("installed with what is kept in memory, for the user of the service alone", async () => {
  await machine.run(INSTALL_SERVICE, { input: "the-token\n" });
  await machine.run(commandsOf("docs/restart.md", "In memory")[0] ?? "");
  await isOk();
  await wrap("first");
  const listed = await eventually("a file of it", 60_000, async () => {
    const found = await machine.run("find /run/private/key4c-kms-cache -printf '%y %m %U\\n'");
    return found.includes("\nf ") && found; // it is written beside, and not before an answer
  });
  const uid = (await machine.run(`stat -c %u /proc/${await mainPid()}`)).trim();
  expect(listed.trim().split("\n")).toEqual([`d 700 ${uid}`, `d 700 ${uid}`, `f 600 ${uid}`]);
});

for (const outage of ["hangs", "refuses"] as const satisfies readonly Outage[]) {
  hostCase(`Key4C ${outage}: kill -9, and a restart of the service`, async () => {
    await machine.run(UNREACHABLE[outage]);
    const { exitCode } = await machine.try(`kill -9 ${await mainPid()}`);
    expect(exitCode).toBe(0);
    figure(`Key4C ${outage}: served ${await isServed("first")} ms after kill -9`);
    await machine.run(`systemctl restart ${SERVICE}`);
    figure(`Key4C ${outage}: served ${await isServed("first")} ms after systemctl restart`);
    await machine.run(back);
    await isOk();
  });
}

hostCase("what is in memory ends with a reboot", async () => {
  await machine.run(UNREACHABLE.refuses);
  await machine.reboot();
  expect((await machine.try("key4c-kms-plugin status")).exitCode).not.toBe(0);
  await machine.run(back);
  await isOk();
  expect(await unwrap("first")).toBe("first-of-a-secret");
});

hostCase("sealed by a key that systemd-creds opens at boot", async () => {
  const [printKeyUnit = "", install = ""] = commandsOf("docs/restart.md", "Sealed");
  // Its own comments, typed; this machine has no TPM.
  const unit = await machine.run(printKeyUnit);
  const typed = [...unit.matchAll(/^# {3}((?:mkdir|head|systemctl) .*)$/gm)].map(
    ([, line]) => line,
  );
  expect(typed).toHaveLength(3);
  await machine.run(typed.join("\n").replace("--with-key=tpm2", "--with-key=host"));
  expect(await machine.run(`stat -c '%a %U %s' ${KEY_FILE}`)).toBe("600 root 32\n");
  await machine.run(install);
  await isOk();
  expect(await machine.run(`journalctl -b -u ${SERVICE}`)).toContain('"form":"sealed"');
  await wrap("second");
  expect(await unwrap("first")).toBe("first-of-a-secret");
  await machine.run("sleep 6"); // what data needed is written 5 s later
});

for (const outage of ["refuses", "hangs"] as const satisfies readonly Outage[]) {
  hostCase(`Key4C ${outage}: the machine is rebooted, and comes up`, async () => {
    await machine.run(UNREACHABLE[outage]);
    const before = await bootId();
    await machine.reboot();
    const tookMs = await isServed("first", "second");
    figure(
      `Key4C ${outage}: served ${tookMs} ms after the reboot; boot_id ${before} before, ${await bootId()} after`,
    );
    expect(await bootId()).not.toBe(before);
    expect(await machine.run(`journalctl -b -u ${SERVICE}`)).toContain(
      "using what the previous process kept",
    );
    await machine.run(back);
    await isOk();
  });
}

hostCase("Key4C refuses: the machine is rebooted with its wall clock an hour back", async () => {
  const dropIn = `/etc/systemd/system/${SERVICE}.d/clock.conf`;
  await machine.put(
    dropIn,
    `[Service]
Environment=LD_PRELOAD=/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1
Environment=FAKETIME=-1h FAKETIME_DONT_FAKE_MONOTONIC=1
`,
  );
  await machine.run(UNREACHABLE.refuses);
  const before = await bootId();
  await machine.reboot();
  figure(`an hour back: served ${await isServed("first", "second")} ms after the reboot`);
  expect(await bootId()).not.toBe(before);
  const lines = await machine.run(`journalctl -b -u ${SERVICE} -o cat`);
  const told = Date.parse(/"time":"([^"]*)"/.exec(lines)?.[1] ?? "");
  expect(Date.now() - told).toBeGreaterThan(3_500_000);
  expect(lines).toContain("using what the previous process kept");
  await machine.run(`rm ${dropIn}; systemctl daemon-reload`);
  await machine.run(back);
  await machine.run(`systemctl restart ${SERVICE}`);
  await isOk();
});

hostCase("power lost while Key4C is unreachable", async () => {
  await machine.run(UNREACHABLE.refuses);
  await machine.powerOff();
  await machine.powerOn();
  figure(`served ${await isServed("first", "second")} ms after the power came back`);
  await machine.run(back);
  await isOk();
});

hostCase("a sealing key that cannot be opened costs the cache, and not the start", async () => {
  await machine.run("echo nonsense > /etc/key4c-kms/persistent-cache-key.cred");
  await machine.reboot();
  await isOk();
  expect(await machine.run(`systemctl is-failed ${KEY_UNIT} || true`)).toBe("failed\n");
  expect(await machine.run(`journalctl -b -u ${SERVICE}`)).toMatch(
    /local KEKs are not kept.*has 4 bytes/,
  );
});

hostCase("turned off, as restart.md has it: nothing is left", async () => {
  const [turnOff = ""] = commandsOf("docs/restart.md", "Turn it off");
  expect(await machine.run(turnOff)).toMatch(/^removed \d/m);
  await isOk();
  expect(await machine.run("find /var/lib/private/key4c-kms-cache -type f")).toBe("");
  expect(await machine.run(`systemctl cat ${SERVICE}`)).not.toContain("key4c-kms-cache");
});
