/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Where to with a packet that was translated on its way through this node. */
#ifndef CM_ONWARDS_H
#define CM_ONWARDS_H

#include "route.h"

/*
 * The packet is as its row says: where to with it? 0: to a pod of this node, which is the caller's
 * to deliver. Clients are where routes lead to; so are backends that are neither here nor behind a
 * tunnel.
 */
static __noinline int onwards(struct __sk_buff *skb, struct packet *p, struct cm_decision *d)
{
	struct cm_remote *remote;
	__u32 identity = d->identity;
	int err;

	if (endpoint_lookup(&p->daddr))
		return 0;
	if (is_own_host(&p->daddr))
		return to_stack(d, CM_R_TO_STACK);
	remote = ipcache_lookup(&p->daddr);
	if (remote && is_tunnelled(remote)) {
		/* Another node believes us only what is of our cluster: the client is not. */
		if (identity >= CM_IDENTITY_FIRST_GLOBAL)
			identity = world_of(&p->saddr);
		return to_tunnel(d, &remote->node, identity, CM_R_TO_TUNNEL);
	}
	err = route_out(skb, p, d);
	return err ? err : CM_R_TO_NETWORK;
}

#endif /* CM_ONWARDS_H */
