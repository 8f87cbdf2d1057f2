/* SPDX-License-Identifier: GPL-2.0 */
/*
 * channel_kernel.h - a channel of the kernel plane: core's machine, a lock, a worker
 *
 * Whoever enters accepts; the worker executes and completes. `lock` serialises the machine
 * and is not held while a thread sleeps for long, or while bytes move; but for what a STOP takes
 * away in the middle of a message, which is copied aside under it, up to 2 GiB. `executing` is the
 * place of the one who takes and runs operations: the worker, or a caller who waits anyway.
 *
 * Who wakes whom
 *  - The worker says under the lock that it sleeps, after it has seen there that nothing is
 *    queued, or that a caller sees to that, or may come back to. Who queues something claims its
 *    wake-up under the lock and kicks it after.
 *  - Waiters sleep on done_wait, queued there under the lock. Telling completions finds out
 *    under the lock whether one of them wants that many, and wakes them after it.
 */
#ifndef DMP_KERNEL_CHANNEL_H
#define DMP_KERNEL_CHANNEL_H

#include <linux/kref.h>
#include <linux/llist.h>
#include <linux/mutex.h>
#include <linux/wait.h>

#include "buffer.h"
#include "channel.h"
#include "plane.h"

#define DMP_WORKERS_MAX		16U
#define DMP_BATCH		128U		/* operations taken at once */
#define DMP_BATCH_BYTES		(256U << 10)	/* work taken at once, bytes of one slice */

struct eventfd_ctx;
struct dmp_kernel_endpoint;
struct dmp_network;
struct dmp_remote;
struct dmp_share;

/* What an operation in flight holds; same index as the machine's operation. */
struct dmp_holds {
	struct dmp_buffer *source;
	struct dmp_buffer *target;
	struct dmp_kernel_endpoint *endpoint;	/* NULL for what stays on this machine */
	struct dmp_remote *remote;
	/* executor only */
	u64 tag;			/* with the endpoint's machine; 0: it is not */
	u32 checksum;
	bool checksum_known;
};

/*
 * The mappings of a channel's rings: they may outlive it (their pages do so by themselves).
 * Held by the channel and by each mapping.
 */
struct dmp_ring_mappings {
	struct kref references;
	atomic_t alive;
	struct dmp_object object;	/* id and type of the channel, for traces */
};

struct dmp_kernel_channel {
	struct dmp_object object;
	/* immutable after create */
	struct dmp_plane *plane;
	void *rings;			/* control, submissions, completions */
	size_t rings_bytes;
	u64 charged_bytes;		/* against dmp_bytes_max */
	struct dmp_ring_control *control;
	struct dmp_ring_mappings *mappings;	/* a reference */
	struct dmp_holds *holds;
	struct dmp_histogram_counts *latency;
	void *machine_memory;
	struct eventfd_ctx *eventfd;	/* NULL if none */
	struct task_struct *worker;
	struct dmp_share *share;	/* of large copies; NULL if nobody shares them */
	s32 cpu;
	s32 node;
	u32 workers;
	u32 spin_us;
	/* atomic */
	atomic_t users;			/* calls inside; grows only with plane->lock held */

	struct mutex lock;
	/* protected by lock */
	struct dmp_channel machine;
	u64 wakeups;
	u64 revocations_told;		/* of plane->revocations */
	u32 holding;			/* operations with holds */
	u32 waiters;
	u32 waiters_any;		/* of CANCEL and DESTROY: want every completion */
	u32 wake_at;			/* earliest completion index a waiter wants */
	bool wake_at_valid;
	u32 spinners;			/* waiters who do not sleep yet */
	u64 left_ns;			/* when a caller left who may come back; 0: none */
	u64 worker_until_ns;		/* while it sleeps: ~0 for no timer */
	bool worker_sleeps;
	bool executing;			/* somebody takes and runs operations */
	bool closing;			/* waiters go home */
	bool told_by_event;		/* by the eventfd, and nobody has waited in ENTER since */
	struct dmp_network *network;	/* of its endpoints; NULL until there is one */

	wait_queue_head_t done_wait;	/* waiters in ENTER, CANCEL, DESTROY */
	struct llist_head stirring;	/* atomic: endpoints whose pairs have rung */

	/* of who is executing */
	u32 indices[DMP_BATCH];
	u32 transfers[DMP_BATCH];
	struct dmp_outcome outcomes[DMP_BATCH];
};

/* channel.c: mmap of the plane's fd. mmap_lock held, plane->lock held for reading. */
int dmp_channel_map(struct dmp_plane *plane, struct dmp_kernel_channel *channel,
		    struct vm_area_struct *vma);

/* Cancels what is in flight, stops the worker, frees it. Out of the table, nobody inside. */
void dmp_channel_free(struct dmp_plane *plane, struct dmp_kernel_channel *channel);

/* statistics.c: adds what the channel counted so far. Takes its lock. */
void dmp_channel_count(struct dmp_kernel_channel *channel, struct dmp_statistics *statistics);

/* All that the fd did: of channels that are gone, and of those that are not; and has now. */
void dmp_plane_count_locked(struct dmp_plane *plane, struct dmp_statistics *statistics);

/* enter.c: a call comes into a channel and leaves it again. It may be gone after put. */
struct dmp_kernel_channel *dmp_channel_get_locked(struct dmp_plane *plane, u32 id, int *error);
void dmp_channel_put(struct dmp_kernel_channel *channel);

