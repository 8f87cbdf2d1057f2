// SPDX-License-Identifier: GPL-2.0
/*
 * buffer.c - the life of a buffer: created, queried, exported, imported, destroyed
 *
 * The bytes are a memory's (memory.h), where they are is placement.c's, mappings are
 * mapping.c's. Here is who holds a buffer: it is freed only when nobody does (L3).
 *
 * Memory is made and counted without a lock, and published last. It is freed without a
 * lock, once the buffer is out of the table.
 */
#include <linux/fcntl.h>
#include <linux/file.h>
#include <linux/overflow.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/wait.h>

#include "buffer.h"
#include "channel_kernel.h"
#include "endpoint_kernel.h"
#include "lifetime.h"
#include "trace.h"

/* Buffers of all planes, against dmp_buffers_total_max: an import costs its maker nothing else. */
static atomic_t buffers_total = ATOMIC_INIT(0);

static struct dmp_buffer *new_buffer(void)
{
	struct dmp_buffer *buffer = ERR_PTR(-ENOSPC);

	if ((u32)atomic_inc_return(&buffers_total) <= READ_ONCE(dmp_buffers_total_max)) {
		buffer = kzalloc(sizeof(*buffer), GFP_KERNEL_ACCOUNT);
		if (buffer)
			return buffer;
		buffer = ERR_PTR(-ENOMEM);
	}
	atomic_dec(&buffers_total);
	return buffer;
}

static void free_buffer(struct dmp_buffer *buffer)
{
	kfree(buffer);
	atomic_dec(&buffers_total);
}

static struct dmp_buffer *find_locked(struct dmp_plane *plane, u32 id)
{
	struct dmp_object *object;

	lockdep_assert_held(&plane->lock);
	object = dmp_plane_find_locked(plane, id, DMP_OBJECT_BUFFER);
	return object ? container_of(object, struct dmp_buffer, object) : NULL;
}

/* For new use: NULL with *error -ENOENT, or -ESTALE. */
static struct dmp_buffer *use_locked(struct dmp_plane *plane, u32 id, int *error)
{
	struct dmp_object *object;
	struct dmp_buffer *buffer;

	lockdep_assert_held(&plane->lock);
	object = dmp_plane_use_locked(plane, id, DMP_OBJECT_BUFFER, error);
	if (!object)
		return NULL;
	buffer = container_of(object, struct dmp_buffer, object);
	/* Revoked a moment ago, and the buffer has not been told yet. */
	if (!dmp_memory_alive(buffer->memory)) {
		*error = -ESTALE;
		return NULL;
	}
	return buffer;
}

static void move_locked(struct dmp_buffer *buffer, u32 state)
{
	lockdep_assert_held_write(&buffer->plane->lock);
	if (!WARN_ON_ONCE(dmp_lifetime_move(&buffer->object.state, state)))
		trace_dmp_buffer_state(buffer);
}

/* ---- create and import */

static int check_create(const struct dmp_buffer_create *create, const struct dmp_policy *policy)
{
	bool user = create->kind == DMP_KIND_USER;
	bool peer = create->kind == DMP_KIND_PEER;

	if (create->kind > DMP_KIND_PEER || create->kind == DMP_KIND_IMPORTED)
		return -EINVAL;
	if (!peer && (create->peer_address || create->peer_device || create->peer_bar))
		return -EINVAL;
	if (user == !create->user_addr)
		return -EINVAL;
	if (create->flags & DMP_BUFFER_READ_ONLY && !user)
		return -EINVAL;
	if (create->flags & DMP_BUFFER_HUGE_PREFER && create->kind != DMP_KIND_HUGE)
		return -EINVAL;
	if (create->flags & DMP_BUFFER_WRITE_COMBINE && create->kind != DMP_KIND_PAGES && !peer)
		return -EOPNOTSUPP;
	if (create->flags & DMP_BUFFER_WRITE_COMBINE && !IS_ENABLED(CONFIG_X86))
		return -EOPNOTSUPP;
	if (create->length_bytes == 0 || create->length_bytes > DMP_BUFFER_BYTES_MAX)
		return -EINVAL;
	return dmp_placement_check(policy);
}

static struct dmp_memory *create_memory(const struct dmp_buffer_create *create,
					const struct dmp_policy *policy)
{
	switch (create->kind) {
	case DMP_KIND_COHERENT:
		return dmp_coherent_create(create, policy);
	case DMP_KIND_USER:
		return dmp_user_create(create);
	case DMP_KIND_PEER:
		return dmp_peer_create(create);
	default:
		return dmp_pages_create(create, policy);
	}
}

