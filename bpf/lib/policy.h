/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Network policy, identity based. It is asked about flows, not packets: who begins it, who receives
 * it, on which port. The receiver's pod is asked about ingress, the beginner's about egress, each
 * on its own node. The answer is noted in the flow's conntrack entry together with the revision of
 * the endpoint's policies, so that replies pass, a packet of a judged flow costs a comparison, and
 * every flow is judged again when policies, or the identities at its ends, have changed.
 *
 * One LPM trie for all endpoints, the endpoint first in the key: a row comes or goes by one update,
 * without the grace period that a map of maps costs (10 ms each), and a range of ports is a few
 * prefixes. The agent has resolved deny against allow per peer: the longest match is the verdict of
 * that peer's rows, and a denial by the rows for anybody outdoes it.
 */
#ifndef CM_POLICY_H
#define CM_POLICY_H

#include "common.h"

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 256 * 1024);
	__type(key, struct cm_policy_key);
	__type(value, struct cm_policy_verdict);
} cm_policy SEC(".maps");

/* By endpoint id. An array is never full: closing an endpoint always works. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 64 * 1024);
	__type(key, __u32);
	__type(value, struct cm_policy_state);
} cm_policy_state SEC(".maps");

#define READ_ONCE(x) (*(volatile typeof(x) *)&(x))

#define CM_NO_ENDPOINT 0xffffffff

/* One end of a packet or flow: who it is, and if it is a pod of this node, whose policies count. */
struct policy_end {
	__u32 identity;
	__u32 endpoint; /* id, or CM_NO_ENDPOINT */
	__u32 revision; /* of its policies; 0: not of this node, or nothing was ever said about it */
};

struct policy_ends {
	struct policy_end source;
	struct policy_end dest;
};

/* The revision is read before any row, so that a judgement under way while rows change is void. */
static __always_inline struct policy_end policy_end(const struct cm_endpoint *endpoint,
						    __u32 identity)
{
	struct policy_end end = { .identity = identity, .endpoint = CM_NO_ENDPOINT };
	struct cm_policy_state *state;

	if (!endpoint)
		return end;
	end.endpoint = endpoint->endpoint_id;
	state = bpf_map_lookup_elem(&cm_policy_state, &end.endpoint);
	end.revision = state ? READ_ONCE(state->revision) : 0;
	return end;
}

static __always_inline struct cm_policy_verdict *
policy_row(__u32 endpoint, enum cm_policy_direction direction, __u32 identity, __u8 proto,
	   __be16 port)
{
	struct cm_policy_key key = {
		.prefix_len = CM_POLICY_KEY_BITS,
		.endpoint_id = endpoint,
		.identity = identity,
		.direction = direction,
		.proto = proto,
		.port = port,
	};

	return bpf_map_lookup_elem(&cm_policy, &key);
}

/* 0, or why the endpoint's policies keep the flow out (or in). */
static __always_inline int policy_ask(__u32 endpoint, enum cm_policy_direction direction,
				      __u32 peer, __u8 proto, __be16 port)
{
	const int egress = direction == CM_POLICY_EGRESS;
	struct cm_policy_verdict *of_peer, *of_all;
	struct cm_policy_state *state;

	if (endpoint == CM_NO_ENDPOINT)
		return 0;
	state = bpf_map_lookup_elem(&cm_policy_state, &endpoint);
	if (!state || state->flags & CM_POLICY_LOCKED)
		return CM_R_POLICY_LOCKED;
	if (!(state->flags & (egress ? CM_POLICY_ASK_EGRESS : CM_POLICY_ASK_INGRESS)))
		return 0;
	of_peer = policy_row(endpoint, direction, peer, proto, port);
	of_all = policy_row(endpoint, direction, CM_POLICY_ANYBODY, proto, port);
	if ((of_peer && of_peer->deny) || (of_all && of_all->deny))
		return egress ? CM_R_EGRESS_DENY_RULE : CM_R_INGRESS_DENY_RULE;
	if (of_peer || of_all)
		return 0;
	return egress ? CM_R_EGRESS_DENIED : CM_R_INGRESS_DENIED;
}

/* `ends` are those of a packet; `reply`: of one against the flow. Port: as the flow began. */
static __noinline int policy_judge(const struct policy_ends *ends, __u8 proto, __be16 port,
				   int reply)
{
	const struct policy_end *source = reply ? &ends->dest : &ends->source;
	const struct policy_end *dest = reply ? &ends->source : &ends->dest;
	int err = policy_ask(source->endpoint, CM_POLICY_EGRESS, dest->identity, proto, port);

	return err ? err
		   : policy_ask(dest->endpoint, CM_POLICY_INGRESS, source->identity, proto, port);
}

#endif /* CM_POLICY_H */
