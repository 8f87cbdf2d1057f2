// SPDX-License-Identifier: MIT
/*
 * endpoint.c - the life of an endpoint once it is connected: asked, given peers' regions,
 * destroyed
 *
 * Others than the executor never touch the machine's fabric: they mark what they want
 * under channel->lock, ring, and wait until the executor has seen it. A channel that is
 * destroyed ends its endpoints; what is left of one then is a name that says so.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "endpoint_embedded.h"
#include "lifetime.h"
#include "network.h"
#include "shm.h"
#include "traffic.h"
#include "verbs.h"

/*
 * The endpoint and its channel, entered; *@channel is NULL if that has gone. One that goes is
 * waited for: until it has let go of the endpoint, or somebody has destroyed that, its worker
 * may have it in hand. plane->lock held, given up and held again.
 */
static int enter_locked(struct dmp_plane *plane, uint32_t id,
			struct dmp_embedded_endpoint **endpoint,
			struct dmp_embedded_channel **channel)
{
	struct dmp_object *object = dmp_table_find(&plane->table, id);

	if (!object || object->type != DMP_OBJECT_ENDPOINT)
		return -ENOENT;
	*endpoint = (struct dmp_embedded_endpoint *)object;
	__atomic_add_fetch(&(*endpoint)->users, 1, __ATOMIC_SEQ_CST);
	__atomic_add_fetch(&plane->drainers, 1, __ATOMIC_SEQ_CST);
	while ((*endpoint)->orphaned && (*endpoint)->channel && object->state != DMP_STATE_DEAD)
		dmp_plane_wait_released_locked(plane, 0);
	__atomic_sub_fetch(&plane->drainers, 1, __ATOMIC_SEQ_CST);
	*channel = (*endpoint)->orphaned ? NULL : (*endpoint)->channel;
	if (*channel)
		__atomic_add_fetch(&(*channel)->users, 1, __ATOMIC_SEQ_CST);
	return 0;
}

static void leave(struct dmp_plane *plane, struct dmp_embedded_endpoint *endpoint,
		  struct dmp_embedded_channel *channel)
{
	__atomic_sub_fetch(&endpoint->users, 1, __ATOMIC_SEQ_CST);
	if (channel)
		dmp_channel_put(channel);
	else
		dmp_plane_released(plane);
}

static void wake_executor_locked(struct dmp_embedded_channel *channel)
{
	dmp_channel_kick(channel, dmp_channel_claim_wake_locked(channel));
}

/* ---- asked */

static void describe(const struct dmp_embedded_endpoint *endpoint,
		     struct dmp_endpoint_query *query)
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
}

int dmp_endpoint_query_command(struct dmp_plane *plane, void *argument)
{
	struct dmp_endpoint_query *query = argument;
	struct dmp_embedded_endpoint *endpoint;
	struct dmp_embedded_channel *channel;
	bool lost = true;
	int error;

	pthread_mutex_lock(&plane->lock);
	error = enter_locked(plane, query->endpoint_id, &endpoint, &channel);
	if (error) {
		pthread_mutex_unlock(&plane->lock);
		return error;
	}
	query->state = endpoint->object.state;
	query->path = endpoint->path;
	query->epoch = endpoint->epoch;
	query->operations = __atomic_load_n(&endpoint->operations, __ATOMIC_ACQUIRE);
	query->regions = endpoint->remotes;
	memcpy(query->peer_address, endpoint->peer_address, sizeof(query->peer_address));
	pthread_mutex_unlock(&plane->lock);
	if (channel)
		pthread_mutex_lock(&channel->lock);
	describe(endpoint, query);
	lost = dmp_endpoint_state(endpoint->machine) > DMP_ENDPOINT_DRAINED;
	if (channel)
		pthread_mutex_unlock(&channel->lock);
	if (lost)
		query->state = DMP_STATE_DEAD;
	leave(plane, endpoint, channel);
	return 0;
}

