/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * VXLAN by hand: what encapsulate() has the kernel's device do. The frame goes in as it is, and so
 * does the padding behind it.
 *
 *   Ethernet | IPv4 or IPv6 | UDP | VXLAN, VNI = identity | the frame
 */
#ifndef CM_XDP_TUNNEL_H
#define CM_XDP_TUNNEL_H

#include "outside.h"
#include "xdp-nat.h"

struct vxlanhdr {
	__be32 flags;
	__be32 vni; /* the upper 24 bits */
};

#define VXLAN_HAS_VNI 0x08000000

#define OUTER_V4                                                                                   \
	(sizeof(struct ethhdr) + sizeof(struct iphdr) + sizeof(struct udphdr) +                    \
	 sizeof(struct vxlanhdr))
#define OUTER_V6                                                                                   \
	(sizeof(struct ethhdr) + sizeof(struct ipv6hdr) + sizeof(struct udphdr) +                  \
	 sizeof(struct vxlanhdr))

/* As the kernel's ports are by default: net.ipv4.ip_local_port_range. */
#define TUNNEL_PORT_MIN 32768
#define TUNNEL_PORTS	(61000 - TUNNEL_PORT_MIN)

/* A flow has one source port, so that it takes one way through the network. */
static __always_inline __be16 tunnel_port(const struct cm_nat_entry *e, __u8 proto)
{
	__u64 hash = flow_hash(&e->saddr, e->sport, &e->daddr, e->dport, proto);

	return bpf_htons(TUNNEL_PORT_MIN + (hash * TUNNEL_PORTS >> 32));
}

static __always_inline struct cm_addr tunnel_source(const struct cm_addr *node)
{
	return setting(addr_is_v4(node) ? &cm_settings.ipv4.node_ip : &cm_settings.ipv6.node_ip);
}

/* RFC 6040: what the network says of congestion is heard inside; "it was" is said anew. */
static __always_inline __u8 ecn_of(__u8 tos)
{
	return (tos & 3) == 3 ? 2 : tos & 3;
}

/* The second byte of IPv4, the same eight bits of IPv6. */
static __always_inline __u8 tos_of(const __u8 *ip, int is_v6)
{
	return is_v6 ? ip[0] << 4 | ip[1] >> 4 : ip[1];
}

static __always_inline void fill_udp(struct udphdr *udp, const struct cm_nat_entry *e, __u8 proto,
				     __u32 inner)
{
	udp->source = tunnel_port(e, proto);
	udp->dest = bpf_htons(VXLAN_PORT);
	udp->len = bpf_htons(sizeof(*udp) + sizeof(struct vxlanhdr) + inner);
	udp->check = 0;
}

static __always_inline void fill_vxlan(struct vxlanhdr *vxlan, __u32 vni)
{
	vxlan->flags = bpf_htonl(VXLAN_HAS_VNI);
	vxlan->vni = bpf_htonl(vni << 8);
}

static __always_inline int xdp_outer_v4(struct xdp_md *ctx, const struct packet *p,
					const struct cm_nat_entry *e, const struct cm_decision *d,
					const struct hop *hop)
{
	struct span s = span_at(ctx, 0);
	struct ethhdr *eth = s.pos;
	struct iphdr *ip = s.pos + IP_OFF;
	struct udphdr *udp = (void *)(ip + 1);
	struct vxlanhdr *vxlan = (void *)(udp + 1);
	struct ethhdr *inner = (void *)(vxlan + 1);

	if ((void *)(inner + 1) + sizeof(__u16) > s.end)
		return CM_R_WRITE_FAILED;
	__builtin_memcpy(eth, hop->macs, sizeof(hop->macs));
	eth->h_proto = bpf_htons(ETH_P_IP);
	__builtin_memset(ip, 0, sizeof(*ip));
	ip->version = 4;
	ip->ihl = sizeof(*ip) / 4;
	ip->tos = ecn_of(tos_of((__u8 *)(inner + 1), p->is_v6));
	ip->tot_len = bpf_htons(OUTER_V4 - IP_OFF + p->bytes);
	/* The network may cut it, as it may what the kernel's device sends. */
	ip->id = bpf_get_prandom_u32();
	ip->ttl = TUNNEL_TTL;
	ip->protocol = IPPROTO_UDP;
	ip->saddr = cm_settings.ipv4.node_ip.word[3];
	ip->daddr = d->remote.word[3];
	ip->check = csum_fold(csum_of(ip, sizeof(*ip), 0));
	fill_udp(udp, e, p->proto, p->bytes);
	fill_vxlan(vxlan, d->vni);
	return 0;
}

