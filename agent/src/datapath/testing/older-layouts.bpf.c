// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Maps as another version of the agent might have laid them out: members in another order, of another size, fewer, more.
 * Compared with bpf/lib/layout.h by name, as an upgrade does.
 */
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

struct cm_addr {
	__be32 word[4];
};

struct older_remote {
	__u8 encrypt_key;
	__u8 flags;
	__u32 cluster_id;
	__u32 identity;
	__u32 forgotten;
	struct cm_addr node;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, struct cm_addr);
	__type(value, struct older_remote);
} cm_ipcache SEC(".maps");

struct older_endpoint {
	__u8 host_mac[6];
	__u8 pod_mac[6];
	__u16 endpoint_id;
	__u16 pad;
	__u32 identity;
	__u32 ifindex;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, struct cm_addr);
	__type(value, struct older_endpoint);
} cm_endpoints SEC(".maps");

struct older_service_key {
	__u8 proto;
	__u8 scope;
	__be16 port;
	struct cm_addr addr;
};

struct older_service {
	__u32 count;
	__u32 id;
	__u32 generation;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, struct older_service_key);
	__type(value, struct older_service);
} cm_services SEC(".maps");

struct older_ct_key {
	__be16 dport;
	__be16 sport;
	__u8 kind;
	__u8 proto;
	__u16 pad;
	struct cm_addr daddr;
	struct cm_addr saddr;
};

struct older_ct_entry {
	__u32 service_id;
	__u32 backend_id;
	__u32 source_identity;
	__be16 nat_port;
	__u8 state;
	__u8 pad;
	__u64 last_seen_ns;
	struct cm_addr nat_addr;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct older_ct_key);
	__type(value, struct older_ct_entry);
} cm_ct SEC(".maps");
