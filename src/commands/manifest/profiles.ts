/** The profiles of services, to begin with. The tests run each of them. */
import { suggestion } from "../../config/nearest.ts";
import defaultProfile from "../../key4c/key4c.profile.json";
import { ExitError } from "../../system/errors.ts";
import { printable } from "../printable.ts";
import cloudhsm from "./profiles/cloudhsm.json";
import fortanixGcm from "./profiles/fortanix-gcm.json";
import fortanixKwp from "./profiles/fortanix-kwp.json";
import hsm from "./profiles/hsm.json";
import infisical from "./profiles/infisical.json";
import kes from "./profiles/kes.json";
import nhn from "./profiles/nhn.json";
import vault from "./profiles/vault.json";
import vaultApprole from "./profiles/vault-approle.json";

interface Example {
  readonly about: string;
  readonly profile: object;
}

/** By the word behind `manifest profile`. */
export const EXAMPLES: Readonly<Record<string, Example>> = {
  key4c: { about: "the default: the contract of REFERENCE.md", profile: defaultProfile },
  cloudhsm: {
    about: "a made-up HSM: a login, a ciphertext of two members, codes in a 200",
    profile: cloudhsm,
  },
  hsm: { about: "a made-up HSM: a PIN in each call, codes in a 200", profile: hsm },
  vault: { about: "transit of HashiCorp Vault and OpenBao, with a token", profile: vault },
  "vault-approle": { about: "the same, with a login by AppRole", profile: vaultApprole },
  kes: { about: "MinIO KES, with a client certificate", profile: kes },
  nhn: { about: "NHN Cloud Secure Key Manager, API v1.3", profile: nhn },
  infisical: { about: "Infisical KMS, with a login by Universal Auth", profile: infisical },
  "fortanix-gcm": { about: "Fortanix DSM, AES-GCM: IV and tag apart", profile: fortanixGcm },
  "fortanix-kwp": { about: "Fortanix DSM, AES key wrap with padding", profile: fortanixKwp },
};

/** A profile as a file has it. @throws ExitError 2 for a name that there is not */
export function profileText(name = "key4c"): string {
  const example = Object.hasOwn(EXAMPLES, name) ? EXAMPLES[name] : undefined;
  if (example === undefined) {
    const names = Object.keys(EXAMPLES);
    throw new ExitError(
      2,
      printable(`no profile "${name}"; there are ${names.join(", ")}${suggestion(name, names)}`),
    );
  }
  return `${JSON.stringify(example.profile, undefined, 2)}\n`;
}
