/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Parsing of frames, both families.
 *
 * parse_packet() copies what the datapath needs into struct packet, so that nothing points into the
 * packet across a helper that may move it. It returns 0 or the reason for which the packet must be
 * dropped (CM_R_ARP and CM_R_ND: unless the caller knows better). Addresses are there also then, if
 * an IP header is: who must leave to the stack what is not for a pod can tell.
 */
#ifndef CM_PARSE_H
#define CM_PARSE_H

#include "fragments.h"
#include "l4.h"

#define EXT_HOPOPTS  0
#define EXT_ROUTING  43
#define EXT_FRAGMENT 44
#define EXT_DSTOPTS  60
#define DSR_TYPE_V6  0x5e /* an option that names a service: see dsr.h */
#define MAX_EXT	     4

static __always_inline int parse_ipv4(struct __sk_buff *skb, struct packet *p)
{
	struct hdr_cursor c = cursor_at(skb, IP_OFF, sizeof(struct iphdr));
	struct iphdr *ip = c.pos;
	struct cm_fragment_key key;
	__u32 len;
	int err;

	if ((void *)(ip + 1) > c.end)
		return CM_R_TRUNCATED;
	if (ip->version != 4 || ip->ihl < 5)
		return CM_R_BAD_HEADER;
	p->saddr = addr_v4(ip->saddr);
	p->daddr = addr_v4(ip->daddr);
	if (ip->ihl != 5)
		return CM_R_IP_OPTIONS;
	len = bpf_ntohs(ip->tot_len);
	/* 0: more than 16 bits can say (BIG TCP) */
	if (len ? len < sizeof(*ip) || len > skb->len - IP_OFF : !skb->gso_size)
		return CM_R_BAD_HEADER;

	p->proto = ip->protocol;
	p->hop_limit = ip->ttl;
	p->ip_len = len;
	p->dont_fragment = !!(ip->frag_off & bpf_htons(IP_DF));
	if (likely(!(ip->frag_off & bpf_htons(IP_MF | IP_OFFSET))))
		return parse_l4(skb, p, L4_OFF_V4);

	p->fragment = 1;
	key = fragment_key(p, ip->id, ip->protocol);
	if (ip->frag_off & bpf_htons(IP_OFFSET))
		return fragment_later(p, &key);
	err = parse_l4(skb, p, L4_OFF_V4);
	return err ? err : fragment_first(p, &key);
}

struct ipv6_ext {
	__u8 next;
	__u8 len; /* in units of 8 bytes, the first not counted; reserved in a fragment header */
	__be16 offset;
	__be32 id;
};

/*
 * Past the extension headers (RFC 8200, 4). A routing header means that the destination is not the
 * last one, which no policy here could see through.
 */
static __always_inline int parse_extensions(struct __sk_buff *skb, struct packet *p, __u8 next)
{
	struct cm_fragment_key key = {};
	__u32 off = L4_OFF_V6;
	struct ipv6_ext ext;
	int err;

	for (int i = 0; i <= MAX_EXT; i++) {
		if (next != EXT_HOPOPTS && next != EXT_DSTOPTS && next != EXT_FRAGMENT)
			break;
		if (i == MAX_EXT)
			return CM_R_EXT_HEADER;
		if (ends_before(p, off + sizeof(ext)) ||
		    bpf_skb_load_bytes(skb, off, &ext, sizeof(ext)))
			return CM_R_TRUNCATED;
		/* That was not for its sender to say. */
		if (next == EXT_DSTOPTS &&
		    (ext.offset & bpf_htons(0xff00)) == bpf_htons(DSR_TYPE_V6 << 8))
			return CM_R_EXT_HEADER;
		if (next == EXT_FRAGMENT) {
			/* offset 0 and no more: a whole packet (RFC 6946) */
			p->fragment = !!(ext.offset & bpf_htons(0xfff9));
			key = fragment_key(p, ext.id, 0);
			if (ext.offset & bpf_htons(0xfff8))
				return fragment_later(p, &key);
			off += sizeof(ext);
		} else {
			off += (ext.len + 1) * 8;
		}
		next = ext.next;
	}
	if (next == EXT_ROUTING)
		return CM_R_EXT_HEADER;

	p->proto = next;
	err = parse_l4(skb, p, off & MAX_L4_OFF);
	if (!err && p->fragment)
		err = fragment_first(p, &key);
	return err;
}

static __always_inline int parse_ipv6(struct __sk_buff *skb, struct packet *p)
{
	struct hdr_cursor c = cursor_at(skb, IP_OFF, sizeof(struct ipv6hdr));
	struct ipv6hdr *ip6 = c.pos;
	__u32 len;

	if ((void *)(ip6 + 1) > c.end)
		return CM_R_TRUNCATED;
	if (ip6->version != 6)
		return CM_R_BAD_HEADER;
	__builtin_memcpy(&p->saddr, &ip6->saddr, sizeof(p->saddr));
	__builtin_memcpy(&p->daddr, &ip6->daddr, sizeof(p->daddr));
	len = bpf_ntohs(ip6->payload_len);
	if (len ? len > skb->len - L4_OFF_V6 : !skb->gso_size)
		return CM_R_BAD_HEADER;
	/* An IPv4 address in an IPv6 header would pass for the IPv4 host (RFC 4942, 2.2). */
	if (addr_is_v4(&p->saddr) || addr_is_v4(&p->daddr))
		return CM_R_BAD_HEADER;
	p->is_v6 = 1;
	p->dont_fragment = 1;
	p->proto = ip6->nexthdr;
	p->hop_limit = ip6->hop_limit;
	p->ip_len = len ? len + sizeof(*ip6) : 0;
	switch (p->proto) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_ICMPV6:
		return parse_l4(skb, p, L4_OFF_V6);
	default:
		return parse_extensions(skb, p, p->proto);
	}
}

static __noinline int parse_packet(struct __sk_buff *skb, struct packet *p)
{
	struct hdr_cursor c = cursor_at(skb, 0, L4_OFF_V4);
	struct ethhdr *eth = c.pos;

	p->bytes = skb->len;
	if ((void *)(eth + 1) > c.end)
		return CM_R_TRUNCATED;
	if (unlikely(skb->vlan_present || eth->h_proto == bpf_htons(ETH_P_8021Q) ||
		     eth->h_proto == bpf_htons(ETH_P_8021AD)))
		return CM_R_VLAN;
	switch (eth->h_proto) {
	case bpf_htons(ETH_P_IP):
		return parse_ipv4(skb, p);
	case bpf_htons(ETH_P_IPV6):
		return parse_ipv6(skb, p);
	case bpf_htons(ETH_P_ARP):
		return CM_R_ARP;
	default:
		return CM_R_NOT_IP;
	}
}

#endif /* CM_PARSE_H */
