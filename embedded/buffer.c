// SPDX-License-Identifier: MIT
/*
 * buffer.c - the life of a buffer: created, mapped, exported, imported, destroyed
 *
 * The memory itself is memory.c's, where its pages are is placement.c's. Here is who
 * holds it: a buffer is freed only when nobody does (L3).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/dma-buf.h>

#include "endpoint_embedded.h"
#include "lifetime.h"
#include "plane.h"

/* Publishes last: after this the buffer can be found. On failure the memory is freed. */
static int publish(struct dmp_plane *plane, struct dmp_buffer *buffer)
{
	int error = -ENOSPC;

	buffer->object.type = DMP_OBJECT_BUFFER;
	pthread_mutex_lock(&plane->lock);
	if (plane->buffers < DMP_BUFFERS_MAX)
		error = dmp_table_insert(&plane->table, &buffer->object);
	if (!error) {
		dmp_lifetime_move(&buffer->object.state, DMP_STATE_LIVE);
		plane->buffers++;
		dmp_board_add(&plane->board->statistics.buffers, 1);
		dmp_board_add(&plane->board->statistics.buffer_bytes, buffer->memory.length);
	}
	pthread_mutex_unlock(&plane->lock);
	if (error) {
		dmp_memory_free(&buffer->memory);
		free(buffer);
	}
	return error;
}

static int check_create(const struct dmp_buffer_create *create, const struct dmp_policy *policy)
{
	bool user = create->kind == DMP_KIND_USER;

	if (create->kind > DMP_KIND_PEER || create->kind == DMP_KIND_IMPORTED)
		return -EINVAL;
	if (create->kind == DMP_KIND_COHERENT || create->kind == DMP_KIND_PEER ||
	    create->flags & DMP_BUFFER_WRITE_COMBINE)
		return -EOPNOTSUPP;
	if (create->peer_address != 0 || create->peer_device != 0 || create->peer_bar != 0 ||
	    user != (create->user_addr != 0))
		return -EINVAL;
	if (create->flags & DMP_BUFFER_READ_ONLY && !user)
		return -EINVAL;
	if (create->flags & DMP_BUFFER_HUGE_PREFER && create->kind != DMP_KIND_HUGE)
		return -EINVAL;
	if (create->length_bytes == 0 || create->length_bytes > DMP_BUFFER_BYTES_MAX)
		return -EINVAL;
	return dmp_placement_check(policy);
}

/* Finds out where the pages are; a strict request that is not met is refused. */
static int verify(struct dmp_buffer *buffer, bool recheck)
{
	struct dmp_placement placement;
	int error = dmp_placement_count(&buffer->policy, buffer->memory.address,
					buffer->memory.length, buffer->memory.page_bytes, recheck,
					&placement);

	if (error)
		return error;
	if (!recheck && buffer->create_flags & DMP_BUFFER_STRICT) {
		if (placement.how == DMP_PLACEMENT_UNKNOWN)
			return -EOPNOTSUPP;
		if (placement.pages_misplaced != 0)
			return -ENOMEM;
	}
	buffer->placement = placement;
	return 0;
}

int dmp_buffer_create(struct dmp_plane *plane, void *argument)
{
	struct dmp_buffer_create *create = argument;
	struct dmp_policy policy = { .policy = create->policy,
				     .node = create->node,
				     .node_mask = create->node_mask };
	struct dmp_buffer *buffer;
	int error = check_create(create, &policy);

	if (error)
		return error;
	buffer = calloc(1, sizeof(*buffer));
	if (!buffer)
		return -ENOMEM;
	buffer->policy = policy;
	buffer->create_flags = create->flags;
	if (create->kind == DMP_KIND_USER)
		error = dmp_memory_user(&buffer->memory, create->user_addr, create->length_bytes,
					create->flags & DMP_BUFFER_READ_ONLY);
	else
		error = dmp_memory_allocate(&buffer->memory, create->kind, create->length_bytes,
					    create->flags, &policy);
	if (error)
		goto err_free;
	error = verify(buffer, false);
	if (error)
		goto err_memory;
	error = publish(plane, buffer);
	if (error)
		return error;	/* freed by publish */
	create->buffer_id = buffer->object.id;
	create->page_bytes = buffer->memory.page_bytes;
	create->map_offset = buffer->object.id * DMP_MAP_UNIT;
	create->map_bytes = create->kind == DMP_KIND_USER ? 0 : buffer->memory.map_bytes;
	return 0;

err_memory:
	dmp_memory_free(&buffer->memory);
err_free:
	free(buffer);
	return error;
}

