/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Parsing. Each parser takes the cursor, checks its own bounds (`ptr + 1 > end`), moves the cursor
 * past what it read and returns the header, or NULL if the packet ends inside it.
 *
 * parse_packet() copies what the datapath needs into struct packet, so that nothing points into the
 * packet across a helper that may move it. It returns 0 or the reason for which the packet must be
 * dropped.
 */
#ifndef CM_PARSE_H
#define CM_PARSE_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include "common.h"
#include "icmp.h"

#define IP_OFF (sizeof(struct ethhdr))
#define L4_OFF (IP_OFF + sizeof(struct iphdr)) /* packets with IP options are dropped */

#define IP_MF	  0x2000
#define IP_OFFSET 0x1fff

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

struct packet {
	struct cm_addr saddr;
	struct cm_addr daddr;
	__be16 sport; /* ICMP echo request: identifier */
	__be16 dport; /* ICMP echo reply: identifier */
	__u16 ip_len;
	__u8 proto;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 fragment; /* addresses only: the fields of layer 4 are not filled in */
};

struct hdr_cursor {
	void *pos;
	void *end;
};

static __always_inline struct ethhdr *parse_eth(struct hdr_cursor *c)
{
	struct ethhdr *eth = c->pos;

	if ((void *)(eth + 1) > c->end)
		return NULL;
	c->pos = eth + 1;
	return eth;
}

static __always_inline struct iphdr *parse_ip(struct hdr_cursor *c)
{
	struct iphdr *ip = c->pos;

	if ((void *)(ip + 1) > c->end)
		return NULL;
	c->pos = ip + 1;
	return ip;
}

static __always_inline int parse_tcp(struct hdr_cursor *c, struct packet *p)
{
	struct tcphdr *tcp = c->pos;

	if ((void *)(tcp + 1) > c->end)
		return CM_R_TRUNCATED;
	p->sport = tcp->source;
	p->dport = tcp->dest;
	p->tcp_flags = ((__u8 *)tcp)[13];
	return 0;
}

static __always_inline int parse_udp(struct hdr_cursor *c, struct packet *p)
{
	struct udphdr *udp = c->pos;

	if ((void *)(udp + 1) > c->end)
		return CM_R_TRUNCATED;
	p->sport = udp->source;
	p->dport = udp->dest;
	return 0;
}

static __always_inline int is_icmp_error(const struct packet *p)
{
	return p->proto == IPPROTO_ICMP &&
	       (p->icmp_type == ICMP_DEST_UNREACH || p->icmp_type == ICMP_TIME_EXCEEDED ||
		p->icmp_type == ICMP_PARAMETERPROB);
}

static __always_inline int parse_icmp(struct hdr_cursor *c, struct packet *p)
{
	struct icmphdr *icmp = c->pos;

	if ((void *)(icmp + 1) > c->end)
		return CM_R_TRUNCATED;
	p->icmp_type = icmp->type;
	if (icmp->type == ICMP_ECHO)
		p->sport = icmp->id;
	else if (icmp->type == ICMP_ECHOREPLY)
		p->dport = icmp->id;
	else if (!is_icmp_error(p))
		return CM_R_UNSUPPORTED_L4;
	return 0;
}

/* Headers may lie in page fragments: bring the ones we read into the linear part, once. */
static __always_inline struct hdr_cursor cursor_pull(struct __sk_buff *skb)
{
	const __u32 want = L4_OFF + sizeof(struct tcphdr);
	struct hdr_cursor c = { (void *)(long)skb->data, (void *)(long)skb->data_end };

	if (unlikely(c.pos + want > c.end)) {
		bpf_skb_pull_data(skb, skb->len < want ? skb->len : want);
		c.pos = (void *)(long)skb->data;
		c.end = (void *)(long)skb->data_end;
	}
	return c;
}

static __always_inline int parse_packet(struct __sk_buff *skb, struct packet *p)
{
	struct hdr_cursor c = cursor_pull(skb);
	struct ethhdr *eth = parse_eth(&c);
	struct iphdr *ip;
	__u16 ip_len;

	if (!eth)
		return CM_R_TRUNCATED;
	if (unlikely(skb->vlan_present || eth->h_proto == bpf_htons(ETH_P_8021Q) ||
		     eth->h_proto == bpf_htons(ETH_P_8021AD)))
		return CM_R_VLAN;
	if (eth->h_proto == bpf_htons(ETH_P_ARP))
		return CM_R_ARP;
	if (eth->h_proto != bpf_htons(ETH_P_IP))
		return CM_R_NOT_IPV4;

	ip = parse_ip(&c);
	if (!ip)
		return CM_R_TRUNCATED;
	if (ip->version != 4 || ip->ihl < 5)
		return CM_R_BAD_HEADER;
	if (ip->ihl != 5)
		return CM_R_IP_OPTIONS;
	ip_len = bpf_ntohs(ip->tot_len);
	/* A GSO packet above 64 KiB (BIG TCP) says 0 here. */
	if (ip_len && (ip_len < sizeof(*ip) || ip_len > skb->len - IP_OFF))
		return CM_R_BAD_HEADER;

	p->saddr = addr_v4(ip->saddr);
	p->daddr = addr_v4(ip->daddr);
	p->proto = ip->protocol;
	p->ip_len = ip_len;
	if (unlikely(ip->frag_off & bpf_htons(IP_MF | IP_OFFSET))) {
		p->fragment = 1;
		return 0;
	}

	switch (p->proto) {
	case IPPROTO_TCP:
		return parse_tcp(&c, p);
	case IPPROTO_UDP:
		return parse_udp(&c, p);
	case IPPROTO_ICMP:
		return parse_icmp(&c, p);
	default:
		return CM_R_UNSUPPORTED_L4;
	}
}

#endif /* CM_PARSE_H */
