/**
 * Direct mode: the remote clusters of a config directory, each read from its own etcd. Level-triggered: a pass compares the directory
 * with the remotes that run.
 *
 *   file appears ─► remote started ─► accepted: followed       file changes ─► another connection, rows stay meanwhile
 *   file is gone ─► let go, and its rows with it               file unusable ─► everything stays as it was, and it is said
 */

import { statSync } from 'node:fs';
import { type ClusterConfig, type LocalClusterFacts, messageOf } from '@clustermesh/contract';
import { type Clock, type ClusterFiles, type Log, readClusterFiles, startRunner, watchDir } from '@clustermesh/runtime';
import { type AcceptedSource, type Remote, type RemoteStatus, startRemote } from './remote.ts';

export interface DirectOptions {
  readonly dir: string;
  readonly own: LocalClusterFacts & { readonly name: string };
  /** The cluster may be followed at this etcd. Returns why not. */
  readonly accept: (name: string, config: ClusterConfig, source: AcceptedSource) => string | undefined;
  /** What is read through this cluster's present connection is to be no longer; its rows stay. */
  readonly suspend: (name: string) => void;
  /** The cluster is no longer configured. */
  readonly release: (name: string) => void;
  /** What `pending` says may have changed. */
  readonly onChange: () => void;
  readonly clock: Clock;
  readonly log: Log;
}

export interface Direct {
  /** Configured, but not (yet) part of the mesh: nobody knows which cluster id is theirs. */
  pending(): ReadonlyMap<string, string>;
  problems(): string[];
  statuses(): ReadonlyMap<string, RemoteStatus>;
  close(): Promise<void>;
}

const RESCAN_MS = 5_000;
/** A file that is gone for less long is being replaced. */
const GONE_AFTER_MS = 300;

export function startDirect(options: DirectOptions): Direct {
  const { dir, own, clock } = options;
  const log = options.log.child({ subsystem: 'direct' });
  const stop = new AbortController();
  const remotes = new Map<string, Remote>();
  const goneSince = new Map<string, number>();
  let unusable: ClusterFiles['unusable'] = new Map();
  let isRead = false;
  let dirProblem: string | undefined;
  let watched: { readonly inode: number; readonly end: AbortController } | undefined;

  /** A directory may not exist yet, or be replaced whole. */
  function arm(): void {
    const inode = statSync(dir).ino;
    if (watched?.inode === inode) return;
    watched?.end.abort();
    watched = { inode, end: new AbortController() };
    watchDir(dir, () => runner.trigger(), watched.end.signal);
  }

  async function replace(name: string, start: () => Remote): Promise<void> {
    const before = remotes.get(name);
    if (before !== undefined) options.suspend(name);
    await before?.close();
    if (!stop.signal.aborted) remotes.set(name, start());
  }

  function isGone(name: string): boolean {
    const since = goneSince.get(name) ?? clock.nowMs();
    goneSince.set(name, since);
    const restMs = since + GONE_AFTER_MS - clock.nowMs();
    if (restMs <= 0) return true;
    void clock.sleep(restMs + 1, stop.signal).then(() => stop.signal.aborted || runner.trigger());
    return false;
  }

  async function pass(): Promise<void> {
    arm();
    const content = readClusterFiles(dir, own.name);
    for (const [name, { text, reason }] of content.unusable)
      if (unusable.get(name)?.text !== text) log.error({ cluster: name, reason }, 'cluster file is not usable');
    unusable = content.unusable;
    for (const [name, remote] of [...remotes]) {
      if (content.clusters.has(name) || unusable.has(name)) {
        goneSince.delete(name);
        continue;
      }
      if (!isGone(name)) continue;
      log.info({ cluster: name }, 'cluster file is gone');
      goneSince.delete(name);
      remotes.delete(name);
      options.release(name);
      await remote.close();
    }
    for (const [name, config] of content.clusters) {
      if (remotes.get(name)?.config.text === config.text) continue;
      log.info({ cluster: name, endpoints: config.endpoints }, 'cluster file: reading that cluster directly');
      const accept = (published: ClusterConfig, source: AcceptedSource) => options.accept(name, published, source);
      await replace(name, () => startRemote({ config, own, accept, onChange: options.onChange, clock, log }));
    }
    isRead = true;
    dirProblem = undefined;
    options.onChange();
  }

  const runner = startRunner({
    run: pass,
    minIntervalMs: 20,
    retryMs: 200,
    maxIntervalMs: RESCAN_MS,
    onError(error) {
      const reason = `reading the directory of remote clusters ${dir}: ${messageOf(error)}`;
      if (reason !== dirProblem) log.warn({ reason }, 'what is followed stays');
      dirProblem = reason;
    },
    signal: stop.signal,
    clock,
  });
  runner.trigger();

  return {
    pending() {
      const pending = new Map<string, string>();
      if (!isRead) pending.set('(directory)', dirProblem ?? 'not read yet');
      for (const [name, { reason }] of unusable) if (!remotes.has(name)) pending.set(name, reason);
      for (const [name, remote] of remotes) {
        const { accepted, problem } = remote.status();
        if (!accepted) pending.set(name, problem ?? 'its handshake is under way');
      }
      return pending;
    },
    problems() {
      const problems = dirProblem === undefined ? [] : [dirProblem];
      for (const [name, { reason }] of unusable) problems.push(`cluster ${name}: its file is not usable: ${reason}`);
      for (const [name, remote] of remotes) {
        const { problem } = remote.status();
        if (problem !== undefined) problems.push(`cluster ${name}, read directly: ${problem}`);
      }
      return problems;
    },
    statuses: () => new Map([...remotes].map(([name, remote]) => [name, remote.status()])),
    async close() {
      stop.abort();
      watched?.end.abort();
      await runner.ended;
      await Promise.all([...remotes.values()].map((remote) => remote.close()));
    },
  };
}
