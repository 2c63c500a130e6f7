// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Ends the sockets that sock.bpf.c led to a backend that their service has let go since: nothing is
 * translated per packet there, so nobody else could tell them. The application gets ECONNABORTED
 * at once, the backend, if it is still somewhere, a RST.
 *
 * The agent writes down what was let go (cm_withdrawn) and runs these iterators over the network
 * namespaces of its node. A row is taken away before the service names the backend again, so
 * whoever finds one looks at a socket that is older than that.
 *
 * Apart from the other objects, for it is tied to the kernel: it wants its BTF, for the fields of a
 * socket and for bpf_sock_destroy() (6.5). Without it the agent goes on with the others.
 */
#include <linux/in.h>
#include <linux/in6.h>
#include <bpf/bpf_core_read.h>
#include "lib/common.h"
#include "lib/lb.h"
#include "lib/sock-rev.h"

#define AF_INET	 2
#define AF_INET6 10

/* include/net/tcp_states.h */
#define TCP_TIME_WAIT	 6
#define TCP_CLOSE	 7
#define TCP_LISTEN	 10
#define TCP_NEW_SYN_RECV 12

/* Of the kernel's structs, what is read here; libbpf finds out where it lies. */
struct sock_common {
	__be32 skc_daddr;
	__be16 skc_dport;
	unsigned short skc_family;
	unsigned char skc_state;
	struct in6_addr skc_v6_daddr;
} __attribute__((preserve_access_index));

struct udp_sock;

struct bpf_iter__tcp {
	__bpf_md_ptr(struct bpf_iter_meta *, meta);
	__bpf_md_ptr(struct sock_common *, sk_common);
};

struct bpf_iter__udp {
	__bpf_md_ptr(struct bpf_iter_meta *, meta);
	__bpf_md_ptr(struct udp_sock *, udp_sk);
};

extern int bpf_sock_destroy(struct sock_common *sock) __ksym;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 64 * 1024);
	__type(key, struct cm_withdrawn_key);
	__type(value, struct cm_withdrawn);
} cm_withdrawn SEC(".maps");

/* 0: none that we know of. An IPv6 socket's v4-mapped one is what it is to an IPv4 socket. */
static __always_inline int destination(const struct sock_common *sk, struct cm_addr *out)
{
	const struct in6_addr *v6 = &sk->skc_v6_daddr;

	if (sk->skc_family == AF_INET) {
		*out = addr_v4(sk->skc_daddr);
		return 1;
	}
	if (sk->skc_family != AF_INET6 || !bpf_core_field_exists(sk->skc_v6_daddr))
		return 0;
	out->word[0] = v6->in6_u.u6_addr32[0];
	out->word[1] = v6->in6_u.u6_addr32[1];
	out->word[2] = v6->in6_u.u6_addr32[2];
	out->word[3] = v6->in6_u.u6_addr32[3];
	return 1;
}

/*
 * Does the service still lead new flows to this backend? The agent would have taken the row of
 * cm_withdrawn away; but a connection that was ended in error cannot be given back.
 */
static __always_inline int is_named(const struct cm_withdrawn_key *key, __u32 backend_id)
{
	struct cm_service *service = service_lookup(&key->service);

	return service && lb_is_member(service->id, backend_id) &&
	       lb_backend_is(backend_id, &key->addr, key->port);
}

static __always_inline int destroy_if_withdrawn(struct sock_common *sk, __u8 proto)
{
	struct cm_sock_key ours = { .port = sk->skc_dport };
	struct cm_withdrawn_key key = {};
	struct cm_sock_value *asked;
	struct cm_withdrawn *row;

	if (!destination(sk, &ours.addr))
		return 0;
	/* Rows are this node's: whose socket has one was in its cgroup when it connected. */
	ours.cookie = bpf_get_socket_cookie(sk);
	asked = bpf_map_lookup_elem(&cm_sock_rev, &ours);
	if (!asked)
		return 0;
	key.service.addr = asked->addr;
	key.service.port = asked->port;
	key.service.proto = proto;
	key.service.scope = CM_SCOPE_INSIDE;
	key.addr = ours.addr;
	key.port = ours.port;
	row = bpf_map_lookup_elem(&cm_withdrawn, &key);
	if (row && !is_named(&key, row->backend_id) && !bpf_sock_destroy(sk))
		__sync_fetch_and_add(&row->destroyed, 1);
	return 0;
}

SEC("iter/tcp")
int cm_destroy_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *sk = ctx->sk_common;

	if (!sk)
		return 0;
	switch (sk->skc_state) {
	case TCP_TIME_WAIT:
	case TCP_CLOSE:
	case TCP_LISTEN:
	case TCP_NEW_SYN_RECV:
		return 0; /* nobody of ours waits there */
	}
	return destroy_if_withdrawn(sk, IPPROTO_TCP);
}

/* Connected ones: others have no destination, and ask for the service with every datagram. */
SEC("iter/udp")
int cm_destroy_udp(struct bpf_iter__udp *ctx)
{
	struct udp_sock *sk = ctx->udp_sk;

	return sk ? destroy_if_withdrawn((struct sock_common *)sk, IPPROTO_UDP) : 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
