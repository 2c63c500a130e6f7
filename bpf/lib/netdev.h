/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Body of the program on the node's uplinks: what arrives for a pod without encapsulation, and for
 * services.
 */
#ifndef CM_NETDEV_H
#define CM_NETDEV_H

#include "outside.h"
#include "parse.h"

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
	/* What is for nobody here is the host's affair, as the tunnel's own packets are. */
	if (!dst && (unparsed || is_vxlan(&p)))
		return to_stack(d, CM_R_FROM_NETWORK);
	if (!dst) {
		err = from_outside(skb, &p, d);
		if (err == CM_R_FROM_NETWORK)
			return to_stack(d, CM_R_FROM_NETWORK);
		if (err == CM_R_NO_BACKEND || err == CM_R_BACKEND_GONE || err == CM_R_TOO_BIG)
			return answer_outside(skb, hook, &p, d, err);
		if (err)
			return err;
		dst = endpoint_lookup(&p.daddr);
		if (!dst)
			return CM_R_STALE_TABLES;
	} else {
		err = believe_plain(&p.saddr, &d->identity);
		if (err)
			return err;
		if (unparsed)
			return unparsed == CM_R_ND ? CM_R_ROGUE_ND : unparsed;
	}

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
