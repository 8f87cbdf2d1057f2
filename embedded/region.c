// SPDX-License-Identifier: MIT
/*
 * region.c - the life of a region: proved, published, asked, revoked, freed
 *
 * Invariants
 *  - The buffer is held (buffer->regions) from before the canary until the region is gone.
 *  - A region that is freed was revoked first: its word on the board has changed, no admitted
 *    use is left, and after the change no shm peer was seen in a copy.
 *
 * Lock order: plane->lock, channel->lock, the table's lock (region_table.c). To look at what
 * shm peers touch takes the channels' locks, so it is done without the table's.
 *
 * What a revoked region leaves behind. A shm peer that imported it keeps the pages mapped
 * until its own side lets go. That does not hold the buffer: the peer no longer uses them
 * (the board says so), nothing of them is given to anybody else, and a peer that sleeps for
 * ever must not keep us from destroying what is ours. The kernel frees the pages with the
 * last mapping. Descriptors of BUFFER_EXPORT are the user's, and do hold the buffer; one that
 * was exported and shared is held until both are closed, as a lease cannot tell them apart.
 */
#define _GNU_SOURCE
#include "region.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/random.h>

#include "endpoint_embedded.h"
#include "lifetime.h"
#include "network.h"
#include "region_table.h"
#include "shm.h"
#include "verbs.h"
#include "wait.h"

#define ACCESS_WRITE	(DMP_ACCESS_LOCAL_WRITE | DMP_ACCESS_REMOTE_WRITE)

/* How long a destroy without DRAIN waits for a slice that began as it looked. */
#define SLICE_NS	2000000u

/* ---- create */

static int check_create(const struct dmp_region_create *create)
{
	if (create->access == 0 || create->access & ~DMP_ACCESS_ALL || create->length_bytes == 0)
		return -EINVAL;
	if (create->offset + create->length_bytes < create->offset)
		return -EOVERFLOW;
	return 0;
}

/* Finds the buffer and holds it for the region. */
static int hold_buffer(struct dmp_plane *plane, const struct dmp_region_create *create,
		       struct dmp_buffer **found)
{
	struct dmp_buffer *buffer;
	int error;

	pthread_mutex_lock(&plane->lock);
	buffer = (struct dmp_buffer *)dmp_plane_find_locked(plane, create->buffer_id,
							    DMP_OBJECT_BUFFER, &error);
	if (buffer && create->offset + create->length_bytes > buffer->memory.length)
		error = -EINVAL;
	if (!error && create->access & ACCESS_WRITE && buffer->memory.read_only)
		error = -EPERM;
	if (!error) {
		buffer->regions++;
		*found = buffer;
	}
	pthread_mutex_unlock(&plane->lock);
	return error;
}

/* L9: the range is there, with the rights that are to be given. Changes no byte. */
static int prove(const struct dmp_memory *memory, const struct dmp_region_create *create)
{
	char *address = (char *)memory->address + create->offset;
	bool writable = create->access & ACCESS_WRITE;

	/* A device's pages cannot be populated, but touched. */
	if (memory->dmabuf)
		return dmp_placement_touch(address, create->length_bytes, memory->page_bytes,
					   writable);
	return dmp_placement_populate(address, create->length_bytes, memory->page_bytes, writable);
}

/* Publishes last; the answer is taken under the lock, since a destroy may come at once. */
static int publish(struct dmp_plane *plane, struct dmp_region *region,
		   struct dmp_region_create *create)
{
	int error;

