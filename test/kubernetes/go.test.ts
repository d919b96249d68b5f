/** Texts as Go reads them: what Go 1.26's own time, net/url and encoding/base64 said of each. */
import { expect, test } from "bun:test";
import { base64Length, parseDuration, parseEndpoint } from "../../src/kubernetes/encryption/go.ts";

/** In nanoseconds; undefined is an error. */
const DURATIONS: readonly (readonly [string, number | undefined])[] = [
  ["3s", 3000000000],
  ["1h", 3600000000000],
  ["1m30s", 90000000000],
  [".5s", 500000000],
  ["1.5s", 1500000000],
  ["5.s", 5000000000],
  [".s", undefined],
  ["3", undefined],
  ["0", 0],
  ["-0", 0],
  ["+0", 0],
  ["", undefined],
  ["+3s", 3000000000],
  ["-3s", -3000000000],
  ["3S", undefined],
  ["3 s", undefined],
  ["1d", undefined],
  ["3s5", undefined],
  ["1µs", 1000],
  ["1μs", 1000],
  ["1us", 1000],
  ["1e3s", undefined],
  ["1_0s", undefined],
  ["1h.5m", 3630000000000],
  ["0.1ns", 0],
  ["0.9999999999s", 999999999],
  ["9223372036854775807ns", 2 ** 63],
  ["9223372036854775808ns", undefined],
  ["2562047h", 9223369200000000000],
  ["2562048h", undefined],
  ["1s1s", 2000000000],
  ["..5s", undefined],
  ["1.2.3s", undefined],
  ["s", undefined],
  ["+", undefined],
  ["1ms2us3ns", 1002003],
  ["99999999999999999999h", undefined],
  ["0.000000001s", 1],
  ["1.0000000000000000000000001s", 1000000000],
];
/** The path; undefined is an error, or another scheme than unix. */
const ENDPOINTS: readonly (readonly [string, string | undefined])[] = [
  ["unix:///p", "/p"],
  ["unix:/p", "/p"],
  ["unix:p", ""],
  ["unix:", ""],
  ["unix://", ""],
  ["UNIX:///p", "/p"],
  ["unix:////p", "//p"],
  ["unix://h/p", "/p"],
  ["unix:///p?x=%zz", "/p"],
  ["unix:///p?", "/p"],
  ["unix:///p#f", "/p"],
  ["unix:///p#%zz", undefined],
  ["unix:///p%20q", "/p q"],
  ["unix:///p%zz", undefined],
  ["unix:///p%", undefined],
  ["unix:///%C3%A9", "/é"],
  ["unix:///é", "/é"],
  ["unix:///a b", "/a b"],
  ["unix:///p ", "/p "],
  [" unix:///p", undefined],
  ["unix:///p\n", undefined],
  ["unix:///p\u007f", undefined],
  ["tcp:///p", undefined],
  ["/p", undefined],
  ["p", undefined],
  ["", undefined],
  [":unix", undefined],
  ["1unix:/x", undefined],
  ["unix+x:///p", undefined],
  ["unix:///@a", "/@a"],
  ["unix:///p/../q", "/p/../q"],
];
/** The length; undefined is an error. */
const BASE64: readonly (readonly [string, number | undefined])[] = [
  ["", 0],
  ["AAAA", 3],
  ["AAA=", 2],
  ["AA==", 1],
  ["A===", undefined],
  ["AAA", undefined],
  ["AAAA=", undefined],
  ["AA=A", undefined],
  ["AA\n==", 1],
  ["A\r\nAAA", 3],
  ["AA== ", undefined],
  ["-_==", undefined],
  ["//==", 1],
  ["AB==", 1],
  ["=AAA", undefined],
  ["AAAAA", undefined],
  ["AAAA\n", 3],
];

test("time.ParseDuration", () => {
  for (const [text, ns] of DURATIONS) {
    expect([text, (parseDuration(text) ?? Number.NaN) + 0]).toEqual([text, ns ?? Number.NaN]);
  }
});

test("url.Parse", () => {
  for (const [text, path] of ENDPOINTS) {
    const parsed = parseEndpoint(text);
    // kube-apiserver takes /@name for an abstract socket.
    const found = "path" in parsed ? parsed.path.replace(/^@/, "/@") : undefined;
    expect([text, found]).toEqual([text, path]);
  }
});

test("grpc-go takes no path for an address that is no URL, and we read no host", () => {
  expect(parseEndpoint("unix:///%00")).toEqual({ fault: expect.any(String) });
  expect(parseEndpoint("unix:///%25zz")).toEqual({ fault: expect.any(String) });
  expect(parseEndpoint("unix://h:1/p")).toEqual({ unclear: expect.any(String) });
});

test("base64.StdEncoding", () => {
  for (const [text, length] of BASE64) {
    expect([text, base64Length(text)]).toEqual([text, length]);
  }
});