/* An IPv6 header is twice as long as an IPv4 one. */
#define IP_UNIT sizeof(struct iphdr)
_Static_assert(2 * IP_UNIT == sizeof(struct ipv6hdr), "IPv6 header");

/*
 * Of the whole UDP datagram without looking at all of it: from the packet's layer 4 on, where a
 * right checksum is, everything sums up to the complement of its pseudo header. (One that is wrong
 * is found out at the other end of the tunnel instead of at the backend.)
 */
static __always_inline __sum16 outer_checksum(struct udphdr *udp, const struct packet *p,
					      const struct cm_nat_entry *e,
					      const struct cm_decision *d, void *end)
{
	struct ethhdr *inner = (void *)(udp + 1) + sizeof(struct vxlanhdr);
	struct cm_addr source = tunnel_source(&d->remote);
	void *ip = inner + 1;
	__u64 sum = (__u16)csum_fold(xdp_pseudo_sum(&e->saddr, &e->daddr, p));
	__sum16 check;

	if (ip + IP_UNIT > end)
		return 0;
	sum += csum_of(udp, sizeof(*udp) + sizeof(struct vxlanhdr) + 2 * ETH_ALEN, 0);
	sum += inner->h_proto;
	sum += csum_of(ip, IP_UNIT, 0);
	if (p->is_v6) {
		if (ip + 2 * IP_UNIT > end)
			return 0;
		sum += csum_of(ip + IP_UNIT, IP_UNIT, 0);
	}
	sum += csum_of(&source, sizeof(source), bpf_htons(IPPROTO_UDP) + udp->len);
	sum += csum_of((void *)&d->remote, sizeof(d->remote), 0);
	check = csum_patch(0xffff, sum);
	return check ? check : 0xffff;
}

static __always_inline int xdp_outer_v6(struct xdp_md *ctx, const struct packet *p,
					const struct cm_nat_entry *e, const struct cm_decision *d,
					const struct hop *hop)
{
	struct span s = span_at(ctx, 0);
	struct ethhdr *eth = s.pos;
	struct ipv6hdr *ip6 = s.pos + IP_OFF;
	struct udphdr *udp = (void *)(ip6 + 1);
	struct vxlanhdr *vxlan = (void *)(udp + 1);
	struct ethhdr *inner = (void *)(vxlan + 1);
	struct cm_addr source = tunnel_source(&d->remote);
	__u8 tos;

	if ((void *)(inner + 1) + sizeof(__u16) > s.end)
		return CM_R_WRITE_FAILED;
	__builtin_memcpy(eth, hop->macs, sizeof(hop->macs));
	eth->h_proto = bpf_htons(ETH_P_IPV6);
	tos = ecn_of(tos_of((__u8 *)(inner + 1), p->is_v6));
	*(__be32 *)ip6 = bpf_htonl(6 << 28 | tos << 20);
	ip6->payload_len = bpf_htons(OUTER_V6 - L4_OFF_V6 + p->bytes);
	ip6->nexthdr = IPPROTO_UDP;
	ip6->hop_limit = TUNNEL_TTL;
	__builtin_memcpy(&ip6->saddr, &source, sizeof(ip6->saddr));
	__builtin_memcpy(&ip6->daddr, &d->remote, sizeof(ip6->daddr));
	fill_udp(udp, e, p->proto, p->bytes);
	fill_vxlan(vxlan, d->vni);
	udp->check = outer_checksum(udp, p, e, d, s.end);
	return udp->check ? 0 : CM_R_WRITE_FAILED;
}

/* Into the room before the translated frame: to d->remote by `hop`. 0 or a reason. */
static __noinline int xdp_encapsulate(struct xdp_md *ctx, const struct packet *p,
				      const struct cm_nat_entry *e, const struct cm_decision *d,
				      const struct hop *hop)
{
	return addr_is_v4(&d->remote) ? xdp_outer_v4(ctx, p, e, d, hop)
				      : xdp_outer_v6(ctx, p, e, d, hop);
}

#endif /* CM_XDP_TUNNEL_H */
