/** `clustermesh connect`: one operation on each side, and a courier that carries the certificates between them. */
import {
  type ClusterInfo,
  type ClusterStatus,
  type ConnectDirection,
  MeshError,
  messageOf,
  type OperationEvent,
} from '@clustermesh/contract';
import { systemClock } from '@clustermesh/runtime';
import { formatDuration } from './duration.ts';
import { OutOfTime } from './exit-codes.ts';
import { preflight, refusalOf, warningsOf } from './preflight.ts';
import { deliver, follow, isLost, newRequest, type Side, whenPossible } from './side.ts';
import { missingOfPeer } from './status.ts';
import { createStepLines, type StepLines } from './step-lines.ts';
import type { Terminal } from './terminal.ts';

export interface PairOptions {
  readonly source: Side;
  readonly destination: Side;
  /** One way only: the source reads the destination, and not the other way round. */
  readonly oneWay?: boolean;
  readonly timeoutMs: number;
  readonly terminal: Terminal;
  /** Ends the following, not the operations. */
  readonly signal: AbortSignal;
  readonly now?: () => number;
}

interface Half {
  readonly side: Side;
  readonly info: ClusterInfo;
  /** The peer was not configured before: then a failed connect may be undone without harm. */
  readonly isNew: boolean;
  readonly lines: StepLines;
  operation?: string;
}

export async function connect(options: PairOptions): Promise<void> {
  const { terminal } = options;
  const now = options.now ?? (() => performance.now());
  const startedAt = now();
  const signal = AbortSignal.any([options.signal, AbortSignal.timeout(options.timeoutMs)]);
  const [left, right] = await Promise.all([
    options.source.call('GetStatus', {}),
    options.destination.call('GetStatus', {}),
  ]);
  const showProgress = () =>
    terminal.progress(`${a.side.name}: ${a.lines.current()} · ${b.side.name}: ${b.lines.current()}`);
  const half = (side: Side, status: ClusterStatus, peer: ClusterStatus): Half => ({
    side,
    info: status.cluster,
    isNew: !status.peers.some((known) => known.name === peer.cluster.name),
    lines: createStepLines({ side: side.name, terminal, now, onChange: showProgress }),
  });
  const a = half(options.source, left, right);
  const b = half(options.destination, right, left);
  terminal.out(`connecting ${describe(a.info)} and ${describe(b.info)}`);

  const reports = await preflight(a.side, b.side);
  for (const line of warningsOf(reports)) terminal.err(line);
  const refusal = refusalOf(reports);
  if (refusal !== undefined) throw refusal;

  const directionOf = (own: Half): ConnectDirection =>
    options.oneWay !== true ? 'both' : own === a ? 'read' : 'serve';
  const readers = options.oneWay === true ? [a] : [a, b];

  const outOfTime = () => {
    if (options.signal.aborted) throw new MeshError({ code: 'cancelled', message: 'interrupted' });
    return new OutOfTime({
      message: `connecting ${a.side.name} and ${b.side.name}: not done within ${formatDuration(options.timeoutMs)} (${a.side.name}: ${a.lines.current()}; ${b.side.name}: ${b.lines.current()})`,
      hint: 'what was started goes on in the clusters; run the same command again to follow it, or clustermesh disconnect to end it',
    });
  };

  const prepare = (own: Half, peer: Half) =>
    whenPossible(own.side, { signal, terminal }, () => own.side.call('PrepareConnect', { peer: peer.info.name }));
  const [requestOfA, requestOfB] = await Promise.all([prepare(a, b), prepare(b, a)]);
  if (requestOfA === undefined || requestOfB === undefined) throw outOfTime();
  const start = async (own: Half, peer: Half, peerCsrPem: string): Promise<boolean> => {
    const request = newRequest();
    const reference = await whenPossible(own.side, { signal, terminal }, () =>
      own.side.call('StartConnect', { peer: peer.info, peerCsrPem, direction: directionOf(own), request }),
    );
    if (reference !== undefined) own.operation = reference.id;
    return reference !== undefined;
  };
  const starts = await Promise.allSettled([start(a, b, requestOfB.csrPem), start(b, a, requestOfA.csrPem)]);
  const refused = starts.find((result) => result.status === 'rejected');
  if (refused !== undefined) {
    await undo(a, b, terminal);
    throw refused.reason;
  }
  if (starts.some((result) => result.status === 'fulfilled' && !result.value)) throw outOfTime();

  // One side's failure ends the other's waiting for a certificate that will not come.
  const failure = new AbortController();
  const following = AbortSignal.any([signal, failure.signal]);
  let undelivered: MeshError | undefined;
  const run = async (own: Half, peer: Half): Promise<OperationEvent | undefined> => {
    let certificate = '';
    // Beside the following, so that the peer's absence is never taken for this side's.
    let courier = Promise.resolve();
    const bring = (certificatePem: string) =>
      deliver(() => peer.side.call('SupplyCertificate', { peer: own.info.name, certificatePem }), following).catch(
        (error: unknown) => {
          const { code, message, hint } = MeshError.from(error, 'bringing the certificate');
          undelivered = new MeshError({ code, message: `${peer.side.name}: ${message}`, hint });
          failure.abort();
        },
      );
    const end = await follow(own.side, own.operation!, {
      signal: following,
      terminal,
      onEvent: (event) => {
        own.lines.onEvent(event);
        const certificatePem = event.certificateForPeerPem;
        if (certificatePem === '' || certificatePem === certificate) return;
        certificate = certificatePem;
        courier = courier.then(() => bring(certificatePem));
      },
    });
    if (end?.state === 'failed') failure.abort();
    await courier;
    return end;
  };
  const ends = await Promise.all([run(a, b), run(b, a)]);
  terminal.progress('');
  const failed = ends.find((event) => event?.state === 'failed');
  if (failed !== undefined) {
    if (failed.step !== 'await-sync') await undo(a, b, terminal);
    throw failureOf(failed, ends[0] === failed ? a.side : b.side);
  }
  if (undelivered !== undefined) {
    await undo(a, b, terminal);
    throw undelivered;
  }
  if (ends.some((event) => event === undefined)) throw outOfTime();
  const connectedMs = now() - startedAt;
  const nodes = await Promise.all(
    readers.map((reader) => awaitApplied(reader.side, reader === a ? b.info.name : a.info.name, { signal, terminal })),
  );
  terminal.progress('');
  const pair = `${a.side.name} ${options.oneWay === true ? 'to' : 'and'} ${b.side.name}`;
  const behind = nodes.flatMap(({ missing }, index) =>
    missing === '' ? [] : [`${readers[index]!.side.name}: ${missing}`],
  );
  if (behind.length > 0) {
    if (options.signal.aborted) throw new MeshError({ code: 'cancelled', message: 'interrupted' });
    throw new OutOfTime({
      message: `connected ${pair}, but not everywhere within ${formatDuration(options.timeoutMs)}: ${behind.join('; ')}`,
      hint: 'the nodes go on by themselves; follow them with: clustermesh status --wait',
    });
  }
  const count = nodes.reduce((sum, { alive }) => sum + alive, 0);
  terminal.out(
    `connected ${pair} in ${formatDuration(connectedMs)}, applied on every node (${count}) after ${formatDuration(now() - startedAt)}`,
  );
}

