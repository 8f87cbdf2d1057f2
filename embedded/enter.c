// SPDX-License-Identifier: MIT
/*
 * enter.c - the calls inside a channel: accept, wait, cancel
 *
 * What a submission names is looked up once, when it is accepted (holds.c), and held until
 * just before its completion is told.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <unistd.h>

#include "endpoint_embedded.h"
#include "lifetime.h"
#include "network.h"
#include "traffic.h"

#define PATIENCE_NS 4000000u	/* so long a completion waits for company before it is signalled */

bool dmp_channel_claim_wake_locked(struct dmp_embedded_channel *channel)
{
	bool wake = channel->worker_sleeps && !channel->executing;
	uint64_t one = 1;

	__atomic_store_n(&channel->news, true, __ATOMIC_RELAXED);
	if (channel->watching) {
		channel->watching = false;
		if (write(channel->network->bell, &one, sizeof(one)) < 0)
			return false;	/* it is full: it rings already */
		return false;
	}
	if (!wake)
		return false;
	channel->worker_sleeps = false;
	channel->worker_wakes |= wake;
	if (wake) {
		channel->wakeups++;
		dmp_board_add(&channel->plane->board->statistics.wakeups, 1);
	}
	return wake;
}

void dmp_channel_kick(struct dmp_embedded_channel *channel, bool wake)
{
	__atomic_add_fetch(&channel->work_sequence, 1, __ATOMIC_RELEASE);
	if (wake)
		dmp_futex_wake_all(&channel->work_sequence);
}

/* Who carries out what was accepted. */
enum executor { RUNNING_WORKER, SLEEPING_WORKER, CALLER };

/* Accepts up to @count; plane->lock is held by the caller, who waits if @waits. */
static int accept_locked(struct dmp_embedded_channel *channel, uint32_t count, bool waits,
			 uint32_t *accepted, enum executor *executor)
{
	struct dmp_channel *machine = &channel->machine;
	struct dmp_recent recent[DMP_RECENTS] = { { 0, NULL } };
	uint32_t index;
	int error;

	pthread_mutex_lock(&channel->lock);
	error = dmp_channel_accept(machine, count, DMP_OBSERVE ? dmp_now_ns() : 0, &index,
				   accepted);
	if (!error && *accepted != 0) {
		for (; index != DMP_OPERATION_NONE; index = machine->operations[index].next) {
			struct dmp_operation *operation = &machine->operations[index];
			int wrong = dmp_holds_take(channel, &operation->submission,
						   &channel->holds[index], recent);

			if (operation->error == 0)
				operation->error = wrong;
			operation->handed_on = channel->holds[index].endpoint &&
					       !dmp_traffic_wants_checksum(channel, index);
		}
		/* At once, not when they complete: the difference is what is in flight. */
		dmp_board_add(&channel->plane->board->statistics.submissions, *accepted);
		dmp_board_add(&channel->plane->board->statistics.batches, 1);
		if ((waits || (channel->network && dmp_channel_is_brief(&channel->machine))) &&
		    dmp_worker_can_help_locked(channel))
			*executor = CALLER;
		else if (dmp_channel_claim_wake_locked(channel))
			*executor = SLEEPING_WORKER;
	}
	pthread_mutex_unlock(&channel->lock);
	return error;
}

static uint32_t told_unread(struct dmp_embedded_channel *channel)
{
	/* Pairs with the store in dmp_ring_advance. A guess only: the words are the user's. */
	return __atomic_load_n(&channel->control->complete_tail, __ATOMIC_ACQUIRE) -
	       __atomic_load_n(&channel->control->complete_head, __ATOMIC_RELAXED);
}

struct wanted {
	struct dmp_embedded_channel *channel;
	uint32_t count;
};

static bool enough_unread(const void *context)
{
	const struct wanted *wanted = context;

	return told_unread(wanted->channel) >= wanted->count;
}

/* Spinning in vain: a channel that is destroyed waits for who is inside. */
static bool enough_unread_or_closing(const void *context)
{
	const struct wanted *wanted = context;

	return enough_unread(context) ||
	       __atomic_load_n(&wanted->channel->closing, __ATOMIC_RELAXED);
}

