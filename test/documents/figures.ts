/** Every figure of the documents that `peers` and `tails` found: blocks made from the stored runs, and from nothing else. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import {
  CALLERS,
  DISTANCES_MS,
  type Figures,
  OPERATIONS,
  type Operation,
  type Outage,
  readStored,
} from "../bench/peers/result.ts";
import {
  cpuSeconds,
  provenance,
  rateOf,
  resultTable,
  SECRETS,
  TITLES,
  whole,
} from "../bench/peers/table.ts";
import { ROOT } from "./blocks.ts";
import { table } from "./markdown.ts";

const RESULT = readStored();
const OURS = "key4c-kms-plugin";
const BARE = ["grpc-go", "floor"];
const ours = must(RESULT.figures[OURS]);
const grpcGo = must(RESULT.figures["grpc-go"]);
const floor = must(RESULT.figures["floor"]);
const others = Object.entries(RESULT.figures).filter(
  ([name]) => name !== OURS && !BARE.includes(name),
);

/** @throws Error where the stored run lacks what a document says */
function must<T>(value: T | null | undefined): T {
  if (value === null || value === undefined) {
    throw new Error("a figure of the documents is not in test/bench/results/peers.json");
  }
  return value;
}

/** The words of a README's table. */
interface Words {
  readonly head: readonly string[];
  readonly rows: readonly string[];
  readonly to: string;
  readonly seconds: (text: string) => string;
  readonly calls: (count: number) => string;
  readonly known: string;
  readonly share: (percent: number) => string;
  readonly no: string;
  readonly some: (names: string) => string;
  readonly after: (text: string) => string;
  readonly nextCall: string;
}

const ENGLISH: Words = {
  head: ["KMS 20 ms away", "this plugin", "a call for each DEK"],
  rows: [
    "Encrypt / Decrypt calls per second, 64 callers",
    "10,000 v1 Secrets, API server and plugin restarted",
    "calls answered while the KMS hangs for 60 s",
    "plugin restarts meanwhile",
    `memory, idle / after ${whole(RESULT.encrypts)} Encrypts`,
    "exec to ready",
    "disabled key refused after ([60 to 99 s](docs/keys.md#revoke))",
  ],
  to: " to ",
  seconds: (text) => `${text} s`,
  calls: (count) => (count === 1 ? "one call" : `${whole(count)} calls`),
  known: "all under local KEKs that the plugin knows",
  share: (percent) => (percent === 0 ? "none" : `${percent}%`),
  no: "no",
  some: (names) => (names === "" ? "no" : `${names}: yes`),
  after: (text) => `${text} s`,
  nextCall: "next call",
};

const KOREAN: Words = {
  head: ["KMS까지 20 ms", "이 플러그인", "DEK마다 KMS를 호출할 때"],
  rows: [
    "초당 Encrypt / Decrypt 수(동시 호출 64)",
    "API 서버와 플러그인 재시작 후 KMS v1 시크릿 10,000개 읽기",
    "KMS가 60초 동안 응답하지 않을 때 처리한 호출",
    "그때 플러그인이 재시작되는지",
    `메모리, 유휴 / Encrypt ${whole(RESULT.encrypts)}회 후`,
    "실행부터 준비까지",
    "키를 비활성화한 뒤 실제로 차단되기까지([60 ~ 99초](docs/keys.md#revoke))",
  ],
  to: " ~ ",
  seconds: (text) => `${text}초`,
  calls: (count) => (count === 1 ? "한 번 호출" : `${whole(count)}회 호출`),
  known: "플러그인이 이미 아는 로컬 KEK를 쓰는 호출은 전부",
  share: (percent) => (percent === 0 ? "없음" : `${percent}%`),
  no: "아니요",
  some: (names) => (names === "" ? "아니요" : `${names}: 예`),
  after: (text) => `${text}초`,
  nextCall: "다음 호출부터",
};

/** From the smallest to the largest. */
function span(words: Words, values: readonly number[]): string {
  const [low, high] = [whole(Math.min(...values)), whole(Math.max(...values))];
  return low === high ? low : `${low}${words.to}${high}`;
}

