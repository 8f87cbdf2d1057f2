// SPDX-License-Identifier: GPL-2.0
/*
 * executor.c - who has the executor's place: the worker, or a caller who waits anyway
 *
 * A caller saves two switches of context. On a channel that was told to spin and has endpoints he
 * spins in the place, so that one thread a side does, and the worker sleeps: he has LEASE_NS
 * to come back before the worker watches the pairs itself, unless somebody else waits for what
 * may come. Until then nothing rings, and answers to peers wait for company: who got a
 * message mostly sends one. The embedded plane's executor.c does the same for every channel.
 */
#include <linux/hrtimer.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/sched/stat.h>

#include "endpoint_kernel.h"
#include "network.h"
#include "trace.h"

#define LEASE_NS NSEC_PER_MSEC		/* for a caller who had the place and may come back */
#define BRIEF_ROUNDS 8			/* of a caller who does not wait */

bool dmp_executor_gives_way_locked(const struct dmp_kernel_channel *channel)
{
	lockdep_assert_held(&channel->lock);
	/* A worker that is bound is where its user wants the work done. */
	return DMP_KERNEL_RDMA && channel->network && channel->spin_us != 0 && channel->cpu < 0 &&
	       channel->node < 0 && channel->workers == 1;
}

void dmp_channel_spin(struct dmp_kernel_channel *channel,
		      bool (*met)(struct dmp_kernel_channel *channel, u32 wanted), u32 wanted,
		      u64 until_ns)
{
	u64 end_ns = min(ktime_get_ns() + (u64)channel->spin_us * NSEC_PER_USEC, until_ns);

	/*
	 * Only while nobody else wants this CPU: it may be the one who does what is waited for, and
	 * he would get it at the next tick. Who then sleeps is woken as soon as it is done.
	 */
	while (!met(channel, wanted) && !signal_pending(current) && single_task_running() &&
	       ktime_get_ns() < end_ns) {
		cond_resched();
		cpu_relax();
	}
}

static bool stirs(struct dmp_kernel_channel *channel)
{
	return DMP_KERNEL_RDMA && dmp_network_stirs(channel);
}

/* Of a worker who alone executes. */
static bool has_work(struct dmp_kernel_channel *channel, u32 wanted)
{
	return READ_ONCE(channel->machine.queued) >= wanted || kthread_should_stop() ||
	       stirs(channel);
}

/* Of one in whose place callers may be: the pairs may be theirs, so they have to ring. */
static bool has_news(struct dmp_kernel_channel *channel, u32 wanted)
{
	return READ_ONCE(channel->machine.queued) >= wanted || kthread_should_stop() ||
	       READ_ONCE(channel->executing) ||
	       (DMP_KERNEL_RDMA && dmp_network_rings(channel));
}

/* Pairs with the ring of a pair: it is on the list before the worker is woken. */
bool dmp_executor_is_wanted_locked(struct dmp_kernel_channel *channel)
{
	lockdep_assert_held(&channel->lock);
	return DMP_KERNEL_RDMA && dmp_network_is_wanted_locked(channel);
}

/* When somebody has to look although nothing has come; ~0: never. */
static u64 due_locked(struct dmp_kernel_channel *channel)
{
	u64 deadline_ns, due_ns = U64_MAX;

	lockdep_assert_held(&channel->lock);
	if (dmp_channel_deadline(&channel->machine, &deadline_ns))
		due_ns = deadline_ns;
	if (DMP_KERNEL_RDMA && dmp_network_deadline_locked(channel, &deadline_ns))
		due_ns = min(due_ns, deadline_ns);
	return due_ns;
}

/* Sleeps until @until_ns, or woken; as the one who @watches not while there is something to do. */
static void sleep_locked(struct dmp_kernel_channel *channel, u64 until_ns, bool watches)
{
	ktime_t until = dmp_deadline_time(until_ns);

	lockdep_assert_held(&channel->lock);
	set_current_state(TASK_IDLE);
	/* What waits behind a transfer is no reason to stay: its end is looked for, or rings. */
	watches = watches && (dmp_channel_can_take(&channel->machine) ||
			      dmp_executor_is_wanted_locked(channel));
	if (watches || kthread_should_stop()) {
		__set_current_state(TASK_RUNNING);
		return;
	}
	channel->worker_until_ns = until_ns;
	channel->worker_sleeps = true;
	mutex_unlock(&channel->lock);
	/* Drainers of buffers count holders: the last operations have let go. */
	dmp_released();
	schedule_hrtimeout_range(until == KTIME_MAX ? NULL : &until, 0, HRTIMER_MODE_ABS);
	mutex_lock(&channel->lock);
	channel->worker_sleeps = false;
}

