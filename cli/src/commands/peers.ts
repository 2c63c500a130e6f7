import { type ClusterStatus, MeshError, type PeerInfo } from '@clustermesh/contract';
import { table } from '@clustermesh/runtime';
import {
  type CommandKit,
  contextOption,
  type Format,
  onlyContext,
  outputOption,
  print,
  withSide,
} from '../command-kit.ts';
import { EXIT_CODES_HELP } from '../exit-codes.ts';
import { missingOfPeer, peerTable } from '../status.ts';

interface Given {
  readonly context?: string;
  readonly output: Format;
}

export function addPeers({ add, terminal, places }: CommandKit): void {
  const peers = add('peers', 'the clusters that a cluster is connected with');
  const ask = (given: Given): Promise<ClusterStatus> =>
    withSide(onlyContext(given.context, places), places, (side) => side.call('GetStatus', {}));
  const addTo = (name: string, description: string) =>
    add(name, description, peers)
      .addOption(contextOption())
      .addOption(outputOption())
      .addHelpText('after', `\n${EXIT_CODES_HELP}`);

  addTo('list', 'all peers').action(async (given: Given) => {
    const status = await ask(given);
    print(terminal, given.output, status.peers, () =>
      status.peers.length === 0 ? 'no peers' : peerTable(status).join('\n'),
    );
  });

  addTo('show <peer>', 'one peer, family by family').action(async (name: string, given: Given) => {
    const status = await ask(given);
    const peer = status.peers.find((candidate) => candidate.name === name);
    if (peer === undefined) {
      throw new MeshError({
        code: 'not-found',
        message: `showing the peer ${name} of ${status.cluster.name}: there is no such peer`,
        hint: `peers: ${status.peers.map((candidate) => candidate.name).join(', ') || 'none'}`,
      });
    }
    const alive = status.nodes.filter((node) => node.alive).length;
    print(terminal, given.output, peer, () => details(peer, alive));
  });
}

function details(peer: PeerInfo, alive: number): string {
  return [
    `peer ${peer.name} (id ${peer.id === 0 ? 'not known' : peer.id}): ${missingOfPeer(peer, alive) ?? 'ready, applied on every live node'}`,
    '',
    ...table(
      ['FAMILY', 'SYNCED', 'COUNT', 'REVISION', 'REFUSED', 'APPLIED'],
      peer.families.map((family) => [
        family.family,
        family.synced ? 'yes' : 'no',
        String(family.count),
        String(family.revision),
        String(family.quarantined),
        `${family.nodesApplied}/${alive} nodes`,
      ]),
    ),
    ...peer.families.flatMap(({ family, lastQuarantineReason }) =>
      lastQuarantineReason === '' ? [] : [`! ${family}: ${lastQuarantineReason}`],
    ),
  ].join('\n');
}
