/** A new user's first hour: the commands of README and install.md, and nothing else, on a machine that systemd boots. */
import { afterAll, beforeAll, expect } from "bun:test";
import { figure } from "../e2e/process.ts";
import { cases } from "./cases.ts";
import { KEY4C_FILES, startKey4C } from "./key4c.ts";
import { Machine } from "./machine.ts";
import { BY_README, commandsIn, RELEASE, releaseArchive } from "./runbook.ts";

const SERVICE = "key4c-kms-plugin.service";
/** What the plugin has on the machine, with its modes. */
const FILES =
  "find /etc/key4c-kms /etc/systemd/system/key4c-kms-plugin.* /etc/kubernetes /usr/local/bin/key4c-kms-plugin -printf '%p %m %u %s %i %T@ %C@\\n' | sort";

/** What writes a file for good, and what starts a command; the signal comes before it is done. */
const STEPS = "rename,renameat,renameat2,vfork";
const KILLED = 128 + 9;

let machine: Machine;
beforeAll(async () => {
  machine = await Machine.boot({
    name: "install",
    files: { [RELEASE]: await releaseArchive(), ...KEY4C_FILES },
  });
  await startKey4C(machine);
}, 600_000);
afterAll(() => machine?.remove(), 60_000);

const hostCase = cases("install", async () => {
  const { stdout } = await machine.try(
    "systemctl status 'key4c-kms-plugin.*' | cat; journalctl -b -n 60 --no-pager",
  );
  return stdout;
});

const install = (flags = "", input = "") =>
  machine.try(`/opt/release/key4c-kms-plugin-*/key4c-kms-plugin install ${flags}`, { input });
const mainPid = async () => Number(await machine.run(`systemctl show -P MainPID ${SERVICE}`));

hostCase("README's commands install the service", async () => {
  const startMs = performance.now();
  const { exitCode, stdout, stderr } = await machine.try(BY_README, { input: "the-token" });
  const seconds = (performance.now() - startMs) / 1000;
  expect({ exitCode, stderr }).toMatchObject({
    exitCode: 0,
    stderr: expect.stringContaining("the plugin is ok: {"),
  });
  expect(stdout).toContain("--encryption-provider-config=/etc/kubernetes/encryption-config");
  figure(
    `a systemd host: ${commandsIn(BY_README)} commands, ${seconds.toFixed(1)} s to a plugin that is ok`,
  );
  expect(await machine.run(`systemctl is-enabled ${SERVICE} key4c-kms-plugin.socket`)).toBe(
    "enabled\nenabled\n",
  );
  // In a shell that knows nothing.
  const doctor = await machine.try("key4c-kms-plugin doctor");
  expect([doctor.exitCode, doctor.stdout]).toEqual([0, expect.not.stringContaining("✗")]);
});

hostCase("run again it changes nothing, and restarts nothing", async () => {
  const before = [await machine.run(FILES), await mainPid()];
  const { exitCode, stderr } = await install();
  expect([exitCode, stderr]).toEqual([0, expect.stringContaining("every file is as it should be")]);
  expect([await machine.run(FILES), await mainPid()]).toEqual(before);
});

hostCase("another setting: the service is restarted with it", async () => {
  const before = await mainPid();
  const { exitCode, stderr } = await install("--outage-grace 1h");
  expect([exitCode, stderr]).toEqual([0, expect.stringContaining("1 file written")]);
  expect(await mainPid()).not.toBe(before);
  expect(await machine.run(`cat /run/credentials/${SERVICE}/config`)).toContain(
    "KMS_OUTAGE_GRACE=1h\n",
  );
});

hostCase(
  "killed before each file and each command, and run again: the same as without",
  async () => {
    const shown =
      "find /etc/key4c-kms /etc/systemd/system/key4c-kms-plugin.* /etc/kubernetes -type f | sort | xargs sha256sum";
    const remove = `systemctl disable --now --quiet key4c-kms-plugin.socket ${SERVICE} || :
    rm -rf /etc/key4c-kms /etc/systemd/system/key4c-kms-plugin.* /etc/kubernetes /usr/local/bin/key4c-kms-plugin
    systemctl daemon-reload`;
    const token = { input: "the-token" };
    await machine.run(`${remove}\n${BY_README}`, token);
    const wanted = await machine.run(shown);
    let killed = 0;
    for (;;) {
      await machine.run(remove);
      const kill = `inject=${STEPS}:signal=KILL:when=${killed + 1}`;
      const { exitCode } = await machine.try(
        `cd /opt/release/key4c-kms-plugin-*/ && exec strace -qq -o /dev/null -e trace=${STEPS} -e ${kill} ./key4c-kms-plugin install --as systemd --key4c-url http://127.0.0.1:9641 --key-id demo`,
        { input: "the-token" },
      );
      if (exitCode !== KILLED) {
        expect(exitCode).toBe(0);
        break;
      }
      killed += 1;
      await machine.run(BY_README, token);
      expect([killed, await machine.run(shown)]).toEqual([killed, wanted]);
      await machine.run("key4c-kms-plugin status --wait 60s");
    }
    figure(`killed at ${killed} places`);
    expect(killed).toBeGreaterThan(wanted.trim().split("\n").length);
  },
);
