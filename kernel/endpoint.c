// SPDX-License-Identifier: GPL-2.0
/*
 * endpoint.c - the life of an endpoint once it is connected: asked, destroyed
 *
 * Others than the executor never touch the pair but by what any thread may call: they mark what
 * they want under channel->lock, kick, and wait until the executor has seen it. A channel that
 * is destroyed ends its endpoints; what is left of one then is a name that says so.
 */
#include <linux/ktime.h>
#include <linux/slab.h>

#include "endpoint_kernel.h"
#include "lifetime.h"
#include "network.h"
#include "trace.h"

static struct dmp_kernel_endpoint *find_locked(struct dmp_plane *plane, u32 id)
{
	struct dmp_object *object = dmp_plane_find_locked(plane, id, DMP_OBJECT_ENDPOINT);

	lockdep_assert_held(&plane->lock);
	return object ? dmp_endpoint_of(object) : NULL;
}

/* The endpoint and its channel, entered; the latter is NULL if that has gone. */
struct dmp_kernel_channel *dmp_endpoint_enter_locked(struct dmp_plane *plane,
						     struct dmp_kernel_endpoint *endpoint)
{
	struct dmp_kernel_channel *channel = endpoint->orphaned ? NULL : endpoint->channel;

	lockdep_assert_held(&plane->lock);
	atomic_inc(&endpoint->users);
	if (channel)
		atomic_inc(&channel->users);
	return channel;
}

void dmp_endpoint_leave(struct dmp_kernel_endpoint *endpoint, struct dmp_kernel_channel *channel)
{
	/* Release: what the call did happens before destroy sees that it left. */
	(void)atomic_dec_return_release(&endpoint->users);
	if (channel)
		dmp_channel_put(channel);
	else
		dmp_released();
}

void dmp_endpoint_kick_locked(struct dmp_kernel_endpoint *endpoint)
{
	struct dmp_kernel_channel *channel = endpoint->channel;

	lockdep_assert_held(&channel->lock);
	dmp_network_mark_locked(channel, endpoint);
	if (dmp_channel_claim_locked(channel))
		dmp_channel_kick(channel);
}

void dmp_endpoint_give_up_locked(struct dmp_kernel_endpoint *endpoint)
{
	lockdep_assert_held(&endpoint->channel->lock);
	endpoint->given_up = true;
	dmp_endpoint_kick_locked(endpoint);
}

/* Of one in any state: its channel's lock, where there is a channel. */
static struct dmp_kernel_endpoint *enter_and_lock(struct dmp_plane *plane, u32 id,
						  struct dmp_kernel_channel **channel)
{
	struct dmp_kernel_endpoint *endpoint;

	down_read(&plane->lock);
	endpoint = find_locked(plane, id);
	if (endpoint)
		*channel = dmp_endpoint_enter_locked(plane, endpoint);
	up_read(&plane->lock);
	if (endpoint && *channel)
		mutex_lock(&(*channel)->lock);
	return endpoint;
}

static void unlock_and_leave(struct dmp_kernel_endpoint *endpoint,
			     struct dmp_kernel_channel *channel)
{
	if (channel)
		mutex_unlock(&channel->lock);
	dmp_endpoint_leave(endpoint, channel);
}

/* ---- asked */

static void describe(const struct dmp_kernel_endpoint *endpoint, struct dmp_endpoint_query *query)
{
	struct dmp_endpoint_status status;

	dmp_endpoint_query(endpoint->machine, &status);
	query->peer_incarnation = status.peer_incarnation;
	query->send_slots = status.send.available.slots;
	query->send_slots_in_flight = status.send.in_flight.slots;
	query->send_bytes = status.send.available.bytes;
	query->send_bytes_in_flight = status.send.in_flight.bytes;
	query->granted_slots = status.receive.granted.slots;
	query->granted_bytes = status.receive.granted.bytes;
	query->stalls = status.stalls;
	query->stall_ns = status.stall_ns;
	if (dmp_endpoint_state(endpoint->machine) > DMP_ENDPOINT_DRAINED)
		query->state = DMP_STATE_DEAD;
}

