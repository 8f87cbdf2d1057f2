// SPDX-License-Identifier: GPL-2.0
/*
 * region.c - the life of a region: proved, published, found by key, revoked, freed
 *
 * Invariants
 *  - The buffer is held (buffer->regions) from before the canary until the region is gone.
 *  - A region has a slot from just before it is published until it is freed. Peers may use it
 *    exactly while it is live. `operations` grows, and a pair is given its memory, only under
 *    the table's lock and only while it is live.
 *  - So once it is not live, has no operations, and no pair has it registered, no peer reaches
 *    the memory. Only then is it freed.
 *  - A generation is given once on a plane, counting up; 0 is none.
 *
 * Lock order: plane->lock, channel->lock, plane->region_lock.
 */
#include <linux/overflow.h>
#include <linux/random.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include "endpoint_kernel.h"
#include "lifetime.h"
#include "region.h"
#include "trace.h"

#define ACCESS_WRITE	(DMP_ACCESS_LOCAL_WRITE | DMP_ACCESS_REMOTE_WRITE)

void dmp_region_open(struct dmp_plane *plane)
{
	mutex_init(&plane->region_lock);
	xa_init_flags(&plane->region_slots, XA_FLAGS_ALLOC | XA_FLAGS_ACCOUNT);
}

void dmp_region_close(struct dmp_plane *plane)
{
	xa_destroy(&plane->region_slots);
	mutex_destroy(&plane->region_lock);
}

/* ---- create */

static int check_create(const struct dmp_region_create *create)
{
	u64 end;

	if (create->access == 0 || create->access & ~DMP_ACCESS_ALL || create->length_bytes == 0)
		return -EINVAL;
	return check_add_overflow(create->offset, create->length_bytes, &end) ? -EOVERFLOW : 0;
}

/* Finds the buffer and holds it for the region. */
static int hold_buffer(struct dmp_plane *plane, const struct dmp_region_create *create,
		       struct dmp_buffer **found)
{
	struct dmp_object *object;
	struct dmp_buffer *buffer;
	int error = 0;

	down_write(&plane->lock);
	object = dmp_plane_use_locked(plane, create->buffer_id, DMP_OBJECT_BUFFER, &error);
	if (!error) {
		buffer = container_of(object, struct dmp_buffer, object);
		if (!dmp_memory_alive(buffer->memory))
			error = -ESTALE;
		else if (create->offset + create->length_bytes > buffer->memory->length)
			error = -EINVAL;
		else if (create->access & ACCESS_WRITE && buffer->memory->read_only)
			error = -EPERM;
	}
	if (!error) {
		buffer->regions++;
		*found = buffer;
	}
	up_write(&plane->lock);
	return error;
}

static void let_go_of_buffer(struct dmp_buffer *buffer)
{
	struct dmp_plane *plane = buffer->plane;

	down_write(&plane->lock);
	buffer->regions--;
	up_write(&plane->lock);
	dmp_released();
}

/*
 * L9: the range is there, all of it, and a device may have it. Pages are pinned from the start,
 * so it is enough that every byte is in a span; what has none is not for devices.
 */
static int prove(struct dmp_memory *memory, const struct dmp_region_create *create)
{
	u64 end = create->offset + create->length_bytes, offset = create->offset;
	int error = 0;

	if (!memory->operations->span)
		return -EOPNOTSUPP;
	while (!error && offset < end) {
		int section = dmp_memory_enter();
		struct dmp_span span;

		error = dmp_memory_alive(memory) ?
				memory->operations->span(memory, offset, &span) : -ESTALE;
		dmp_memory_leave(section);
		if (!error)
			offset += span.bytes;
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
	}
	return error;
}

static int take_slot(struct dmp_plane *plane, struct dmp_region *region)
{
	int error = -ENOSPC;
	u32 slot;

	mutex_lock(&plane->region_lock);
	if (plane->region_generation != U32_MAX)
		error = xa_alloc(&plane->region_slots, &slot, region,
				 XA_LIMIT(0, DMP_REGIONS_MAX - 1), GFP_KERNEL_ACCOUNT);
	if (!error) {
		region->key.slot = slot;
		region->key.generation = ++plane->region_generation;
	}
	mutex_unlock(&plane->region_lock);
	return error == -EBUSY ? -ENOSPC : error;
}

