// SPDX-License-Identifier: MIT
/*
 * memory.c - memory had by bare system calls, the peer of BUFFER_CREATE
 *
 * What is compared ends in the same state: mapped into the user, every page there
 * and writable, and, where the plane locks its pages, locked. Pages are written by
 * the caller because that is what a program without a plane does.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "loops.h"

int dmp_bench_touch(char *memory, uint64_t length_bytes, uint64_t page_bytes,
		    uint64_t *elapsed_ns)
{
	uint64_t begin = dmp_bench_now_ns();
	uint64_t at;

	for (at = 0; at < length_bytes; at += page_bytes)
		*(volatile char *)(memory + at) = 1;
	*elapsed_ns = dmp_bench_now_ns() - begin;
	return 0;
}

/* Maps; @fd is closed by the caller. */
static int map(int how, int fd, uint64_t length_bytes, char **memory)
{
	int flags = how == DMP_BENCH_PRIVATE ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
	void *mapped;

	if (fd >= 0 && ftruncate(fd, (off_t)length_bytes))
		return -errno;
	mapped = mmap(NULL, length_bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
	if (mapped == MAP_FAILED)
		return -errno;
	*memory = mapped;
	return 0;
}

int dmp_bench_allocate(int how, uint64_t length_bytes, uint64_t page_bytes, int lock,
		       uint64_t *elapsed_ns)
{
	unsigned int kind = how == DMP_BENCH_MEMFD_HUGE ? MFD_HUGETLB : 0;
	uint64_t begin = dmp_bench_now_ns();
	uint64_t touched_ns;
	char *memory = NULL;
	int answer = 0;
	int fd = -1;

	if (how != DMP_BENCH_PRIVATE) {
		fd = memfd_create("dmaplane-bench", MFD_CLOEXEC | kind);
		if (fd < 0)
			return -errno;
	}
	answer = map(how, fd, length_bytes, &memory);
	if (!answer) {
		dmp_bench_touch(memory, length_bytes, page_bytes, &touched_ns);
		if (lock && mlock(memory, length_bytes))
			answer = -errno;
		if (!answer)
			*elapsed_ns = dmp_bench_now_ns() - begin;
		munmap(memory, length_bytes);
	}
	if (fd >= 0)
		close(fd);
	return answer;
}
