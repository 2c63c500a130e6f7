/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Service tables: frontend -> (service id, generation, count) -> slot -> backend id -> address.
 *
 * How slots are filled is up to the agent: each backend once, or a Maglev table. Here a flow's hash
 * leads to a slot, so that the same table gives the same backend on every node.
 *
 * A set of slots is rows of one hash table under a number of its own, not a map of its own in a map
 * of maps: that one waits for RCU with every table swapped, needs a file descriptor and some 300
 * bytes for each, and gives a service with two backends a map, too.
 *
 * The agent writes new backends, then all slots under a new generation, then the service row, and
 * only then removes what the old row named. Whoever reads a row therefore finds its slots complete,
 * except between the read of an old row and the removal of its slots: lb_select() then reads once
 * more.
 *
 * Generations are unique over all services, so a row that was read while the kernel reused its
 * memory cannot name slots of another service.
 */
#ifndef CM_LB_H
#define CM_LB_H

#include <linux/in.h>
#include "common.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 64 * 1024);
	__type(key, struct cm_service_key);
	__type(value, struct cm_service);
} cm_services SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024 * 1024);
	__type(key, struct cm_block_key);
	__type(value, struct cm_block);
} cm_slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 256 * 1024);
	__type(key, __u32);
	__type(value, struct cm_backend);
} cm_backends SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 512 * 1024);
	__type(key, struct cm_member_key);
	__type(value, __u32); /* always 1 */
} cm_members SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 64 * 1024);
	__type(key, struct cm_affinity_key);
	__type(value, struct cm_affinity);
} cm_affinity SEC(".maps");

struct lb_backend {
	__u32 service_id;
	__u32 backend_id;
	struct cm_addr addr;
	__be16 port;
};

/* Who asks for a backend, and of which service */
struct lb_flow {
	struct cm_service_key service;
	__u32 hash; /* of one flow always the same: decides on the slot */
};

static __always_inline struct cm_service *service_lookup(const struct cm_service_key *key)
{
	return bpf_map_lookup_elem(&cm_services, key);
}

static __always_inline __u32 rotate_left(__u32 x, int by)
{
	return x << by | x >> (32 - by);
}

/* MurmurHash3 (x86, 32 bit, seed 0) of words. Nodes agree on a flow's slot by it: never to change. */
static __always_inline __u32 hash_words(const __u32 *words, int n)
{
	__u32 h = 0;
	int i;

#pragma unroll
	for (i = 0; i < n; i++) {
		h ^= rotate_left(words[i] * 0xcc9e2d51, 15) * 0x1b873593;
		h = rotate_left(h, 13) * 5 + 0xe6546b64;
	}
	h ^= n * 4;
	h = (h ^ h >> 16) * 0x85ebca6b;
	h = (h ^ h >> 13) * 0xc2b2ae35;
	return h ^ h >> 16;
}

static __always_inline __u32 flow_hash(const struct cm_addr *saddr, __be16 sport,
				       const struct cm_addr *daddr, __be16 dport, __u8 proto)
{
	const __u32 words[] = {
		saddr->word[0], saddr->word[1], saddr->word[2], saddr->word[3],
		daddr->word[0], daddr->word[1], daddr->word[2], daddr->word[3],
		(__u32)sport << 16 | dport, proto,
	};

	return hash_words(words, sizeof(words) / sizeof(words[0]));
}

static __always_inline int lb_backend_by_id(const struct cm_service *service, __u32 id,
					    struct lb_backend *out)
{
	struct cm_backend *backend = bpf_map_lookup_elem(&cm_backends, &id);

	if (!backend)
		return CM_R_STALE_TABLES;
	out->service_id = service->id;
	out->backend_id = id;
	out->addr = backend->addr;
	out->port = backend->port;
	return 0;
}

/* The backend of a hash's slot. 0, or CM_R_STALE_TABLES if row and slots do not fit together. */
static __always_inline int lb_pick(const struct cm_service *service, __u32 hash,
				   struct lb_backend *out)
{
	struct cm_block_key key = {
		.service_id = service->id,
		.generation = service->generation,
	};
	__u32 slots = service->count;
	struct cm_block *block;
	__u32 slot;

