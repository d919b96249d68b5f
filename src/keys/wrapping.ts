import type { PluginError } from "../failures/plugin-error.ts";

/**
 * What the keys need of the service that holds the KEKs. The client of Key4C implements it, and nothing else in this
 * folder knows Key4C.
 */
export interface WrappingService {
  /**
   * Asks for the state, version and key check value of a key.
   * @throws PluginError `keyUnusable` when the key exists and must not be used
   */
  describe(kmsKeyId: string, options?: CallOptions): Promise<KeyDescription>;
  /**
   * Wraps a local KEK under the newest version of a key.
   * @param localKek {@link LOCAL_KEK_BYTES} bytes, which must not change before it settles
   * @throws PluginError
   */
  wrap(kmsKeyId: string, localKek: Buffer, aad: Buffer, options?: CallOptions): Promise<WrappedKek>;
  /**
   * Unwraps a local KEK: {@link LOCAL_KEK_BYTES} bytes.
   * @param aad undefined when none was sent with it
   * @throws PluginError
   */
  unwrap(
    kmsKeyId: string,
    ciphertext: string,
    aad: Buffer | undefined,
    options?: CallOptions,
  ): Promise<Buffer>;
}

export interface CallOptions {
  /** The uid of the RPC that needs the call, so that the logs of both sides can be joined. */
  readonly requestId?: string | undefined;
  /** A caller waits for the result, so temporary failures are tried again for up to 10 s. */
  readonly isForCaller?: boolean;
  /** Do not use a kept connection: it may always lead to the same replica. */
  readonly newConnection?: boolean;
  /** Called when an attempt failed and another one follows. */
  readonly onFailedAttempt?: (failure: PluginError) => void;
}

/** What describe says about a key. */
export interface KeyDescription {
  /** undefined when the service tells none. */
  readonly version: number | undefined;
  /** Key check value, in upper case; undefined when the service tells none. */
  readonly kcv: string | undefined;
  /** In the words of the service; undefined when it tells none. */
  readonly algorithm: string | undefined;
}

/** A local KEK as the service wrapped it. */
export interface WrappedKek {
  /** The service's own string, never interpreted; 1 to {@link MAX_WRAPPED_KEK_BYTES} bytes. */
  readonly ciphertext: string;
  /** 1 to {@link MAX_KEY_VERSION}; undefined when the answer tells none. */
  readonly version: number | undefined;
  readonly aadSent: boolean;
}

/** AES-256 (FIPS 197). */
export const LOCAL_KEK_BYTES = 32;
/** Room for an RSA- or PQC-wrapped key; well below the 32 KiB of all annotations in KMS v2. */
export const MAX_WRAPPED_KEK_BYTES = 16 * 1024;
/** Largest key version: what fits the uint32 of the envelope. */
export const MAX_KEY_VERSION = 2 ** 32 - 1;
