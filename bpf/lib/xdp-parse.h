/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Frames as the driver has them, where they are plain: TCP or UDP behind an IP header without
 * options or extensions, in one piece. What is read of them is what parse_packet() would have read;
 * all else is for tc to look at.
 *
 * The frame may lie in several buffers (xdp.frags): headers are looked for in the first.
 */
#ifndef CM_XDP_PARSE_H
#define CM_XDP_PARSE_H

#include "packet.h"

#define XDP_FOR_TC -1

struct span {
	void *pos;
	void *end;
};

/* The bytes from `off` on. */
static __always_inline struct span span_at(const struct xdp_md *ctx, __u32 off)
{
	struct span s = { (void *)(long)ctx->data + off, (void *)(long)ctx->data_end };

	return s;
}

/* 0 or XDP_FOR_TC */
static __always_inline int xdp_parse_l4(const struct span *s, struct packet *p)
{
	struct tcphdr *tcp = s->pos;
	struct udphdr *udp = s->pos;

	switch (p->proto) {
	case IPPROTO_TCP:
		if ((void *)(tcp + 1) > s->end || ends_before(p, p->l4_off + sizeof(*tcp)))
			return XDP_FOR_TC;
		p->sport = tcp->source;
		p->dport = tcp->dest;
		p->l4_len = tcp->doff * 4;
		p->tcp_flags = ((__u8 *)tcp)[13];
		return 0;
	case IPPROTO_UDP:
		if ((void *)(udp + 1) > s->end || ends_before(p, p->l4_off + sizeof(*udp)))
			return XDP_FOR_TC;
		p->sport = udp->source;
		p->dport = udp->dest;
		p->l4_len = sizeof(*udp);
		return 0;
	default:
		return XDP_FOR_TC;
	}
}

static __always_inline int xdp_parse_ipv4(const struct xdp_md *ctx, struct packet *p)
{
	struct span s = span_at(ctx, IP_OFF);
	struct iphdr *ip = s.pos;

	if ((void *)(ip + 1) > s.end || ip->version != 4 || ip->ihl != 5 ||
	    ip->frag_off & bpf_htons(IP_MF | IP_OFFSET))
		return XDP_FOR_TC;
	p->ip_len = bpf_ntohs(ip->tot_len);
	if (p->ip_len < sizeof(*ip) || p->ip_len > p->bytes - IP_OFF)
		return XDP_FOR_TC;
	p->saddr = addr_v4(ip->saddr);
	p->daddr = addr_v4(ip->daddr);
	p->proto = ip->protocol;
	p->hop_limit = ip->ttl;
	p->l4_off = L4_OFF_V4;
	s.pos = ip + 1;
	return xdp_parse_l4(&s, p);
}

static __always_inline int xdp_parse_ipv6(const struct xdp_md *ctx, struct packet *p)
{
	struct span s = span_at(ctx, IP_OFF);
	struct ipv6hdr *ip6 = s.pos;
	__u32 len;

	if ((void *)(ip6 + 1) > s.end || ip6->version != 6)
		return XDP_FOR_TC;
	len = bpf_ntohs(ip6->payload_len);
	if (!len || len > p->bytes - L4_OFF_V6)
		return XDP_FOR_TC;
	p->ip_len = len + sizeof(*ip6);
	__builtin_memcpy(&p->saddr, &ip6->saddr, sizeof(p->saddr));
	__builtin_memcpy(&p->daddr, &ip6->daddr, sizeof(p->daddr));
	if (addr_is_v4(&p->saddr) || addr_is_v4(&p->daddr))
		return XDP_FOR_TC;
	p->is_v6 = 1;
	p->proto = ip6->nexthdr;
	p->hop_limit = ip6->hop_limit;
	p->l4_off = L4_OFF_V6;
	s.pos = ip6 + 1;
	return xdp_parse_l4(&s, p);
}

/* 0 or XDP_FOR_TC; `p` is zeros before. */
static __noinline int xdp_parse(struct xdp_md *ctx, struct packet *p)
{
	struct span s = span_at(ctx, 0);
	struct ethhdr *eth = s.pos;

	p->bytes = bpf_xdp_get_buff_len(ctx);
	if ((void *)(eth + 1) > s.end)
		return XDP_FOR_TC;
	switch (eth->h_proto) {
	case bpf_htons(ETH_P_IP):
		return xdp_parse_ipv4(ctx, p);
	case bpf_htons(ETH_P_IPV6):
		return xdp_parse_ipv6(ctx, p);
	default:
		return XDP_FOR_TC;
	}
}

#endif /* CM_XDP_PARSE_H */
