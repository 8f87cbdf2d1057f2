// SPDX-License-Identifier: GPL-2.0
/*
 * enter.c - the calls inside a channel: accept, wait, cancel; and telling completions
 *
 * What a submission names is looked up once (holds.c), while plane->lock keeps it alive, and
 * held until just before its completion is told.
 *
 * Locks: plane->lock for reading to find and to hold, then channel->lock. A call that waits
 * has given up plane->lock before, and gives up channel->lock while it sleeps.
 */
#include <linux/eventfd.h>
#include <linux/hrtimer.h>
#include <linux/ktime.h>
#include <linux/poll.h>
#include <linux/sched/signal.h>

#include "channel_kernel.h"
#include "compat.h"
#include "endpoint_kernel.h"
#include "network.h"
#include "trace.h"

#define EVENTS_AT_ONCE 16

/* Accepts up to @count. plane->lock and channel->lock held. */
static int accept_locked(struct dmp_kernel_channel *channel, u32 count, u32 *accepted)
{
	struct dmp_channel *machine = &channel->machine;
	struct dmp_recent recent[DMP_RECENTS] = { };
	u32 index, number;
	int error;

	lockdep_assert_held(&channel->plane->lock);
	lockdep_assert_held(&channel->lock);
	error = dmp_channel_accept(machine, count, ktime_get_ns(), &index, accepted);
	if (error)
		return error;
	for (number = 0; number < *accepted; number++) {
		struct dmp_operation *operation = &machine->operations[index];
		int wrong = dmp_holds_take_locked(channel, &operation->submission,
						  &channel->holds[index], recent);

		if (operation->error == 0)
			operation->error = wrong;
		operation->handed_on = DMP_KERNEL_RDMA && channel->holds[index].endpoint &&
				       !dmp_traffic_wants_checksum(channel, index);
		index = operation->next;
	}
	if (*accepted != 0)
		trace_dmp_accept(channel, *accepted);
	return 0;
}

/* Before the completions of these operations are told: a drainer then finds them gone. */
static void release_written_locked(struct dmp_kernel_channel *channel)
{
	const struct dmp_channel *machine = &channel->machine;
	u32 index = machine->written_first;
	u32 number;

	lockdep_assert_held(&channel->lock);
	for (number = 0; number < machine->written && channel->holding != 0; number++) {
		struct dmp_holds *holds = &channel->holds[index];

		if (holds->target || holds->source) {
			dmp_holds_release(holds);
			channel->holding--;
		}
		index = machine->operations[index].next;
	}
}

static void signal_eventfd(struct dmp_kernel_channel *channel)
{
	/* Pairs with the user's fence between arming and looking: it sees the tail, or we this. */
	smp_mb();
	if (READ_ONCE(channel->control->event_armed) == 0)
		return;
	WRITE_ONCE(channel->control->event_armed, 0);
	channel->told_by_event = true;
	trace_dmp_wake(channel, DMP_WAKE_EVENTFD);
	dmp_eventfd_signal(channel->eventfd);
}

/* Completions were told: who has to hear of it? True: dmp_channel_wake() after the lock. */
static bool announce_locked(struct dmp_kernel_channel *channel)
{
	struct dmp_plane *plane = channel->plane;
	bool wake = channel->waiters_any != 0 ||
		    (channel->wake_at_valid &&
		     (s32)(channel->machine.complete.own - channel->wake_at) >= 0);

	lockdep_assert_held(&channel->lock);
	if (wake) {
		channel->wake_at_valid = false;
		channel->wakeups++;
		trace_dmp_wake(channel, DMP_WAKE_WAITERS);
	}
	if (channel->eventfd)
		signal_eventfd(channel);
	/* A poller is queued there before it takes our lock to look: we see it, or it the tail. */
	if (waitqueue_active(&plane->poll_wait))
		wake_up_poll(&plane->poll_wait, EPOLLIN | EPOLLRDNORM);
	return wake;
}

bool dmp_channel_tell_locked(struct dmp_kernel_channel *channel)
{
	u32 count;

	lockdep_assert_held(&channel->lock);
	if (channel->machine.written + channel->machine.events_written == 0)
		return false;
	dmp_trace_completions_locked(channel);
	release_written_locked(channel);
	count = dmp_channel_flush(&channel->machine);
	trace_dmp_tell(channel, count);
	return announce_locked(channel);
}