static void give_slot(struct dmp_plane *plane, struct dmp_region *region)
{
	mutex_lock(&plane->region_lock);
	region->live = false;
	xa_erase(&plane->region_slots, region->key.slot);
	mutex_unlock(&plane->region_lock);
}

static void set_live(struct dmp_plane *plane, struct dmp_region *region, bool live)
{
	mutex_lock(&plane->region_lock);
	region->live = live;
	mutex_unlock(&plane->region_lock);
}

/* Publishes last; the answer is taken under the lock, since a destroy may come at once. */
static int publish(struct dmp_plane *plane, struct dmp_region *region,
		   struct dmp_region_create *create)
{
	int error;

	region->object.type = DMP_OBJECT_REGION;
	down_write(&plane->lock);
	/* The buffer may have begun to drain during the canary. */
	error = dmp_lifetime_use(region->buffer->object.state);
	if (!error && plane->regions >= DMP_REGIONS_MAX)
		error = -ENOSPC;
	if (!error)
		error = dmp_plane_insert_locked(plane, &region->object);
	if (!error) {
		plane->regions++;
		create->region_id = region->object.id;
		create->generation = region->key.generation;
		create->key_bytes = dmp_region_key_encode(&region->key, create->key);
		dmp_lifetime_move(&region->object.state, DMP_STATE_LIVE);
		set_live(plane, region, true);	/* from here on peers can use it */
	}
	up_write(&plane->lock);
	return error;
}

int dmp_region_create(struct dmp_plane *plane, void *argument)
{
	struct dmp_region_create *create = argument;
	struct dmp_buffer *buffer = NULL;
	struct dmp_region *region;
	int error = check_create(create);

	if (!error)
		error = hold_buffer(plane, create, &buffer);
	if (error)
		return error;
	error = prove(buffer->memory, create);
	if (error)
		goto err_buffer;
	error = -ENOMEM;
	region = kzalloc(sizeof(*region), GFP_KERNEL_ACCOUNT);
	if (!region)
		goto err_buffer;
	region->buffer = buffer;
	region->offset = create->offset;
	region->key.incarnation = plane->incarnation;
	region->key.length = create->length_bytes;
	region->key.access = create->access;
	get_random_bytes(&region->key.secret, sizeof(region->key.secret));
	error = take_slot(plane, region);
	if (error)
		goto err_free;
	error = publish(plane, region, create);
	if (error)
		goto err_slot;
	return 0;

err_slot:
	give_slot(plane, region);
err_free:
	kfree_sensitive(region);
err_buffer:
	let_go_of_buffer(buffer);
	return error;
}

int dmp_remote_publish(struct dmp_plane *plane, struct dmp_remote *remote)
{
	int error;

	remote->object.type = DMP_OBJECT_REMOTE;
	down_write(&plane->lock);
	/* The endpoint may have been destroyed while its peer was asked. */
	error = dmp_lifetime_use(remote->endpoint->object.state);
	if (!error && plane->regions >= DMP_REGIONS_MAX)
		error = -ENOSPC;
	if (!error)
		error = dmp_plane_insert_locked(plane, &remote->object);
	if (!error) {
		dmp_lifetime_move(&remote->object.state, DMP_STATE_LIVE);
		plane->regions++;
		remote->endpoint->remotes++;
	}
	up_write(&plane->lock);
	return error;
}

/* ---- used by peers */

static int find_locked(struct dmp_plane *plane, const struct dmp_region_key *key,
		       struct dmp_region **found)
{
	struct dmp_region *region;

	lockdep_assert_held(&plane->region_lock);
	/* What was never given cannot have been revoked. */
	if (key->incarnation != plane->incarnation || key->generation > plane->region_generation)
		return -EACCES;
	region = xa_load(&plane->region_slots, key->slot);
	if (!region || region->key.generation != key->generation)
		return -ESTALE;
	if (!dmp_region_key_equal(&region->key, key))
		return -EACCES;
	if (!region->live || !dmp_memory_alive(region->buffer->memory))
		return -ESTALE;
	*found = region;
	return 0;
}

int dmp_region_admit(struct dmp_plane *plane, const u8 *bytes, u32 count, u64 offset, u64 length,
		     u32 access, struct dmp_region **found)
{
	struct dmp_region *region;
	struct dmp_region_key key;
	int error;

	if (dmp_region_key_decode(bytes, count, &key))
		return -EACCES;
	mutex_lock(&plane->region_lock);
	error = find_locked(plane, &key, &region);
	if (!error && access & ~region->key.access)
		error = -EACCES;
	if (!error && (offset > key.length || length > key.length - offset))
		error = -EINVAL;
	if (!error) {
		atomic_inc(&region->operations);
		*found = region;
	}
	mutex_unlock(&plane->region_lock);
	return error;
}

