/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Body of the program at the uplinks' drivers: services as other hosts reach them, where their
 * backends are other nodes', and their answers by routes.
 *
 *   ─► driver: xdp_uplink() ─┬─ decided and done ──► out by an uplink
 *                            └─ all else, unchanged ─► tc: cm_from_network
 *
 * tc could do without this program, and decides the same with the same tables; it is only later.
 * So whatever is not certain, or is not simple, is left to it, as long as the packet is as it came:
 * everything is found out before the first byte is written. Rows of a flow that begins are filed by
 * then; tc finds them.
 */
#ifndef CM_XDP_H
#define CM_XDP_H

#include "outside.h"
#include "xdp-tunnel.h"

/*
 * The uplinks that run this program, by ifindex, and how. A driver takes frames from another's only
 * if it is set up for that, and drops them without a word if not; those here are.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, enum cm_xdp_mode);
} cm_xdp_devices SEC(".maps");

static __always_inline int may_send(__u32 from, __u32 to)
{
	enum cm_xdp_mode *here = bpf_map_lookup_elem(&cm_xdp_devices, &from);
	enum cm_xdp_mode *there = bpf_map_lookup_elem(&cm_xdp_devices, &to);

	return here && there && *here == *there;
}

/*
 * By the host's routes. 0 or XDP_FOR_TC: also where the next hop's MAC must be asked for, or the
 * packet does not fit.
 */
static __noinline int xdp_route(struct xdp_md *ctx, const struct cm_addr *src,
				const struct cm_addr *dst, struct hop *hop)
{
	struct bpf_fib_lookup fib = {
		.l4_protocol = hop->proto,
		.tot_len = hop->bytes,
		.ifindex = ctx->ingress_ifindex,
	};

	if (addr_is_v4(dst)) {
		fib.family = AF_INET;
		fib.ipv4_src = src->word[3];
		fib.ipv4_dst = dst->word[3];
	} else {
		fib.family = AF_INET6;
		__builtin_memcpy(fib.ipv6_src, src, sizeof(fib.ipv6_src));
		__builtin_memcpy(fib.ipv6_dst, dst, sizeof(fib.ipv6_dst));
	}
	if (bpf_fib_lookup(ctx, &fib, sizeof(fib), 0) != BPF_FIB_LKUP_RET_SUCCESS ||
	    !may_send(ctx->ingress_ifindex, fib.ifindex))
		return XDP_FOR_TC;
	__builtin_memcpy(hop->macs, fib.dmac, sizeof(fib.dmac));
	__builtin_memcpy(hop->macs + sizeof(fib.dmac), fib.smac, sizeof(fib.smac));
	hop->ifindex = fib.ifindex;
	return 0;
}

/*
 * 0: `row` says what it becomes. XDP_FOR_TC, or the reason for which tc would drop it: that alone
 * of what a packet from outside can be guilty of.
 */
static __always_inline int xdp_find(const struct packet *p, struct cm_decision *d,
				    struct cm_nat_entry **row)
{
	int err;

	if (endpoint_lookup(&p->daddr)) {
		err = believe_plain(&p->saddr, &d->identity);
		return err ? err : XDP_FOR_TC;
	}
	if (is_vxlan(p))
		return XDP_FOR_TC;
	err = nat_find(p, d, row);
	/* Who is told of the service must be told with the packet that begins the flow: tc's. */
	if (err == CM_R_NO_BACKEND && cm_settings.is_dsr)
		return XDP_FOR_TC;
	if (err == CM_R_NO_BACKEND)
		err = nat_begin(p, row);
	if (err == CM_R_SPOOFED_SOURCE || err == CM_R_NOT_ENCAPSULATED)
		return err;
	return err || !*row ? XDP_FOR_TC : 0;
}

/* To d->remote, with headers of `*outer` bytes before it. 0 or XDP_FOR_TC. */
static __always_inline int xdp_way_by_tunnel(struct xdp_md *ctx, const struct packet *p,
					     const struct cm_decision *d, enum xdp_csum csum,
					     struct hop *hop, __u32 *outer)
{
	struct cm_addr source = tunnel_source(&d->remote);
	__u32 mtu = tunnel_mtu(&d->remote);

	if (addr_is_none(&source) || (mtu && p->ip_len > mtu))
		return XDP_FOR_TC;
	*outer = OUTER_V4;
	if (!addr_is_v4(&d->remote)) {
		*outer = OUTER_V6;
		/* See outer_checksum(). */
		if (csum == XDP_CSUM_NONE || p->bytes != p->ip_len + IP_OFF)
			return XDP_FOR_TC;
	}
	if (p->bytes + *outer > 0xffff)
		return XDP_FOR_TC;
	hop->bytes = p->bytes + *outer - IP_OFF;
	hop->proto = IPPROTO_UDP;
	return xdp_route(ctx, &source, &d->remote, hop);
}