static bool enough_unread_or_place_offered(const void *context)
{
	const struct wanted *wanted = context;

	return enough_unread_or_closing(context) ||
	       __atomic_load_n(&wanted->channel->place_offered, __ATOMIC_RELAXED);
}

/* Registers the wish to see completion @wake_at; returns the sequence to sleep on. */
static uint32_t register_waiter_locked(struct dmp_embedded_channel *channel, uint32_t wake_at)
{
	if (!channel->wake_at_valid || (int32_t)(wake_at - channel->wake_at) < 0) {
		channel->wake_at = wake_at;
		channel->wake_at_valid = true;
	}
	return __atomic_load_n(&channel->done_sequence, __ATOMIC_RELAXED);
}

/*
 * Waits until @wanted completions are unread: 0, -ETIMEDOUT, -EINTR, -EPROTO, -ESTALE, or
 * -EAGAIN: the executor's place is ours if we want it.
 */
static int wait_for_unread(struct dmp_embedded_channel *channel, uint32_t wanted,
			   uint64_t deadline_ns)
{
	struct wanted condition = { channel, wanted };
	/* Two who were told to spin would be in turn; one who sleeps soon leaves the worker alone. */
	bool network = channel->waiter_spin.fixed &&
		       __atomic_load_n(&channel->network, __ATOMIC_RELAXED);
	int error = 0, slept = 0;
	uint64_t asleep_ns = 0;

	if (wanted == 0 || enough_unread(&condition))
		return 0;
	if (!network && dmp_spin_until(&channel->waiter_spin, enough_unread_or_closing, &condition,
				       deadline_ns) && enough_unread(&condition))
		return 0;
	pthread_mutex_lock(&channel->lock);
	channel->waiters++;
	if (network && !channel->place_offered) {
		/* One who waits is offered the place, also while he spins: two would be in turn. */
		pthread_mutex_unlock(&channel->lock);
		dmp_spin_until(&channel->waiter_spin, enough_unread_or_place_offered, &condition,
			       deadline_ns);
		pthread_mutex_lock(&channel->lock);
	}
	for (;;) {
		uint32_t unread, seen;

		error = dmp_channel_unread(&channel->machine, &unread);
		if (error || unread >= wanted)
			break;
		if (channel->closing)
			error = -ESTALE;
		else if (channel->place_offered && !channel->executing)
			error = -EAGAIN;
		else if (slept == -ETIMEDOUT || slept == -EINTR)
			error = slept;
		if (error)
			break;
		seen = register_waiter_locked(channel, channel->machine.complete.own - unread +
							       wanted);
		pthread_mutex_unlock(&channel->lock);
		asleep_ns = dmp_now_ns();
		slept = dmp_futex_wait(&channel->done_sequence, seen, deadline_ns);
		pthread_mutex_lock(&channel->lock);
	}
	/* What the last one wished for must not stand before a wish of 2^31 completions later. */
	if (--channel->waiters == 0)
		channel->wake_at_valid = false;
	pthread_mutex_unlock(&channel->lock);
	/* It came so soon that spinning would have caught it: spin longer next time. */
	if (asleep_ns != 0 && dmp_now_ns() - asleep_ns < DMP_SPIN_MAX_NS)
		dmp_spin_learn(&channel->waiter_spin, true);
	return error;
}

/*
 * May what is about to be told wait until as many are there as its reader wants at once? Only
 * what is one of many and went well; and only where an executor sleeps who sees to it in time.
 */
static bool is_patient_locked(const struct dmp_embedded_channel *channel)
{
	const struct dmp_channel *machine = &channel->machine;
	uint32_t count = machine->written + machine->events_written, number;

	if (!channel->network ||
	    __atomic_load_n(&channel->control->event_armed, __ATOMIC_RELAXED) <= 1)
		return false;
	for (number = 0; number < count; number++) {
		uint32_t slot = (machine->complete.own + number) & (machine->completion_slots - 1);
		const struct dmp_completion *told = &machine->completions[slot];
		bool plain = told->flags & DMP_COMPLETE_EVENT ?
				     told->operation == DMP_EVENT_WRITE_IMM :
				     told->operation == DMP_OP_WRITE ||
					     told->operation == DMP_OP_WRITE_IMM ||
					     told->operation == DMP_OP_SEND;

		if (told->result != 0 || !plain)
			return false;
	}
	return true;
}

