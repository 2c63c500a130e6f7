// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* tc ingress of the VXLAN device: packets from other nodes, their tunnel key beside them. */
#include "lib/overlay.h"

SEC("tc")
int cm_overlay(struct __sk_buff *skb)
{
	struct hook hook = { .ifindex = skb->ifindex };
	struct bpf_tunnel_key key = {};
	struct cm_decision d = {};
	__u32 bytes = skb->len;

	if (bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0)) {
		d.reason = CM_R_NO_TUNNEL_KEY;
	} else {
		hook.vni = key.tunnel_id;
		hook.remote = addr_v4(bpf_htonl(key.remote_ipv4));
		d.reason = overlay(skb, &hook, &d);
	}
	return carry_out(skb, &hook, &d, CM_DIR_OVERLAY, bytes);
}

char _license[] SEC("license") = "Dual BSD/GPL";
