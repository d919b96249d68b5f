/** What a run is compared with: the ratios of an earlier one. Absolute figures of two runs are not comparable. */
import { join } from "node:path";

const FILE = join(import.meta.dir, "baseline.json");

/** The plugin beside another server, in slices in turns: calls a second, and CPU time a call. */
export interface Ratios {
  readonly rate: number;
  readonly cpu: number;
}

/** By operation and width, such as `v2 encrypt 64/1`, and by the server it is compared with. */
export type Rows = Readonly<Record<string, Readonly<Record<string, Ratios>>>>;

interface Baseline {
  readonly commit: string;
  readonly note: string;
  readonly rows: Rows;
}

export async function readBaseline(): Promise<Baseline | undefined> {
  const file = Bun.file(FILE);
  return (await file.exists()) ? ((await file.json()) as Baseline) : undefined; // written below
}

export async function storeBaseline(rows: Rows): Promise<void> {
  const git = (...args: string[]) =>
    Bun.spawnSync(["git", ...args], { cwd: import.meta.dir })
      .stdout.toString()
      .trim();
  const isChanged = git("status", "--porcelain", "--", "../../src") !== "";
  const baseline: Baseline = {
    commit: git("rev-parse", "--short", "HEAD") + (isChanged ? " and changes" : ""),
    note: "ratios of the plugin to the empty service (floor) and to grpc-go; npm run bench -- --store writes it",
    rows,
  };
  await Bun.write(FILE, `${JSON.stringify(baseline, null, 2)}\n`);
  console.log(`\nstored in ${FILE}`);
}

/** `1.12` where the ratio is now 1.12 times what it was; empty where there is nothing to compare. */
export function toStored(
  baseline: Baseline | undefined,
  row: string,
  server: string,
  now: Ratios,
  what: keyof Ratios,
): string {
  const stored = baseline?.rows[row]?.[server]?.[what];
  return stored === undefined ? "" : (now[what] / stored).toFixed(2);
}
