/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Every struct that user space shares with the programs. The TypeScript codecs are generated from
 * the BTF of what is declared here: fixed-width types (an enum has four bytes, a packed one has
 * one), byte order in the type, padding spelled out (`pad*` members must be zero and have no
 * counterpart in TypeScript), size asserted.
 *
 * Changing a struct changes the fingerprint of the maps that hold it: rows of a pinned map of the
 * old layout are then carried over by the names of their members. One that comes to mean something
 * else must get another name.
 */
#ifndef CM_LAYOUT_H
#define CM_LAYOUT_H

#include <linux/types.h>
#include "reasons.h"

/*
 * An address of either family, in keys and values alike: IPv6 as it is, IPv4 as ::ffff:a.b.c.d
 * (RFC 4291, 2.5.5.2), so that both share one map and one body. All zeros: none. In TypeScript it
 * is the address as text.
 */
struct cm_addr {
	__be32 word[4];
};
_Static_assert(sizeof(struct cm_addr) == 16, "cm_addr");

/* LPM trie key; an IPv4 /n is CM_IPV4_PREFIX + n bits long. */
struct cm_prefix {
	__u32 prefix_len;
	struct cm_addr net;
};
#define CM_IPV4_PREFIX 96
_Static_assert(sizeof(struct cm_prefix) == 20, "cm_prefix");

/* cm_remote.flags: by the host's routes, not through the tunnel */
#define CM_REMOTE_DIRECT 1

/* value of cm_ipcache and cm_ipcache_lpm: who has an address, and behind which node */
struct cm_remote {
	__u32 identity;
	struct cm_addr node; /* behind which it is; none: behind none, or this one */
	__u16 cluster_id;
	__u8 encrypt_key;
	__u8 flags;
};
_Static_assert(sizeof(struct cm_remote) == 24, "cm_remote");

/* value of cm_endpoints: a pod of this node. The MACs are in the order of an Ethernet header. */
struct cm_endpoint {
	__u32 ifindex; /* host end of the veth */
	__u32 identity;
	__u32 endpoint_id;
	__u8 pod_mac[6];
	__u8 host_mac[6];
};
_Static_assert(sizeof(struct cm_endpoint) == 24, "cm_endpoint");

/* value of cm_nodes, by underlay address */
struct cm_node {
	__u32 node_id;
	__u16 cluster_id;
	__u16 pad;
};
_Static_assert(sizeof(struct cm_node) == 8, "cm_node");

struct cm_service_key {
	struct cm_addr addr;
	__be16 port;
	__u8 proto;
	__u8 scope; /* CM_SCOPE_* */
};
#define CM_SCOPE_INSIDE	 0 /* what sockets and pods of this node ask for */
#define CM_SCOPE_OUTSIDE 1 /* what arrives at the uplinks */
_Static_assert(sizeof(struct cm_service_key) == 20, "cm_service_key");

/* Names the slots that are valid now. Replacing this row swaps the whole backend set at once. */
struct cm_service {
	__u32 id;
	__u32 generation;
	__u32 count;	  /* slots 0 .. count-1; 0: refuse */
	__u32 flags;	  /* for user space: how the slots were filled */
	__u32 affinity_s; /* a client keeps its backend for so long after its last use; 0: none */
};
_Static_assert(sizeof(struct cm_service) == 20, "cm_service");

/* Slots lie in blocks: one row of cm_slots with all that this kernel's 512 bytes for it can hold.
 */
#define CM_BLOCK_SLOTS 110

struct cm_block_key {
	__u32 service_id;
	__u32 generation;
	__u32 block; /* slot / CM_BLOCK_SLOTS */
};
_Static_assert(sizeof(struct cm_block_key) == 12, "cm_block_key");

/*
 * Backend id of each slot, 0: none. From slot `count` of the service on follow backends that get no
 * new connections but may keep those that they have.
 */
struct cm_block {
	__u32 backend[CM_BLOCK_SLOTS];
};
_Static_assert(sizeof(struct cm_block) == 440, "cm_block");

/* This backend is one that the service has slots for. */
struct cm_member_key {
	__u32 service_id;
	__u32 backend_id;
};
_Static_assert(sizeof(struct cm_member_key) == 8, "cm_member_key");

/* Per packet, a client is its address; for sockets, its network namespace: see affinity_of_netns()
 */
struct cm_affinity_key {
	struct cm_addr client;
	__u32 service_id;
};
_Static_assert(sizeof(struct cm_affinity_key) == 20, "cm_affinity_key");

struct cm_affinity {
	__u64 last_used_ns; /* CLOCK_MONOTONIC */
	__u32 backend_id;
	__u32 pad;
};
_Static_assert(sizeof(struct cm_affinity) == 16, "cm_affinity");

struct cm_backend {
	struct cm_addr addr;
	__be16 port;
	__u16 cluster_id;
	__u8 proto;
	__u8 state;
	__u16 pad;
};
_Static_assert(sizeof(struct cm_backend) == 24, "cm_backend");

