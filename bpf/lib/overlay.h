/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Body of the program that receives what other nodes encapsulated. */
#ifndef CM_OVERLAY_H
#define CM_OVERLAY_H

#include "dsr-take.h"
#include "icmp-error.h"
#include "nat-flow.h"
#include "onwards.h"
#include "parse.h"

/* The VNI is believed as far as the sending node may speak for it. 0 or a reason. */
static __always_inline int believe(const struct hook *hook, __u32 *identity)
{
	struct cm_node *node = node_lookup(&hook->remote);

	if (!node)
		return CM_R_UNKNOWN_NODE;
	*identity = hook->vni;
	if (hook->vni == CM_IDENTITY_HOST)
		*identity = CM_IDENTITY_REMOTE_NODE; /* its host is not our host */
	if (hook->vni >= CM_IDENTITY_FIRST_GLOBAL &&
	    hook->vni >> cm_settings.identity_shift != node->cluster_id)
		return CM_R_FOREIGN_IDENTITY;
	return 0;
}

/*
 * For this node itself: an answer of another node's backend to a client of ours, or the host's
 * affair. ICMP errors about what such a client sent go to itself with direct server return.
 */
static __always_inline enum cm_reason to_own_host(struct __sk_buff *skb, struct packet *p,
						  struct cm_decision *d)
{
	struct cm_nat_entry *e = NULL;
	int err;

	if (unlikely(is_icmp_error(p))) {
		err = nat_error(skb, p, is_own_host(&p->daddr));
		if (err == CM_R_FROM_NETWORK)
			return is_own_host(&p->daddr) ? to_stack(d, CM_R_TO_STACK)
						      : CM_R_NOT_FOR_US;
	} else {
		e = nat_answer(p);
		if (!e)
			return to_stack(d, CM_R_TO_STACK);
		nat_note(d, e, p);
		count(CM_R_REPLY_TRANSLATED, CM_DIR_OVERLAY, p->bytes);
		err = nat_apply(skb, p, e);
	}
	if (!err)
		err = onwards(skb, p, d);
	return err ? err : CM_R_NOT_FOR_US;
}

static __always_inline enum cm_reason overlay(struct __sk_buff *skb, const struct hook *hook,
					      struct cm_decision *d)
{
	const struct ct_service none = {};
	struct cm_ct_entry *flow = NULL;
	struct cm_remote *source;
	struct policy_ends ends;
	struct cm_endpoint *dst;
	struct packet p = {};
	int err;

	err = believe(hook, &d->identity);
	if (err)
		return err;
	if (unlikely(is_world(d->identity))) {
		err = dsr_take(skb, d->identity);
		if (err)
			return err;
	}
	p.option = unknown_zero(hook->vni);
	err = parse_packet(skb, &p);
	if (err)
		return err == CM_R_ARP ? CM_R_NOT_IP : err == CM_R_ND ? CM_R_ROGUE_ND : err;
	if (addr_is_link_local(&p.saddr))
		return CM_R_LINK_LOCAL;
	if (is_own_pod_cidr(&p.saddr) || is_own_host(&p.saddr))
		return CM_R_SPOOFED_SOURCE;

	if (unlikely(d->identity == world_of(&p.saddr))) {
		err = dsr_sender(&p, &d->identity);
		if (err)
			return err;
	}

	/* A new pod's first packet may be faster than its ipcache row. */
	source = ipcache_lookup(&p.saddr);
	if (!source || source->identity != d->identity)
		count(CM_R_IPCACHE_MISMATCH, CM_DIR_OVERLAY, skb->len);

	dst = endpoint_lookup(&p.daddr);
	if (!dst) {
		if (is_own_host(&p.daddr) || (is_icmp_error(&p) && !is_own_pod_cidr(&p.daddr)))
			return to_own_host(skb, &p, d);
		if (!is_own_pod_cidr(&p.daddr))
			return CM_R_NOT_FOR_US;
		err = answer_icmp(skb, &p, ICMP_NO_HOST, 0);
		return err ? err : to_tunnel(d, &hook->remote, CM_IDENTITY_HOST, CM_R_NO_ENDPOINT);
	}

	if (unlikely(p.later))
		count(CM_R_FRAGMENT, CM_DIR_OVERLAY, skb->len);
	ends.source = policy_end(NULL, d->identity);
	ends.dest = policy_end(dst, dst->identity);
	if (unlikely(is_icmp_error(&p))) {
		err = admit_error(skb, &p, &ends);
		if (!err && !p.later)
			err = translate_error(skb, p.l4_off, p.is_v6, &p.saddr, &p.daddr);
	} else {
		err = ct_track(&p, &none, &ends, &flow);
	}
	if (!err && unlikely(p.option))
		err = dsr_file(&p);
	if (!err && flow && flow->service_id) {
		count(CM_R_REPLY_TRANSLATED, CM_DIR_OVERLAY, skb->len);
		err = nat_source(skb, &p, &flow->nat_addr, flow->nat_port);
	}
	if (err)
		return err;
	return to_endpoint(skb, d, dst, CM_R_TO_ENDPOINT);
}

#endif /* CM_OVERLAY_H */
