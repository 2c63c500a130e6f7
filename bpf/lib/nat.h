/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Rewriting addresses and ports; checksums stay right, also the half-done ones of offloading. */
#ifndef CM_NAT_H
#define CM_NAT_H

#include <stddef.h>
#include "ct.h"

#define IP_CSUM_OFF  (IP_OFF + offsetof(struct iphdr, check))
#define IP_SADDR_OFF (IP_OFF + offsetof(struct iphdr, saddr))
#define IP_DADDR_OFF (IP_OFF + offsetof(struct iphdr, daddr))
/* the same place in TCP and UDP */
#define L4_SPORT_OFF L4_OFF
#define L4_DPORT_OFF (L4_OFF + sizeof(__be16))

struct nat {
	__u32 addr_off;
	__u32 port_off;
	__be32 old_addr; /* as in the packet */
	__be32 new_addr;
	__be16 old_port;
	__be16 new_port;
};

static __always_inline int nat_rewrite(struct __sk_buff *skb, __u8 proto, const struct nat *n)
{
	/* UDP: a checksum of 0 means none and stays; one that becomes 0 is written as 0xffff. */
	__u64 flags = proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	__u32 csum = L4_OFF + (proto == IPPROTO_UDP ? offsetof(struct udphdr, check)
						    : offsetof(struct tcphdr, check));

	if (bpf_l4_csum_replace(skb, csum, n->old_addr, n->new_addr,
				flags | BPF_F_PSEUDO_HDR | sizeof(__be32)) ||
	    bpf_l4_csum_replace(skb, csum, n->old_port, n->new_port, flags | sizeof(__be16)) ||
	    bpf_l3_csum_replace(skb, IP_CSUM_OFF, n->old_addr, n->new_addr, sizeof(__be32)) ||
	    bpf_skb_store_bytes(skb, n->addr_off, &n->new_addr, sizeof(__be32), 0) ||
	    bpf_skb_store_bytes(skb, n->port_off, &n->new_port, sizeof(__be16), 0))
		return CM_R_WRITE_FAILED;
	return 0;
}

static __always_inline int nat_destination(struct __sk_buff *skb, struct packet *p,
					   const struct cm_addr *addr, __be16 port)
{
	const struct nat n = {
		.addr_off = IP_DADDR_OFF,
		.port_off = L4_DPORT_OFF,
		.old_addr = p->daddr.word[3],
		.new_addr = addr->word[3],
		.old_port = p->dport,
		.new_port = port,
	};

	p->daddr = *addr;
	p->dport = port;
	return nat_rewrite(skb, p->proto, &n);
}

static __always_inline int nat_source(struct __sk_buff *skb, struct packet *p,
				      const struct cm_addr *addr, __be16 port)
{
	const struct nat n = {
		.addr_off = IP_SADDR_OFF,
		.port_off = L4_SPORT_OFF,
		.old_addr = p->saddr.word[3],
		.new_addr = addr->word[3],
		.old_port = p->sport,
		.new_port = port,
	};

	p->saddr = *addr;
	p->sport = port;
	return nat_rewrite(skb, p->proto, &n);
}

#endif /* CM_NAT_H */
