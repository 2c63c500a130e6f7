// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Socket load balancing: a service address is exchanged for a backend's when the socket connects
 * (or, for unconnected UDP, sends), so that nothing is translated per packet. What the application
 * asks for later (who sent this? whom am I connected to?) is answered with the service's address.
 */
#include <asm-generic/errno.h>
#include <linux/in.h>
#include "lib/common.h"
#include "lib/count.h"
#include "lib/lb.h"

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 64 * 1024);
	__type(key, struct cm_sock_key);
	__type(value, struct cm_sock_value);
} cm_sock_rev SEC(".maps");

#define REFUSE 0
#define GO_ON  1

/* user_port is a __be16 in a __u32 */
static __always_inline struct cm_sock_key sock_key(struct bpf_sock_addr *ctx,
						   const struct cm_addr *addr, __be16 port)
{
	struct cm_sock_key key = {
		.cookie = bpf_get_socket_cookie(ctx),
		.addr = *addr,
		.port = port,
	};

	return key;
}

/* Unconnected UDP comes here for every datagram: leave an equal row alone, writing costs a lock. */
static __always_inline void remember(struct bpf_sock_addr *ctx, const struct lb_backend *lb,
				     const struct cm_addr *addr, __be16 port)
{
	struct cm_sock_key key = sock_key(ctx, &lb->addr, lb->port);
	struct cm_sock_value value = { .addr = *addr, .port = port };
	struct cm_sock_value *old = bpf_map_lookup_elem(&cm_sock_rev, &key);

	if (old && addr_equal(&old->addr, addr) && old->port == port)
		return;
	bpf_map_update_elem(&cm_sock_rev, &key, &value, BPF_ANY);
}

static __always_inline int translate(struct bpf_sock_addr *ctx)
{
	struct cm_addr addr = addr_v4(ctx->user_ip4);
	__be16 port = ctx->user_port;
	__u8 proto = ctx->protocol;
	struct cm_service *service;
	struct lb_backend lb = {};
	int err;

	if (proto != IPPROTO_TCP && proto != IPPROTO_UDP)
		return GO_ON;
	service = service_lookup(&addr, port, proto);
	if (!service)
		return GO_ON;
	err = lb_select(service, &addr, port, proto, &lb);
	if (err) {
		count(err, CM_DIR_SOCK, 0);
		bpf_set_retval(-ECONNREFUSED);
		return REFUSE;
	}
	remember(ctx, &lb, &addr, port);
	ctx->user_ip4 = lb.addr.word[3];
	ctx->user_port = lb.port;
	count(CM_R_SOCK_TRANSLATED, CM_DIR_SOCK, 0);
	return GO_ON;
}

static __always_inline void translate_back(struct bpf_sock_addr *ctx)
{
	struct cm_addr addr = addr_v4(ctx->user_ip4);
	struct cm_sock_key key = sock_key(ctx, &addr, ctx->user_port);
	struct cm_sock_value *service = bpf_map_lookup_elem(&cm_sock_rev, &key);

	if (!service)
		return;
	ctx->user_ip4 = service->addr.word[3];
	ctx->user_port = service->port;
}

SEC("cgroup/connect4")
int cm_connect4(struct bpf_sock_addr *ctx)
{
	return translate(ctx);
}

SEC("cgroup/sendmsg4")
int cm_sendmsg4(struct bpf_sock_addr *ctx)
{
	return translate(ctx);
}

SEC("cgroup/recvmsg4")
int cm_recvmsg4(struct bpf_sock_addr *ctx)
{
	translate_back(ctx);
	return GO_ON;
}

SEC("cgroup/getpeername4")
int cm_getpeername4(struct bpf_sock_addr *ctx)
{
	translate_back(ctx);
	return GO_ON;
}

char _license[] SEC("license") = "Dual BSD/GPL";
