// SPDX-License-Identifier: MIT
/*
 * socket.c - a plain TCP socket, the limit of the tcp fabric
 *
 * No frames, no immediates, no credit: both sides know the rows beforehand, so bytes go
 * out of the source and into the target with no copy in between and many blocks a call.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "loops.h"

#define PIECES_MAX 256u
#define CALL_BYTES_MAX (1u << 20)

/* The next pieces of @rows from byte @skip of the first on; how many. */
static int gather(struct iovec *pieces, char *memory, const struct dmp_submission *rows,
		  uint64_t count, uint64_t skip, int target)
{
	uint64_t bytes = 0;
	unsigned int used = 0;

	while (used < PIECES_MAX && used < count && bytes < CALL_BYTES_MAX) {
		uint64_t offset = target ? rows[used].target_offset : rows[used].source_offset;

		pieces[used].iov_base = memory + offset + skip;
		pieces[used].iov_len = rows[used].length_bytes - skip;
		bytes += pieces[used].iov_len;
		skip = 0;
		used++;
	}
	return (int)used;
}

/* All of @rows through @fd, out of @memory or, with @target, into it. */
static int pass(int fd, char *memory, const struct dmp_submission *rows, uint64_t count, int target)
{
	struct iovec pieces[PIECES_MAX];
	uint64_t done = 0, skip = 0;

	while (done < count) {
		struct msghdr message = { .msg_iov = pieces };
		ssize_t moved;

		message.msg_iovlen = (size_t)gather(pieces, memory, rows + done, count - done,
						    skip, target);
		moved = target ? recvmsg(fd, &message, 0) : sendmsg(fd, &message, MSG_NOSIGNAL);
		if (moved < 0 && errno == EINTR)
			continue;
		if (moved <= 0)
			return moved ? -errno : -ECONNRESET;
		skip += (uint64_t)moved;
		while (done < count && skip >= rows[done].length_bytes)
			skip -= rows[done++].length_bytes;
	}
	return 0;
}

static int pass_byte(int fd, int receive)
{
	char byte = 0;
	ssize_t moved;

	do
		moved = receive ? recv(fd, &byte, 1, 0) : send(fd, &byte, 1, MSG_NOSIGNAL);
	while (moved < 0 && errno == EINTR);
	if (moved == 1)
		return 0;
	return moved ? -errno : -ECONNRESET;
}

int dmp_bench_socket_send(int fd, char *source, const struct dmp_submission *rows, uint64_t count,
			  uint64_t *elapsed_ns)
{
	uint64_t begin = dmp_bench_now_ns();
	int answer = pass(fd, source, rows, count, 0);

	/* One byte comes back when the last one is in place. */
	if (!answer)
		answer = pass_byte(fd, 1);
	if (!answer)
		*elapsed_ns = dmp_bench_now_ns() - begin;
	return answer;
}

int dmp_bench_socket_receive(int fd, char *target, const struct dmp_submission *rows,
			     uint64_t count)
{
	int answer = pass(fd, target, rows, count, 1);

	return answer ? answer : pass_byte(fd, 0);
}

int dmp_bench_socket_pingpong(int fd, int first, uint64_t count, uint64_t *each_ns)
{
	uint64_t index;

	for (index = 0; index < count; index++) {
		uint64_t begin = dmp_bench_now_ns();
		int answer = pass_byte(fd, !first);

		if (!answer)
			answer = pass_byte(fd, first);
		if (answer)
			return answer;
		each_ns[index] = dmp_bench_now_ns() - begin;
	}
	return 0;
}
