/** What is left for the API server, in lines of shell with the values of this node. */
import { dirname } from "node:path";
import { CONFIGURATION_FLAG } from "../../kubernetes/static-pod.ts";
import { fill } from "../manifest/template.ts";
import { type Host, PATCH } from "./node.ts";
import type { Plan } from "./plan.ts";
import elsewhere from "./templates/elsewhere.txt";
import kubeadm from "./templates/kubeadm.txt";
import kubeadmNew from "./templates/kubeadm-new.txt";
import rancher from "./templates/rancher.txt";

/** From here on kubeadm has v1beta4 of its configuration. */
const FIRST_MINOR_WITH_V1BETA4 = 31;
const PORT = "6443";
/** For the reader to replace: this node does not say it. */
const ADDRESS = "THE-ADDRESS-OF-THIS-NODE";

/** @returns the block, and below it what comes later where nobody writes under the plugin yet */
export function blockFor({ platform, apiServer }: Host, plan: Plan): string {
  const { configuration, identityFirst, socket } = plan;
  const isTold =
    apiServer?.flags.has(CONFIGURATION_FLAG) && apiServer.configuration === configuration;
  const sees = apiServer?.mounts.some(({ host }) => socket.startsWith(`${host}/`));
  const told = apiServer?.flags.get("advertise-address");
  const address = checked(told, /^[0-9A-Fa-f.:]+$/, ADDRESS);
  const values = {
    configuration,
    directory: dirname(configuration),
    socketDirectory: dirname(socket),
    patches: dirname(PATCH),
    platform,
    service: platform === "rke2" ? "rke2-server" : "k3s",
    manifest: apiServer?.path,
    api:
      (apiServer?.minor ?? FIRST_MINOR_WITH_V1BETA4) < FIRST_MINOR_WITH_V1BETA4
        ? "v1beta3"
        : "v1beta4",
    address,
    host: address.includes(":") ? `[${address}]` : address,
    port: checked(apiServer?.flags.get("secure-port"), /^\d+$/, PORT),
  };
  const turn = identityFirst ? turnText(configuration) : "";
  if (isTold && sees) {
    return `# The API server has everything.\nkey4c-kms-plugin doctor\n${turn}`;
  }
  const template = {
    kubeadm: apiServer === undefined ? kubeadmNew : kubeadm,
    k3s: rancher,
    rke2: rancher,
    elsewhere,
  }[platform];
  return fill(template, values) + turn;
}

/** A text of others, for a line of shell, where it has its form. */
function checked(text: string | undefined, form: RegExp, otherwise: string): string {
  return text !== undefined && form.test(text) ? text : otherwise;
}

function turnText(configuration: string): string {
  return `
# No API server writes under Key4C yet: one that does not know the provider could not read it. When the block has been
# run on EVERY control plane, put the provider first, on every node, and rewrite what is stored (docs/move.md):
#   key4c-kms-plugin manifest encryption-configuration --force --output ${configuration}
`;
}