int dmp_endpoint_statistics(struct dmp_plane *plane, struct dmp_statistics *statistics)
{
	struct dmp_embedded_endpoint *endpoint;
	struct dmp_embedded_channel *channel;
	struct dmp_endpoint_status status;
	int error;

	pthread_mutex_lock(&plane->lock);
	error = enter_locked(plane, statistics->id, &endpoint, &channel);
	pthread_mutex_unlock(&plane->lock);
	if (error)
		return error;
	memset((char *)statistics + 16, 0, sizeof(*statistics) - 16);
	if (channel)
		pthread_mutex_lock(&channel->lock);
	dmp_endpoint_query(endpoint->machine, &status);
	statistics->submissions = endpoint->counters.submissions;
	statistics->completions = endpoint->counters.completions;
	statistics->errors = endpoint->counters.errors;
	statistics->cancelled = endpoint->counters.cancelled;
	statistics->timeouts = endpoint->counters.timeouts;
	statistics->bytes = endpoint->counters.bytes;
	statistics->checksum_bytes = endpoint->counters.checksum_bytes;
	statistics->events = endpoint->counters.events;
	statistics->stalls = status.stalls;
	statistics->stall_ns = status.stall_ns;
	if (channel)
		pthread_mutex_unlock(&channel->lock);
	pthread_mutex_lock(&plane->lock);
	statistics->regions = endpoint->remotes;
	pthread_mutex_unlock(&plane->lock);
	leave(plane, endpoint, channel);
	return 0;
}

int dmp_endpoint_histogram(struct dmp_plane *plane, struct dmp_histogram *histogram)
{
	const struct dmp_histogram_counts *counts;
	struct dmp_embedded_endpoint *endpoint;
	struct dmp_embedded_channel *channel;
	int error;

	pthread_mutex_lock(&plane->lock);
	error = enter_locked(plane, histogram->id, &endpoint, &channel);
	pthread_mutex_unlock(&plane->lock);
	if (error)
		return error;
	counts = histogram->kind == DMP_HISTOGRAM_STALL ? endpoint->stall : endpoint->latency;
	if (channel)
		pthread_mutex_lock(&channel->lock);
	if (counts) {
		histogram->samples = counts->samples;
		histogram->sum = counts->sum;
		histogram->maximum = counts->maximum;
		memcpy(histogram->counts, &counts->counts[histogram->bucket_first],
		       sizeof(histogram->counts));
	}
	if (channel)
		pthread_mutex_unlock(&channel->lock);
	leave(plane, endpoint, channel);
	return 0;
}

/* ---- peers' regions */

struct asking {
	struct dmp_embedded_endpoint *endpoint;
	struct dmp_remote *remote;
	int result;
};

static bool may_ask(struct dmp_embedded_channel *channel, void *context)
{
	struct dmp_embedded_endpoint *endpoint = context;

	return !endpoint->importing || endpoint->ended || channel->closing;
}

static bool was_answered(struct dmp_embedded_channel *channel, void *context)
{
	struct asking *asking = context;
	struct dmp_embedded_endpoint *endpoint = asking->endpoint;

	/* It is asked once more after it was said; an answer is given once. */
	if (asking->result != -EAGAIN)
		return true;
	if (endpoint->ended || !endpoint->fabric || channel->closing) {
		asking->result = -ECONNRESET;
		return true;
	}
	asking->result = endpoint->path == DMP_PATH_SHM ?
				 dmp_shm_granted(endpoint->fabric, asking->remote) :
			 endpoint->path == DMP_PATH_VERBS ?
				 dmp_verbs_granted(endpoint->fabric, asking->remote) :
				 endpoint->probe_result > 0 ? -EAGAIN : endpoint->probe_result;
	return asking->result != -EAGAIN;
}

/*
 * A WRITE or READ of no bytes: the peer looks at the key and the right, and answers. The executor
 * hands it to the machine, ahead of the operations that wait in lanes.
 */
static void probe_locked(struct dmp_embedded_endpoint *endpoint, const struct dmp_remote *remote,
			 uint64_t deadline_ns)
{
	bool write = remote->access & DMP_ACCESS_REMOTE_WRITE;

	endpoint->probe = (struct dmp_endpoint_submission){
		.user_data = DMP_TRAFFIC_PROBE,
		.local = DMP_TRAFFIC_PROBE,
		.deadline_ns = deadline_ns,
		.operation = write ? DMP_OP_WRITE : DMP_OP_READ,
		.key_bytes = remote->key_bytes,
	};

	memcpy(endpoint->probe.key, remote->key, remote->key_bytes);
	endpoint->probe_result = 1;
	endpoint->probe_waits = true;
}

