/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Bodies of the two programs at the host end of a pod's veth. */
#ifndef CM_POD_H
#define CM_POD_H

#include "answer.h"
#include "direct.h"
#include "hairpin.h"
#include "parse.h"
#include "tunnel.h"
#include "verdict.h"

/* The service has nobody, or not any more whom it gave this flow: say so to the client at once. */
static __always_inline int refuse(struct __sk_buff *skb, struct packet *p)
{
	return p->proto == IPPROTO_TCP ? answer_reset(skb, p)
				       : answer_icmp(skb, p, ICMP_NO_PORT, 0);
}

static __noinline int ct_keeps_backend(const struct cm_ct_entry *e, const struct packet *p,
					    __u32 service_id)
{
	if (e->service_id != service_id)
		return CM_R_NO_BACKEND;
	return lb_keeps(service_id, e->backend_id, &e->nat_addr, e->nat_port, p->proto,
			opens_connection(p), e->state == CM_CT_CLOSING);
}

/*
 * Per-packet load balancing, for what the socket programs did not see. Service found: `via` is
 * filled in and the packet readdressed. Returns 0 or a reason to go no further.
 */
static __noinline int balance(struct __sk_buff *skb, struct packet *p, __u32 identity,
			      struct ct_service *via)
{
	struct cm_ct_draft *draft = ct_draft();
	struct lb_flow flow = {
		.service = { .addr = p->daddr, .port = p->dport, .proto = p->proto },
	};
	struct cm_service *service;
	struct lb_backend lb = {};
	struct cm_ct_entry *e;
	int err;

	service = service_lookup(&flow.service);
	if (likely(!service))
		return 0;

	if (!draft)
		return CM_R_WRITE_FAILED;
	draft->key = ct_key(p, CM_CT_SERVICE);
	e = bpf_map_lookup_elem(&cm_ct, &draft->key);
	err = e ? ct_keeps_backend(e, p, service->id) : CM_R_NO_BACKEND;
	if (err == CM_R_BACKEND_GONE)
		return err;
	if (e && !err) {
		lb.service_id = e->service_id;
		lb.backend_id = e->backend_id;
		lb.addr = e->nat_addr;
		lb.port = e->nat_port;
		ct_see(e, p, 0);
	} else {
		flow.hash = flow_hash(&p->saddr, p->sport, &p->daddr, p->dport, p->proto);
		err = lb_select(service, &flow, &p->saddr, &lb);
		if (err)
			return err;
		if (unlikely(service->affinity_s))
			affinity_keep(&p->saddr, &lb);
		via->id = lb.service_id;
		via->backend_id = lb.backend_id;
		via->nat_addr = lb.addr;
		via->nat_port = lb.port;
		ct_create(draft, p, via, identity, NULL);
	}
	via->id = lb.service_id;
	via->backend_id = lb.backend_id;
	via->nat_addr = p->daddr;
	via->nat_port = p->dport;
	count(CM_R_SERVICE_TRANSLATED, CM_DIR_FROM_POD, p->bytes);
	return nat_destination(skb, p, &lb.addr, lb.port);
}

/* Where a packet goes. */
struct route {
	const struct cm_endpoint *endpoint; /* a pod of this node */
	const struct cm_remote *remote;	    /* else what the ipcache says, if it does */
};

/* Also who is there. */
static __always_inline __u32 route_to(const struct cm_addr *daddr, struct route *to)
{
	to->remote = NULL;
	to->endpoint = endpoint_lookup(daddr);
	if (to->endpoint)
		return to->endpoint->identity;
	if (is_own_host(daddr))
		return CM_IDENTITY_HOST;
	if (is_own_pod_cidr(daddr))
		return CM_IDENTITY_UNMANAGED;
	to->remote = ipcache_lookup(daddr);
	return to->remote ? to->remote->identity : world_of(daddr);
}

/*
 * Finds where the packet goes, accounts it to its flow and asks the policies of both ends.
 * Functions of their own, as what they need would not fit on the stack beside that of load
 * balancing.
 */
static __noinline int track_from_pod(const struct packet *p, const struct cm_endpoint *src,
				     const struct ct_service *via, struct route *to,
				     struct cm_ct_entry **flow)
{
	struct policy_ends ends = { .source = policy_end(src, src->identity) };
	__u32 receiver = route_to(&p->daddr, to);

	ends.dest = policy_end(to->endpoint, receiver);
	return ct_track(p, via, &ends, flow);
}

