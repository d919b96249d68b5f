/** Clients that write and read Secrets all the time. */
import { ApiError, type ApiServer } from "./apiserver.ts";

export interface Load {
  /** Values by name of what the API server has acknowledged. */
  readonly acknowledged: ReadonlyMap<string, string>;
  /** What failed, with the API server's words. */
  readonly errors: readonly string[];
  /** The longest time in which no write of any client was acknowledged. */
  longestGapMs(): number;
  /** Lets what is under way end. @throws Error when something read was not what had been written */
  stop(): Promise<void>;
}

/** Starts `clients` loops of writing a Secret and reading one at random. */
export function startLoad(api: ApiServer, clients: number, pauseMs: number): Load {
  const acknowledged = new Map<string, string>();
  const errors: string[] = [];
  let lastMs = performance.now();
  let gapMs = 0;
  let isOver = false;
  let endMs: number | undefined;
  const attempt = async (work: () => Promise<void>) => {
    try {
      await work();
    } catch (error) {
      if (!(error instanceof ApiError)) {
        throw error;
      }
      errors.push(error.message);
    }
  };
  const loops = Array.from({ length: clients }, async (_, client) => {
    for (let count = 0; !isOver; count++) {
      const name = `load-${client}-${count}`;
      const value = `plaintext of ${name} ${crypto.randomUUID()}`;
      await attempt(async () => {
        await api.create(name, value);
        acknowledged.set(name, value);
        gapMs = Math.max(gapMs, performance.now() - lastMs);
        lastMs = performance.now();
      });
      await attempt(async () => {
        const known = [...acknowledged.keys()];
        const any = known[Math.floor(Math.random() * known.length)];
        if (any !== undefined && (await api.read(any)) !== acknowledged.get(any)) {
          throw new Error(`${any} is not what was written`);
        }
      });
      await Bun.sleep(pauseMs);
    }
  });
  const ended = Promise.all(loops);
  ended.catch(() => {}); // stop() throws it
  return {
    acknowledged,
    errors,
    longestGapMs: () => Math.round(Math.max(gapMs, (endMs ?? performance.now()) - lastMs)),
    async stop() {
      isOver = true;
      endMs ??= performance.now();
      await ended;
    },
  };
}