/*
 * How long a caller who left the place may still come back to it; 0: no more. Who claims the worker
 * ends that, and so does what is due.
 */
static u64 leased_until_locked(struct dmp_kernel_channel *channel)
{
	u64 until_ns;

	lockdep_assert_held(&channel->lock);
	if (channel->left_ns == 0 || kthread_should_stop())
		return 0;
	until_ns = min(channel->left_ns + LEASE_NS, due_locked(channel));
	return ktime_get_ns() < until_ns ? until_ns : 0;
}

bool dmp_executor_is_leased_locked(struct dmp_kernel_channel *channel)
{
	lockdep_assert_held(&channel->lock);
	return leased_until_locked(channel) != 0;
}

/*
 * A caller has the place, wants it, or has left it just now and may come back. He need not wake us
 * each time he goes: that would cost him more than we do, looking after him by the clock.
 */
static bool attend_locked(struct dmp_kernel_channel *channel)
{
	u64 left_ns = channel->left_ns, until_ns;

	lockdep_assert_held(&channel->lock);
	if (!dmp_executor_gives_way_locked(channel))
		return false;
	if (channel->executing || channel->spinners != 0) {
		sleep_locked(channel, ktime_get_ns() + LEASE_NS, false);
		if (channel->executing && channel->left_ns == left_ns)
			sleep_locked(channel, U64_MAX, false);
		return true;
	}
	until_ns = leased_until_locked(channel);
	if (until_ns == 0)
		return false;
	sleep_locked(channel, until_ns, false);
	return true;
}

/* Sleeps until there is something to look at. The lock is given up, and held again. */
void dmp_executor_rest_locked(struct dmp_kernel_channel *channel)
{
	lockdep_assert_held(&channel->lock);
	if (attend_locked(channel))
		return;
	if (channel->spin_us != 0) {
		bool shared = dmp_executor_gives_way_locked(channel);
		u64 due_ns = due_locked(channel);

		if (shared && !dmp_network_settle_locked(channel))
			return;
		mutex_unlock(&channel->lock);
		dmp_released();
		dmp_channel_spin(channel, shared ? has_news : has_work, 1, due_ns);
		mutex_lock(&channel->lock);
	}
	/* Who executes instead of us sees to this himself when he leaves, and to our timer. */
	if (DMP_KERNEL_RDMA && channel->network && !channel->executing &&
	    !dmp_network_settle_locked(channel))
		return;
	sleep_locked(channel, due_locked(channel), !channel->executing);
}

bool dmp_executor_can_help_locked(const struct dmp_kernel_channel *channel)
{
	lockdep_assert_held(&channel->lock);
	if (channel->executing)
		return false;
	if (dmp_executor_gives_way_locked(channel))
		return true;
	/* One that is told to spin is as soon there as we. */
	return channel->machine.queued != 0 && channel->cpu < 0 && channel->node < 0 &&
	       channel->workers == 1 && channel->spin_us == 0;
}

/* @queued: as many that cannot start yet. */
static bool caller_has_work(struct dmp_kernel_channel *channel, u32 queued)
{
	return READ_ONCE(channel->machine.queued) != queued || READ_ONCE(channel->closing) ||
	       stirs(channel);
}

/*
 * Spins in the place; false: not any longer. The others on this CPU may do what is waited for, and
 * a wake-up alone does not always bring them here before the next tick; so they are let in
 * front, as the embedded plane's spinner does. Nobody gets in front of a real-time task so.
 */
static bool spin_in_place(struct dmp_kernel_channel *channel, u32 queued, u64 until_ns)
{
	while (!caller_has_work(channel, queued) && !signal_pending(current) &&
	       ktime_get_ns() < until_ns) {
		bool alone = single_task_running();

		if (!alone && rt_task(current))
			return false;
		if (!alone)
			yield();
		cond_resched();
		cpu_relax();
	}
	return true;
}

/* Is the next operation one that a caller may carry out in the worker's place? */
static bool is_short_locked(const struct dmp_kernel_channel *channel)
{
	const struct dmp_channel *machine = &channel->machine;

	lockdep_assert_held(&channel->lock);
	return dmp_channel_next_bytes(machine) <= DMP_BATCH_BYTES ||
	       machine->operations[machine->queue_first].handed_on;
}