/* Proves that the peer grants what the key says (L9). channel->lock held. */
static int prove_locked(struct dmp_embedded_endpoint *endpoint, struct dmp_remote *remote)
{
	struct asking asking = { .endpoint = endpoint, .remote = remote, .result = -EAGAIN };
	struct dmp_embedded_channel *channel = endpoint->channel;
	uint64_t deadline_ns = dmp_now_ns() + 2 * endpoint->detect_ns;
	int error;

	error = dmp_channel_wait_locked(channel, may_ask, endpoint, deadline_ns, true);
	if (error)
		return error;
	if (endpoint->ended || !endpoint->fabric)
		return -ECONNRESET;
	endpoint->importing = true;
	if (endpoint->path == DMP_PATH_SHM)
		error = dmp_shm_ask(endpoint->fabric, remote->key, remote->key_bytes);
	else if (endpoint->path == DMP_PATH_VERBS)
		error = dmp_verbs_ask(endpoint->fabric, remote->key, remote->key_bytes);
	else
		probe_locked(endpoint, remote, deadline_ns);
	if (!error) {
		dmp_network_mark_locked(channel, endpoint);
		wake_executor_locked(channel);
		/* Answered or lost, before long: not interruptible, so that no answer is left over. */
		error = dmp_channel_wait_locked(channel, was_answered, &asking,
						deadline_ns + endpoint->detect_ns, false);
		if (!error)
			error = asking.result;
	}
	endpoint->probe_waits = false;
	endpoint->importing = false;
	dmp_channel_nudge_locked(channel);
	return error;
}

static int publish_remote(struct dmp_plane *plane, struct dmp_remote *remote)
{
	int error;

	remote->object.type = DMP_OBJECT_REMOTE;
	pthread_mutex_lock(&plane->lock);
	/* Proving took its time: who destroys the endpoint has counted its regions already. */
	error = dmp_lifetime_use(remote->endpoint->object.state);
	if (!error && plane->regions >= DMP_REGIONS_MAX)
		error = -ENOSPC;
	if (!error)
		error = dmp_table_insert(&plane->table, &remote->object);
	if (!error) {
		dmp_lifetime_move(&remote->object.state, DMP_STATE_LIVE);
		plane->regions++;
		remote->endpoint->remotes++;
		dmp_board_add(&plane->board->statistics.regions, 1);
	}
	pthread_mutex_unlock(&plane->lock);
	return error;
}

static int import(struct dmp_plane *plane, struct dmp_embedded_endpoint *endpoint,
		  struct dmp_embedded_channel *channel, struct dmp_remote *remote)
{
	int error;

	pthread_mutex_lock(&channel->lock);
	error = prove_locked(endpoint, remote);
	pthread_mutex_unlock(&channel->lock);
	if (!error && remote->address)
		error = dmp_shm_prove(remote);
	if (!error)
		error = publish_remote(plane, remote);
	return error;
}

int dmp_region_import_command(struct dmp_plane *plane, void *argument)
{
	struct dmp_region_import *import_request = argument;
	struct dmp_embedded_endpoint *endpoint;
	struct dmp_embedded_channel *channel;
	struct dmp_region_key key;
	struct dmp_remote *remote;
	int error = dmp_region_key_decode(import_request->key, import_request->key_bytes, &key);

	if (error)
		return error;
	remote = calloc(1, sizeof(*remote));
	if (!remote)
		return -ENOMEM;
	pthread_mutex_lock(&plane->lock);
	if (!dmp_plane_find_locked(plane, import_request->endpoint_id, DMP_OBJECT_ENDPOINT,
				   &error)) {
		pthread_mutex_unlock(&plane->lock);
		free(remote);
		return error;
	}
	error = enter_locked(plane, import_request->endpoint_id, &endpoint, &channel);
	pthread_mutex_unlock(&plane->lock);
	remote->endpoint = endpoint;
	remote->length = key.length;
	remote->access = key.access;
	remote->generation = key.generation;
	remote->slot = key.slot;
	remote->key_bytes = import_request->key_bytes;
	memcpy(remote->key, import_request->key, import_request->key_bytes);
	error = channel ? import(plane, endpoint, channel, remote) : -ECONNRESET;
	if (error) {
		dmp_remote_drop(remote);
	} else {
		import_request->region_id = remote->object.id;
		import_request->access = remote->access;
		import_request->length_bytes = remote->length;
	}
	leave(plane, endpoint, channel);
	return error;
}

