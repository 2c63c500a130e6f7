// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* tc at the node's uplinks: ingress is what other hosts send without encapsulation, egress what
 * leaves. */
#include "lib/netdev.h"

SEC("tc")
int cm_from_network(struct __sk_buff *skb)
{
	const struct hook hook = { .ifindex = skb->ifindex };
	struct cm_decision d = {};
	__u32 bytes = skb->len;

	d.reason = from_network(skb, &hook, &d);
	return carry_out(skb, &hook, &d, CM_DIR_FROM_NETWORK, bytes);
}

SEC("tc")
int cm_to_network(struct __sk_buff *skb)
{
	const struct hook hook = { .ifindex = skb->ifindex };
	struct cm_decision d = {};
	__u32 bytes = skb->len;

	d.reason = to_outside(skb, &d);
	/* Nearly all that leaves: nobody's business here, and not counted. */
	if (d.reason == CM_R_TO_STACK)
		return TC_ACT_OK;
	return carry_out(skb, &hook, &d, CM_DIR_TO_NETWORK, bytes);
}

char _license[] SEC("license") = "Dual BSD/GPL";