	region->object.type = DMP_OBJECT_REGION;
	pthread_mutex_lock(&plane->lock);
	/* The buffer may have begun to drain during the canary. */
	error = dmp_lifetime_use(region->buffer->object.state);
	if (!error && plane->regions >= DMP_REGIONS_MAX)
		error = -ENOSPC;
	if (!error)
		error = dmp_table_insert(&plane->table, &region->object);
	if (!error) {
		plane->regions++;
		if (region->access & DMP_ACCESS_REMOTE_WRITE)
			__atomic_add_fetch(&plane->regions_writable, 1, __ATOMIC_RELAXED);
		dmp_board_add(&plane->board->statistics.regions, 1);
		create->region_id = region->object.id;
		create->generation = region->generation;
		create->key_bytes = dmp_region_write_key(plane, region, create->key);
		dmp_lifetime_move(&region->object.state, DMP_STATE_LIVE);
		/* From here on peers can use it. */
		dmp_region_let_in(plane, region);
	}
	pthread_mutex_unlock(&plane->lock);
	return error;
}

int dmp_region_create(struct dmp_plane *plane, void *argument)
{
	struct dmp_region_create *create = argument;
	struct dmp_buffer *buffer = NULL;
	struct dmp_region *region;
	int error = check_create(create);

	if (error)
		return error;
	error = hold_buffer(plane, create, &buffer);
	if (error)
		return error;
	error = prove(&buffer->memory, create);
	if (error)
		goto err_buffer;
	error = -ENOMEM;
	region = calloc(1, sizeof(*region));
	if (!region)
		goto err_buffer;
	region->buffer = buffer;
	region->offset = create->offset;
	region->length = create->length_bytes;
	region->access = create->access;
	error = -EAGAIN;
	if (getrandom(&region->secret, sizeof(region->secret), 0) != sizeof(region->secret))
		goto err_free;
	error = dmp_region_take_slot(plane, region);
	if (error)
		goto err_free;
	error = publish(plane, region, create);
	if (error)
		goto err_slot;
	return 0;

err_slot:
	dmp_region_give_slot(plane, region);
err_free:
	free(region);
err_buffer:
	pthread_mutex_lock(&plane->lock);
	buffer->regions--;
	pthread_cond_broadcast(&plane->released);
	pthread_mutex_unlock(&plane->lock);
	return error;
}

/* ---- query */

static void query_region(const struct dmp_region *region, struct dmp_region_query *query)
{
	query->buffer_id = region->buffer->object.id;
	query->endpoint_id = 0;
	query->access = region->access;
	query->generation = region->generation;
	query->offset = region->offset;
	query->length_bytes = region->length;
	query->operations = __atomic_load_n(&region->operations, __ATOMIC_ACQUIRE);
}

static void query_remote(const struct dmp_remote *remote, struct dmp_region_query *query)
{
	query->buffer_id = 0;
	query->endpoint_id = remote->endpoint->object.id;
	query->access = remote->access;
	query->generation = remote->generation;
	query->offset = 0;
	query->length_bytes = remote->length;
	query->operations = __atomic_load_n(&remote->operations, __ATOMIC_ACQUIRE);
}

/* A region of either kind, in any state. */
static struct dmp_object *find_either_locked(struct dmp_plane *plane, __u32 id)
{
	struct dmp_object *object = dmp_table_find(&plane->table, id);

	if (object && object->type != DMP_OBJECT_REGION && object->type != DMP_OBJECT_REMOTE)
		object = NULL;
	return object;
}

int dmp_region_query(struct dmp_plane *plane, void *argument)
{
	struct dmp_region_query *query = argument;
	struct dmp_object *object;

	pthread_mutex_lock(&plane->lock);
	object = find_either_locked(plane, query->region_id);
	if (object) {
		query->state = object->state;
		if (object->type == DMP_OBJECT_REGION)
			query_region((struct dmp_region *)object, query);
		else
			query_remote((struct dmp_remote *)object, query);
	}
	pthread_mutex_unlock(&plane->lock);
	return object ? 0 : -ENOENT;
}

/* ---- destroy */

