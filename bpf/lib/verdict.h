/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Deciding and doing are apart. A program's body looks at the packet and at struct hook (what the
 * kernel would tell it) and fills in struct cm_decision; it returns a reason, and dropping is what
 * happens if no action was chosen. carry_out() then counts, and acts.
 *
 * The seam: BPF_PROG_TEST_RUN shows neither the tunnel key nor the target of a redirect, and cannot
 * provide a tunnel key. Test programs (test/seam.bpf.c) run the same bodies with a made-up struct
 * hook and `record` set; the decision is then left in cm_decisions. In production `record` is a
 * constant 0.
 */
#ifndef CM_VERDICT_H
#define CM_VERDICT_H

#include <linux/if_packet.h>
#include <linux/pkt_cls.h>
#include "count.h"
#include "events.h"
#include "tables.h"

#define TUNNEL_TTL 64

struct hook {
	__u32 ifindex;
	__u32 vni; /* overlay: the sender's identity, as the tunnel says */
	__u32 record;
	struct cm_addr remote; /* overlay: the node that encapsulated */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct cm_decision);
} cm_decisions SEC(".maps");

static __always_inline enum cm_reason to_stack(struct cm_decision *d, enum cm_reason why)
{
	d->action = CM_ACT_STACK;
	return why;
}

static __always_inline enum cm_reason to_tunnel(struct cm_decision *d, const struct cm_addr *node,
						__u32 identity, enum cm_reason why)
{
	d->action = CM_ACT_TUNNEL;
	d->target = cm_settings.vxlan_ifindex;
	d->remote = *node;
	d->vni = identity & CM_IDENTITY_MASK;
	return why;
}

/* Straight into the pod's namespace; its own MAC must be on the frame, or its stack ignores it. */
static __always_inline enum cm_reason to_endpoint(struct __sk_buff *skb, struct cm_decision *d,
						  const struct cm_endpoint *ep, enum cm_reason why)
{
	/* pod_mac and host_mac together are the head of an Ethernet frame */
	if (bpf_skb_store_bytes(skb, 0, ep->pod_mac, sizeof(ep->pod_mac) + sizeof(ep->host_mac), 0))
		return CM_R_WRITE_FAILED;
	d->action = CM_ACT_ENDPOINT;
	d->target = ep->ifindex;
	return why;
}

static __noinline int encapsulate(struct __sk_buff *skb, const struct cm_decision *d)
{
	struct bpf_tunnel_key key = {
		.tunnel_id = d->vni,
		.tunnel_ttl = TUNNEL_TTL,
	};

	if (addr_is_v4(&d->remote)) {
		key.remote_ipv4 = bpf_ntohl(d->remote.word[3]);
		return bpf_skb_set_tunnel_key(skb, &key, sizeof(key), BPF_F_ZERO_CSUM_TX);
	}
	/* UDP over IPv6 without checksum is not for every receiver (RFC 6935). */
	__builtin_memcpy(key.remote_ipv6, &d->remote, sizeof(key.remote_ipv6));
	return bpf_skb_set_tunnel_key(skb, &key, sizeof(key), BPF_F_TUNINFO_IPV6);
}

static __always_inline void record(const struct cm_decision *d)
{
	__u32 zero = 0;

	bpf_map_update_elem(&cm_decisions, &zero, d, BPF_ANY);
}

/* Apart, so that its one copy is not in the way of packets that are not shown. */
static __noinline void event_packet(struct __sk_buff *skb, struct cm_event *e)
{
	__u32 n = skb->len;

	e->bytes = n;
	if (n > sizeof(e->head))
		n = sizeof(e->head);
	if (n && !bpf_skb_load_bytes(skb, 0, e->head, n))
		e->head_len = n;
}

static __always_inline void show(struct __sk_buff *skb, const struct hook *hook,
				 const struct cm_decision *d)
{
	struct cm_event *e = event_begin(d->reason);

	if (likely(!e))
		return;
	e->direction = d->direction;
	e->action = d->action;
	e->ifindex = hook->ifindex;
	e->target = d->target;
	e->identity = d->identity;
	e->service_id = d->service_id;
	e->backend_id = d->backend_id;
	event_packet(skb, e);
	event_submit(e);
}

static __noinline __attribute__((unused)) int carry_out(struct __sk_buff *skb,
							const struct hook *hook,
							struct cm_decision *d,
							enum cm_direction dir, __u32 bytes)
{
	if (d->action == CM_ACT_TUNNEL && encapsulate(skb, d)) {
		d->action = CM_ACT_DROP;
		d->reason = CM_R_WRITE_FAILED;
	}
	d->direction = dir;
	count(d->reason, dir, bytes);
	show(skb, hook, d);
	if (hook->record)
		record(d);

	/* The far end's MACs are on what it encapsulated: "not for this host", to the kernel. */
	if (d->action != CM_ACT_DROP && skb->pkt_type != PACKET_HOST && dir == CM_DIR_OVERLAY)
		bpf_skb_change_type(skb, PACKET_HOST);

	switch (d->action) {
	case CM_ACT_ENDPOINT:
		return bpf_redirect_peer(d->target, 0);
	case CM_ACT_TUNNEL:
	case CM_ACT_NETWORK:
		return bpf_redirect(d->target, 0);
	case CM_ACT_NEIGHBOUR:
		return bpf_redirect_neigh(d->target, NULL, 0, 0);
	case CM_ACT_STACK:
		return TC_ACT_OK;
	default:
		return TC_ACT_SHOT;
	}
}

#endif /* CM_VERDICT_H */
