/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Rewriting addresses and ports; checksums stay right, also the half-done ones of offloading. */
#ifndef CM_NAT_H
#define CM_NAT_H

#include <stddef.h>
#include "ct.h"

#define IP_CSUM_OFF (IP_OFF + offsetof(struct iphdr, check))

/* Since 6.16; without it, a checksum that a NIC computed over the whole frame goes wrong for IPv6.
 */
#ifndef BPF_F_IPV6
#define BPF_F_IPV6 (1ULL << 7)
#endif

enum nat_side {
	NAT_SOURCE,
	NAT_DESTINATION,
};

/* Where an address lies behind the start of its IP header. */
static __always_inline __u32 addr_offset(int is_v6, enum nat_side side)
{
	if (is_v6)
		return side == NAT_SOURCE ? offsetof(struct ipv6hdr, saddr)
					  : offsetof(struct ipv6hdr, daddr);
	return side == NAT_SOURCE ? offsetof(struct iphdr, saddr) : offsetof(struct iphdr, daddr);
}

/* The same place in TCP, UDP and SCTP. */
static __always_inline __u32 port_offset(enum nat_side side)
{
	return side == NAT_SOURCE ? 0 : sizeof(__be16);
}

/* The first 12 bytes of two IPv4 addresses are equal: the difference is that of the packet's. */
static __always_inline __wsum addr_diff(const struct cm_addr *from, const struct cm_addr *to)
{
	return bpf_csum_diff((__be32 *)from->word, sizeof(*from), (__be32 *)to->word, sizeof(*to),
			     0);
}

static __always_inline int write_addr(struct __sk_buff *skb, __u32 off, int is_v6,
				      const struct cm_addr *addr)
{
	if (is_v6)
		return bpf_skb_store_bytes(skb, off, addr, sizeof(*addr), 0);
	return bpf_skb_store_bytes(skb, off, &addr->word[3], sizeof(__be32), 0);
}

/* A change of addresses, to the checksum at `off` that covers them by a pseudo header. */
static __always_inline int csum_pseudo(struct __sk_buff *skb, __u32 off, int is_v6, __wsum diff,
				       __u64 flags)
{
	flags |= BPF_F_PSEUDO_HDR;
	if (is_v6 && !bpf_l4_csum_replace(skb, off, 0, diff, flags | BPF_F_IPV6))
		return 0;
	return bpf_l4_csum_replace(skb, off, 0, diff, flags);
}

/* SCTP's checksum covers neither addresses nor, unless it is computed anew, other ports. */
static __always_inline int nat_l4(struct __sk_buff *skb, const struct packet *p, __wsum diff,
				  enum nat_side side, __be16 old_port, __be16 new_port)
{
	/* UDP: a checksum of 0 means none and stays; one that becomes 0 is written as 0xffff. */
	__u64 flags = p->proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	__u32 l4_off = p->l4_off & MAX_L4_OFF;
	__u32 csum = l4_off + (p->proto == IPPROTO_UDP ? offsetof(struct udphdr, check)
						       : offsetof(struct tcphdr, check));

	if (p->proto == IPPROTO_SCTP)
		return old_port == new_port ? 0 : CM_R_UNSUPPORTED_L4;
	if (csum_pseudo(skb, csum, p->is_v6, diff, flags) ||
	    bpf_l4_csum_replace(skb, csum, old_port, new_port, flags | sizeof(__be16)) ||
	    bpf_skb_store_bytes(skb, l4_off + port_offset(side), &new_port, sizeof(new_port), 0))
		return CM_R_WRITE_FAILED;
	return 0;
}

static __always_inline int nat_rewrite(struct __sk_buff *skb, const struct packet *p,
				       enum nat_side side, const struct cm_addr *old_addr,
				       const struct cm_addr *new_addr, __be16 old_port,
				       __be16 new_port)
{
	__wsum diff = addr_diff(old_addr, new_addr);
	int err = p->later ? 0 : nat_l4(skb, p, diff, side, old_port, new_port);

	if (err)
		return err;
	if (!p->is_v6 && bpf_l3_csum_replace(skb, IP_CSUM_OFF, 0, diff, 0))
		return CM_R_WRITE_FAILED;
	if (write_addr(skb, IP_OFF + addr_offset(p->is_v6, side), p->is_v6, new_addr))
		return CM_R_WRITE_FAILED;
	return 0;
}

static __always_inline int nat_destination(struct __sk_buff *skb, struct packet *p,
					   const struct cm_addr *addr, __be16 port)
{
	const struct cm_addr old_addr = p->daddr;
	const __be16 old_port = p->dport;

	p->daddr = *addr;
	p->dport = port;
	return nat_rewrite(skb, p, NAT_DESTINATION, &old_addr, &p->daddr, old_port, port);
}

static __noinline int nat_source(struct __sk_buff *skb, struct packet *p,
				 const struct cm_addr *addr, __be16 port)
{
	const struct cm_addr old_addr = p->saddr;
	const __be16 old_port = p->sport;

	p->saddr = *addr;
	p->sport = port;
	return nat_rewrite(skb, p, NAT_SOURCE, &old_addr, &p->saddr, old_port, port);
}

#endif /* CM_NAT_H */