static __noinline int admit_error_from_pod(struct __sk_buff *skb, const struct packet *p,
					   const struct cm_endpoint *src)
{
	struct policy_ends ends = { .source = policy_end(src, src->identity) };
	struct route to;
	__u32 receiver = route_to(&p->daddr, &to);

	ends.dest = policy_end(to.endpoint, receiver);
	return admit_error(skb, p, &ends);
}

/* An ICMP error: the address that it goes to may change with what it quotes. */
static __always_inline int translate_from_pod(struct __sk_buff *skb, struct packet *p,
					      const struct cm_endpoint *src, struct route *to)
{
	int err = admit_error_from_pod(skb, p, src);

	if (!err && !p->later)
		err = translate_error(skb, p->l4_off, p->is_v6, &p->saddr, &p->daddr);
	route_to(&p->daddr, to);
	return err;
}

/*
 * Load balancing one way, the service's address back on replies the other way, conntrack and
 * policies: those of the sender and, if it is a pod of this node, of the receiver. `to` is where
 * the packet goes after that.
 */
static __always_inline int translate(struct __sk_buff *skb, struct packet *p, struct cm_decision *d,
				     const struct cm_endpoint *src, struct route *to)
{
	struct cm_ct_entry *flow = NULL;
	struct ct_service via = {};
	int err = 0;

	if (unlikely(is_icmp_error(p)))
		return translate_from_pod(skb, p, src, to);
	if (unlikely(p->later))
		count(CM_R_FRAGMENT, CM_DIR_FROM_POD, p->bytes);
	if (likely(p->proto != IPPROTO_ICMP && p->proto != IPPROTO_ICMPV6))
		err = balance(skb, p, d->identity, &via);
	if (err)
		return err;
	d->service_id = via.id;
	d->backend_id = via.backend_id;
	err = track_from_pod(p, src, &via, to, &flow);
	if (err || likely(!flow || !flow->service_id))
		return err;
	count(CM_R_REPLY_TRANSLATED, CM_DIR_FROM_POD, p->bytes);
	return nat_source(skb, p, &flow->nat_addr, flow->nat_port);
}

/* To another node, if it fits. */
static __always_inline enum cm_reason through_tunnel(struct __sk_buff *skb, struct packet *p,
						     struct cm_decision *d,
						     const struct cm_endpoint *src,
						     const struct cm_addr *node)
{
	__u32 mtu = tunnel_mtu(node);
	int err;

	if (likely(fits(skb, p, mtu)))
		return to_tunnel(d, node, d->identity, CM_R_TO_TUNNEL);
	err = answer_icmp(skb, p, ICMP_TOO_BIG, mtu);
	return err ? err : to_endpoint(skb, d, src, CM_R_TOO_BIG);
}

/* On its way, from a pod of this node. */
static __always_inline enum cm_reason forward(struct __sk_buff *skb, struct packet *p,
					      struct cm_decision *d, const struct cm_endpoint *src,
					      const struct route *to)
{
	const struct cm_remote *remote = to->remote;
	int err;

	if (to->endpoint) {
		err = hairpin_out(skb, p, d);
		return err ? err : to_endpoint(skb, d, to->endpoint, CM_R_TO_ENDPOINT);
	}
	if (is_own_host(&p->daddr))
		return to_stack(d, CM_R_TO_STACK);
	if (is_own_pod_cidr(&p->daddr)) {
		err = answer_icmp(skb, p, ICMP_NO_HOST, 0);
		return err ? err : to_endpoint(skb, d, src, CM_R_NO_ENDPOINT);
	}
	if (remote && is_tunnelled(remote) && !is_own_host(&remote->node))
		return through_tunnel(skb, p, d, src, &remote->node);
	if (remote && (remote->flags & CM_REMOTE_DIRECT) && !route_directly(skb, p, d))
		return CM_R_TO_NETWORK;
	return to_stack(d, CM_R_TO_STACK);
}

/*
 * Neighbour and listener discovery end at the host's stack, as ARP does; a pod speaks for nobody
 * but itself there. The source of duplicate address detection is no address.
 */
static __always_inline enum cm_reason discovery(const struct packet *p, const struct hook *hook,
						struct cm_decision *d)
{
	int is_nd = p->icmp_type >= ICMPV6_ND_RS && p->icmp_type <= ICMPV6_ND_REDIRECT;
	struct cm_endpoint *src;

