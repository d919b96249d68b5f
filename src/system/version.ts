import { version } from "../../package.json";

/** src/build/compile.ts puts a text in its place. */
declare const BUILD_COMMIT: string | undefined;

/** The release, and the commit that it was built from: `0.1.0+4f24b154a1b2`. Two builds that differ tell so. */
export const BUILD_VERSION = `${version}+${typeof BUILD_COMMIT === "string" ? BUILD_COMMIT : "unknown"}`;
