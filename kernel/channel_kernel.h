/* SPDX-License-Identifier: GPL-2.0 */
/*
 * channel_kernel.h - a channel of the kernel plane: core's machine, a lock, a worker
 *
 * Whoever enters accepts; the worker executes and completes. `lock` serialises the machine
 * and is never held while bytes move or a thread sleeps for long.
 */
#ifndef DMP_KERNEL_CHANNEL_H
#define DMP_KERNEL_CHANNEL_H

#include <linux/mutex.h>
#include <linux/wait.h>

#include "buffer.h"
#include "channel.h"
#include "plane.h"

#define DMP_WORKERS_MAX 16U

/* Buffers an operation in flight holds; same index as the machine's operation. */
struct dmp_holds {
	struct dmp_buffer *source;
	struct dmp_buffer *target;
};

struct dmp_kernel_channel {
	struct dmp_object object;
	/* immutable after create */
	struct dmp_plane *plane;
	void *rings;			/* vmalloc_user: control, submissions, completions */
	size_t rings_bytes;
	struct dmp_ring_control *control;
	struct dmp_holds *holds;
	struct dmp_histogram_counts *latency;
	void *machine_memory;
	struct eventfd_ctx *eventfd;	/* NULL if none */
	struct task_struct *worker;
	s32 cpu;
	s32 node;
	u32 workers;
	u32 spin_us;
	/* atomic */
	atomic_t mappings;
	atomic_t users;			/* calls inside; grows only with plane->lock held */

	struct mutex lock;
	/* protected by lock */
	struct dmp_channel machine;
	u64 wakeups;
	u64 events;
	u64 revocations_told;		/* of plane->revocations */
	bool closing;			/* waiters go home */

	wait_queue_head_t work_wait;	/* the worker */
	wait_queue_head_t done_wait;	/* waiters in ENTER, CANCEL, DESTROY */
};

/* mmap of the plane's fd. mmap_lock held. */
int dmp_channel_map(struct dmp_plane *plane, struct dmp_kernel_channel *channel,
		    struct vm_area_struct *vma);

/* Does the user have something to take? For poll; plane->lock held for reading. */
bool dmp_channel_has_unread(struct dmp_kernel_channel *channel);

/* Cancels what is in flight, stops the worker, frees it. Out of the table, nobody inside. */
void dmp_channel_free(struct dmp_plane *plane, struct dmp_kernel_channel *channel);

/* Adds what the channel counted so far. */
void dmp_channel_count(struct dmp_kernel_channel *channel, struct dmp_statistics *statistics);

/* A buffer of the plane was revoked: events go out as soon as there is room for them. */
void dmp_channel_tell_events(struct dmp_kernel_channel *channel);

/* copy.c: bytes between two memories, or a pattern into one; inside one read section. */
int dmp_copy_slice(struct dmp_memory *target, u64 target_offset, struct dmp_memory *source,
		   u64 source_offset, u64 length, u32 *checksum);
int dmp_copy_fill(struct dmp_memory *target, u64 offset, u64 length, u32 pattern);

#endif /* DMP_KERNEL_CHANNEL_H */
