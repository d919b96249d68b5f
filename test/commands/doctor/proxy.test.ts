/** The doctor's rules for proxies beside those of Bun's fetch, which serve obeys. */
import { expect, test } from "bun:test";
import { createServer } from "node:net";
import { proxyOf } from "../../../src/commands/doctor/proxy.ts";
import { onTestEnd } from "../../support.ts";

/** Proxies that tell who was asked. */
async function startProxies() {
  const asked: string[] = [];
  const start = async (name: string) => {
    const server = createServer((client) => {
      client.on("error", () => {});
      client.once("data", () => {
        asked.push(name);
        client.end("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n");
      });
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    onTestEnd(() => server.close());
    return (server.address() as { port: number }).port;
  };
  return { asked, first: await start("first"), second: await start("second") };
}

const KEY4C = "https://key4c.invalid/v1";
/** `1` and `2` stand for the two proxies. */
const CASES: readonly (readonly [Readonly<Record<string, string>>, string?])[] = [
  [{ HTTPS_PROXY: "http://1" }],
  [{ https_proxy: "http://1", HTTPS_PROXY: "http://2" }],
  [{ HTTPS_PROXY: "1" }],
  [{ HTTPS_PROXY: "//1" }],
  [{ HTTPS_PROXY: "http://user:password@1" }],
  [{ ALL_PROXY: "http://1" }],
  [{ all_proxy: "1" }],
  [{ HTTPS_PROXY: "http://1", ALL_PROXY: "http://2" }],
  [{ all_proxy: "http://1", ALL_PROXY: "http://2" }],
  [{ HTTPS_PROXY: "", https_proxy: "", ALL_PROXY: "http://1" }],
  [{ HTTP_PROXY: "http://1" }],
  ...[
    "key4c.invalid",
    ".invalid",
    "invalid",
    "*.invalid",
    "*",
    "KEY4C.invalid",
    "4c.invalid",
    "key4c.invalid:443",
    "key4c.invalid:8443",
    "other, key4c.invalid",
    "",
    " ",
    "https://key4c.invalid",
  ].map((NO_PROXY) => [{ HTTPS_PROXY: "http://1", NO_PROXY }] as const),
  [{ HTTPS_PROXY: "http://1", no_proxy: "key4c.invalid", NO_PROXY: "other" }],
  [{ HTTPS_PROXY: "http://1", no_proxy: "other", NO_PROXY: "key4c.invalid" }],
  ...["127.0.0.1", "127.0.0.0/8", "10.0.0.0/8", "127.0.0.1:1", "127.0.0.1:2"].map(
    (NO_PROXY) => [{ HTTPS_PROXY: "http://1", NO_PROXY }, "https://127.0.0.1:1/v1"] as const,
  ),
  ...["::1", "[::1]", "::/64", "[::1]:1", "0:0:0:0:0:0:0:1", "0000::0001", "[0:0::1]:1", "::2"].map(
    (NO_PROXY) => [{ HTTPS_PROXY: "http://1", NO_PROXY }, "https://[::1]:1/v1"] as const,
  ),
];

test("the doctor asks the proxy that fetch asks", async () => {
  const { asked, first, second } = await startProxies();
  for (const [names, url = KEY4C] of CASES) {
    const env = Object.fromEntries(
      Object.entries(names).map(([name, text]) => [
        name,
        /proxy$/i.test(name) && !/^no/i.test(name)
          ? text.replace(/1$/, `127.0.0.1:${first}`).replace(/2$/, `127.0.0.1:${second}`)
          : text,
      ]),
    );
    asked.length = 0;
    const call = `fetch(${JSON.stringify(url)}, { signal: AbortSignal.timeout(5_000) }).catch(() => {})`;
    await Bun.spawn([process.execPath, "-e", call], { env }).exited;
    const proxy = proxyOf(new URL(url), env);
    const port = proxy instanceof URL ? Number(proxy.port) : proxy;
    const ours = port === first ? "first" : port === second ? "second" : port;
    expect({ names, url, asked: ours }).toEqual({ names, url, asked: asked[0] });
  }
}, 60_000);
