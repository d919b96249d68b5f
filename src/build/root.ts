import { join } from "node:path";

/** Of the checkout. */
export const ROOT = join(import.meta.dir, "../..");
