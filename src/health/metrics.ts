/**
 * Metrics in the Prometheus text format (version 0.0.4). Every label has a closed set of values: no text
 * from outside the process becomes one.
 */

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

  /** Durations by label values. @returns the function that records one, in seconds */
  histogram<L extends string>(
    name: string,
    help: string,
    labelNames: readonly L[],
  ): (labels: Readonly<Record<L, string>>, seconds: number) => void {
    const series = new Map<string, { labels: Labels; counts: number[]; sum: number }>();
    const samples = () => [...series.values()].map((one) => histogramText(name, one)).join("");
    this.#families.push({ name, help, type: "histogram", labelNames, samples });
    return (labels, seconds) => {
      const key = labelNames.map((label) => labels[label]).join("\0");
      let one = series.get(key);
      if (one === undefined) {
        one = { labels, counts: DURATION_BUCKETS_SECONDS.map(() => 0).concat(0), sum: 0 };
        series.set(key, one);
      }
      const bucket = DURATION_BUCKETS_SECONDS.findIndex((limit) => seconds <= limit);
      const index = bucket === -1 ? DURATION_BUCKETS_SECONDS.length : bucket;
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

function samplesText(name: string, read: Read<string>): string {
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
