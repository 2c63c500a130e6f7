// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* As seam.bpf.c, for XDP: the decision is left in cm_decisions; the device is the context's. */
#include "../lib/xdp.h"

SEC("xdp.frags")
int cm_test_xdp(struct xdp_md *ctx)
{
	return xdp_carry_out(ctx, 1);
}

char _license[] SEC("license") = "Dual BSD/GPL";
