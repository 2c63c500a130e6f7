export * from './cidr.ts';
export * from './cilium.ts';
export * from './kubernetes.ts';
export * from './model.ts';
export * from './selector.ts';
