/** RFC3339 with milliseconds: of moments that durations are measured from. */
export function rfc3339Ms(epochMs: number): string {
  return new Date(epochMs).toISOString();
}

/** RFC3339 with second precision, as canaries and the heartbeat carry it; readers do not parse it (wire-contract §1.1). */
export function rfc3339(epochMs: number): string {
  return new Date(epochMs).toISOString().replace(/\.\d{3}Z$/, 'Z');
}
