// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* XDP at the node's uplinks, before tc: what other hosts send to services. */
#include "lib/xdp.h"

SEC("xdp.frags")
int cm_xdp(struct xdp_md *ctx)
{
	return xdp_carry_out(ctx, 0);
}

char _license[] SEC("license") = "Dual BSD/GPL";
