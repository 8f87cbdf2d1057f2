/* SPDX-License-Identifier: MIT */
/* shm_pair.h - two planes and the shm fabric between them, in one process or in two */
#ifndef DMP_TESTS_SHM_PAIR_H
#define DMP_TESTS_SHM_PAIR_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/check.h"
#include "plane.h"
#include "shm_segment.h"

#define PATIENCE_MS 60000	/* far more than anything here takes: only a hang gets there */

struct end {
	struct dmp_plane *plane;
	struct dmp_fabric *fabric;
	struct dmp_shm *shm;	/* what the fabric is inside */
};

struct pair {
	struct end connector;
	struct end acceptor;
};

static inline void make_sockets(int sockets[2])
{
	CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sockets));
}

static inline struct end end_offer(int socket)
{
	struct end end;

	CHECK(!dmp_open(&end.plane));
	CHECK(!dmp_shm_offer(end.plane, socket, &end.fabric));
	end.shm = (struct dmp_shm *)end.fabric;
	return end;
}

static inline void wait_readable(int fd)
{
	struct pollfd event = { .fd = fd, .events = POLLIN };

	CHECK(poll(&event, 1, PATIENCE_MS) == 1);
}

static inline struct end end_answer(int socket)
{
	struct end end;

	CHECK(!dmp_open(&end.plane));
	wait_readable(socket);
	CHECK(!dmp_shm_answer(end.plane, socket, &end.fabric));
	end.shm = (struct dmp_shm *)end.fabric;
	return end;
}

static inline void end_close(struct end *end)
{
	if (end->fabric)
		end->fabric->type->close(end->fabric);
	dmp_shm_forget_left(end->plane);
	CHECK(!dmp_close(end->plane));
}

static inline struct pair pair_open(void)
{
	struct pair pair;
	int sockets[2];

	make_sockets(sockets);
	pair.connector = end_offer(sockets[0]);
	pair.acceptor = end_answer(sockets[1]);
	CHECK(!pair.connector.fabric->type->drain(pair.connector.fabric));
	CHECK(pair.connector.shm->board && pair.acceptor.shm->board);
	return pair;
}

static inline void pair_close(struct pair *pair)
{
	end_close(&pair->connector);
	end_close(&pair->acceptor);
}

/* Sleeps on the fabric's socket unless there is something to do, then drains. */
static inline int end_sleep(struct end *end)
{
	const struct dmp_fabric_type *type = end->fabric->type;
	int ret = 0;

	if (type->rest(end->fabric)) {
		wait_readable(end->fabric->fd);
		ret = type->drain(end->fabric);
	}
	type->wake(end->fabric);
	return ret;
}

static inline ssize_t end_send(struct end *end, const void *bytes, size_t length)
{
	struct iovec piece = { (void *)(uintptr_t)bytes, length };

	return end->fabric->type->send(end->fabric, &piece, 1);
}

static inline ssize_t end_receive(struct end *end, void *bytes, size_t length)
{
	struct iovec piece = { bytes, length };

	return end->fabric->type->receive(end->fabric, &piece, 1);
}

/* All of it, sleeping where there is nothing to do. */
static inline void end_send_all(struct end *end, const void *bytes, size_t length)
{
	while (length) {
		ssize_t sent = end_send(end, bytes, length);

		CHECK(sent >= 0);
		if (!sent)
			CHECK(!end_sleep(end));
		bytes = (const char *)bytes + sent;
		length -= (size_t)sent;
	}
}

static inline void end_receive_all(struct end *end, void *bytes, size_t length)
{
	while (length) {
		ssize_t got = end_receive(end, bytes, length);

		CHECK(got >= 0);
		if (!got)
			CHECK(!end_sleep(end) || end->fabric->type->ready(end->fabric));
		bytes = (char *)bytes + got;
		length -= (size_t)got;
	}
}

static inline uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static inline unsigned int count_descriptors(void)
{
	unsigned int count = 0;

	for (int fd = 0; fd < 1024; fd++)
		count += fcntl(fd, F_GETFD) >= 0;
	return count;
}

static inline unsigned int count_segments_mapped(void)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	unsigned int count = 0;
	char line[512];

	CHECK(maps);
	while (fgets(line, sizeof(line), maps))
		count += strstr(line, "dmaplane-shm") != NULL;
	fclose(maps);
	return count;
}

/*
 * A child at the other end of *@socket, each knowing the other's process, which a pair of
 * sockets made before the fork would not tell.
 */
static inline pid_t fork_connected(int *socket_out)
{
	const int kind = SOCK_SEQPACKET | SOCK_CLOEXEC;
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	socklen_t bytes = sizeof(address.sun_family);
	int listener = socket(AF_UNIX, kind, 0);
	pid_t child;

	/* A name that the kernel chooses. */
	CHECK(listener >= 0 && !bind(listener, (struct sockaddr *)&address, bytes));
	CHECK(!listen(listener, 1));
	bytes = sizeof(address);
	CHECK(!getsockname(listener, (struct sockaddr *)&address, &bytes));
	child = fork();
	CHECK(child >= 0);
	if (child) {
		*socket_out = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		CHECK(*socket_out >= 0);
	} else {
		*socket_out = socket(AF_UNIX, kind | SOCK_NONBLOCK, 0);
		CHECK(!connect(*socket_out, (struct sockaddr *)&address, bytes));
	}
	close(listener);
	return child;
}

static inline void reap(pid_t child)
{
	int status;

	CHECK(waitpid(child, &status, 0) == child);
	CHECK(WIFEXITED(status) && !WEXITSTATUS(status));
}

#endif /* DMP_TESTS_SHM_PAIR_H */
