import { version } from '@clustermesh/runtime';
import { type CommandKit, withSide } from '../command-kit.ts';

export function addVersion({ add, terminal, places }: CommandKit): void {
  add('version', 'print the version of this command, and of a cluster')
    .option('--context <context>', 'also ask the apiserver of this cluster')
    .action(async (given: { context?: string }) => {
      terminal.out(`clustermesh ${version()}`);
      if (given.context === undefined) return;
      const cluster = await withSide(given.context, places, (side) => side.call('GetCluster', {}));
      terminal.out(`apiserver ${cluster.version} (cluster ${cluster.name})`);
    });
}
