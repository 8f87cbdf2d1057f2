// SPDX-License-Identifier: GPL-2.0 OR MIT
/* channel.c - see channel.h for the invariants */
#include "channel.h"

#include "atomic.h"

#define NONE DMP_OPERATION_NONE
#define BRIEF_COUNT 16U
#define BRIEF_BYTES (64U << 10)

_Static_assert(sizeof(struct dmp_operation) <= 128, "an operation fits two cache lines");

static size_t operations_bytes(__u32 completion_slots)
{
	return sizeof(struct dmp_operation) * completion_slots;
}

size_t dmp_channel_bytes(__u32 completion_slots)
{
	return operations_bytes(completion_slots) + dmp_deadline_bytes(completion_slots);
}

int dmp_channel_init(struct dmp_channel *channel, void *memory, struct dmp_ring_control *control,
		     struct dmp_submission *submissions, __u32 slots,
		     struct dmp_completion *completions, __u32 completion_slots,
		     struct dmp_histogram_counts *latency)
{
	__u32 index;
	int error;

	if (completion_slots < slots)
		return -EINVAL;
	__builtin_memset(channel, 0, sizeof(*channel));
	error = dmp_ring_init(&channel->submit, &control->submit_head, &control->submit_tail,
			      slots);
	if (!error)
		error = dmp_ring_init(&channel->complete, &control->complete_tail,
				      &control->complete_head, completion_slots);
	if (error)
		return error;
	channel->submissions = submissions;
	channel->completions = completions;
	channel->operations = memory;
	channel->slots = slots;
	channel->completion_slots = completion_slots;
	channel->latency = latency;
	dmp_deadline_init(&channel->deadlines,
			  (char *)memory + operations_bytes(completion_slots), completion_slots);
	for (index = 0; index < completion_slots; index++)
		channel->operations[index].next = index + 1;
	channel->operations[completion_slots - 1].next = NONE;
	channel->queue_first = NONE;
	channel->queue_last = NONE;
	channel->written_first = NONE;
	channel->link_open = NONE;
	return 0;
}

int dmp_channel_unread(const struct dmp_channel *channel, __u32 *unread)
{
	__u32 room;
	int error = dmp_ring_room(&channel->complete, &room);

	if (error)
		return error;
	*unread = channel->completion_slots - room;
	return 0;
}

/* The queue and each lane: a list from *@first to *@last through next and previous. */
static void append(struct dmp_channel *channel, __u32 *first, __u32 *last, __u32 index)
{
	struct dmp_operation *operation = &channel->operations[index];

	operation->next = NONE;
	operation->previous = *last;
	if (*last == NONE)
		*first = index;
	else
		channel->operations[*last].next = index;
	*last = index;
}

static void extract(struct dmp_channel *channel, __u32 *first, __u32 *last, __u32 index)
{
	const struct dmp_operation *operation = &channel->operations[index];

	if (operation->previous == NONE)
		*first = operation->next;
	else
		channel->operations[operation->previous].next = operation->next;
	if (operation->next == NONE)
		*last = operation->previous;
	else
		channel->operations[operation->next].previous = operation->previous;
}

/* Puts it at the end of @lane, or of the queue if that is NULL; its deadline counts. */
static void enqueue(struct dmp_channel *channel, struct dmp_lane *lane, __u32 index)
{
	struct dmp_operation *operation = &channel->operations[index];

	operation->state = DMP_OPERATION_QUEUED;
	operation->lane = lane;
	if (lane) {
		append(channel, &lane->first, &lane->last, index);
		lane->count++;
		channel->parked++;
	} else {
		append(channel, &channel->queue_first, &channel->queue_last, index);
		channel->queued++;
	}
	if (operation->submission.deadline_ns != 0)
		dmp_deadline_insert(&channel->deadlines, index,
				    operation->submission.deadline_ns);
}

