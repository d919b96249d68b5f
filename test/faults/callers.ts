/** Callers of a plugin, and what they saw. */
import type { Client, ServiceError } from "@grpc/grpc-js";
import { status } from "@grpc/grpc-js";
import { KINDS } from "../../src/failures/kinds.ts";
import { KeyManagementService as V1 } from "../../src/gen/v1beta1/api_pb.ts";
import { KeyManagementService as V2 } from "../../src/gen/v2/api_pb.ts";
import { callRpc, toldDeadline } from "../support.ts";
import type { Wrapped } from "./material.ts";

/** kube-apiserver's default. */
const DEADLINE_MS = 3_000;

/** The plugin's own texts: an RPC that ends with another one was not ended by the plugin in time. */
const TEXTS = new Set(Object.values(KINDS).map(({ code, text }) => `${code} ${text}`));

export type Role = "status" | "encrypt" | "known" | "unseen";

/** What RPCs ended with. */
export class Sightings {
  longestMs = 0;
  count = 0;
  /** What must never be: a wrong plaintext, or an end that is not the plugin's. */
  readonly defects = new Set<string>();
  readonly #codes = new Map<Role, Set<status>>();

  codesOf(role: Role): status[] {
    return [...(this.#codes.get(role) ?? [])];
  }

  async see(role: Role, rpc: () => Promise<unknown>): Promise<boolean> {
    const startMs = performance.now();
    let code = status.OK;
    try {
      await rpc();
    } catch (error) {
      if (error instanceof WrongPlaintext) {
        this.defects.add("WRONG PLAINTEXT");
      }
      const failure = error as ServiceError; // or a WrongPlaintext, which has no code
      code = failure.code ?? status.UNKNOWN;
      if (!TEXTS.has(`${code} ${failure.details}`)) {
        this.defects.add(`${role}: ${status[code]} ${failure.details}`);
      }
    }
    this.count += 1;
    this.longestMs = Math.max(this.longestMs, performance.now() - startMs);
    this.#codes.set(role, (this.#codes.get(role) ?? new Set()).add(code));
    return code === status.OK;
  }
}

class WrongPlaintext extends Error {}

function same(plaintext: Uint8Array, { dek }: Wrapped): void {
  if (!dek.equals(plaintext)) {
    throw new WrongPlaintext();
  }
}

/**
 * Calls with a deadline that only the plugin is told: a client that kept it, too, would not show whether the plugin
 * does.
 */
export function rpcsWithin(deadlineMs: number) {
  const options = toldDeadline(deadlineMs);
  return {
    status: (client: Client) => callRpc(client, V2.method.status, {}, options),
    encrypt1: async (client: Client, dek: Buffer) =>
      (await callRpc(client, V1.method.encrypt, { plain: dek }, options)).cipher,
    encrypt2: (client: Client, dek: Buffer) =>
      callRpc(client, V2.method.encrypt, { plaintext: dek }, options),
    decrypt1: async (client: Client, wrapped: Wrapped) =>
      same((await callRpc(client, V1.method.decrypt, wrapped.v1, options)).plain, wrapped),
    decrypt2: async (client: Client, wrapped: Wrapped) =>
      same((await callRpc(client, V2.method.decrypt, wrapped.v2, options)).plaintext, wrapped),
  };
}

export const rpcs = rpcsWithin(DEADLINE_MS);

/** A DEK as a plugin wraps it now, by either API. */
export async function wrapBoth(client: Client, dek: Buffer, calls = rpcs): Promise<Wrapped> {
  const { ciphertext, keyId, annotations } = await calls.encrypt2(client, dek);
  const v1 = { cipher: await calls.encrypt1(client, dek) };
  return { dek, v1, v2: { ciphertext, keyId, annotations } };
}
