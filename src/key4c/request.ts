/** One HTTP request, made from a profile's templates. */
import { PluginError } from "../failures/plugin-error.ts";
import type { Clock } from "../system/clock.ts";
import { readBody } from "./body.ts";
import type { Json } from "./json.ts";
import type { LoginRequest, Operation } from "./profile.ts";
import { type PlaceholderValues, render, renderJson } from "./template.ts";

export interface Way {
  /** Base address, without a slash at its end. */
  readonly url: string;
  /** PEM texts; asked before every request. */
  readonly tls: () => {
    readonly ca?: string | undefined;
    readonly cert?: string | undefined;
    readonly key?: string | undefined;
  };
  readonly userAgent: string;
  /** Tests replace the network; doctor --profile-check watches it. */
  readonly fetch?: (url: string, init: BunFetchRequestInit) => Promise<Response>;
}

export interface Exchanged {
  readonly response: Response;
  /** The body of the answer; undefined when it is larger than is read. */
  readonly text: string | undefined;
  /** The body that was sent. */
  readonly sent: Json | undefined;
}

/** @throws PluginError for what cannot be sent, and whatever the network throws */
export async function exchange(
  way: Way,
  request: Operation & Partial<Pick<LoginRequest, "url" | "as">>,
  values: PlaceholderValues,
  { clock, timeoutMs, mayReuse }: { clock: Clock; timeoutMs: number; mayReuse: boolean },
): Promise<Exchanged> {
  const headers = new Headers({
    Accept: "application/json",
    "Accept-Encoding": "identity",
    "User-Agent": way.userAgent,
  });
  const isForm = request.as === "form";
  const sent = request.body === undefined ? undefined : renderJson(request.body, values);
  if (sent !== undefined) {
    headers.set("Content-Type", isForm ? "application/x-www-form-urlencoded" : "application/json");
  }
  for (const [header, template] of Object.entries(request.headers)) {
    const value = render(template, values);
    if (value !== undefined) {
      if (value !== value.trim()) {
        // HTTP would cut it (RFC 9110 §5.5): another secret would be sent, and count as a wrong one.
        throw new PluginError("denied", `the header ${header} would begin or end with a blank`, {
          about: "secret",
        });
      }
      headers.set(header, value);
    }
  }
  const path = render(request.path, values, encodeURIComponent) ?? "";
  const abort = new AbortController();
  const cancelTimeout = clock.after(Math.max(1, timeoutMs), () =>
    abort.abort(new DOMException("no answer in time", "TimeoutError")),
  );
  try {
    const response = await (way.fetch ?? fetch)((request.url ?? way.url) + path, {
      method: request.method,
      headers,
      ...(sent !== undefined && { body: isForm ? formOf(sent) : JSON.stringify(sent) }),
      signal: abort.signal,
      keepalive: mayReuse,
      redirect: "manual", // a redirect would carry the credential to a host that nobody configured
      decompress: false,
      verbose: false,
      tls: { ...way.tls(), rejectUnauthorized: true },
    });
    return { response, text: await readBody(response), sent };
  } finally {
    cancelTimeout();
  }
}

function formOf(sent: Json): string {
  return new URLSearchParams(sent as Record<string, string>).toString(); // the reader of profiles has checked it
}