	if (!slots)
		return CM_R_NO_BACKEND;
	slot = hash % slots;
	key.block = slot / CM_BLOCK_SLOTS;
	block = bpf_map_lookup_elem(&cm_slots, &key);
	if (!block)
		return CM_R_STALE_TABLES;
	slot %= CM_BLOCK_SLOTS;
	barrier_var(slot); /* clang knows its bound, the verifier does not */
	if (slot >= CM_BLOCK_SLOTS)
		return CM_R_STALE_TABLES;
	return lb_backend_by_id(service, block->backend[slot], out);
}

/* Is the backend one that new flows of the service may get? */
static __always_inline int lb_is_member(__u32 service_id, __u32 backend_id)
{
	struct cm_member_key key = { .service_id = service_id, .backend_id = backend_id };

	return bpf_map_lookup_elem(&cm_members, &key) != NULL;
}

#define NS_PER_S	   1000000000ull
#define AFFINITY_REFRESH_S 1 /* a row that is fresher is not written again */

/*
 * Functions of their own, here and below, for the sake of stack frames: the kernel allows 512 bytes
 * along a chain of calls, and the callers of lb_select() have used most of them.
 */
#define OWN_FRAME static __noinline __attribute__((unused))

/* The client's backend, if it has one that the service still has, or 0. */
OWN_FRAME __u32 affinity_recall(const struct cm_service *service, const struct cm_addr *client)
{
	struct cm_affinity_key key = { .client = *client, .service_id = service->id };
	struct cm_affinity *mine = bpf_map_lookup_elem(&cm_affinity, &key);
	__u64 now = bpf_ktime_get_ns();

	if (!mine || now - mine->last_used_ns > service->affinity_s * NS_PER_S ||
	    !lb_is_member(service->id, mine->backend_id))
		return 0;
	if (now - mine->last_used_ns > AFFINITY_REFRESH_S * NS_PER_S)
		mine->last_used_ns = now;
	return mine->backend_id;
}

/* After lb_select(), where the service has affinity: not within it, for the depth of the stack. */
OWN_FRAME int affinity_keep(const struct cm_addr *client, const struct lb_backend *lb)
{
	struct cm_affinity_key key = { .client = *client, .service_id = lb->service_id };
	struct cm_affinity mine = {
		.last_used_ns = bpf_ktime_get_ns(),
		.backend_id = lb->backend_id,
	};

	return bpf_map_update_elem(&cm_affinity, &key, &mine, BPF_ANY);
}

/*
 * 0 with `out` filled in, or CM_R_NO_BACKEND, or CM_R_STALE_TABLES. Row and slots may not fit
 * together when a swap comes in between: then once more, with the row that is there now.
 */
OWN_FRAME int lb_select(const struct cm_service *service, const struct lb_flow *flow,
			const struct cm_addr *client, struct lb_backend *out)
{
	int err = CM_R_NO_BACKEND;
	__u32 kept;
	int attempt;

	for (attempt = 0; service && attempt < 2; attempt++) {
		kept = unlikely(service->affinity_s) ? affinity_recall(service, client) : 0;
		if (kept && !lb_backend_by_id(service, kept, out))
			return 0;
		err = lb_pick(service, flow->hash, out);
		if (likely(err != CM_R_STALE_TABLES))
			return err;
		service = service_lookup(&flow->service);
	}
	return service ? err : CM_R_NO_BACKEND;
}

/* Does this id still stand for this address? Ids are given again once they are free. */
static __always_inline int lb_backend_is(__u32 id, const struct cm_addr *addr, __be16 port)
{
	struct cm_backend *backend = bpf_map_lookup_elem(&cm_backends, &id);

	return backend && addr_equal(&backend->addr, addr) && backend->port == port;
}

/*
 * May a flow stay with the backend it was given? 0, or CM_R_NO_BACKEND: it needs another, or
 * CM_R_BACKEND_GONE: it cannot have another. `begins`: with a TCP SYN; `closing`: it has ended.
 *
 * A connection lives and dies with its backend, also while that one only drains or is not chosen
 * for the moment. Datagrams, and a connection that begins anew, go where the service is now.
 */
static __always_inline int lb_keeps(__u32 service_id, __u32 backend_id, const struct cm_addr *addr,
				    __be16 port, __u8 proto, int begins, int closing)
{
	int is_there = lb_backend_is(backend_id, addr, port);

	if (proto == IPPROTO_TCP && !begins)
		return is_there ? 0 : CM_R_BACKEND_GONE;
	if (proto == IPPROTO_SCTP && is_there)
		return 0;
	return is_there && !closing && lb_is_member(service_id, backend_id) ? 0 : CM_R_NO_BACKEND;
}

#endif /* CM_LB_H */
