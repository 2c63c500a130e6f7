/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* clang-format off */
/*
 * Direct server return: another node's backend sees the client itself, and that node answers the
 * client from the service's address.
 *
 *   client ─► this node ─ to the backend, the service noted in the packet ─► tunnel ─► its node ─► pod
 *   client ◄──────────── uplink of the backend's node: to_outside() ◄────────────────────────────── pod
 *
 * The service is noted as an IPv4 option, or in a destination options header of IPv6, of an
 * experimental type (RFC 4727; the IPv6 one is dropped by who does not know it). It rides on what
 * opens a connection, on the first packet that a row here is made for, and on every datagram. By
 * the tunnel always: who says so is then a known node. From anywhere else such a packet is dropped,
 * as one with another option is.
 */
/* clang-format on */
#ifndef CM_DSR_H
#define CM_DSR_H

#include "icmp-error.h"
#include "parse.h"

#define DSR_TYPE_V4  0x9e /* copied flag, control, 30 */
#define DSR_WORDS_V4 7	  /* of an IPv4 header with the option and nothing else */

struct dsr_ipv4 {
	__u8 type;
	__u8 len;
	__be16 port;
	__be32 addr;
};
_Static_assert(sizeof(struct dsr_ipv4) == 8, "dsr_ipv4");

struct dsr_head_v4 {
	struct iphdr ip;
	struct dsr_ipv4 option;
};

struct dsr_ipv6 {
	__u8 next;
	__u8 units; /* of eight bytes, the first not counted */
	__u8 type;
	__u8 len;
	__be16 port;
	__u16 zero;
	struct cm_addr addr;
};
_Static_assert(sizeof(struct dsr_ipv6) == 24, "dsr_ipv6");

struct dsr_head_v6 {
	struct ipv6hdr ip;
	struct dsr_ipv6 option;
};

/* Segments stay as large as they are, and checksums of layer 4 hold: the option is in none. */
#define DSR_ROOM (BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET)

#endif /* CM_DSR_H */