/* Finds out where the pages are; a strict request that is not met is refused. */
static int verify(struct dmp_buffer *buffer)
{
	struct dmp_placement *placement = &buffer->placement;

	dmp_placement_count(buffer->memory, &buffer->policy, placement);
	if (fatal_signal_pending(current))
		return -EINTR;
	if (!(buffer->create_flags & DMP_BUFFER_STRICT))
		return 0;
	if (placement->how == DMP_PLACEMENT_UNKNOWN)
		return -EOPNOTSUPP;
	return placement->pages_misplaced ? -ENOMEM : 0;
}

/* After this others can find the buffer, and destroy it: its @id is all that is ours. */
static int publish(struct dmp_plane *plane, struct dmp_buffer *buffer, u32 *id)
{
	int error = -ENOSPC;

	buffer->plane = plane;
	buffer->object.type = DMP_OBJECT_BUFFER;
	down_write(&plane->lock);
	/* Whoever revokes it later goes through the tables under this lock, and finds it. */
	if (!dmp_memory_alive(buffer->memory))
		error = -ESTALE;
	else if (plane->buffers < DMP_BUFFERS_MAX)
		error = dmp_plane_insert_locked(plane, &buffer->object);
	if (!error) {
		dmp_lifetime_move(&buffer->object.state, DMP_STATE_LIVE);
		plane->buffers++;
		plane->buffer_bytes += buffer->memory->length;
		trace_dmp_buffer_create(buffer);
		*id = buffer->object.id;
	}
	up_write(&plane->lock);
	return error;
}

int dmp_buffer_create(struct dmp_plane *plane, void *argument)
{
	struct dmp_buffer_create *create = argument;
	struct dmp_policy policy = { .policy = create->policy,
				     .node = create->node,
				     .node_mask = create->node_mask };
	struct dmp_buffer *buffer;
	struct dmp_memory *memory;
	int error;

	error = check_create(create, &policy);
	if (error)
		return error;
	buffer = new_buffer();
	if (IS_ERR(buffer))
		return PTR_ERR(buffer);
	memory = create_memory(create, &policy);
	if (IS_ERR(memory)) {
		error = PTR_ERR(memory);
		goto err_free;
	}
	buffer->memory = memory;
	buffer->policy = policy;
	buffer->create_flags = create->flags;
	create->page_bytes = memory->page_bytes;
	create->map_bytes = memory->map_bytes;
	error = verify(buffer);
	if (!error)
		error = publish(plane, buffer, &create->buffer_id);
	if (error)
		goto err_memory;
	create->map_offset = create->buffer_id * DMP_MAP_UNIT;
	return 0;

err_memory:
	dmp_memory_put(memory);
err_free:
	free_buffer(buffer);
	return error;
}

int dmp_buffer_import(struct dmp_plane *plane, void *argument)
{
	struct dmp_buffer_import *import = argument;
	struct dmp_buffer *buffer;
	struct dmp_memory *memory;
	int error;

	buffer = new_buffer();
	if (IS_ERR(buffer))
		return PTR_ERR(buffer);
	memory = dmp_import_create(import->fd, import->flags & DMP_IMPORT_READ_ONLY);
	if (IS_ERR(memory)) {
		error = PTR_ERR(memory);
		goto err_free;
	}
	buffer->memory = memory;
	buffer->policy.policy = DMP_POLICY_ANY;
	buffer->policy.node = -1;
	import->length_bytes = memory->length;
	import->page_bytes = memory->page_bytes;
	error = verify(buffer);
	if (!error)
		error = publish(plane, buffer, &import->buffer_id);
	if (error)
		goto err_memory;
	import->map_offset = import->buffer_id * DMP_MAP_UNIT;
	return 0;

err_memory:
	dmp_memory_put(memory);
err_free:
	free_buffer(buffer);
	return error;
}

/* ---- query */

