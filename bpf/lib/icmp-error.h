/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * ICMP and ICMPv6 errors of our own, laid over the packet that they are about. Better an error at
 * once than a time-out; but no receiver gets more than a burst of them and then a trickle.
 *
 * If the sender left the checksum to the hardware (CHECKSUM_PARTIAL), the mark stays on the skb;
 * that is harmless, since such a packet came from this machine and its receiver takes the mark as
 * proof of a good checksum.
 */
#ifndef CM_ICMP_ERROR_H
#define CM_ICMP_ERROR_H

#include "icmp-nat.h"
#include "tables.h"

#define ANSWER_TTL 64

#define ICMP_BURST	 100
#define ICMP_INTERVAL_NS 10000000ULL /* a token each: 100 errors a second */

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct cm_addr);
	__type(value, struct cm_bucket);
} cm_icmp_limit SEC(".maps");

enum icmp_error {
	ICMP_NO_HOST,
	ICMP_NO_PORT,
	ICMP_TOO_BIG,
};

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

/*
 * Two CPUs may take the same token: a few errors more than the limit do no harm, a lock would.
 */
static __noinline int take_token(const struct cm_addr *receiver)
{
	__u64 now = bpf_ktime_get_ns();
	struct cm_bucket *b = bpf_map_lookup_elem(&cm_icmp_limit, receiver);
	struct cm_bucket full = { .filled_ns = now, .tokens = ICMP_BURST - 1 };
	__u64 fresh;

	if (!b) {
		bpf_map_update_elem(&cm_icmp_limit, receiver, &full, BPF_ANY);
		return 1;
	}
	fresh = (now - b->filled_ns) / ICMP_INTERVAL_NS;
	if (fresh) {
		b->tokens = fresh + b->tokens > ICMP_BURST ? ICMP_BURST : fresh + b->tokens;
		b->filled_ns = now;
	}
	if (!b->tokens)
		return 0;
	b->tokens--;
	return 1;
}

/*
 * RFC 1122, 3.2.2 and RFC 4443, 2.4: never about an ICMP error, a later fragment, or to a source
 * that is no single host.
 */
static __always_inline int may_answer(const struct packet *p)
{
	__u32 top = bpf_ntohl(p->is_v6 ? p->saddr.word[0] : p->saddr.word[3]) >> 24;

	if (p->later || is_icmp_error(p))
		return 0;
	if (p->is_v6)
		return top != 0xff && !addr_is_none(&p->saddr);
	return top != 0 && top != 127 && top < 224;
}

static __always_inline void fill_ipv4(struct iphdr *ip, __be32 saddr, __be32 daddr, __u8 proto,
				      __u16 len)
{
	ip->version = 4;
	ip->ihl = 5;
	ip->tot_len = bpf_htons(len);
	ip->frag_off = bpf_htons(IP_DF);
	ip->ttl = ANSWER_TTL;
	ip->protocol = proto;
	ip->saddr = saddr;
	ip->daddr = daddr;
	ip->check = csum_fold(csum_of(ip, sizeof(*ip), 0));
}

static __always_inline int lay_over_v4(struct __sk_buff *skb, const struct packet *p,
				       enum icmp_error error, __u16 mtu)
{
	struct {
		struct iphdr ip;
		struct icmphdr icmp;
		__u8 quote[sizeof(struct iphdr) + 8];
	} a = {};

	if (bpf_skb_load_bytes(skb, IP_OFF, a.quote, sizeof(a.quote)))
		return CM_R_TRUNCATED;
	a.icmp.type = ICMP_DEST_UNREACH;
	a.icmp.code = error == ICMP_NO_HOST   ? ICMP_HOST_UNREACH
		      : error == ICMP_NO_PORT ? ICMP_PORT_UNREACH
					      : ICMP_FRAG_NEEDED;
	a.icmp.frag_needed.mtu = bpf_htons(mtu);
	a.icmp.checksum = csum_fold(csum_of(&a.icmp, sizeof(a.icmp) + sizeof(a.quote), 0));
	fill_ipv4(&a.ip, cm_settings.ipv4.gateway_ip.word[3], p->saddr.word[3], IPPROTO_ICMP,
		  sizeof(a));

