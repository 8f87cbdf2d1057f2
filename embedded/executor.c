// SPDX-License-Identifier: MIT
/*
 * executor.c - who has the executor's place: the worker, or a caller who waits anyway
 *
 * A caller takes the place while the worker sleeps and the work is short: two wake-ups less
 * for a small operation. On a channel with endpoints the executor also drives those
 * (network.h), and sleeps there. When a caller leaves, the worker gives him LEASE_NS to
 * come back before it watches the network itself, unless somebody else waits for what may
 * come; and a worker with nothing to do offers its place to a caller who waits. So a
 * thread that sends and waits in turn costs no hand-over. An event loop never waits here: it
 * arms the eventfd when it has looked at everything, and has no lease.
 */
#define _GNU_SOURCE
#include <errno.h>

#include "network.h"

#define LEASE_NS 1000000u	/* for a caller who had the place and may come back */
#define BRIEF_ROUNDS 8u

/* Racy on purpose: what it finds is looked at again under the lock. */
static bool stirs(const void *context)
{
	const struct dmp_embedded_channel *channel = context;
	struct dmp_network *network = channel->network;
	/* Pairs with the store in activate(): as many are filled in. */
	uint32_t count = __atomic_load_n(&network->active_count, __ATOMIC_ACQUIRE), number;

	for (number = 0; number < count; number++) {
		struct dmp_fabric *fabric = network->active[number]->fabric;

		if (fabric && fabric->type->ready(fabric))
			return true;
	}
	return __atomic_load_n(&channel->news, __ATOMIC_RELAXED);
}

/* Spins for what is to come. True: it has. */
static bool spin_locked(struct dmp_embedded_channel *channel, uint64_t deadline_ns)
{
	struct dmp_network *network = channel->network;
	bool stirred;

	if (network->active_count != network->count)
		return dmp_network_poll_locked(channel, channel->network_spin.budget_ns, deadline_ns);
	if (network->count == 0)
		return false;
	pthread_mutex_unlock(&channel->lock);
	stirred = dmp_spin_briefly(&channel->network_spin, stirs, channel, deadline_ns);
	pthread_mutex_lock(&channel->lock);
	return stirred;
}

/*
 * Nobody can take the place meanwhile, so not for long, whatever was asked for callers; who
 * brings work says so, and that ends it.
 */
static bool spin_as_worker_locked(struct dmp_embedded_channel *channel)
{
	bool stirred;

	channel->executing = true;
	stirred = spin_locked(channel,
			      dmp_network_due_locked(channel, dmp_now_ns() + DMP_SPIN_MAX_NS));
	if (stirred)
		dmp_spin_caught(&channel->network_spin);
	channel->executing = false;
	return stirred;
}

/*
 * Has the place in the network for as long as nobody takes it away. Where what came last came
 * soon it spins first: a peer who writes much would pay for each time we fall asleep.
 */
static void watch_locked(struct dmp_embedded_channel *channel)
{
	uint32_t waiters = channel->waiters;
	uint64_t began_ns;

	/* Who has come to wait meanwhile is offered the place instead. */
	if (spin_as_worker_locked(channel) || channel->waiters > waiters)
		return;
	channel->executing = true;
	channel->worker_watches = true;
	channel->worker_in_network = true;
	began_ns = dmp_now_ns();
	dmp_network_rest_locked(channel, 0);
	channel->worker_in_network = false;
	if (!channel->worker_watches) {
		/* A caller has it now; what woke us may have been meant for him. */
		if (channel->network->dirty_first)
			dmp_channel_claim_wake_locked(channel);
		return;
	}
	dmp_spin_slept(&channel->network_spin, dmp_now_ns() - began_ns);
	channel->worker_watches = false;
	channel->watching = false;
	channel->executing = false;
}

/*
 * Somebody waits for completions, asleep: he may as well have the place, so that what he
 * waits for wakes him and nobody else. If he does not come, it is not offered again.
 */
static bool offers_place_locked(struct dmp_embedded_channel *channel)
{
	if (channel->waiters == 0 || channel->place_offered || channel->cpu >= 0 ||
	    channel->node >= 0 || channel->workers != 1)
		return false;
	__atomic_store_n(&channel->place_offered, true, __ATOMIC_RELAXED);
	__atomic_add_fetch(&channel->done_sequence, 1, __ATOMIC_RELEASE);
	dmp_futex_wake_all(&channel->done_sequence);
	return true;
}

