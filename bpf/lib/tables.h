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

static __always_inline struct cm_remote *ipcache_lookup(const struct cm_addr *addr)
{
	struct cm_prefix key = { .prefix_len = 8 * sizeof(key.net), .net = *addr };
	struct cm_remote *host = bpf_map_lookup_elem(&cm_ipcache, addr);

	return host ? host : bpf_map_lookup_elem(&cm_ipcache_lpm, &key);
}

/* Is this address reached by encapsulating? */
static __always_inline int is_tunnelled(const struct cm_remote *r)
{
	return !(r->flags & CM_REMOTE_DIRECT) && !addr_is_none(&r->node);
}

/* Is this address none of the mesh's? The world, or a range of it that policies here name. */
static __always_inline int is_of_world(const struct cm_addr *addr, const struct cm_remote *r)
{
	return !r || (addr_is_none(&r->node) &&
		      (r->identity == world_of(addr) || r->identity > CM_IDENTITY_MASK));
}

static __always_inline struct cm_endpoint *endpoint_lookup(const struct cm_addr *addr)
{
	return bpf_map_lookup_elem(&cm_endpoints, addr);
}

static __always_inline struct cm_node *node_lookup(const struct cm_addr *addr)
{
	return bpf_map_lookup_elem(&cm_nodes, addr);
}

static __always_inline int is_setting(const volatile struct cm_addr *setting,
				      const struct cm_addr *addr)
{
	return setting->word[0] == addr->word[0] && setting->word[1] == addr->word[1] &&
	       setting->word[2] == addr->word[2] && setting->word[3] == addr->word[3];
}

static __always_inline struct cm_addr setting(const volatile struct cm_addr *setting)
{
	struct cm_addr a = { .word = { setting->word[0], setting->word[1], setting->word[2],
				       setting->word[3] } };

	return a;
}

/* Settings that are none equal no packet's source or destination. */
static __always_inline int is_own_host(const struct cm_addr *addr)
{
	return is_setting(&cm_settings.ipv4.node_ip, addr) ||
	       is_setting(&cm_settings.ipv4.gateway_ip, addr) ||
	       is_setting(&cm_settings.ipv6.node_ip, addr) ||
	       is_setting(&cm_settings.ipv6.gateway_ip, addr);
}

static __always_inline int is_in(const volatile struct cm_addr *net,
				 const volatile struct cm_addr *mask, const struct cm_addr *addr)
{
	/* without a prefix of this family the mask is none */
	return mask->word[0] && (addr->word[0] & mask->word[0]) == net->word[0] &&
	       (addr->word[1] & mask->word[1]) == net->word[1] &&
	       (addr->word[2] & mask->word[2]) == net->word[2] &&
	       (addr->word[3] & mask->word[3]) == net->word[3];
}

static __always_inline int is_own_pod_cidr(const struct cm_addr *addr)
{
	return is_in(&cm_settings.ipv4.pod_net, &cm_settings.ipv4.pod_mask, addr) ||
	       is_in(&cm_settings.ipv6.pod_net, &cm_settings.ipv6.pod_mask, addr);
}

#endif /* CM_TABLES_H */
