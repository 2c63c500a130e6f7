// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* tc at the host end of a pod's veth: ingress is what the pod sends, egress what the host sends. */
#include "lib/pod.h"

SEC("tc")
int cm_from_pod(struct __sk_buff *skb)
{
	const struct hook hook = { .ifindex = skb->ifindex };
	struct cm_decision d = {};
	__u32 bytes = skb->len;

	d.reason = from_pod(skb, &hook, &d);
	return carry_out(skb, &hook, &d, CM_DIR_FROM_POD, bytes);
}

SEC("tc")
int cm_to_pod(struct __sk_buff *skb)
{
	const struct hook hook = { .ifindex = skb->ifindex };
	struct cm_decision d = {};
	__u32 bytes = skb->len;

	d.reason = to_pod(skb, &d);
	return carry_out(skb, &hook, &d, CM_DIR_TO_POD, bytes);
}

char _license[] SEC("license") = "Dual BSD/GPL";