/* One peer, on its fabric. channel->lock held. */
static bool touches_locked(struct dmp_embedded_endpoint *endpoint, const struct dmp_region *region)
{
	struct dmp_embedded_channel *channel = endpoint->channel;
	uint64_t now_ns;

	if (!endpoint->fabric)
		return false;
	if (endpoint->fabric->type->path == DMP_PATH_SHM)
		return dmp_shm_is_touching(endpoint->fabric, region->slot);
	if (endpoint->fabric->type->path != DMP_PATH_VERBS ||
	    region->object.state == DMP_STATE_LIVE)
		return false;
	now_ns = dmp_now_ns();
	if (dmp_verbs_revoke(endpoint->fabric, region->slot, now_ns)) {
		dmp_network_mark_locked(channel, endpoint);
		dmp_channel_kick(channel, dmp_channel_claim_wake_locked(channel));
	}
	return dmp_verbs_is_registered(endpoint->fabric, region->slot, now_ns);
}

bool dmp_region_is_touched_locked(struct dmp_plane *plane, const struct dmp_region *region)
{
	bool touched = false;
	uint32_t slot;

	if (!__atomic_load_n(&region->shared, __ATOMIC_SEQ_CST) &&
	    !__atomic_load_n(&region->registered, __ATOMIC_SEQ_CST))
		return false;
	for (slot = 0; slot < plane->table.capacity; slot++) {
		struct dmp_embedded_endpoint *endpoint =
			(struct dmp_embedded_endpoint *)dmp_table_at(&plane->table, slot);

		if (!endpoint || endpoint->object.type != DMP_OBJECT_ENDPOINT || !endpoint->channel)
			continue;
		/* All of them, even if one does: each is told at once. */
		pthread_mutex_lock(&endpoint->channel->lock);
		touched |= touches_locked(endpoint, region);
		pthread_mutex_unlock(&endpoint->channel->lock);
	}
	/* After the walk: a fabric that is closed meanwhile moves to those that were left. */
	return touched || dmp_shm_left_touching(plane, region->slot);
}

static uint32_t operations_of(struct dmp_object *object)
{
	uint32_t *operations = object->type == DMP_OBJECT_REGION
				       ? &((struct dmp_region *)object)->operations
				       : &((struct dmp_remote *)object)->operations;

	/* Pairs with the subtraction in release: what was moved has been moved. */
	return __atomic_load_n(operations, __ATOMIC_SEQ_CST);
}

static bool held_locked(struct dmp_plane *plane, struct dmp_object *object)
{
	return operations_of(object) != 0 ||
	       (object->type == DMP_OBJECT_REGION &&
		dmp_region_is_touched_locked(plane, (struct dmp_region *)object));
}

/* New use is refused from here on: the board first, for those who ask nobody. */
static void revoke_locked(struct dmp_plane *plane, struct dmp_object *object)
{
	if (object->type == DMP_OBJECT_REGION)
		dmp_region_keep_out(plane, (struct dmp_region *)object);
	dmp_lifetime_move(&object->state, DMP_STATE_DRAINING);
}

/* Waits until nobody holds a draining region. Another thread may have freed it meanwhile. */
static int drain_locked(struct dmp_plane *plane, __u32 id, uint64_t deadline_ns)
{
	int error = 0;

	__atomic_add_fetch(&plane->drainers, 1, __ATOMIC_SEQ_CST);
	for (;;) {
		struct dmp_object *object = find_either_locked(plane, id);

		if (!object) {
			error = -ENOENT;
			break;
		}
		if (!held_locked(plane, object)) {
			error = 0;
			break;
		}
		if (error)
			break;
		error = dmp_plane_wait_released_locked(plane, deadline_ns);
	}
	__atomic_sub_fetch(&plane->drainers, 1, __ATOMIC_SEQ_CST);
	return error;
}

/*
 * Destroy without DRAIN: ends the generation of a region nobody uses, or -EBUSY and it is
 * as before. A shm peer asks nobody, so its slice may begin between our look and the
 * change of the board: that one is waited for. If the peer stops just there, the same
 * generation goes on; what it was refused meanwhile saw a destroy that came to nothing.
 */