void dmp_endpoint_forget_buffer_locked(struct dmp_plane *plane, const struct dmp_buffer *buffer)
{
	uint32_t slot;

	if (!__atomic_load_n(&buffer->registered, __ATOMIC_SEQ_CST))
		return;
	for (slot = 0; slot < plane->table.capacity; slot++) {
		struct dmp_embedded_endpoint *endpoint =
			(struct dmp_embedded_endpoint *)dmp_table_at(&plane->table, slot);

		if (!endpoint || endpoint->object.type != DMP_OBJECT_ENDPOINT ||
		    endpoint->path != DMP_PATH_VERBS || !endpoint->channel)
			continue;
		pthread_mutex_lock(&endpoint->channel->lock);
		if (endpoint->fabric)
			dmp_verbs_forget(endpoint->fabric, buffer->object.id);
		pthread_mutex_unlock(&endpoint->channel->lock);
	}
}

/* ---- destroyed */

static bool has_ended(struct dmp_embedded_channel *channel, void *context)
{
	struct dmp_embedded_endpoint *endpoint = context;

	(void)channel;
	return endpoint->ended && !endpoint->attached;
}

static uint32_t unfinished(const struct dmp_embedded_endpoint *endpoint)
{
	uint32_t operations = __atomic_load_n(&endpoint->operations, __ATOMIC_SEQ_CST);

	return operations - __atomic_load_n(&endpoint->receives, __ATOMIC_SEQ_CST);
}

/* All but RECVs, which may wait for ever: in the ring, in a lane, with the machine. */
static bool has_finished(struct dmp_embedded_channel *channel, void *context)
{
	(void)channel;
	return unfinished(context) == 0;
}

/* Says goodbye and lets the executor take it apart. channel->lock held. */
static int end_locked(struct dmp_embedded_channel *channel, struct dmp_embedded_endpoint *endpoint,
		      bool drain, uint64_t deadline_ns)
{
	int error = 0;

	if (drain) {
		error = dmp_channel_wait_locked(channel, has_finished, endpoint, deadline_ns, true);
		if (error)
			return error;
		dmp_endpoint_drain(endpoint->machine, dmp_endpoint_time(endpoint, dmp_now_ns()), 0);
	}
	endpoint->drop = true;
	dmp_endpoint_goodbye(endpoint->machine, dmp_endpoint_time(endpoint, dmp_now_ns()));
	if (endpoint->attached) {
		dmp_network_mark_locked(channel, endpoint);
		wake_executor_locked(channel);
	}
	/* The executor is bound by the machine's own time for a last word. */
	return dmp_channel_wait_locked(channel, has_ended, endpoint, 0, false);
}

static bool is_held(const struct dmp_embedded_endpoint *endpoint)
{
	return endpoint->remotes != 0 ||
	       __atomic_load_n(&endpoint->operations, __ATOMIC_SEQ_CST) != 0;
}

/* Waits until regions and operations have gone. plane->lock held. */
static int wait_unheld_locked(struct dmp_plane *plane, struct dmp_embedded_endpoint *endpoint,
			      uint64_t deadline_ns)
{
	int error = 0;

	__atomic_add_fetch(&plane->drainers, 1, __ATOMIC_SEQ_CST);
	while (is_held(endpoint) && !error)
		error = dmp_plane_wait_released_locked(plane, deadline_ns);
	__atomic_sub_fetch(&plane->drainers, 1, __ATOMIC_SEQ_CST);
	return is_held(endpoint) ? error : 0;
}

static void wait_for_users_locked(struct dmp_plane *plane, struct dmp_embedded_endpoint *endpoint)
{
	__atomic_add_fetch(&plane->drainers, 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&endpoint->users, __ATOMIC_SEQ_CST) > 1)
		dmp_plane_wait_released_locked(plane, 0);
	__atomic_sub_fetch(&plane->drainers, 1, __ATOMIC_SEQ_CST);
}

