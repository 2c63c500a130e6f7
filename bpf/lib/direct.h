/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * To a pod of another node without encapsulation, by the host's own routes. What a router does is
 * done here (the next hop's MAC, a hop less); whatever is not as simple as that is left to the
 * host's stack, which resolves neighbours and says "too big", "time exceeded" and "unreachable".
 */
#ifndef CM_DIRECT_H
#define CM_DIRECT_H

#include "route.h"

/* 0: on its way to d->target. Anything else: not for us to route. */
static __noinline int route_directly(struct __sk_buff *skb, const struct packet *p,
				     struct cm_decision *d)
{
	struct bpf_fib_lookup fib = {};

	if (p->hop_limit <= 1 || look_up_route(skb, p, &fib) != BPF_FIB_LKUP_RET_SUCCESS ||
	    take_route(skb, p, &fib))
		return -1;
	d->action = CM_ACT_NETWORK;
	d->target = fib.ifindex;
	return 0;
}

#endif /* CM_DIRECT_H */
