// SPDX-License-Identifier: MIT
/*
 * placement.c - on which node pages shall be, and on which they are
 *
 * Nothing here keeps state, apart from what the kernel was found to offer.
 * Ranges may start anywhere; they are widened to whole pages.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "placement.h"

#include <errno.h>
#include <linux/futex.h>
#include <linux/mempolicy.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "topology.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ	22
#define MADV_POPULATE_WRITE	23
#endif

#define MOVE_PAGES_BATCH	4096
#define POPULATE_TRIES		16

/* A range in whole pages. */
struct span {
	uintptr_t start;
	size_t bytes;
	size_t pages;
};

static bool span_of(void *address, size_t length, size_t page_bytes, struct span *span)
{
	uintptr_t mask = page_bytes - 1;
	uintptr_t start = (uintptr_t)address & ~mask;
	uintptr_t end;

	if (__builtin_add_overflow((uintptr_t)address, length, &end) ||
	    __builtin_add_overflow(end, mask, &end))
		return false;
	end &= ~mask;
	span->start = start;
	span->bytes = end - start;
	span->pages = span->bytes / page_bytes;
	return true;
}

int dmp_placement_check(const struct dmp_policy *policy)
{
	return dmp_policy_check(policy, dmp_topology_node_mask());
}

int dmp_placement_apply(const struct dmp_policy *policy, void *address, size_t length, bool strict)
{
	__u64 mask = dmp_policy_nodes(policy);
	__u64 nodes = dmp_topology_node_mask();
	int mode;

	switch (policy->policy) {
	case DMP_POLICY_ANY:
		return 0;
	case DMP_POLICY_PREFER:
		mode = MPOL_PREFERRED;
		break;
	case DMP_POLICY_BIND:
		mode = MPOL_BIND;
		break;
	case DMP_POLICY_INTERLEAVE:
		mode = MPOL_INTERLEAVE;
		break;
	default:
		return -EINVAL;
	}
	/* The kernel takes one bit less than it is told. */
	if (!syscall(SYS_mbind, address, length, mode, &mask, DMP_NODES_MAX + 1, 0))
		return 0;
	if (errno != ENOSYS && errno != EPERM)
		return -errno;
	return strict && (nodes & (nodes - 1)) ? -EOPNOTSUPP : 0;
}

/*
 * The kernel touches the word for us: a wait for nothing reads it, an atomic OR
 * with 0 writes it. Both give EFAULT where a plain access would raise a signal.
 */
static int touch_page(uintptr_t address, bool writable)
{
	static const struct timespec no_time;
	int operation = FUTEX_OP(FUTEX_OP_OR, 0, FUTEX_OP_CMP_EQ, 0);
	__u32 unused = 0;
	long result;

	if (writable)
		result = syscall(SYS_futex, &unused, FUTEX_WAKE_OP | FUTEX_PRIVATE_FLAG, 0, 0,
				 address, operation);
	else
		result = syscall(SYS_futex, address, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, 0, &no_time,
				 NULL, 0);
	if (result >= 0 || errno == EAGAIN || errno == ETIMEDOUT || errno == EINTR)
		return 0;
	return errno == ENOMEM ? -ENOMEM : -EFAULT;
}

int dmp_placement_touch(void *address, size_t length, size_t page_bytes, bool writable)
{
	struct span span;
	int ret;

	if (!span_of(address, length, page_bytes, &span))
		return -EFAULT;
	for (size_t i = 0; i < span.pages; i++) {
		ret = touch_page(span.start + i * page_bytes, writable);
		if (ret)
			return ret;
	}
	return 0;
}

/* ENOMEM of madvise means both "no memory" and "not mapped"; msync tells which. */
static int why_not_populated(const struct span *span, int error)
{
	if (error != ENOMEM)
		return -EFAULT;
	if (msync((void *)span->start, span->bytes, MS_ASYNC) && errno == ENOMEM)
		return -EFAULT;
	return -ENOMEM;
}

int dmp_placement_populate(void *address, size_t length, size_t page_bytes, bool writable)
{
	int advice = writable ? MADV_POPULATE_WRITE : MADV_POPULATE_READ;
	struct span span;

	if (!span_of(address, length, page_bytes, &span))
		return -EFAULT;
	/* An empty range is refused only by a kernel that does not know the advice. */
	if (madvise((void *)span.start, 0, advice))
		return dmp_placement_touch(address, length, page_bytes, writable);
	for (int i = 0; i < POPULATE_TRIES; i++) {
		if (!madvise((void *)span.start, span.bytes, advice))
			return 0;
		if (errno != EAGAIN && errno != EINTR)
			break;
	}
	return why_not_populated(&span, errno);
}

