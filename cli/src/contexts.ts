/**
 * A context names a cluster. A standalone cluster's context is the name of its handle file:
 *
 *   a path that ends in .yaml or .yml
 *   NAME            NAME.yaml in a directory of $CLUSTERMESH_CONTEXTS (a list with ":", the first wins), then in
 *                   /etc/clustermesh/contexts, then in the contexts directory of the labs that run on this machine
 *   INSTANCE/NAME   the lab INSTANCE's cluster NAME
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { MeshError, messageOf } from '@clustermesh/contract';
import { parse } from 'yaml';
import { z } from 'zod';
import { UsageError } from './exit-codes.ts';

const handleSchema = z.looseObject({
  name: z.string().min(1),
  id: z.number().int(),
  /** Where the apiserver serves: `unix:///path`. */
  apiserver: z.string().min(1),
  agents: z.record(z.string(), z.string()).default({}),
});

export interface Context {
  /** As it was asked for. */
  readonly name: string;
  readonly file: string;
  /** The cluster's own name. */
  readonly cluster: string;
  readonly id: number;
  readonly apiserver: string;
  readonly agents: Readonly<Record<string, string>>;
}

/** Where contexts are looked for; tests give their own. */
export interface ContextPlaces {
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly etcDir?: string;
  /** Parent of the labs' `cm-<instance>` directories. */
  readonly runDir?: string;
  readonly home?: string;
}

interface Found {
  /** The shortest name that means this file and no other. */
  readonly name: string;
  readonly file: string;
}

const isYaml = (name: string): boolean => /\.ya?ml$/.test(name);

export function resolveContext(name: string, places: ContextPlaces): Context {
  if (isYaml(name)) {
    if (!existsSync(name))
      throw new UsageError({ code: 'not-found', message: `reading the context ${name}: there is no such file` });
    return readHandle(name, name);
  }
  for (const dir of fixedDirs(places)) {
    const file = handleIn(dir, name);
    if (file !== undefined) return readHandle(name, file);
  }
  const labs = labHandles(places).filter((lab) => lab.name === name || lab.name.endsWith(`/${name}`));
  if (labs.length > 1) {
    throw new UsageError({
      code: 'conflict',
      message: `the context ${name} is ambiguous: ${labs.length} labs on this machine have a cluster of that name`,
      hint: `name one of: ${labs.map((lab) => lab.name).join(', ')}`,
    });
  }
  const [only] = labs;
  if (only !== undefined) return readHandle(name, only.file);
  throw unknownContext(name, places);
}

/** All contexts that can be found; of equal names only the one that `resolveContext` takes. */
export function listContexts(places: ContextPlaces): Context[] {
  const found = new Map<string, Found>();
  for (const dir of fixedDirs(places)) {
    for (const file of yamlFiles(dir)) {
      const name = file.replace(/\.ya?ml$/, '');
      if (!found.has(name)) found.set(name, { name, file: join(dir, file) });
    }
  }
  const labs = labHandles(places);
  for (const lab of labs) {
    const short = lab.name.slice(lab.name.indexOf('/') + 1);
    const unique = !found.has(short) && labs.filter((other) => other.name.endsWith(`/${short}`)).length === 1;
    found.set(unique ? short : lab.name, { name: unique ? short : lab.name, file: lab.file });
  }
  return [...found.values()].sort((a, b) => (a.name < b.name ? -1 : 1)).map(({ name, file }) => readHandle(name, file));
}

function unknownContext(name: string, places: ContextPlaces): UsageError {
  if (kubernetesContexts(places).includes(name)) {
    return new UsageError({
      code: 'unsupported',
      message: `the context ${name} is a Kubernetes context: this release manages standalone clusters only`,
      hint: 'name the handle file of a standalone cluster; Kubernetes clusters are connected with the Cilium CLI until then',
    });
  }
  const known = safeList(places);
  return new UsageError({
    code: 'not-found',
    message: `there is no context ${name}`,
    hint:
      known.length > 0
        ? `known contexts: ${known.join(', ')}`
        : 'no cluster was found: start a lab (npm start, or npm run lab -- up), or set CLUSTERMESH_CONTEXTS to the directory of the handle files',
  });
}

function safeList(places: ContextPlaces): string[] {
  try {
    return listContexts(places).map((context) => context.name);
  } catch {
    // A broken handle file is not what was asked about.
    return [];
  }
}

function readHandle(name: string, file: string): Context {
  let raw: unknown;
  try {
    raw = parse(readFileSync(file, 'utf8'));
  } catch (error) {
    throw new MeshError({
      code: 'invalid-config',
      message: `reading the handle file ${file}: ${messageOf(error)}`,
      cause: error,
    });
  }
  const parsed = handleSchema.safeParse(raw);
  if (!parsed.success) {
    const problems = parsed.error.issues.map((issue) => `${issue.path.join('.') || '(file)'}: ${issue.message}`);
    throw new MeshError({
      code: 'invalid-config',
      message: `reading the handle file ${file}: ${problems.join('; ')}`,
      hint: 'it needs name, id and apiserver',
    });
  }
  return {
    name,
    file,
    cluster: parsed.data.name,
    id: parsed.data.id,
    apiserver: parsed.data.apiserver,
    agents: parsed.data.agents,
  };
}

function fixedDirs(places: ContextPlaces): string[] {
  const listed = (places.env['CLUSTERMESH_CONTEXTS'] ?? '').split(':').filter((dir) => dir !== '');
  return [...listed, places.etcDir ?? '/etc/clustermesh/contexts'];
}

function labHandles(places: ContextPlaces): Found[] {
  const runDir = places.runDir ?? '/run';
  if (!existsSync(runDir)) return [];
  return readdirSync(runDir)
    .filter((name) => name.startsWith('cm-'))
    .sort()
    .flatMap((instance) => {
      const dir = join(runDir, instance, 'contexts');
      return yamlFiles(dir).map((file) => ({
        name: `${instance.slice('cm-'.length)}/${file.replace(/\.ya?ml$/, '')}`,
        file: join(dir, file),
      }));
    });
}

function handleIn(dir: string, name: string): string | undefined {
  // A context is a file of the directory, never a path out of it.
  return yamlFiles(dir)
    .filter((file) => file.replace(/\.ya?ml$/, '') === name)
    .map((file) => join(dir, file))[0];
}

function yamlFiles(dir: string): string[] {
  if (!existsSync(dir)) return [];
  return readdirSync(dir)
    .filter((file) => isYaml(file) && !file.startsWith('.'))
    .sort();
}

function kubernetesContexts(places: ContextPlaces): string[] {
  const files = places.env['KUBECONFIG']?.split(':') ?? [join(places.home ?? homedir(), '.kube', 'config')];
  return files
    .filter((file) => file !== '' && existsSync(file))
    .flatMap((file) => {
      try {
        const config = parse(readFileSync(file, 'utf8')) as { contexts?: { name?: unknown }[] } | null;
        return (config?.contexts ?? []).map((context) => String(context.name));
      } catch {
        return [];
      }
    });
}
