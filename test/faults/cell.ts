/** One cell of the campaign: a plugin of its own goes into a fault of a Key4C of its own, and out of it. */
import { randomBytes } from "node:crypto";
import { copyFileSync, writeFileSync } from "node:fs";
import { type Role, rpcs, Sightings, wrapBoth } from "./callers.ts";
import { type Fault, hosts, LASTING, type Setup, type Situation } from "./faults.ts";
import type { Wrapped } from "./material.ts";
import {
  CONNECTIONS,
  type Plugin,
  peakMiB,
  start,
  until,
  untilState,
  watchStalls,
} from "./plugin.ts";

export interface Row {
  readonly during: Sightings;
  /** Of RPCs that began between the end of the fault and the recovery. */
  readonly between: Sightings;
  /** Of RPCs that began after the recovery. */
  readonly after: Sightings;
  /** From the fault to the state that it leads to. */
  readonly noticedMs: number;
  /** From its end to state ok and a success of each RPC. */
  readonly recoveredMs: number;
  /** From then until every local KEK that was asked for in the fault is readable. */
  readonly lastKekMs: number;
  readonly state: string;
  readonly peakMiB: number;
  readonly stateLines: number;
  /** Of warnings and errors besides. */
  readonly otherLines: readonly string[];
  readonly peakConnections: number;
  /** To Key4C, from the fault's beginning to its end. */
  readonly requests: number;
  /** Whether one went where a redirect pointed. */
  readonly leaked: boolean;
  /** The longest that this very process was kept from work: so long may the plugin have been, too. */
  readonly stallMs: number;
}

type Callers = Readonly<Record<Role, number>>;
/** What a fault must not touch is asked for by 40, what it does by 24. Those that last go side by side. */
const CALLERS: { readonly [S in Situation]?: Callers } = {
  "64 callers": { status: 8, encrypt: 16, known: 16, unseen: 24 },
  [LASTING]: { status: 1, encrypt: 1, known: 2, unseen: 2 },
};
/** Between two RPCs of one caller: 64 callers and their plugin leave half of two cores to the rest. */
const PAUSE_MS = 50;
/** How long the fault goes on after it was noticed, or where it is not. */
const HOLD_MS = 1_200;
const LASTING_HOLD_MS = 150_000;

const DEK = randomBytes(32);

export interface Material {
  /** Asked for in the fault. */
  readonly during: readonly Wrapped[];
  /** Not before it has ended. */
  readonly after: readonly Wrapped[];
}

/** A flag that callers look at. */
interface Phase {
  sightings: Sightings;
  isOver: boolean;
  material: readonly Wrapped[];
}

/** Callers of every kind that go on until the phase is over. */
function call(plugin: Plugin, phase: Phase, known: readonly Wrapped[], counts: Callers) {
  let turn = 0;
  let unseenAt = 0;
  const loop = async (role: Role) => {
    while (!phase.isOver) {
      turn += 1;
      const { sightings, material } = phase;
      const client = plugin.clients[turn % CONNECTIONS] as Plugin["clients"][number];
      const wrapped =
        role === "unseen" ? material[unseenAt++ % material.length] : known[turn % known.length];
      await sightings.see(role, () => {
        switch (role) {
          case "status":
            return rpcs.status(client);
          case "encrypt":
            return turn % 2 === 0 ? rpcs.encrypt1(client, DEK) : rpcs.encrypt2(client, DEK);
          default:
            return wrapped === undefined
              ? Promise.resolve()
              : turn % 2 === 0
                ? rpcs.decrypt1(client, wrapped)
                : rpcs.decrypt2(client, wrapped);
        }
      });
      await Bun.sleep(PAUSE_MS);
    }
  };
  const roles = Object.keys(counts) as Role[]; // own keys of the table above
  return Promise.all(
    roles.flatMap((role) => Array.from({ length: counts[role] }, () => loop(role))),
  );
}

/** What the plugin itself has made: known to it. */
async function own(plugin: Plugin): Promise<Wrapped[]> {
  return [await wrapBoth(plugin.clients[0] as Plugin["clients"][number], DEK)];
}

/** Whether callers have been told of the fault. */
export function isMet({ code, firstCode }: Fault, seen: Sightings): boolean {
  return seen.codesOf("unseen").some((one) => one === code || one === firstCode);
}

