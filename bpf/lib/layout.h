/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Every struct that user space shares with the programs. The TypeScript codecs are generated from
 * the BTF of what is declared here: fixed-width types (an enum has four bytes, a packed one has
 * one), byte order in the type, padding spelled out (`pad*` members must be zero and have no
 * counterpart in TypeScript), size asserted.
 *
 * Changing a struct changes the fingerprint of the maps that hold it: a pinned map of the old
 * layout is then refused at load, never reinterpreted.
 */
#ifndef CM_LAYOUT_H
#define CM_LAYOUT_H

#include <linux/types.h>
#include "reasons.h"

#define CM_FAMILY_IPV4 4

/* IPv4 sits in addr[0]. cluster_id stays 0 until overlapping pod CIDRs are supported. */
struct cm_addr {
	__u16 cluster_id;
	__u8 family;
	__u8 pad;
	__be32 addr[4];
};
_Static_assert(sizeof(struct cm_addr) == 20, "cm_addr");

/* LPM trie key: prefix_len counts all bits after itself, so an IPv4 /n is CM_LPM_BASE + n. */
struct cm_prefix {
	__u32 prefix_len;
	struct cm_addr net;
};
#define CM_LPM_BASE 32
_Static_assert(sizeof(struct cm_prefix) == 24, "cm_prefix");

/* value of cm_ipcache and cm_ipcache_lpm: who has an address, and behind which node */
struct cm_remote {
	__u32 identity;
	__be32 tunnel; /* node to encapsulate to; 0: not through the tunnel */
	__u16 cluster_id;
	__u8 encrypt_key;
	__u8 flags;
};
_Static_assert(sizeof(struct cm_remote) == 12, "cm_remote");

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
	__be32 addr;
	__be16 port;
	__u8 proto;
	__u8 scope; /* 0: from anywhere */
};
_Static_assert(sizeof(struct cm_service_key) == 8, "cm_service_key");

/* Names the slots that are valid now. Replacing this row swaps the whole backend set at once. */
struct cm_service {
	__u32 id;
	__u32 generation;
	__u32 count; /* slots 0 .. count-1; 0: refuse */
	__u32 flags;
};
_Static_assert(sizeof(struct cm_service) == 16, "cm_service");

struct cm_slot_key {
	__u32 service_id;
	__u32 generation;
	__u32 slot;
};
_Static_assert(sizeof(struct cm_slot_key) == 12, "cm_slot_key");

struct cm_backend {
	__be32 addr;
	__be16 port;
	__u16 cluster_id;
	__u8 proto;
	__u8 state;
	__u16 pad;
};
_Static_assert(sizeof(struct cm_backend) == 12, "cm_backend");

/* A socket's translation, so that it keeps seeing the service: value is the service's address. */
struct cm_sock_key {
	__u64 cookie;
	__be32 addr;
	__be16 port;
	__u16 pad;
};
_Static_assert(sizeof(struct cm_sock_key) == 16, "cm_sock_key");

struct cm_sock_value {
	__be32 addr;
	__be16 port;
	__u16 pad;
};
_Static_assert(sizeof(struct cm_sock_value) == 8, "cm_sock_value");

enum cm_ct_kind {
	CM_CT_FLOW = 0,	   /* as the packets travel: after load balancing */
	CM_CT_SERVICE = 1, /* as the client wrote it: remembers the chosen backend */
} __attribute__((packed));

/* Always in the direction of the flow's first packet. ICMP echo: sport = identifier, dport = 0. */
struct cm_ct_key {
	__be32 saddr;
	__be32 daddr;
	__be16 sport;
	__be16 dport;
	__u8 proto;
	enum cm_ct_kind kind;
	__u16 pad;
};
_Static_assert(sizeof(struct cm_ct_key) == 16, "cm_ct_key");

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
	__be32 nat_addr; /* flow: the service's address; service: the backend's */
	__be16 nat_port;
	enum cm_ct_state state;
	__u8 pad0;
	__u32 pad1;
};
_Static_assert(sizeof(struct cm_ct_entry) == 64, "cm_ct_entry");

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
	__u32 target;	/* ifindex, where the action has one */
	__u32 vni;	/* identity in the tunnel key */
	__be32 remote;	/* node in the tunnel key */
	__u32 identity; /* source identity, as believed */
	__u32 service_id;
	__u32 backend_id;
};
_Static_assert(sizeof(struct cm_decision) == 36, "cm_decision");

/* Settings, in .rodata: constants to the verifier. */
struct cm_settings {
	__be32 node_ip;
	__be32 gateway_ip;
	__be32 pod_net;
	__be32 pod_mask;
	__u32 vxlan_ifindex;
	__u32 identity_shift;
};
_Static_assert(sizeof(struct cm_settings) == 24, "cm_settings");

#endif /* CM_LAYOUT_H */
