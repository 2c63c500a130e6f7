/** etcd takes requests of 1.5 MiB; what is left of that for one value beside its key and the conditions of the transaction. */
export const MAX_VALUE_BYTES = 1.5 * 1024 * 1024 - 4096;

export const mib = (bytes: number) => `${(bytes / 1024 / 1024).toFixed(2)} MiB`;
