import assert from 'node:assert/strict';
import { test } from 'node:test';
import { expandVariables, objectName, parseObjects } from './objects.ts';

const problems = (text: string) =>
  parseObjects(text, 'f.yaml').flatMap((document) =>
    'problem' in document ? [`${document.at}: ${document.problem}`] : [],
  );
const objects = (text: string) =>
  parseObjects(text, 'f.yaml').flatMap((document) => ('object' in document ? [document.object] : []));

test('a bad document is reported with its line and disturbs no other', () => {
  const text = `kind: Nonsense
---
apiVersion: v1
kind: Namespace
metadata: { name: web }
---
a: [b
---
kind: Pod
metadata: { name: UPPER }
---
kind: Pod
metadata: { name: p }
spec: { containers: [{ image: nginx }] }
`;
  assert.deepEqual(objects(text).map(objectName), ['Namespace web']);
  const found = problems(text);
  assert.equal(found.length, 4, found.join('\n'));
  assert.match(found[0] ?? '', /^f\.yaml:1: kind "Nonsense" is not supported/);
  assert.match(found[1] ?? '', /no valid YAML/);
  assert.match(found[2] ?? '', /metadata\.name/);
  assert.match(found[3] ?? '', /spec\.containers\.0\.command/);
});

test('a Service passes through as written, its namespace filled in', () => {
  const text =
    'kind: Service\nmetadata: { name: s, annotations: { service.cilium.io/affinity: nonsense } }\nspec: { ports: 7 }\n';
  const [service] = objects(text);
  assert.deepEqual(service?.raw, {
    kind: 'Service',
    metadata: { name: 's', annotations: { 'service.cilium.io/affinity': 'nonsense' }, namespace: 'default' },
    spec: { ports: 7 },
  });
});

test('an empty file and empty documents are nothing', () => {
  assert.deepEqual(parseObjects('', 'f'), []);
  assert.deepEqual(parseObjects('# only a comment\n---\n---\n', 'f'), []);
});

test('expands known variables only', () => {
  assert.equal(expandVariables('http://$(POD_IP):80/$(OTHER)', { POD_IP: '10.1.1.2' }), 'http://10.1.1.2:80/$(OTHER)');
});
