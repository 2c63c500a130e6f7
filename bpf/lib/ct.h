/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Conntrack: one LRU table for the flows of this node. A flow is filed in the direction of its
 * first packet; a reply finds it by the turned-round key. Entries have no timers: the kernel
 * recycles the longest unused ones, and the agent takes away what is over (datapath/garbage.ts).
 */
#ifndef CM_CT_H
#define CM_CT_H

#include "lb.h"
#include "packet.h"
#include "policy.h"

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

/* Keys and new entries are put together here: they would be a third of a program's stack. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct cm_ct_draft);
} cm_ct_scratch SEC(".maps");

static __always_inline struct cm_ct_draft *ct_draft(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&cm_ct_scratch, &zero);
}

static __always_inline void ct_turn(struct cm_ct_key *key)
{
	struct cm_addr saddr = key->saddr;
	__be16 sport = key->sport;

	key->saddr = key->daddr;
	key->daddr = saddr;
	key->sport = key->dport;
	key->dport = sport;
}

/* Under the key of the draft. `ends`: of a flow; the memory of a service's choice has none. */
static __noinline int ct_create(struct cm_ct_draft *draft, const struct packet *p,
				const struct ct_service *service, __u32 identity,
				const struct policy_ends *ends)
{
	struct cm_ct_entry *e = &draft->entry;

	__builtin_memset(e, 0, sizeof(*e));
	e->source_identity = identity;
	e->service_id = service->id;
	e->backend_id = service->backend_id;
	e->nat_addr = service->nat_addr;
	e->nat_port = service->nat_port;
	if (ends) {
		e->dest_identity = ends->dest.identity;
		e->egress_revision = ends->source.revision;
		e->ingress_revision = ends->dest.revision;
	}
	ct_see(e, p, 0);
	return bpf_map_update_elem(&cm_ct, &draft->key, e, BPF_ANY);
}

/* What policies are asked about: the receiver's port as the flow began; of ICMP the type. */
static __always_inline __be16 ct_policy_port(const struct packet *p, int reply)
{
	if (p->proto == IPPROTO_ICMP)
		return bpf_htons((reply ? ICMP_ECHO : p->icmp_type) << 8);
	if (p->proto == IPPROTO_ICMPV6)
		return bpf_htons((reply ? ICMPV6_ECHO : p->icmp_type) << 8);
	return reply ? p->sport : p->dport;
}

/*
 * May a known flow go on? Policies are asked only if they, or those at its ends, are others than
 * when they were asked last. A flow that may not stays known, or its other end could go on with it
 * as if it had begun it.
 */
static __always_inline int ct_admit(struct cm_ct_entry *e, const struct packet *p,
				    const struct policy_ends *ends, int reply)
{
	const struct policy_end *source = reply ? &ends->dest : &ends->source;
	const struct policy_end *dest = reply ? &ends->source : &ends->dest;
	int err;

	if (likely(e->egress_revision == source->revision &&
		   e->ingress_revision == dest->revision &&
		   e->source_identity == source->identity && e->dest_identity == dest->identity))
		return 0;
	err = policy_judge(ends, p->proto, ct_policy_port(p, reply), reply);
	if (err)
		return err;
	e->source_identity = source->identity;
	e->dest_identity = dest->identity;
	e->egress_revision = source->revision;
	e->ingress_revision = dest->revision;
	return 0;
}

/*
 * Account the packet to its flow, made if there is none and policies allow one. `service` says
 * which brought it here, and how the client wrote the destination. Returns 0, with `flow` set if the
 * packet is a reply of one, or the reason for which it may not pass.
 */
static __noinline __attribute__((unused)) int ct_track(const struct packet *p,
						       const struct ct_service *service,
						       const struct policy_ends *ends,
						       struct cm_ct_entry **flow)
{
	struct cm_ct_draft *draft = ct_draft();
	struct cm_ct_entry *e;
	int err;

	if (!draft)
		return CM_R_WRITE_FAILED;
	draft->key = ct_key(p, CM_CT_FLOW);
	e = bpf_map_lookup_elem(&cm_ct, &draft->key);
	/* The same ports again: a new connection, or the same backend reached by another way. */
	if (e && e->service_id == service->id &&
	    !(e->state == CM_CT_CLOSING && opens_connection(p))) {
		err = ct_admit(e, p, ends, 0);
		if (!err)
			ct_see(e, p, 0);
		return err;
	}
	if (!e && !service->id) {
		ct_turn(&draft->key);
		e = bpf_map_lookup_elem(&cm_ct, &draft->key);
		if (e && !(e->state == CM_CT_CLOSING && opens_connection(p))) {
			err = ct_admit(e, p, ends, 1);
			if (err)
				return err;
			ct_see(e, p, 1);
			*flow = e;
			return 0;
		}
		ct_turn(&draft->key);
	}
	err = policy_judge(ends, p->proto, ct_policy_port(p, 0), 0);
	if (err)
		return err;
	/* A late reply, filed as a flow of its own, would hide this flow from its replies. */
	if (service->id) {
		ct_turn(&draft->key);
		bpf_map_delete_elem(&cm_ct, &draft->key);
		ct_turn(&draft->key);
	}
	ct_create(draft, p, service, ends->source.identity, ends);
	return 0;
}

#endif /* CM_CT_H */
