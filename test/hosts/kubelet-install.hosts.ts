/** A kubelet, and the static pod that install.md's commands write; Key4C is unreachable when it starts again. */
import { afterAll, beforeAll, expect } from "bun:test";
import { LOADED_AS } from "../../src/build/oci.ts";
import { commandsOf } from "../documents/blocks.ts";
import { eventually, figure, seconds } from "../e2e/process.ts";
import { cases } from "./cases.ts";
import { REACHABLE, UNREACHABLE } from "./key4c.ts";
import type { Machine } from "./machine.ts";
import { commandsIn, INSTALL_POD } from "./runbook.ts";
import {
  BOOT_MS,
  bootPodNode,
  evidenceOf,
  MANIFEST,
  POD_MS,
  podOn,
  REMOVE_MS,
  removePodNode,
} from "./static-pod.ts";

let machine: Machine;
beforeAll(async () => {
  machine = await bootPodNode("install");
}, BOOT_MS);
afterAll(() => removePodNode(machine), REMOVE_MS);

const hostCase = cases("kubelet, installed", () => evidenceOf(machine));
const { containersUntil, running, isOk, pluginPid } = podOn(() => machine);

hostCase("install.md's commands: the image without a registry, and the pod", async () => {
  const startMs = performance.now();
  const { exitCode, stderr, stdout } = await machine.try(INSTALL_POD, { input: "the-token" });
  const took = ((performance.now() - startMs) / 1000).toFixed(1);
  expect({ exitCode, stderr, stdout }).toMatchObject({
    exitCode: 0,
    stderr: expect.stringContaining("the plugin is ok: {"),
  });
  figure(`a kubelet: ${commandsIn(INSTALL_POD)} commands, ${took} s to a plugin that is ok`);
  const [one] = await running(0);
  expect(one?.image).toBe(LOADED_AS);
  expect(await machine.run(`ctr -n k8s.io images ls name==${LOADED_AS}`)).toContain("pinned");
  const again = await machine.try("key4c-kms-plugin install");
  expect([again.exitCode, again.stderr]).toEqual([
    0,
    expect.stringContaining("every file is as it should be"),
  ]);
});

hostCase("another setting by install: a new pod has it", async () => {
  const before = await pluginPid();
  const { exitCode, stderr } = await machine.try("key4c-kms-plugin install --outage-grace 1h");
  expect({ exitCode, stderr }).toMatchObject({ exitCode: 0 });
  await eventually("another process", POD_MS, async () => (await pluginPid()) !== before);
  await isOk("120s");
});

hostCase("local KEKs kept in memory, as restart.md has it", async () => {
  const before = await pluginPid();
  await machine.run(commandsOf("docs/restart.md", "In memory")[0] ?? "");
  await eventually("another process", POD_MS, async () => (await pluginPid()) !== before);
  await isOk("120s");
  await running(0);
  await machine.run("echo -n of-a-secret | key4c-kms-plugin encrypt > /root/kept");
});

for (const [index, outage] of (["refuses", "hangs"] as const).entries()) {
  hostCase(`Key4C ${outage}: kill -9, and a pod with another image; both serve`, async () => {
    await machine.run(UNREACHABLE[outage]);
    const isServed = async (how: string, untilThere: () => Promise<unknown>) => {
      figure(`Key4C ${outage}: ok ${await seconds(untilThere)} s after ${how}`);
      expect(await machine.run("key4c-kms-plugin decrypt < /root/kept")).toBe("of-a-secret");
      const fresh = "echo -n fresh | key4c-kms-plugin encrypt | key4c-kms-plugin decrypt";
      expect(await machine.run(fresh)).toBe("fresh");
    };
    await machine.run(`kill -9 ${await pluginPid()}`);
    await isServed("kill -9", async () => {
      await running(1);
      await isOk("120s");
    });
    const next = LOADED_AS.replace(/0$/, String(index + 1));
    await machine.run(`ctr -n k8s.io images tag ${LOADED_AS} ${next}
      sed -i 's#^\\( *image:\\).*#\\1 "${next}"#' ${MANIFEST}`);
    await isServed("another image stood in the manifest", async () => {
      await containersUntil(
        "the other image",
        ([one]) => one?.image === next && one.state === "running",
      );
      await isOk("120s");
    });
    await machine.run(REACHABLE);
    await isOk("60s");
    await running(0);
  });
}
