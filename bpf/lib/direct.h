/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * To a pod of another node without encapsulation, by the host's own routes. What a router does is
 * done here (the next hop's MAC, a hop less); whatever is not as simple as that is left to the
 * host's stack, which resolves neighbours and says "too big", "time exceeded" and "unreachable".
 */
#ifndef CM_DIRECT_H
#define CM_DIRECT_H

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

/* 0: on its way to d->target. Anything else: not for us to route. */
static __noinline int route_directly(struct __sk_buff *skb, const struct packet *p,
				     struct cm_decision *d)
{
	struct bpf_fib_lookup fib = {
		.family = p->is_v6 ? AF_INET6 : AF_INET,
		.l4_protocol = p->proto,
		.tot_len = skb->gso_size ? 0 : p->ip_len,
		.ifindex = skb->ingress_ifindex,
	};

	if (p->hop_limit <= 1)
		return -1;
	if (p->is_v6) {
		__builtin_memcpy(fib.ipv6_src, &p->saddr, sizeof(fib.ipv6_src));
		__builtin_memcpy(fib.ipv6_dst, &p->daddr, sizeof(fib.ipv6_dst));
	} else {
		fib.ipv4_src = p->saddr.word[3];
		fib.ipv4_dst = p->daddr.word[3];
	}
	if (bpf_fib_lookup(skb, &fib, sizeof(fib), 0) != BPF_FIB_LKUP_RET_SUCCESS)
		return -1;
	if (hop_less(skb, p) || bpf_skb_store_bytes(skb, 0, fib.dmac, sizeof(fib.dmac), 0) ||
	    bpf_skb_store_bytes(skb, sizeof(fib.dmac), fib.smac, sizeof(fib.smac), 0))
		return -1;
	d->action = CM_ACT_NETWORK;
	d->target = fib.ifindex;
	return 0;
}

#endif /* CM_DIRECT_H */
