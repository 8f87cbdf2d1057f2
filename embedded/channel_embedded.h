/* SPDX-License-Identifier: MIT */
/*
 * channel_embedded.h - a channel of the embedded plane: core's machine, a lock, workers
 *
 * Whoever enters accepts; the worker executes and completes. `lock` serialises the
 * machine and is never held while bytes move or a thread sleeps.
 *
 * Who wakes whom
 *  - The worker sleeps on work_sequence. It says so under the lock, after it has seen
 *    there, under the same lock, that nothing is queued. Who queues something (or cancels,
 *    or stops) then finds it asleep, changes work_sequence and wakes it.
 *  - Waiters sleep on done_sequence. Telling completions changes it under the lock when
 *    one of them wants that many.
 */
#ifndef DMP_CHANNEL_EMBEDDED_H
#define DMP_CHANNEL_EMBEDDED_H

#include <pthread.h>
#include <stdbool.h>

#include "channel.h"
#include "plane.h"
#include "wait.h"

#ifndef DMP_OBSERVE
#define DMP_OBSERVE 1
#endif

#define DMP_WORKERS_MAX 16u

/* Buffers an operation in flight holds; same index as the machine's operation. */
struct dmp_holds {
	struct dmp_buffer *source;
	struct dmp_buffer *target;
};

/* A large copy that several threads share: each takes the next slice until none is left. */
struct dmp_share {
	uint32_t sequence;		/* futex: changes when there is a new copy to share */
	uint32_t finished;		/* futex: helpers done with this copy */
	uint32_t stop;			/* atomic: 1 take no more slices, 2 end the thread */
	uint64_t next;			/* atomic: offset of the next slice */
	char *target;
	const char *source;
	uint64_t length;
};

struct dmp_embedded_channel {
	struct dmp_object object;
	/* immutable after create */
	struct dmp_plane *plane;
	void *rings;			/* control, submissions, completions */
	size_t rings_bytes;
	struct dmp_ring_control *control;
	struct dmp_holds *holds;
	struct dmp_histogram_counts *latency;
	void *machine_memory;
	int eventfd;			/* our duplicate, -1 if none */
	int cpu;
	int node;
	uint32_t workers;
	pthread_t threads[DMP_WORKERS_MAX];
	/* protected by plane->lock */
	uint32_t mappings;
	/* atomic; grows only under plane->lock */
	uint32_t users;			/* calls inside */

	pthread_mutex_t lock;
	/* protected by lock */
	struct dmp_channel machine;
	struct dmp_channel_counters published;	/* of these, what the board has */
	uint64_t wakeups;
	bool worker_sleeps;
	bool worker_wakes;		/* it has been woken, and is not here yet */
	bool executing;			/* somebody takes and runs operations */
	bool stop;
	bool closing;			/* waiters go home */
	uint32_t waiters;
	uint32_t waiters_any;		/* of these, want every completion */
	uint32_t wake_at;		/* earliest completion index a waiter wants */
	bool wake_at_valid;

	struct dmp_spin worker_spin;
	struct dmp_spin waiter_spin;
	uint32_t work_sequence __attribute__((aligned(128)));
	uint32_t done_sequence __attribute__((aligned(128)));
	struct dmp_share share __attribute__((aligned(128)));
};

/* Starts and stops the threads. */
int dmp_worker_start(struct dmp_embedded_channel *channel);
void dmp_worker_stop(struct dmp_embedded_channel *channel);

/*
 * A waiter in the place of a worker that sleeps, is still waking up, or waits for our CPU:
 * allowed where no thread is bound, for operations short enough that its own deadline is
 * not at stake. Runs until @wanted completions are unread or @deadline_ns has passed, and
 * hands what is left to the worker. @promised: nobody was told of what was accepted, so
 * if the place is taken by now the worker has to be.
 */
bool dmp_worker_can_help_locked(const struct dmp_embedded_channel *channel);
void dmp_worker_help(struct dmp_embedded_channel *channel, uint32_t wanted, uint64_t deadline_ns,
		     bool promised);

/*
 * Releases what completed operations held, tells their completions, publishes counters.
 * Lock held. True: wake done_sequence after the lock.
 */
bool dmp_channel_tell_locked(struct dmp_embedded_channel *channel);

/*
 * The worker has something new to look at: claim its wake-up under the lock, kick after
 * it, so that a worker that spins does not run into a lock that is still held.
 */
bool dmp_channel_claim_wake_locked(struct dmp_embedded_channel *channel);
void dmp_channel_kick(struct dmp_embedded_channel *channel, bool wake);

/* Waits until nothing is in flight; 0, -ETIMEDOUT. No lock held. */
int dmp_channel_drain(struct dmp_embedded_channel *channel, uint64_t deadline_ns);

/* Cancels everything in flight and waits for it. */
void dmp_channel_cancel_everything(struct dmp_embedded_channel *channel);

/* A call leaves the channel. */
void dmp_channel_put(struct dmp_embedded_channel *channel);

bool dmp_channel_has_unread(struct dmp_embedded_channel *channel);
int dmp_channel_statistics(struct dmp_plane *plane, struct dmp_statistics *statistics);
int dmp_channel_map_locked(struct dmp_plane *plane, struct dmp_embedded_channel *channel,
			   size_t length, int protection, void **address);

/* Takes it out of the table, stops it and frees it. Nobody else is inside. */
void dmp_channel_free(struct dmp_plane *plane, struct dmp_embedded_channel *channel);

#endif /* DMP_CHANNEL_EMBEDDED_H */