int dmp_endpoint_query_command(struct dmp_plane *plane, void *argument)
{
	struct dmp_endpoint_query *query = argument;
	struct dmp_kernel_channel *channel = NULL;
	struct dmp_kernel_endpoint *endpoint;

	endpoint = enter_and_lock(plane, query->endpoint_id, &channel);
	if (!endpoint)
		return -ENOENT;
	query->state = READ_ONCE(endpoint->object.state);
	query->path = DMP_PATH_VERBS;
	query->epoch = endpoint->epoch;
	query->operations = atomic_read(&endpoint->operations);
	query->regions = READ_ONCE(endpoint->remotes);
	memcpy(query->peer_address, endpoint->peer_address, sizeof(query->peer_address));
	describe(endpoint, query);
	unlock_and_leave(endpoint, channel);
	return 0;
}

int dmp_endpoint_statistics(struct dmp_plane *plane, struct dmp_statistics *statistics)
{
	struct dmp_kernel_channel *channel = NULL;
	const struct dmp_channel_counters *counters;
	struct dmp_kernel_endpoint *endpoint;
	struct dmp_endpoint_status status;

	endpoint = enter_and_lock(plane, statistics->id, &channel);
	if (!endpoint)
		return -ENOENT;
	dmp_endpoint_query(endpoint->machine, &status);
	counters = &endpoint->counters;
	statistics->submissions = counters->submissions;
	statistics->completions = counters->completions;
	statistics->errors = counters->errors;
	statistics->cancelled = counters->cancelled;
	statistics->timeouts = counters->timeouts;
	statistics->bytes = counters->bytes;
	statistics->checksum_bytes = counters->checksum_bytes;
	statistics->events = counters->events;
	statistics->stalls = status.stalls;
	statistics->stall_ns = status.stall_ns;
	statistics->regions = READ_ONCE(endpoint->remotes);
	unlock_and_leave(endpoint, channel);
	return 0;
}

int dmp_endpoint_histogram(struct dmp_plane *plane, struct dmp_histogram *histogram)
{
	struct dmp_kernel_channel *channel = NULL;
	const struct dmp_histogram_counts *counts;
	struct dmp_kernel_endpoint *endpoint;

	endpoint = enter_and_lock(plane, histogram->id, &channel);
	if (!endpoint)
		return -ENOENT;
	counts = histogram->kind == DMP_HISTOGRAM_STALL ? endpoint->stall : endpoint->latency;
	histogram->samples = counts->samples;
	histogram->sum = counts->sum;
	histogram->maximum = counts->maximum;
	memcpy(histogram->counts, &counts->counts[histogram->bucket_first],
	       sizeof(histogram->counts));
	unlock_and_leave(endpoint, channel);
	return 0;
}

/* ---- what others' pairs have of ours */

/* Without the channel's lock, where the channel may be gone. */
static bool is_being_cut(const struct dmp_kernel_endpoint *endpoint)
{
	bool there = READ_ONCE(endpoint->pair);

	smp_rmb();	/* pairs with smp_wmb() where the pair is taken away */
	return there || READ_ONCE(endpoint->cutting);
}

bool dmp_endpoint_is_reaching_locked(struct dmp_plane *plane, const struct dmp_region *region)
{
	struct dmp_object *object;
	bool reaching = false;
	unsigned long id;

	lockdep_assert_held(&plane->lock);
	xa_for_each_marked(&plane->objects, id, object, DMP_MARK_ENDPOINT) {
		struct dmp_kernel_endpoint *endpoint = dmp_endpoint_of(object);
		struct dmp_kernel_channel *channel = endpoint->channel;

		/* Its channel is taking it apart, or has; then dmp_released() follows. */
		if (endpoint->orphaned) {
			reaching |= is_being_cut(endpoint);
			continue;
		}
		/* All of them, even if one does: each is told at once. */
		mutex_lock(&channel->lock);
		reaching |= endpoint->cutting;
		if (endpoint->pair) {
			dmp_pair_revoke(endpoint->pair, region->key.slot);
			reaching |= dmp_pair_is_registered(endpoint->pair, region->key.slot);
		}
		mutex_unlock(&channel->lock);
	}
	return reaching;
}