static void signal_eventfd(struct dmp_embedded_channel *channel, bool patient)
{
	struct pollfd room = { .fd = channel->eventfd, .events = POLLOUT };
	uint64_t one = 1;
	uint32_t wanted;

	/* Pairs with the fence in dmp_client_arm: it sees the tail, or we see it armed. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	wanted = __atomic_load_n(&channel->control->event_armed, __ATOMIC_RELAXED);
	if (wanted == 0)
		return;
	if (patient && told_unread(channel) < wanted) {
		if (channel->event_due_ns == 0)
			channel->event_due_ns = dmp_now_ns() + PATIENCE_NS;
		return;
	}
	channel->event_due_ns = 0;
	channel->told_by_event = true;
	channel->makes_way |= wanted > 1 && told_unread(channel) >= wanted;
	__atomic_store_n(&channel->control->event_armed, 0, __ATOMIC_RELAXED);
	/* A full counter would block, and is readable already, which is all we want. */
	if (poll(&room, 1, 0) == 1 && write(channel->eventfd, &one, sizeof(one)) < 0)
		return;
}

#if DMP_OBSERVE
/* Adds to the board what the machine has counted since the last time. */
static void publish_counters(struct dmp_embedded_channel *channel)
{
	const struct dmp_channel_counters *now = &channel->machine.counters;
	struct dmp_channel_counters *then = &channel->published;
	struct dmp_statistics *board = &channel->plane->board->statistics;

	dmp_board_add(&board->completions, now->completions - then->completions);
	if (now->errors != then->errors) {
		dmp_board_add(&board->errors, now->errors - then->errors);
		dmp_board_add(&board->cancelled, now->cancelled - then->cancelled);
		dmp_board_add(&board->timeouts, now->timeouts - then->timeouts);
	}
	if (now->bytes != then->bytes) {
		dmp_board_add(&board->bytes, now->bytes - then->bytes);
		dmp_board_add(&board->checksum_bytes, now->checksum_bytes - then->checksum_bytes);
	}
	*then = *now;
}
#endif

bool dmp_channel_tell_locked(struct dmp_embedded_channel *channel)
{
	struct dmp_channel *machine = &channel->machine;
	bool wake, patient = channel->eventfd >= 0 && is_patient_locked(channel);
	uint32_t index;

	for (index = machine->written_first; index != DMP_OPERATION_NONE;
	     index = machine->operations[index].next)
		dmp_holds_release(&channel->holds[index]);
	if (dmp_channel_flush(machine) == 0)
		return false;
#if DMP_OBSERVE
	publish_counters(channel);
#endif
	wake = channel->waiters_any != 0 ||
	       (channel->waiters != 0 && channel->wake_at_valid &&
		(int32_t)(machine->complete.own - channel->wake_at) >= 0);
	if (wake) {
		channel->wake_at_valid = false;
		channel->wakeups++;
		dmp_board_add(&channel->plane->board->statistics.wakeups, 1);
		__atomic_add_fetch(&channel->done_sequence, 1, __ATOMIC_RELEASE);
	}
	if (channel->eventfd >= 0)
		signal_eventfd(channel, patient);
	dmp_plane_notify(channel->plane);
	return wake;
}

void dmp_channel_signal_due_locked(struct dmp_embedded_channel *channel, uint64_t now_ns)
{
	if (channel->event_due_ns == 0 || now_ns < channel->event_due_ns)
		return;
	channel->event_due_ns = 0;
	if (told_unread(channel) != 0)	/* else somebody has taken them unasked */
		signal_eventfd(channel, false);
}

