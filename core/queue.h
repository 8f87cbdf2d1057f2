/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * queue.h - an ordered queue of small indices
 *
 * Holds each index 0 .. capacity - 1 at most once. Push, pop and removal from
 * the middle cost the same however long it is, and none can fail for want of
 * memory: the links are an array the caller gives, dmp_queue_bytes() long and
 * aligned for __u32. Invariant: index i is queued exactly if links[i].next is
 * not DMP_QUEUE_OUT, and count is the number of those.
 */
#ifndef DMP_CORE_QUEUE_H
#define DMP_CORE_QUEUE_H

#include "types.h"

#define DMP_QUEUE_NONE	0xffffffffU	/* no index: the ends of the queue */
#define DMP_QUEUE_OUT	0xfffffffeU	/* in `next`: this index is not queued */

struct dmp_queue_link {
	__u32 next;
	__u32 previous;
};

struct dmp_queue {
	struct dmp_queue_link *links;
	__u32 capacity;
	__u32 count;
	__u32 first;
	__u32 last;
};

size_t dmp_queue_bytes(__u32 capacity);
void dmp_queue_init(struct dmp_queue *queue, void *memory, __u32 capacity);

/* -EINVAL for an index out of range, -EEXIST if it is queued. */
int dmp_queue_push(struct dmp_queue *queue, __u32 index);
int dmp_queue_push_first(struct dmp_queue *queue, __u32 index);

/* -ENOENT if it is not queued. */
int dmp_queue_remove(struct dmp_queue *queue, __u32 index);

/* The first index, DMP_QUEUE_NONE if there is none; pop also removes it. */
__u32 dmp_queue_peek(const struct dmp_queue *queue);
__u32 dmp_queue_pop(struct dmp_queue *queue);

bool dmp_queue_holds(const struct dmp_queue *queue, __u32 index);

#endif /* DMP_CORE_QUEUE_H */