static int end_locked(struct dmp_plane *plane, struct dmp_region *region)
{
	uint64_t give_up_ns;

	if (held_locked(plane, &region->object))
		return -EBUSY;
	if (region->object.state != DMP_STATE_LIVE)
		return 0;
	if (!dmp_region_keep_out_if_idle(plane, region))
		return -EBUSY;
	give_up_ns = dmp_now_ns() + SLICE_NS;
	while (dmp_region_is_touched_locked(plane, region)) {
		if (dmp_now_ns() >= give_up_ns) {
			dmp_region_let_in(plane, region);
			return -EBUSY;
		}
		sched_yield();
	}
	if (!__atomic_load_n(&region->registered, __ATOMIC_SEQ_CST))
		return 0;
	/* Whether a device is in the middle of it only the peer knows: it goes on as a drain. */
	dmp_lifetime_move(&region->object.state, DMP_STATE_DRAINING);
	return drain_locked(plane, region->object.id, 0);
}

/* Out of the table of ids, and what it holds is let go. */
static void unpublish_locked(struct dmp_plane *plane, struct dmp_object *object)
{
	dmp_lifetime_move(&object->state, DMP_STATE_DEAD);
	dmp_table_remove(&plane->table, object);
	plane->regions--;
	if (object->type == DMP_OBJECT_REGION) {
		struct dmp_region *region = (struct dmp_region *)object;

		region->buffer->regions--;
		if (region->access & DMP_ACCESS_REMOTE_WRITE)
			__atomic_sub_fetch(&plane->regions_writable, 1, __ATOMIC_RELAXED);
	} else {
		((struct dmp_remote *)object)->endpoint->remotes--;
	}
	pthread_cond_broadcast(&plane->released);
}

static int destroy_locked(struct dmp_plane *plane, const struct dmp_destroy *destroy,
			  struct dmp_object *object)
{
	if (destroy->flags & DMP_DESTROY_DRAIN) {
		if (object->state == DMP_STATE_LIVE)
			revoke_locked(plane, object);
		return drain_locked(plane, destroy->id, destroy->deadline_ns);
	}
	if (object->type == DMP_OBJECT_REGION)
		return end_locked(plane, (struct dmp_region *)object);
	return operations_of(object) != 0 ? -EBUSY : 0;
}

int dmp_region_destroy(struct dmp_plane *plane, void *argument)
{
	struct dmp_destroy *destroy = argument;
	struct dmp_object *object;
	int error = -ENOENT;

	if (!(destroy->flags & DMP_DESTROY_DRAIN) && destroy->deadline_ns != 0)
		return -EINVAL;
	pthread_mutex_lock(&plane->lock);
	object = find_either_locked(plane, destroy->id);
	if (object)
		error = destroy_locked(plane, destroy, object);
	if (!error)
		unpublish_locked(plane, object);
	pthread_mutex_unlock(&plane->lock);
	if (error)
		return error;
	if (object->type == DMP_OBJECT_REGION)
		dmp_region_free(plane, (struct dmp_region *)object);
	else
		dmp_remote_free(plane, (struct dmp_remote *)object);
	return 0;
}

void dmp_region_free(struct dmp_plane *plane, struct dmp_region *region)
{
	if (region->object.state != DMP_STATE_DEAD)	/* the plane closes */
		dmp_table_remove(&plane->table, &region->object);
	dmp_board_add(&plane->board->statistics.regions, (__u64)-1);
	dmp_region_give_slot(plane, region);
	free(region);
}

void dmp_remote_free(struct dmp_plane *plane, struct dmp_remote *remote)
{
	if (remote->object.state != DMP_STATE_DEAD)	/* the plane closes */
		dmp_table_remove(&plane->table, &remote->object);
	dmp_board_add(&plane->board->statistics.regions, (__u64)-1);
	dmp_remote_drop(remote);
}

void dmp_remote_drop(struct dmp_remote *remote)
{
	if (remote->mapping)
		munmap(remote->mapping, remote->mapping_bytes);
	free(remote->parts);
	free(remote);
}
