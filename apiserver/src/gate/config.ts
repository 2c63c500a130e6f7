/** gate.yaml. A field's comment is its help text. */
import { clusterNameProblem } from '@clustermesh/contract';
import { z } from 'zod';

const path = z.string().min(1);
const port = z.number().int().min(0).max(65535);
const count = z.number().int().min(1);

export const AUTH_MODES = ['legacy', 'migration', 'cluster'] as const;
/**
 * Which common names peers log in with (wire-contract §7): `legacy` all with `remote`, `cluster` each with `remote-<peer>`, and
 * `migration` either. With `remote` there is one user for all, so that no single peer can be revoked.
 */
export type AuthMode = (typeof AUTH_MODES)[number];

export const gateSchema = z.strictObject({
  /** This cluster's name, for logs and metrics. */
  cluster: z.string().refine((name) => clusterNameProblem(name) === undefined, 'is no cluster name'),
  /** Where peers connect: what `advertise.endpoints` of apiserver.yaml leads to. */
  listen: z.strictObject({ host: z.string().default('::'), port }),
  /** etcd's server certificate, and the CAs whose client certificates are accepted. All are read again when they change. */
  tls: z.strictObject({ caFile: path, certFile: path, keyFile: path }),
  /** This cluster's etcd, as user gate-<cluster>. */
  etcd: z.strictObject({
    host: z.string().default('127.0.0.1'),
    port: port.default(2379),
    caFile: path,
    certFile: path,
    keyFile: path,
  }),
  /** Watched: who is let in. */
  usersFile: path,
  /** Watched: certificates that are let in no more (`<pki dir>/crl.pem`). */
  crlFile: path,
  authMode: z.enum(AUTH_MODES).default('migration'),
  limits: z
    .strictObject({
      /** Connections of one peer at a time. */
      perPeer: count.default(64),
      /** Connections in all, also those that have not said yet whose they are. */
      total: count.default(4096),
      /** How long a connection may take to say whose it is. */
      handshakeMs: count.default(10_000),
    })
    .prefault({}),
  /** Health and metrics. */
  http: z.strictObject({
    host: z.string().default('127.0.0.1'),
    port,
    /** On another host than loopback: the bearer token without which only /healthz is answered. */
    tokenFile: path.optional(),
  }),
});

export type GateConfig = Readonly<z.infer<typeof gateSchema>>;
