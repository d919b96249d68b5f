import { expect, test } from "bun:test";
import { join } from "node:path";
import { Metadata, status } from "@grpc/grpc-js";
import type { ErrorKind } from "../../src/failures/kinds.ts";
import { PluginError } from "../../src/failures/plugin-error.ts";
import { KeyManagementService as V2 } from "../../src/gen/v2/api_pb.ts";
import { listen } from "../../src/socket/listen.ts";
import { addService, type Call, type Handlers } from "../../src/socket/rpc.ts";
import { type UnaryHandler, UnaryServer } from "../../src/socket/unary-server.ts";
import { systemClock } from "../../src/system/clock.ts";
import {
  callRpc,
  failureOf,
  grpcClient,
  onTestEnd,
  recordingLog,
  temporaryDirectory,
  toldDeadline,
} from "../support.ts";

/** A server whose Encrypt is the test's; the rest is not called. */
async function serve(encrypt: Handlers<typeof V2>["encrypt"], clock = systemClock) {
  const { log, lines } = recordingLog();
  const grpc = new UnaryServer({});
  const unused = () => {
    throw new Error("not called");
  };
  addService(grpc, V2, { status: unused, decrypt: unused, encrypt }, { api: "v2", log, clock });
  const path = join(temporaryDirectory(), "kms.sock");
  const listener = await listen(grpc, { path, mode: 0o600, gid: undefined }, log);
  onTestEnd(() => listener.close());
  const client = grpcClient(path);
  const call = (options = {}) => callRpc(client, V2.method.encrypt, { uid: "u-1" }, options);
  return { call, lines, client };
}

test("failures of one kind are one line in ten seconds, with a count of what it stands for", async () => {
  let [nowMs, kind] = [0, "unavailable" as ErrorKind];
  const failing = () => {
    throw new PluginError(kind, "fake");
  };
  const { call, lines } = await serve(failing, { ...systemClock, nowMs: () => nowMs });
  const failed = async (times: number) => {
    for (let count = 0; count < times; count++) {
      await failureOf(call());
    }
    return lines
      .splice(0)
      .filter(({ msg }) => msg === "RPC failed")
      .map((line) => [line["kind"], line["suppressedSinceLast"]]);
  };
  expect(await failed(3)).toEqual([["unavailable", 0]]);
  kind = "denied";
  expect(await failed(1)).toEqual([["denied", 0]]);
  kind = "unavailable";
  nowMs = 9_999;
  expect(await failed(2)).toEqual([]);
  nowMs = 10_000;
  expect(await failed(2)).toEqual([["unavailable", 4]]);
  nowMs = 20_000;
  expect(await failed(1)).toEqual([["unavailable", 1]]);
});

test("a handler is told who calls, and the uid if it is one", async () => {
  const { call, lines, client } = await serve((_, caller) => {
    lines.push({ userAgent: caller.userAgent(), requestId: caller.requestId });
    return { ciphertext: new Uint8Array(1), keyId: "k", annotations: {} };
  });
  await call();
  await callRpc(client, V2.method.encrypt, { uid: "no uid" });
  const told = lines.filter((line) => "userAgent" in line);
  expect(told).toEqual([
    { userAgent: expect.stringContaining("grpc-node-js/"), requestId: "u-1" },
    { userAgent: expect.stringContaining("grpc-node-js/"), requestId: undefined },
  ]);
});

test("an unexpected exception is INTERNAL, logged once, and nothing of it reaches the caller", async () => {
  let rounds = 0;
  const { call, lines } = await serve(() => {
    if (++rounds === 1) {
      throw new TypeError("x is not a function");
    }
    return { keyId: "after" };
  });
  expect(await failureOf(call())).toEqual([status.INTERNAL, "internal error"]);
  const errors = lines.filter(({ level }) => level === "error");
  expect(errors).toEqual([
    expect.objectContaining({ uid: "u-1", cause: "unexpected error: x is not a function" }),
  ]);
  expect((await call()).keyId).toBe("after");
});