void dmp_channel_nudge_locked(struct dmp_embedded_channel *channel)
{
	if (channel->waiters_any == 0)
		return;
	__atomic_add_fetch(&channel->done_sequence, 1, __ATOMIC_RELEASE);
	dmp_futex_wake_all(&channel->done_sequence);
}

int dmp_channel_wait_locked(struct dmp_embedded_channel *channel,
			    bool (*done)(struct dmp_embedded_channel *, void *), void *context,
			    uint64_t deadline_ns, bool interruptible)
{
	int error = 0;

	channel->waiters_any++;
	while (!done(channel, context)) {
		uint32_t seen = __atomic_load_n(&channel->done_sequence, __ATOMIC_RELAXED);

		if (error == -ETIMEDOUT || (error == -EINTR && interruptible))
			break;
		error = 0;
		pthread_mutex_unlock(&channel->lock);
		error = dmp_futex_wait(&channel->done_sequence, seen, deadline_ns);
		pthread_mutex_lock(&channel->lock);
	}
	channel->waiters_any--;
	return done(channel, context) ? 0 : error;
}

int dmp_channel_announce(struct dmp_plane *plane, __u32 channel_id,
			 const struct dmp_completion *event)
{
	struct dmp_embedded_channel *channel;
	bool wake = false;
	int error = 0;

	pthread_mutex_lock(&plane->lock);
	channel = dmp_channel_enter_locked(plane, channel_id, &error);
	pthread_mutex_unlock(&plane->lock);
	if (!channel)
		return error;
	pthread_mutex_lock(&channel->lock);
	error = dmp_channel_event(&channel->machine, event);
	if (!error)
		wake = dmp_channel_tell_locked(channel);
	/* A caller who sleeps in the network looks at its completions when it wakes. */
	if (!error && channel->watching)
		dmp_channel_claim_wake_locked(channel);
	pthread_mutex_unlock(&channel->lock);
	if (wake)
		dmp_futex_wake_all(&channel->done_sequence);
	dmp_channel_put(channel);
	return error;
}

static bool is_quiet(struct dmp_embedded_channel *channel, void *context)
{
	(void)context;
	return channel->machine.in_flight == 0;
}

static bool is_cancelled(struct dmp_embedded_channel *channel, void *context)
{
	return dmp_channel_cancel_done(&channel->machine, context);
}

int dmp_channel_drain(struct dmp_embedded_channel *channel, uint64_t deadline_ns)
{
	int error;

	pthread_mutex_lock(&channel->lock);
	error = dmp_channel_wait_locked(channel, is_quiet, NULL, deadline_ns, true);
	pthread_mutex_unlock(&channel->lock);
	return error;
}

/* What is with the machine of an endpoint is cancelled there. */
static void cancel_transfers_locked(struct dmp_embedded_channel *channel)
{
	uint32_t index;

	for (index = 0; index < channel->machine.completion_slots; index++) {
		struct dmp_operation *operation = &channel->machine.operations[index];
		struct dmp_holds *holds = &channel->holds[index];

		if (operation->state != DMP_OPERATION_RUNNING || !operation->cancel ||
		    !holds->endpoint)
			continue;
		dmp_piece_cancel(holds->endpoint, index);
		dmp_network_mark_locked(channel, holds->endpoint);
	}
}

static void cancel_locked(struct dmp_embedded_channel *channel, bool all, uint64_t user_data,
			  struct dmp_cancellation *cancellation)
{
	dmp_channel_cancel(&channel->machine, all, user_data, dmp_now_ns(), cancellation);
	if (channel->network)
		cancel_transfers_locked(channel);
	if (dmp_channel_tell_locked(channel))
		dmp_futex_wake_all(&channel->done_sequence);
	/* What was linked to a cancelled operation, or waited behind a fence, may start now. */
	dmp_channel_kick(channel, dmp_channel_claim_wake_locked(channel));
}