void dmp_channel_wake(struct dmp_kernel_channel *channel)
{
	wake_up_all(&channel->done_wait);
}

bool dmp_channel_claim_locked(struct dmp_kernel_channel *channel)
{
	lockdep_assert_held(&channel->lock);
	/* Who executes looks at the queue again before he gives up the place. */
	if (channel->executing)
		return false;
	channel->left_ns = 0;
	if (!channel->worker_sleeps)
		return false;
	channel->worker_sleeps = false;
	channel->wakeups++;
	trace_dmp_wake(channel, DMP_WAKE_WORKER);
	return true;
}

void dmp_channel_kick(struct dmp_kernel_channel *channel)
{
	wake_up_process(channel->worker);
}

void dmp_channel_rouse_locked(struct dmp_kernel_channel *channel, bool wake, bool kick)
{
	lockdep_assert_held(&channel->lock);
	if (!wake && !kick)
		return;
	mutex_unlock(&channel->lock);
	if (wake)
		dmp_channel_wake(channel);
	if (kick)
		dmp_channel_kick(channel);
	mutex_lock(&channel->lock);
}

struct revoked {
	u64 revocation;
	u32 id;
};

/* The next buffers revoked after @told, in the order of that; returns how many. */
static u32 next_revoked_locked(struct dmp_plane *plane, u64 told, struct revoked *next)
{
	struct dmp_object *object;
	unsigned long id;
	u32 count = 0;

	lockdep_assert_held(&plane->lock);
	xa_for_each(&plane->objects, id, object) {
		u64 revocation;
		u32 at;

		if (object->type != DMP_OBJECT_BUFFER)
			continue;
		revocation = container_of(object, struct dmp_buffer, object)->revocation;
		if (revocation <= told)
			continue;
		if (count == EVENTS_AT_ONCE && revocation > next[count - 1].revocation)
			continue;
		at = count == EVENTS_AT_ONCE ? count - 1 : count++;
		for (; at != 0 && next[at - 1].revocation > revocation; at--)
			next[at] = next[at - 1];
		next[at].revocation = revocation;
		next[at].id = object->id;
	}
	return count;
}

/* Events of revoked buffers, as far as there is room. True: wake after the lock. */
static bool tell_events_locked(struct dmp_kernel_channel *channel)
{
	struct dmp_plane *plane = channel->plane;
	struct revoked next[EVENTS_AT_ONCE];
	u32 count, number, room;

	lockdep_assert_held(&plane->lock);
	lockdep_assert_held(&channel->lock);
	while (channel->revocations_told != plane->revocations) {
		/* Nothing is looked for that could not be told now. */
		if (dmp_channel_event_room(&channel->machine, &room) || room == 0)
			break;
		cond_resched();
		count = next_revoked_locked(plane, channel->revocations_told, next);
		for (number = 0; number < count; number++) {
			struct dmp_completion event = { .user_data = next[number].id,
							.operation = DMP_EVENT_BUFFER_REVOKED };

			if (dmp_channel_event(&channel->machine, &event))
				goto full;
			channel->revocations_told = next[number].revocation;
			trace_dmp_event(channel, DMP_EVENT_BUFFER_REVOKED, next[number].id);
		}
		if (count < EVENTS_AT_ONCE)	/* the others have been destroyed since */
			channel->revocations_told = plane->revocations;
	}
full:
	return dmp_channel_tell_locked(channel);
}

void dmp_channel_tell_events(struct dmp_kernel_channel *channel)
{
	bool wake;

	mutex_lock(&channel->lock);
	wake = tell_events_locked(channel);
	mutex_unlock(&channel->lock);
	if (wake)
		dmp_channel_wake(channel);
}

bool dmp_channel_has_unread(struct dmp_kernel_channel *channel)
{
	u32 unread;
	bool wake;

	mutex_lock(&channel->lock);
	wake = tell_events_locked(channel);	/* there may be room by now */
	if (dmp_channel_unread(&channel->machine, &unread))
		unread = 1;	/* broken rings: let the caller enter and be told */
	mutex_unlock(&channel->lock);
	if (wake)
		dmp_channel_wake(channel);
	return unread != 0;
}

