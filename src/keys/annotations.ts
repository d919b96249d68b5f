import { PluginError } from "../system/errors.ts";

/** Carries the wrapped local KEK in KMS v2. kube-apiserver wants a fully qualified domain name. */
export const WRAPPED_KEK_ANNOTATION = "wrapped-kek.key4c-kms-plugin.io";

/** The wrapped local KEK that the annotations of KMS v2 carry. @throws PluginError `invalid` */
export function wrappedKekOf(annotations: Readonly<Record<string, Uint8Array>>): string {
  const value = annotations[WRAPPED_KEK_ANNOTATION];
  if (value === undefined || Object.keys(annotations).length !== 1) {
    throw new PluginError("invalid", "the annotations are not those that Encrypt returned");
  }
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(value);
  } catch {
    throw new PluginError("invalid", "the wrapped local KEK is not text");
  }
}