/* Where to with what the row makes of the packet. 0 or XDP_FOR_TC. */
static __always_inline int xdp_way(struct xdp_md *ctx, const struct packet *p,
				   const struct cm_nat_entry *e, struct cm_decision *d,
				   struct hop *hop, __u32 *outer)
{
	enum xdp_csum csum = xdp_csum_of(ctx, p);

	/* A backend that sees the client itself is a pod of this node, or does not answer by it. */
	if (e->is_dsr || (!e->is_reply && addr_equal(&e->saddr, &p->saddr)))
		return XDP_FOR_TC;
	if (csum == XDP_CSUM_HALF_DONE)
		return XDP_FOR_TC;
	*outer = 0;
	switch (way_to(&e->daddr, 0, d)) {
	case CM_ACT_TUNNEL:
		return xdp_way_by_tunnel(ctx, p, d, csum, hop, outer);
	case CM_ACT_NETWORK:
		if (p->hop_limit <= 1)
			return XDP_FOR_TC;
		d->action = CM_ACT_NETWORK;
		hop->bytes = p->ip_len;
		hop->proto = p->proto;
		return xdp_route(ctx, &e->saddr, &e->daddr, hop);
	default:
		return XDP_FOR_TC;
	}
}

static __always_inline int xdp_pass(struct cm_decision *d)
{
	d->action = CM_ACT_STACK;
	return XDP_FOR_TC;
}

/* XDP_FOR_TC, with the packet as it was, or a reason. `outer`: bytes of headers put before it. */
static __always_inline int xdp_uplink(struct xdp_md *ctx, struct cm_decision *d, __u32 *outer)
{
	struct cm_nat_entry *row = NULL;
	struct cm_nat_entry e;
	struct packet p = {};
	struct hop hop = {};
	int err;

	if (xdp_parse(ctx, &p))
		return xdp_pass(d);
	err = xdp_find(&p, d, &row);
	if (err == XDP_FOR_TC)
		return xdp_pass(d);
	if (err)
		return err;
	if (!row)
		return xdp_pass(d);
	/* The kernel may give the row's memory to another flow meanwhile. */
	e = *row;
	if (xdp_way(ctx, &p, &e, d, &hop, outer))
		return xdp_pass(d);
	if (*outer && bpf_xdp_adjust_head(ctx, -(int)*outer))
		return xdp_pass(d);

	nat_note(d, row, &p);
	count(e.is_reply ? CM_R_REPLY_TRANSLATED : CM_R_SERVICE_TRANSLATED, CM_DIR_XDP, p.bytes);
	d->target = hop.ifindex;
	err = xdp_translate(ctx, &p, &e, *outer, *outer ? NULL : &hop);
	if (!err && *outer)
		err = xdp_encapsulate(ctx, &p, &e, d, &hop);
	if (err) {
		d->action = CM_ACT_DROP;
		return err;
	}
	return *outer ? CM_R_TO_TUNNEL : CM_R_TO_NETWORK;
}

/* The packet as tc would show it: without what encapsulates it. */
static __noinline void xdp_show(struct xdp_md *ctx, const struct cm_decision *d, __u32 outer)
{
	struct cm_event *e = event_begin(d->reason);
	__u32 n;

	if (likely(!e))
		return;
	e->direction = d->direction;
	e->action = d->action;
	e->ifindex = ctx->ingress_ifindex;
	e->target = d->target;
	e->identity = d->identity;
	e->service_id = d->service_id;
	e->backend_id = d->backend_id;
	n = bpf_xdp_get_buff_len(ctx) - outer;
	/* Newer compilers compare the two lengths instead of asking `n` below, and the verifier is
	 * none the wiser. */
	barrier_var(n);
	e->bytes = n;
	if (n > sizeof(e->head))
		n = sizeof(e->head);
	if (n && !bpf_xdp_load_bytes(ctx, outer, e->head, n))
		e->head_len = n;
	event_submit(e);
}

static __always_inline int xdp_carry_out(struct xdp_md *ctx, int record_it)
{
	__u32 bytes = bpf_xdp_get_buff_len(ctx), outer = 0;
	struct cm_decision d = { .direction = CM_DIR_XDP };
	int reason = xdp_uplink(ctx, &d, &outer);

	if (reason != XDP_FOR_TC) {
		d.reason = reason;
		count(d.reason, CM_DIR_XDP, bytes);
		xdp_show(ctx, &d, outer);
	}
	if (record_it)
		record(&d);
	switch (d.action) {
	case CM_ACT_STACK:
		return XDP_PASS;
	case CM_ACT_TUNNEL:
	case CM_ACT_NETWORK:
		return d.target == ctx->ingress_ifindex ? XDP_TX : bpf_redirect(d.target, 0);
	default:
		return XDP_DROP;
	}
}

#endif /* CM_XDP_H */
