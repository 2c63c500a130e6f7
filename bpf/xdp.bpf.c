// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* XDP at the node's uplinks, before tc: what other hosts send to services. */
#include "lib/xdp.h"

SEC("xdp.frags")
int cm_xdp(struct xdp_md *ctx)
{
	return xdp_carry_out(ctx, 0);
}

/*
 * Generic XDP. Where a program takes frames in several buffers, the kernel makes a new skb to run
 * it on, in which tc then finds no header that it can read (6.18); for one that does not, it makes
 * the skb one buffer.
 */
SEC("xdp")
int cm_xdp_generic(struct xdp_md *ctx)
{
	return xdp_carry_out(ctx, 0);
}

char _license[] SEC("license") = "Dual BSD/GPL";
