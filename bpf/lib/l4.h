/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Cursor and parsers of layer 4. Each parser takes the cursor, checks its own bounds (`ptr + 1 >
 * end`) and says CM_R_TRUNCATED if the packet ends inside what it reads.
 */
#ifndef CM_L4_H
#define CM_L4_H

#include "packet.h"

struct hdr_cursor {
	void *pos;
	void *end;
};

/* Headers may lie in page fragments: bring the ones we read into the linear part. */
static __always_inline struct hdr_cursor cursor_at(struct __sk_buff *skb, __u32 off, __u32 want)
{
	struct hdr_cursor c = { (void *)(long)skb->data + off, (void *)(long)skb->data_end };

	if (unlikely(c.pos + want > c.end)) {
		bpf_skb_pull_data(skb, skb->len < off + want ? skb->len : off + want);
		c.pos = (void *)(long)skb->data + off;
		c.end = (void *)(long)skb->data_end;
	}
	return c;
}

static __always_inline int parse_tcp(struct hdr_cursor *c, struct packet *p)
{
	struct tcphdr *tcp = c->pos;

	if ((void *)(tcp + 1) > c->end)
		return CM_R_TRUNCATED;
	p->sport = tcp->source;
	p->dport = tcp->dest;
	p->l4_len = tcp->doff * 4;
	p->tcp_flags = ((__u8 *)tcp)[13];
	return 0;
}

/* SCTP's common header is longer, and begins as UDP's. */
static __always_inline int parse_ports(struct hdr_cursor *c, struct packet *p, __u32 header)
{
	struct udphdr *udp = c->pos;

	if (c->pos + header > c->end)
		return CM_R_TRUNCATED;
	p->l4_len = header;
	p->sport = udp->source;
	p->dport = udp->dest;
	return 0;
}

static __always_inline int parse_icmp(struct hdr_cursor *c, struct packet *p)
{
	struct icmphdr *icmp = c->pos;

	if ((void *)(icmp + 1) > c->end)
		return CM_R_TRUNCATED;
	p->icmp_type = icmp->type;
	if (icmp->type == (p->is_v6 ? ICMPV6_ECHO : ICMP_ECHO))
		p->sport = icmp->echo.id;
	else if (icmp->type == (p->is_v6 ? ICMPV6_ECHOREPLY : ICMP_ECHOREPLY))
		p->dport = icmp->echo.id;
	else if (p->is_v6 &&
		 ((icmp->type >= ICMPV6_MLD_QUERY && icmp->type <= ICMPV6_ND_REDIRECT) ||
		  icmp->type == ICMPV6_MLD2_REPORT))
		return CM_R_ND;
	else if (!is_icmp_error(p))
		return CM_R_UNSUPPORTED_L4;
	return 0;
}

/* 0 for what is not forwarded anyway */
static __always_inline __u32 l4_min_len(__u8 proto)
{
	switch (proto) {
	case IPPROTO_TCP:
		return sizeof(struct tcphdr);
	case IPPROTO_SCTP:
		return 12;
	case IPPROTO_UDP:
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return sizeof(struct udphdr);
	default:
		return 0;
	}
}

static __always_inline int parse_l4(struct __sk_buff *skb, struct packet *p, __u32 off)
{
	struct hdr_cursor c = cursor_at(skb, off, sizeof(struct tcphdr));

	p->l4_off = off;
	/* What lies behind the end of the IP packet is padding, not a header. */
	if (unlikely(ends_before(p, off + l4_min_len(p->proto))))
		return CM_R_TRUNCATED;
	switch (p->proto) {
	case IPPROTO_TCP:
		return parse_tcp(&c, p);
	case IPPROTO_UDP:
		return parse_ports(&c, p, sizeof(struct udphdr));
	case IPPROTO_SCTP:
		return parse_ports(&c, p, 12);
	case IPPROTO_ICMP:
		return p->is_v6 ? CM_R_UNSUPPORTED_L4 : parse_icmp(&c, p);
	case IPPROTO_ICMPV6:
		return p->is_v6 ? parse_icmp(&c, p) : CM_R_UNSUPPORTED_L4;
	default:
		return CM_R_UNSUPPORTED_L4;
	}
}

#endif /* CM_L4_H */
