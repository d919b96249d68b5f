/** What a Prometheus and a Grafana need. */

import { hostname } from "node:os";
import { required } from "../../config/config.ts";
import { httpAddress } from "../../config/option-types.ts";
import { ExitError } from "../../system/errors.ts";
import { isLoopbackHost } from "../../system/loopback.ts";
import { METRICS_ADDRESS, type Order } from "./settings.ts";
import { fill, quoted } from "./template.ts";
import grafana from "./templates/grafana.json";
import prometheusRules from "./templates/prometheus-rules.yaml.txt";
import scrapeCluster from "./templates/scrape-config-cluster.yaml.txt";
import scrapeNode from "./templates/scrape-config-node.yaml.txt";

export function prometheusRulesText({ line: { config } }: Order): string {
  return fill(prometheusRules, {
    cluster: required(config.clusterLabel),
    documents: config.runbookUrl === undefined ? "" : `${config.runbookUrl}/`,
  });
}

export function grafanaText({ line: { config } }: Order): string {
  return fill(JSON.stringify(grafana, undefined, 2), {
    clusterLabel: required(config.clusterLabel),
  });
}

/**
 * One target on loopback for an agent on the node itself; else the nodes that Kubernetes knows.
 * @throws ExitError 2 where serve has no HTTP
 */
export function scrapeConfigText({ line: { config, given } }: Order): string {
  const text = given.get("KMS_HTTP_ADDRESS") ?? METRICS_ADDRESS;
  const address = httpAddress(text);
  if (address === undefined) {
    throw new ExitError(2, "KMS_HTTP_ADDRESS is empty: without HTTP there is nothing to scrape");
  }
  const label = quoted(required(config.clusterLabel));
  const name = config.clusterName && quoted(config.clusterName);
  return isLoopbackHost(address.host)
    ? fill(scrapeNode, {
        address: quoted(text),
        instance: quoted(config.instance ?? hostname()),
        cluster: name === undefined ? [] : [`${label}: ${name}`],
      })
    : fill(scrapeCluster, {
        port: String(address.port),
        cluster: name === undefined ? [] : [`- target_label: ${label}`, `  replacement: ${name}`],
      });
}
