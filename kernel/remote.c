// SPDX-License-Identifier: GPL-2.0
/*
 * remote.c - a peer's region: asked for, touched, named on an endpoint
 *
 * One REGION_IMPORT at a time on an endpoint. The caller writes down what he wants, the
 * executor asks the peer, reads the first byte and the last of what was granted, if it may be
 * read (L9), and leaves the answer. A caller waits until there is one, so that none is left over.
 */
#include <linux/err.h>
#include <linux/ktime.h>
#include <linux/slab.h>

#include "endpoint_kernel.h"

/* ---- the executor */

/* L9: what was granted is touched. 0 when it has been, -EAGAIN, or why it cannot be. */
static int probe_locked(struct dmp_kernel_endpoint *endpoint)
{
	struct dmp_ask *ask = &endpoint->ask;
	int error = 0;

	lockdep_assert_held(&endpoint->channel->lock);
	dmp_errand_reap(endpoint);
	while (!error && ask->canaries_posted < DMP_CANARIES) {
		struct dmp_pair_move move = {
			.remote = &ask->remote,
			.memory = ask->canary,
			.local = ask->canaries_posted,
			.offset = ask->canaries_posted == 0 ? 0 : ask->remote.length - 1,
			.length = 1,
		};

		error = dmp_pair_post(endpoint->pair, &move, DMP_CANARY_TAG);
		if (!error)
			ask->canaries_posted++;
	}
	/* One that cannot be posted is told when those before it are back. */
	if (ask->canaries_back != ask->canaries_posted)
		return -EAGAIN;
	return error;
}

/* What somebody wants to know of the peer: is asked, and answered. */
void dmp_ask_serve_locked(struct dmp_kernel_endpoint *endpoint)
{
	struct dmp_ask *ask = &endpoint->ask;

	lockdep_assert_held(&endpoint->channel->lock);
	if (ask->state == DMP_ASK_WANTED) {
		ask->result = dmp_pair_ask(endpoint->pair, ask->key, ask->key_bytes);
		ask->state = ask->result ? DMP_ASK_DONE : DMP_ASK_SENT;
	}
	if (ask->state == DMP_ASK_SENT) {
		ask->result = dmp_pair_granted(endpoint->pair, &ask->remote);
		if (!ask->result && ask->canary && ask->remote.access & DMP_ACCESS_REMOTE_READ)
			ask->state = DMP_ASK_PROBING;
		else if (ask->result != -EAGAIN)
			ask->state = DMP_ASK_DONE;
	}
	if (ask->state == DMP_ASK_PROBING) {
		ask->result = probe_locked(endpoint);
		if (ask->result != -EAGAIN)
			ask->state = DMP_ASK_DONE;
		if (ask->state == DMP_ASK_DONE && ask->result)
			dmp_pair_remote_free(&ask->remote);
	}
	if (ask->state == DMP_ASK_DONE)
		dmp_channel_nudge_locked(endpoint->channel);
}

void dmp_ask_abort_locked(struct dmp_kernel_endpoint *endpoint)
{
	struct dmp_ask *ask = &endpoint->ask;

	lockdep_assert_held(&endpoint->channel->lock);
	if (ask->state == DMP_ASK_NONE || ask->state == DMP_ASK_DONE)
		return;
	if (ask->state == DMP_ASK_PROBING)
		dmp_pair_remote_free(&ask->remote);
	ask->result = -ECONNRESET;
	ask->state = DMP_ASK_DONE;
	dmp_channel_nudge_locked(endpoint->channel);
}

/* ---- the caller */

static bool may_ask(struct dmp_kernel_channel *channel, const void *context)
{
	const struct dmp_kernel_endpoint *endpoint = context;

	return endpoint->ask.state == DMP_ASK_NONE || !endpoint->pair || channel->closing;
}

static bool was_answered(struct dmp_kernel_channel *channel, const void *context)
{
	const struct dmp_kernel_endpoint *endpoint = context;

	return endpoint->ask.state == DMP_ASK_DONE;
}

/* Asks the peer for what the key says (L9): 0 with remote->granted, or why not. */
static int ask_locked(struct dmp_kernel_channel *channel, struct dmp_kernel_endpoint *endpoint,
		      struct dmp_remote *remote, struct dmp_memory *canary)
{
	u64 deadline_ns = ktime_get_ns() + 2 * endpoint->detect_ns;
	struct dmp_ask *ask = &endpoint->ask;
	int error;

