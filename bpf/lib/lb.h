/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Service tables: frontend -> (service id, generation, count) -> slot -> backend id -> address.
 *
 * The agent writes new backends, then all slots under a new generation, then the service row, and
 * only then removes what the old row named. Whoever reads a row therefore finds its slots complete,
 * except between the read of an old row and the removal of its slots: lb_select() then reads once
 * more.
 *
 * Generations are unique over all services, so a row that was read while the kernel reused its
 * memory cannot name slots of another service.
 */
#ifndef CM_LB_H
#define CM_LB_H

#include "common.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 64 * 1024);
	__type(key, struct cm_service_key);
	__type(value, struct cm_service);
} cm_services SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024 * 1024);
	__type(key, struct cm_slot_key);
	__type(value, __u32);
} cm_slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 256 * 1024);
	__type(key, __u32);
	__type(value, struct cm_backend);
} cm_backends SEC(".maps");

struct lb_backend {
	__u32 service_id;
	__u32 backend_id;
	struct cm_addr addr;
	__be16 port;
};

static __always_inline struct cm_service *service_lookup(const struct cm_addr *addr, __be16 port,
							 __u8 proto)
{
	struct cm_service_key key = { .addr = *addr, .port = port, .proto = proto };

	return bpf_map_lookup_elem(&cm_services, &key);
}

/* One backend of a random slot. 0, or CM_R_STALE_TABLES if row and slots do not fit together. */
static __always_inline int lb_pick(const struct cm_service *service, struct lb_backend *out)
{
	struct cm_slot_key slot = {
		.service_id = service->id,
		.generation = service->generation,
	};
	__u32 slots = service->count;
	struct cm_backend *backend;
	__u32 *id;

	if (!slots)
		return CM_R_NO_BACKEND;
	slot.slot = bpf_get_prandom_u32() % slots;
	id = bpf_map_lookup_elem(&cm_slots, &slot);
	if (!id)
		return CM_R_STALE_TABLES;
	out->service_id = slot.service_id;
	out->backend_id = *id;
	backend = bpf_map_lookup_elem(&cm_backends, &out->backend_id);
	if (!backend)
		return CM_R_STALE_TABLES;
	out->addr = backend->addr;
	out->port = backend->port;
	return 0;
}

/* 0 with `out` filled in, or CM_R_NO_BACKEND, or CM_R_STALE_TABLES. */
static __always_inline int lb_select(const struct cm_service *service, const struct cm_addr *addr,
				     __be16 port, __u8 proto, struct lb_backend *out)
{
	int err = lb_pick(service, out);

	if (likely(err != CM_R_STALE_TABLES))
		return err;
	service = service_lookup(addr, port, proto);
	return service ? lb_pick(service, out) : CM_R_NO_BACKEND;
}

/* Does this id still stand for this address? Ids are given again once they are free. */
static __always_inline int lb_backend_is(__u32 id, const struct cm_addr *addr, __be16 port)
{
	struct cm_backend *backend = bpf_map_lookup_elem(&cm_backends, &id);

	return backend && addr_equal(&backend->addr, addr) && backend->port == port;
}

#endif /* CM_LB_H */
