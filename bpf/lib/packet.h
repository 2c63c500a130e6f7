/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the datapath knows of a packet, and what can be said about it without looking again. */
#ifndef CM_PACKET_H
#define CM_PACKET_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include "common.h"
#include "icmp.h"

#define IP_OFF (sizeof(struct ethhdr))
/* IPv4 packets with options are dropped; but for one: see dsr.h. */
#define L4_OFF_V4 (IP_OFF + sizeof(struct iphdr))
#define L4_OFF_V6 (IP_OFF + sizeof(struct ipv6hdr))

#define IP_DF	  0x4000
#define IP_MF	  0x2000
#define IP_OFFSET 0x1fff

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

#ifndef IPPROTO_SCTP
#define IPPROTO_SCTP 132
#endif

struct packet {
	struct cm_addr saddr;
	struct cm_addr daddr;
	__be16 sport; /* ICMP echo request: identifier */
	__be16 dport; /* ICMP echo reply: identifier */
	__u32 bytes;  /* of the frame */
	__u32 ip_len; /* IP header and what it says follows; 0: more than it can say (BIG TCP) */
	__u32 l4_off; /* of the layer 4 header in the frame; none in a later fragment */
	__u8 is_v6;
	__u8 proto;
	__u8 l4_len; /* TCP and UDP: bytes of the header */
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 hop_limit;
	__u8 dont_fragment;
	__u8 fragment;	/* part of a datagram in several */
	__u8 later;	/* ... and not its first: ports are those of the first */
	__u8 begins;	/* the first that its flow's row was made for */
	__u8 option;	/* bytes of the option that it gets, or came with: see dsr.h */
	__u8 by_tunnel; /* to its node by the tunnel, whatever its ipcache row says */
};

/* The upper layer ends where this does; all that is taken from packets is bounded by it. */
#define MAX_L4_OFF 0x3fff

/* Does the IP packet say that it ends before this offset in the frame? */
static __always_inline int ends_before(const struct packet *p, __u32 off)
{
	return p->ip_len && p->ip_len < off - IP_OFF;
}

static __always_inline int is_icmp_error(const struct packet *p)
{
	if (p->proto == IPPROTO_ICMPV6)
		return p->icmp_type >= ICMPV6_DEST_UNREACH && p->icmp_type <= ICMPV6_PARAMPROB;
	return p->proto == IPPROTO_ICMP &&
	       (p->icmp_type == ICMP_DEST_UNREACH || p->icmp_type == ICMP_TIME_EXCEEDED ||
		p->icmp_type == ICMP_PARAMETERPROB);
}

#endif /* CM_PACKET_H */
