/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Only the first fragment of a datagram has the header of layer 4. What it says is kept for the
 * others, so that they go where the first went. One that comes before it is dropped: who sent it
 * will send the datagram again, or not.
 */
#ifndef CM_FRAGMENTS_H
#define CM_FRAGMENTS_H

#include "packet.h"

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct cm_fragment_key);
	__type(value, struct cm_fragment);
} cm_fragments SEC(".maps");

/* IPv6 tells datagrams apart by addresses and id alone (RFC 8200, 4.5): `proto` is then 0. */
static __always_inline struct cm_fragment_key fragment_key(const struct packet *p, __be32 id,
							   __u8 proto)
{
	struct cm_fragment_key key = {
		.saddr = p->saddr,
		.daddr = p->daddr,
		.id = id,
		.proto = proto,
	};

	return key;
}

static __always_inline int fragment_first(const struct packet *p, const struct cm_fragment_key *key)
{
	struct cm_fragment f = {
		.sport = p->sport,
		.dport = p->dport,
		.proto = p->proto,
		.icmp_type = p->icmp_type,
	};

	/* A full table makes room by itself; should this fail, later fragments are dropped. */
	bpf_map_update_elem(&cm_fragments, key, &f, BPF_ANY);
	return 0;
}

static __always_inline int fragment_later(struct packet *p, const struct cm_fragment_key *key)
{
	struct cm_fragment *f = bpf_map_lookup_elem(&cm_fragments, key);

	if (!f)
		return CM_R_FRAGMENT_LOST;
	p->later = 1;
	p->proto = f->proto;
	p->sport = f->sport;
	p->dport = f->dport;
	p->icmp_type = f->icmp_type;
	return 0;
}

#endif /* CM_FRAGMENTS_H */