void dmp_region_release(struct dmp_region *region)
{
	/* Release: what was moved has been moved before destroy sees 0. It may be gone after. */
	(void)atomic_dec_return_release(&region->operations);
	dmp_released();
}

int dmp_region_register(struct dmp_plane *plane, const u8 *bytes, u32 count,
			struct dmp_pair_admitted *admitted)
{
	struct dmp_region *region;
	struct dmp_region_key key;
	int error;

	if (dmp_region_key_decode(bytes, count, &key))
		return -EACCES;
	mutex_lock(&plane->region_lock);
	error = find_locked(plane, &key, &region);
	if (!error && !(key.access & (DMP_ACCESS_REMOTE_READ | DMP_ACCESS_REMOTE_WRITE)))
		error = -EACCES;
	if (!error) {
		/* Before the pair has it: who ends the region from here on asks the pairs. */
		WRITE_ONCE(region->registered, true);
		dmp_memory_get(region->buffer->memory);
		admitted->memory = region->buffer->memory;
		admitted->offset = region->offset;
		admitted->length = key.length;
		admitted->access = key.access;
		admitted->slot = key.slot;
	}
	mutex_unlock(&plane->region_lock);
	return error;
}

/* ---- query */

static struct dmp_region *region_of(struct dmp_object *object)
{
	return container_of(object, struct dmp_region, object);
}

static struct dmp_remote *remote_of(struct dmp_object *object)
{
	return container_of(object, struct dmp_remote, object);
}

static void query_region(const struct dmp_region *region, struct dmp_region_query *query)
{
	query->buffer_id = region->buffer->object.id;
	query->endpoint_id = 0;
	query->access = region->key.access;
	query->generation = region->key.generation;
	query->offset = region->offset;
	query->length_bytes = region->key.length;
	query->operations = atomic_read(&region->operations);
}

static void query_remote(const struct dmp_remote *remote, struct dmp_region_query *query)
{
	query->buffer_id = 0;
	query->endpoint_id = remote->endpoint->object.id;
	query->access = remote->key.access;
	query->generation = remote->key.generation;
	query->offset = 0;
	query->length_bytes = remote->key.length;
	query->operations = atomic_read(&remote->operations);
}

/* A region of either kind, in any state. */
static struct dmp_object *find_either_locked(struct dmp_plane *plane, u32 id)
{
	struct dmp_object *object = dmp_plane_find_locked(plane, id, DMP_OBJECT_REGION);

	lockdep_assert_held(&plane->lock);
	return object ?: dmp_plane_find_locked(plane, id, DMP_OBJECT_REMOTE);
}

int dmp_region_query(struct dmp_plane *plane, void *argument)
{
	struct dmp_region_query *query = argument;
	struct dmp_object *object;

	down_read(&plane->lock);
	object = find_either_locked(plane, query->region_id);
	if (object) {
		query->state = object->state;
		if (object->type == DMP_OBJECT_REGION)
			query_region(region_of(object), query);
		else
			query_remote(remote_of(object), query);
	}
	up_read(&plane->lock);
	return object ? 0 : -ENOENT;
}

/* ---- destroy */

static bool is_held_locked(struct dmp_plane *plane, struct dmp_object *object)
{
	bool held;

	lockdep_assert_held(&plane->lock);
	if (object->type == DMP_OBJECT_REMOTE) {
		held = atomic_read(&remote_of(object)->operations) != 0;
	} else {
		struct dmp_region *region = region_of(object);

		held = atomic_read(&region->operations) != 0;
		if (object->state != DMP_STATE_LIVE && READ_ONCE(region->registered))
			held |= dmp_endpoint_is_reaching_locked(plane, region);
	}
	/* Pairs with the release of those who let go: what they did has happened. */
	smp_rmb();
	return held;
}

/* New use is refused from here on. */
static void revoke_locked(struct dmp_plane *plane, struct dmp_object *object)
{
	lockdep_assert_held_write(&plane->lock);
	if (object->type == DMP_OBJECT_REGION)
		set_live(plane, region_of(object), false);
	dmp_lifetime_move(&object->state, DMP_STATE_DRAINING);
}