/* Counts again, with nothing held but the memory; a buffer revoked meanwhile keeps the old. */
static int recheck(struct dmp_plane *plane, u32 id)
{
	struct dmp_placement placement;
	struct dmp_memory *memory;
	struct dmp_policy policy;
	struct dmp_buffer *buffer;

	down_read(&plane->lock);
	buffer = find_locked(plane, id);
	if (!buffer) {
		up_read(&plane->lock);
		return -ENOENT;
	}
	memory = buffer->memory;
	dmp_memory_get(memory);
	policy = buffer->policy;
	up_read(&plane->lock);
	dmp_placement_count(memory, &policy, &placement);
	if (!fatal_signal_pending(current)) {
		down_write(&plane->lock);
		buffer = find_locked(plane, id);
		if (buffer && dmp_memory_alive(memory))
			buffer->placement = placement;
		up_write(&plane->lock);
	}
	dmp_memory_put(memory);
	return 0;
}

static void describe_locked(const struct dmp_buffer *buffer, struct dmp_buffer_query *query)
{
	const struct dmp_placement *placement = &buffer->placement;
	int node;

	lockdep_assert_held(&buffer->plane->lock);
	query->state = buffer->object.state;
	query->kind = buffer->memory->kind;
	query->policy = buffer->policy.policy;
	query->length_bytes = buffer->memory->length;
	query->map_offset = buffer->object.id * DMP_MAP_UNIT;
	query->page_bytes = buffer->memory->page_bytes;
	query->placement = placement->how;
	query->pages = placement->pages;
	query->pages_misplaced = placement->pages_misplaced;
	query->mappings = atomic_read(&buffer->mappings);
	query->regions = buffer->regions;
	query->exports = atomic_read(&buffer->memory->exports);
	query->operations = atomic_read(&buffer->operations);
	query->create_flags = buffer->create_flags;
	for (node = 0; node < DMP_NODES_MAX; node++)
		query->node_pages[node] = placement->node_pages[node];
}

int dmp_buffer_query(struct dmp_plane *plane, void *argument)
{
	struct dmp_buffer_query *query = argument;
	struct dmp_buffer *buffer;
	int error = 0;

	if (query->flags & DMP_BUFFER_RECHECK)
		error = recheck(plane, query->buffer_id);
	if (error)
		return error;
	down_read(&plane->lock);
	buffer = find_locked(plane, query->buffer_id);
	if (buffer)
		describe_locked(buffer, query);
	else
		error = -ENOENT;
	up_read(&plane->lock);
	return error;
}

/* ---- destroy */

/* New holders need the lock at least for reading, so with it held for writing 0 stays 0. */
static bool held_locked(const struct dmp_buffer *buffer)
{
	bool held = atomic_read(&buffer->mappings) || atomic_read(&buffer->operations) ||
		    atomic_read(&buffer->memory->exports) || buffer->regions;

	lockdep_assert_held_write(&buffer->plane->lock);
	/* Pairs with the barriers of those who let go: what they did has happened. */
	smp_rmb();
	return held;
}

/*
 * Waits until nobody holds the buffer any more and returns it, with the lock held as it
 * was. Without the lock anything may happen, so it is found again after each sleep.
 */
static struct dmp_buffer *drain_locked(struct dmp_plane *plane, u32 id, u64 deadline_ns,
				       int *error)
{
	DEFINE_WAIT_FUNC(wait, woken_wake_function);
	ktime_t deadline = dmp_deadline_time(deadline_ns);
	struct dmp_buffer *buffer;

	lockdep_assert_held_write(&plane->lock);
	*error = 0;
	add_wait_queue(&dmp_released_wait, &wait);
	/* Pairs with dmp_released(): either it sees us waiting, or we see that its holder went. */
	smp_mb();
	for (;;) {
		buffer = find_locked(plane, id);
		if (!buffer) {
			*error = -ENOENT;
			break;
		}
		if (!held_locked(buffer)) {
			*error = 0;
			break;
		}
		if (*error)
			break;
		up_write(&plane->lock);
		*error = dmp_sleep_until(&wait, deadline);
		down_write(&plane->lock);
	}
	remove_wait_queue(&dmp_released_wait, &wait);
	return buffer;
}

