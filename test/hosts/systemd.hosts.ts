/** A machine that systemd boots, the plugin installed as install.md says. */
import { afterAll, beforeAll, expect } from "bun:test";
import { dirname } from "node:path";
import { commandsOf } from "../documents/blocks.ts";
import { eventually, figure } from "../e2e/process.ts";
import { callersDuring, callersFile } from "./callers.ts";
import { cases } from "./cases.ts";
import { confinementOf, NO_RIGHTS } from "./confinement.ts";
import { KEY4C_FILES, startKey4C } from "./key4c.ts";
import { Machine } from "./machine.ts";
import { INSTALL, RELEASE, releaseArchive } from "./runbook.ts";

const SERVICE = "key4c-kms-plugin.service";
/** At once, one after the other: calls are on their way in every moment of a start. */
const RESTARTS = 10;

let machine: Machine;
beforeAll(async () => {
  machine = await Machine.boot({
    name: "systemd",
    files: { [RELEASE]: await releaseArchive(), ...KEY4C_FILES, ...callersFile() },
  });
  await startKey4C(machine);
}, 600_000);
afterAll(() => machine?.remove(), 60_000);

const hostCase = cases("systemd", async () => {
  const { stdout } = await machine.try(
    "systemctl status 'key4c-kms-plugin.*' | cat; journalctl -b -n 60 --no-pager",
  );
  return stdout;
});

/** How often systemd has started the service anew. */
const restarts = async () => Number(await machine.run(`systemctl show -P NRestarts ${SERVICE}`));
const mainPid = async () => Number(await machine.run(`systemctl show -P MainPID ${SERVICE}`));
const isOk = (wait: string) => machine.run(`key4c-kms-plugin status --wait ${wait}`);

hostCase("install, as install.md has it", async () => {
  const [units = ""] = commandsOf(
    "docs/install-by-hand.md",
    "As a systemd service (bare metal, k3s, RKE2)",
  );
  const output = await machine.run(`${INSTALL}\n${units}`);
  expect(output).toContain('"healthz":"ok"');
  expect(await machine.run(`systemctl is-active ${SERVICE} key4c-kms-plugin.socket`)).toBe(
    "active\nactive\n",
  );
  const { calls, failed } = await callersDuring(machine, async () => {});
  expect([calls > 0, failed]).toEqual([true, 0]);
});

hostCase("hardening is in force", async () => {
  const pid = await mainPid();
  const { uid, rights } = await confinementOf(machine, pid);
  expect(rights).toEqual(NO_RIGHTS);
  expect(uid).not.toBe("0");
  expect(await machine.run(`grep 'core file' /proc/${pid}/limits`)).toMatch(/ 0 +0 /);
  // What it sees of the machine.
  const inside = (command: string) => machine.try(`nsenter -t ${pid} -m sh -c '${command}'`);
  expect((await inside("touch /etc/x")).stderr).toContain("Read-only file system");
  expect((await inside("ls -A /home /root")).stdout.trim().split("\n")).toEqual([
    "/home:",
    "",
    "/root:",
  ]);
  const asService = `setpriv --reuid ${uid} --clear-groups`;
  const secret = await machine.try(`${asService} cat /etc/key4c-kms/user-id`);
  expect(secret.stderr).toContain("Permission denied");
  expect(await machine.run("stat -c '%a %U %F' /run/key4c-kms /run/key4c-kms/kms.sock")).toBe(
    "711 root directory\n600 root socket\n",
  );
});

hostCase("restarted ten times under callers of all methods, no call fails", async () => {
  const { calls, failures, longestGapMs } = await callersDuring(machine, async () => {
    for (let index = 0; index < RESTARTS; index += 1) {
      await machine.run(`systemctl restart ${SERVICE}`);
    }
  });
  figure(
    `${RESTARTS} restarts under callers: ${calls} calls, longest time without one ${longestGapMs} ms`,
  );
  expect(failures).toEqual([]);
});

hostCase("kill -9: systemd starts it again", async () => {
  const before = await restarts();
  const startMs = performance.now();
  await machine.run(`kill -9 ${await mainPid()}`);
  await isOk("60s");
  figure(`ok ${Math.round(performance.now() - startMs)} ms after kill -9`);
  expect(await restarts()).toBe(before + 1);
});

