/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* RFC 792, RFC 4443. The kernel's headers would do, but drag in libc's for the wrong target. */
#ifndef CM_ICMP_H
#define CM_ICMP_H

#include <linux/types.h>

#define ICMP_ECHOREPLY	   0
#define ICMP_DEST_UNREACH  3
#define ICMP_ECHO	   8
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12

#define ICMP_HOST_UNREACH 1
#define ICMP_PORT_UNREACH 3
#define ICMP_FRAG_NEEDED  4

#define ICMPV6_DEST_UNREACH  1
#define ICMPV6_PKT_TOOBIG    2
#define ICMPV6_TIME_EXCEEDED 3
#define ICMPV6_PARAMPROB     4
#define ICMPV6_ECHO	     128
#define ICMPV6_ECHOREPLY     129
#define ICMPV6_MLD_QUERY     130 /* 130 .. 132: listener discovery */
#define ICMPV6_ND_RS	     133 /* 133 .. 137: neighbour discovery (RFC 4861) */
#define ICMPV6_ND_RA	     134
#define ICMPV6_ND_REDIRECT   137
#define ICMPV6_MLD2_REPORT   143

#define ICMPV6_ADDR_UNREACH 3
#define ICMPV6_PORT_UNREACH 4

/* The first eight bytes are alike in both. */
struct icmphdr {
	__u8 type;
	__u8 code;
	__sum16 checksum;
	union {
		struct {
			__be16 id;
			__be16 sequence;
		} echo;
		struct {
			__be16 unused;
			__be16 mtu;
		} frag_needed;
		__be32 mtu; /* ICMPv6 packet too big */
	};
};
_Static_assert(sizeof(struct icmphdr) == 8, "icmphdr");

#endif /* CM_ICMP_H */