function readmeTable(words: Words): string {
  const perSecond = (operation: Operation) => (figures: Figures) =>
    rateOf(figures, operation, 20, 64).perSecond;
  const [encrypt, decrypt] = [perSecond("encrypt"), perSecond("decrypt")];
  const range = (of: (figures: Figures) => number) =>
    span(
      words,
      others.map(([, figures]) => of(figures)),
    );
  const reads = others.flatMap(([, { secrets }]) => secrets ?? []);
  const theirs = reads.map(({ seconds, count }) => (seconds * SECRETS) / count);
  const answered = ({ answered: { encrypt, decrypt } }: Outage) => Math.max(encrypt, decrypt);
  const share = Math.max(...others.map(([, { outages }]) => answered(must(outages.hang))));
  const probed = others.filter(([, { outages }]) => must(outages.hang).isRestarted !== null);
  const restarted = probed.filter(([, { outages }]) => outages.hang?.isRestarted === true);
  const obeyed = others.map(([, { disabled }]) => must(must(disabled).obeyedAfterMs));
  const [hang, revoked, read] = [must(ours.outages.hang), must(ours.disabled), must(ours.secrets)];
  if (
    hang.isRestarted ||
    Math.min(hang.answered.encrypt, hang.answered.decrypt) < 1 ||
    reads.some(({ kmsCalls, count }) => kmsCalls !== count) ||
    Math.max(...obeyed) > AT_ONCE_MS
  ) {
    throw new Error("the words of README's table are not what was measured: change them");
  }
  const cells = [
    [`${whole(encrypt(ours))} / ${whole(decrypt(ours))}`, `${range(encrypt)} / ${range(decrypt)}`],
    [
      `${words.seconds(read.seconds.toFixed(1))}, ${words.calls(read.kmsCalls)}`,
      `${words.seconds(span(words, theirs))}, ${words.calls(SECRETS)}`,
    ],
    [words.known, words.share(Math.floor(100 * share))],
    [
      words.no,
      probed.length === 0
        ? undefined
        : words.some(restarted.map(([name]) => TITLES[name] ?? name).join(", ")),
    ],
    [
      `${whole(ours.rssMiB.idle)} / ${whole(ours.rssMiB.loaded)} MiB`,
      `${range(({ rssMiB }) => rssMiB.idle)} / ${range(({ rssMiB }) => rssMiB.loaded)} MiB`,
    ],
    [`${whole(readyAt20(ours))} ms`, `${range(readyAt20)} ms`],
    [words.after((must(revoked.obeyedAfterMs) / 1_000).toFixed(0)), words.nextCall],
  ];
  return table(
    words.head,
    words.rows.flatMap((row, at) => {
      const [own, theirs] = cells[at] ?? [];
      return own === undefined || theirs === undefined ? [] : [[row, own, theirs]];
    }),
  );
}

const AT_ONCE_MS = 500;
const readyAt20 = ({ readyMs }: Figures) => must(readyMs["20"]);

/** In any language: date, machine, versions; those of other plugins are in comparison.md. */
function shortProvenance(): string {
  const { date, machine, load, isQuick } = RESULT;
  return `${date}${isQuick ? " (`--quick`)" : ""}, ${machine} (load ${load}), ${RESULT.commit}, grpc-go ${grpcGo.version}`;
}

/** A figure that another document has. @throws Error when it has none */
function figureIn(path: string, pattern: RegExp): string {
  return must(pattern.exec(readFileSync(join(ROOT, path), "utf8"))?.[1]);
}

function answersTable(): string {
  const rate = (operation: Operation, callers: number) => rateOf(ours, operation, 20, callers);
  const perSecond = (operation: Operation, callers: number) =>
    whole(rate(operation, callers).perSecond);
  const median = (operation: Operation) => whole(rate(operation, 1).p50Micros);
  const { idle, loaded, later } = ours.rssMiB;
  const faults = figureIn("docs/faults.md", /Memory \(VmHWM\) stayed below (\d+) MiB/);
  const hostile = figureIn("docs/hardening.md", /The plugin held at most (\d+) MiB/);
  return table(
    ["question", "answer"],
    [
      [
        "How fast is it?",
        `With Key4C 20 ms away one caller gets ${perSecond("encrypt", 1)} Encrypts or ${perSecond("decrypt", 1)} Decrypts a second, at a median of ${median("encrypt")} or ${median("decrypt")} µs. 64 callers get ${perSecond("encrypt", 64)} or ${perSecond("decrypt", 64)}. No call to Key4C is on the path. Details: [Figures](#figures).`,
      ],
      [
        "How much memory does it take?",
        `${whole(idle)} MiB idle, ${whole(loaded)} MiB right after ${whole(RESULT.encrypts)} Encrypts, ${whole(later)} MiB a minute later. Below ${faults} MiB in every fault of Key4C that we tried, and at most ${hostile} MiB beside [hostile clients](hardening.md#hostile-neighbours).`,
      ],
      [
        "What does it ask of Key4C?",
        "A plugin at rest makes two calls every 30 s, or three once its local KEK was renewed for the first time. A restart of API server and plugin costs one call for each distinct local KEK in the data, however many Secrets there are; of the API server alone, none. Details: [Capacity](capacity.md).",
      ],
    ],
  );
}

/** What the plugin costs beside its calls. */
function costTable(): string {
  const { idle, loaded, later } = ours.rssMiB;
  const shown = (values: readonly (number | undefined)[]) =>
    values.map((value) => whole(must(value))).join(", ");
  return table(
    ["what", "figure"],
    [
      [
        `from exec to the first ok Status, Key4C ${DISTANCES_MS.join(", ")} ms away`,
        `${shown(DISTANCES_MS.map((ms) => ours.readyMs[ms]))} ms (bare grpc-go ${shown([grpcGo.readyMs["0"]])}, bare grpc-js ${shown([floor.readyMs["0"]])})`,
      ],
      ["size of the binary", `${whole(ours.binaryMB)} MB`],
      [
        `RSS idle, right after ${whole(RESULT.encrypts)} Encrypts, a minute later`,
        `${shown([idle, loaded, later])} MiB (bare grpc-js ${shown(Object.values(floor.rssMiB))})`,
      ],
    ],
  );
}