/* Does the user have something to take? For poll; plane->lock held for reading. */
bool dmp_channel_has_unread(struct dmp_kernel_channel *channel);

/*
 * A buffer of the plane was revoked: events go out as soon as there is room for them.
 * plane->lock held, for reading or writing.
 */
void dmp_channel_tell_events(struct dmp_kernel_channel *channel);

/*
 * Releases what completed operations held, then tells their completions. True: the caller
 * calls dmp_channel_wake() after the lock. After that dmp_released() is due.
 */
bool dmp_channel_tell_locked(struct dmp_kernel_channel *channel);
void dmp_channel_wake(struct dmp_kernel_channel *channel);

/* The worker has something to look at: claim its wake-up under the lock, kick it after. */
bool dmp_channel_claim_locked(struct dmp_kernel_channel *channel);
void dmp_channel_kick(struct dmp_kernel_channel *channel);

/* Both, as told and claimed before. The lock is given up, and held again. */
void dmp_channel_rouse_locked(struct dmp_kernel_channel *channel, bool wake, bool kick);

/*
 * Waits, woken by every completion and every nudge, until @met says so: 0, -ETIMEDOUT or
 * -EINTR. The lock is given up meanwhile. @state: TASK_INTERRUPTIBLE; TASK_KILLABLE for -EINTR
 * only when the thread is killed; or TASK_UNINTERRUPTIBLE for no -EINTR.
 */
typedef bool (*dmp_channel_condition)(struct dmp_kernel_channel *channel, const void *context);
int dmp_channel_wait_locked(struct dmp_kernel_channel *channel, dmp_channel_condition met,
			    const void *context, u64 deadline_ns, unsigned int state);
void dmp_channel_nudge_locked(struct dmp_kernel_channel *channel);

/* Tells @event to the channel @id. -EAGAIN: it has no slot now. */
int dmp_channel_announce(struct dmp_plane *plane, u32 id, const struct dmp_completion *event);

/* Waits until nothing is in flight; 0, -ETIMEDOUT or -EINTR. */
int dmp_channel_drain(struct dmp_kernel_channel *channel, u64 deadline_ns);

/* Cancels everything in flight; and waits for it. Nothing more is accepted meanwhile. */
void dmp_channel_cancel_begin(struct dmp_kernel_channel *channel);
void dmp_channel_cancel_everything(struct dmp_kernel_channel *channel);

/* holds.c: what a submission names is found and held; @recent: of one batch, zeroed before. */
struct dmp_recent {
	u32 id;
	struct dmp_object *object;
};

#define DMP_RECENTS 4

int dmp_holds_take_locked(struct dmp_kernel_channel *channel,
			  const struct dmp_submission *submission, struct dmp_holds *holds,
			  struct dmp_recent recent[DMP_RECENTS]);
void dmp_holds_release(struct dmp_holds *holds);

/* worker.c: the queue of shared copies, once for all. */
int dmp_worker_init(void);
void dmp_worker_exit(void);

/* Starts and stops the thread. */
int dmp_worker_start(struct dmp_kernel_channel *channel);
void dmp_worker_stop(struct dmp_kernel_channel *channel);

/* One round: expire, take, a turn of the endpoints, run, finish. False: nothing was to be done. */
bool dmp_executor_round_locked(struct dmp_kernel_channel *channel);

/* executor.c: the worker sleeps until it is needed; while a caller has a lease it is not. */
void dmp_executor_rest_locked(struct dmp_kernel_channel *channel);
bool dmp_executor_is_leased_locked(struct dmp_kernel_channel *channel);

/* Have its endpoints something to do? */
bool dmp_executor_is_wanted_locked(struct dmp_kernel_channel *channel);

/*
 * A caller takes the executor's place, until @wanted completions are unread, for operations short
 * enough that its own deadline is not at stake; with @wanted 0 to start what he submitted. On
 * a channel that spins and has endpoints he spins as the executor, and the worker sleeps. Hands
 * what is left to the worker. The lock is given up meanwhile.
 */
bool dmp_executor_can_help_locked(const struct dmp_kernel_channel *channel);
void dmp_executor_help_locked(struct dmp_kernel_channel *channel, u32 wanted, u64 deadline_ns);

/* Do callers of this channel spin in the worker's place? */
bool dmp_executor_gives_way_locked(const struct dmp_kernel_channel *channel);

/* Spins, as long as the user wished and at most until @until_ns, until @met. No lock held. */
void dmp_channel_spin(struct dmp_kernel_channel *channel,
		      bool (*met)(struct dmp_kernel_channel *channel, u32 wanted), u32 wanted,
		      u64 until_ns);

/* copy.c: bytes between two memories, or a pattern into one; inside one read section. */
int dmp_copy_slice(struct dmp_memory *target, u64 target_offset, struct dmp_memory *source,
		   u64 source_offset, u64 length, u32 *checksum);
int dmp_copy_fill(struct dmp_memory *target, u64 offset, u64 length, u32 pattern, u64 phase);

/* As dmp_copy_to(), going on with *@checksum unless that is NULL; and over what is there. */
int dmp_copy_to_checked(struct dmp_memory *memory, u64 offset, const void *bytes, u64 length,
			u32 *checksum);
int dmp_copy_checksum(struct dmp_memory *memory, u64 offset, u64 length, u32 *checksum);

/* copy_stream.c: from write-combined device memory. */
void dmp_copy_stream(void *target, const void __iomem *source, size_t length);

#endif /* DMP_KERNEL_CHANNEL_H */
