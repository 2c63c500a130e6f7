/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* RFC 792. <linux/icmp.h> would do, but drags in libc's headers for the wrong target. */
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

struct icmphdr {
	__u8 type;
	__u8 code;
	__sum16 checksum;
	__be16 id; /* of an echo; otherwise unused, or part of what the type needs */
	__be16 sequence;
};
_Static_assert(sizeof(struct icmphdr) == 8, "icmphdr");

#endif /* CM_ICMP_H */
