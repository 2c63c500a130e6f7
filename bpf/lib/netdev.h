/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Body of the program on the node's uplinks: what arrives for a pod without encapsulation.
 *
 * Nothing on the packet says who sent it, so its source is looked up in the ipcache. That is as
 * good as the network's own word, which is taken for clusters that are routed to directly (and for
 * the world), and for no other: what should have come through the tunnel did not come from there.
 */
#ifndef CM_NETDEV_H
#define CM_NETDEV_H

#include "icmp-nat.h"
#include "parse.h"
#include "verdict.h"

/* May a plain packet have this source? 0 with the identity, or a reason. */
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

static __always_inline enum cm_reason from_network(struct __sk_buff *skb, const struct hook *hook,
						   struct cm_decision *d)
{
	const struct ct_service none = {};
	struct cm_ct_entry *flow = NULL;
	struct policy_ends ends;
	struct cm_endpoint *dst;
	struct packet p = {};
	int unparsed, err;

	unparsed = parse_packet(skb, &p);
	dst = endpoint_lookup(&p.daddr);
	/* What is not for a pod is the host's affair: its services, the tunnel's own packets. */
	if (!dst)
		return to_stack(d, CM_R_FROM_NETWORK);
	err = believe_plain(&p.saddr, &d->identity);
	if (err)
		return err;
	if (unparsed)
		return unparsed == CM_R_ND ? CM_R_ROGUE_ND : unparsed;

	ends.source = policy_end(NULL, d->identity);
	ends.dest = policy_end(dst, dst->identity);
	if (unlikely(is_icmp_error(&p))) {
		err = admit_error(skb, &p, &ends);
		if (!err && !p.later)
			err = translate_error(skb, p.l4_off, p.is_v6, &p.saddr, &p.daddr);
	} else {
		err = ct_track(&p, &none, &ends, &flow);
	}
	if (!err && flow && flow->service_id) {
		count(CM_R_REPLY_TRANSLATED, CM_DIR_FROM_NETWORK, p.bytes);
		err = nat_source(skb, &p, &flow->nat_addr, flow->nat_port);
	}
	if (err)
		return err;
	return to_endpoint(skb, d, dst, CM_R_TO_ENDPOINT);
}

#endif /* CM_NETDEV_H */
