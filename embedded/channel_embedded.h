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
 *  - A channel with endpoints has a network (network.h). Whoever executes then sleeps in
 *    it, on the fabrics' descriptors, and says so in `watching`; who queues something rings
 *    its bell. A caller who waits takes the place of a worker that watches, because then a
 *    message from outside wakes the thread that wants it. The worker leaves the place to
 *    callers who come and go for LEASE_NS before it watches again itself.
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
#define DMP_BATCH_BYTES (256u << 10)	/* work taken at once: what a cancel may have to wait for */

struct dmp_embedded_channel;
struct dmp_embedded_endpoint;
struct dmp_network;
struct dmp_remote;

#define DMP_PIECES_MAX 4	/* of one large transfer, with the machine at once */

/*
 * What an operation in flight holds; same index as the machine's operation. An operation of
 * an endpoint has one local buffer (source or target) and, for WRITE and READ, a remote.
 */
struct dmp_holds {
	struct dmp_buffer *source;
	struct dmp_buffer *target;
	struct dmp_embedded_endpoint *endpoint;
	struct dmp_remote *remote;
	__u64 tags[DMP_PIECES_MAX];	/* with the endpoint's machine: its pieces; 0: none */
	__u64 begun;			/* bytes handed to the machine so far */
	__u64 done;			/* of these, answered well */
	__s32 error;			/* of the first piece that failed */
	__u32 checksum;			/* CRC32C of the bytes, where checksum_known */
	bool checksum_known;
	bool announced;			/* a large WRITE_IMM: its frame is with the machine */
};

/* One entry of memory for each look-up: a batch mostly names the same few objects. */
#define DMP_RECENTS 4

struct dmp_recent {
	uint32_t id;
	struct dmp_object *object;
};

/*
 * Looks up what the operation names and holds it; 0 or the error it will complete with.
 * plane->lock and channel->lock held. @recent begins as zeroes.
 */
int dmp_holds_take(struct dmp_embedded_channel *channel, const struct dmp_submission *submission,
		   struct dmp_holds *holds, struct dmp_recent recent[DMP_RECENTS]);
void dmp_holds_release(struct dmp_holds *holds);

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
	bool watching;			/* and sleeps in the network */
	bool worker_watches;		/* it is the worker that does */
	bool worker_in_network;		/* it sleeps there, even if a caller has taken its place */
	bool news;			/* atomic: somebody claimed a wake-up since the last round */
	bool worker_parked;		/* it sleeps, without a limit, while a caller executes */
	bool place_offered;		/* by the worker, to one who waits */
	bool handed_over;		/* a caller has left the place to it, and wants no lease */
	bool makes_way;			/* the worker, after this round: see crowd.h */
	bool crowded;			/* its processor is its sender's, too: see crowd.h */
	bool crowd_unknown;		/* nobody has looked since the worker was idle */
	uint64_t crowd_due_ns;		/* nobody looks before */
	bool told_by_event;		/* by the eventfd, and nobody has waited in ENTER since */
	uint64_t event_due_ns;		/* completions that wait for company are signalled; 0: none */
	uint64_t left_ns;		/* when a caller last left the executor's place in the network */
	struct dmp_network *network;	/* NULL until the first endpoint */
	bool stop;
	bool closing;			/* waiters go home */
	uint32_t waiters;
	uint32_t waiters_any;		/* of these, want every completion */
	uint32_t wake_at;		/* earliest completion index a waiter wants */
	bool wake_at_valid;

	struct dmp_spin worker_spin;
	struct dmp_spin waiter_spin;
	struct dmp_spin network_spin;	/* for peers, who are nowhere near */
	uint32_t work_sequence __attribute__((aligned(128)));
	uint32_t done_sequence __attribute__((aligned(128)));
	struct dmp_share share __attribute__((aligned(128)));
};

/* Starts and stops the threads. */
int dmp_worker_start(struct dmp_embedded_channel *channel);
void dmp_worker_stop(struct dmp_embedded_channel *channel);

/*
 * One round of the executor: expire, take, run, finish. What is finished is told at the
 * start of the next round. Lock held, given up while bytes move. Returns how many ran, or
 * that the network has more to do; *@woke says that waiters had to be woken, so that there
 * may be more to look at.
 */
uint32_t dmp_executor_round_locked(struct dmp_embedded_channel *channel, bool *woke);

/*
 * The worker of a channel with endpoints has nothing to do: it watches the network, unless
 * a caller does or has just done so. Lock held, given up, and held again.
 */
void dmp_executor_rest_locked(struct dmp_embedded_channel *channel);

/*
 * A waiter in the place of a worker that sleeps, is still waking up, or waits for our CPU:
 * allowed where no thread is bound, for operations short enough that its own deadline is
 * not at stake. Runs until @wanted completions are unread or @deadline_ns has passed, and
 * hands what is left to the worker. @promised: nobody was told of what was accepted, so
 * if the place is taken by now the worker has to be. 0, or -EINTR: a signal came.
 */
bool dmp_worker_can_help_locked(const struct dmp_embedded_channel *channel);
int dmp_worker_help(struct dmp_embedded_channel *channel, uint32_t wanted, uint64_t deadline_ns,
		    bool promised);

/*
 * Releases what completed operations held, tells their completions, publishes counters.
 * Lock held. True: wake done_sequence after the lock.
 */
bool dmp_channel_tell_locked(struct dmp_embedded_channel *channel);

/* Completions that have waited for company long enough: signals them. By each round. */
void dmp_channel_signal_due_locked(struct dmp_embedded_channel *channel, uint64_t now_ns);

/*
 * The worker has something new to look at: claim its wake-up under the lock, kick after
 * it, so that a worker that spins does not run into a lock that is still held.
 */
bool dmp_channel_claim_wake_locked(struct dmp_embedded_channel *channel);
void dmp_channel_kick(struct dmp_embedded_channel *channel, bool wake);

/*
 * Waits, woken by every completion and by dmp_channel_nudge_locked(), until @done says so:
 * 0, -ETIMEDOUT or, if @interruptible, -EINTR. Lock held, given up and held again.
 */
int dmp_channel_wait_locked(struct dmp_embedded_channel *channel,
			    bool (*done)(struct dmp_embedded_channel *, void *), void *context,
			    uint64_t deadline_ns, bool interruptible);
void dmp_channel_nudge_locked(struct dmp_embedded_channel *channel);

/* plane->lock held: the channel, entered; NULL with *error set. */
struct dmp_embedded_channel *dmp_channel_enter_locked(struct dmp_plane *plane, uint32_t id,
						      int *error);

/*
 * Tells a channel's user of something nobody submitted: -EAGAIN no slot to spare now,
 * -ENOENT or -ESTALE the channel is gone. Takes both locks.
 */
int dmp_channel_announce(struct dmp_plane *plane, __u32 channel_id,
			 const struct dmp_completion *event);

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