static void dequeue(struct dmp_channel *channel, __u32 index)
{
	struct dmp_operation *operation = &channel->operations[index];
	struct dmp_lane *lane = operation->lane;

	if (lane) {
		extract(channel, &lane->first, &lane->last, index);
		lane->count--;
		channel->parked--;
	} else {
		extract(channel, &channel->queue_first, &channel->queue_last, index);
		channel->queued--;
	}
	if (operation->submission.deadline_ns != 0)
		dmp_deadline_remove(&channel->deadlines, index);
}

/* Ties a new operation to the link its predecessor left open, and opens its own. */
static void link_accepted(struct dmp_channel *channel, __u32 index)
{
	struct dmp_operation *operation = &channel->operations[index];

	operation->leader = channel->link_open;
	operation->follower = NONE;
	operation->error = 0;
	operation->linked = (operation->submission.flags & DMP_SUBMIT_LINK) != 0;
	if (channel->link_open != NONE) {
		channel->operations[channel->link_open].follower = index;
	} else if (channel->link_broken) {
		operation->error = -ECANCELED;
	}
	channel->link_broken = 0;
	channel->link_open = operation->linked ? index : NONE;
}

int dmp_channel_accept(struct dmp_channel *channel, __u32 count, __u64 now_ns, __u32 *first,
		       __u32 *accepted)
{
	__u32 ready, room, taken, number;
	int error = dmp_ring_ready(&channel->submit, &ready);

	if (!error)
		error = dmp_ring_room(&channel->complete, &room);
	if (error)
		return error;
	/*
	 * A completion that is written but not told has its slot twice in this sum (in
	 * in_flight, and not yet in complete.own), never less than once: L2 holds. A user
	 * who moves complete_head back only takes room from himself.
	 */
	taken = channel->in_flight + channel->events_written + channel->events_reserved;
	room = room > taken ? room - taken : 0;
	if (count > ready)
		count = ready;
	if (count > room)
		count = room;
	*first = NONE;
	for (number = 0; number < count; number++) {
		__u32 index = channel->free_first;
		struct dmp_operation *operation;

		if (index == NONE)
			break;	/* the user moved complete_head past what was written */
		operation = &channel->operations[index];
		channel->free_first = operation->next;
		operation->submission =
			channel->submissions[(channel->submit.own + number) &
					     (channel->slots - 1)];
		dmp_copied();	/* it was checked and used as it is here */
		operation->accepted_ns = now_ns;
		operation->cancellation = NULL;
		operation->cancel = 0;
		operation->handed_on = 0;
		link_accepted(channel, index);
		enqueue(channel, NULL, index);
		if (number == 0)
			*first = index;
	}
	*accepted = number;
	channel->in_flight += number;
	if (number != 0) {
		dmp_ring_advance(&channel->submit, number);
		channel->counters.submissions += number;
		channel->counters.batches++;
	}
	return 0;
}

static void start(struct dmp_channel *channel, __u32 index)
{
	dequeue(channel, index);
	channel->operations[index].state = DMP_OPERATION_RUNNING;
	channel->running++;
}

static __u64 bytes_to_take(const struct dmp_operation *operation)
{
	return operation->handed_on ? 0 : operation->submission.length_bytes;
}

bool dmp_channel_can_take(const struct dmp_channel *channel)
{
	const struct dmp_operation *operation;

	if (channel->fenced || channel->queue_first == NONE)
		return false;
	operation = &channel->operations[channel->queue_first];
	if (operation->leader != NONE)
		return false;
	return operation->submission.operation != DMP_OP_FENCE ||
	       (channel->running == 0 && channel->parked == 0);
}

__u32 dmp_channel_take(struct dmp_channel *channel, __u32 *indices, __u32 count, __u64 bytes_max)
{
	__u64 bytes = 0;
	__u32 taken = 0;

	while (taken < count && bytes < bytes_max && dmp_channel_can_take(channel)) {
		__u32 index = channel->queue_first;
		struct dmp_operation *operation = &channel->operations[index];

		if (taken != 0 && bytes_to_take(operation) > bytes_max - bytes)
			break;
		if (operation->submission.operation == DMP_OP_FENCE)
			channel->fenced = 1;
		start(channel, index);
		bytes += bytes_to_take(operation);
		indices[taken++] = index;
	}
	return taken;
}

