/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Flow events: what became of a packet, for people to look at. Refused packets (reasons from
 * CM_R_REFUSED on) all want to be shown, forwarded ones one in so many; both are off until the
 * agent writes cm_event_config.
 *
 * Each CPU may spend so many events a second. A flood beyond that costs two lookups and a coarse
 * clock a packet, and one counter says how much was not shown. User space polls: nobody is woken.
 *
 * The record carries the packet's first bytes and user space takes them apart, so that showing a
 * packet neither parses it twice here nor depends on how it is parsed.
 */
#ifndef CM_EVENTS_H
#define CM_EVENTS_H

#include "common.h"

/* Of a kind, one for all programs that are loaded together; none of them is pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1024 * 1024); /* bytes */
} cm_events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct cm_event_config);
} cm_event_config SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct cm_event_state);
} cm_event_state SEC(".maps");

static __always_inline int event_may_spend(struct cm_event_state *s,
					   const struct cm_event_config *c)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	__u64 since = now - s->earned_ns;

	if (c->interval_ns && since >= c->interval_ns) {
		s->saved += since / c->interval_ns;
		s->earned_ns = now;
	}
	if (s->saved > c->burst)
		s->saved = c->burst;
	if (!s->saved) {
		s->lost++;
		return 0;
	}
	s->saved--;
	return 1;
}

/* Filled in but for the packet; NULL if this one is not to be shown. To be submitted. */
static __always_inline struct cm_event *event_begin(enum cm_reason reason)
{
	const struct cm_event_config *c;
	struct cm_event_state *s;
	struct cm_event *e;
	__u32 zero = 0, every;

	c = bpf_map_lookup_elem(&cm_event_config, &zero);
	if (!c)
		return NULL;
	every = reason >= CM_R_REFUSED ? c->refused_every : c->forwarded_every;
	if (likely(!every))
		return NULL;
	if (every > 1 && bpf_get_prandom_u32() % every)
		return NULL;
	s = bpf_map_lookup_elem(&cm_event_state, &zero);
	if (!s || !event_may_spend(s, c))
		return NULL;
	e = bpf_ringbuf_reserve(&cm_events, sizeof(*e), 0);
	if (!e) {
		s->lost++;
		return NULL;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->time_ns = bpf_ktime_get_ns();
	e->reason = reason;
	e->every = every;
	s->sent++;
	return e;
}

static __always_inline void event_submit(struct cm_event *e)
{
	bpf_ringbuf_submit(e, BPF_RB_NO_WAKEUP);
}

#endif /* CM_EVENTS_H */