/* Sleeps as one who is not needed, until @until_ns or, parked, until somebody says so. */
static void step_aside_locked(struct dmp_embedded_channel *channel, uint64_t until_ns)
{
	uint32_t seen = __atomic_load_n(&channel->work_sequence, __ATOMIC_RELAXED);

	channel->worker_sleeps = true;
	channel->worker_parked = until_ns == 0;
	pthread_mutex_unlock(&channel->lock);
	dmp_futex_wait(&channel->work_sequence, seen, until_ns);
	pthread_mutex_lock(&channel->lock);
	channel->worker_parked = false;
	channel->worker_sleeps = false;
	channel->worker_wakes = false;
}

/* A caller has the place. Who comes and goes need not wake us each time: it would cost him more. */
static void attend_locked(struct dmp_embedded_channel *channel)
{
	uint64_t left_ns = channel->left_ns;

	step_aside_locked(channel, dmp_now_ns() + LEASE_NS);
	if (channel->executing && channel->left_ns == left_ns)
		step_aside_locked(channel, 0);
}

void dmp_executor_rest_locked(struct dmp_embedded_channel *channel)
{
	for (;;) {
		uint64_t now_ns, until_ns;

		if (channel->executing) {
			attend_locked(channel);
			continue;
		}
		if (channel->news)
			return;
		now_ns = dmp_now_ns();
		until_ns = dmp_network_due_locked(channel, channel->left_ns + LEASE_NS);
		if (offers_place_locked(channel)) {
			until_ns = now_ns + LEASE_NS;
		} else if (now_ns >= until_ns || channel->waiters_any != 0 ||
			   channel->handed_over || channel->told_by_event) {
			channel->handed_over = false;
			channel->place_offered = false;
			watch_locked(channel);
			return;
		}
		step_aside_locked(channel, until_ns);
	}
}

bool dmp_worker_can_help_locked(const struct dmp_embedded_channel *channel)
{
	if (channel->cpu >= 0 || channel->node >= 0 || channel->workers != 1)
		return false;
	if (channel->worker_watches && channel->watching)
		return true;
	if (channel->executing)
		return false;
	if (channel->network)
		return true;
	/* One that is awake, but on our CPU, could only begin once we give it up. */
	return channel->worker_sleeps || channel->worker_wakes ||
	       dmp_spin_is_here(&channel->worker_spin);
}

/* Is the next operation one that a caller may carry out in the worker's place? */
static bool is_short_locked(const struct dmp_embedded_channel *channel)
{
	const struct dmp_channel *machine = &channel->machine;

	return dmp_channel_next_bytes(machine) <= DMP_BATCH_BYTES ||
	       channel->holds[machine->queue_first].endpoint;
}

/* Nothing to do, and more completions are wanted: spins, then sleeps in the network. */
static int await_locked(struct dmp_embedded_channel *channel, uint64_t deadline_ns)
{
	uint64_t due_ns = dmp_network_due_locked(channel, deadline_ns), began_ns, rest_until_ns;
	int error;

	if (spin_locked(channel, due_ns)) {
		dmp_spin_caught(&channel->network_spin);
		return 0;
	}
	began_ns = dmp_now_ns();
	if (due_ns != 0 && began_ns >= due_ns)
		return 0;
	/* A worker that sleeps in the network does so until its own time, not until ours. */
	rest_until_ns = channel->network->rest_until_ns;
	error = dmp_network_rest_locked(channel, deadline_ns);
	channel->network->rest_until_ns = rest_until_ns;
	channel->watching = false;
	if (!error)
		dmp_spin_slept(&channel->network_spin, dmp_now_ns() - began_ns);
	return error;
}

/*
 * The caller does not wait: he executes as long as there is something to do at once, but
 * not long, so that a small transfer is on its way without a second thread.
 */
static void execute_briefly_locked(struct dmp_embedded_channel *channel)
{
	unsigned int rounds;
	bool woke;

	for (rounds = 0; rounds < BRIEF_ROUNDS && is_short_locked(channel); rounds++)
		if (dmp_executor_round_locked(channel, &woke) == 0 && !woke)
			break;
}

