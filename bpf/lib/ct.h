/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Conntrack: one LRU table for the flows of this node. A flow is filed in the direction of its
 * first packet; a reply finds it by the turned-round key. Entries have no timers: the kernel
 * recycles the longest unused ones.
 */
#ifndef CM_CT_H
#define CM_CT_H

#include "lb.h"
#include "packet.h"

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 64 * 1024);
	__type(key, struct cm_ct_key);
	__type(value, struct cm_ct_entry);
} cm_ct SEC(".maps");

static __always_inline struct cm_ct_key ct_key(const struct packet *p, enum cm_ct_kind kind)
{
	struct cm_ct_key key = {
		.saddr = p->saddr,
		.daddr = p->daddr,
		.sport = p->sport,
		.dport = p->dport,
		.proto = p->proto,
		.kind = kind,
	};

	return key;
}

static __always_inline struct cm_ct_key ct_reversed(const struct cm_ct_key *k)
{
	struct cm_ct_key key = {
		.saddr = k->daddr,
		.daddr = k->saddr,
		.sport = k->dport,
		.dport = k->sport,
		.proto = k->proto,
		.kind = k->kind,
	};

	return key;
}

static __always_inline int opens_connection(const struct packet *p)
{
	return p->proto == IPPROTO_TCP && (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

static __always_inline void ct_see(struct cm_ct_entry *e, const struct packet *p, int reply)
{
	e->last_seen_ns = bpf_ktime_get_ns();
	if (p->proto == IPPROTO_TCP && (p->tcp_flags & (TCP_FIN | TCP_RST)))
		e->state = CM_CT_CLOSING;
	else if (reply && e->state == CM_CT_NEW)
		e->state = CM_CT_ESTABLISHED;

	/* Both directions may run on different CPUs: each has its own counters. */
	if (reply) {
		__sync_fetch_and_add(&e->rx_packets, 1);
		__sync_fetch_and_add(&e->rx_bytes, p->bytes);
	} else {
		__sync_fetch_and_add(&e->tx_packets, 1);
		__sync_fetch_and_add(&e->tx_bytes, p->bytes);
	}
}

/* The service that a flow was balanced for (id 0: none), and what its entry shall translate to. */
struct ct_service {
	__u32 id;
	__u32 backend_id;
	struct cm_addr nat_addr;
	__be16 nat_port;
};

static __noinline int ct_create(const struct cm_ct_key *key, const struct packet *p,
				const struct ct_service *service, __u32 identity)
{
	struct cm_ct_entry e = {
		.source_identity = identity,
		.service_id = service->id,
		.backend_id = service->backend_id,
		.nat_addr = service->nat_addr,
		.nat_port = service->nat_port,
	};

	ct_see(&e, p, 0);
	return bpf_map_update_elem(&cm_ct, key, &e, BPF_ANY);
}

/*
 * Account the packet to its flow, made if there is none. `service` says which brought it here, and
 * how the client wrote the destination. Returns the flow if the packet is a reply of one, else
 * NULL.
 */
static __noinline struct cm_ct_entry *ct_track(const struct packet *p,
					       const struct ct_service *service, __u32 identity)
{
	struct cm_ct_key key = ct_key(p, CM_CT_FLOW);
	struct cm_ct_key reversed = ct_reversed(&key);
	struct cm_ct_entry *e = bpf_map_lookup_elem(&cm_ct, &key);

	/* The same ports again: a new connection, or the same backend reached by another way. */
	if (e && e->service_id == service->id &&
	    !(e->state == CM_CT_CLOSING && opens_connection(p))) {
		ct_see(e, p, 0);
		return NULL;
	}
	if (!e && !service->id) {
		e = bpf_map_lookup_elem(&cm_ct, &reversed);
		if (e && !(e->state == CM_CT_CLOSING && opens_connection(p))) {
			ct_see(e, p, 1);
			return e;
		}
	}
	/* A late reply, filed as a flow of its own, would hide this flow from its replies. */
	if (service->id)
		bpf_map_delete_elem(&cm_ct, &reversed);
	ct_create(&key, p, service, identity);
	return NULL;
}

#endif /* CM_CT_H */
