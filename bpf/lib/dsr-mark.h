/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The node that a client came to notes the service in its packets; see dsr.h. */
#ifndef CM_DSR_MARK_H
#define CM_DSR_MARK_H

#include "dsr.h"

/* Bytes of the option that the packet should have. */
static __always_inline __u8 dsr_option(const struct packet *p)
{
	if (p->later || !p->ip_len || p->ip_len > 0xffff - sizeof(struct dsr_ipv6))
		return 0;
	if (p->proto == IPPROTO_TCP && !opens_connection(p) && !p->begins)
		return 0;
	return p->is_v6 ? sizeof(struct dsr_ipv6) : sizeof(struct dsr_ipv4);
}

static __always_inline int dsr_mark_v4(struct __sk_buff *skb, const struct packet *p)
{
	struct dsr_head_v4 h = {
		.option = {
			.type = DSR_TYPE_V4,
			.len = sizeof(h.option),
			.port = p->dport,
			.addr = p->daddr.word[3],
		},
	};

	if (bpf_skb_load_bytes(skb, IP_OFF, &h.ip, sizeof(h.ip)) ||
	    bpf_skb_adjust_room(skb, sizeof(h.option), BPF_ADJ_ROOM_NET, DSR_ROOM))
		return CM_R_WRITE_FAILED;
	h.ip.ihl = DSR_WORDS_V4;
	h.ip.tot_len = bpf_htons(p->ip_len + sizeof(h.option));
	h.ip.check = 0;
	h.ip.check = csum_fold(csum_of(&h, sizeof(h), 0));
	return bpf_skb_store_bytes(skb, IP_OFF, &h, sizeof(h), BPF_F_RECOMPUTE_CSUM)
		       ? CM_R_WRITE_FAILED
		       : 0;
}

static __always_inline int dsr_mark_v6(struct __sk_buff *skb, const struct packet *p)
{
	struct dsr_head_v6 h = {
		.option = {
			.units = sizeof(h.option) / 8 - 1,
			.type = DSR_TYPE_V6,
			.len = sizeof(h.option) - offsetof(struct dsr_ipv6, port),
			.port = p->dport,
			.addr = p->daddr,
		},
	};

	if (bpf_skb_load_bytes(skb, IP_OFF, &h.ip, sizeof(h.ip)) ||
	    bpf_skb_adjust_room(skb, sizeof(h.option), BPF_ADJ_ROOM_NET, DSR_ROOM))
		return CM_R_WRITE_FAILED;
	h.option.next = h.ip.nexthdr;
	h.ip.nexthdr = EXT_DSTOPTS;
	h.ip.payload_len = bpf_htons(p->ip_len - sizeof(h.ip) + sizeof(h.option));
	return bpf_skb_store_bytes(skb, IP_OFF, &h, sizeof(h), BPF_F_RECOMPUTE_CSUM)
		       ? CM_R_WRITE_FAILED
		       : 0;
}

/* Before the packet is translated: to whom it is sent now is the service. 0 or a reason. */
static __noinline int dsr_mark(struct __sk_buff *skb, struct packet *p)
{
	int err;

	if (!p->option)
		return 0;
	err = p->is_v6 ? dsr_mark_v6(skb, p) : dsr_mark_v4(skb, p);
	p->ip_len += p->option;
	p->l4_off += p->option;
	return err;
}

#endif /* CM_DSR_MARK_H */
