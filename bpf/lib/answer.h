/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The RST that answers a TCP segment in the name of whoever it was sent to (RFC 9293, 3.5.2). */
#ifndef CM_ANSWER_H
#define CM_ANSWER_H

#include "icmp-error.h"

/* Of IPv6 (RFC 8200, 8.1), which sums to the same as IPv4's if the addresses do. */
struct pseudo_header {
	__be32 saddr[4];
	__be32 daddr[4];
	__be32 len;
	__be32 proto;
};

static __always_inline void fill_reset(struct tcphdr *rst, const struct tcphdr *tcp,
				       const struct packet *p)
{
	__u32 header = p->l4_off - IP_OFF + tcp->doff * 4;

	rst->source = p->dport;
	rst->dest = p->sport;
	rst->doff = sizeof(*rst) / 4;
	rst->rst = 1;
	if (p->tcp_flags & TCP_ACK) {
		rst->seq = tcp->ack_seq;
	} else {
		rst->ack = 1;
		rst->ack_seq =
			bpf_htonl(bpf_ntohl(tcp->seq) + p->ip_len - header + tcp->syn + tcp->fin);
	}
}

static __always_inline __sum16 tcp_checksum(struct tcphdr *tcp, const struct packet *p)
{
	struct pseudo_header pseudo = {
		.len = bpf_htonl(sizeof(*tcp)),
		.proto = bpf_htonl(IPPROTO_TCP),
	};

	if (p->is_v6) {
		__builtin_memcpy(pseudo.saddr, &p->daddr, sizeof(pseudo.saddr));
		__builtin_memcpy(pseudo.daddr, &p->saddr, sizeof(pseudo.daddr));
	} else {
		pseudo.saddr[3] = p->daddr.word[3];
		pseudo.daddr[3] = p->saddr.word[3];
	}
	return csum_fold(csum_of(tcp, sizeof(*tcp), csum_of(&pseudo, sizeof(pseudo), 0)));
}

/* 0: skb is now the RST. */
static __noinline int answer_reset(struct __sk_buff *skb, const struct packet *p)
{
	struct {
		union {
			struct iphdr ip;
			struct ipv6hdr ip6;
		};
		struct tcphdr tcp;
	} a = {};
	__u32 ip_size = p->is_v6 ? sizeof(a.ip6) : sizeof(a.ip);
	struct tcphdr tcp;

	if ((p->tcp_flags & TCP_RST) || p->later)
		return CM_R_NO_ANSWER;
	if (bpf_skb_load_bytes(skb, p->l4_off, &tcp, sizeof(tcp)))
		return CM_R_TRUNCATED;

	fill_reset(&a.tcp, &tcp, p);
	a.tcp.check = tcp_checksum(&a.tcp, p);
	if (p->is_v6) {
		a.ip6.version = 6;
		a.ip6.payload_len = bpf_htons(sizeof(a.tcp));
		a.ip6.nexthdr = IPPROTO_TCP;
		a.ip6.hop_limit = ANSWER_TTL;
		__builtin_memcpy(&a.ip6.saddr, &p->daddr, sizeof(a.ip6.saddr));
		__builtin_memcpy(&a.ip6.daddr, &p->saddr, sizeof(a.ip6.daddr));
	} else {
		fill_ipv4(&a.ip, p->daddr.word[3], p->saddr.word[3], IPPROTO_TCP,
			  sizeof(a.ip) + sizeof(a.tcp));
	}

	if (bpf_skb_change_tail(skb, IP_OFF + ip_size + sizeof(a.tcp), 0) ||
	    bpf_skb_store_bytes(skb, IP_OFF, &a, ip_size, 0) ||
	    bpf_skb_store_bytes(skb, IP_OFF + ip_size, &a.tcp, sizeof(a.tcp), 0))
		return CM_R_WRITE_FAILED;
	return 0;
}

#endif /* CM_ANSWER_H */
