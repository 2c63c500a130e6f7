/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A pod that reaches itself through a service of its own, where its sockets did not see to it:
 *
 *   pod:4000 -> service:80  balanced to itself: pod:4000 -> pod:8080
 *                           as the pod gets it: gateway:20001 -> pod:8080
 *   pod:8080 -> gateway:20001   turned back to: pod:8080 -> pod:4000
 *                           as the pod gets it: service:80 -> pod:4000, like any reply
 *
 * Its stack takes no packet from the network that has its own address as source.
 */
#ifndef CM_HAIRPIN_H
#define CM_HAIRPIN_H

#include "nat-file.h"
#include "nat-flow.h"

/* To a pod of this node: if it is the sender itself, from the gateway. 0 or a reason. */
static __noinline int hairpin_out(struct __sk_buff *skb, struct packet *p,
				  const struct cm_decision *d)
{
	struct cm_nat_draft *draft;
	struct cm_nat_entry *e;
	int err;

	if (likely(!addr_equal(&p->saddr, &p->daddr)))
		return 0;
	draft = nat_draft();
	if (!d->service_id || !draft)
		return CM_R_HAIRPIN;
	nat_key(&draft->key, p);
	e = bpf_map_lookup_elem(&cm_nat, &draft->key);
	if (!e) {
		e = &draft->forward;
		__builtin_memset(e, 0, sizeof(*e));
		e->saddr = setting(p->is_v6 ? &cm_settings.ipv6.gateway_ip
					    : &cm_settings.ipv4.gateway_ip);
		e->daddr = p->daddr;
		e->dport = p->dport;
		e->last_seen_ns = bpf_ktime_get_ns();
		err = nat_file(draft, bpf_get_prandom_u32());
		if (err)
			return err;
	}
	nat_see(e, p);
	return nat_apply(skb, p, e);
}

/* To this node: if it is the pod's answer to itself, it is addressed so now. 0 or a reason. */
static __noinline int hairpin_back(struct __sk_buff *skb, struct packet *p)
{
	struct cm_nat_entry *e;
	int err;

	if (likely(!is_own_host(&p->daddr)))
		return 0;
	if (unlikely(is_icmp_error(p))) {
		err = nat_error(skb, p, 1);
		return err == CM_R_FROM_NETWORK ? 0 : err;
	}
	e = nat_answer(p);
	if (!e)
		return 0;
	nat_see(e, p);
	return nat_apply(skb, p, e);
}

#endif /* CM_HAIRPIN_H */