test("a repeated failure is one line in ten seconds", async () => {
  const { call, lines } = await serve(() => Promise.reject(new PluginError("invalid", "why")));
  for (let round = 0; round < 20; round++) {
    await failureOf(call());
  }
  expect(lines.filter(({ level }) => level === "warn").length).toBe(1);
});

test("a handler that never answers ends before the caller's deadline", async () => {
  const { call } = await serve(() => new Promise(() => {}));
  expect(await failureOf(call(toldDeadline(400)))).toEqual([
    status.DEADLINE_EXCEEDED,
    "no result before the deadline",
  ]);
});

test("a caller without a deadline waits 2.5 s", async () => {
  const { client } = await serve(() => new Promise(() => {}));
  const failure = await new Promise<{ code: number; details: string } | null>((resolve) => {
    client.makeUnaryRequest(
      "/v2.KeyManagementService/Encrypt",
      (bytes: Buffer) => bytes,
      (bytes: Buffer) => bytes,
      Buffer.alloc(0),
      new Metadata(),
      (error) => resolve(error),
    );
  });
  expect(failure?.details).toBe("no result before the deadline");
});

test("a request of many small fields is refused before it is decoded", async () => {
  let handled = 0;
  const { client } = await serve(() => {
    handled += 1;
    return {};
  });
  const send = (request: Buffer) =>
    new Promise<number>((resolve) => {
      client.makeUnaryRequest(
        "/v2.KeyManagementService/Encrypt",
        (bytes: Buffer) => bytes,
        (bytes: Buffer) => bytes,
        request,
        (error) => resolve(error?.code ?? status.OK),
      );
    });
  const unknownField = Buffer.from([0x78, 1]);
  expect(await send(Buffer.alloc(2 * 32, unknownField))).toBe(status.OK);
  expect(await send(Buffer.alloc(2 * 33, unknownField))).toBe(status.INVALID_ARGUMENT);
  expect(handled).toBe(1);
});

test("a handler can tell that its caller has left", async () => {
  const seen = Promise.withResolvers<Call>();
  const { client, lines } = await serve((_, call) => {
    seen.resolve(call);
    return new Promise(() => {});
  });
  const grpcCall = client.makeUnaryRequest(
    "/v2.KeyManagementService/Encrypt",
    (bytes: Buffer) => bytes,
    (bytes: Buffer) => bytes,
    Buffer.alloc(0),
    () => {},
  );
  const { hasLeft } = await seen.promise;
  expect(hasLeft()).toBe(false);
  grpcCall.cancel();
  while (!hasLeft()) {
    await Bun.sleep(5);
  }
  expect(lines).toContainEqual(expect.objectContaining({ msg: "RPC", code: "CANCELLED" }));
});

test("a handler that throws past everything is answered, and the server goes on", async () => {
  const { log } = recordingLog();
  const grpc = new UnaryServer({});
  let rounds = 0;
  const asIs = (bytes: Buffer) => bytes;
  const { encrypt } = V2.method;
  const definition = {
    path: `/${V2.typeName}/${encrypt.name}`,
    ...{ requestStream: false, responseStream: false },
    ...{ requestDeserialize: asIs, requestSerialize: asIs },
    ...{ responseSerialize: asIs, responseDeserialize: asIs },
  };
  const handler: UnaryHandler = (_, answer) => {
    if (++rounds === 1) {
      throw new TypeError("x is not a function");
    }
    answer(null, Buffer.alloc(0));
  };
  grpc.addService({ Encrypt: definition }, { Encrypt: handler });
  const path = join(temporaryDirectory(), "kms.sock");
  const listener = await listen(grpc, { path, mode: 0o600, gid: undefined }, log);
  onTestEnd(() => listener.close());
  const call = () => callRpc(grpcClient(path), encrypt, {});
  expect(await failureOf(call())).toEqual([status.INTERNAL, "internal error"]);
  expect((await call()).keyId).toBe("");
});
