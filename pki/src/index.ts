export {
  type CertificateAuthority,
  type CertificateFacts,
  certificateFacts,
  isIssuedBy,
  isKeyOf,
  type KeyAndCertificate,
  parseCertificate,
} from './certificate.ts';
export { type ClusterPki, type ClusterPkiOptions, ensureClusterPki, loadCa, whyIssue } from './cluster-pki.ts';
export { createCsr, createKeyAndCsr, signCsr } from './csr.ts';
export { createCa, issueClient, issueServer } from './issue.ts';
export * from './names.ts';
export * from './token.ts';
