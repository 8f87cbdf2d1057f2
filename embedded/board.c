// SPDX-License-Identifier: MIT
/*
 * board.c - the plane's counters, where others can read them
 *
 * A memfd of ours that anyone who may look into our /proc/PID/fd can map read-only. It
 * has no name in any file system, so kill -9 takes it away with everything else.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "endpoint_embedded.h"
#include "plane.h"

int dmp_board_open(struct dmp_plane *plane)
{
	struct dmp_board *board;
	int fd = memfd_create(DMP_BOARD_NAME, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int error;

	if (fd < 0)
		return -errno;
	if (ftruncate(fd, sizeof(*board)) != 0 ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0)
		goto err_close;
	board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (board == MAP_FAILED)
		goto err_close;
	/* From here on only our mapping can write; who opens the fd by /proc can read. */
	fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SEAL);
	board->version = 1;
	board->incarnation = plane->incarnation;
	board->opened_ns = dmp_now_ns();
	board->statistics.size = sizeof(board->statistics);
	__atomic_store_n(&board->magic, DMP_BOARD_MAGIC, __ATOMIC_RELEASE);
	plane->board = board;
	plane->board_fd = fd;
	return 0;

err_close:
	error = -errno;
	close(fd);
	return error;
}

void dmp_board_close(struct dmp_plane *plane)
{
	munmap(plane->board, sizeof(*plane->board));
	close(plane->board_fd);
}

void dmp_board_add(__u64 *field, __u64 delta)
{
#if DMP_OBSERVE
	/* Pairs with the loads in dmp_statistics_read: what was counted before is seen. */
	__atomic_fetch_add(field, delta, __ATOMIC_RELEASE);
#else
	(void)field;
	(void)delta;
#endif
}

int dmp_statistics_read(struct dmp_plane *plane, void *argument)
{
	struct dmp_statistics *statistics = argument;
	uint32_t size = statistics->size, scope = statistics->scope, id = statistics->id;
	const __u64 *from = (const __u64 *)&plane->board->statistics;
	__u64 *to = argument;
	size_t word;

	if (scope == DMP_SCOPE_CHANNEL)
		return dmp_channel_statistics(plane, statistics);
	if (scope == DMP_SCOPE_ENDPOINT)
		return dmp_endpoint_statistics(plane, statistics);
	if (scope != DMP_SCOPE_PLANE || id != 0)
		return -EINVAL;
	/* Backwards, against the order of counting: never more completions than submissions. */
	for (word = sizeof(*statistics) / sizeof(*to); word-- > 2;)
		to[word] = __atomic_load_n(&from[word], __ATOMIC_ACQUIRE);
	statistics->size = size;
	statistics->scope = scope;
	statistics->id = id;
	return 0;
}
