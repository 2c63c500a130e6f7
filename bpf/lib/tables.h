/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who is where: remote addresses, our pods, nodes of the mesh. Written by the agent only. */
#ifndef CM_TABLES_H
#define CM_TABLES_H

#include "common.h"

/* Hosts (/32, /128): exact match, asked first; a trie costs 2 to 3 times as much at 500k rows. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 512 * 1024);
	__type(key, struct cm_addr);
	__type(value, struct cm_remote);
} cm_ipcache SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 64 * 1024);
	__type(key, struct cm_prefix);
	__type(value, struct cm_remote);
} cm_ipcache_lpm SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, struct cm_addr);
	__type(value, struct cm_endpoint);
} cm_endpoints SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 64 * 1024);
	__type(key, struct cm_addr);
	__type(value, struct cm_node);
} cm_nodes SEC(".maps");

static __always_inline struct cm_remote *ipcache_lookup(__be32 addr)
{
	struct cm_prefix key = { .prefix_len = CM_LPM_BASE + 32, .net = addr_v4(addr) };
	struct cm_remote *host = bpf_map_lookup_elem(&cm_ipcache, &key.net);

	return host ? host : bpf_map_lookup_elem(&cm_ipcache_lpm, &key);
}

static __always_inline struct cm_endpoint *endpoint_lookup(__be32 addr)
{
	struct cm_addr key = addr_v4(addr);

	return bpf_map_lookup_elem(&cm_endpoints, &key);
}

static __always_inline struct cm_node *node_lookup(__be32 addr)
{
	struct cm_addr key = addr_v4(addr);

	return bpf_map_lookup_elem(&cm_nodes, &key);
}

static __always_inline int is_own_host(__be32 addr)
{
	return addr == cm_settings.node_ip || addr == cm_settings.gateway_ip;
}

static __always_inline int is_own_pod_cidr(__be32 addr)
{
	return (addr & cm_settings.pod_mask) == cm_settings.pod_net;
}

#endif /* CM_TABLES_H */