	lockdep_assert_held(&channel->lock);
	error = dmp_channel_wait_locked(channel, may_ask, endpoint, deadline_ns,
					TASK_INTERRUPTIBLE);
	if (error)
		return error;
	if (!endpoint->pair || channel->closing)
		return -ECONNRESET;
	ask->key_bytes = remote->key_bytes;
	memcpy(ask->key, remote->bytes, remote->key_bytes);
	ask->canary = canary;
	ask->canaries_posted = 0;
	ask->canaries_back = 0;
	ask->state = DMP_ASK_WANTED;
	dmp_endpoint_kick_locked(endpoint);
	/*
	 * Answered, or the connection is lost: not interruptible, so that no answer is left over. A
	 * peer who keeps the connection up and never answers is given up, and so is any peer of a
	 * caller who is killed; then the answer comes from the executor.
	 */
	error = dmp_channel_wait_locked(channel, was_answered, endpoint,
					deadline_ns + endpoint->detect_ns, TASK_KILLABLE);
	if (error) {
		dmp_endpoint_give_up_locked(endpoint);
		dmp_channel_wait_locked(channel, was_answered, endpoint, 0, TASK_UNINTERRUPTIBLE);
	}
	if (!ask->result)
		remote->granted = ask->remote;
	if (!error || !ask->result)
		error = ask->result;
	ask->state = DMP_ASK_NONE;
	if (endpoint->pair)
		dmp_pair_forget(endpoint->pair, canary);
	dmp_channel_nudge_locked(channel);
	return error;
}

/* Does what was granted fit what the key says? */
static int check_grant(const struct dmp_remote *remote)
{
	u32 rights = DMP_ACCESS_REMOTE_READ | DMP_ACCESS_REMOTE_WRITE;

	if (remote->granted.length != remote->key.length ||
	    (remote->key.access & rights & ~remote->granted.access))
		return -EACCES;
	return 0;
}

static int import(struct dmp_plane *plane, struct dmp_kernel_channel *channel,
		  struct dmp_remote *remote)
{
	struct dmp_buffer_create create = { .length_bytes = PAGE_SIZE, .node = -1 };
	struct dmp_policy policy = { .node = -1 };
	struct dmp_memory *canary = dmp_pages_create(&create, &policy);
	int error;

	if (IS_ERR(canary))
		return PTR_ERR(canary);
	mutex_lock(&channel->lock);
	error = ask_locked(channel, remote->endpoint, remote, canary);
	mutex_unlock(&channel->lock);
	dmp_memory_put(canary);
	if (!error)
		error = check_grant(remote);
	return error ?: dmp_remote_publish(plane, remote);
}

int dmp_region_import_command(struct dmp_plane *plane, void *argument)
{
	struct dmp_region_import *request = argument;
	struct dmp_kernel_channel *channel = NULL;
	struct dmp_object *object;
	struct dmp_remote *remote;
	int error;

	remote = kzalloc(sizeof(*remote), GFP_KERNEL_ACCOUNT);
	if (!remote)
		return -ENOMEM;
	error = dmp_region_key_decode(request->key, request->key_bytes, &remote->key);
	if (error)
		goto err_free;
	remote->key_bytes = request->key_bytes;
	memcpy(remote->bytes, request->key, request->key_bytes);
	down_read(&plane->lock);
	object = dmp_plane_use_locked(plane, request->endpoint_id, DMP_OBJECT_ENDPOINT, &error);
	if (object) {
		remote->endpoint = dmp_endpoint_of(object);
		channel = dmp_endpoint_enter_locked(plane, remote->endpoint);
	}
	up_read(&plane->lock);
	if (!object)
		goto err_free;
	error = channel ? import(plane, channel, remote) : -ECONNRESET;
	if (!error) {
		request->region_id = remote->object.id;
		request->access = remote->key.access;
		request->length_bytes = remote->key.length;
	}
	dmp_endpoint_leave(remote->endpoint, channel);
	if (error)
		goto err_free;
	return 0;

err_free:
	dmp_remote_free(remote);
	return error;
}
