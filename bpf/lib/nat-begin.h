/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A flow from outside with a service begins: its backend, whom that takes for the client, and both
 * rows of cm_nat.
 *
 * A backend of this node sees the client. Another node's would answer the client past this node, so
 * it sees an address of this node: by the tunnel the gateway's, which is reached the same way back;
 * by routes the node's own. Unless it shall answer past this node: then, too, it sees the client,
 * if that is one of the world and its port is free (nat-file.h).
 */
#ifndef CM_NAT_BEGIN_H
#define CM_NAT_BEGIN_H

#include "nat-file.h"
#include "tables.h"

/* May the backend's node answer the client itself? It must be one that we can tell the service. */
static __always_inline int may_return_directly(const struct cm_nat_entry *e, const struct packet *p)
{
	struct cm_remote *backend;

	if (!cm_settings.is_dsr || endpoint_lookup(&e->daddr))
		return 0;
	backend = ipcache_lookup(&e->daddr);
	return backend && !addr_is_none(&backend->node) &&
	       is_of_world(&p->saddr, ipcache_lookup(&p->saddr));
}

/*
 * As nat_file(), but the client's address and port stay. 0 or a reason: where another flow's
 * answers are alike, these have to come back here after all.
 */
static __noinline int nat_file_directly(struct cm_nat_draft *draft)
{
	draft->forward.is_dsr = 1;
	draft->forward.saddr = draft->key.saddr;
	draft->forward.sport = draft->key.sport;
	nat_draft_reply(draft, draft->key.sport);
	if (nat_claim(draft))
		return nat_write(draft);
	draft->forward.is_dsr = 0;
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
	nat_see(e, p);
	*row = e;
	if (may_return_directly(e, p) && !nat_file_directly(draft))
		return 0;
	choose_source(e, p);
	if (addr_is_none(&e->saddr))
		return CM_R_NO_ROUTE;
	return nat_file(draft, flow.hash);
}

#define NAT_MEND_SHIFT 30 /* in so many bits of nanoseconds, about a second, it is seen to once */

/*
 * Are answers to a flow of draft->key still known? Its two rows grow old apart: when the map is
 * full, the kernel may have taken the one for answers while the client went on sending. Then it is
 * filed again. 0: it cannot be, another flow has its port.
 */
static __noinline int nat_is_whole(struct cm_nat_draft *draft, const struct cm_nat_entry *e)
{
	if (likely(!((bpf_ktime_get_ns() ^ e->last_seen_ns) >> NAT_MEND_SHIFT)))
		return 1;
	draft->forward = *e;
	nat_draft_reply(draft, e->sport);
	return nat_claim(draft);
}

#endif /* CM_NAT_BEGIN_H */