__u64 dmp_channel_next_bytes(const struct dmp_channel *channel)
{
	if (channel->queue_first == NONE)
		return 0;
	return channel->operations[channel->queue_first].submission.length_bytes;
}

bool dmp_channel_is_brief(const struct dmp_channel *channel)
{
	__u32 index = channel->queue_first;
	__u64 bytes = 0;

	if (channel->queued > BRIEF_COUNT)
		return false;
	for (; index != NONE; index = channel->operations[index].next) {
		const struct dmp_submission *submission = &channel->operations[index].submission;

		if (submission->endpoint_id == 0)
			return false;
		if (submission->operation != DMP_OP_RECV)	/* that moves nothing yet */
			bytes += submission->length_bytes;
	}
	return bytes <= BRIEF_BYTES;
}

void dmp_lane_init(struct dmp_lane *lane)
{
	lane->first = NONE;
	lane->last = NONE;
	lane->count = 0;
}

int dmp_channel_park(struct dmp_channel *channel, struct dmp_lane *lane, __u32 index)
{
	if (channel->operations[index].cancel)
		return -ECANCELED;
	channel->running--;
	enqueue(channel, lane, index);
	return 0;
}

bool dmp_channel_unpark(struct dmp_channel *channel, struct dmp_lane *lane, __u32 *index)
{
	*index = lane->first;
	if (*index == NONE)
		return false;
	start(channel, *index);
	return true;
}

static void record_latencies(struct dmp_channel *channel)
{
	if (channel->latency_count != 0)
		dmp_histogram_record(channel->latency, channel->latency_ns,
				     channel->latency_count);
	channel->latency_count = 0;
}

/* What is accepted together and completed together has the same latency: counted at once. */
static void observe_latency(struct dmp_channel *channel, __u64 latency_ns)
{
	if (channel->latency_ns != latency_ns) {
		record_latencies(channel);
		channel->latency_ns = latency_ns;
	}
	channel->latency_count++;
}

static bool wants_checksum(const struct dmp_submission *submission)
{
	return submission->flags & (DMP_SUBMIT_CHECKSUM | DMP_SUBMIT_VERIFY);
}

static void count_completion(struct dmp_channel *channel, const struct dmp_operation *operation,
			     const struct dmp_outcome *outcome, __u64 now_ns)
{
	struct dmp_channel_counters *counters = &channel->counters;
	__s32 result = outcome->result;

	counters->completions++;
	counters->bytes += outcome->length_bytes;
	if (wants_checksum(&operation->submission) || outcome->flags & DMP_COMPLETE_CHECKSUM)
		counters->checksum_bytes += outcome->length_bytes;
	if (result != 0) {
		counters->errors++;
		counters->cancelled += result == -ECANCELED;
		counters->timeouts += result == -ETIMEDOUT;
	}
	if (channel->latency)
		observe_latency(channel, now_ns > operation->accepted_ns ?
						 now_ns - operation->accepted_ns : 0);
}

/* The next free entry of the completion ring, behind what is written and not told. */
static struct dmp_completion *next_entry(struct dmp_channel *channel)
{
	__u32 at = channel->complete.own + channel->written + channel->events_written;

	return &channel->completions[at & (channel->completion_slots - 1)];
}

