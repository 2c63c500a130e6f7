/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * An ICMP error quotes the packet that it is about as the network carried it. Whoever is told must
 * read the addresses that he used himself, or his socket does not know its own packet, and path MTU
 * discovery does not work through a service.
 *
 *   about a client's packet (client -> backend): to the client. The quoted destination, and the
 *       error's source if the backend itself sends it, become the service's.
 *   about an answer (service -> client, as the client quotes it): to the service. The quoted source
 *       and the error's destination become the backend's.
 */
#ifndef CM_ICMP_NAT_H
#define CM_ICMP_NAT_H

#include "nat.h"

#define ICMP_HDR_LEN  sizeof(struct icmphdr)
#define ICMP_CSUM_OFF offsetof(struct icmphdr, checksum)

/* The packet quoted behind the ICMP header, into `q`; q->l4_off is that in the frame. 0 or not. */
static __always_inline int read_quote(struct __sk_buff *skb, __u32 off, int is_v6, struct packet *q)
{
	__be16 ports[2];

	q->is_v6 = is_v6;
	if (is_v6) {
		struct ipv6hdr ip6;

		if (bpf_skb_load_bytes(skb, off, &ip6, sizeof(ip6)))
			return -1;
		__builtin_memcpy(&q->saddr, &ip6.saddr, sizeof(q->saddr));
		__builtin_memcpy(&q->daddr, &ip6.daddr, sizeof(q->daddr));
		q->proto = ip6.nexthdr;
		q->l4_off = off + sizeof(ip6);
	} else {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, off, &ip, sizeof(ip)) || ip.ihl != 5 ||
		    (ip.frag_off & bpf_htons(IP_OFFSET)))
			return -1;
		q->saddr = addr_v4(ip.saddr);
		q->daddr = addr_v4(ip.daddr);
		q->proto = ip.protocol;
		q->l4_off = off + sizeof(ip);
	}
	if ((q->proto != IPPROTO_TCP && q->proto != IPPROTO_UDP && q->proto != IPPROTO_SCTP) ||
	    bpf_skb_load_bytes(skb, q->l4_off, ports, sizeof(ports)))
		return -1;
	q->sport = ports[0];
	q->dport = ports[1];
	return 0;
}

/* Address and port of one side of the quoted packet; `csum` is the place of the error's checksum.
 */
static __always_inline int rewrite_quote(struct __sk_buff *skb, __u32 csum, __u32 quote,
					 const struct packet *q, enum nat_side side,
					 const struct cm_addr *addr, __be16 port)
{
	const struct cm_addr *old = side == NAT_SOURCE ? &q->saddr : &q->daddr;
	__be16 old_port = side == NAT_SOURCE ? q->sport : q->dport;
	__wsum diff = addr_diff(old, addr);

	/* IPv4: with its checksum mended, the quoted header sums to the same: only the port counts.
	 */
	if (q->is_v6 ? bpf_l4_csum_replace(skb, csum, 0, diff, 0)
		     : bpf_l3_csum_replace(skb, quote + offsetof(struct iphdr, check), 0, diff, 0))
		return CM_R_WRITE_FAILED;
	if (bpf_l4_csum_replace(skb, csum, old_port, port, sizeof(__be16)) ||
	    write_addr(skb, quote + addr_offset(q->is_v6, side), q->is_v6, addr) ||
	    bpf_skb_store_bytes(skb, q->l4_off + port_offset(side), &port, sizeof(port), 0))
		return CM_R_WRITE_FAILED;
	return 0;
}

/* The error's own source or destination. ICMPv6 has a pseudo header, ICMP has none. */
static __always_inline int rewrite_outer(struct __sk_buff *skb, __u32 csum, int is_v6,
					 enum nat_side side, struct cm_addr *old,
					 const struct cm_addr *addr)
{
	__wsum diff = addr_diff(old, addr);

	if (is_v6 ? csum_pseudo(skb, csum, 1, diff, 0)
		  : bpf_l3_csum_replace(skb, IP_CSUM_OFF, 0, diff, 0))
		return CM_R_WRITE_FAILED;
	if (write_addr(skb, IP_OFF + addr_offset(is_v6, side), is_v6, addr))
		return CM_R_WRITE_FAILED;
	*old = *addr;
	return 0;
}

/*
 * Translates the ICMP error whose header is at `icmp` and whose addresses are `saddr` and `daddr`,
 * which follow. 0 (also if nothing was to be done) or a reason.
 */
static __noinline int translate_error(struct __sk_buff *skb, __u32 icmp, int is_v6,
				      struct cm_addr *saddr, struct cm_addr *daddr)
{
	struct cm_ct_draft *draft = ct_draft();
	struct cm_ct_entry *e;
	struct packet q = {};
	__u32 csum, quote;
	int err;

	if (!draft)
		return CM_R_WRITE_FAILED;
	icmp &= MAX_L4_OFF;
	csum = icmp + ICMP_CSUM_OFF;
	quote = icmp + ICMP_HDR_LEN;
	if (read_quote(skb, quote, is_v6, &q))
		return 0;
	draft->key = ct_key(&q, CM_CT_FLOW);
	e = bpf_map_lookup_elem(&cm_ct, &draft->key);
	if (e && e->service_id) {
		err = rewrite_quote(skb, csum, quote, &q, NAT_DESTINATION, &e->nat_addr,
				    e->nat_port);
		if (!err && addr_equal(saddr, &q.daddr))
			err = rewrite_outer(skb, csum, is_v6, NAT_SOURCE, saddr, &e->nat_addr);
		return err;
	}

	ct_turn(&draft->key);
	draft->key.kind = CM_CT_SERVICE;
	e = bpf_map_lookup_elem(&cm_ct, &draft->key);
	if (!e)
		return 0;
	err = rewrite_quote(skb, csum, quote, &q, NAT_SOURCE, &e->nat_addr, e->nat_port);
	if (!err && addr_equal(daddr, &q.saddr))
		err = rewrite_outer(skb, csum, is_v6, NAT_DESTINATION, daddr, &e->nat_addr);
	return err;
}

/* Is the packet that the ICMP error at `icmp` quotes part of a flow that is known? */
static __noinline int is_related(struct __sk_buff *skb, __u32 icmp, int is_v6)
{
	struct cm_ct_draft *draft = ct_draft();
	struct packet q = {};

	icmp &= MAX_L4_OFF;
	if (!draft || read_quote(skb, icmp + ICMP_HDR_LEN, is_v6, &q))
		return 0;
	draft->key = ct_key(&q, CM_CT_FLOW);
	if (bpf_map_lookup_elem(&cm_ct, &draft->key))
		return 1;
	ct_turn(&draft->key);
	return !!bpf_map_lookup_elem(&cm_ct, &draft->key);
}

/* May the ICMP error pass? As part of the flow that it is about; else policies decide. */
static __always_inline int admit_error(struct __sk_buff *skb, const struct packet *p,
				       const struct policy_ends *ends)
{
	if (likely(!p->later && is_related(skb, p->l4_off, p->is_v6)))
		return 0;
	return policy_judge(ends, p->proto, ct_policy_port(p, 0), 0);
}

#endif /* CM_ICMP_NAT_H */
