import { expect, test } from "bun:test";
import { resolvePointer } from "../../src/key4c/json.ts";

test("pointers follow RFC 6901 §5", () => {
  const document = {
    foo: ["bar", "baz"],
    "": 0,
    "a/b": 1,
    "c%d": 2,
    "m~n": 8,
    nested: { x: null },
  };
  for (const [pointer, value] of [
    ["/foo", ["bar", "baz"]],
    ["/foo/0", "bar"],
    ["/", 0],
    ["/a~1b", 1],
    ["/c%d", 2],
    ["/m~0n", 8],
    ["/nested/x", null],
    ["/nested/x/y", undefined],
    ["/foo/2", undefined],
    ["/foo/length", undefined],
    ["/foo/length/toString", undefined],
    ["/constructor", undefined],
    ["/__proto__/x", undefined],
  ] as const) {
    expect([pointer, resolvePointer(document, pointer)]).toEqual([pointer, value]);
  }
});