/* Writes one completion. The operation is in no list; flush makes it free for reuse. */
static void complete(struct dmp_channel *channel, __u32 index, const struct dmp_outcome *outcome,
		     __u64 now_ns)
{
	struct dmp_operation *operation = &channel->operations[index];
	struct dmp_completion *completion = next_entry(channel);
	__u16 flags = outcome->flags & (DMP_COMPLETE_IMMEDIATE | DMP_COMPLETE_CHECKSUM);

	if (wants_checksum(&operation->submission) &&
	    (outcome->result == 0 || outcome->result == -EBADMSG))
		flags |= DMP_COMPLETE_CHECKSUM;
	completion->user_data = operation->submission.user_data;
	completion->result = outcome->result;
	completion->operation = (__u8)operation->submission.operation;
	completion->path = outcome->path;
	completion->flags = flags;
	completion->length_bytes = outcome->length_bytes;
	completion->immediate = flags & DMP_COMPLETE_IMMEDIATE ? outcome->immediate : 0;
	completion->checksum = flags & DMP_COMPLETE_CHECKSUM ? outcome->checksum : 0;
	channel->written++;
	count_completion(channel, operation, outcome, now_ns);

	operation->state = DMP_OPERATION_FREE;
	operation->next = NONE;
	if (channel->written_first == NONE)
		channel->written_first = index;
	else
		channel->operations[channel->written_last].next = index;
	channel->written_last = index;
}

/*
 * Settles the link an operation leaves: lets its follower start, or completes the queued
 * rest of the chain with -ECANCELED. A loop, so that a long chain needs no stack.
 */
static void settle_link(struct dmp_channel *channel, __u32 index, __s32 result, __u64 now_ns)
{
	static const struct dmp_outcome cancelled = { .result = -ECANCELED };

	while (channel->operations[index].linked) {
		__u32 follower = channel->operations[index].follower;

		if (follower == NONE) {
			/* Not accepted yet: what comes next finds the link gone or broken. */
			channel->link_open = NONE;
			channel->link_broken = result != 0;
			return;
		}
		channel->operations[follower].leader = NONE;
		if (result == 0)
			return;
		dequeue(channel, follower);
		complete(channel, follower, &cancelled, now_ns);
		index = follower;
	}
}

static void finish_queued(struct dmp_channel *channel, __u32 index, __s32 result, __u64 now_ns)
{
	const struct dmp_outcome outcome = { .result = result };
	__u32 leader = channel->operations[index].leader;

	/* It leaves its chain in the middle: what follows fails with it, not with the leader. */
	if (leader != NONE) {
		channel->operations[leader].linked = 0;
		channel->operations[leader].follower = NONE;
	}
	dequeue(channel, index);
	complete(channel, index, &outcome, now_ns);
	settle_link(channel, index, result, now_ns);
}

void dmp_channel_finish(struct dmp_channel *channel, __u32 index,
			const struct dmp_outcome *outcome, __u64 now_ns)
{
	struct dmp_operation *operation = &channel->operations[index];

	channel->running--;
	if (operation->submission.operation == DMP_OP_FENCE)
		channel->fenced = 0;
	if (operation->cancel) {
		channel->cancelling--;
		if (operation->cancellation) {
			operation->cancellation->pending--;
			operation->cancellation->cancelled += outcome->result == -ECANCELED;
		}
	}
	complete(channel, index, outcome, now_ns);
	if (operation->linked)
		settle_link(channel, index, outcome->result, now_ns);
}

__u32 dmp_channel_flush(struct dmp_channel *channel)
{
	__u32 told = channel->written + channel->events_written;

	if (told == 0)
		return 0;
	if (channel->written != 0) {
		channel->operations[channel->written_last].next = channel->free_first;
		channel->free_first = channel->written_first;
		channel->written_first = NONE;
		channel->in_flight -= channel->written;
		record_latencies(channel);
	}
	channel->written = 0;
	channel->events_written = 0;
	dmp_ring_advance(&channel->complete, told);
	return told;
}

int dmp_channel_event_room(const struct dmp_channel *channel, __u32 *room)
{
	__u32 taken = channel->in_flight + channel->events_written;
	int error = dmp_ring_room(&channel->complete, room);

	if (!error)
		*room = *room > taken ? *room - taken : 0;
	return error;
}

