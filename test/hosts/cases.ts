/** The cases of a host, in an order: each finds it as the one before has left it. They end with a table. */
import { afterAll, test } from "bun:test";

/** Generous: a case restarts pods and machines, on two shared cores. */
const CASE_MS = 600_000;

/**
 * @param suite title of the table
 * @param evidence what helps to understand a failure: a journal
 */
export function cases(suite: string, evidence: () => Promise<string>) {
  const seconds: [name: string, seconds: number, ok: boolean][] = [];
  afterAll(() => {
    console.log(`\n${suite}: case | seconds`);
    for (const [name, took, ok] of seconds) {
      console.log(`  ${ok ? "ok  " : "FAIL"} ${name} | ${took.toFixed(1)}`);
    }
  });
  return (name: string, body: () => Promise<void>): void => {
    test(
      name,
      async () => {
        const startMs = performance.now();
        let isOk = false;
        try {
          await body();
          isOk = true;
        } catch (error) {
          console.log(`${name}: ${await evidence().catch(String)}`);
          throw error;
        } finally {
          seconds.push([name, (performance.now() - startMs) / 1000, isOk]);
        }
      },
      CASE_MS,
    );
  };
}
