/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The backend's node of direct server return (see dsr.h): what came through the tunnel with a
 * service noted in it is a client's own packet. The note is taken off, and a row of cm_nat gives
 * the answers the service's address back as they leave by an uplink.
 *
 * A known node speaks for clients of the world so, and for nobody else: the VNI says `world`, the
 * client's address is none of the mesh's, and the service's is none of a pod's or of this node's.
 * Whom policies take the client for is then what the address says here, as at an uplink.
 *
 * Rows may be lost (LRU). The next datagram or SYN files another; the answers of an established
 * connection without one leave as they are.
 */
#ifndef CM_DSR_TAKE_H
#define CM_DSR_TAKE_H

#include "dsr.h"
#include "nat-table.h"
#include "tables.h"

/* What did not begin to be a connection, or is none, is over after as long without a packet. */
#define DSR_IDLE_NS (60 * NS_PER_S)

static __always_inline int is_unicast(const struct cm_addr *a)
{
	__u32 top = bpf_ntohl(addr_is_v4(a) ? a->word[3] : a->word[0]) >> 24;

	if (addr_is_v4(a))
		return top != 0 && top != 127 && top < 224;
	return top != 0xff && !addr_is_link_local(a) && (a->word[0] | a->word[1] | a->word[2]);
}

static __always_inline int dsr_take_v4(struct __sk_buff *skb, struct cm_nat_draft *draft)
{
	struct dsr_head_v4 h;
	__u32 len;

	if (bpf_skb_load_bytes(skb, IP_OFF, &h, sizeof(h)) || h.ip.version != 4 ||
	    h.ip.ihl != DSR_WORDS_V4 || h.option.type != DSR_TYPE_V4 ||
	    h.option.len != sizeof(h.option))
		return 0;
	len = bpf_ntohs(h.ip.tot_len);
	draft->service = addr_v4(h.option.addr);
	draft->service_port = h.option.port;
	if (len < sizeof(h) || len > skb->len - IP_OFF || !h.option.port ||
	    !is_unicast(&draft->service))
		return 0;
	if (bpf_skb_adjust_room(skb, -(int)sizeof(h.option), BPF_ADJ_ROOM_NET, DSR_ROOM))
		return CM_R_WRITE_FAILED;
	h.ip.ihl = sizeof(h.ip) / 4;
	h.ip.tot_len = bpf_htons(len - sizeof(h.option));
	h.ip.check = 0;
	h.ip.check = csum_fold(csum_of(&h.ip, sizeof(h.ip), 0));
	if (bpf_skb_store_bytes(skb, IP_OFF, &h.ip, sizeof(h.ip), BPF_F_RECOMPUTE_CSUM))
		return CM_R_WRITE_FAILED;
	draft->noted = sizeof(h.option);
	return 0;
}

static __always_inline int dsr_take_v6(struct __sk_buff *skb, struct cm_nat_draft *draft)
{
	struct dsr_head_v6 h;
	__u32 len;

	if (bpf_skb_load_bytes(skb, IP_OFF, &h, sizeof(h)) || h.ip.version != 6 ||
	    h.ip.nexthdr != EXT_DSTOPTS || h.option.units != sizeof(h.option) / 8 - 1 ||
	    h.option.type != DSR_TYPE_V6 ||
	    h.option.len != sizeof(h.option) - offsetof(struct dsr_ipv6, port))
		return 0;
	len = bpf_ntohs(h.ip.payload_len);
	draft->service = h.option.addr;
	draft->service_port = h.option.port;
	if (len < sizeof(h.option) || len > skb->len - L4_OFF_V6 || !h.option.port ||
	    addr_is_v4(&draft->service) || !is_unicast(&draft->service))
		return 0;
	if (bpf_skb_adjust_room(skb, -(int)sizeof(h.option), BPF_ADJ_ROOM_NET, DSR_ROOM))
		return CM_R_WRITE_FAILED;
	h.ip.nexthdr = h.option.next;
	h.ip.payload_len = bpf_htons(len - sizeof(h.option));
	if (bpf_skb_store_bytes(skb, IP_OFF, &h.ip, sizeof(h.ip), BPF_F_RECOMPUTE_CSUM))
		return CM_R_WRITE_FAILED;
	draft->noted = sizeof(h.option);
	return 0;
}

