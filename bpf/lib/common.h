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
#define CM_IDENTITY_UNMANAGED	 3
#define CM_IDENTITY_REMOTE_NODE	 6
#define CM_IDENTITY_WORLD_IPV6	 10
#define CM_IDENTITY_FIRST_GLOBAL 256
#define CM_IDENTITY_MASK	 0xffffff

/* Written by the loader before the program is verified. */
const volatile struct cm_settings cm_settings = {};

static __always_inline struct cm_addr addr_v4(__be32 addr)
{
	struct cm_addr a = { .word = { 0, 0, bpf_htonl(0xffff), addr } };

	return a;
}

static __always_inline int addr_is_v4(const struct cm_addr *a)
{
	return !a->word[0] && !a->word[1] && a->word[2] == bpf_htonl(0xffff);
}

/* Whoever is not known. */
static __always_inline __u32 world_of(const struct cm_addr *a)
{
	return addr_is_v4(a) ? CM_IDENTITY_WORLD : CM_IDENTITY_WORLD_IPV6;
}

static __always_inline int is_world(__u32 identity)
{
	return identity == CM_IDENTITY_WORLD || identity == CM_IDENTITY_WORLD_IPV6;
}

/*
 * 0, which the verifier does not know: what would only differ by a constant is then one path to it.
 */
static __always_inline __u32 unknown_zero(__u32 any)
{
	__u32 same = any;

	barrier_var(any);
	barrier_var(same);
	return any - same;
}

static __always_inline int addr_is_link_local(const struct cm_addr *a)
{
	return (a->word[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

static __always_inline int addr_is_none(const struct cm_addr *a)
{
	return !(a->word[0] | a->word[1] | a->word[2] | a->word[3]);
}

static __always_inline int addr_equal(const struct cm_addr *a, const struct cm_addr *b)
{
	return a->word[0] == b->word[0] && a->word[1] == b->word[1] && a->word[2] == b->word[2] &&
	       a->word[3] == b->word[3];
}

#endif /* CM_COMMON_H */
