/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What fits through the tunnel. */
#ifndef CM_TUNNEL_H
#define CM_TUNNEL_H

#include "packet.h"

/* Outer IP and UDP headers, VXLAN's, and the inner frame's own. */
#define TUNNEL_OVERHEAD_V4 (20 + 8 + 8 + 14)
#define TUNNEL_OVERHEAD_V6 (40 + 8 + 8 + 14)

/* Bytes of an inner IP packet; 0: not known. */
static __always_inline __u32 tunnel_mtu(const struct cm_addr *node)
{
	if (!cm_settings.underlay_mtu)
		return 0;
	return cm_settings.underlay_mtu -
	       (addr_is_v4(node) ? TUNNEL_OVERHEAD_V4 : TUNNEL_OVERHEAD_V6);
}

/*
 * With the option that it is to get. A packet that may be cut is cut outside: its encapsulation is
 * what the network fragments.
 */
static __always_inline int fits(const struct __sk_buff *skb, const struct packet *p, __u32 mtu)
{
	__u32 len = p->ip_len;

	if (skb->gso_size)
		len = p->l4_off - IP_OFF + p->l4_len + skb->gso_size;
	len += p->option;
	return !mtu || len <= mtu || !p->dont_fragment;
}

#endif /* CM_TUNNEL_H */