/*
 * Takes the note off, if there is one that this sender may make; the service is in the draft then.
 * What is left, for its sender or its form, the parser drops. 0 or a reason.
 */
static __noinline int dsr_take(struct __sk_buff *skb, __u32 vni)
{
	struct cm_nat_draft *draft = nat_draft();

	if (!draft)
		return CM_R_WRITE_FAILED;
	draft->noted = 0;
	if (skb->vlan_present)
		return 0;
	if (vni == CM_IDENTITY_WORLD && skb->protocol == bpf_htons(ETH_P_IP))
		return dsr_take_v4(skb, draft);
	if (vni == CM_IDENTITY_WORLD_IPV6 && skb->protocol == bpf_htons(ETH_P_IPV6))
		return dsr_take_v6(skb, draft);
	return 0;
}

/* Is this what answers of a service may have as source here? */
static __always_inline int may_serve(const struct cm_addr *service)
{
	struct cm_remote *remote;

	if (is_own_pod_cidr(service) || is_own_host(service))
		return 0;
	remote = ipcache_lookup(service);
	return !remote || addr_is_none(&remote->node);
}

/*
 * Of a packet that came as one of the world: if a service was noted in it, or in one before it of
 * its flow, who sent it is what its address says. 0 or a reason.
 */
static __noinline int dsr_sender(struct packet *p, __u32 *identity)
{
	struct cm_nat_draft *draft = nat_draft();
	struct cm_remote *source;
	struct cm_nat_entry *e;

	if (!draft)
		return CM_R_WRITE_FAILED;
	p->option = draft->noted;
	if (!p->option && is_icmp_error(p))
		return 0;
	if (!p->option) {
		nat_key_of_answer(&draft->key, p);
		e = bpf_map_lookup_elem(&cm_nat, &draft->key);
		if (!e || !e->is_reply || !e->is_dsr)
			return 0;
		nat_see(e, p);
	} else {
		if (p->proto != IPPROTO_TCP && p->proto != IPPROTO_UDP && p->proto != IPPROTO_SCTP)
			return CM_R_UNSUPPORTED_L4;
		if (!may_serve(&draft->service))
			return CM_R_SPOOFED_SOURCE;
	}
	source = ipcache_lookup(&p->saddr);
	if (!is_of_world(&p->saddr, source))
		return CM_R_FOREIGN_IDENTITY;
	if (source)
		*identity = source->identity;
	return 0;
}

/* Is the row one that nobody needs any more, so that the same ports may be another flow's? */
static __always_inline int dsr_is_over(const struct cm_nat_entry *e, const struct packet *p,
				       __u64 now)
{
	if (p->proto == IPPROTO_TCP && e->state != CM_CT_NEW)
		return e->state == CM_CT_CLOSING && opens_connection(p);
	return now - e->last_seen_ns > DSR_IDLE_NS;
}

/*
 * The row of answers to the packet. 0, or CM_R_NAT_EXHAUSTED: the same ports of the client are in
 * use with the same pod through another service, so that answers could not be told apart.
 */
static __noinline int dsr_file(const struct packet *p)
{
	struct cm_nat_draft *draft = nat_draft();
	struct cm_nat_entry *e, *held;

	if (!draft)
		return CM_R_WRITE_FAILED;
	nat_key_of_answer(&draft->key, p);
	e = &draft->reply;
	__builtin_memset(e, 0, sizeof(*e));
	e->last_seen_ns = bpf_ktime_get_ns();
	e->saddr = draft->service;
	e->sport = draft->service_port;
	e->daddr = p->saddr;
	e->dport = p->sport;
	e->is_reply = 1;
	e->is_dsr = 1;

	held = bpf_map_lookup_elem(&cm_nat, &draft->key);
	if (held && !dsr_is_over(held, p, e->last_seen_ns)) {
		if (!nat_is_same(held, e))
			return CM_R_NAT_EXHAUSTED;
		held->last_seen_ns = e->last_seen_ns;
		held->is_dsr = 1;
		return 0;
	}
	return bpf_map_update_elem(&cm_nat, &draft->key, e, BPF_ANY) ? CM_R_WRITE_FAILED : 0;
}

#endif /* CM_DSR_TAKE_H */