	if (bpf_skb_change_tail(skb, IP_OFF + sizeof(a), 0) ||
	    bpf_skb_store_bytes(skb, IP_OFF, &a, sizeof(a), 0))
		return CM_R_WRITE_FAILED;
	return 0;
}

/* Quotes up to the ports, so that the socket concerned is found; RFC 4443 would like more. */
#define V6_QUOTE     (sizeof(struct ipv6hdr) + 8)
#define V6_QUOTE_MAX (V6_QUOTE + 64)

static __always_inline int lay_over_v6(struct __sk_buff *skb, const struct packet *p,
				       enum icmp_error error, __u32 mtu)
{
	struct {
		struct ipv6hdr ip;
		struct icmphdr icmp;
		__u8 quote[V6_QUOTE_MAX];
	} a = {};
	__u32 quote = p->l4_off - IP_OFF + 8;
	__u32 len;

	if (quote > V6_QUOTE_MAX)
		quote = V6_QUOTE_MAX;
	if (quote < V6_QUOTE)
		return CM_R_TRUNCATED;
	if (bpf_skb_load_bytes(skb, IP_OFF, a.quote, quote))
		return CM_R_TRUNCATED;
	len = sizeof(a.icmp) + quote;
	a.icmp.type = error == ICMP_TOO_BIG ? ICMPV6_PKT_TOOBIG : ICMPV6_DEST_UNREACH;
	a.icmp.code = error == ICMP_NO_HOST   ? ICMPV6_ADDR_UNREACH
		      : error == ICMP_NO_PORT ? ICMPV6_PORT_UNREACH
					      : 0;
	a.icmp.mtu = bpf_htonl(mtu);

	/* As a pseudo header first (RFC 8200, 8.1): length and next header, then the addresses. */
	a.ip.flow_lbl[0] = 0;
	a.ip.payload_len = bpf_htons(len);
	a.ip.hop_limit = IPPROTO_ICMPV6;
	for (int i = 0; i < 4; i++)
		a.ip.saddr.in6_u.u6_addr32[i] = cm_settings.ipv6.gateway_ip.word[i];
	__builtin_memcpy(&a.ip.daddr, &p->saddr, sizeof(a.ip.daddr));
	a.icmp.checksum = csum_fold(csum_of(&a, sizeof(a), 0));
	a.ip.version = 6;
	a.ip.nexthdr = IPPROTO_ICMPV6;
	a.ip.hop_limit = ANSWER_TTL;

	if (bpf_skb_change_tail(skb, IP_OFF + sizeof(a.ip) + len, 0) ||
	    bpf_skb_store_bytes(skb, IP_OFF, &a, sizeof(a.ip) + sizeof(a.icmp), 0) ||
	    bpf_skb_store_bytes(skb, IP_OFF + sizeof(a.ip) + sizeof(a.icmp), a.quote, quote, 0))
		return CM_R_WRITE_FAILED;
	return 0;
}

static __noinline int lay_over(struct __sk_buff *skb, const struct packet *p, enum icmp_error error,
			       __u32 mtu)
{
	return p->is_v6 ? lay_over_v6(skb, p, error, mtu) : lay_over_v4(skb, p, error, mtu);
}

/*
 * 0: skb is now the ICMP error, from this node's gateway address to the sender, about the packet as
 * he wrote it. `mtu` is told with ICMP_TOO_BIG. A function of its own, for what it needs of the
 * stack.
 */
static __noinline int answer_icmp(struct __sk_buff *skb, struct packet *p, enum icmp_error error,
				  __u32 mtu)
{
	struct cm_addr gateway =
		setting(p->is_v6 ? &cm_settings.ipv6.gateway_ip : &cm_settings.ipv4.gateway_ip);
	int err;

	if (!may_answer(p) || addr_is_none(&gateway))
		return CM_R_NO_ANSWER;
	if (!take_token(&p->saddr))
		return CM_R_ICMP_LIMITED;
	err = lay_over(skb, p, error, mtu);
	if (err)
		return err;
	return translate_error(skb, p->is_v6 ? L4_OFF_V6 : L4_OFF_V4, p->is_v6, &gateway,
			       &p->saddr);
}

#endif /* CM_ICMP_ERROR_H */
