import { base32, keyNameHash } from "./key-id.ts";

/** The Key4C keys: the one that wraps, and those whose data are still decrypted. */
export class KeySet {
  readonly #configuredId: () => string;
  readonly #configuredPreviousIds: () => readonly string[];
  #currentId: string;
  #configured: string;
  /** Keys that wrapped in this process, or are configured as previous keys. */
  #previousIds: readonly string[] = [];
  /** From base32(key name hash) to the ID. */
  #ids: ReadonlyMap<string, string> = new Map();

  /** Both functions are called at each {@link reload}. */
  constructor(
    configuredId: () => string,
    configuredPreviousIds: () => readonly string[] = () => [],
  ) {
    this.#configuredId = configuredId;
    this.#configuredPreviousIds = configuredPreviousIds;
    this.#configured = configuredId();
    this.#currentId = this.#configured;
    this.reload();
  }

  /** Reads the configuration again. The current key stays until the configured one is proven. */
  reload(): void {
    this.#configured = this.#configuredId();
    const previousIds = new Set(this.#configuredPreviousIds());
    this.#take([...previousIds, ...this.#formerIds]);
  }

  /** The key that is to wrap. */
  get configuredId(): string {
    return this.#configured;
  }

  /** The key that wraps. */
  get currentId(): string {
    return this.#currentId;
  }

  /** All others whose data are decrypted: configured ones, and those that wrapped in this process. */
  get previousIds(): readonly string[] {
    return this.#previousIds;
  }

  /** The ID of a key; undefined when it is not configured. */
  idOf(hashText: string): string | undefined {
    return this.#ids.get(hashText);
  }

  /** The configured key wraps from now on. */
  becomeCurrent(kmsKeyId: string): void {
    if (kmsKeyId !== this.#currentId) {
      this.#formerIds.add(this.#currentId);
      this.#formerIds.delete(kmsKeyId);
      this.#currentId = kmsKeyId;
      this.reload();
    }
  }

  readonly #formerIds = new Set<string>();

  #take(previousIds: readonly string[]): void {
    const all = new Set([this.#currentId, this.#configured, ...previousIds]);
    this.#ids = new Map([...all].map((id) => [base32(keyNameHash(id)), id]));
    all.delete(this.#currentId);
    this.#previousIds = [...all];
  }
}
