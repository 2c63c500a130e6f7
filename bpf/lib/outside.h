/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Services as other hosts reach them: by a NodePort, an external or a load balancer's address.
 *
 *   client ─► uplink: from_outside() ─┬─ backend of this node ─────► as what comes for any pod
 *                                     └─ of another: this node ────► tunnel, or routed
 *   client ◄─ uplink: to_outside()   ◄── answers of this node's backends, by the host's routes
 *   client ◄───────── onwards()      ◄── answers of others, which came to this node
 */
#ifndef CM_OUTSIDE_H
#define CM_OUTSIDE_H

#include "answer.h"
#include "dsr-mark.h"
#include "nat-begin.h"
#include "nat-flow.h"
#include "onwards.h"
#include "parse.h"
#include "tunnel.h"

#define VXLAN_PORT 8472

/* Between nodes, encapsulated: nobody's flow with a service. */
static __always_inline int is_vxlan(const struct packet *p)
{
	return p->proto == IPPROTO_UDP && p->dport == bpf_htons(VXLAN_PORT);
}

/*
 * May a plain packet have this source? 0 with the identity, or a reason.
 *
 * Nothing on the packet says who sent it, so its source is looked up in the ipcache. That is as
 * good as the network's own word, which is taken for clusters that are routed to directly (and for
 * the world), and for no other: what should have come through the tunnel did not come from there.
 */
static __always_inline int believe_plain(const struct cm_addr *saddr, __u32 *identity)
{
	struct cm_remote *source;

	if (is_own_pod_cidr(saddr) || is_own_host(saddr))
		return CM_R_SPOOFED_SOURCE;
	source = ipcache_lookup(saddr);
	*identity = source ? source->identity : world_of(saddr);
	if (*identity == CM_IDENTITY_HOST)
		*identity = CM_IDENTITY_REMOTE_NODE;
	return source && is_tunnelled(source) ? CM_R_NOT_ENCAPSULATED : 0;
}

/* May the packet stay with the backend of its flow? As balance() has it in a pod's program. */
static __always_inline int nat_keeps(const struct cm_nat_entry *e, const struct packet *p)
{
	return lb_keeps(e->service_id, e->backend_id, &e->daddr, e->dport, p->proto,
			opens_connection(p), e->state == CM_CT_CLOSING);
}

/* 0, or CM_R_TOO_BIG: for the tunnel to d->remote. With direct server return it gets its option. */
static __noinline int nat_fits(struct __sk_buff *skb, struct packet *p, struct cm_decision *d,
			       const struct cm_nat_entry *e)
{
	struct cm_remote *remote = e->is_reply ? NULL : ipcache_lookup(&e->daddr);
	__u32 mtu;

	p->by_tunnel = e->is_dsr && !e->is_reply;
	if (!remote || !(p->by_tunnel || is_tunnelled(remote)))
		return 0;
	mtu = tunnel_mtu(&remote->node);
	if (p->by_tunnel)
		p->option = dsr_option(p);
	if (fits(skb, p, mtu))
		return 0;
	/* Within a connection it can be done without. */
	if (p->proto == IPPROTO_TCP && !opens_connection(p))
		p->option = 0;
	if (fits(skb, p, mtu))
		return 0;
	d->remote = remote->node;
	return CM_R_TOO_BIG;
}

/*
 * The row of what arrives at an uplink and is for no pod. 0; CM_R_NO_BACKEND: it is for a service,
 * and has none that it may keep; CM_R_FROM_NETWORK: it is the host's affair; or another reason.
 */
static __noinline int nat_find(const struct packet *p, struct cm_decision *d,
			       struct cm_nat_entry **row)
{
	struct cm_nat_draft *draft = nat_draft();
	struct cm_nat_entry *e;
	int err;

	if (!draft)
		return CM_R_WRITE_FAILED;
	nat_key(&draft->key, p);
	e = bpf_map_lookup_elem(&cm_nat, &draft->key);
	if (!e && !is_for_service(p))
		return CM_R_FROM_NETWORK;
	err = believe_plain(&p->saddr, &d->identity);
	if (!err && !(e && e->is_reply))
		err = e && nat_is_whole(draft, e) ? nat_keeps(e, p) : CM_R_NO_BACKEND;
	*row = e;
	return err;
}