/* The caller executes until enough is unread, or what is left is not for him. */
static int execute_locked(struct dmp_embedded_channel *channel, uint32_t wanted,
			  uint64_t deadline_ns)
{
	uint32_t unread = 0;
	bool woke;
	int error = 0;

	while (dmp_channel_unread(&channel->machine, &unread) == 0 && unread < wanted &&
	       is_short_locked(channel) && !channel->closing && !error &&
	       (deadline_ns == 0 || dmp_now_ns() < deadline_ns)) {
		if (dmp_executor_round_locked(channel, &woke) != 0 || woke)
			continue;
		if (!channel->network)
			break;
		if (dmp_channel_unread(&channel->machine, &unread) != 0 || unread >= wanted)
			break;
		error = await_locked(channel, deadline_ns);
	}
	return error;
}

/* Who leaves the place sees to it that somebody looks at what is left, or may still come. */
static bool must_hand_over_locked(struct dmp_embedded_channel *channel)
{
	if (channel->machine.queued != 0 || channel->stop) {
		channel->handed_over = channel->network;
		return true;
	}
	if (!channel->network)
		return false;
	channel->handed_over = channel->network->pressing != 0 || channel->network->ending ||
			       channel->waiters_any != 0 ||
			       (channel->told_by_event && !channel->worker_in_network) ||
			       (channel->eventfd >= 0 &&
				__atomic_load_n(&channel->control->event_armed, __ATOMIC_RELAXED)) ||
			       __atomic_load_n(&channel->plane->poll_waiters, __ATOMIC_RELAXED);
	/* Who waits is offered the place. */
	return channel->handed_over || channel->waiters != 0;
}

/* Would a caller who wants so many find nothing to do in the place? */
static bool is_idle_locked(const struct dmp_embedded_channel *channel, uint32_t wanted)
{
	uint32_t unread;

	if (channel->machine.queued != 0)
		return false;
	/* Who has what he wants must not have a lease for it: it keeps the worker out. */
	return !channel->network ||
	       (wanted != 0 && dmp_channel_unread(&channel->machine, &unread) == 0 &&
		unread >= wanted);
}

int dmp_worker_help(struct dmp_embedded_channel *channel, uint32_t wanted, uint64_t deadline_ns,
		    bool promised)
{
	bool woke, wake = false, left, unpark;
	uint64_t due_ns;
	int error = 0;

	pthread_mutex_lock(&channel->lock);
	if (wanted != 0)
		channel->told_by_event = false;
	if (is_idle_locked(channel, wanted) || !dmp_worker_can_help_locked(channel)) {
		wake = promised && dmp_channel_claim_wake_locked(channel);
		pthread_mutex_unlock(&channel->lock);
		if (promised)
			dmp_channel_kick(channel, wake);
		return 0;
	}
	channel->executing = true;
	channel->worker_watches = false;
	channel->watching = false;
	channel->place_offered = false;
	if (wanted != 0)
		error = execute_locked(channel, wanted, deadline_ns);
	/*
	 * What was submitted is started. Answers to the peer wait for company, up to a lease: who
	 * got a message mostly sends one.
	 */
	if (channel->network && (wanted == 0 || channel->machine.queued != 0))
		execute_briefly_locked(channel);
	woke = dmp_channel_tell_locked(channel);
	channel->executing = false;
	if (channel->network)
		channel->left_ns = dmp_now_ns();
	left = must_hand_over_locked(channel);
	if (channel->worker_in_network) {
		/* It sleeps there all the same: it has its place back. */
		channel->executing = true;
		channel->worker_watches = true;
		channel->watching = true;
		/* Fabrics that we kept awake have to ring from here on. */
		due_ns = dmp_network_due_locked(channel, channel->network->rest_until_ns);
		left = dmp_network_settle_locked(channel) || left ||
		       due_ns < channel->network->rest_until_ns;
	}
	/* One that is parked has no time of its own: from here on it has a lease's. */
	unpark = channel->worker_parked && !left;
	if (left)
		wake = dmp_channel_claim_wake_locked(channel);
	pthread_mutex_unlock(&channel->lock);
	if (woke)
		dmp_futex_wake_all(&channel->done_sequence);
	/* Even if it does not sleep: it may spin, and would do so to the end of its budget. */
	if (left || unpark)
		dmp_channel_kick(channel, wake || unpark);
	dmp_plane_released(channel->plane);
	return error;
}
