/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What every program includes first. */
#ifndef CM_COMMON_H
#define CM_COMMON_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "layout.h"

#define likely(x)   __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

#define CM_IDENTITY_HOST	 1
#define CM_IDENTITY_WORLD	 2
#define CM_IDENTITY_REMOTE_NODE	 6
#define CM_IDENTITY_FIRST_GLOBAL 256
#define CM_IDENTITY_MASK	 0xffffff

/* Written by the loader before the program is verified. */
const volatile struct cm_settings cm_settings = {};

static __always_inline struct cm_addr addr_v4(__be32 addr)
{
	struct cm_addr key = { .family = CM_FAMILY_IPV4 };

	key.addr[0] = addr;
	return key;
}

#endif /* CM_COMMON_H */
