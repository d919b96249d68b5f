/**
 * `npm run test:mutants -- --sample N`: breaks the core at random, one place at a time, and wants a test to notice.
 * `-- --cases [CASE… | RULE…]`: the mutants that somebody chose, see cases.ts.
 */
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { describeError } from "../../src/system/errors.ts";
import { ROOT, shell } from "../run/shell.ts";
import { Random } from "../simulation/clock.ts";
import { playCases } from "./cases.ts";
import { Compiler } from "./compiler.ts";
import { Copy } from "./copy.ts";
import { type Mutation, mutationsOf } from "./operators.ts";
import { baselineMs, binaryTrials, eachBeside, noticedBy, Trials } from "./trials.ts";

const FILES = "src/{keys,health,key4c,socket}/*.ts";
const USAGE = `usage: npm run test:mutants -- --sample N [--seed TEXT] [--files GLOB] [--jobs N] [--no-binary]
       npm run test:mutants -- --at FILE[:LINE[:COLUMN]]…
       npm run test:mutants -- --cases [CASE… | RULE…]

--sample N   so many mutants of ${FILES}; each compiles
--seed TEXT  which; a hash of a commit will do, and the one that is checked out is the default
--files GLOB of these files only
--at PLACE   all mutants of a file, a line or a place; given again for each of what survived before
--no-binary  what the tests of the sources let pass is not played against the binary`;

interface Mutant extends Mutation {
  readonly file: string;
  readonly line: number;
  readonly column: number;
  /** Of the whole file. */
  readonly text: string;
  readonly original: string;
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  allowNegative: true,
  options: {
    cases: { type: "boolean" },
    sample: { type: "string" },
    seed: { type: "string" },
    files: { type: "string", default: FILES },
    at: { type: "string", multiple: true, default: [] },
    jobs: { type: "string", default: String(availableParallelism()) },
    binary: { type: "boolean", default: true },
    help: { type: "boolean", short: "h" },
  },
});

if (values.cases) {
  process.exit((await playCases(positionals)) ? 0 : 1);
}
const isSample = values.at.length === 0;
const size = isSample ? Number(values.sample) : Number.POSITIVE_INFINITY;
if (values.help || !(size >= 1)) {
  console.log(USAGE);
  process.exit(values.help ? 0 : 1);
}
const seed = values.seed ?? (await shell("git rev-parse HEAD")).output.trim();
const mutants = await drawn();
console.log(`${mutants.length} mutants, seed ${seed}`);
const survivors = await play(mutants);
for (const one of survivors) {
  console.log(diffOf(one));
}
const killed = mutants.length - survivors.length;
const score = ((100 * killed) / mutants.length).toFixed(1);
console.log(`${killed} of ${mutants.length} noticed, ${score} %; seed ${seed}`);
process.exit(mutants.length > 0 ? 0 : 1);

/** The sample: the same for the same seed and sources. */
async function drawn(): Promise<readonly Mutant[]> {
  const files = isSample
    ? [...new Bun.Glob(values.files).scanSync(ROOT)].sort()
    : new Set(values.at.map((place) => place.split(":")[0] ?? ""));
  const compiler = new Compiler(ROOT);
  const all: Mutant[] = [];
  for (const file of files) {
    const source = readFileSync(join(ROOT, file), "utf8");
    for (const mutation of mutationsOf(await compiler.parse(file))) {
      const before = source.slice(0, mutation.start).split("\n");
      const [line, column] = [before.length, (before.at(-1) ?? "").length + 1];
      const original = source.slice(mutation.start, mutation.end);
      const text =
        source.slice(0, mutation.start) + mutation.replacement + source.slice(mutation.end);
      const places = [file, `${file}:${line}`, `${file}:${line}:${column}`];
      if (isSample || places.some((place) => values.at.includes(place))) {
        all.push({ ...mutation, file, line, column, text, original });
      }
    }
  }
  const random = new Random(createHash("sha256").update(seed).digest().readInt32BE());
  const found: Mutant[] = [];
  while (all.length > 0 && found.length < size) {
    const [one] = isSample ? all.splice(random.int(all.length), 1) : all.splice(0, 1);
    if (one !== undefined && (await compiler.compiles(one.file, one.text))) {
      found.push(one);
    }
  }
  await compiler.close();
  return found;
}

/** @returns those that nothing noticed */
async function play(all: readonly Mutant[]): Promise<readonly Mutant[]> {
  using stack = new DisposableStack();
  const copies = Array.from({ length: Number(values.jobs) }, () => stack.use(new Copy()));
  const trials = await Trials.measure(copies, [...new Set(all.map(({ file }) => file))]);
  let done = 0;
  const onSources = await eachBeside(copies, all, async (copy, one) => {
    const by = await copy.with(one.file, one.text, () => onTheSources(copy, one, trials));
    done += 1;
    console.log(`${done}/${all.length} ${nameOf(one)}: ${by ?? "not noticed"}`);
    return by;
  });
  const left = all.filter((_, index) => onSources[index] === undefined);
  if (!values.binary || left.length === 0) {
    return left;
  }
  console.log(`${left.length} are left for the binary`);
  await Promise.all(copies.map((copy) => copy.build()));
  const tests = [...new Set(left.flatMap(({ file }) => binaryTrials(file)))];
  const tookMs = new Map<string, number>();
  await eachBeside(copies, tests, async (copy, file) => {
    const ms = await baselineMs(copy, file);
    if (ms !== undefined) {
      tookMs.set(file, ms);
    }
  });
  const onBinary = await eachBeside(copies, left, async (copy, one) => {
    const by = await copy.with(one.file, one.text, () => onTheBinary(copy, one, tookMs));
    console.log(`${nameOf(one)}: ${by ?? "survives"}`);
    return by;
  });
  return left.filter((_, index) => onBinary[index] === undefined);
}

async function onTheSources(copy: Copy, { file }: Mutant, trials: Trials) {
  for (const group of trials.for(file)) {
    const by = await noticedBy(copy, group);
    if (by !== undefined) {
      return by;
    }
  }
  return undefined;
}

async function onTheBinary(copy: Copy, { file }: Mutant, tookMs: ReadonlyMap<string, number>) {
  try {
    await copy.build();
  } catch (error) {
    return describeError(error);
  }
  for (const test of binaryTrials(file)) {
    const takesMs = tookMs.get(test);
    const by = takesMs && (await noticedBy(copy, [{ file: test, tookMs: takesMs }]));
    if (by) {
      return by;
    }
  }
  return undefined;
}

function nameOf({ file, line, column, operator }: Mutant): string {
  return `${file}:${line}:${column} ${operator}`;
}

/** The lines that it changes, before and after. */
function diffOf(one: Mutant): string {
  const { text, start, replacement, original } = one;
  const end = start + replacement.length;
  const head = text.slice(text.lastIndexOf("\n", start - 1) + 1, start);
  const tail = text.slice(end).split("\n")[0];
  const lines = (sign: string, middle: string) =>
    `${head}${middle}${tail}`.replaceAll(/^/gm, `  ${sign} `);
  return [`survived: ${nameOf(one)}`, lines("-", original), lines("+", replacement)].join("\n");
}