/* A socket's translation, so that it keeps seeing the service: value is the service's address. */
struct cm_sock_key {
	__u64 cookie;
	struct cm_addr addr;
	__be16 port;
	__u16 pad0;
	__u32 pad1;
};
_Static_assert(sizeof(struct cm_sock_key) == 32, "cm_sock_key");

struct cm_sock_value {
	struct cm_addr addr;
	__be16 port;
	__u16 pad;
};
_Static_assert(sizeof(struct cm_sock_value) == 20, "cm_sock_value");

/* key of cm_withdrawn: a service, and a backend that it has let go */
struct cm_withdrawn_key {
	struct cm_service_key service;
	struct cm_addr addr;
	__be16 port;
	__u16 pad;
};
_Static_assert(sizeof(struct cm_withdrawn_key) == 40, "cm_withdrawn_key");

struct cm_withdrawn {
	__u32 backend_id; /* as it was called */
	__u32 destroyed;  /* sockets, so far */
};
_Static_assert(sizeof(struct cm_withdrawn) == 8, "cm_withdrawn");

enum cm_ct_kind {
	CM_CT_FLOW = 0,	   /* as the packets travel: after load balancing */
	CM_CT_SERVICE = 1, /* as the client wrote it: remembers the chosen backend */
} __attribute__((packed));

/* Always in the direction of the flow's first packet. ICMP echo: sport = identifier, dport = 0. */
struct cm_ct_key {
	struct cm_addr saddr;
	struct cm_addr daddr;
	__be16 sport;
	__be16 dport;
	__u8 proto;
	enum cm_ct_kind kind;
	__u16 pad;
};
_Static_assert(sizeof(struct cm_ct_key) == 40, "cm_ct_key");

enum cm_ct_state {
	CM_CT_NEW = 0,
	CM_CT_ESTABLISHED = 1, /* a reply was seen */
	CM_CT_CLOSING = 2,     /* TCP FIN or RST seen */
} __attribute__((packed));

struct cm_ct_entry {
	__u64 last_seen_ns; /* CLOCK_MONOTONIC */
	__u64 tx_packets;   /* in the flow's direction */
	__u64 tx_bytes;
	__u64 rx_packets;
	__u64 rx_bytes;
	__u32 source_identity;
	__u32 service_id; /* 0: not load-balanced per packet */
	__u32 backend_id;
	struct cm_addr nat_addr; /* flow: the service's address; service: the backend's */
	__be16 nat_port;
	enum cm_ct_state state;
	__u8 pad0;
	/* What the policies last allowed: between these identities, under these revisions. */
	__u32 dest_identity;
	__u32 egress_revision;	/* of the beginning pod's policies; 0: it is not of this node */
	__u32 ingress_revision; /* of the receiving pod's */
	__u32 pad1;
};
_Static_assert(sizeof(struct cm_ct_entry) == 88, "cm_ct_entry");

/* value of cm_ct_scratch: what would not fit on the stack */
struct cm_ct_draft {
	struct cm_ct_key key;
	struct cm_ct_entry entry;
};
_Static_assert(sizeof(struct cm_ct_draft) == 128, "cm_ct_draft");

/* A packet's addresses and ports before cm_nat translates it. ICMP echo: as in cm_ct_key. */
struct cm_nat_key {
	struct cm_addr saddr;
	struct cm_addr daddr;
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 pad[3];
};
_Static_assert(sizeof(struct cm_nat_key) == 40, "cm_nat_key");

/* ... and after. See lib/nat-table.h. */
struct cm_nat_entry {
	__u64 last_seen_ns; /* CLOCK_MONOTONIC */
	struct cm_addr saddr;
	struct cm_addr daddr;
	__be16 sport;
	__be16 dport;
	__u32 service_id;
	__u32 backend_id;
	enum cm_ct_state state;
	__u8 is_reply; /* 1: for what comes back from the backend */
	__u8 is_dsr;   /* 1: the backend's node answers the client itself; see lib/dsr.h */
	__u8 pad;
};
_Static_assert(sizeof(struct cm_nat_entry) == 56, "cm_nat_entry");

/* value of cm_nat_scratch: both rows of a flow, and the service that a packet names */
struct cm_nat_draft {
	struct cm_nat_key key;
	struct cm_nat_key reply_key;
	struct cm_nat_entry forward;
	struct cm_nat_entry reply;
	struct cm_addr service;
	__be16 service_port;
	__u16 noted; /* bytes of what named it; 0: nothing did */
	__u32 pad;
};
_Static_assert(sizeof(struct cm_nat_draft) == 216, "cm_nat_draft");

/* The datagram that a fragment is part of. */
struct cm_fragment_key {
	struct cm_addr saddr;
	struct cm_addr daddr;
	__be32 id;
	__u8 proto;
	__u8 pad[3];
};
_Static_assert(sizeof(struct cm_fragment_key) == 40, "cm_fragment_key");

/* What its first fragment said. */
struct cm_fragment {
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 icmp_type;
	__u16 pad;
};
_Static_assert(sizeof(struct cm_fragment) == 8, "cm_fragment");

/* Tokens of one receiver of ICMP errors; see lib/icmp-error.h. */
struct cm_bucket {
	__u64 filled_ns; /* CLOCK_MONOTONIC */
	__u32 tokens;
	__u32 pad;
};
_Static_assert(sizeof(struct cm_bucket) == 16, "cm_bucket");

