/** The fake KMS of all plugins (kms/main.go): one process, a port for each instance of a plugin. */
import { buildGo, keepUntilTheEnd } from "../servers.ts";

/** How it answers. The key is disabled, or else it is the network or the KMS that fails. */
export type Mode = "ok" | "hang" | "refuse" | "disabled";

/** What one instance of a plugin calls. */
export interface Kms {
  readonly port: string;
  readonly set: (how: { delayMs?: number; mode?: Mode }) => Promise<void>;
  /** All so far, and those that decrypt. */
  readonly calls: () => Promise<{ all: number; decrypt: number }>;
}

export type OpenKms = () => Promise<Kms>;

export async function startFake(): Promise<OpenKms> {
  const child = Bun.spawn([buildGo("kms", "./peers/kms")], { stdout: "pipe", stderr: "inherit" });
  keepUntilTheEnd(child);
  const { value } = await child.stdout.getReader().read();
  const control = new TextDecoder().decode(value).trim();
  const get = async (path: string) => {
    const answer = await fetch(`${control}/${path}`);
    if (!answer.ok) {
      throw new Error(`the fake KMS: ${path}: ${await answer.text()}`);
    }
    return answer.json();
  };
  return async () => {
    const { port } = (await get("open")) as { port: string }; // as kms/main.go makes it
    return {
      port,
      set: async ({ delayMs, mode }) => {
        const delay = delayMs === undefined ? "" : `delayMs=${delayMs}`;
        await get(`${port}/set?${delay}&mode=${mode ?? ""}`);
      },
      calls: async () => {
        const counted = (await get(`${port}/stats`)) as Record<string, number>; // the same
        const all = Object.values(counted).reduce((sum, one) => sum + one, 0);
        return { all, decrypt: counted["decrypt"] ?? 0 };
      },
    };
  };
}