/* Ends the region unless an admitted use holds it: false, and nothing is changed. */
static bool revoke_if_idle_locked(struct dmp_plane *plane, struct dmp_object *object)
{
	struct dmp_region *region = region_of(object);
	bool idle;

	lockdep_assert_held_write(&plane->lock);
	mutex_lock(&plane->region_lock);
	idle = atomic_read(&region->operations) == 0;
	if (idle)
		region->live = false;
	mutex_unlock(&plane->region_lock);
	if (idle)
		dmp_lifetime_move(&object->state, DMP_STATE_DRAINING);
	return idle;
}

/*
 * Waits until nobody holds a region that drains: 0 with the lock held as it was, or -ETIMEDOUT,
 * -EINTR, -ENOENT. Without the lock anything may happen, so it is found again after each sleep.
 */
static int drain_locked(struct dmp_plane *plane, u32 id, u64 deadline_ns)
{
	DEFINE_WAIT_FUNC(wait, woken_wake_function);
	ktime_t deadline = dmp_deadline_time(deadline_ns);
	int error = 0;

	lockdep_assert_held_write(&plane->lock);
	add_wait_queue(&dmp_released_wait, &wait);
	/* Pairs with dmp_released(): either it sees us waiting, or we see that its holder went. */
	smp_mb();
	for (;;) {
		struct dmp_object *object = find_either_locked(plane, id);

		if (!object) {
			error = -ENOENT;
			break;
		}
		if (!is_held_locked(plane, object)) {
			error = 0;
			break;
		}
		if (error)
			break;
		up_write(&plane->lock);
		error = dmp_sleep_until(&wait, deadline);
		down_write(&plane->lock);
	}
	remove_wait_queue(&dmp_released_wait, &wait);
	return error;
}

/*
 * Without DRAIN a region with an operation in flight answers EBUSY. Whether a device is in the
 * middle of it only the peer knows: where one has it registered it goes on as a drain.
 */
static int destroy_locked(struct dmp_plane *plane, const struct dmp_destroy *destroy,
			  struct dmp_object *object)
{
	bool drain = destroy->flags & DMP_DESTROY_DRAIN;

	lockdep_assert_held_write(&plane->lock);
	if (!drain && object->type == DMP_OBJECT_REMOTE)
		return is_held_locked(plane, object) ? -EBUSY : 0;
	if (!drain && object->state != DMP_STATE_LIVE)
		return is_held_locked(plane, object) ? -EBUSY : 0;
	if (!drain && !revoke_if_idle_locked(plane, object))
		return -EBUSY;
	if (object->state == DMP_STATE_LIVE)
		revoke_locked(plane, object);
	return drain_locked(plane, destroy->id, destroy->deadline_ns);
}

static void unpublish_locked(struct dmp_plane *plane, struct dmp_object *object)
{
	lockdep_assert_held_write(&plane->lock);
	dmp_lifetime_move(&object->state, DMP_STATE_DEAD);
	dmp_plane_remove_locked(plane, object);
	plane->regions--;
	if (object->type == DMP_OBJECT_REGION)
		region_of(object)->buffer->regions--;
	else
		remote_of(object)->endpoint->remotes--;
}

int dmp_region_destroy(struct dmp_plane *plane, void *argument)
{
	struct dmp_destroy *destroy = argument;
	struct dmp_object *object;
	int error = -ENOENT;

	if (!(destroy->flags & DMP_DESTROY_DRAIN) && destroy->deadline_ns != 0)
		return -EINVAL;
	down_write(&plane->lock);
	object = find_either_locked(plane, destroy->id);
	if (object)
		error = destroy_locked(plane, destroy, object);
	if (!error)
		unpublish_locked(plane, object);
	up_write(&plane->lock);
	if (error)
		return error;
	dmp_released();
	if (object->type == DMP_OBJECT_REGION)
		dmp_region_free(plane, region_of(object));
	else
		dmp_remote_free(remote_of(object));
	return 0;
}

void dmp_region_free(struct dmp_plane *plane, struct dmp_region *region)
{
	give_slot(plane, region);
	kfree_sensitive(region);
}

void dmp_remote_free(struct dmp_remote *remote)
{
	dmp_pair_remote_free(&remote->granted);
	kfree(remote);
}
