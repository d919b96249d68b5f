import { PluginError } from "../failures/plugin-error.ts";
import { oncePer } from "../system/once-per.ts";
import type { KekHeader } from "./envelope.ts";

/** Carries the wrapped local KEK in KMS v2. kube-apiserver wants a fully qualified domain name. */
export const WRAPPED_KEK_ANNOTATION = "wrapped-kek.key4c-kms-plugin.io";

/** What Encrypt returns beside the ciphertext: the same object for every DEK of a local KEK. */
export const annotationsOf = oncePer(({ wrappedLocalKek }: KekHeader) =>
  Object.freeze({ [WRAPPED_KEK_ANNOTATION]: Buffer.from(wrappedLocalKek) }),
);

/** A byte order mark is part of the text. */
const UTF_8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** The wrapped local KEK that the annotations of KMS v2 carry. @throws PluginError `invalid` */
export function wrappedKekOf(annotations: Readonly<Record<string, Uint8Array>>): string {
  const value = annotations[WRAPPED_KEK_ANNOTATION];
  if (value === undefined || Object.keys(annotations).length !== 1) {
    throw new PluginError("invalid", "the annotations are not those that Encrypt returned");
  }
  try {
    return UTF_8.decode(value);
  } catch {
    throw new PluginError("invalid", "the wrapped local KEK is not text");
  }
}