void dmp_channel_cancel_everything(struct dmp_embedded_channel *channel)
{
	struct dmp_cancellation cancellation;

	pthread_mutex_lock(&channel->lock);
	if (channel->network)
		channel->network->ending = true;	/* peers are not waited for */
	cancel_locked(channel, true, 0, &cancellation);
	dmp_channel_wait_locked(channel, is_quiet, NULL, 0, false);
	dmp_channel_cancel_abandon(&channel->machine, &cancellation);
	pthread_mutex_unlock(&channel->lock);
	dmp_plane_released(channel->plane);
}

struct dmp_embedded_channel *dmp_channel_enter_locked(struct dmp_plane *plane, uint32_t id,
						      int *error)
{
	struct dmp_embedded_channel *channel = (struct dmp_embedded_channel *)
		dmp_plane_find_locked(plane, id, DMP_OBJECT_CHANNEL, error);

	if (channel)
		__atomic_add_fetch(&channel->users, 1, __ATOMIC_SEQ_CST);
	return channel;
}

/* Executes if that is for the caller to do, and waits; again if the place is offered. */
static int execute_and_wait(struct dmp_embedded_channel *channel, const struct dmp_enter *enter,
			    bool promised)
{
	int error = 0;

	do {
		if (enter->wait_count != 0 || promised)
			error = dmp_worker_help(channel, enter->wait_count, enter->deadline_ns,
						promised);
		promised = false;
		if (!error)
			error = wait_for_unread(channel, enter->wait_count, enter->deadline_ns);
	} while (error == -EAGAIN);
	return error;
}

int dmp_channel_enter(struct dmp_plane *plane, void *argument)
{
	struct dmp_enter *enter = argument;
	struct dmp_embedded_channel *channel;
	uint32_t accepted = 0, unread = 0;
	enum executor executor = RUNNING_WORKER;
	int error;

	pthread_mutex_lock(&plane->lock);
	channel = dmp_channel_enter_locked(plane, enter->channel_id, &error);
	if (!channel) {
		pthread_mutex_unlock(&plane->lock);
		return error;
	}
	if (enter->wait_count > channel->machine.completion_slots)
		error = -EINVAL;
	else if (enter->submit_count != 0)
		error = accept_locked(channel, enter->submit_count, enter->wait_count != 0,
				      &accepted, &executor);
	pthread_mutex_unlock(&plane->lock);
	if (accepted != 0 && executor != CALLER)
		dmp_channel_kick(channel, executor == SLEEPING_WORKER);
	if (!error && enter->submit_count != 0 && accepted == 0 && enter->wait_count == 0)
		error = -EAGAIN;
	else if (!error)
		error = execute_and_wait(channel, enter, executor == CALLER);
	if (accepted != 0 && error != -EPROTO)
		error = 0;
	if (!error) {
		pthread_mutex_lock(&channel->lock);
		error = dmp_channel_unread(&channel->machine, &unread);
		pthread_mutex_unlock(&channel->lock);
	}
	enter->accepted = accepted;
	enter->unread = unread;
	dmp_channel_put(channel);
	return error;
}

int dmp_channel_cancel_command(struct dmp_plane *plane, void *argument)
{
	struct dmp_cancel *cancel = argument;
	bool all = cancel->flags & DMP_CANCEL_ALL;
	struct dmp_cancellation cancellation;
	struct dmp_embedded_channel *channel;
	int error;

	if (all && cancel->user_data != 0)
		return -EINVAL;
	pthread_mutex_lock(&plane->lock);
	channel = dmp_channel_enter_locked(plane, cancel->channel_id, &error);
	pthread_mutex_unlock(&plane->lock);
	if (!channel)
		return error;
	pthread_mutex_lock(&channel->lock);
	cancel_locked(channel, all, cancel->user_data, &cancellation);
	error = dmp_channel_wait_locked(channel, is_cancelled, &cancellation, cancel->deadline_ns, true);
	if (error)
		dmp_channel_cancel_abandon(&channel->machine, &cancellation);
	pthread_mutex_unlock(&channel->lock);
	if (!error && cancellation.found == 0)
		error = -ENOENT;
	cancel->cancelled = cancellation.cancelled;
	dmp_channel_put(channel);	/* wakes those who drain a buffer, too */
	return error;
}
