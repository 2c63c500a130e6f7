/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What sock.bpf.c notes of each socket that it translates: whom the application asked for. */
#ifndef CM_SOCK_REV_H
#define CM_SOCK_REV_H

#include "common.h"

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 64 * 1024);
	__type(key, struct cm_sock_key);
	__type(value, struct cm_sock_value);
} cm_sock_rev SEC(".maps");

#endif /* CM_SOCK_REV_H */
