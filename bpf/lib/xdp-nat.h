/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Rewriting in the driver's buffer what nat_apply() and take_route() rewrite in an skb; to the same
 * bytes. There is no helper for checksums here, and nobody who would finish one that is half done.
 */
#ifndef CM_XDP_NAT_H
#define CM_XDP_NAT_H

#include "icmp-error.h"
#include "nat-table.h"
#include "xdp-parse.h"

/* Where to on the link, for an IP packet of so many bytes of that protocol. */
struct hop {
	__u8 macs[2 * ETH_ALEN]; /* as an Ethernet header begins */
	__u32 ifindex;
	__u16 bytes;
	__u8 proto;
	__u8 pad;
};

/* More than any header before layer 4, an outer one included. */
#define XDP_MAX_OFF 0xff

/* In the frame, with `outer` bytes before it. */
static __always_inline __u32 xdp_csum_off(const struct packet *p, __u32 outer)
{
	return (p->l4_off + outer +
		(p->proto == IPPROTO_UDP ? offsetof(struct udphdr, check)
					 : offsetof(struct tcphdr, check))) &
	       XDP_MAX_OFF;
}

/* Of addresses, protocol and length. (The words before IPv4 addresses sum up to nothing.) */
static __always_inline __u32 xdp_pseudo_sum(const struct cm_addr *saddr,
					    const struct cm_addr *daddr, const struct packet *p)
{
	__u32 sum = bpf_htons(p->proto) + bpf_htons(p->ip_len - (p->l4_off - IP_OFF));

	return csum_of((void *)daddr, sizeof(*daddr), csum_of((void *)saddr, sizeof(*saddr), sum));
}

enum xdp_csum {
	XDP_CSUM_WHOLE,
	XDP_CSUM_NONE,	    /* UDP without */
	XDP_CSUM_HALF_DONE, /* or it looks so: one in 65535 that are right does */
};

/*
 * What a host gives to its own veth has only the pseudo header's sum where a NIC would put the
 * checksum, and whether that is so is not to be seen from here; so is it with what is to be cut
 * into segments yet. tc can tell.
 */
static __noinline enum xdp_csum xdp_csum_of(struct xdp_md *ctx, const struct packet *p)
{
	struct span s = span_at(ctx, xdp_csum_off(p, 0));
	__sum16 *check = s.pos;

	if ((void *)(check + 1) > s.end)
		return XDP_CSUM_HALF_DONE;
	if (p->proto == IPPROTO_UDP && !*check)
		return XDP_CSUM_NONE;
	return *check == (__u16)~csum_fold(xdp_pseudo_sum(&p->saddr, &p->daddr, p))
		       ? XDP_CSUM_HALF_DONE
		       : XDP_CSUM_WHOLE;
}

static __always_inline __sum16 csum_patch(__sum16 check, __u64 diff)
{
	diff += (__u16)~check;
	diff = (diff & 0xffffffff) + (diff >> 32);
	diff = (diff & 0xffffffff) + (diff >> 32);
	return csum_fold(diff);
}

/* What two bytes that change add to a sum. */
static __always_inline __u64 csum_change(__be16 from, __be16 to)
{
	return (__u64)(__u16)~from + to;
}

static __always_inline int xdp_write_l4(struct xdp_md *ctx, const struct packet *p,
					const struct cm_nat_entry *e, __u32 outer, __u64 addresses)
{
	struct span s = span_at(ctx, (p->l4_off + outer) & XDP_MAX_OFF);
	struct span c = span_at(ctx, xdp_csum_off(p, outer));
	const int is_udp = p->proto == IPPROTO_UDP;
	__be16 *ports = s.pos;
	__sum16 *check = c.pos;

	if ((void *)(ports + 2) > s.end || (void *)(check + 1) > c.end)
		return CM_R_WRITE_FAILED;
	if (!is_udp || *check) {
		*check = csum_patch(*check, addresses + csum_change(p->sport, e->sport) +
						    csum_change(p->dport, e->dport));
		if (is_udp && !*check)
			*check = 0xffff;
	}
	ports[0] = e->sport;
	ports[1] = e->dport;
	return 0;
}

/* `hops`: what is left of them. */
static __always_inline int xdp_write_ip(struct xdp_md *ctx, const struct packet *p,
					const struct cm_nat_entry *e, __u32 outer, __u64 addresses,
					__u8 hops)
{
	struct span s = span_at(ctx, (IP_OFF + outer) & XDP_MAX_OFF);
	struct ipv6hdr *ip6 = s.pos;
	struct iphdr *ip = s.pos;

	if (p->is_v6) {
		if ((void *)(ip6 + 1) > s.end)
			return CM_R_WRITE_FAILED;
		__builtin_memcpy(&ip6->saddr, &e->saddr, sizeof(ip6->saddr));
		__builtin_memcpy(&ip6->daddr, &e->daddr, sizeof(ip6->daddr));
		ip6->hop_limit = hops;
		return 0;
	}
	if ((void *)(ip + 1) > s.end)
		return CM_R_WRITE_FAILED;
	ip->saddr = e->saddr.word[3];
	ip->daddr = e->daddr.word[3];
	ip->check = csum_patch(ip->check, addresses + csum_change(bpf_htons(p->hop_limit << 8),
								  bpf_htons(hops << 8)));
	ip->ttl = hops;
	return 0;
}

/*
 * The packet, `outer` bytes into the buffer, becomes what the row says; to go to `hop`, or, without
 * one, into a tunnel. 0 or a reason.
 */
static __noinline int xdp_translate(struct xdp_md *ctx, const struct packet *p,
				    const struct cm_nat_entry *e, __u32 outer,
				    const struct hop *hop)
{
	__u64 addresses = (__u32)addr_diff(&p->saddr, &e->saddr);
	struct span s = span_at(ctx, 0);

	addresses += (__u32)addr_diff(&p->daddr, &e->daddr);
	if (xdp_write_ip(ctx, p, e, outer, addresses, hop ? p->hop_limit - 1 : p->hop_limit) ||
	    xdp_write_l4(ctx, p, e, outer, addresses))
		return CM_R_WRITE_FAILED;
	if (!hop)
		return 0;
	if (s.pos + sizeof(hop->macs) > s.end)
		return CM_R_WRITE_FAILED;
	__builtin_memcpy(s.pos, hop->macs, sizeof(hop->macs));
	return 0;
}

#endif /* CM_XDP_NAT_H */