/* Context: sleeps, interruptibly, in the state the caller has set. 0, -ETIMEDOUT, -EINTR. */
static int sleep_until(u64 deadline_ns)
{
	ktime_t until = dmp_deadline_time(deadline_ns);

	if (signal_pending_state(get_current_state(), current))
		return -EINTR;
	if (schedule_hrtimeout_range(until == KTIME_MAX ? NULL : &until, 0, HRTIMER_MODE_ABS) == 0)
		return -ETIMEDOUT;
	return 0;
}

static bool enough_unread(struct dmp_kernel_channel *channel, u32 wanted)
{
	/* A guess only: the words are the user's. */
	return READ_ONCE(channel->closing) ||
	       READ_ONCE(channel->control->complete_tail) -
	       READ_ONCE(channel->control->complete_head) >= wanted;
}

static bool enough_unread_or_place_free(struct dmp_kernel_channel *channel, u32 wanted)
{
	return !READ_ONCE(channel->executing) || enough_unread(channel, wanted);
}

/*
 * Spins, where there is a place to be had as the executor. False: it has spun long enough. The
 * lock is given up meanwhile.
 */
static bool spin_locked(struct dmp_kernel_channel *channel, u32 wanted, u64 deadline_ns)
{
	bool gives_way = dmp_executor_gives_way_locked(channel), again = false;
	u64 until_ns = deadline_ns ?: U64_MAX;

	lockdep_assert_held(&channel->lock);
	channel->spinners++;
	if (dmp_executor_can_help_locked(channel)) {
		dmp_executor_help_locked(channel, wanted, deadline_ns);
	} else {
		mutex_unlock(&channel->lock);
		dmp_channel_spin(channel, gives_way ? enough_unread_or_place_free : enough_unread,
				 wanted, until_ns);
		mutex_lock(&channel->lock);
		again = gives_way && !channel->executing;
	}
	channel->spinners--;
	return again;
}

/*
 * Waits until @wanted completions are unread: 0, -ETIMEDOUT, -EINTR, -EPROTO, -ESTALE. The
 * lock is given up meanwhile. @spun: it is time to sleep.
 */
static int wait_for_unread_locked(struct dmp_kernel_channel *channel, u32 wanted,
				  u64 deadline_ns, bool spun)
{
	DEFINE_WAIT(wait);
	int error, slept = 0;

	lockdep_assert_held(&channel->lock);
	channel->waiters++;
	for (;;) {
		u32 unread, wake_at;

		error = dmp_channel_unread(&channel->machine, &unread);
		if (error || unread >= wanted)
			break;
		error = channel->closing ? -ESTALE : slept;
		if (error)
			break;
		if (!spun) {
			spun = !spin_locked(channel, wanted, deadline_ns);
			continue;
		}
		wake_at = channel->machine.complete.own - unread + wanted;
		if (!channel->wake_at_valid || (s32)(wake_at - channel->wake_at) < 0) {
			channel->wake_at = wake_at;
			channel->wake_at_valid = true;
		}
		prepare_to_wait(&channel->done_wait, &wait, TASK_INTERRUPTIBLE);
		mutex_unlock(&channel->lock);
		slept = sleep_until(deadline_ns);
		finish_wait(&channel->done_wait, &wait);
		mutex_lock(&channel->lock);
	}
	/* What the last one wished for must not stand before a wish of 2^31 completions later. */
	if (--channel->waiters == 0)
		channel->wake_at_valid = false;
	return error;
}

int dmp_channel_wait_locked(struct dmp_kernel_channel *channel, dmp_channel_condition met,
			    const void *context, u64 deadline_ns, unsigned int state)
{
	DEFINE_WAIT(wait);
	int slept = 0;

	lockdep_assert_held(&channel->lock);
	channel->waiters_any++;
	while (!met(channel, context) && slept == 0) {
		prepare_to_wait(&channel->done_wait, &wait, state);
		mutex_unlock(&channel->lock);
		slept = sleep_until(deadline_ns);
		finish_wait(&channel->done_wait, &wait);
		mutex_lock(&channel->lock);
	}
	channel->waiters_any--;
	return met(channel, context) ? 0 : slept;
}

void dmp_channel_nudge_locked(struct dmp_kernel_channel *channel)
{
	lockdep_assert_held(&channel->lock);
	if (channel->waiters_any != 0)
		dmp_channel_wake(channel);
}

