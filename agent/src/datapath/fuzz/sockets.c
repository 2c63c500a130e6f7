// SPDX-License-Identifier: Apache-2.0
/*
 * Sockets that are asked for anything: sockets N SEED, inside a namespace and a cgroup with socket load
 * balancing. connect(), sendto(), getpeername() and recvfrom() with random families, types, lengths and
 * addresses. Checks what must hold whatever is asked for, and prints one JSON line.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static uint32_t state;

static uint32_t below(uint32_t limit)
{
	state ^= state << 13;
	state ^= state >> 17;
	state ^= state << 5;
	return state % limit;
}

/* .10: one backend that nobody listens at; .30: none; the others are no services. */
static const char *v4[] = { "10.96.0.10", "10.96.0.30", "127.0.0.1", "127.0.0.2", "0.0.0.0" };
static const char *v6[] = { "fd96::10",
			    "fd96::30",
			    "::1",
			    "::",
			    "::ffff:10.96.0.10",
			    "::ffff:10.96.0.30",
			    "::ffff:127.0.0.1" };
static const uint16_t ports[] = { 80, 53, 0, 1, 9999, 65535 };

union address {
	struct sockaddr any;
	struct sockaddr_in in;
	struct sockaddr_in6 in6;
	unsigned char bytes[128];
};

struct asked {
	union address to;
	socklen_t len;
	int is_empty; /* a service without backends, asked for as it should be */
};

static struct asked random_address(int family, int type)
{
	struct asked a = {};
	uint32_t kind = below(20);
	uint16_t port = ports[below(6)];
	const char *text;

	if (kind == 0) { /* noise */
		for (unsigned int i = 0; i < sizeof(a.to); i++)
			a.to.bytes[i] = below(256);
		/* never towards an address that is somewhere */
		a.to.any.sa_family = 200 + below(50);
		a.len = below(sizeof(a.to));
		return a;
	}
	if (kind == 1)
		family = family == AF_INET ? AF_INET6 : AF_INET;
	if (family == AF_INET) {
		text = v4[below(5)];
		a.to.in.sin_family = AF_INET;
		a.to.in.sin_port = htons(port);
		inet_pton(AF_INET, text, &a.to.in.sin_addr);
		a.len = sizeof(a.to.in);
	} else {
		text = v6[below(7)];
		a.to.in6.sin6_family = AF_INET6;
		a.to.in6.sin6_port = htons(port);
		inet_pton(AF_INET6, text, &a.to.in6.sin6_addr);
		a.len = sizeof(a.to.in6);
	}
	if (kind == 2)
		a.len = below(a.len);
	else
		a.is_empty = kind > 2 && !strcmp(text + strlen(text) - 2, "30") &&
			     port == (type == SOCK_STREAM ? 80 : 53);
	return a;
}

static int is_known(int err)
{
	switch (err) {
	case 0:
	case EINPROGRESS:
	case EALREADY:
	case ECONNREFUSED:
	case ENETUNREACH:
	case EHOSTUNREACH:
	case EADDRNOTAVAIL:
	case EAFNOSUPPORT:
	case EINVAL:
	case EISCONN:
	case ENOTCONN:
	case EDESTADDRREQ:
	case EPIPE:
	case EAGAIN:
	case EACCES:
	case EADDRINUSE:
	case ECONNRESET:
	case ECONNABORTED: /* asked again after a reset */
	case ENOBUFS:
		return 1;
	default:
		return 0;
	}
}

static void fail(const char *what, const struct asked *a, int err)
{
	fprintf(stderr, "sockets: %s: family %u, length %u, port %u: %s\n", what, a->to.any.sa_family, a->len,
		ntohs(a->to.in.sin_port), strerror(err));
	exit(1);
}

/* Who connected to an address must be told that address, whatever it was exchanged for. */
static void check_peer(int fd, const struct asked *a)
{
	union address peer = {};
	socklen_t len = sizeof(peer);

	if (getpeername(fd, &peer.any, &len))
		return; /* not connected yet, or no more */
	if (a->to.any.sa_family == AF_INET && peer.any.sa_family == AF_INET &&
	    a->to.in.sin_addr.s_addr &&
	    (peer.in.sin_addr.s_addr != a->to.in.sin_addr.s_addr || peer.in.sin_port != a->to.in.sin_port))
		fail("getpeername() names another IPv4 address", a, 0);
	if (a->to.any.sa_family == AF_INET6 && peer.any.sa_family == AF_INET6 &&
	    memcmp(&a->to.in6.sin6_addr, &in6addr_any, 16) &&
	    (memcmp(&peer.in6.sin6_addr, &a->to.in6.sin6_addr, 16) ||
	     peer.in6.sin6_port != a->to.in6.sin6_port))
		fail("getpeername() names another IPv6 address", a, 0);
}

int main(int argc, char **argv)
{
	unsigned long operations = argc > 1 ? strtoul(argv[1], NULL, 10) : 100000;
	unsigned long connects = 0, sends = 0, refused = 0, done = 0;
	char bytes[64];

	state = (argc > 2 ? strtoul(argv[2], NULL, 10) : 1) * 2654435761u + 1;
	while (done < operations) {
		int family = below(2) ? AF_INET : AF_INET6;
		int type = below(2) ? SOCK_STREAM : SOCK_DGRAM;
		int fd = socket(family, type | SOCK_NONBLOCK, 0);

		if (fd < 0)
			fail("socket()", &(struct asked){}, errno);
		for (int i = below(4); i >= 0; i--, done++) {
			struct asked a = random_address(family, type);
			int is_connect = type == SOCK_STREAM || below(2);
			int err, got;

			if (is_connect)
				got = connect(fd, &a.to.any, a.len);
			else
				got = sendto(fd, bytes, below(sizeof(bytes)), 0, &a.to.any, a.len);
			err = got < 0 ? errno : 0;
			if (!is_known(err))
				fail(is_connect ? "connect()" : "sendto()", &a, err);
			if (a.is_empty && i == 0 && a.to.any.sa_family == family && !err)
				fail("a service without backends was reached", &a, err);
			if (err == ECONNREFUSED)
				refused++;
			if (is_connect && !err)
				check_peer(fd, &a);
			if (is_connect)
				connects++;
			else
				sends++;
			recvfrom(fd, bytes, sizeof(bytes), 0, NULL, NULL);
		}
		close(fd);
	}
	printf("{\"connects\":%lu,\"sends\":%lu,\"refused\":%lu}\n", connects, sends, refused);
	return 0;
}
