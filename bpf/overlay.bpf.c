// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* tc ingress of the VXLAN device: packets from other nodes, their tunnel key beside them. */
#include "lib/overlay.h"

/* Who sent it, of either underlay. 0, or the tunnel did not say. */
static __noinline int read_tunnel(struct __sk_buff *skb, struct hook *hook)
{
	struct bpf_tunnel_key key = {};

	if (!bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0))
		hook->remote = addr_v4(bpf_htonl(key.remote_ipv4));
	else if (!bpf_skb_get_tunnel_key(skb, &key, sizeof(key), BPF_F_TUNINFO_IPV6))
		__builtin_memcpy(&hook->remote, key.remote_ipv6, sizeof(hook->remote));
	else
		return -1;
	hook->vni = key.tunnel_id;
	return 0;
}

SEC("tc")
int cm_overlay(struct __sk_buff *skb)
{
	struct hook hook = { .ifindex = skb->ifindex };
	struct cm_decision d = {};
	__u32 bytes = skb->len;

	d.reason = read_tunnel(skb, &hook) ? CM_R_NO_TUNNEL_KEY : overlay(skb, &hook, &d);
	return carry_out(skb, &hook, &d, CM_DIR_OVERLAY, bytes);
}

char _license[] SEC("license") = "Dual BSD/GPL";