export async function play(
  fault: Fault,
  situation: Situation,
  setup: Setup,
  material: Material,
): Promise<Row> {
  copyFileSync(setup.pki.file("ca.pem"), setup.caFile);
  writeFileSync(setup.userIdFile, "first\n");
  writeFileSync(setup.hostsFile, hosts("127.0.0.1"));
  setup.fake.listen({ pki: setup.pki, name: "server" });

  const crowd = CALLERS[situation];
  const stall = watchStalls();
  const phase: Phase = { sightings: new Sightings(), isOver: false, material: material.during };
  const one = { status: 1, encrypt: 2, known: 0, unseen: 2 };
  let plugin: Plugin;
  let callers: Promise<unknown> = Promise.resolve();
  let known: readonly Wrapped[] = [];
  let firstLine = 0;
  const begin = () => {
    fault.begin(setup);
    setup.fake.requests = 0;
    return performance.now();
  };
  let beganMs: number;
  if (situation === "at start") {
    beganMs = begin();
    plugin = await start(setup, fault.way);
    callers = call(plugin, phase, known, one);
  } else {
    plugin = await start(setup, fault.way);
    await untilState(plugin, "ok");
    known = [...(await own(plugin)), ...material.after.slice(0, 8)];
    await Promise.all(known.map((wrapped) => rpcs.decrypt2(plugin.clients[0] as never, wrapped)));
    if (crowd !== undefined) {
      // Before the fault: everything but what is not to be seen yet.
      const before: Phase = { sightings: new Sightings(), isOver: false, material: [] };
      const warm = call(plugin, before, known, { ...crowd, unseen: 0 });
      await Bun.sleep(500);
      before.isOver = true;
      await warm;
      callers = call(plugin, phase, known, crowd);
    }
    firstLine = plugin.output().split("\n").length - 1;
    beganMs = begin();
  }

  // Into it.
  if (situation === "at start") {
    await until(() => plugin.output().match(/"state":"/) ?? undefined);
  } else if (fault.state === "degraded") {
    await untilState(plugin, "degraded");
  }
  const noticedMs = performance.now() - beganMs;
  await Bun.sleep(situation === LASTING ? LASTING_HOLD_MS : HOLD_MS);
  if (crowd !== undefined) {
    await until(() => isMet(fault, phase.sightings) || undefined);
  }
  if (situation === "idle") {
    const asked: Phase = { ...phase };
    const once = call(plugin, asked, known, { ...one, known: 1 });
    asked.isOver = true;
    await once;
  }
  const state = await plugin.state();

  // Out of it.
  const { requests } = setup.fake;
  const during = phase.sightings;
  fault.end(setup);
  const endedMs = performance.now();
  // What begins between the fault and the recovery may fail as in the fault, or succeed.
  phase.sightings = new Sightings();
  phase.material = material.after;
  let at = 8;
  const [client] = plugin.clients as [Plugin["clients"][number]];
  await untilState(plugin, "ok");
  await until(async () => {
    const fresh = material.after[at++ % material.after.length] as Wrapped;
    const trial = new Sightings();
    const results = await Promise.all([
      trial.see("status", () => rpcs.status(client)),
      trial.see("encrypt", () => rpcs.encrypt1(client, DEK)),
      trial.see("encrypt", () => rpcs.encrypt2(client, DEK)),
      trial.see("unseen", () => rpcs.decrypt1(client, fresh)),
    ]);
    return results.every(Boolean) ? true : undefined;
  });
  const recoveredMs = performance.now() - endedMs;
  const between = phase.sightings;
  phase.sightings = new Sightings();
  const after = phase.sightings;
  if (crowd === undefined) {
    callers = Promise.all([callers, call(plugin, phase, await own(plugin), { ...one, known: 1 })]);
  }
  const recoveredAtMs = performance.now();
  // Nothing that was asked for in the fault stays unreadable.
  await until(async () => {
    const trial = new Sightings();
    const touched = material.during.slice(0, 32);
    const results = await Promise.all(
      touched.map((wrapped) => trial.see("unseen", () => rpcs.decrypt2(client, wrapped))),
    );
    return results.every(Boolean) ? true : undefined;
  });
  const lastKekMs = performance.now() - recoveredAtMs;
  await Bun.sleep(300);
  phase.isOver = true;
  await callers;

  const lines = plugin.output().split("\n").slice(firstLine).filter(Boolean);
  const stateLines = lines.filter((line) => line.includes('"state":"'));
  const routine = /"msg":"(?:new local KEK|serving|http)/;
  const row = {
    during,
    between,
    after,
    noticedMs,
    recoveredMs,
    lastKekMs,
    state,
    peakMiB: peakMiB(plugin),
    stateLines: stateLines.length,
    otherLines: lines.filter((line) => !stateLines.includes(line) && !routine.test(line)),
    peakConnections: setup.fake.peakConnections,
    requests,
    leaked: setup.elsewhere.requests > 0,
    stallMs: stall.stop(),
  };
  await plugin.stop();
  setup.fake.close();
  setup.proxy.close();
  return row;
}
