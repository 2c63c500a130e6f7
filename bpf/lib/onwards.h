/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Where to with a packet that was translated on its way through this node. */
#ifndef CM_ONWARDS_H
#define CM_ONWARDS_H

#include "route.h"

/*
 * Where to with a packet for this address: CM_ACT_ENDPOINT (a pod of this node), CM_ACT_STACK,
 * CM_ACT_TUNNEL with `d` filled in, or CM_ACT_NETWORK, wherever routes lead. Clients are there; so
 * are backends that are neither here nor behind a tunnel, unless their node must know from whom the
 * packet is (`by_tunnel`). CM_ACT_DROP: then there is no way to them.
 */
static __always_inline enum cm_action way_to(const struct cm_addr *daddr, int by_tunnel,
					     struct cm_decision *d)
{
	__u32 identity = d->identity;
	struct cm_remote *remote;

	if (endpoint_lookup(daddr))
		return CM_ACT_ENDPOINT;
	if (is_own_host(daddr))
		return CM_ACT_STACK;
	remote = ipcache_lookup(daddr);
	if (by_tunnel && (!remote || addr_is_none(&remote->node)))
		return CM_ACT_DROP;
	if (!by_tunnel && (!remote || !is_tunnelled(remote)))
		return CM_ACT_NETWORK;
	/* Another node believes us only what is of our cluster: the client is not. */
	if (identity >= CM_IDENTITY_FIRST_GLOBAL)
		identity = world_of(daddr);
	to_tunnel(d, &remote->node, identity, CM_R_TO_TUNNEL);
	return CM_ACT_TUNNEL;
}

/* The packet is as its row says. 0: it is to a pod of this node, and the caller's to deliver. */
static __noinline int onwards(struct __sk_buff *skb, struct packet *p, struct cm_decision *d)
{
	int err;

	switch (way_to(&p->daddr, p->by_tunnel, d)) {
	case CM_ACT_ENDPOINT:
		return 0;
	case CM_ACT_STACK:
		return to_stack(d, CM_R_TO_STACK);
	case CM_ACT_TUNNEL:
		return CM_R_TO_TUNNEL;
	case CM_ACT_DROP:
		return CM_R_NO_ROUTE;
	default:
		err = route_out(skb, p, d);
		return err ? err : CM_R_TO_NETWORK;
	}
}

#endif /* CM_ONWARDS_H */
