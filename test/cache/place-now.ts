/** Judges a place inside of the namespace that a test made, and prints what came of it. */
import { makePlace } from "../../src/cache/place.ts";
import { ExitError } from "../../src/system/errors.ts";

const [directory = "", socket = "", form = ""] = process.argv.slice(2);
try {
  console.log("at", makePlace({ directory, socket, isSealed: form === "sealed" }));
} catch (error) {
  console.log(error instanceof ExitError ? "never:" : "not now:", (error as Error).message);
}
