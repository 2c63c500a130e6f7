/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Packets of flows that cm_nat knows, and ICMP errors about them, on their way. */
#ifndef CM_NAT_FLOW_H
#define CM_NAT_FLOW_H

#include "nat-table.h"
#include "verdict.h"

/* The packet's row, if one of answers is wanted: those of backends. */
static __noinline struct cm_nat_entry *nat_answer(const struct packet *p)
{
	struct cm_nat_draft *draft = nat_draft();
	struct cm_nat_entry *e;

	if (!draft)
		return NULL;
	nat_key(&draft->key, p);
	e = bpf_map_lookup_elem(&cm_nat, &draft->key);
	return e && e->is_reply ? e : NULL;
}

static __always_inline void nat_note(struct cm_decision *d, struct cm_nat_entry *e,
				     const struct packet *p)
{
	nat_see(e, p);
	d->service_id = e->service_id;
	d->backend_id = e->backend_id;
}

/*
 * An ICMP error about a packet that was translated here: what it quotes becomes what it was before,
 * and its own addresses, where they are those of the flow. `is_to_us`: by its destination; else it
 * may only be to a client who is answered directly, about what he sent. 0; CM_R_FROM_NETWORK: about
 * no flow of ours; or another reason.
 */
static __noinline int nat_error(struct __sk_buff *skb, struct packet *p, int is_to_us)
{
	struct cm_nat_draft *draft = nat_draft();
	__u32 icmp = p->l4_off & MAX_L4_OFF;
	__u32 csum = icmp + ICMP_CSUM_OFF, quote = icmp + ICMP_HDR_LEN;
	struct cm_nat_entry *e;
	struct packet q = {};
	int err;

	if (!draft)
		return CM_R_WRITE_FAILED;
	if (p->later || read_quote(skb, quote, p->is_v6, &q))
		return CM_R_FROM_NETWORK;
	nat_key_of_answer(&draft->key, &q);
	e = bpf_map_lookup_elem(&cm_nat, &draft->key);
	/* It goes to who sent what it is about, or it is about nothing. */
	if (!e || !addr_equal(&p->daddr, &draft->key.daddr) ||
	    !(is_to_us | (e->is_dsr & e->is_reply)))
		return CM_R_FROM_NETWORK;
	p->by_tunnel = e->is_dsr & (e->is_reply ^ 1);
	err = rewrite_quote(skb, csum, quote, &q, NAT_SOURCE, &e->daddr, e->dport);
	if (!err)
		err = rewrite_quote(skb, csum, quote, &q, NAT_DESTINATION, &e->saddr, e->sport);
	if (!err && addr_equal(&p->saddr, &draft->key.saddr))
		err = rewrite_outer(skb, csum, p->is_v6, NAT_SOURCE, &p->saddr, &e->saddr);
	if (!err)
		err = rewrite_outer(skb, csum, p->is_v6, NAT_DESTINATION, &p->daddr, &e->daddr);
	return err;
}

#endif /* CM_NAT_FLOW_H */
