/** Which resources a group may name, and in which order. */
import type { Decoder, Place } from "./decode.ts";
import { parseGroupResource } from "./go.ts";

export interface Resource {
  readonly place: Place;
  readonly text: string;
}

export function checkResource(decoder: Decoder, { place, text }: Resource): void {
  const { group, name } = parseGroupResource(text);
  const say = (what: string, remedy: string) => decoder.fault(place, `${text}: ${what}`, remedy);
  if (text.toLowerCase() !== text) {
    say("capital letters", `write ${text.toLowerCase()}`);
  } else if (text === "*") {
    say("no such wildcard", "write '*.' for the core group, '*.*' for all");
  } else if (/^(apiserveripinfo|serviceipallocations|servicenodeportallocations)$/.test(text)) {
    say("cannot be encrypted", "remove it");
  } else if (group === "events.k8s.io") {
    say("events are stored under the core group", "write events");
  } else if (group === "extensions") {
    say("this group is gone", "write the group that has it now, such as apps");
  } else if (group === "*" && name !== "*") {
    say("a resource of every group is not possible", `name its group, such as ${name}.apps`);
  }
}

/** Refuses a resource that another one of its list covers. */
export function checkOverlap(decoder: Decoder, place: Place, resources: readonly string[]): void {
  const parsed = resources.map(parseGroupResource);
  const keys = parsed.map(({ group, name }) => `${name}.${group}`);
  const masked = parsed.find(({ group }, index) =>
    parsed.some(
      (other, at) =>
        at !== index &&
        (keys[at] === "*.*" ||
          keys[at] === keys[index] ||
          (other.group === group && other.name === "*")),
    ),
  );
  if (masked !== undefined) {
    decoder.fault(
      place,
      `another resource of the list covers ${masked.name}.${masked.group}`.replace(/\.$/, ""),
      "name each once in a list, and nothing beside its wildcard",
    );
  }
}

/** Refuses a resource that comes after a wildcard which covers it. */
export function checkMasked(
  decoder: Decoder,
  groups: readonly { readonly resources: readonly Resource[] }[],
): void {
  const seen = new Set<string>();
  for (const { place, text } of groups.flatMap(({ resources }) => resources)) {
    const { group, name } = parseGroupResource(text);
    const mask = [`*.${group}`, "*.*"].find((one) => seen.has(one));
    if (mask !== undefined) {
      decoder.fault(
        place,
        `${text} comes after ${mask}, which covers it`,
        `move its group before that of ${mask}`,
      );
    }
    seen.add(`${name}.${group}`);
  }
}
