/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * channel.h - what happens to a submission between its ring and its completion
 *
 * The same machine in both planes. It accepts submissions, keeps them in order, hands
 * them to an executor, and writes exactly one completion for each. It moves no bytes,
 * knows no buffers, and reads no clock.
 *
 * Invariants
 *  - L1: an operation is FREE, QUEUED or RUNNING; leaving the last two writes its
 *    completion, and nothing else does.
 *  - L2: in_flight + events not told + unread completions <= completion_slots, checked when
 *    accepting and when an event is written. Writing a completion can therefore not fail.
 *    Acceptance leaves events_reserved slots over, so events always get through.
 *  - A submission is copied once, when it is accepted; its ring slot is never read again.
 *  - Queued operations start in order of acceptance. One that is linked to its
 *    predecessor starts after that has succeeded, or completes with -ECANCELED.
 *    A FENCE starts when nothing accepted before it is in flight, and nothing
 *    accepted after it starts before it has completed.
 *  - Deadlines and cancel act at once on QUEUED operations. A RUNNING one belongs to
 *    the executor, which looks at its deadline and its `cancel` mark as it works.
 *  - An operation that was taken, and whose endpoint has no room for it, is parked: QUEUED
 *    again, but in a lane of its endpoint, in order of parking, so that others can start.
 *
 * The caller serialises every call on one channel (one lock), except that the executor
 * reads the operations it took without it; of these fields only `cancel` can change
 * then, and dmp_operation_cancelled() reads it.
 */
#ifndef DMP_CORE_CHANNEL_H
#define DMP_CORE_CHANNEL_H

#include "deadline.h"
#include "dmaplane.h"
#include "histogram.h"
#include "ring.h"
#include "types.h"

#define DMP_OPERATION_NONE 0xffffffffu

/* What came of an operation. @flags: DMP_COMPLETE_IMMEDIATE, DMP_COMPLETE_CHECKSUM. */
struct dmp_outcome {
	__u64 length_bytes;
	__s32 result;
	__u32 checksum;
	__u32 immediate;
	__u16 flags;
	__u8 path;
};

/* Where parked operations wait in order; the caller's memory, part of the channel's state. */
struct dmp_lane {
	__u32 first;
	__u32 last;
	__u32 count;
};

enum dmp_operation_state { DMP_OPERATION_FREE, DMP_OPERATION_QUEUED, DMP_OPERATION_RUNNING };

/* Of one CANCEL call, on its caller's stack until it has waited or let go. */
struct dmp_cancellation {
	__u32 found;		/* matched this call */
	__u32 pending;		/* of these, still running */
	__u32 foreign;		/* of these, were running and marked by an earlier call */
	__u32 cancelled;	/* of found, completed with -ECANCELED because of this call */
};

struct dmp_operation {
	struct dmp_submission submission;
	__u64 accepted_ns;
	struct dmp_cancellation *cancellation;
	struct dmp_lane *lane;	/* where it is parked, NULL in the queue */
	__u32 next;		/* queue, lane or free list */
	__u32 previous;		/* queue or lane */
	__u32 leader;		/* while it waits: the operation it is linked to */
	__u32 follower;		/* accepted operation linked to this one */
	__s32 error;		/* decided before it starts: completes with this */
	__u32 cancel;		/* mark for the executor */
	__u8 state;
	__u8 linked;		/* has LINK, and its follower has not left the chain */
	__u8 handed_on;		/* the plane's word, after accept: who takes it reads none of it */
	__u8 __reserved;
};

struct dmp_channel_counters {
	__u64 submissions;
	__u64 completions;
	__u64 errors;
	__u64 cancelled;
	__u64 timeouts;
	__u64 bytes;
	__u64 checksum_bytes;
	__u64 batches;
	__u64 events;
};

struct dmp_channel {
	/* immutable after init; memory is the caller's */
	struct dmp_submission *submissions;
	struct dmp_completion *completions;
	struct dmp_operation *operations;	/* completion_slots of them */
	__u32 slots;
	__u32 completion_slots;
	/* serialised by the caller */
	struct dmp_ring submit;
	struct dmp_ring complete;
	struct dmp_deadline_heap deadlines;
	__u32 free_first;
	__u32 queue_first;
	__u32 queue_last;
	__u32 queued;
	__u32 parked;		/* in lanes */
	__u32 running;
	__u32 in_flight;	/* accepted, completion not yet told to the user */
	__u32 events_reserved;	/* slots that acceptance leaves to events */
	__u32 events_written;	/* not yet told; somewhere between the completions written */
	__u32 written;		/* completions of operations written, not yet told */
	__u32 written_first;	/* their operations, in order, through `next` */
	__u32 written_last;
	__u32 link_open;	/* last accepted operation, if it has LINK and is in flight */
	__u32 cancelling;	/* running operations with the cancel mark */
	__u8 link_broken;	/* the last accepted one had LINK and has failed already */
	__u8 fenced;		/* a FENCE is running */
	struct dmp_channel_counters counters;
	struct dmp_histogram_counts *latency;	/* NULL: not observed */
	__u64 latency_ns;	/* of the latest completions, as long as it is the same */
	__u32 latency_count;	/* how many of them are not in `latency` yet */
};

/* Memory for operations and deadlines of a channel. */
size_t dmp_channel_bytes(__u32 completion_slots);