enum cm_policy_direction {
	CM_POLICY_INGRESS = 0,
	CM_POLICY_EGRESS = 1,
} __attribute__((packed));

#define CM_POLICY_ANYBODY 0 /* as identity: whoever it is */

/*
 * LPM trie key. A row for every protocol is CM_POLICY_KEY_BITS - 24 bits long, one for every port
 * of a protocol 16 bits shorter than the key. ICMP: the type is the upper half of `port`.
 */
struct cm_policy_key {
	__u32 prefix_len;
	__u32 endpoint_id;
	__u32 identity; /* who the endpoint talks with */
	enum cm_policy_direction direction;
	__u8 proto;
	__be16 port; /* the receiver's */
};
#define CM_POLICY_KEY_BITS 96
_Static_assert(sizeof(struct cm_policy_key) == 16, "cm_policy_key");

struct cm_policy_verdict {
	__u32 deny; /* 0: allow */
};
_Static_assert(sizeof(struct cm_policy_verdict) == 4, "cm_policy_verdict");

#define CM_POLICY_ASK_INGRESS 1
#define CM_POLICY_ASK_EGRESS  2
#define CM_POLICY_LOCKED      4 /* nothing passes */

/* value of cm_policy_state, by endpoint id */
struct cm_policy_state {
	__u32 revision; /* of the endpoint's rows and flags; 0: nothing was ever said about it */
	__u32 flags;
};
_Static_assert(sizeof(struct cm_policy_state) == 8, "cm_policy_state");

/* value of cm_drops, at index reason * CM_DIR_MAX + direction */
struct cm_count {
	__u64 packets;
	__u64 bytes;
};
_Static_assert(sizeof(struct cm_count) == 16, "cm_count");

/* What a program decided about one packet; see lib/verdict.h. */
struct cm_decision {
	enum cm_direction direction;
	enum cm_action action;
	enum cm_reason reason;
	__u32 target;	       /* ifindex, where the action has one */
	__u32 vni;	       /* identity in the tunnel key */
	struct cm_addr remote; /* node in the tunnel key */
	__u32 identity;	       /* source identity, as believed */
	__u32 service_id;
	__u32 backend_id;
};
_Static_assert(sizeof(struct cm_decision) == 48, "cm_decision");

/* How much of what happens is shown; see lib/events.h. All 0: nothing. */
struct cm_event_config {
	__u64 interval_ns;     /* each CPU earns one event in this time; not 0 */
	__u32 burst;	       /* and may save up so many */
	__u32 refused_every;   /* of so many refused packets, one; 0: none */
	__u32 forwarded_every; /* of so many others, one; 0: none */
	__u32 pad;
};
_Static_assert(sizeof(struct cm_event_config) == 24, "cm_event_config");

struct cm_event_state {
	__u64 earned_ns; /* when `saved` was reckoned last */
	__u64 saved;
	__u64 sent;
	__u64 lost; /* over the rate, or no room in the ring */
};
_Static_assert(sizeof(struct cm_event_state) == 32, "cm_event_state");

#define CM_EVENT_HEAD 128

/* A record of cm_events. */
struct cm_event {
	__u64 time_ns; /* CLOCK_MONOTONIC */
	enum cm_reason reason;
	enum cm_direction direction;
	enum cm_action action;
	__u32 ifindex;	/* where the packet was seen */
	__u32 target;	/* ifindex, where the action has one */
	__u32 identity; /* source identity, as believed; 0: not established */
	__u32 service_id;
	__u32 backend_id;
	__u32 every; /* stands for so many packets */
	__u32 bytes;
	/* Without a packet, sockets: whom the socket asked for. */
	struct cm_addr addr;
	__be16 port;
	__u8 proto;
	__u8 head_len;		  /* 0: there is no packet */
	__u8 head[CM_EVENT_HEAD]; /* its beginning, as it left the program */
	__u32 pad;
};
_Static_assert(sizeof(struct cm_event) == 200, "cm_event");

/* value of cm_xdp_devices, by ifindex; see lib/xdp.h. */
enum cm_xdp_mode {
	CM_XDP_NATIVE = 1,
	CM_XDP_GENERIC = 2,
};

/* What one family has of an address, or none. IPv4 prefixes have a mask of 96 ones more. */
struct cm_family {
	struct cm_addr node_ip;
	struct cm_addr gateway_ip;
	struct cm_addr pod_net;
	struct cm_addr pod_mask;
};
_Static_assert(sizeof(struct cm_family) == 64, "cm_family");

/* Settings, in .rodata: constants to the verifier. */
struct cm_settings {
	struct cm_family ipv4;
	struct cm_family ipv6;
	__u32 vxlan_ifindex;
	__u32 identity_shift;
	__u32 underlay_mtu; /* bytes of an outer IP packet; 0: not to be watched */
	__u32 is_dsr;	    /* 1: backends of other nodes answer clients outside themselves */
};
_Static_assert(sizeof(struct cm_settings) == 144, "cm_settings");

#endif /* CM_LAYOUT_H */
