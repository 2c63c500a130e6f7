/** The `lab` command: two or more clusters on this machine, network namespaces as nodes and pods. */

import { version } from '@clustermesh/runtime';
import { Command, CommanderError, Option } from 'commander';
import { control, heal, type PartitionOptions, partition } from './cli/faults.ts';
import { dumpMapHelp, ETCD_ROLES, type EtcdRole, etcdctl, exec, type LogsOptions, logs, map } from './cli/inspect.ts';
import { down, status, up } from './cli/lifecycle.ts';
import { type ApplyOptions, applyOrDelete, pods, services } from './cli/objects.ts';
import { errorText, type Format } from './cli/output.ts';
import { runLabd } from './labd/server.ts';
import { assertInstanceName } from './netns/names.ts';

const outputOption = () =>
  new Option('-o, --output <format>', 'how to print it').choices(['table', 'json']).default('table');
const fileOption = () => new Option('-f, --file <files...>', 'manifests, "-" for stdin').makeOptionMandatory();
const clusterOption = () => new Option('--cluster <name>', 'the cluster it is for').makeOptionMandatory();

const program = new Command('lab')
  .description('Clusters on this machine: network namespaces as nodes and pods, with real etcd, Redis and eBPF.')
  .version(version())
  .addOption(new Option('--instance <name>', 'which lab').env('CM_INSTANCE').default('lab'))
  .configureOutput({ outputError: (text, write) => write(text) })
  .showHelpAfterError('(--help shows what there is)')
  .exitOverride();

const instance = () => assertInstanceName(program.opts<{ instance: string }>().instance);

program
  .command('up')
  .description('bring up a topology (default: two regions of two nodes each)')
  .option('-f, --file <topology>', 'topology YAML')
  .addOption(outputOption())
  .action((options: { file?: string; output: Format }) => up(instance(), options));
program
  .command('down')
  .description('end the instance and leave nothing of it: processes, namespaces, cgroups, maps')
  .addOption(new Option('--of <pid>', 'only while this process holds it').hideHelp())
  .action((options: { of?: string }) => down(instance(), options.of === undefined ? undefined : Number(options.of)));
program
  .command('status')
  .description('daemons, pods and partitions')
  .addOption(outputOption())
  .action((options: { output: Format }) => status(instance(), options.output));
program
  .command('apply')
  .description('apply Namespace, Deployment, Pod, Service and EndpointSlice manifests')
  .addOption(clusterOption())
  .addOption(fileOption())
  .option('--wait', 'return when the pods of the cluster are ready')
  .addOption(outputOption())
  .action((options: ApplyOptions) => applyOrDelete(instance(), 'apply', options));
program
  .command('delete')
  .description('delete what the manifests name')
  .addOption(clusterOption())
  .addOption(fileOption())
  .addOption(outputOption())
  .action((options: ApplyOptions) => applyOrDelete(instance(), 'delete', options));
program
  .command('pods')
  .description('pods of all clusters')
  .addOption(outputOption())
  .action((options: { output: Format }) => pods(instance(), options.output));
program
  .command('services')
  .description('services of all clusters with their ClusterIPs')
  .addOption(outputOption())
  .action((options: { output: Format }) => services(instance(), options.output));
program
  .command('exec <pod> <command...>')
  .description('run a command in a pod: exec eu/default/client-0 -- curl -s http://10.96.0.10/')
  .action((pod: string, command: string[]) => exec(instance(), pod, command));
for (const [action, description] of [
  ['kill', 'SIGKILL; stays dead until start'],
  ['start', 'start what was killed'],
  ['pause', 'stop it in its tracks, as SIGSTOP'],
  ['resume', 'let it go on'],
] as const) {
  program
    .command(`${action} <targets...>`)
    .description(`${description}: eu/etcd, eu/redis, eu/apiserver, eu/agent/n1, eu/pod/default/shop-*`)
    .action((targets: string[]) => control(instance(), action, targets));
}
program
  .command('partition <from> <to>')
  .description('drop packets between two clusters')
  .option('--control', 'only to and from control planes')
  .option('--data', 'only between nodes')
  .option('--one-way', 'only packets from the first to the second')
  .action((from: string, to: string, options: PartitionOptions) => partition(instance(), from, to, options));
program
  .command('heal <a> <b>')
  .description('end all partitions between two clusters')
  .action((a: string, b: string) => heal(instance(), a, b));
program
  .command('etcdctl <cluster> <args...>')
  .description('look into the etcd of a cluster: etcdctl eu --as remote -- get --prefix cilium/')
  .addOption(new Option('--as <who>', 'with whose certificate').choices(ETCD_ROLES).default('admin'))
  .action((cluster: string, args: string[], options: { as: EtcdRole }) =>
    etcdctl(instance(), cluster, options.as, args),
  );
program
  .command('map <node> <map>')
  .description(`what is in the kernel of a node: map us/n1 ipcache; ${dumpMapHelp}`)
  .addOption(outputOption())
  .action((node: string, name: string, options: { output: Format }) => map(instance(), node, name, options.output));
program
  .command('logs <target>')
  .description('log of eu/apiserver, eu/agent/n1, eu/pod/default/client-0, labd')
  .option('-f, --follow', 'go on as it grows')
  .option('--tail <lines>', 'how many of the last lines', '100')
  .action((target: string, options: LogsOptions) => logs(instance(), target, options));
program
  .command('labd', { hidden: true })
  .option('--tied')
  .action((options: { tied?: boolean }) => runLabd({ instance: instance(), tied: options.tied === true }));

try {
  await program.parseAsync();
} catch (error) {
  if (error instanceof CommanderError) process.exit(error.exitCode === 0 ? 0 : 64);
  process.stderr.write(errorText(error));
  process.exit(1);
}
