/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a router does with a packet, by the host's own routes. */
#ifndef CM_ROUTE_H
#define CM_ROUTE_H

#include "nat.h"
#include "verdict.h"

#define AF_INET	 2
#define AF_INET6 10

static __always_inline int hop_less(struct __sk_buff *skb, const struct packet *p)
{
	__u8 hops = p->hop_limit - 1;

	if (p->is_v6)
		return bpf_skb_store_bytes(skb, IP_OFF + offsetof(struct ipv6hdr, hop_limit), &hops,
					   sizeof(hops), 0);
	/* The checksum counts 16 bits: the hops are the upper half of theirs. */
	return bpf_l3_csum_replace(skb, IP_CSUM_OFF, bpf_htons(p->hop_limit << 8),
				   bpf_htons(hops << 8), sizeof(__be16)) ||
	       bpf_skb_store_bytes(skb, IP_OFF + offsetof(struct iphdr, ttl), &hops, sizeof(hops),
				   0);
}

/* What the host's routes say of the packet: BPF_FIB_LKUP_RET_*. `fib` is zeros before. */
static __always_inline int look_up_route(struct __sk_buff *skb, const struct packet *p,
					 struct bpf_fib_lookup *fib)
{
	fib->family = p->is_v6 ? AF_INET6 : AF_INET;
	fib->l4_protocol = p->proto;
	fib->tot_len = skb->gso_size ? 0 : p->ip_len;
	fib->ifindex = skb->ingress_ifindex;
	if (p->is_v6) {
		__builtin_memcpy(fib->ipv6_src, &p->saddr, sizeof(fib->ipv6_src));
		__builtin_memcpy(fib->ipv6_dst, &p->daddr, sizeof(fib->ipv6_dst));
	} else {
		fib->ipv4_src = p->saddr.word[3];
		fib->ipv4_dst = p->daddr.word[3];
	}
	return bpf_fib_lookup(skb, fib, sizeof(*fib), 0);
}

/* As a router does it, with a next hop whose MAC is known. 0 or not. */
static __always_inline int take_route(struct __sk_buff *skb, const struct packet *p,
				      const struct bpf_fib_lookup *fib)
{
	return hop_less(skb, p) || bpf_skb_store_bytes(skb, 0, fib->dmac, sizeof(fib->dmac), 0) ||
	       bpf_skb_store_bytes(skb, sizeof(fib->dmac), fib->smac, sizeof(fib->smac), 0);
}

/* On by the host's routes, also if the next hop's MAC is yet to be asked for. 0 or a reason. */
static __always_inline int route_out(struct __sk_buff *skb, const struct packet *p,
				     struct cm_decision *d)
{
	struct bpf_fib_lookup fib = {};
	int found = look_up_route(skb, p, &fib);

	if (p->hop_limit <= 1 ||
	    (found != BPF_FIB_LKUP_RET_SUCCESS && found != BPF_FIB_LKUP_RET_NO_NEIGH))
		return CM_R_NO_ROUTE;
	if (found == BPF_FIB_LKUP_RET_NO_NEIGH ? hop_less(skb, p) : take_route(skb, p, &fib))
		return CM_R_WRITE_FAILED;
	d->action = found == BPF_FIB_LKUP_RET_NO_NEIGH ? CM_ACT_NEIGHBOUR : CM_ACT_NETWORK;
	d->target = fib.ifindex;
	return 0;
}

#endif /* CM_ROUTE_H */