/** The plugin beside the two bare servers, without a KMS in the way. */
function ratioTable(): string {
  const head = [
    ...["operation", "callers", "per second", "p50 µs", "p99 µs", "CPU s for 100,000"],
    ...["of bare grpc-js", "its CPU", "of bare grpc-go", "its CPU", "p50 to grpc-go"],
  ];
  const rows = OPERATIONS.flatMap((operation) =>
    CALLERS.map((callers) => {
      const [own, go, js] = [ours, grpcGo, floor].map((one) => rateOf(one, operation, 0, callers));
      const [a, b, c] = [must(own), must(go), must(js)];
      return [
        operation,
        `${callers}`,
        ...[a.perSecond, a.p50Micros, a.p99Micros].map(whole),
        cpuSeconds(a).toFixed(1),
        ...[a.perSecond / c.perSecond, a.cpuMicros / c.cpuMicros].map((one) => one.toFixed(2)),
        ...[a.perSecond / b.perSecond, a.cpuMicros / b.cpuMicros].map((one) => one.toFixed(2)),
        (a.p50Micros / b.p50Micros).toFixed(2),
      ];
    }),
  );
  return table(head, rows);
}

/** Of a run that was stored without a second one, nothing. */
function spreadText(): string {
  if (RESULT.spread === undefined) {
    return "";
  }
  const told = Object.entries(RESULT.spread).map(
    ([kind, { median, largest }]) => `${kind} ${median.toFixed(2)} (${largest.toFixed(2)})`,
  );
  return ` A second run of the same binary, as the larger of the two figures by the smaller one, the median and in brackets the largest: ${told.join(", ")}.`;
}

const LONG_MS = 2;

/** As tails.ts writes it. */
interface Tails {
  readonly load: number;
  readonly fastestMs: Readonly<Record<string, number>>;
}

/** The pieces of work that hold the thread. */
function tailsTable(): string {
  const path = join(ROOT, "test/bench/results/tails.json");
  const { load, fastestMs } = JSON.parse(readFileSync(path, "utf8")) as Tails;
  const pieces = Object.entries(fastestMs);
  const long = pieces.filter(([, ms]) => ms >= LONG_MS).map(([piece]) => piece);
  const exceptions = long.length === 0 ? "" : `, except: ${long.join("; ")}`;
  const rows = pieces.map(([piece, ms]) => [piece, ms < 0.1 ? "below 0.1" : ms.toFixed(1)]);
  return `Each took less than ${LONG_MS} ms, while other work had a load average of ${load}${exceptions}.\n\n${table(["piece of work", "ms"], rows)}`;
}

/** Aims, and what they came to. */
function aims(): string {
  const rows = OPERATIONS.flatMap((operation) =>
    CALLERS.map((callers) => [operation, callers] as const),
  );
  const met = (server: Figures, aim: number) => {
    const good = rows.filter(
      ([operation, callers]) =>
        rateOf(ours, operation, 0, callers).perSecond >=
        aim * rateOf(server, operation, 0, callers).perSecond,
    );
    const words = good.map(([operation, callers]) => `${operation} with ${callers}`).join(", ");
    return `${good.length} of ${rows.length} rows${words === "" ? "" : ` (${words})`}`;
  };
  const { idle, loaded, later } = ours.rssMiB;
  return [
    `- A rate of 0.9 of bare grpc-js: met by ${met(floor, 0.9)}. Of 0.75 of bare grpc-go: met by ${met(grpcGo, 0.75)}.`,
    `- 55 MiB idle: it is ${whole(idle)}. 75 MiB right after 100,000 Encrypts: it is ${whole(loaded)} after ${whole(RESULT.encrypts)}. At most 10 MiB above idle a minute later: it is ${whole(later - idle)}.`,
  ].join("\n");
}

/** Path, name of the block, and what is between its two marks. */
export const FIGURES: readonly (readonly [path: string, name: string, text: string])[] = [
  ["README.md", "beside", `${readmeTable(ENGLISH)}\n\n${shortProvenance()}`],
  ["README.ko.md", "beside", `${readmeTable(KOREAN)}\n\n${shortProvenance()}`],
  ["docs/comparison.md", "beside", `${provenance(RESULT)}\n\n${resultTable(RESULT)}`],
  ["docs/PERFORMANCE.md", "answers", answersTable()],
  ["docs/PERFORMANCE.md", "run", provenance(RESULT) + spreadText()],
  ["docs/PERFORMANCE.md", "cost", costTable()],
  ["docs/PERFORMANCE.md", "ratios", ratioTable()],
  ["docs/PERFORMANCE.md", "tails", tailsTable()],
  ["docs/PERFORMANCE.md", "aims", aims()],
];