/* May the caller go on, who wants so many completions, or none and no more than to begin? */
static bool goes_on_locked(struct dmp_kernel_channel *channel, u32 wanted, u32 rounds)
{
	struct dmp_channel *machine = &channel->machine;
	u32 unread;

	lockdep_assert_held(&channel->lock);
	if (signal_pending(current) || channel->closing || !is_short_locked(channel) ||
	    (channel->network && channel->network->ending))
		return false;
	if (wanted == 0)
		return rounds < BRIEF_ROUNDS;
	return dmp_channel_unread(machine, &unread) == 0 && unread + machine->written < wanted;
}

/*
 * In the executor's place until enough is unread, the time is over, or it is not for a caller.
 * False: he goes because of the time, and leaves something to do or to wait for.
 */
static bool execute_locked(struct dmp_kernel_channel *channel, u32 wanted, u64 deadline_ns)
{
	u64 spun_ns = ktime_get_ns() + (u64)channel->spin_us * NSEC_PER_USEC, now_ns = 0;
	u32 rounds, queued;
	bool on = true;

	lockdep_assert_held(&channel->lock);
	for (rounds = 0; on && goes_on_locked(channel, wanted, rounds); rounds++) {
		u64 until_ns = spun_ns;

		if (deadline_ns != 0)
			until_ns = min(until_ns, deadline_ns);
		if (dmp_executor_round_locked(channel)) {
			cond_resched();
			now_ns = ktime_get_ns();
			on = deadline_ns == 0 || now_ns < deadline_ns;
			continue;
		}
		if (wanted == 0)
			return true;
		if (channel->spin_us == 0 || !goes_on_locked(channel, wanted, rounds))
			break;
		until_ns = min(until_ns, due_locked(channel));
		queued = channel->machine.queued;
		mutex_unlock(&channel->lock);
		dmp_released();
		on = spin_in_place(channel, queued, until_ns);
		mutex_lock(&channel->lock);
		now_ns = ktime_get_ns();
		on = on && now_ns < spun_ns && (deadline_ns == 0 || now_ns < deadline_ns);
	}
	return wanted != 0 && on && !goes_on_locked(channel, wanted, 0);
}

/* Is there nobody who waits for what may come but the caller who goes, and comes back? */
static bool may_come_back_locked(struct dmp_kernel_channel *channel)
{
	lockdep_assert_held(&channel->lock);
	if (!dmp_executor_gives_way_locked(channel) || channel->machine.queued != 0 ||
	    channel->network->pressing != 0 || channel->closing ||
	    channel->waiters + channel->waiters_any > channel->spinners)
		return false;
	/* An event loop arms it when it has looked at everything, and does not wait here. */
	if (channel->told_by_event ||
	    (channel->eventfd && READ_ONCE(channel->control->event_armed) != 0))
		return false;
	/* Who begins to poll only now is heard when the lease is over. */
	return !waitqueue_active(&channel->plane->poll_wait);
}

/*
 * The place is the worker's again. True: it has to be woken. A caller who may come back has a
 * lease: his pairs go on without ringing, and what he has to say to peers waits for company.
 */
static bool leave_locked(struct dmp_kernel_channel *channel, bool leased)
{
	u64 now_ns = ktime_get_ns(), until_ns;
	bool stirs = false, kick;

	lockdep_assert_held(&channel->lock);
	/* Pairs that were asked until now ring from here on. */
	if (DMP_KERNEL_RDMA && channel->network && !leased)
		stirs = !dmp_network_settle_locked(channel);
	until_ns = due_locked(channel);
	if (leased)
		until_ns = min(until_ns, now_ns + LEASE_NS);
	channel->executing = false;
	/* The timers of what we started or took are the worker's, who sleeps for older ones. */
	kick = (channel->machine.queued != 0 || stirs || until_ns < channel->worker_until_ns) &&
	       dmp_channel_claim_locked(channel);
	channel->left_ns = leased ? now_ns : 0;
	return kick;
}

void dmp_executor_help_locked(struct dmp_kernel_channel *channel, u32 wanted, u64 deadline_ns)
{
	bool content, wake, kick;

	lockdep_assert_held(&channel->lock);
	if (wanted != 0)
		channel->told_by_event = false;
	channel->executing = true;
	content = execute_locked(channel, wanted, deadline_ns);
	wake = dmp_channel_tell_locked(channel);
	kick = leave_locked(channel, content && may_come_back_locked(channel));
	/* What was told let go of its buffers, and the caller may now sleep for long. */
	dmp_released();
	dmp_channel_rouse_locked(channel, wake, kick);
}

