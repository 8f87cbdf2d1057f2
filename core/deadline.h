/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * deadline.h - which of a bounded set of operations is due first
 *
 * A binary heap of (deadline, index), with the place of each index remembered, so that
 * one can be removed when its operation completes. Index 0 .. capacity - 1, each in the
 * heap at most once. The memory is the caller's: dmp_deadline_bytes(), aligned for __u64.
 * Invariant: an entry is never due before its parent, and place[] points back at it.
 */
#ifndef DMP_CORE_DEADLINE_H
#define DMP_CORE_DEADLINE_H

#include "types.h"

struct dmp_deadline_entry {
	__u64 deadline_ns;
	__u32 index;
	__u32 __reserved;
};

struct dmp_deadline_heap {
	struct dmp_deadline_entry *entries;
	__u32 *place;		/* of each index in entries, DMP_DEADLINE_OUT if absent */
	__u32 capacity;
	__u32 count;
};

size_t dmp_deadline_bytes(__u32 capacity);
void dmp_deadline_init(struct dmp_deadline_heap *heap, void *memory, __u32 capacity);

/* -EINVAL for an index out of range, -EEXIST if it is in the heap. */
int dmp_deadline_insert(struct dmp_deadline_heap *heap, __u32 index, __u64 deadline_ns);

/* -ENOENT if it is not in the heap. */
int dmp_deadline_remove(struct dmp_deadline_heap *heap, __u32 index);

/* The one due first; it stays in the heap. False if there is none. */
bool dmp_deadline_next(const struct dmp_deadline_heap *heap, __u32 *index,
		       __u64 *deadline_ns);

#endif /* DMP_CORE_DEADLINE_H */
