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
import scrapeConfig from "./templates/scrape-config.yaml.txt";

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
  const clusterLabel = required(config.clusterLabel);
  const { clusterName } = config;
  return fill(scrapeConfig, {
    targets: isLoopbackHost(address.host)
      ? [
          "static_configs:",
          `  - targets: [${quoted(text)}]`,
          "    labels:",
          "      # Without it all nodes would be the same instance.",
          `      instance: ${quoted(config.instance ?? hostname())}`,
          ...(clusterName === undefined
            ? []
            : [`      ${quoted(clusterLabel)}: ${quoted(clusterName)}`]),
        ]
      : [
          "# The control-plane nodes of the cluster that this Prometheus runs in. It may list and watch nodes.",
          "kubernetes_sd_configs:",
          "  - role: node",
          "    selectors: [{ role: node, label: node-role.kubernetes.io/control-plane }]",
          "relabel_configs:",
          "  # The address of the kubelet, with the port of the plugin.",
          "  - source_labels: [__address__]",
          '    regex: "(.*):[0-9]+"',
          `    replacement: "$1:${address.port}"`,
          "    target_label: __address__",
          ...(clusterName === undefined
            ? []
            : [
                `  - target_label: ${quoted(clusterLabel)}`,
                `    replacement: ${quoted(clusterName)}`,
              ]),
        ],
  });
}
