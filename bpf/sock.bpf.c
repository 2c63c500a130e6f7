// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Socket load balancing: a service address is exchanged for a backend's when the socket connects
 * (or, for unconnected UDP, sends), so that nothing is translated per packet. What the application
 * asks for later (who sent this? whom am I connected to?) is answered with the service's address.
 *
 * Sockets of both families come with struct cm_addr, in which an IPv6 socket's v4-mapped
 * destination is what it is to an IPv4 socket. The kernel may show one flow of an IPv6 socket to
 * programs of both families (sendmsg4 for a v4-mapped destination, then recvmsg6): they share the
 * rows of cm_sock_rev.
 */
#include <asm-generic/errno.h>
#include <linux/in.h>
#include "lib/common.h"
#include "lib/count.h"
#include "lib/events.h"
#include "lib/lb.h"
#include "lib/sock-rev.h"

#define REFUSE 0
#define GO_ON  1

/* what user_port is, a __be16 in a __u32, comes out right when it is cut to 16 bits */
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

/* There is no packet: the event names whom the socket asked for. */
static __always_inline void show(const struct cm_addr *addr, __be16 port, __u8 proto,
				 const struct lb_backend *lb, enum cm_reason reason)
{
	struct cm_event *e = event_begin(reason);

	if (likely(!e))
		return;
	e->direction = CM_DIR_SOCK;
	e->service_id = lb->service_id;
	e->backend_id = lb->backend_id;
	e->addr = *addr;
	e->port = port;
	e->proto = proto;
	event_submit(e);
}

/*
 * A datagram's flow is its socket, so that what is sent without connect() goes to one backend. Each
 * connection of TCP is a flow of its own, of which nothing is known yet.
 */
static __always_inline __u32 socket_hash(struct bpf_sock_addr *ctx, const struct cm_addr *addr,
					 __be16 port, __u8 proto)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	const __u32 words[] = { cookie,	       cookie >> 32,  addr->word[0], addr->word[1],
				addr->word[2], addr->word[3], port };

	return proto == IPPROTO_UDP ? hash_words(words, sizeof(words) / sizeof(words[0]))
				    : bpf_get_prandom_u32();
}

/* Of all clients of a node, a multicast address (ff..) is none. */
static __always_inline struct cm_addr affinity_of_netns(struct bpf_sock_addr *ctx)
{
	__u64 cookie = bpf_get_netns_cookie(ctx);
	struct cm_addr client = { .word = { 0xffffffff, 0, cookie >> 32, cookie } };

	return client;
}

/* Does the socket's destination become `addr`:`port`? Then 1, or 0 for none of ours, or -errno. */
static __always_inline int translate(struct bpf_sock_addr *ctx, struct cm_addr *addr, __be16 *port)
{
	struct lb_flow flow = {
		.service = { .addr = *addr, .port = *port, .proto = ctx->protocol },
	};
	__u8 proto = flow.service.proto;
	struct cm_service *service;
	struct cm_addr client;
	struct lb_backend lb = {};
	int err;

	if (proto != IPPROTO_TCP && proto != IPPROTO_UDP)
		return 0;
	service = service_lookup(&flow.service);
	if (!service)
		return 0;
	flow.hash = socket_hash(ctx, addr, *port, proto);
	client = affinity_of_netns(ctx);
	err = lb_select(service, &flow, &client, &lb);
	if (err) {
		count(err, CM_DIR_SOCK, 0);
		show(addr, *port, proto, &lb, err);
		return -ECONNREFUSED;
	}
	if (service->affinity_s)
		affinity_keep(&client, &lb);
	remember(ctx, &lb, addr, *port);
	show(addr, *port, proto, &lb, CM_R_SOCK_TRANSLATED);
	*addr = lb.addr;
	*port = lb.port;
	count(CM_R_SOCK_TRANSLATED, CM_DIR_SOCK, 0);
	return 1;
}

static __always_inline int translate_back(struct bpf_sock_addr *ctx, struct cm_addr *addr,
					  __be16 *port)
{
	struct cm_sock_key key = sock_key(ctx, addr, *port);
	struct cm_sock_value *service = bpf_map_lookup_elem(&cm_sock_rev, &key);

	if (!service)
		return 0;
	*addr = service->addr;
	*port = service->port;
	return 1;
}

static __always_inline int refuse(int err)
{
	bpf_set_retval(err);
	return REFUSE;
}

static __always_inline int towards4(struct bpf_sock_addr *ctx)
{
	struct cm_addr addr = addr_v4(ctx->user_ip4);
	__be16 port = ctx->user_port;
	int found = translate(ctx, &addr, &port);

	if (found < 0)
		return refuse(found);
	if (found) {
		ctx->user_ip4 = addr.word[3];
		ctx->user_port = port;
	}
	return GO_ON;
}

static __always_inline int back4(struct bpf_sock_addr *ctx)
{
	struct cm_addr addr = addr_v4(ctx->user_ip4);
	__be16 port = ctx->user_port;

	if (translate_back(ctx, &addr, &port)) {
		ctx->user_ip4 = addr.word[3];
		ctx->user_port = port;
	}
	return GO_ON;
}

static __always_inline struct cm_addr get6(const struct bpf_sock_addr *ctx)
{
	struct cm_addr addr = { .word = { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2],
					  ctx->user_ip6[3] } };

	return addr;
}

static __always_inline void set6(struct bpf_sock_addr *ctx, const struct cm_addr *addr, __be16 port)
{
	ctx->user_ip6[0] = addr->word[0];
	ctx->user_ip6[1] = addr->word[1];
	ctx->user_ip6[2] = addr->word[2];
	ctx->user_ip6[3] = addr->word[3];
	ctx->user_port = port;
}

static __always_inline int towards6(struct bpf_sock_addr *ctx)
{
	struct cm_addr addr = get6(ctx);
	__be16 port = ctx->user_port;
	int found = translate(ctx, &addr, &port);

	if (found < 0)
		return refuse(found);
	if (found)
		set6(ctx, &addr, port);
	return GO_ON;
}

static __always_inline int back6(struct bpf_sock_addr *ctx)
{
	struct cm_addr addr = get6(ctx);
	__be16 port = ctx->user_port;

	if (translate_back(ctx, &addr, &port))
		set6(ctx, &addr, port);
	return GO_ON;
}

SEC("cgroup/connect4")
int cm_connect4(struct bpf_sock_addr *ctx)
{
	return towards4(ctx);
}

SEC("cgroup/sendmsg4")
int cm_sendmsg4(struct bpf_sock_addr *ctx)
{
	return towards4(ctx);
}

SEC("cgroup/recvmsg4")
int cm_recvmsg4(struct bpf_sock_addr *ctx)
{
	return back4(ctx);
}

SEC("cgroup/getpeername4")
int cm_getpeername4(struct bpf_sock_addr *ctx)
{
	return back4(ctx);
}

SEC("cgroup/connect6")
int cm_connect6(struct bpf_sock_addr *ctx)
{
	return towards6(ctx);
}

SEC("cgroup/sendmsg6")
int cm_sendmsg6(struct bpf_sock_addr *ctx)
{
	return towards6(ctx);
}

SEC("cgroup/recvmsg6")
int cm_recvmsg6(struct bpf_sock_addr *ctx)
{
	return back6(ctx);
}

SEC("cgroup/getpeername6")
int cm_getpeername6(struct bpf_sock_addr *ctx)
{
	return back6(ctx);
}

char _license[] SEC("license") = "Dual BSD/GPL";
