// SPDX-License-Identifier: Apache-2.0
/*
 * Load over TCP, one connection at a time, and what it is measured against itself by: a client and
 * its server. Compiled by the benchmark (load.ts); nothing of Node is in the measured path.
 *
 *   load serve PORT CPU              serves until killed; says "ready" on stdout
 *   load connect IP PORT MS CPU      connect, ask for one byte, close, again and again
 *   load pingpong IP PORT MS CPU     one byte there and back on one connection
 *   load stream IP PORT MS CPU       as many bytes as go
 *
 * CPU: the one to run on, -1 for any. Clients print one JSON line. The first byte of a connection
 * tells the server what it is for.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define REQUEST	  'r'
#define PINGPONG  'p'
#define STREAM	  's'
#define CHUNK	  (128 * 1024)
#define BUCKET_NS 20
#define BUCKETS	  100000

static char chunk[CHUNK];
static uint32_t histogram[BUCKETS];

static void die(const char *what)
{
	fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + t.tv_nsec;
}

static void pin(int cpu)
{
	cpu_set_t set;

	if (cpu < 0)
		return;
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		die("sched_setaffinity");
}

static void no_delay(int fd)
{
	int one = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

static void echo(int fd)
{
	char byte;

	while (recv(fd, &byte, 1, 0) == 1)
		if (send(fd, &byte, 1, 0) != 1)
			return;
}

/* Takes all there is, then says how much it was. */
static void sink(int fd)
{
	uint64_t bytes = 0;
	ssize_t n;

	while ((n = recv(fd, chunk, CHUNK, 0)) > 0)
		bytes += n;
	send(fd, &bytes, sizeof(bytes), 0);
}

static void serve(const char *port, int cpu)
{
	const struct addrinfo hints = {
		.ai_family = AF_INET6,
		.ai_socktype = SOCK_STREAM,
		.ai_flags = AI_PASSIVE | AI_NUMERICSERV,
	};
	struct addrinfo *at;
	int listener, one = 1, zero = 0;

	if (getaddrinfo(NULL, port, &hints, &at))
		die("getaddrinfo");
	listener = socket(AF_INET6, SOCK_STREAM, 0);
	if (listener < 0)
		die("socket");
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof(zero));
	if (bind(listener, at->ai_addr, at->ai_addrlen) || listen(listener, 1024))
		die("bind");
	pin(cpu);
	signal(SIGCHLD, SIG_IGN);
	puts("ready");
	fflush(stdout);
	for (;;) {
		int fd = accept(listener, NULL, NULL);
		char kind;

		if (fd < 0)
			continue;
		if (recv(fd, &kind, 1, 0) == 1) {
			if (kind == REQUEST) {
				send(fd, &kind, 1, 0);
			} else if (fork() == 0) {
				prctl(PR_SET_PDEATHSIG, SIGKILL);
				no_delay(fd);
				if (kind == PINGPONG)
					echo(fd);
				else
					sink(fd);
				exit(0);
			}
		}
		close(fd); /* before the client: TIME_WAIT stays here, its port is free at once */
	}
}

static struct addrinfo *resolve(const char *ip, const char *port)
{
	const struct addrinfo hints = {
		.ai_socktype = SOCK_STREAM,
		.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV,
	};
	struct addrinfo *at;

	if (getaddrinfo(ip, port, &hints, &at)) {
		fprintf(stderr, "load: no address: %s port %s\n", ip, port);
		exit(1);
	}
	return at;
}

static int dial(const struct addrinfo *at, char kind)
{
	const struct timeval patience = { .tv_sec = 2 };
	int fd = socket(at->ai_family, SOCK_STREAM, 0);

	if (fd < 0)
		die("socket");
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	if (connect(fd, at->ai_addr, at->ai_addrlen) || send(fd, &kind, 1, 0) != 1) {
		close(fd);
		return -1;
	}
	return fd;
}

static void run_connect(const struct addrinfo *at, uint64_t ns)
{
	uint64_t begin = now_ns(), count = 0, errors = 0, now = begin;
	char byte;

	for (; now - begin < ns; now = now_ns()) {
		int fd = dial(at, REQUEST);

		/* the answer, then the server's close */
		if (fd >= 0 && recv(fd, &byte, 1, 0) == 1 && recv(fd, &byte, 1, 0) == 0)
			count++;
		else
			errors++;
		if (fd >= 0)
			close(fd);
	}
	printf("{\"count\":%lu,\"errors\":%lu,\"ns\":%lu}\n", count, errors, now - begin);
}

static uint64_t quantile(uint64_t count, double share)
{
	uint64_t seen = 0;

	for (int i = 0; i < BUCKETS; i++) {
		seen += histogram[i];
		if (seen >= count * share)
			return (uint64_t)i * BUCKET_NS;
	}
	return (uint64_t)BUCKETS * BUCKET_NS;
}

static void run_pingpong(const struct addrinfo *at, uint64_t ns)
{
	int fd = dial(at, PINGPONG);
	uint64_t begin = now_ns(), before = begin, now = begin, count = 0;
	char byte = 'x';

	if (fd < 0)
		die("connect");
	no_delay(fd);
	while (now - begin < ns) {
		uint64_t bucket;

		if (send(fd, &byte, 1, 0) != 1 || recv(fd, &byte, 1, 0) != 1)
			die("ping-pong");
		now = now_ns();
		bucket = (now - before) / BUCKET_NS;
		histogram[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
		before = now;
		count++;
	}
	printf("{\"count\":%lu,\"ns\":%lu,\"p50\":%lu,\"p99\":%lu}\n", count, now - begin,
	       quantile(count, 0.5), quantile(count, 0.99));
}

static void run_stream(const struct addrinfo *at, uint64_t ns)
{
	int fd = dial(at, STREAM);
	uint64_t begin = now_ns(), bytes = 0;

	if (fd < 0)
		die("connect");
	while (now_ns() - begin < ns)
		if (send(fd, chunk, CHUNK, 0) < 0)
			die("stream");
	shutdown(fd, SHUT_WR);
	if (recv(fd, &bytes, sizeof(bytes), MSG_WAITALL) != sizeof(bytes))
		die("stream: the server's count");
	printf("{\"bytes\":%lu,\"ns\":%lu}\n", bytes, now_ns() - begin);
}

int main(int argc, char **argv)
{
	const struct addrinfo *at;
	uint64_t ns;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGPIPE, SIG_IGN);
	if (argc == 4 && !strcmp(argv[1], "serve"))
		serve(argv[2], atoi(argv[3]));
	if (argc != 6) {
		fputs("load: see the head of load.c\n", stderr);
		return 2;
	}
	at = resolve(argv[2], argv[3]);
	ns = strtoull(argv[4], NULL, 10) * 1000000;
	pin(atoi(argv[5]));
	if (!strcmp(argv[1], "connect"))
		run_connect(at, ns);
	else if (!strcmp(argv[1], "pingpong"))
		run_pingpong(at, ns);
	else if (!strcmp(argv[1], "stream"))
		run_stream(at, ns);
	else
		return 2;
	return 0;
}
