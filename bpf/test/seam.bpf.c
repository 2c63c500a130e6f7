// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The production bodies behind BPF_PROG_TEST_RUN. What the kernel would tell a program comes in
 * skb->cb ([0] VNI, [1] to [4] remote node) and skb->mark (ifindex). The decision is left in
 * cm_decisions.
 */
#include "../lib/netdev.h"
#include "../lib/overlay.h"
#include "../lib/pod.h"

static __always_inline struct hook made_up_hook(const struct __sk_buff *skb)
{
	struct hook hook = {
		.vni = skb->cb[0],
		.remote = { .word = { skb->cb[1], skb->cb[2], skb->cb[3], skb->cb[4] } },
		.ifindex = skb->mark,
		.record = 1,
	};

	return hook;
}

SEC("tc")
int cm_test_from_pod(struct __sk_buff *skb)
{
	const struct hook hook = made_up_hook(skb);
	struct cm_decision d = {};
	__u32 bytes = skb->len;

	d.reason = from_pod(skb, &hook, &d);
	return carry_out(skb, &hook, &d, CM_DIR_FROM_POD, bytes);
}

SEC("tc")
int cm_test_to_pod(struct __sk_buff *skb)
{
	const struct hook hook = made_up_hook(skb);
	struct cm_decision d = {};
	__u32 bytes = skb->len;

	d.reason = to_pod(skb, &d);
	return carry_out(skb, &hook, &d, CM_DIR_TO_POD, bytes);
}

SEC("tc")
int cm_test_from_network(struct __sk_buff *skb)
{
	const struct hook hook = made_up_hook(skb);
	struct cm_decision d = {};
	__u32 bytes = skb->len;

	d.reason = from_network(skb, &hook, &d);
	return carry_out(skb, &hook, &d, CM_DIR_FROM_NETWORK, bytes);
}

SEC("tc")
int cm_test_to_network(struct __sk_buff *skb)
{
	const struct hook hook = made_up_hook(skb);
	struct cm_decision d = {};
	__u32 bytes = skb->len;

	d.reason = to_outside(skb, &d);
	return carry_out(skb, &hook, &d, CM_DIR_TO_NETWORK, bytes);
}

SEC("tc")
int cm_test_overlay(struct __sk_buff *skb)
{
	const struct hook hook = made_up_hook(skb);
	struct cm_decision d = {};
	__u32 bytes = skb->len;

	d.reason = overlay(skb, &hook, &d);
	return carry_out(skb, &hook, &d, CM_DIR_OVERLAY, bytes);
}

/*
 * A swap between reading the service row and its slots, which cannot be timed from outside: the row
 * is a copy with generation cb[0], while the maps hold what they hold.
 */
SEC("tc")
int cm_test_stale_row(struct __sk_buff *skb)
{
	const struct hook hook = made_up_hook(skb);
	struct cm_service *current, row;
	struct cm_decision d = {};
	struct lb_backend lb = {};
	struct packet p = {};
	int err = parse_packet(skb, &p);
	struct lb_flow flow = {
		.service = { .addr = p.daddr, .port = p.dport, .proto = p.proto },
	};

	current = err ? NULL : service_lookup(&flow.service);
	if (!current)
		return TC_ACT_SHOT;
	row = *current;
	row.generation = hook.vni;
	err = lb_select(&row, &flow, &p.saddr, &lb);
	d.reason = err ? err : CM_R_TO_ENDPOINT;
	d.backend_id = lb.backend_id;
	record(&d);
	return TC_ACT_OK;
}

char _license[] SEC("license") = "Dual BSD/GPL";