/*
 * @memory: dmp_channel_bytes(), zeroed, aligned for __u64. @control, @submissions and
 * @completions are the shared rings, zeroed. -EINVAL for sizes that are not allowed.
 */
int dmp_channel_init(struct dmp_channel *channel, void *memory, struct dmp_ring_control *control,
		     struct dmp_submission *submissions, __u32 slots,
		     struct dmp_completion *completions, __u32 completion_slots,
		     struct dmp_histogram_counts *latency);

/*
 * Accepts up to @count submissions. They are at the end of the queue from @first on, for
 * the caller to look up what they name, and to set `error` where that fails.
 * -EPROTO for impossible indices; 0 with @accepted 0 if there is nothing or no room.
 */
int dmp_channel_accept(struct dmp_channel *channel, __u32 count, __u64 now_ns, __u32 *first,
		       __u32 *accepted);

/* Completions the user has not taken yet; -EPROTO for an impossible index. */
int dmp_channel_unread(const struct dmp_channel *channel, __u32 *unread);

/*
 * Takes up to @count operations that may start now, in order; they are RUNNING then.
 * More than one only as long as they fit @bytes_max bytes together, so that what follows
 * can still be cancelled; what is handed on counts for nothing, since an endpoint moves it,
 * and it can be stopped there.
 */
__u32 dmp_channel_take(struct dmp_channel *channel, __u32 *indices, __u32 count, __u64 bytes_max);

/* May the first queued operation start now? Or does it wait, as a FENCE or for its link. */
bool dmp_channel_can_take(const struct dmp_channel *channel);

/* Bytes the first queued operation asks for, 0 if nothing is queued. */
__u64 dmp_channel_next_bytes(const struct dmp_channel *channel);

/*
 * Is what is queued a few small transfers to peers? Then who submitted them may start them himself,
 * even if he does not wait: waking the worker costs more.
 */
bool dmp_channel_is_brief(const struct dmp_channel *channel);

/*
 * A RUNNING operation goes (back) to the end of @lane: QUEUED, its deadline is looked at, a
 * FENCE behind it waits for it. -ECANCELED if it carries the cancel mark: finish it instead.
 * dmp_channel_unpark() makes the oldest one RUNNING again; false if the lane is empty.
 */
void dmp_lane_init(struct dmp_lane *lane);
int dmp_channel_park(struct dmp_channel *channel, struct dmp_lane *lane, __u32 index);
bool dmp_channel_unpark(struct dmp_channel *channel, struct dmp_lane *lane, __u32 *index);

/*
 * Writes the completion of a RUNNING operation. Told to the user by dmp_channel_flush().
 * A submission with CHECKSUM or VERIFY has a valid checksum on success and on -EBADMSG,
 * whether or not the outcome's flags say so.
 */
void dmp_channel_finish(struct dmp_channel *channel, __u32 index,
			const struct dmp_outcome *outcome, __u64 now_ns);

/*
 * Tells the user of all completions and events written, in the order of writing, and brings
 * `latency` up to date with them. Returns how many. The caller first releases what the
 * operations among them (written_first and on, `written` of them) hold, so that a user who
 * has seen a completion finds the buffers free.
 */
__u32 dmp_channel_flush(struct dmp_channel *channel);

/*
 * Writes something nobody submitted, as the caller gives it but for DMP_COMPLETE_EVENT; it is
 * told with the next flush. It takes no slot that an accepted operation has reserved (L2):
 * -EAGAIN if there is no other; -EPROTO for an impossible index. dmp_channel_event_room()
 * says how many events could be written now.
 */
int dmp_channel_event(struct dmp_channel *channel, const struct dmp_completion *event);
int dmp_channel_event_room(const struct dmp_channel *channel, __u32 *room);

/*
 * From now on acceptance leaves @delta more (or fewer) completion slots to events.
 * -ENOSPC if that were more than half of them, -EINVAL if fewer than none.
 */
int dmp_channel_reserve_events(struct dmp_channel *channel, __s32 delta);

/* Completes every queued (or parked) operation whose deadline is not after @now_ns. */
void dmp_channel_expire(struct dmp_channel *channel, __u64 now_ns);

/* The next deadline of a queued operation; false if there is none. */
bool dmp_channel_deadline(const struct dmp_channel *channel, __u64 *deadline_ns);

/*
 * Cancels all operations in flight, or those with @user_data. Queued ones complete here;
 * running ones are marked. The caller then waits for dmp_channel_cancel_done(), or lets
 * go with dmp_channel_cancel_abandon(), before @cancellation goes away.
 */
void dmp_channel_cancel(struct dmp_channel *channel, bool all, __u64 user_data, __u64 now_ns,
			struct dmp_cancellation *cancellation);
bool dmp_channel_cancel_done(const struct dmp_channel *channel,
			     const struct dmp_cancellation *cancellation);
void dmp_channel_cancel_abandon(struct dmp_channel *channel,
				struct dmp_cancellation *cancellation);

/* Executor, without the lock. */
bool dmp_operation_cancelled(const struct dmp_operation *operation);

/*
 * Is the submission right in itself? 0, -EINVAL, -EOVERFLOW, or -EOPNOTSUPP for an
 * operation of the contract that is not in @served (bit n: operation n).
 */
int dmp_submission_check(const struct dmp_submission *submission, __u32 served);

#endif /* DMP_CORE_CHANNEL_H */