void dmp_endpoint_forget_memory_locked(struct dmp_plane *plane, const struct dmp_memory *memory)
{
	struct dmp_object *object;
	unsigned long id;

	lockdep_assert_held(&plane->lock);
	xa_for_each_marked(&plane->objects, id, object, DMP_MARK_ENDPOINT) {
		struct dmp_kernel_endpoint *endpoint = dmp_endpoint_of(object);

		if (endpoint->orphaned)
			continue;
		mutex_lock(&endpoint->channel->lock);
		if (endpoint->pair)
			dmp_pair_forget(endpoint->pair, memory);
		mutex_unlock(&endpoint->channel->lock);
	}
}

/* ---- destroyed */

static bool has_ended(struct dmp_kernel_channel *channel, const void *context)
{
	const struct dmp_kernel_endpoint *endpoint = context;

	return endpoint->ended && !endpoint->attached;
}

/* All but RECVs, which may wait for ever: in the ring, in a lane, with the machine. */
static bool has_finished(struct dmp_kernel_channel *channel, const void *context)
{
	const struct dmp_kernel_endpoint *endpoint = context;

	return atomic_read(&endpoint->operations) == atomic_read(&endpoint->receives) ||
	       !endpoint->pair;
}

/* Says goodbye and lets the executor take it apart. */
static int end_locked(struct dmp_kernel_channel *channel, struct dmp_kernel_endpoint *endpoint,
		      bool drain, u64 deadline_ns)
{
	int error = 0;

	lockdep_assert_held(&channel->lock);
	if (drain) {
		error = dmp_channel_wait_locked(channel, has_finished, endpoint, deadline_ns,
						TASK_INTERRUPTIBLE);
		if (error)
			return error;
		dmp_endpoint_drain(endpoint->machine,
				   dmp_endpoint_time(endpoint, ktime_get_ns()), 0);
	}
	endpoint->drop = true;
	dmp_endpoint_goodbye(endpoint->machine, dmp_endpoint_time(endpoint, ktime_get_ns()));
	dmp_endpoint_kick_locked(endpoint);
	/* What was sent goes first: the machine waits detect_ns for it, who is killed does not. */
	if (!dmp_channel_wait_locked(channel, has_ended, endpoint, 0, TASK_KILLABLE))
		return 0;
	dmp_endpoint_give_up_locked(endpoint);
	return dmp_channel_wait_locked(channel, has_ended, endpoint, 0, TASK_UNINTERRUPTIBLE);
}

static bool is_held_locked(const struct dmp_kernel_endpoint *endpoint)
{
	bool held = endpoint->remotes != 0 || atomic_read(&endpoint->operations) != 0;

	lockdep_assert_held(&endpoint->plane->lock);
	/* Pairs with the release of those who let go: what they did has happened. */
	smp_rmb();
	return held;
}

/* Waits until regions and operations have gone. The lock is given up; we are inside it. */
static int wait_unheld_locked(struct dmp_kernel_endpoint *endpoint, u64 deadline_ns)
{
	DEFINE_WAIT_FUNC(wait, woken_wake_function);
	ktime_t deadline = dmp_deadline_time(deadline_ns);
	struct dmp_plane *plane = endpoint->plane;
	int error = 0;

	lockdep_assert_held_write(&plane->lock);
	add_wait_queue(&dmp_released_wait, &wait);
	/* Pairs with dmp_released(). */
	smp_mb();
	while (is_held_locked(endpoint) && !error) {
		up_write(&plane->lock);
		error = dmp_sleep_until(&wait, deadline);
		down_write(&plane->lock);
	}
	remove_wait_queue(&dmp_released_wait, &wait);
	return is_held_locked(endpoint) ? error : 0;
}

