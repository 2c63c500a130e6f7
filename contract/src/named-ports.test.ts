import assert from 'node:assert/strict';
import { test } from 'node:test';
import { decodeIpEntry, encodeIpEntry, namedPortsOfEntry } from './ip-entry.ts';
import { type NamedPort, namedPortSchema, namedPortTable } from './named-ports.ts';

const http: NamedPort = { name: 'http', port: 8080, protocol: 'TCP' };

test('names of ports are those that Kubernetes takes', () => {
  for (const name of ['http', 'a', 'metrics-2', '9p', 'abcdefghijklmno'])
    assert.ok(namedPortSchema.safeParse({ ...http, name }).success, name);
  for (const name of ['', 'HTTP', '80', '-a', 'a-', 'a--b', 'abcdefghijklmnop', 'a_b'])
    assert.ok(!namedPortSchema.safeParse({ ...http, name }).success, name);
  for (const port of [0, 65_536, 1.5]) assert.ok(!namedPortSchema.safeParse({ ...http, port }).success, `${port}`);
});

test('a name is looked up with its protocol, and the first of two equal ones counts', () => {
  const dns: NamedPort = { name: 'dns', port: 53, protocol: 'UDP' };
  const table = namedPortTable([http, dns, { ...dns, port: 5353 }]);
  assert.deepEqual(
    [...(table ?? [])],
    [
      ['TCP/http', 8080],
      ['UDP/dns', 53],
    ],
  );
  assert.equal(namedPortTable([]), undefined);
  assert.equal(namedPortTable(undefined), undefined);
});

test("travels in an ip entry under Cilium's names, and what is malformed in there is left out", () => {
  const entry = { IP: '10.1.1.5', HostIP: '172.31.1.11', ID: 70_000, Key: 0, Metadata: '' };
  const told = encodeIpEntry({ ...entry, NamedPorts: [{ Name: 'http', Port: 8080, Protocol: 'TCP' }] });
  const decoded = decodeIpEntry(told);
  assert.ok(decoded.ok);
  assert.deepEqual(namedPortsOfEntry(decoded.value), [http]);
  for (const wrong of [
    { Name: 'http', Port: 70_000, Protocol: 'TCP' },
    { Name: 'HTTP!', Port: 80, Protocol: 'TCP' },
    { Name: 'http', Port: 80, Protocol: 'GRE' },
  ])
    assert.deepEqual(namedPortsOfEntry({ ...entry, NamedPorts: [wrong] }), []);
  assert.deepEqual(namedPortsOfEntry({ ...entry, NamedPorts: null }), []);
});
