// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* As seam.bpf.c, for XDP: the decision is left in cm_decisions; the device is the context's. */
#include "../lib/xdp.h"

SEC("xdp.frags")
int cm_test_xdp(struct xdp_md *ctx)
{
	return xdp_carry_out(ctx, 1);
}

/* Ethernet, IPv4 and TCP. */
#define HEAD 54

/*
 * The same over and over, for measuring: repeated runs go on with what the one before left, so the
 * packet is put back as it was. (cm_ct_scratch: nobody else here has use for it.)
 */
SEC("xdp.frags")
int cm_test_xdp_again(struct xdp_md *ctx)
{
	__u32 zero = 0, bytes = bpf_xdp_get_buff_len(ctx);
	void *head = bpf_map_lookup_elem(&cm_ct_scratch, &zero);
	int verdict;

	if (!head || bpf_xdp_load_bytes(ctx, 0, head, HEAD))
		return XDP_ABORTED;
	verdict = xdp_carry_out(ctx, 0);
	if (bpf_xdp_adjust_head(ctx, bpf_xdp_get_buff_len(ctx) - bytes) ||
	    bpf_xdp_store_bytes(ctx, 0, head, HEAD))
		return XDP_ABORTED;
	return verdict;
}

char _license[] SEC("license") = "Dual BSD/GPL";