int dmp_buffer_import(struct dmp_plane *plane, void *argument)
{
	struct dmp_buffer_import *import = argument;
	struct dmp_buffer *buffer = calloc(1, sizeof(*buffer));
	int error;

	if (!buffer)
		return -ENOMEM;
	buffer->policy.node = -1;
	error = dmp_memory_import(&buffer->memory, import->fd,
				  import->flags & DMP_IMPORT_READ_ONLY);
	if (error)
		goto err_free;
	buffer->memory.kind = DMP_KIND_IMPORTED;
	error = verify(buffer, false);
	if (error)
		goto err_memory;
	error = publish(plane, buffer);
	if (error)
		return error;	/* freed by publish */
	import->buffer_id = buffer->object.id;
	import->length_bytes = buffer->memory.length;
	import->map_offset = buffer->object.id * DMP_MAP_UNIT;
	import->page_bytes = buffer->memory.page_bytes;
	return 0;

err_memory:
	dmp_memory_free(&buffer->memory);
err_free:
	free(buffer);
	return error;
}

static uint32_t exports_of(struct dmp_buffer *buffer)
{
	return buffer->exported && dmp_memory_exported(&buffer->memory) ? 1 : 0;
}

int dmp_buffer_query(struct dmp_plane *plane, void *argument)
{
	struct dmp_buffer_query *query = argument;
	struct dmp_object *object;
	struct dmp_buffer *buffer;
	int error = 0, node;

	pthread_mutex_lock(&plane->lock);
	object = dmp_table_find(&plane->table, query->buffer_id);
	if (!object || object->type != DMP_OBJECT_BUFFER) {
		pthread_mutex_unlock(&plane->lock);
		return -ENOENT;
	}
	buffer = (struct dmp_buffer *)object;
	if (query->flags & DMP_BUFFER_RECHECK)
		error = verify(buffer, true);
	if (!error) {
		query->state = buffer->object.state;
		query->kind = buffer->memory.kind;
		query->policy = buffer->policy.policy;
		query->length_bytes = buffer->memory.length;
		query->map_offset = buffer->object.id * DMP_MAP_UNIT;
		query->page_bytes = buffer->memory.page_bytes;
		query->placement = buffer->placement.how;
		query->pages = buffer->placement.pages;
		query->pages_misplaced = buffer->placement.pages_misplaced;
		query->mappings = buffer->mappings;
		query->regions = buffer->regions;
		query->exports = exports_of(buffer);
		query->operations = __atomic_load_n(&buffer->operations, __ATOMIC_ACQUIRE);
		query->create_flags = buffer->create_flags;
		for (node = 0; node < DMP_NODES_MAX; node++)
			query->node_pages[node] = buffer->placement.node_pages[node];
	}
	pthread_mutex_unlock(&plane->lock);
	return error;
}

static bool held(struct dmp_buffer *buffer)
{
	/* Acquire: what the last operation did to the memory has happened. */
	return buffer->mappings != 0 || buffer->regions != 0 ||
	       __atomic_load_n(&buffer->operations, __ATOMIC_SEQ_CST) != 0 ||
	       exports_of(buffer) != 0;
}

