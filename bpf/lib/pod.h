/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Bodies of the two programs at the host end of a pod's veth. */
#ifndef CM_POD_H
#define CM_POD_H

#include "answer.h"
#include "verdict.h"

/* The service is known and has nobody: say so to the client at once. */
static __always_inline enum cm_reason reject(struct __sk_buff *skb, const struct packet *p,
					     struct cm_decision *d, const struct cm_endpoint *src)
{
	int err = p->proto == IPPROTO_TCP ? answer_reset(skb, p)
					  : answer_unreachable(skb, p, ICMP_PORT_UNREACH);

	return err ? err : to_endpoint(skb, d, src, CM_R_NO_BACKEND);
}

/* May the flow stay with the backend it was given? */
static __always_inline int ct_backend_holds(const struct cm_ct_entry *e, const struct packet *p,
					    __u32 service_id)
{
	if (e->service_id != service_id)
		return 0;
	/*
	 * A TCP connection lives and dies with its backend, also while that is only draining: if it
	 * is really gone, its node answers. New connections and datagrams go where the service is
	 * now.
	 */
	if (p->proto == IPPROTO_TCP && !opens_connection(p))
		return 1;
	return e->state != CM_CT_CLOSING && lb_backend_is(e->backend_id, &e->nat_addr, e->nat_port);
}

/*
 * Per-packet load balancing, for what the socket programs did not see. Service found: `lb` is
 * filled in and the packet readdressed. Returns 0 or a reason to go no further.
 */
static __always_inline int balance(struct __sk_buff *skb, struct packet *p, __u32 identity,
				   struct lb_backend *lb)
{
	struct cm_ct_key key = ct_key(p, CM_CT_SERVICE);
	struct lb_flow flow = {
		.addr = p->daddr,
		.port = p->dport,
		.proto = p->proto,
		.client = p->saddr,
	};
	struct cm_service *service;
	struct cm_ct_entry *e;
	int err;

	if (p->proto != IPPROTO_TCP && p->proto != IPPROTO_UDP)
		return 0;
	service = service_lookup(&p->daddr, p->dport, p->proto);
	if (likely(!service))
		return 0;
	if (!service->count)
		return CM_R_NO_BACKEND;

	e = bpf_map_lookup_elem(&cm_ct, &key);
	if (e && ct_backend_holds(e, p, service->id)) {
		lb->service_id = e->service_id;
		lb->backend_id = e->backend_id;
		lb->addr = e->nat_addr;
		lb->port = e->nat_port;
		ct_see(e, p, 0, skb->len);
	} else {
		flow.hash = flow_hash(&p->saddr, p->sport, &p->daddr, p->dport, p->proto);
		err = lb_select(service, &flow, lb);
		if (err)
			return err;
		ct_create(&key, p, lb, &lb->addr, lb->port, identity, skb->len);
	}
	count(CM_R_SERVICE_TRANSLATED, CM_DIR_FROM_POD, skb->len);
	return nat_destination(skb, p, &lb->addr, lb->port);
}

/* Load balancing one way, the service's address back on replies the other way, and conntrack. */
static __always_inline int translate(struct __sk_buff *skb, struct packet *p, struct cm_decision *d)
{
	struct cm_addr service_addr = p->daddr;
	__be16 service_port = p->dport;
	struct lb_backend lb = {};
	struct cm_ct_entry *flow;
	int err;

	if (unlikely(p->fragment)) {
		count(CM_R_FRAGMENT, CM_DIR_FROM_POD, skb->len);
		return 0;
	}
	if (unlikely(is_icmp_error(p)))
		return unnat_quote(skb);

	err = balance(skb, p, d->identity, &lb);
	if (err)
		return err;
	d->service_id = lb.service_id;
	d->backend_id = lb.backend_id;
	flow = ct_track(p, &lb, &service_addr, service_port, d->identity, skb->len);
	if (likely(!flow || !flow->service_id))
		return 0;
	count(CM_R_REPLY_TRANSLATED, CM_DIR_FROM_POD, skb->len);
	return nat_source(skb, p, &flow->nat_addr, flow->nat_port);
}

/* Where to, from a pod of this node. */
static __always_inline enum cm_reason forward(struct __sk_buff *skb, const struct packet *p,
					      struct cm_decision *d, const struct cm_endpoint *src)
{
	struct cm_endpoint *dst = endpoint_lookup(&p->daddr);
	struct cm_remote *remote;
	int err;

	if (dst) {
		if (dst->ifindex == src->ifindex)
			return CM_R_HAIRPIN;
		return to_endpoint(skb, d, dst, CM_R_TO_ENDPOINT);
	}
	if (is_own_host(&p->daddr))
		return to_stack(d, CM_R_TO_STACK);
	if (is_own_pod_cidr(&p->daddr)) {
		err = answer_unreachable(skb, p, ICMP_HOST_UNREACH);
		return err ? err : to_endpoint(skb, d, src, CM_R_NO_ENDPOINT);
	}
	remote = ipcache_lookup(&p->daddr);
	if (remote && !addr_is_none(&remote->tunnel) && !is_own_host(&remote->tunnel))
		return to_tunnel(d, &remote->tunnel, d->identity, CM_R_TO_TUNNEL);
	return to_stack(d, CM_R_TO_STACK);
}

static __always_inline enum cm_reason from_pod(struct __sk_buff *skb, const struct hook *hook,
					       struct cm_decision *d)
{
	struct cm_endpoint *src;
	struct packet p = {};
	int err;

	err = parse_packet(skb, &p);
	if (err == CM_R_ARP)
		return to_stack(d, CM_R_ARP);
	if (err)
		return err;

	src = endpoint_lookup(&p.saddr);
	if (!src || src->ifindex != hook->ifindex)
		return CM_R_SPOOFED_SOURCE;
	d->identity = src->identity;

	err = translate(skb, &p, d);
	if (err == CM_R_NO_BACKEND)
		return reject(skb, &p, d, src);
	if (err)
		return err;
	return forward(skb, &p, d, src);
}

/* What the host sends is passed, whatever it is; replies get their service address back. */
static __always_inline enum cm_reason to_pod(struct __sk_buff *skb, struct cm_decision *d)
{
	const struct lb_backend none = {};
	struct cm_ct_entry *flow;
	struct packet p = {};
	struct cm_remote *remote;
	int err;

	err = parse_packet(skb, &p);
	if (err)
		return to_stack(d, err == CM_R_ARP ? CM_R_ARP : CM_R_FROM_STACK);
	if (p.fragment)
		return to_stack(d, CM_R_FRAGMENT);
	if (is_icmp_error(&p)) {
		err = unnat_quote(skb);
		return err ? err : to_stack(d, CM_R_FROM_STACK);
	}

	if (is_own_host(&p.saddr)) {
		d->identity = CM_IDENTITY_HOST;
	} else {
		remote = ipcache_lookup(&p.saddr);
		d->identity = remote ? remote->identity : CM_IDENTITY_WORLD;
	}
	flow = ct_track(&p, &none, &none.addr, 0, d->identity, skb->len);
	if (flow && flow->service_id) {
		count(CM_R_REPLY_TRANSLATED, CM_DIR_TO_POD, skb->len);
		err = nat_source(skb, &p, &flow->nat_addr, flow->nat_port);
		if (err)
			return err;
	}
	return to_stack(d, CM_R_FROM_STACK);
}

#endif /* CM_POD_H */
