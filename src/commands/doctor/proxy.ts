/** The proxy of a call, by the rules of Bun's fetch, which serve follows. */
import { BlockList, isIP } from "node:net";

const NAMES = ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];

type Environment = Readonly<Record<string, string | undefined>>;

/**
 * The first one that is named, with its scheme; undefined: none, or NO_PROXY exempts the host. Plain http is
 * spoken to loopback only, where no proxy is asked.
 */
export function proxyOf(url: URL, env: Environment): URL | "not a URL" | undefined {
  const text = NAMES.map((name) => env[name]).find(Boolean);
  if (url.protocol !== "https:" || text === undefined || isExempt(url, env)) {
    return undefined;
  }
  const whole = /^[a-z0-9+.-]+:\/\//i.test(text) ? text : `http://${text.replace(/^\/\//, "")}`;
  return URL.canParse(whole) ? new URL(whole) : "not a URL";
}

/** NO_PROXY has `*`, domains (with all below them), addresses and networks. With a port, an entry means only that port. */
function isExempt(url: URL, env: Environment): boolean {
  const host = url.hostname.replace(/[[\]]/g, "").toLowerCase();
  const port = url.port || "443";
  const list = (env["no_proxy"] || env["NO_PROXY"] || "").toLowerCase().split(",");
  return list.some((entry) => {
    const one = entry.trim();
    if (one === "*" || isInNetwork(host, one)) {
      return true;
    }
    const [, name = one, ofPort = port] = /^(.*?):(\d+)$/.exec(isIP(one) === 6 ? "" : one) ?? [];
    const domain = canonical(name.replace(/^\*?\./, "").replace(/[[\]]/g, ""));
    return domain !== "" && ofPort === port && (host === domain || host.endsWith(`.${domain}`));
  });
}

/** An IPv6 address has many spellings; that of a URL is the shortest (RFC 5952). */
function canonical(name: string): string {
  return isIP(name) === 6 ? new URL(`http://[${name}]`).hostname.replace(/[[\]]/g, "") : name;
}

function isInNetwork(host: string, network: string): boolean {
  const [address = "", prefix] = network.split("/");
  const family = isIP(address);
  if (prefix === undefined || family === 0 || isIP(host) !== family) {
    return false;
  }
  const name = family === 4 ? "ipv4" : "ipv6";
  const list = new BlockList();
  try {
    list.addSubnet(address, Number(prefix), name);
  } catch {
    return false; // not a valid prefix
  }
  return list.check(host, name);
}