static bool is_detached(const struct dmp_kernel_endpoint *endpoint)
{
	/* Pairs with detach_locked(). */
	return !smp_load_acquire(&endpoint->attached);
}

/* Its channel goes, without us in it: the executor takes the endpoint apart, and lets go last. */
static int wait_detached(const struct dmp_kernel_endpoint *endpoint)
{
	return wait_event_killable(dmp_released_wait, is_detached(endpoint)) ? -EINTR : 0;
}

/* Refuses new use and enters; -EBUSY and unchanged if it is held and is not to drain. */
static int close_for_use(struct dmp_plane *plane, u32 id, bool drain,
			 struct dmp_kernel_endpoint **found, struct dmp_kernel_channel **channel)
{
	struct dmp_kernel_endpoint *endpoint;
	int error = 0;

	down_write(&plane->lock);
	endpoint = find_locked(plane, id);
	if (!endpoint) {
		error = -ENOENT;
	} else if (!drain && is_held_locked(endpoint)) {
		error = -EBUSY;
	} else {
		*channel = dmp_endpoint_enter_locked(plane, endpoint);
		if (endpoint->object.state == DMP_STATE_LIVE)
			dmp_lifetime_move(&endpoint->object.state, DMP_STATE_DRAINING);
		*found = endpoint;
	}
	up_write(&plane->lock);
	return error;
}

int dmp_endpoint_destroy_command(struct dmp_plane *plane, void *argument)
{
	struct dmp_destroy *destroy = argument;
	bool drain = destroy->flags & DMP_DESTROY_DRAIN;
	struct dmp_kernel_channel *channel = NULL;
	struct dmp_kernel_endpoint *endpoint;
	int error;

	if (!drain && destroy->deadline_ns != 0)
		return -EINVAL;
	error = close_for_use(plane, destroy->id, drain, &endpoint, &channel);
	if (error)
		return error;
	if (channel) {
		mutex_lock(&channel->lock);
		error = end_locked(channel, endpoint, drain, destroy->deadline_ns);
		mutex_unlock(&channel->lock);
	} else {
		error = wait_detached(endpoint);
	}
	down_write(&plane->lock);
	if (!error)
		error = wait_unheld_locked(endpoint, destroy->deadline_ns);
	if (!error && endpoint->object.state == DMP_STATE_DEAD)
		error = -ENOENT;	/* another destroyer was first */
	if (!error) {
		dmp_lifetime_move(&endpoint->object.state, DMP_STATE_DEAD);
		dmp_plane_remove_locked(plane, &endpoint->object);
		plane->endpoints--;
	}
	up_write(&plane->lock);
	if (error) {
		dmp_endpoint_leave(endpoint, channel);
		return error;
	}
	if (channel)
		dmp_channel_put(channel);
	/* Only we are inside: nobody can come in. */
	wait_event(dmp_released_wait, atomic_read_acquire(&endpoint->users) == 1);
	dmp_endpoint_free(endpoint);
	return 0;
}

void dmp_endpoint_forget_channel_locked(struct dmp_plane *plane,
					const struct dmp_kernel_channel *channel)
{
	struct dmp_object *object;
	unsigned long id;

	lockdep_assert_held_write(&plane->lock);
	xa_for_each_marked(&plane->objects, id, object, DMP_MARK_ENDPOINT)
		if (dmp_endpoint_of(object)->channel == channel)
			dmp_endpoint_of(object)->orphaned = true;
}

void dmp_endpoint_free(struct dmp_kernel_endpoint *endpoint)
{
	trace_dmp_endpoint_destroy(endpoint, 0);
	dmp_traffic_free(endpoint);
	if (endpoint->ask.state == DMP_ASK_DONE && !endpoint->ask.result)
		dmp_pair_remote_free(&endpoint->ask.remote);
	kvfree(endpoint->machine_memory);
	dmp_uncharge(endpoint->charged_bytes);
	kvfree_sensitive(endpoint, sizeof(*endpoint));
}
