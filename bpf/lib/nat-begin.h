/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A flow from outside with a service begins: its backend, whom that takes for the client, and both
 * rows of cm_nat.
 *
 * A backend of this node sees the client. Another node's would answer the client past this node, so
 * it sees an address of this node: by the tunnel the gateway's, which is reached the same way back;
 * by routes the node's own.
 */
#ifndef CM_NAT_BEGIN_H
#define CM_NAT_BEGIN_H

#include "nat-table.h"
#include "tables.h"

/*
 * Source ports that are given to clients whose address is exchanged: below those that the kernel
 * gives to its own sockets (net.ipv4.ip_local_port_range begins at 32768), so that no connection of
 * this node to the same backend has the same.
 */
#define NAT_PORT_MIN 1024
#define NAT_PORTS    (32768 - NAT_PORT_MIN)
/* With three quarters of all ports to one backend taken, one flow in a hundred finds none. */
#define NAT_TRIES 16

/* The row of what comes back for draft->forward, as if the source port were `sport`. */
static __always_inline void nat_draft_reply(struct cm_nat_draft *draft, __be16 sport)
{
	struct cm_nat_entry *there = &draft->forward;

	__builtin_memset(&draft->reply_key, 0, sizeof(draft->reply_key));
	draft->reply_key.saddr = there->daddr;
	draft->reply_key.daddr = there->saddr;
	draft->reply_key.sport = there->dport;
	draft->reply_key.dport = sport;
	draft->reply_key.proto = draft->key.proto;

	__builtin_memset(&draft->reply, 0, sizeof(draft->reply));
	draft->reply.last_seen_ns = there->last_seen_ns;
	draft->reply.saddr = draft->key.daddr;
	draft->reply.sport = draft->key.dport;
	draft->reply.daddr = draft->key.saddr;
	draft->reply.dport = draft->key.sport;
	draft->reply.service_id = there->service_id;
	draft->reply.backend_id = there->backend_id;
	draft->reply.is_reply = 1;
}

/* What comes back this way comes back to nobody else. */
static __always_inline int nat_claim(struct cm_nat_draft *draft)
{
	const struct cm_nat_entry *held;

	if (!bpf_map_update_elem(&cm_nat, &draft->reply_key, &draft->reply, BPF_NOEXIST))
		return 1;
	held = bpf_map_lookup_elem(&cm_nat, &draft->reply_key);
	return held && held->is_reply && held->dport == draft->reply.dport &&
	       held->sport == draft->reply.sport && addr_equal(&held->daddr, &draft->reply.daddr) &&
	       addr_equal(&held->saddr, &draft->reply.saddr);
}

/*
 * Files the flow of draft->key to where draft->forward leads. Its source port is the client's own,
 * if the address is and no other flow has it; else one that is free. 0 or a reason.
 */
static __noinline int nat_file(struct cm_nat_draft *draft, __u32 hash)
{
	const int is_own = addr_equal(&draft->key.saddr, &draft->forward.saddr);
	const int is_fixed = draft->key.proto == IPPROTO_SCTP; /* its checksum covers ports */
	__be16 port = draft->key.sport;

	for (int i = 0; i < NAT_TRIES; i++) {
		if (!is_fixed && (i || !is_own))
			port = bpf_htons(NAT_PORT_MIN + hash % NAT_PORTS);
		nat_draft_reply(draft, port);
		if (nat_claim(draft)) {
			draft->forward.sport = port;
			return bpf_map_update_elem(&cm_nat, &draft->key, &draft->forward, BPF_ANY)
				       ? CM_R_WRITE_FAILED
				       : 0;
		}
		hash = bpf_get_prandom_u32();
	}
	return CM_R_NAT_EXHAUSTED;
}

/* Who the backend shall take for the client. */
static __always_inline void choose_source(struct cm_nat_entry *e, const struct packet *p)
{
	struct cm_remote *remote;

	e->saddr = p->saddr;
	if (endpoint_lookup(&e->daddr) || is_own_host(&e->daddr))
		return;
	remote = ipcache_lookup(&e->daddr);
	if (remote && is_tunnelled(remote))
		e->saddr = setting(p->is_v6 ? &cm_settings.ipv6.gateway_ip
					    : &cm_settings.ipv4.gateway_ip);
	else
		e->saddr =
			setting(p->is_v6 ? &cm_settings.ipv6.node_ip : &cm_settings.ipv4.node_ip);
}

static __always_inline struct lb_flow outside_flow(const struct packet *p)
{
	struct lb_flow flow = {
		.service = { .addr = p->daddr,
			     .port = p->dport,
			     .proto = p->proto,
			     .scope = CM_SCOPE_OUTSIDE },
	};

	return flow;
}

static __noinline int is_for_service(const struct packet *p)
{
	struct lb_flow flow = outside_flow(p);

	return service_lookup(&flow.service) != NULL;
}

/*
 * A flow begins: a backend is chosen and both rows are filed. 0 with `row` (a copy, for this
 * packet) or a reason.
 */
static __noinline int nat_begin(const struct packet *p, struct cm_nat_entry **row)
{
	struct lb_flow flow = outside_flow(p);
	struct cm_service *service = service_lookup(&flow.service);
	struct cm_nat_draft *draft = nat_draft();
	struct lb_backend lb = {};
	struct cm_nat_entry *e;
	int err;

	if (!service || !draft)
		return CM_R_NO_BACKEND;
	flow.hash = flow_hash(&p->saddr, p->sport, &p->daddr, p->dport, p->proto);
	err = lb_select(service, &flow, &p->saddr, &lb);
	if (err)
		return err;
	if (unlikely(service->affinity_s))
		affinity_keep(&p->saddr, &lb);

	nat_key(&draft->key, p);
	e = &draft->forward;
	__builtin_memset(e, 0, sizeof(*e));
	e->service_id = lb.service_id;
	e->backend_id = lb.backend_id;
	e->daddr = lb.addr;
	e->dport = lb.port;
	/* A pod that is gone, and still a backend for a moment. */
	if (is_own_pod_cidr(&e->daddr) && !endpoint_lookup(&e->daddr))
		return CM_R_NO_BACKEND;
	choose_source(e, p);
	if (addr_is_none(&e->saddr))
		return CM_R_NO_ROUTE;
	nat_see(e, p);
	*row = e;
	return nat_file(draft, flow.hash);
}

#endif /* CM_NAT_BEGIN_H */
