/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * cm_nat: flows of other hosts with services of ours, translated on their way through this node.
 *
 * A row says what a packet's addresses and ports become. Each flow has two, one for what the client
 * sends and one for what comes back:
 *
 *   client:4000 -> node:30080      becomes  gateway:20001 -> backend:8080
 *   backend:8080 -> gateway:20001  becomes  node:30080 -> client:4000
 *
 * What a row leads to, turned round, is the key of the other. Where the backend's answers pass this
 * node anyway, or need not (dsr.h), the client's address stays as it is.
 */
#ifndef CM_NAT_TABLE_H
#define CM_NAT_TABLE_H

#include "nat.h"

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 128 * 1024);
	__type(key, struct cm_nat_key);
	__type(value, struct cm_nat_entry);
} cm_nat SEC(".maps");

/* Two rows are put together here: they would be half of a program's stack. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct cm_nat_draft);
} cm_nat_scratch SEC(".maps");

static __always_inline struct cm_nat_draft *nat_draft(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&cm_nat_scratch, &zero);
}

/* Of the packet, or of its answer. */
static __always_inline void nat_key(struct cm_nat_key *key, const struct packet *p)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->saddr = p->saddr;
	key->daddr = p->daddr;
	key->sport = p->sport;
	key->dport = p->dport;
	key->proto = p->proto;
}

static __always_inline void nat_key_of_answer(struct cm_nat_key *key, const struct packet *p)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->saddr = p->daddr;
	key->daddr = p->saddr;
	key->sport = p->dport;
	key->dport = p->sport;
	key->proto = p->proto;
}

/* Answers that do not pass here are known of by what the client says after them. */
static __always_inline int nat_is_answered(const struct cm_nat_entry *e, const struct packet *p)
{
	return e->is_dsr && p->proto == IPPROTO_TCP && !(p->tcp_flags & TCP_SYN);
}

static __always_inline void nat_see(struct cm_nat_entry *e, const struct packet *p)
{
	e->last_seen_ns = bpf_ktime_get_ns();
	if (p->proto == IPPROTO_TCP && (p->tcp_flags & (TCP_FIN | TCP_RST)))
		e->state = CM_CT_CLOSING;
	else if (e->state == CM_CT_NEW && (e->is_reply || nat_is_answered(e, p)))
		e->state = CM_CT_ESTABLISHED;
}

static __always_inline int nat_is_same(const struct cm_nat_entry *a, const struct cm_nat_entry *b)
{
	return a->is_reply == b->is_reply && a->sport == b->sport && a->dport == b->dport &&
	       addr_equal(&a->saddr, &b->saddr) && addr_equal(&a->daddr, &b->daddr);
}

/* The packet becomes what the row says. */
static __noinline int nat_apply(struct __sk_buff *skb, struct packet *p,
				const struct cm_nat_entry *e)
{
	int err = 0;

	if (p->sport != e->sport || !addr_equal(&p->saddr, &e->saddr))
		err = nat_source(skb, p, &e->saddr, e->sport);
	if (!err && (p->dport != e->dport || !addr_equal(&p->daddr, &e->daddr)))
		err = nat_destination(skb, p, &e->daddr, e->dport);
	return err;
}

#endif /* CM_NAT_TABLE_H */
