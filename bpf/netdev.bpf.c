// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* tc ingress of the node's uplinks: what other hosts send without encapsulation. */
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

char _license[] SEC("license") = "Dual BSD/GPL";
