/** What a profile can never see, and what does not belong into it: said without a call. */
import { type Operation, type Profile, sends } from "../../key4c/profile.ts";
import { placeholdersOf } from "../../key4c/template.ts";
import { type Check, pass, warn } from "./check.ts";

export function checkLimits(profile: Profile): Check[] {
  return [revocation(profile), rotation(profile), ...refusal(profile), ...secretsIn(profile)];
}

function revocation({ describe, errors }: Profile): Check {
  const byState = (describe?.unusableStates.length ?? 0) > 0;
  const byCode = Object.values(errors.codes).includes("keyUnusable");
  return byState || byCode
    ? pass(
        "revocation",
        `the profile lists ${byState ? "states" : "codes"} of a disabled key (whether Key4C tells them is not tried)`,
      )
    : warn(
        "revocation",
        "nothing in the profile says that a key is disabled or deleted: the plugin never notices, and who disables the key cuts nobody off",
        "list states in /describe/unusableStates, or codes as keyUnusable in /errors/codes, if the service has any",
      );
}

function rotation({ describe, encrypt }: Profile): Check {
  const { version, kcv } = { ...describe?.result };
  if (version !== undefined || kcv !== undefined) {
    const what = version === undefined ? "the key check value" : "the version";
    return pass("rotation", `the profile says where the probe finds ${what}`);
  }
  return encrypt.result.version === undefined
    ? warn(
        "rotation",
        "nothing in the profile tells a version or a key check value: the plugin never notices a rotation, nor other key material under the same ID",
        "name version or kcv in /describe/result, or version in /encrypt/result, if the service tells one",
      )
    : pass("rotation", "encrypt tells the version: seen when the next local KEK is made");
}

/** What is not told to be a refusal counts as an outage, and is tried again and again. */
function refusal(profile: Profile): Check[] {
  const { codes, statuses } = profile.errors;
  const isTold = [...Object.values(codes), ...Object.values(statuses)].includes("denied");
  return isTold || !sends(profile, "pin")
    ? []
    : [
        warn(
          "a wrong PIN",
          "no code and no status means denied: a wrong PIN would be presented again and again, and lock the token",
          "list what a wrong PIN is answered with as denied in /errors/codes",
        ),
      ];
}

/** A header whose name says that it carries a secret. */
const SECRET_HEADER = /secret|key|token|password|authorization|cookie/i;
/** Words before a credential in an Authorization header (RFC 9110 §11.4). */
const SCHEME = /^(bearer|basic|digest|token|apikey)$/i;
/** Shorter words are no secrets. */
const MIN_SECRET_CHARACTERS = 4;

/** Literal texts in headers that seem to be secrets: the header, and the text. */
export function literalSecrets(profile: Profile): (readonly [header: string, text: string])[] {
  const requests: readonly (Operation | undefined)[] = [
    profile.login,
    profile.describe,
    profile.encrypt,
    profile.decrypt,
  ];
  return requests
    .flatMap((one) => Object.entries(one?.headers ?? {}))
    .filter(([name, value]) => SECRET_HEADER.test(name) && placeholdersOf(value).length === 0)
    .flatMap(([name, value]) => {
      const words = value
        .split(/\s+/)
        .filter((word) => word.length >= MIN_SECRET_CHARACTERS && !SCHEME.test(word));
      return words.map((word) => [name, word] as const);
    });
}

function secretsIn(profile: Profile): Check[] {
  const names = [...new Set(literalSecrets(profile).map(([header]) => header))];
  return names.map((name) =>
    warn(
      "secrets in the profile",
      `the header ${name} has a text in it that seems to be a secret, and a profile is read by many`,
      "write {apiKey} or {pin} in its place, and the secret into KMS_API_KEY_FILE or KMS_PIN_FILE",
    ),
  );
}