int dmp_channel_event(struct dmp_channel *channel, const struct dmp_completion *event)
{
	struct dmp_completion *completion = next_entry(channel);
	__u32 room;
	int error = dmp_channel_event_room(channel, &room);

	if (error)
		return error;
	if (room == 0)
		return -EAGAIN;
	*completion = *event;
	completion->flags = event->flags | DMP_COMPLETE_EVENT;
	channel->events_written++;
	channel->counters.events++;
	return 0;
}

int dmp_channel_reserve_events(struct dmp_channel *channel, __s32 delta)
{
	__s64 reserved = (__s64)channel->events_reserved + delta;

	if (reserved < 0)
		return -EINVAL;
	if (reserved > channel->completion_slots / 2)
		return -ENOSPC;
	channel->events_reserved = (__u32)reserved;
	return 0;
}

void dmp_channel_expire(struct dmp_channel *channel, __u64 now_ns)
{
	__u64 deadline_ns;
	__u32 index;

	while (dmp_deadline_next(&channel->deadlines, &index, &deadline_ns) &&
	       deadline_ns <= now_ns)
		finish_queued(channel, index, -ETIMEDOUT, now_ns);
}

bool dmp_channel_deadline(const struct dmp_channel *channel, __u64 *deadline_ns)
{
	__u32 index;

	return dmp_deadline_next(&channel->deadlines, &index, deadline_ns);
}

static void cancel_one(struct dmp_channel *channel, __u32 index, __u64 now_ns,
		       struct dmp_cancellation *cancellation)
{
	struct dmp_operation *operation = &channel->operations[index];

	if (operation->state == DMP_OPERATION_QUEUED) {
		finish_queued(channel, index, -ECANCELED, now_ns);
		return;
	}
	if (operation->cancel) {
		cancellation->foreign++;	/* cancel_done waits for `cancelling` */
		return;
	}
	operation->cancellation = cancellation;
	cancellation->pending++;
	channel->cancelling++;
	/* Pairs with the load in dmp_operation_cancelled. */
	dmp_store_release(&operation->cancel, 1);
}

static bool matches(const struct dmp_operation *operation, bool all, __u64 user_data)
{
	return operation->state != DMP_OPERATION_FREE &&
	       (all || operation->submission.user_data == user_data);
}

void dmp_channel_cancel(struct dmp_channel *channel, bool all, __u64 user_data, __u64 now_ns,
			struct dmp_cancellation *cancellation)
{
	__u32 index;

	__builtin_memset(cancellation, 0, sizeof(*cancellation));
	/* Counted before the first one goes: it takes those linked to it along. */
	for (index = 0; index < channel->completion_slots; index++) {
		struct dmp_operation *operation = &channel->operations[index];

		if (!matches(operation, all, user_data))
			continue;
		cancellation->found++;
		cancellation->cancelled += operation->state == DMP_OPERATION_QUEUED;
	}
	for (index = 0; cancellation->found != 0 && index < channel->completion_slots; index++)
		if (matches(&channel->operations[index], all, user_data))
			cancel_one(channel, index, now_ns, cancellation);
}

bool dmp_channel_cancel_done(const struct dmp_channel *channel,
			     const struct dmp_cancellation *cancellation)
{
	return cancellation->pending == 0 &&
	       (cancellation->foreign == 0 || channel->cancelling == 0);
}

void dmp_channel_cancel_abandon(struct dmp_channel *channel,
				struct dmp_cancellation *cancellation)
{
	__u32 index;

	for (index = 0; index < channel->completion_slots; index++)
		if (channel->operations[index].cancellation == cancellation)
			channel->operations[index].cancellation = NULL;
}

bool dmp_operation_cancelled(const struct dmp_operation *operation)
{
	/* Pairs with the store in cancel_one. */
	return dmp_load_acquire(&operation->cancel) != 0;
}