int dmp_channel_announce(struct dmp_plane *plane, u32 id, const struct dmp_completion *event)
{
	struct dmp_kernel_channel *channel;
	bool wake = false;
	int error;

	down_read(&plane->lock);
	channel = dmp_channel_get_locked(plane, id, &error);
	up_read(&plane->lock);
	if (!channel)
		return error;
	mutex_lock(&channel->lock);
	error = dmp_channel_event(&channel->machine, event);
	if (!error) {
		trace_dmp_event(channel, event->operation, (u32)event->user_data);
		wake = dmp_channel_tell_locked(channel);
	}
	mutex_unlock(&channel->lock);
	if (wake)
		dmp_channel_wake(channel);
	dmp_channel_put(channel);
	return error;
}

static bool is_quiet(struct dmp_kernel_channel *channel, const void *context)
{
	return channel->machine.in_flight == 0;
}

static bool is_cancelled(struct dmp_kernel_channel *channel, const void *context)
{
	return dmp_channel_cancel_done(&channel->machine, context);
}

int dmp_channel_drain(struct dmp_kernel_channel *channel, u64 deadline_ns)
{
	int error;

	mutex_lock(&channel->lock);
	error = dmp_channel_wait_locked(channel, is_quiet, NULL, deadline_ns, TASK_INTERRUPTIBLE);
	mutex_unlock(&channel->lock);
	return error;
}

/* What is with the machine of an endpoint is cancelled there. */
static void cancel_transfers_locked(struct dmp_kernel_channel *channel)
{
	u32 index;

	lockdep_assert_held(&channel->lock);
	for (index = 0; index < channel->machine.completion_slots; index++) {
		const struct dmp_operation *operation = &channel->machine.operations[index];
		struct dmp_kernel_endpoint *endpoint = channel->holds[index].endpoint;

		if (operation->state == DMP_OPERATION_RUNNING && operation->cancel && endpoint)
			dmp_traffic_cancel_locked(endpoint, index);
	}
}

/* Cancels, and lets everybody know. The lock is given up, and held again. */
static void cancel_locked(struct dmp_kernel_channel *channel, bool all, u64 user_data,
			  struct dmp_cancellation *cancellation)
{
	bool wake, kick;

	lockdep_assert_held(&channel->lock);
	dmp_channel_cancel(&channel->machine, all, user_data, ktime_get_ns(), cancellation);
	trace_dmp_cancel(channel, all, user_data, cancellation);
	if (channel->network)
		cancel_transfers_locked(channel);
	wake = dmp_channel_tell_locked(channel);
	/* What was linked to a cancelled operation, or waited behind a fence, may start now. */
	kick = (channel->machine.queued != 0 || channel->network) &&
	       dmp_channel_claim_locked(channel);
	dmp_channel_rouse_locked(channel, wake, kick);
}

void dmp_channel_cancel_begin(struct dmp_kernel_channel *channel)
{
	struct dmp_cancellation cancellation;

	mutex_lock(&channel->lock);
	if (channel->machine.in_flight != 0) {
		cancel_locked(channel, true, 0, &cancellation);
		dmp_channel_cancel_abandon(&channel->machine, &cancellation);
	}
	mutex_unlock(&channel->lock);
	dmp_released();
}

void dmp_channel_cancel_everything(struct dmp_kernel_channel *channel)
{
	int error;

	dmp_channel_cancel_begin(channel);
	mutex_lock(&channel->lock);
	error = dmp_channel_wait_locked(channel, is_quiet, NULL, 0, TASK_KILLABLE);
	mutex_unlock(&channel->lock);
	/* Who is killed waits for no peer: without a connection what was cancelled has ended. */
	if (error)
		dmp_network_end(channel);
	mutex_lock(&channel->lock);
	dmp_channel_wait_locked(channel, is_quiet, NULL, 0, TASK_UNINTERRUPTIBLE);
	mutex_unlock(&channel->lock);
	dmp_released();
}

struct dmp_kernel_channel *dmp_channel_get_locked(struct dmp_plane *plane, u32 id, int *error)
{
	struct dmp_object *object = dmp_plane_use_locked(plane, id, DMP_OBJECT_CHANNEL, error);
	struct dmp_kernel_channel *channel;