/* Counts by asking for every page. False where the kernel does not answer. */
static bool count_by_page(const struct span *span, size_t page_bytes, struct dmp_placement *out)
{
	void *pages[MOVE_PAGES_BATCH];
	int status[MOVE_PAGES_BATCH];
	size_t done = 0, located = 0;

	while (done < span->pages) {
		size_t count = span->pages - done;

		if (count > sizeof(pages) / sizeof(*pages))
			count = sizeof(pages) / sizeof(*pages);
		for (size_t i = 0; i < count; i++)
			pages[i] = (void *)(span->start + (done + i) * page_bytes);
		if (syscall(SYS_move_pages, 0, count, pages, NULL, status, 0))
			return false;
		for (size_t i = 0; i < count; i++) {
			if (status[i] < 0 || status[i] >= DMP_NODES_MAX)
				continue;
			out->node_pages[status[i]]++;
			located++;
		}
		done += count;
	}
	return located || !span->pages;
}

/* Adds the "N<node>=<pages>" words of a line of numa_maps. */
static __u64 add_line(const char *line, struct dmp_placement *out)
{
	__u64 located = 0;

	for (const char *word = strstr(line, " N"); word; word = strstr(word + 1, " N")) {
		unsigned int node;
		unsigned long long pages;

		if (sscanf(word, " N%u=%llu", &node, &pages) != 2 || node >= DMP_NODES_MAX)
			continue;
		out->node_pages[node] += pages;
		located += pages;
	}
	return located;
}

/*
 * Counts by mapping. It is exact only where mappings begin with the range and hold
 * as many pages as the range has, so anything else is not an answer.
 */
static bool count_by_mapping(const struct span *span, struct dmp_placement *out)
{
	FILE *file = fopen("/proc/self/numa_maps", "re");
	char *line = NULL;
	size_t capacity = 0;
	bool begins = false;
	__u64 located = 0;

	if (!file)
		return false;
	while (getline(&line, &capacity, file) > 0) {
		uintptr_t start = strtoull(line, NULL, 16);

		if (start < span->start || start - span->start >= span->bytes)
			continue;
		if (start == span->start)
			begins = true;
		located += add_line(line, out);
	}
	free(line);
	fclose(file);
	return begins && located == span->pages;
}

static __u64 misplaced(const struct dmp_policy *policy, const struct dmp_placement *placement)
{
	__u64 wanted = dmp_policy_nodes(policy);
	__u64 in_place = 0;

	if (!wanted)
		return 0;
	for (int node = 0; node < DMP_NODES_MAX; node++)
		if (wanted >> node & 1)
			in_place += placement->node_pages[node];
	return placement->pages - in_place;
}

int dmp_placement_count(const struct dmp_policy *policy, void *address, size_t length,
			size_t page_bytes, bool recheck, struct dmp_placement *out)
{
	struct dmp_placement placement = { .how = DMP_PLACEMENT_UNKNOWN };
	__u64 nodes = dmp_topology_node_mask();
	struct span span;

	if (!page_bytes || page_bytes & (page_bytes - 1) ||
	    !span_of(address, length, page_bytes, &span))
		return -EINVAL;
	placement.pages = span.pages;
	if (!(nodes & (nodes - 1)) && !recheck) {
		placement.how = DMP_PLACEMENT_SINGLE;
		placement.node_pages[__builtin_ctzll(nodes)] = span.pages;
	} else if (count_by_page(&span, page_bytes, &placement)) {
		placement.how = DMP_PLACEMENT_COUNTED;
	} else {
		memset(placement.node_pages, 0, sizeof(placement.node_pages));
		if (count_by_mapping(&span, &placement))
			placement.how = DMP_PLACEMENT_COUNTED;
		else
			memset(placement.node_pages, 0, sizeof(placement.node_pages));
	}
	if (placement.how != DMP_PLACEMENT_UNKNOWN)
		placement.pages_misplaced = misplaced(policy, &placement);
	*out = placement;
	return 0;
}
