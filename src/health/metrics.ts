/**
 * Metrics in the Prometheus text format (version 0.0.4). Every label has a closed set of values: no text
 * from outside the process becomes one.
 */

import { oncePer } from "../system/once-per.ts";

type Labels = Readonly<Record<string, string>>;

/** One sample; its labels are those of its family. */
export interface Sample<L extends string = string> {
  readonly labels?: Readonly<Record<L, string>>;
  readonly value: number;
}

/** Asked when the metrics are read. */
type Read<L extends string> = () => Sample<L> | readonly Sample<L>[] | number | undefined;

/** What is known of a metric without reading it. */
export interface Family {
  readonly name: string;
  readonly help: string;
  readonly type: "gauge" | "counter" | "histogram";
  /** Without `le`, which every histogram has. */
  readonly labelNames: readonly string[];
}

/** One set of label values of a histogram. Its names are text once: who reads metrics may hold up no call for it. */
interface Series {
  readonly buckets: readonly string[];
  /** By bucket, not cumulative. */
  readonly counts: number[];
  readonly sumName: string;
  readonly countName: string;
  sum: number;
}

/** From 100 µs, a local wrap, to 10 s, the whole budget of a call to Key4C. */
const DURATION_BUCKETS_SECONDS = [
  0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10,
];

export class Metrics {
  readonly #families: (Family & { readonly samples: () => string })[] = [];

  /** In the order in which they were added. */
  get families(): readonly Family[] {
    return this.#families;
  }

  /** A value that goes up and down, read when asked. */
  gauge<L extends string = never>(
    name: string,
    help: string,
    read: Read<NoInfer<L>>,
    labelNames: readonly L[] = [],
  ): void {
    this.#families.push({
      name,
      help,
      type: "gauge",
      labelNames,
      samples: () => samplesText(name, read),
    });
  }

  /** A total that something else counts, read when asked. */
  counter(name: string, help: string, read: Read<never>): void {
    this.#families.push({
      name,
      help,
      type: "counter",
      labelNames: [],
      samples: () => samplesText(name, read),
    });
  }

  /**
   * Durations by label values. @returns the function that records one, in seconds; labels that are the same object
   * each time are looked up faster
   */
  histogram<L extends string>(
    name: string,
    help: string,
    labelNames: readonly L[],
  ): (labels: Readonly<Record<L, string>>, seconds: number) => void {
    const series = new Map<string, Series>();
    const samples = () => [...series.values()].map(seriesText).join("");
    this.#families.push({ name, help, type: "histogram", labelNames, samples });
    const seriesOf = oncePer((labels: Readonly<Record<L, string>>) => {
      const key = labelNames.map((label) => labels[label]).join("\0");
      let one = series.get(key);
      if (one === undefined) {
        one = newSeries(name, labels);
        series.set(key, one);
      }
      return one;
    });
    return (labels, seconds) => {
      const one = seriesOf(labels);
      const index = bucketOf(seconds);
      one.counts[index] = (one.counts[index] ?? 0) + 1;
      one.sum += seconds;
    };
  }

  /** All families, ready to be served. */
  text(): string {
    return this.#families
      .map(
        ({ name, help, type, samples }) =>
          `# HELP ${name} ${help}\n# TYPE ${name} ${type}\n${samples()}`,
      )
      .join("");
  }
}

/** The last one has no limit. */
function bucketOf(seconds: number): number {
  let index = 0;
  for (const limit of DURATION_BUCKETS_SECONDS) {
    if (seconds <= limit) {
      break;
    }
    index += 1;
  }
  return index;
}

function samplesText(name: string, read: Read<string>): string {
  const found = read();
  const samples = typeof found === "number" ? [{ value: found }] : (found ?? []);
  return (Array.isArray(samples) ? samples : [samples])
    .map(({ labels, value }: Sample) => `${name}${labelsText(labels)} ${value}\n`)
    .join("");
}

function newSeries(name: string, labels: Labels): Series {
  const limits = [...DURATION_BUCKETS_SECONDS.map(String), "+Inf"];
  return {
    buckets: limits.map((le) => `${name}_bucket${labelsText({ ...labels, le })}`),
    counts: limits.map(() => 0),
    sumName: `${name}_sum${labelsText(labels)}`,
    countName: `${name}_count${labelsText(labels)}`,
    sum: 0,
  };
}

function seriesText({ buckets, counts, sumName, countName, sum }: Series): string {
  let text = "";
  let total = 0;
  for (const [index, bucket] of buckets.entries()) {
    total += counts[index] ?? 0;
    text += `${bucket} ${total}\n`;
  }
  return `${text}${sumName} ${sum}\n${countName} ${total}\n`;
}

function labelsText(labels: Labels = {}): string {
  const pairs = Object.entries(labels).map(
    ([label, value]) => `${label}="${value.replace(/[\\"\n]/g, escaped)}"`,
  );
  return pairs.length === 0 ? "" : `{${pairs.join(",")}}`;
}

function escaped(character: string): string {
  return character === "\n" ? "\\n" : `\\${character}`;
}
