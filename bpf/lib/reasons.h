/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Why a packet left the datapath, and where. User space gets these numbers from the object's BTF.
 * A number is never given to another meaning: append only.
 *
 *   1 ..  31  went on its way        64 ..  95  answered by us (RST, ICMP)
 *  32 ..  63  noted, not an exit    128 .. 255  dropped
 */
#ifndef CM_REASONS_H
#define CM_REASONS_H

/* The first reason for which a packet did not get where its sender wanted it. */
#define CM_R_REFUSED 64

enum cm_reason {
	CM_R_UNSPEC = 0,

	CM_R_TO_ENDPOINT = 1,	  /* handed to a pod of this node */
	CM_R_TO_TUNNEL = 2,	  /* encapsulated to another node */
	CM_R_TO_STACK = 3,	  /* left to the host's routing */
	CM_R_ARP = 4,		  /* left to the host's stack */
	CM_R_FROM_STACK = 5,	  /* what the host sends to a pod */
	CM_R_SOCK_TRANSLATED = 6, /* connect/sendmsg given a backend */
	CM_R_ND = 7,		  /* neighbour or listener discovery, left to the host's stack */

	CM_R_TO_NETWORK = 8,   /* to another node by the host's routes */
	CM_R_FROM_NETWORK = 9, /* arrived plain, and not for a pod: left to the host's stack */

	CM_R_IPCACHE_MISMATCH = 32,   /* VNI and ipcache disagree about the source: VNI believed */
	CM_R_SERVICE_TRANSLATED = 33, /* per-packet load balancing */
	CM_R_REPLY_TRANSLATED = 34,   /* reply given the service's address back */
	CM_R_FRAGMENT = 35, /* a later fragment, taken for part of the flow of the first */

	CM_R_NO_BACKEND = 64,  /* service without backends: RST, ICMP or ECONNREFUSED */
	CM_R_NO_ENDPOINT = 65, /* address of our pod CIDR that nobody has: ICMP host unreachable */
	CM_R_TOO_BIG = 66, /* larger than fits through the tunnel: ICMP with the size that does */
	CM_R_BACKEND_GONE = 67, /* connection to a backend that is withdrawn: RST */

	CM_R_NOT_IP = 128,
	CM_R_VLAN = 129,
	CM_R_TRUNCATED = 130,  /* a header ends before it should */
	CM_R_BAD_HEADER = 131, /* IP version, header length or total length is wrong */
	CM_R_IP_OPTIONS = 132,
	CM_R_UNSUPPORTED_L4 = 133,   /* neither TCP, UDP, SCTP, ICMP echo nor an ICMP error */
	CM_R_SPOOFED_SOURCE = 134,   /* not the address of the pod behind this veth */
	CM_R_UNKNOWN_NODE = 135,     /* encapsulated by a node that we do not know */
	CM_R_FOREIGN_IDENTITY = 136, /* identity outside the range of the sending node's cluster */
	CM_R_NO_TUNNEL_KEY = 137,
	CM_R_NOT_FOR_US = 138,	 /* decapsulated, but for an address outside this node */
	CM_R_HAIRPIN = 139,	 /* from a pod to its own address */
	CM_R_WRITE_FAILED = 140, /* a kernel helper refused to change the packet */
	CM_R_STALE_TABLES = 141, /* service row and slots did not fit together, twice */
	CM_R_NO_ANSWER = 142,	 /* to be answered, but it may not be: see may_answer() */
	CM_R_EXT_HEADER = 143,	 /* IPv6 routing header, or more extension headers than we follow */
	CM_R_FRAGMENT_LOST = 144, /* a later fragment of a datagram whose first we did not see */
	CM_R_LINK_LOCAL = 145,	  /* IPv6 link-local source, where nothing is behind it */
	CM_R_ROGUE_ND = 146,	  /* discovery from afar (hop limit), or what only a router says */
	CM_R_ICMP_LIMITED = 147,  /* to be answered, but its sender has had enough ICMP errors */

	CM_R_NOT_ENCAPSULATED = 148, /* plain, from an address that is reached by the tunnel */

	CM_R_NO_ROUTE = 149, /* nowhere to send it on, or it has been on its way for too long */
	CM_R_NAT_EXHAUSTED = 150, /* no source port is left towards the backend */

	CM_R_INGRESS_DENIED = 160,    /* no policy of the receiving pod allows it */
	CM_R_EGRESS_DENIED = 161,     /* no policy of the sending pod allows it */
	CM_R_INGRESS_DENY_RULE = 162, /* a policy of the receiving pod denies it */
	CM_R_EGRESS_DENY_RULE = 163,  /* a policy of the sending pod denies it */
	CM_R_POLICY_LOCKED = 164,     /* the pod's policies are not known, or do not fit */

	CM_R_MAX = 256,
};

enum cm_direction {
	CM_DIR_FROM_POD = 0,
	CM_DIR_TO_POD = 1,
	CM_DIR_OVERLAY = 2,
	CM_DIR_SOCK = 3,
	CM_DIR_FROM_NETWORK = 4,
	CM_DIR_TO_NETWORK = 5,
	CM_DIR_XDP = 6, /* at the uplink's driver, what did not go on to CM_DIR_FROM_NETWORK */

	CM_DIR_MAX = 8, /* room for more: the counters' places depend on it */
};

enum cm_action {
	CM_ACT_DROP = 0,
	CM_ACT_STACK = 1,    /* TC_ACT_OK */
	CM_ACT_ENDPOINT = 2, /* bpf_redirect_peer into the pod behind `target` */
	CM_ACT_NETWORK = 4,  /* bpf_redirect to the uplink `target`, next hop's MACs on the frame */
	CM_ACT_TUNNEL = 3,   /* bpf_redirect to the VXLAN device, tunnel key set */
	CM_ACT_NEIGHBOUR = 5, /* bpf_redirect_neigh: to `target`, the kernel finds the next hop */
};

#endif /* CM_REASONS_H */