	if (is_nd && (p->hop_limit != 255 || p->icmp_type == ICMPV6_ND_RA ||
		      p->icmp_type == ICMPV6_ND_REDIRECT))
		return CM_R_ROGUE_ND;
	if (!addr_is_none(&p->saddr) && !addr_is_link_local(&p->saddr)) {
		src = endpoint_lookup(&p->saddr);
		if (!src || src->ifindex != hook->ifindex)
			return CM_R_SPOOFED_SOURCE;
	}
	return to_stack(d, CM_R_ND);
}

static __always_inline enum cm_reason from_pod(struct __sk_buff *skb, const struct hook *hook,
					       struct cm_decision *d)
{
	struct cm_endpoint *src;
	struct packet p = {};
	struct route to;
	int err, refused;

	err = parse_packet(skb, &p);
	if (err == CM_R_ARP)
		return to_stack(d, CM_R_ARP);
	if (err == CM_R_ND)
		return discovery(&p, hook, d);
	if (err)
		return err;

	src = endpoint_lookup(&p.saddr);
	if (!src || src->ifindex != hook->ifindex)
		return addr_is_link_local(&p.saddr) ? CM_R_LINK_LOCAL : CM_R_SPOOFED_SOURCE;
	d->identity = src->identity;

	err = hairpin_back(skb, &p);
	if (!err)
		err = translate(skb, &p, d, src, &to);
	if (err == CM_R_NO_BACKEND || err == CM_R_BACKEND_GONE) {
		refused = refuse(skb, &p);
		return refused ? refused : to_endpoint(skb, d, src, err);
	}
	if (err)
		return err;
	return forward(skb, &p, d, src, &to);
}

/*
 * Who the host's stack speaks for. `came_by` is the interface through which the packet reached this
 * host, 0 if it is the host's own. What a pod sent came by its veth, where its source was checked;
 * what remote pods send through the tunnel never takes this way; and with the host's address comes
 * also what it masquerades, for the world as far as we know.
 */
static __always_inline int believe_stack(const struct cm_addr *saddr, __u32 came_by,
					 __u32 *identity)
{
	struct route from;

	*identity = route_to(saddr, &from);
	if (from.endpoint && from.endpoint->ifindex != came_by)
		return CM_R_SPOOFED_SOURCE;
	if (*identity == CM_IDENTITY_HOST && came_by)
		*identity = world_of(saddr);
	return from.remote && is_tunnelled(from.remote) ? CM_R_NOT_ENCAPSULATED : 0;
}

/* Discovery is spoken on one link: what was routed arrives with a hop less, or from further away. */
static __always_inline int is_on_link(const struct packet *p)
{
	if (p->icmp_type >= ICMPV6_ND_RS && p->icmp_type <= ICMPV6_ND_REDIRECT)
		return p->hop_limit == 255;
	return addr_is_link_local(&p->saddr) || addr_is_none(&p->saddr);
}

/*
 * What the host's stack sends a pod: its own, or what it forwards, by whatever way that reached it
 * (another interface, a VLAN). The last place to ask policies, so what cannot be read does not pass.
 * Replies get their service address back.
 */
static __always_inline enum cm_reason to_pod(struct __sk_buff *skb, struct cm_decision *d)
{
	const struct ct_service none = {};
	struct cm_ct_entry *flow = NULL;
	struct cm_endpoint *dst;
	struct policy_ends ends;
	struct packet p = {};
	int err;

	err = parse_packet(skb, &p);
	if (err == CM_R_ND && !is_on_link(&p))
		return CM_R_ROGUE_ND;
	if (err == CM_R_ARP || err == CM_R_ND)
		return to_stack(d, err);
	if (err)
		return err;
	err = believe_stack(&p.saddr, skb->ingress_ifindex, &d->identity);
	if (err)
		return err;

	dst = endpoint_lookup(&p.daddr);
	ends.source = policy_end(NULL, d->identity);
	ends.dest = policy_end(dst, dst ? dst->identity : CM_IDENTITY_UNMANAGED);
	if (is_icmp_error(&p)) {
		err = admit_error(skb, &p, &ends);
		if (!err && !p.later)
			err = translate_error(skb, p.l4_off, p.is_v6, &p.saddr, &p.daddr);
	} else {
		err = ct_track(&p, &none, &ends, &flow);
	}
	if (!err && flow && flow->service_id) {
		count(CM_R_REPLY_TRANSLATED, CM_DIR_TO_POD, skb->len);
		err = nat_source(skb, &p, &flow->nat_addr, flow->nat_port);
	}
	return err ? err : to_stack(d, CM_R_FROM_STACK);
}

#endif /* CM_POD_H */