	lockdep_assert_held(&plane->lock);
	if (!object)
		return NULL;
	channel = container_of(object, struct dmp_kernel_channel, object);
	atomic_inc(&channel->users);
	return channel;
}

void dmp_channel_put(struct dmp_kernel_channel *channel)
{
	/* Release: what the call did to the channel happens before destroy sees that it left. */
	(void)atomic_dec_return_release(&channel->users);
	dmp_released();
}

/*
 * The part of ENTER under both locks: finds, accepts, and holds what was accepted. Returns
 * with channel->lock held, unless there is no such channel.
 */
static struct dmp_kernel_channel *enter_and_lock(struct dmp_plane *plane,
						 const struct dmp_enter *enter, u32 *accepted,
						 int *error)
{
	struct dmp_kernel_channel *channel;
	bool wake;

	down_read(&plane->lock);
	channel = dmp_channel_get_locked(plane, enter->channel_id, error);
	if (channel) {
		mutex_lock(&channel->lock);
		wake = tell_events_locked(channel);
		if (enter->wait_count > channel->machine.completion_slots)
			*error = -EINVAL;
		else if (enter->submit_count != 0)
			*error = accept_locked(channel, enter->submit_count, accepted);
		if (wake)
			dmp_channel_wake(channel);
	}
	up_read(&plane->lock);
	return channel;
}

int dmp_channel_enter(struct dmp_plane *plane, void *argument)
{
	struct dmp_enter *request = argument;
	u32 wanted = request->wait_count, accepted = 0, unread = 0;
	struct dmp_kernel_channel *channel;
	bool can_help, helps;
	int error;

	channel = enter_and_lock(plane, request, &accepted, &error);
	if (!channel)
		return error;
	can_help = !error && dmp_executor_can_help_locked(channel);
	/* Who has what he wants does nothing in the place, and keeps the worker out of it. */
	helps = can_help && wanted != 0 &&
		dmp_channel_unread(&channel->machine, &unread) == 0 && unread < wanted;
	if (helps) {
		dmp_executor_help_locked(channel, wanted, request->deadline_ns);
	} else if (can_help && accepted != 0 && dmp_executor_gives_way_locked(channel) &&
		   dmp_channel_is_brief(&channel->machine)) {
		dmp_executor_help_locked(channel, 0, request->deadline_ns);
	} else if (accepted != 0) {
		dmp_channel_rouse_locked(channel, false, dmp_channel_claim_locked(channel));
	}
	if (!error && request->submit_count != 0 && accepted == 0 && wanted == 0)
		error = -EAGAIN;
	if (!error && wanted != 0)
		error = wait_for_unread_locked(channel, wanted, request->deadline_ns,
					       helps || channel->spin_us == 0);
	if (accepted != 0 && error != -EPROTO)
		error = 0;
	if (!error)
		error = dmp_channel_unread(&channel->machine, &unread);
	mutex_unlock(&channel->lock);
	request->accepted = accepted;
	request->unread = unread;
	dmp_channel_put(channel);
	return error;
}

int dmp_channel_cancel_command(struct dmp_plane *plane, void *argument)
{
	struct dmp_cancel *cancel = argument;
	bool all = cancel->flags & DMP_CANCEL_ALL;
	struct dmp_cancellation cancellation;
	struct dmp_kernel_channel *channel;
	int error;

	if (all && cancel->user_data != 0)
		return -EINVAL;
	down_read(&plane->lock);
	channel = dmp_channel_get_locked(plane, cancel->channel_id, &error);
	up_read(&plane->lock);
	if (!channel)
		return error;
	mutex_lock(&channel->lock);
	cancel_locked(channel, all, cancel->user_data, &cancellation);
	error = dmp_channel_wait_locked(channel, is_cancelled, &cancellation, cancel->deadline_ns,
					TASK_INTERRUPTIBLE);
	if (error)
		dmp_channel_cancel_abandon(&channel->machine, &cancellation);
	mutex_unlock(&channel->lock);
	if (!error && cancellation.found == 0)
		error = -ENOENT;
	cancel->cancelled = cancellation.cancelled;
	dmp_channel_put(channel);	/* wakes those who drain a buffer, too */
	return error;
}
