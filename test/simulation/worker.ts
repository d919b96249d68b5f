/** Plays one history after the other, beside the others on a core of its own. */
import { Coverage } from "./coverage.ts";
import { historyOf } from "./faults.ts";
import { play } from "./world.ts";

/** What a worker tells of a seed. */
export interface Played {
  readonly seed: number;
  readonly violation: { readonly rule: string; readonly message: string } | undefined;
  readonly coverage: Coverage;
}

export async function playSeed(seed: number): Promise<Played> {
  const coverage = new Coverage();
  const history = historyOf(seed);
  coverage.history(history);
  const found = await play(history, coverage);
  const violation = found && { rule: found.rule, message: found.message };
  return { seed, violation, coverage };
}

declare const self: Worker;

if (!Bun.isMainThread) {
  self.onmessage = async ({ data }: MessageEvent<number>) => {
    postMessage(await playSeed(data));
  };
}
