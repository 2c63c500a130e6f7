/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Both rows of a new flow of cm_nat, and a source port by which its answers are known. */
#ifndef CM_NAT_FILE_H
#define CM_NAT_FILE_H

#include "nat-table.h"

/*
 * Source ports that are given to clients whose address is exchanged: below those that the kernel
 * gives to its own sockets (net.ipv4.ip_local_port_range begins at 32768), so that no connection of
 * this node to the same backend has the same.
 */
#define NAT_PORT_MIN 1024
#define NAT_PORTS    (32768 - NAT_PORT_MIN)
/* With three quarters of all ports to one backend taken, one flow in a hundred finds none. */
#define NAT_TRIES 16

/* The row of what comes back for draft->forward, as if the source port were `sport`. */
static __always_inline void nat_draft_reply(struct cm_nat_draft *draft, __be16 sport)
{
	struct cm_nat_entry *there = &draft->forward;

	__builtin_memset(&draft->reply_key, 0, sizeof(draft->reply_key));
	draft->reply_key.saddr = there->daddr;
	draft->reply_key.daddr = there->saddr;
	draft->reply_key.sport = there->dport;
	draft->reply_key.dport = sport;
	draft->reply_key.proto = draft->key.proto;

	__builtin_memset(&draft->reply, 0, sizeof(draft->reply));
	draft->reply.last_seen_ns = there->last_seen_ns;
	draft->reply.saddr = draft->key.daddr;
	draft->reply.sport = draft->key.dport;
	draft->reply.daddr = draft->key.saddr;
	draft->reply.dport = draft->key.sport;
	draft->reply.service_id = there->service_id;
	draft->reply.backend_id = there->backend_id;
	draft->reply.is_reply = 1;
	draft->reply.is_dsr = there->is_dsr;
}

/* What comes back this way comes back to nobody else. */
static __always_inline int nat_claim(struct cm_nat_draft *draft)
{
	const struct cm_nat_entry *held;

	if (!bpf_map_update_elem(&cm_nat, &draft->reply_key, &draft->reply, BPF_NOEXIST))
		return 1;
	held = bpf_map_lookup_elem(&cm_nat, &draft->reply_key);
	return held && nat_is_same(held, &draft->reply);
}

static __always_inline int nat_write(struct cm_nat_draft *draft)
{
	return bpf_map_update_elem(&cm_nat, &draft->key, &draft->forward, BPF_ANY)
		       ? CM_R_WRITE_FAILED
		       : 0;
}

/*
 * Files the flow of draft->key to where draft->forward leads. Its source port is the client's own,
 * if the address is and no other flow has it; else one that is free. 0 or a reason.
 */
static __noinline int nat_file(struct cm_nat_draft *draft, __u32 hash)
{
	const int is_own = addr_equal(&draft->key.saddr, &draft->forward.saddr);
	const int is_fixed = draft->key.proto == IPPROTO_SCTP; /* its checksum covers ports */
	__be16 port = draft->key.sport;

	for (int i = 0; i < NAT_TRIES; i++) {
		if (!is_fixed && (i || !is_own))
			port = bpf_htons(NAT_PORT_MIN + hash % NAT_PORTS);
		nat_draft_reply(draft, port);
		if (nat_claim(draft)) {
			draft->forward.sport = port;
			return nat_write(draft);
		}
		hash = bpf_get_prandom_u32();
	}
	return CM_R_NAT_EXHAUSTED;
}

#endif /* CM_NAT_FILE_H */
