export {
  type CertificateAuthority,
  type CertificateFacts,
  certificateFacts,
  certificatesIn,
  isIssuedBy,
  isKeyOf,
  issuedAtMs,
  type KeyAndCertificate,
  parseCertificate,
} from './certificate.ts';
export { type ClusterPki, type ClusterPkiOptions, ensureClusterPki, tornLeaves, whyIssue } from './cluster-pki.ts';
export { createCrl, normalSerial, readCrl, serialOf } from './crl.ts';
export { createCsr, createKeyAndCsr, signCsr } from './csr.ts';
export { loadCa, loadCaBundle } from './files.ts';
export { type HeldFiles, heldTrust, trustView } from './held-trust.ts';
export { importCa } from './import-ca.ts';
export { createCa, issueClient, issueServer } from './issue.ts';
export * from './names.ts';
export {
  crlFile,
  issuePeerCertificate,
  readLedger,
  revokePeerCertificates,
  writeCrl,
} from './peer-certificates.ts';
export { fetchPinnedCa } from './pinned-ca.ts';
export * from './renewal.ts';
export { nextCa, rotateCa, rotationPhase } from './rotation.ts';
export * from './token.ts';
