/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Turning a packet that cannot be delivered into the answer to its sender: ICMP destination
 * unreachable or TCP RST. Better an error at once than a time-out.
 *
 * The answer is laid over the packet in place. If the sender left the checksum to the hardware
 * (CHECKSUM_PARTIAL), the mark stays on the skb; that is harmless, since such a packet came from
 * this machine and its receiver takes the mark as proof of a good checksum.
 */
#ifndef CM_ANSWER_H
#define CM_ANSWER_H

#include "nat.h"

#define ANSWER_TTL 64

static __always_inline __sum16 csum_fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

static __always_inline __u32 csum_of(void *data, __u32 len, __u32 seed)
{
	return bpf_csum_diff(NULL, 0, data, len, seed);
}

static __always_inline void answer_ip(struct iphdr *ip, __be32 saddr, __be32 daddr, __u8 proto,
				      __u16 len)
{
	ip->version = 4;
	ip->ihl = 5;
	ip->tot_len = bpf_htons(len);
	ip->frag_off = bpf_htons(0x4000); /* don't fragment */
	ip->ttl = ANSWER_TTL;
	ip->protocol = proto;
	ip->saddr = saddr;
	ip->daddr = daddr;
	ip->check = csum_fold(csum_of(ip, sizeof(*ip), 0));
}

/* RFC 1122, 3.2.2: never about an ICMP error, a fragment, or a source that is no single host. */
static __always_inline int may_answer(const struct packet *p)
{
	__u8 source_top = bpf_ntohl(p->saddr.word[3]) >> 24;

	return !p->fragment && !is_icmp_error(p) && source_top != 0 && source_top != 127 &&
	       source_top < 224;
}

/*
 * Inside an ICMP error about a load-balanced packet, the quoted header names the backend: give it
 * the service's address, or the client's socket would not know its own packet.
 */
static __always_inline int unnat_quote(struct __sk_buff *skb)
{
	const __u32 quote = L4_OFF + sizeof(struct icmphdr);
	const __u32 ports = quote + sizeof(struct iphdr);
	struct cm_ct_entry *e;
	struct cm_ct_key key;
	struct packet p = {};
	struct iphdr ip;
	__be16 l4[2];

	if (bpf_skb_load_bytes(skb, quote, &ip, sizeof(ip)) ||
	    bpf_skb_load_bytes(skb, ports, l4, sizeof(l4)))
		return 0;
	if (ip.ihl != 5 || (ip.protocol != IPPROTO_TCP && ip.protocol != IPPROTO_UDP))
		return 0;
	p.saddr = addr_v4(ip.saddr);
	p.daddr = addr_v4(ip.daddr);
	p.proto = ip.protocol;
	p.sport = l4[0];
	p.dport = l4[1];
	key = ct_key(&p, CM_CT_FLOW);
	e = bpf_map_lookup_elem(&cm_ct, &key);
	if (!e || !e->service_id)
		return 0;

	/* With its checksum mended, the quoted IP header sums to the same: only the port counts. */
	p.daddr = e->nat_addr;
	p.dport = e->nat_port;
	if (bpf_l4_csum_replace(skb, L4_OFF + offsetof(struct icmphdr, checksum), l4[1], p.dport,
				sizeof(__be16)) ||
	    bpf_l3_csum_replace(skb, quote + offsetof(struct iphdr, check), ip.daddr,
				p.daddr.word[3], sizeof(__be32)) ||
	    bpf_skb_store_bytes(skb, quote + offsetof(struct iphdr, daddr), &p.daddr.word[3],
				sizeof(__be32), 0) ||
	    bpf_skb_store_bytes(skb, ports + sizeof(__be16), &p.dport, sizeof(__be16), 0))
		return CM_R_WRITE_FAILED;
	return 0;
}

/* 0: skb is now the ICMP error, from this node's gateway address to the sender. */
static __always_inline int answer_unreachable(struct __sk_buff *skb, const struct packet *p,
					      __u8 code)
{
	struct {
		struct iphdr ip;
		struct icmphdr icmp;
		__u8 quote[sizeof(struct iphdr) + 8];
	} a = {};

	if (!may_answer(p))
		return CM_R_NO_ANSWER;
	if (bpf_skb_load_bytes(skb, IP_OFF, a.quote, sizeof(a.quote)))
		return CM_R_TRUNCATED;
	a.icmp.type = ICMP_DEST_UNREACH;
	a.icmp.code = code;
	a.icmp.checksum = csum_fold(csum_of(&a.icmp, sizeof(a.icmp) + sizeof(a.quote), 0));
	answer_ip(&a.ip, cm_settings.ipv4.gateway_ip.word[3], p->saddr.word[3], IPPROTO_ICMP,
		  sizeof(a));

	if (bpf_skb_change_tail(skb, IP_OFF + sizeof(a), 0) ||
	    bpf_skb_store_bytes(skb, IP_OFF, &a, sizeof(a), 0))
		return CM_R_WRITE_FAILED;
	return unnat_quote(skb);
}

/* 0: skb is now the RST that the addressee would have sent (RFC 9293, 3.5.2). */
static __always_inline int answer_reset(struct __sk_buff *skb, const struct packet *p)
{
	struct {
		struct iphdr ip;
		struct tcphdr tcp;
	} a = {};
	struct {
		__be32 saddr, daddr;
		__u8 zero, proto;
		__be16 len;
	} pseudo = {
		.saddr = p->daddr.word[3],
		.daddr = p->saddr.word[3],
		.proto = IPPROTO_TCP,
		.len = bpf_htons(sizeof(struct tcphdr)),
	};
	struct tcphdr tcp;
	__u32 seq_len;

	if (p->tcp_flags & TCP_RST)
		return CM_R_NO_ANSWER;
	if (bpf_skb_load_bytes(skb, L4_OFF, &tcp, sizeof(tcp)))
		return CM_R_TRUNCATED;

	a.tcp.source = p->dport;
	a.tcp.dest = p->sport;
	a.tcp.doff = sizeof(a.tcp) / 4;
	a.tcp.rst = 1;
	if (p->tcp_flags & TCP_ACK) {
		a.tcp.seq = tcp.ack_seq;
	} else {
		seq_len = p->ip_len - sizeof(struct iphdr) - tcp.doff * 4 + tcp.syn + tcp.fin;
		a.tcp.ack = 1;
		a.tcp.ack_seq = bpf_htonl(bpf_ntohl(tcp.seq) + seq_len);
	}
	a.tcp.check =
		csum_fold(csum_of(&a.tcp, sizeof(a.tcp), csum_of(&pseudo, sizeof(pseudo), 0)));
	answer_ip(&a.ip, p->daddr.word[3], p->saddr.word[3], IPPROTO_TCP, sizeof(a));

	if (bpf_skb_change_tail(skb, IP_OFF + sizeof(a), 0) ||
	    bpf_skb_store_bytes(skb, IP_OFF, &a, sizeof(a), 0))
		return CM_R_WRITE_FAILED;
	return 0;
}

#endif /* CM_ANSWER_H */