int dmp_buffer_destroy(struct dmp_plane *plane, void *argument)
{
	struct dmp_destroy *destroy = argument;
	bool drain = destroy->flags & DMP_DESTROY_DRAIN;
	struct dmp_buffer *buffer;
	int error = 0;

	if (!drain && destroy->deadline_ns != 0)
		return -EINVAL;
	down_write(&plane->lock);
	buffer = find_locked(plane, destroy->id);
	if (!buffer)
		error = -ENOENT;
	else if (drain && buffer->object.state == DMP_STATE_LIVE)
		move_locked(buffer, DMP_STATE_DRAINING);
	if (!error && held_locked(buffer)) {
		if (drain)
			buffer = drain_locked(plane, destroy->id, destroy->deadline_ns, &error);
		else
			error = -EBUSY;
	}
	if (!error) {
		dmp_plane_remove_locked(plane, &buffer->object);
		plane->buffers--;
		plane->buffer_bytes -= buffer->memory->length;
		if (DMP_KERNEL_RDMA)
			dmp_endpoint_forget_memory_locked(plane, buffer->memory);
	}
	up_write(&plane->lock);
	if (!error)
		dmp_buffer_free(plane, buffer);
	return error;
}

/* Context: may sleep; no lock is held (see dmp_memory_put). */
void dmp_buffer_free(struct dmp_plane *plane, struct dmp_buffer *buffer)
{
	dmp_lifetime_move(&buffer->object.state, DMP_STATE_DEAD);
	trace_dmp_buffer_destroy(buffer);
	dmp_memory_put(buffer->memory);
	free_buffer(buffer);
}

/* ---- use */

int dmp_buffer_sync(struct dmp_plane *plane, void *argument)
{
	struct dmp_buffer_sync *sync = argument;
	struct dmp_memory *memory;
	struct dmp_buffer *buffer;
	int error = 0;
	u64 end;

	if (!(sync->flags & (DMP_SYNC_FOR_READ | DMP_SYNC_FOR_WRITE)) || sync->length_bytes == 0)
		return -EINVAL;
	if (check_add_overflow(sync->offset, sync->length_bytes, &end))
		return -EOVERFLOW;
	down_read(&plane->lock);
	buffer = use_locked(plane, sync->buffer_id, &error);
	if (buffer && end > buffer->memory->length)
		error = -EINVAL;
	if (error) {
		up_read(&plane->lock);
		return error;
	}
	/* An exporter may wait for its devices: hold the memory, not the plane. */
	memory = buffer->memory;
	dmp_memory_get(memory);
	up_read(&plane->lock);
	if (memory->operations->sync)
		error = memory->operations->sync(memory, sync->flags);
	dmp_export_sync(memory, sync->flags);
	dmp_memory_put(memory);
	return error;
}

int dmp_buffer_export(struct dmp_plane *plane, void *argument)
{
	struct dmp_buffer_export *export = argument;
	struct dmp_call *call = dmp_call_of(argument);
	struct dmp_buffer *buffer;
	struct file *file = NULL;
	int error, fd;

	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0)
		return fd;
	/* Under the lock, so that whoever destroys the buffer afterwards counts the export. */
	down_read(&plane->lock);
	buffer = use_locked(plane, export->buffer_id, &error);
	if (buffer)
		file = dmp_export_create(buffer->memory,
					 export->flags & DMP_EXPORT_READ_ONLY);
	up_read(&plane->lock);
	if (IS_ERR(file))
		error = PTR_ERR(file);
	if (error) {
		put_unused_fd(fd);
		return error;
	}
	export->fd = fd;
	call->fd = fd;
	call->file = file;	/* owned by the call from here, which installs it */
	return 0;
}

/* ---- revocation */

static void tell_plane(struct dmp_plane *plane)
{
	struct dmp_object *object;
	unsigned long id;
	bool any = false;

	down_write(&plane->lock);
	xa_for_each(&plane->objects, id, object) {
		struct dmp_buffer *buffer = container_of(object, struct dmp_buffer, object);

		if (object->type != DMP_OBJECT_BUFFER || dmp_memory_alive(buffer->memory) ||
		    object->state == DMP_STATE_REVOKED)
			continue;
		move_locked(buffer, DMP_STATE_REVOKED);
		buffer->revocation = ++plane->revocations;
		any = true;
	}
	downgrade_write(&plane->lock);
	if (any)
		xa_for_each_marked(&plane->objects, id, object, DMP_MARK_CHANNEL)
			dmp_channel_tell_events((struct dmp_kernel_channel *)object);
	up_read(&plane->lock);
}

/* Context: may sleep; a work item, no lock held. */
void dmp_buffer_tell_revoked(void)
{
	struct dmp_plane *plane;

	mutex_lock(&dmp_planes_lock);
	list_for_each_entry(plane, &dmp_planes, planes)
		tell_plane(plane);
	mutex_unlock(&dmp_planes_lock);
	dmp_released();
}