int dmp_endpoint_destroy_command(struct dmp_plane *plane, void *argument)
{
	struct dmp_destroy *destroy = argument;
	bool drain = destroy->flags & DMP_DESTROY_DRAIN;
	struct dmp_embedded_endpoint *endpoint;
	struct dmp_embedded_channel *channel;
	int error;

	if (!drain && destroy->deadline_ns != 0)
		return -EINVAL;
	pthread_mutex_lock(&plane->lock);
	error = enter_locked(plane, destroy->id, &endpoint, &channel);
	if (error) {
		pthread_mutex_unlock(&plane->lock);
		return error;
	}
	if (!drain && is_held(endpoint)) {
		error = -EBUSY;
		goto out_unlock;
	}
	if (endpoint->object.state == DMP_STATE_LIVE)
		dmp_lifetime_move(&endpoint->object.state, DMP_STATE_DRAINING);
	pthread_mutex_unlock(&plane->lock);
	if (channel) {
		pthread_mutex_lock(&channel->lock);
		error = end_locked(channel, endpoint, drain, destroy->deadline_ns);
		pthread_mutex_unlock(&channel->lock);
		/* Who waits inside the endpoint for the channel to go must not wait for us. */
		dmp_channel_put(channel);
		channel = NULL;
	}
	pthread_mutex_lock(&plane->lock);
	if (!error)
		error = wait_unheld_locked(plane, endpoint, destroy->deadline_ns);
	if (!error && endpoint->object.state == DMP_STATE_DEAD)
		error = -ENOENT;	/* another destroyer was first */
	if (error)
		goto out_unlock;
	dmp_lifetime_move(&endpoint->object.state, DMP_STATE_DEAD);
	dmp_table_remove(&plane->table, &endpoint->object);
	wait_for_users_locked(plane, endpoint);
	pthread_mutex_unlock(&plane->lock);
	dmp_endpoint_free(plane, endpoint);
	return 0;

out_unlock:
	pthread_mutex_unlock(&plane->lock);
	leave(plane, endpoint, channel);
	return error;
}

/* The next endpoint of @channel at or behind *@slot of the table, or NULL. */
static struct dmp_embedded_endpoint *next_of_channel(struct dmp_plane *plane,
						     const struct dmp_embedded_channel *channel,
						     uint32_t *slot)
{
	while (*slot < plane->table.capacity && plane->endpoints != 0) {
		struct dmp_embedded_endpoint *endpoint =
			(struct dmp_embedded_endpoint *)dmp_table_at(&plane->table, (*slot)++);

		if (endpoint && endpoint->object.type == DMP_OBJECT_ENDPOINT &&
		    endpoint->channel == channel)
			return endpoint;
	}
	return NULL;
}

void dmp_endpoint_forget_channel_locked(struct dmp_plane *plane,
					const struct dmp_embedded_channel *channel)
{
	struct dmp_embedded_endpoint *endpoint;
	uint32_t slot = 0;

	while ((endpoint = next_of_channel(plane, channel, &slot)))
		endpoint->orphaned = true;
}

void dmp_endpoint_leave_channel_locked(struct dmp_plane *plane,
				       const struct dmp_embedded_channel *channel)
{
	struct dmp_embedded_endpoint *endpoint;
	uint32_t slot = 0;

	while ((endpoint = next_of_channel(plane, channel, &slot)))
		endpoint->channel = NULL;
	pthread_cond_broadcast(&plane->released);
}

void dmp_endpoint_free(struct dmp_plane *plane, struct dmp_embedded_endpoint *endpoint)
{
	if (endpoint->object.id != 0) {
		pthread_mutex_lock(&plane->lock);
		plane->endpoints--;
		dmp_board_add(&plane->board->statistics.endpoints, (__u64)-1);
		pthread_mutex_unlock(&plane->lock);
	}
	dmp_traffic_free(endpoint);
	dmp_secret_forget(&endpoint->secret);
	free(endpoint->latency);
	free(endpoint->stall);
	free(endpoint->machine_memory);
	free(endpoint);
}