/*
 * From another host, for no pod's address: 0 if it is for a pod now, as the backend of a service.
 * CM_R_FROM_NETWORK: it is the host's affair; CM_R_NO_BACKEND, CM_R_BACKEND_GONE, CM_R_TOO_BIG: to
 * be answered, and still as it was. Other reasons: done with it.
 */
static __always_inline int from_outside(struct __sk_buff *skb, struct packet *p,
					struct cm_decision *d)
{
	struct cm_nat_entry *e = NULL;
	int believed, err;

	if (unlikely(is_icmp_error(p))) {
		believed = believe_plain(&p->saddr, &d->identity);
		err = nat_error(skb, p, 1);
		if (!err)
			err = believed;
		return err ? err : onwards(skb, p, d);
	}
	err = nat_find(p, d, &e);
	if (err == CM_R_NO_BACKEND) {
		err = nat_begin(p, &e);
		p->begins = 1;
	}
	if (!err && e)
		err = nat_fits(skb, p, d, e);
	if (err || !e)
		return err;
	nat_note(d, e, p);
	count(e->is_reply ? CM_R_REPLY_TRANSLATED : CM_R_SERVICE_TRANSLATED, CM_DIR_FROM_NETWORK,
	      p->bytes);
	err = dsr_mark(skb, p);
	if (!err)
		err = nat_apply(skb, p, e);
	return err ? err : onwards(skb, p, d);
}

/*
 * The skb is our ICMP error to its sender: back where it came from, and from the service's address,
 * as the sender's network need not know the pods'.
 */
static __noinline int from_service(struct __sk_buff *skb, const struct packet *p)
{
	struct cm_addr gateway =
		setting(p->is_v6 ? &cm_settings.ipv6.gateway_ip : &cm_settings.ipv4.gateway_ip);
	__u32 csum = (p->is_v6 ? L4_OFF_V6 : L4_OFF_V4) + ICMP_CSUM_OFF;

	return rewrite_outer(skb, csum, p->is_v6, NAT_SOURCE, &gateway, &p->daddr);
}

/* The next hop is whoever sent it. */
static __noinline int turn_frame(struct __sk_buff *skb)
{
	__u8 macs[12];

	return bpf_skb_load_bytes(skb, 0, macs, sizeof(macs)) ||
	       bpf_skb_store_bytes(skb, 0, macs + 6, 6, 0) ||
	       bpf_skb_store_bytes(skb, 6, macs, 6, 0);
}

/* CM_R_NO_BACKEND, CM_R_BACKEND_GONE, CM_R_TOO_BIG: say so to the sender. */
static __always_inline enum cm_reason answer_outside(struct __sk_buff *skb, const struct hook *hook,
						     struct packet *p, struct cm_decision *d,
						     enum cm_reason why)
{
	int err;

	if (why != CM_R_TOO_BIG && p->proto == IPPROTO_TCP) {
		err = answer_reset(skb, p);
	} else {
		err = answer_icmp(skb, p, why == CM_R_TOO_BIG ? ICMP_TOO_BIG : ICMP_NO_PORT,
				  tunnel_mtu(&d->remote) - p->option);
		if (!err)
			err = from_service(skb, p);
	}
	if (err)
		return err;
	if (turn_frame(skb))
		return CM_R_WRITE_FAILED;
	d->action = CM_ACT_NETWORK;
	d->target = hook->ifindex;
	return why;
}

/* What leaves by an uplink: answers of this node's own backends get the service's address back. */
static __always_inline enum cm_reason to_outside(struct __sk_buff *skb, struct cm_decision *d)
{
	struct cm_nat_entry *e = NULL;
	struct packet p = {};
	int err;

	if (parse_packet(skb, &p) || is_vxlan(&p) ||
	    !(is_own_pod_cidr(&p.saddr) || is_own_host(&p.saddr)))
		return to_stack(d, CM_R_TO_STACK);
	if (unlikely(is_icmp_error(&p))) {
		err = nat_error(skb, &p, 1);
		return err && err != CM_R_FROM_NETWORK ? err : to_stack(d, CM_R_TO_STACK);
	}
	e = nat_answer(&p);
	if (likely(!e))
		return to_stack(d, CM_R_TO_STACK);
	nat_note(d, e, &p);
	count(CM_R_REPLY_TRANSLATED, CM_DIR_TO_NETWORK, p.bytes);
	err = nat_apply(skb, &p, e);
	return err ? err : to_stack(d, CM_R_TO_NETWORK);
}

#endif /* CM_OUTSIDE_H */