const APPLIED_POLL_MS = 50;

/** Waits until every live node of `side` has applied what `peer` publishes. `missing`: what was not there when the time was over. */
export async function awaitApplied(
  side: Side,
  peer: string,
  { signal, terminal }: { readonly signal: AbortSignal; readonly terminal: Terminal },
): Promise<{ readonly alive: number; readonly missing: string }> {
  let missing = 'not configured';
  let alive = 0;
  while (!signal.aborted) {
    const status = await side.call('GetStatus', {}).catch((error: unknown) => {
      if (!isLost(error)) throw error;
      return undefined;
    });
    alive = status?.nodes.filter((node) => node.alive).length ?? alive;
    const info = status?.peers.find((known) => known.name === peer);
    if (info !== undefined) missing = missingOfPeer(info, alive) ?? '';
    if (missing === '') break;
    terminal.progress(`${side.name}: ${peer}: ${missing}`);
    await systemClock.sleep(APPLIED_POLL_MS, signal);
  }
  return { alive, missing };
}

/** How long taking back may take; what is not done by then goes on without us. */
const UNDO_MS = 10_000;

/** A connect that failed half way leaves no user and no waiting operation behind, unless the clusters were connected before. */
async function undo(a: Half, b: Half, terminal: Terminal): Promise<void> {
  const signal = AbortSignal.timeout(UNDO_MS);
  const one = async (own: Half, peer: Half): Promise<void> => {
    if (!own.isNew) return;
    try {
      const request = newRequest();
      const started = await whenPossible(own.side, { signal, terminal }, () =>
        own.side.call('StartDisconnect', { peer: peer.info.name, request }),
      );
      if (started !== undefined) await follow(own.side, started.id, { signal, terminal, onEvent: () => {} });
    } catch (error) {
      terminal.err(`${own.side.name}: what was begun could not be taken back: ${messageOf(error)}`);
    }
  };
  terminal.progress('taking back what was begun');
  await Promise.all([one(a, b), one(b, a)]);
  terminal.progress('');
}

export function failureOf(event: OperationEvent, side: Side): MeshError {
  return new MeshError({
    code: (event.errorCode || 'internal') as MeshError['code'],
    message: `${side.name}: ${event.message}`,
    hint: event.hint,
  });
}

export function describe(cluster: ClusterInfo): string {
  return `${cluster.name} (id ${cluster.id}${cluster.region === '' ? '' : `, ${cluster.region}`})`;
}
