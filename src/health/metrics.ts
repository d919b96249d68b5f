/**
 * Metrics in the Prometheus text format (version 0.0.4). Every label has a closed set of values: no text
 * from outside the process becomes one.
 */

import { oncePer } from "../system/once-per.ts";

type Labels = Readonly<Record<string, string>>;

/** One sample; its labels are those of its family. */
export interface Sample {
  readonly labels?: Labels;
  readonly value: number;
}

/** Asked when the metrics are read. */
type Read = () => Sample | readonly Sample[] | number | undefined;

interface Family {
  readonly name: string;
  readonly text: () => string;
}

/** From 100 µs, a local wrap, to 10 s, the whole budget of a call to Key4C. */
const DURATION_BUCKETS_SECONDS = [
  0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10,
];

export class Metrics {
  readonly #families: Family[] = [];

  /** A value that goes up and down, read when asked. */
  gauge(name: string, help: string, read: Read): void {
    this.#add(name, help, "gauge", () => samplesText(name, read));
  }

  /** A total that something else counts, read when asked. */
  counter(name: string, help: string, read: Read): void {
    this.#add(name, help, "counter", () => samplesText(name, read));
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
    const series = new Map<string, { labels: Labels; counts: number[]; sum: number }>();
    this.#add(name, help, "histogram", () =>
      [...series.values()].map((one) => histogramText(name, one)).join(""),
    );
    const seriesOf = oncePer((labels: Readonly<Record<L, string>>) => {
      const key = labelNames.map((label) => labels[label]).join("\0");
      let one = series.get(key);
      if (one === undefined) {
        one = { labels, counts: DURATION_BUCKETS_SECONDS.map(() => 0).concat(0), sum: 0 };
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
    return this.#families.map((family) => family.text()).join("");
  }

  #add(name: string, help: string, type: string, samples: () => string): void {
    const head = `# HELP ${name} ${help}\n# TYPE ${name} ${type}\n`;
    this.#families.push({ name, text: () => head + samples() });
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

function samplesText(name: string, read: Read): string {
  const found = read();
  const samples = typeof found === "number" ? [{ value: found }] : (found ?? []);
  return (Array.isArray(samples) ? samples : [samples])
    .map(({ labels, value }: Sample) => `${name}${labelsText(labels)} ${value}\n`)
    .join("");
}

function histogramText(
  name: string,
  { labels, counts, sum }: { labels: Labels; counts: readonly number[]; sum: number },
): string {
  let total = 0;
  const buckets = counts.map((count, index) => {
    total += count;
    const le = DURATION_BUCKETS_SECONDS[index]?.toString() ?? "+Inf";
    return `${name}_bucket${labelsText({ ...labels, le })} ${total}\n`;
  });
  const own = labelsText(labels);
  return `${buckets.join("")}${name}_sum${own} ${sum}\n${name}_count${own} ${total}\n`;
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
