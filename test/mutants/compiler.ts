/** TypeScript's own compiler, asked in memory: a mutant is judged in 10 ms, and one that does not compile is none. */
import { join } from "node:path";
import type { SourceFile } from "typescript/unstable/ast";
import { API } from "typescript/unstable/async";

/** Something that is declared and not used any more: `npm run check` minds, the code runs all the same. */
const UNUSED = new Set([6133, 6138, 6192, 6196, 6198, 6199]);

export class Compiler {
  readonly #root: string;
  /** What a file holds instead of what is on the disk. */
  readonly #texts = new Map<string, string>();
  readonly #api: API;
  #isOpen = false;

  /** @param root an absolute path, with the tsconfig.json */
  constructor(root: string) {
    this.#root = root;
    this.#api = new API({ cwd: root, fs: { readFile: (path: string) => this.#texts.get(path) } });
  }

  /** @param file relative to the root */
  async parse(file: string): Promise<SourceFile> {
    const source = await (await this.#program()).getSourceFile(join(this.#root, file));
    if (source === undefined) {
      throw new Error(`${file} is no part of the program`);
    }
    return source;
  }

  /** Whether the file compiles with this text in the place of its own. Files that import it are not looked at. */
  async compiles(file: string, text: string): Promise<boolean> {
    const path = join(this.#root, file);
    this.#texts.set(path, text);
    try {
      const program = await this.#program(path);
      const problems = [
        ...(await program.getSyntacticDiagnostics(path)),
        ...(await program.getSemanticDiagnostics(path)),
      ];
      return problems.every(({ code }) => UNUSED.has(code));
    } finally {
      this.#texts.delete(path);
      await this.#program(path);
    }
  }

  async close(): Promise<void> {
    await this.#api.close();
  }

  async #program(...changed: string[]) {
    const openProjects = this.#isOpen ? [] : [join(this.#root, "tsconfig.json")];
    this.#isOpen = true;
    const snapshot = await this.#api.updateSnapshot({ openProjects, fileChanges: { changed } });
    const [project] = snapshot.getProjects();
    if (project === undefined) {
      throw new Error("TypeScript finds no project");
    }
    return project.program;
  }
}