hostCase("one that hangs is killed by the watchdog, and started again", async () => {
  await machine.put(
    `/etc/systemd/system/${SERVICE}.d/watchdog.conf`,
    "[Service]\nWatchdogSec=5\n", // the unit's own is longer than a test should be
  );
  await machine.run(`systemctl daemon-reload; systemctl restart ${SERVICE}`);
  const before = await restarts();
  await machine.run(`kill -STOP ${await mainPid()}`);
  await eventually("a restart", 60_000, async () => (await restarts()) > before);
  await isOk("60s");
  expect(await machine.run(`journalctl -b -u ${SERVICE}`)).toContain("Watchdog timeout");
  await machine.run(`rm -r /etc/systemd/system/${SERVICE}.d; systemctl daemon-reload`);
});

hostCase(
  "KMS_SOCKET_GROUP, where the directory is there from before and for root only",
  async () => {
    await machine.run("groupadd --gid 4711 apiserver; useradd --gid 4711 apiserver; useradd other");
    await machine.run(`chmod 0700 /run/key4c-kms
    key4c-kms-plugin manifest systemd-socket --socket-group apiserver --socket-mode 0660 \\
      --output /etc/systemd/system/key4c-kms-plugin.socket
    systemctl daemon-reload
    systemctl restart key4c-kms-plugin.socket key4c-kms-plugin.service`);
    await isOk("60s");
    const as = (user: string) =>
      machine.try(`setpriv --reuid ${user} --regid ${user} --clear-groups key4c-kms-plugin status`);
    expect([(await as("apiserver")).exitCode, (await as("other")).exitCode]).toEqual([0, 1]);
  },
);

hostCase("a renewed credential is the service's after a restart, which fails no call", async () => {
  const { failures } = await callersDuring(machine, () =>
    machine.run(`(umask 077 && echo renewed > /etc/key4c-kms/user-id)
      systemctl restart ${SERVICE}`),
  );
  expect(failures).toEqual([]);
  expect(await machine.run(`cat /run/credentials/${SERVICE}/kms-user-id`)).toBe("renewed\n");
});

hostCase("upgrade: the binary replaced under callers, no call fails", async () => {
  const before = await mainPid();
  const { failures } = await callersDuring(machine, () =>
    machine.run(`cd ${dirname(RELEASE)}\n${commandsOf("docs/upgrade.md", "Upgrade")[0]}`),
  );
  expect(failures).toEqual([]);
  expect(await mainPid()).not.toBe(before);
});

hostCase(
  "as systemd below 247 needs it: the credential from a file that systemd reads",
  async () => {
    const [older = ""] = commandsOf("docs/install-special.md", "systemd below 247");
    await machine.run(`${older}
    systemctl daemon-reload; systemctl restart ${SERVICE}`);
    await isOk("60s");
    const environment = await machine.run(`tr '\\0' '\\n' < /proc/${await mainPid()}/environ`);
    expect(environment).toContain("KMS_USER_ID=renewed\n");
    expect(environment).not.toContain("CREDENTIALS_DIRECTORY");
    expect(await machine.run(`systemctl show ${SERVICE}`)).not.toContain("renewed");
  },
);

hostCase("reboot while Key4C is away: up, honest, and ok when Key4C is back", async () => {
  await machine.run("systemctl disable --quiet emulated-key4c");
  await machine.reboot();
  expect(await machine.run(`systemctl is-active ${SERVICE}`)).toBe("active\n");
  const away = await machine.try("key4c-kms-plugin status");
  expect([away.exitCode === 0, away.stderr]).toEqual([false, expect.stringContaining("Key4C")]);
  await machine.run("systemctl enable --quiet --now emulated-key4c");
  await isOk("60s");
});

hostCase("power lost: up again, over the socket file that it left", async () => {
  await machine.powerOff();
  await machine.powerOn();
  await isOk("60s");
});

hostCase("uninstall, as install.md has it: nothing is left", async () => {
  const [, , , service = ""] = commandsOf("docs/upgrade.md", "Uninstall");
  await machine.run(`exec 2>&1\n${service}`);
  expect((await machine.try("ls /run/key4c-kms/kms.sock")).exitCode).not.toBe(0);
  expect(await machine.run("pgrep -xc key4c-kms-plugi || true")).toBe("0\n");
  expect(await machine.run("systemctl --failed --plain --no-legend")).toBe("");
});
