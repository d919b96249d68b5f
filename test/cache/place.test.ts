import { expect, test } from "bun:test";
import {
  chmodSync,
  chownSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { isIn, judgePlace, makePlace, type PlaceOptions } from "../../src/cache/place.ts";
import { testWith } from "../needs.ts";
import { NOBODY } from "../nobody.ts";
import { onTestEnd, temporaryDirectory } from "../support.ts";

const SOCKET = "/run/key4c-kms-of-a-test/kms.sock";
const SWAP = "Filename Type Size Used Priority\\n/dev/vdb partition 1048572 0 -2\\n";

/** A directory of ours in memory. */
function inMemory(): string {
  const directory = mkdtempSync("/dev/shm/k4c-");
  onTestEnd(() => rmSync(directory, { recursive: true }));
  return directory;
}

const place = (directory: string, more: Partial<PlaceOptions> = {}) =>
  makePlace({ directory, socket: SOCKET, isSealed: false, ...more });

/** What becomes of it in namespaces of its own. `$D` is a new directory on the disk. */
function judged(
  setup: string,
  directory: string,
  form = "clear",
  namespaces = ["--mount"],
): string {
  const script = `${setup}\nexec "$0" ${join(import.meta.dir, "place-now.ts")} ${directory} ${SOCKET} ${form}`;
  const { stdout, stderr } = Bun.spawnSync(
    ["unshare", ...namespaces, "sh", "-ec", script, process.execPath],
    { env: { ...process.env, D: temporaryDirectory() } },
  );
  return stdout.toString().trim() || stderr.toString();
}
const CONTAINER = ["--mount", "--pid", "--fork", "--mount-proc"];

test("the directory in memory is made for its user alone, and found again", () => {
  const directory = join(inMemory(), "not", "there");
  const own = place(directory);
  expect(own).toBe(join(directory, "local-keks"));
  expect([lstatSync(own).mode & 0o777, lstatSync(directory).mode & 0o777]).toEqual([0o700, 0o700]);
  chmodSync(directory, 0o755); // as a kubelet makes it
  expect(place(directory)).toBe(own);
});

test("who only looks makes nothing", () => {
  const directory = inMemory();
  const look = (at: string) => judgePlace({ directory: at, socket: SOCKET, isSealed: false });
  expect(look(directory)).toBe(join(directory, "local-keks"));
  expect(() => look(join(directory, "a"))).toThrow("ENOENT");
  expect(existsSync(join(directory, "local-keks"))).toBe(false);
});

test("on a disk nothing lies in the clear; sealed it may", () => {
  const directory = temporaryDirectory();
  expect(() => place(directory)).toThrow("is not in memory (tmpfs)");
  expect(place(directory, { isSealed: true })).toBe(join(directory, "local-keks"));
});

test("links to the directory are resolved, also into that of the socket", () => {
  const [real, links] = [inMemory(), temporaryDirectory()];
  symlinkSync(real, join(links, "link"));
  expect(place(join(links, "link"))).toBe(join(real, "local-keks"));
  const socket = join(links, "link", "kms.sock");
  for (const directory of [real, join(real, "below"), join(links, "link", "below")]) {
    expect(() => place(directory, { socket })).toThrow(
      "must not lie in the directory of the socket",
    );
  }
  expect(place(real, { socket: `${real}-socket/kms.sock` })).toBe(join(real, "local-keks"));
});

test("a directory of our name that is a link, a file, or open to others is refused", () => {
  const [directory, own] = [inMemory(), (of: string) => join(of, "local-keks")];
  const refused = () => expect(() => place(directory)).toThrow("is no directory of mode 0700");
  symlinkSync(inMemory(), own(directory));
  refused();
  rmSync(own(directory));
  mkdirSync(own(directory), { mode: 0o750 });
  refused();
  rmSync(own(directory), { recursive: true });
  writeFileSync(own(directory), "");
  expect(() => place(directory)).toThrow("cannot make");
});

testWith("root")("somebody else's directory is refused, and one that others write to", () => {
  const directory = inMemory();
  place(directory);
  chownSync(join(directory, "local-keks"), NOBODY, NOBODY);
  expect(() => place(directory)).toThrow("is no directory of mode 0700 that belongs to");
  const other = inMemory();
  chmodSync(other, 0o777);
  expect(() => place(other)).toThrow("others can write to it");
  chmodSync(other, 0o1777);
  expect(place(other)).toBe(join(other, "local-keks"));
  chownSync(other, NOBODY, NOBODY);
  expect(() => place(other)).toThrow("is somebody else's");
});

const swapped = `printf '${SWAP}' > $D/swaps && mount --bind $D/swaps /proc/swaps`;
testWith("mount namespaces")("memory that may be swapped to disk is not memory", () => {
  expect(judged(`${swapped}\nmount -t tmpfs none $D`, "$D")).toMatch(
    /^not now: .* may be swapped to disk/,
  );
  expect(judged(`${swapped}\nmount -t tmpfs -o noswap none $D`, "$D")).toMatch(/^at /);
  expect(judged(`${swapped}\nmount -t tmpfs none $D`, "$D", "sealed")).toMatch(/^at /);
});

testWith("mount namespaces")(
  "memory that ends with the container is refused, that of the machine is not",
  () => {
    const host = "mount -t tmpfs none /run && mkdir /run/cache";
    expect(judged(`${host}\nmount -t tmpfs none $D`, "$D", "clear", CONTAINER)).toMatch(
      /^never: .* ends with this container: mount a directory of the host/,
    );
    expect(judged(`${host}\nmount --bind /run/cache $D`, "$D", "clear", CONTAINER)).toMatch(/^at /);
    // The mount on top counts; a name with a space is escaped there.
    const both = `${host}\nmkdir "$D/a b"\nmount --bind /run/cache "$D/a b"\nmount -t tmpfs none "$D/a b"`;
    expect(judged(both, '"$D/a b"', "clear", CONTAINER)).toMatch(
      /^never: .* ends with this container/,
    );
    expect(
      judged(`${host}\nmkdir /run/systemd /run/systemd/system`, "/run/cache", "clear", CONTAINER),
    ).toMatch(/^at /);
    expect(judged(host, "/run/cache")).toMatch(/^at /);
  },
);

testWith("mount namespaces")("what cannot be made or looked at is a sentence, not an end", () => {
  expect(judged("mount -t tmpfs -o ro none $D", "$D")).toMatch(
    /^not now: cannot make .* \(EROFS\)/,
  );
  const hidden = "mount -t proc -o subset=pid proc /proc"; // ProcSubset=pid of systemd
  expect(judged(hidden, inMemory())).toMatch(/^not now: cannot read \/proc\/swaps/);
});

test("a path is in a directory by its parts", () => {
  expect(isIn("/run/key4c-kms", "/run/key4c-kms")).toBe(true);
  expect(isIn("/run/key4c-kms/a", "/run/key4c-kms")).toBe(true);
  expect(isIn("/run/key4c-kms-cache", "/run/key4c-kms")).toBe(false);
  expect(isIn("/run", "/")).toBe(true);
});
