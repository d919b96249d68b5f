import { expect, test } from "bun:test";
import { Metrics } from "../../src/health/metrics.ts";

test("gauges and counters are read when asked; what has no value has no sample", () => {
  const metrics = new Metrics();
  let value: number | undefined = 1;
  metrics.gauge("a", "An a.", () => value);
  metrics.counter("b_total", "A b.", () => [
    { labels: { x: "1", y: "2" }, value: 3 },
    { labels: { x: 'q"\\\n' }, value: 0 },
  ]);
  const b =
    '# HELP b_total A b.\n# TYPE b_total counter\nb_total{x="1",y="2"} 3\nb_total{x="q\\"\\\\\\n"} 0\n';
  expect(metrics.text()).toBe(`# HELP a An a.\n# TYPE a gauge\na 1\n${b}`);
  value = undefined;
  expect(metrics.text()).toBe(`# HELP a An a.\n# TYPE a gauge\n${b}`);
});

test("a histogram counts cumulatively, its limits inclusive, and has one series a set of labels", () => {
  const metrics = new Metrics();
  const record = metrics.histogram("t_seconds", "A t.", ["code"]);
  for (const seconds of [0.0001, 0.0002, 0.5, 60]) {
    record({ code: "OK" }, seconds);
  }
  record({ code: "NO" }, 1);
  const text = metrics.text();
  const sample = (line: string) => expect(text).toContain(`\n${line}\n`);
  sample('t_seconds_bucket{code="OK",le="0.0001"} 1');
  sample('t_seconds_bucket{code="OK",le="0.00025"} 2');
  sample('t_seconds_bucket{code="OK",le="0.25"} 2');
  sample('t_seconds_bucket{code="OK",le="0.5"} 3');
  sample('t_seconds_bucket{code="OK",le="10"} 3');
  sample('t_seconds_bucket{code="OK",le="+Inf"} 4');
  sample('t_seconds_count{code="OK"} 4');
  sample('t_seconds_sum{code="OK"} 60.5003');
  sample('t_seconds_count{code="NO"} 1');
  expect(text.match(/# TYPE/g)?.length).toBe(1);
});