/* Waits until nobody holds a draining buffer. Another thread may have freed it meanwhile. */
static int drain_locked(struct dmp_plane *plane, uint32_t id, uint64_t deadline_ns)
{
	int error = 0;

	__atomic_add_fetch(&plane->drainers, 1, __ATOMIC_SEQ_CST);
	for (;;) {
		struct dmp_object *object = dmp_table_find(&plane->table, id);

		if (!object) {
			error = -ENOENT;
			break;
		}
		if (!held((struct dmp_buffer *)object)) {
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

int dmp_buffer_destroy(struct dmp_plane *plane, void *argument)
{
	struct dmp_destroy *destroy = argument;
	struct dmp_object *object;
	struct dmp_buffer *buffer;
	int error = 0;

	if (!(destroy->flags & DMP_DESTROY_DRAIN) && destroy->deadline_ns != 0)
		return -EINVAL;
	pthread_mutex_lock(&plane->lock);
	object = dmp_table_find(&plane->table, destroy->id);
	if (!object || object->type != DMP_OBJECT_BUFFER) {
		error = -ENOENT;
		goto err_unlock;
	}
	buffer = (struct dmp_buffer *)object;
	if (destroy->flags & DMP_DESTROY_DRAIN) {
		if (object->state == DMP_STATE_LIVE)
			dmp_lifetime_move(&object->state, DMP_STATE_DRAINING);
		error = drain_locked(plane, destroy->id, destroy->deadline_ns);
	} else if (held(buffer)) {
		error = -EBUSY;
	}
	if (error)
		goto err_unlock;
	dmp_table_remove(&plane->table, object);
	plane->buffers--;
	dmp_endpoint_forget_buffer_locked(plane, buffer);
	pthread_mutex_unlock(&plane->lock);
	dmp_buffer_free(plane, buffer);
	return 0;

err_unlock:
	pthread_mutex_unlock(&plane->lock);
	return error;
}

void dmp_buffer_free(struct dmp_plane *plane, struct dmp_buffer *buffer)
{
	dmp_lifetime_move(&buffer->object.state, DMP_STATE_DEAD);
	dmp_board_add(&plane->board->statistics.buffers, (__u64)-1);
	dmp_board_add(&plane->board->statistics.buffer_bytes, -(__u64)buffer->memory.length);
	dmp_memory_free(&buffer->memory);
	free(buffer);
}

int dmp_buffer_sync(struct dmp_plane *plane, void *argument)
{
	struct dmp_buffer_sync *sync = argument;
	struct dma_buf_sync dmabuf = { 0 };
	struct dmp_buffer *buffer;
	int error = 0;

	if (!(sync->flags & (DMP_SYNC_FOR_READ | DMP_SYNC_FOR_WRITE)) || sync->length_bytes == 0)
		return -EINVAL;
	if (sync->offset + sync->length_bytes < sync->offset)
		return -EOVERFLOW;
	pthread_mutex_lock(&plane->lock);
	buffer = (struct dmp_buffer *)dmp_plane_find_locked(plane, sync->buffer_id,
							    DMP_OBJECT_BUFFER, &error);
	if (buffer && sync->offset + sync->length_bytes > buffer->memory.length)
		error = -EINVAL;
	/* CPU memory is coherent; only a device's buffer needs the exporter's word. */
	if (!error && buffer->memory.dmabuf) {
		if (sync->flags & DMP_SYNC_FOR_READ)
			dmabuf.flags |= DMA_BUF_SYNC_READ;
		if (sync->flags & DMP_SYNC_FOR_WRITE)
			dmabuf.flags |= DMA_BUF_SYNC_WRITE;
		if (sync->flags & DMP_SYNC_END)
			dmabuf.flags |= DMA_BUF_SYNC_END;
		if (ioctl(buffer->memory.fd, DMA_BUF_IOCTL_SYNC, &dmabuf) != 0)
			error = -errno;
	}
	pthread_mutex_unlock(&plane->lock);
	return error;
}

int dmp_buffer_export(struct dmp_plane *plane, void *argument)
{
	struct dmp_buffer_export *export = argument;
	struct dmp_buffer *buffer;
	int error, fd = -1;

	pthread_mutex_lock(&plane->lock);
	buffer = (struct dmp_buffer *)dmp_plane_find_locked(plane, export->buffer_id,
							    DMP_OBJECT_BUFFER, &error);
	if (buffer)
		error = dmp_memory_export(&buffer->memory, export->flags, &fd);
	if (!error) {
		buffer->exported = true;
		export->fd = fd;
	}
	pthread_mutex_unlock(&plane->lock);
	return error;
}

int dmp_buffer_map_locked(struct dmp_plane *plane, struct dmp_buffer *buffer, size_t length,
			  int protection, void **address)
{
	void *start = buffer->memory.address;
	int error;

	if (buffer->memory.kind == DMP_KIND_USER)
		return -EOPNOTSUPP;	/* the caller has it mapped already */
	if (length > buffer->memory.map_bytes)
		return -EINVAL;
	if (protection & PROT_WRITE && buffer->memory.read_only)
		return -EPERM;
	if (!(protection & PROT_WRITE) && !buffer->memory.read_only) {
		error = dmp_memory_map_read_only(&buffer->memory, &start);
		if (error)
			return error;
	}
	error = dmp_mapping_add_locked(plane, &buffer->object, start, buffer->memory.map_bytes);
	if (error)
		return error;
	buffer->mappings++;
	*address = start;
	return 0;
}
