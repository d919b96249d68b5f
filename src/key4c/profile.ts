import { isObject, parsedJson } from "../system/json.ts";
import { sentPointer } from "./ciphertext.ts";
import { type Json, resolvePointer } from "./json.ts";
import defaultProfile from "./key4c.profile.json";
import { MEMBERS, type METHODS } from "./profile-members.ts";
import { Faults, object, type ValuesOf } from "./shape.ts";
import { type Placeholder, placeholdersOf, uses } from "./template.ts";

/**
 * A profile says how the three operations on a key look on the wire. An operator who has the API document of a service
 * writes one as a JSON file. The default is such a profile too. Headers of all operations are among those of each.
 */
export type Profile = Omit<ValuesOf<typeof MEMBERS>, "$schema" | "headers">;

export interface Operation {
  readonly method: (typeof METHODS)[number];
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body?: Json | undefined;
}

/** A request that gives the token of the others. */
export type LoginRequest = NonNullable<Profile["login"]>;
/** A pointer to a version, or to a text that has one between two others. */
export type VersionSource = NonNullable<Profile["encrypt"]["result"]["version"]>;
/** A pointer to a text that encodes bytes. */
export type BytesPointer = Profile["decrypt"]["result"]["plaintext"];

const PROFILE = object(MEMBERS);

/** Reads what {@link PROFILE_SCHEMA} describes, and checks what no schema can: how the parts fit together. */
function readProfile(document: Json, faults: Faults): Profile {
  const read = PROFILE.read(document, "", faults);
  const { headers: shared, login, describe, encrypt, decrypt, success, errors } = read;
  if (!uses(encrypt.body, "plaintext")) {
    faults.add("/encrypt/body", "must hold {plaintext}");
  }
  checkCiphertext(encrypt, decrypt, faults);
  if (uses(encrypt.body, "aad") !== uses(decrypt.body, "aad")) {
    faults.add("/decrypt/body", "must hold {aad} if and only if /encrypt/body does");
  }
  for (const [name, one] of Object.entries({ login, describe, encrypt, decrypt })) {
    if (one?.method === "GET" && one.body !== undefined) {
      faults.add(`/${name}/body`, "must be absent for GET");
    }
  }
  if (describe !== undefined && describe.unusableStates.length > 0 && !describe.result.state) {
    faults.add("/describe/result/state", "must be there when unusableStates is");
  }
  if (Object.keys(errors.codes).length > 0 && errors.code === undefined) {
    faults.add("/errors/code", "must be there when codes is");
  }
  const withShared = <O extends Operation>(one: O): O => ({
    ...one,
    headers: { ...shared, ...one.headers },
  });
  const profile = {
    login,
    describe: describe && withShared(describe),
    encrypt: withShared(encrypt),
    decrypt: withShared(decrypt),
    success,
    errors,
  };
  checkLogin(profile, faults);
  return profile;
}

/** Each member that encrypt returns must go back with decrypt, and nothing else can. */
function checkCiphertext(
  { body: encryptBody, result: { ciphertext } }: Profile["encrypt"],
  { body }: Operation,
  faults: Faults,
): void {
  const used = placeholdersOf(body).filter(({ name }) => name === "ciphertext");
  const wanted = typeof ciphertext === "string" ? [undefined] : Object.keys(ciphertext);
  const spelled = (member: string | undefined) =>
    member === undefined ? "{ciphertext}" : `{ciphertext.${member}}`;
  if (wanted.length === 0) {
    faults.add("/encrypt/result/ciphertext", "must have a member");
  }
  for (const member of wanted.filter((one) => used.every((found) => found.member !== one))) {
    faults.add("/decrypt/body", `must hold ${spelled(member)}`);
  }
  for (const { member } of used.filter((found) => wanted.every((one) => one !== found.member))) {
    faults.add("/decrypt/body", `holds ${spelled(member)}, which encrypt does not return`);
  }
  for (const [name, source] of Object.entries(typeof ciphertext === "string" ? {} : ciphertext)) {
    const pointer = sentPointer(source);
    if (pointer !== undefined && typeof resolvePointer(encryptBody, pointer) !== "string") {
      faults.add(`/encrypt/result/ciphertext/${name}`, `finds no text in /encrypt/body${pointer}`);
    }
  }
}

function checkLogin(profile: Profile, faults: Faults): void {
  const { login, errors } = profile;
  if (login === undefined) {
    const kinds = [...Object.values(errors.codes), ...Object.values(errors.statuses)];
    if (sends(profile, "token")) {
      faults.add("/login", "must be there when a template has {token}");
    }
    if (kinds.includes("tokenExpired")) {
      faults.add("/login", "must be there when a code or a status means tokenExpired");
    }
    return;
  }
  if (!sends(profile, "token")) {
    faults.add("/login", "gives a {token}, and no template has one");
  }
  if (
    login.as === "form" &&
    !(isObject(login.body) && Object.values(login.body).every((one) => typeof one === "string"))
  ) {
    faults.add("/login/body", "must be an object of texts for a form");
  }
}

/**
 * Reads and checks a profile.
 * @throws Error whose message lists every fault behind the JSON pointer of its place
 */
export function parseProfile(source: string): Profile {
  const document = parsedJson(source);
  if (document === undefined) {
    throw new Error("is not JSON");
  }
  const faults = new Faults();
  const profile = readProfile(document as Json, faults); // what JSON.parse makes is Json
  if (faults.list.length > 0) {
    throw new Error(faults.list.join("; "));
  }
  return profile;
}

/** Whether any request sends it. */
export function sends(
  { login, describe, encrypt, decrypt }: Profile,
  placeholder: Placeholder,
): boolean {
  return [login, describe, encrypt, decrypt].some((one) => one && carries(one, placeholder));
}

export function carries({ path, headers, body = null }: Operation, name: Placeholder): boolean {
  return uses([path, Object.values(headers), body], name);
}

/** The JSON Schema, for editors. It cannot say how the parts fit together. */
export const PROFILE_SCHEMA = {
  $schema: "http://json-schema.org/draft-07/schema#", // what editors know best
  title: "A profile of key4c-kms-plugin",
  ...PROFILE.schema,
};

/** The profile of the contract that REFERENCE.md documents. */
export const DEFAULT_PROFILE: Profile = parseProfile(JSON.stringify(defaultProfile));
