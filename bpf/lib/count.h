/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Per-CPU counters of every exit, by reason and direction. */
#ifndef CM_COUNT_H
#define CM_COUNT_H

#include "common.h"

#define CM_COUNTERS (CM_R_MAX * CM_DIR_MAX)

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, CM_COUNTERS);
	__type(key, __u32);
	__type(value, struct cm_count);
} cm_drops SEC(".maps");

static __always_inline void count(enum cm_reason reason, enum cm_direction dir, __u32 bytes)
{
	__u32 index = reason * CM_DIR_MAX + dir;
	struct cm_count *c = bpf_map_lookup_elem(&cm_drops, &index);

	if (!c)
		return;
	c->packets++;
	c->bytes += bytes;
}

#endif /* CM_COUNT_H */
