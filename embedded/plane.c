// SPDX-License-Identifier: MIT
/* plane.c - opening, closing, mapping and waiting on an embedded plane */
#define _GNU_SOURCE
#include "plane.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include "copy.h"
#include "endpoint_embedded.h"
#include "lifetime.h"
#include "listener.h"
#include "process.h"
#include "wait.h"

static int open_locks(struct dmp_plane *plane)
{
	pthread_condattr_t monotonic;
	int error = pthread_mutex_init(&plane->lock, NULL);

	if (error)
		return -error;
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	error = pthread_cond_init(&plane->released, &monotonic);
	pthread_condattr_destroy(&monotonic);
	if (error)
		pthread_mutex_destroy(&plane->lock);
	return -error;
}

/* As soon as we are loaded: dmp_crc32c() is called without a plane, too. */
__attribute__((constructor)) static void choose_loops(void)
{
	dmp_copy_init();
}

int dmp_open(struct dmp_plane **opened)
{
	struct dmp_plane *plane = calloc(1, sizeof(*plane));
	int error;

	if (!plane)
		return -ENOMEM;
	plane->owner = dmp_process_number();
	dmp_table_init(&plane->table);
	if (getrandom(&plane->incarnation, sizeof(plane->incarnation), 0) !=
	    sizeof(plane->incarnation)) {
		error = -EAGAIN;
		goto err_free;
	}
	error = open_locks(plane);
	if (error)
		goto err_free;
	error = dmp_board_open(plane);
	if (error)
		goto err_locks;
	error = dmp_region_open(plane);
	if (error)
		goto err_board;
	*opened = plane;
	return 0;

err_board:
	dmp_board_close(plane);
err_locks:
	pthread_cond_destroy(&plane->released);
	pthread_mutex_destroy(&plane->lock);
err_free:
	free(plane);
	return error;
}

/*
 * Listeners bring connections, channels run them and hold buffers with their operations,
 * peers' regions hold endpoints, own regions hold buffers.
 */
static const uint32_t closing_order[] = { DMP_OBJECT_LISTENER, DMP_OBJECT_CHANNEL,
					  DMP_OBJECT_REMOTE, DMP_OBJECT_ENDPOINT,
					  DMP_OBJECT_REGION };

static void close_object(struct dmp_plane *plane, struct dmp_object *object)
{
	switch (object->type) {
	case DMP_OBJECT_LISTENER:
		dmp_listener_free(plane, (struct dmp_listener *)object);
		break;
	case DMP_OBJECT_CHANNEL:
		dmp_channel_free(plane, (struct dmp_embedded_channel *)object);
		break;
	case DMP_OBJECT_REMOTE:
		dmp_remote_free(plane, (struct dmp_remote *)object);
		break;
	case DMP_OBJECT_ENDPOINT:
		dmp_table_remove(&plane->table, object);
		dmp_endpoint_free(plane, (struct dmp_embedded_endpoint *)object);
		break;
	case DMP_OBJECT_REGION:
		dmp_region_free(plane, (struct dmp_region *)object);
		break;
	default:
		break;
	}
}

int dmp_close(struct dmp_plane *plane)
{
	struct dmp_object *object;
	uint32_t bucket, slot, kind;

	if (plane->owner != dmp_process_number())
		return -EPERM;
	/* Who holds goes before what is held: see closing_order. */
	for (kind = 0; kind < sizeof(closing_order) / sizeof(closing_order[0]); kind++)
		for (slot = 0; slot < plane->table.capacity; slot++) {
			object = dmp_table_at(&plane->table, slot);
			if (object && object->type == closing_order[kind])
				close_object(plane, object);
		}
	for (bucket = 0; bucket < DMP_MAPPING_BUCKETS; bucket++)
		while (plane->mappings[bucket])
			dmp_mapping_remove_locked(plane, plane->mappings[bucket]);
	for (slot = 0; slot < plane->table.capacity; slot++) {
		object = dmp_table_at(&plane->table, slot);
		if (object)
			dmp_buffer_free(plane, (struct dmp_buffer *)object);
	}
	dmp_table_free(&plane->table);
	dmp_region_close(plane);
	dmp_board_close(plane);
	pthread_cond_destroy(&plane->released);
	pthread_mutex_destroy(&plane->lock);
	free(plane);
	return 0;
}

struct dmp_object *dmp_plane_find_locked(struct dmp_plane *plane, uint32_t id, uint32_t type,
					 int *error)
{
	struct dmp_object *object = dmp_table_find(&plane->table, id);

	if (!object || object->type != type) {
		*error = -ENOENT;
		return NULL;
	}
	*error = dmp_lifetime_use(object->state);
	return *error ? NULL : object;
}

void dmp_plane_released(struct dmp_plane *plane)
{
	/*
	 * Pairs with the add in dmp_plane_wait_released_locked: either we see the drainer,
	 * or it, counting holders after the add, sees that this one has gone.
	 */
	if (__atomic_load_n(&plane->drainers, __ATOMIC_SEQ_CST) == 0)
		return;
	pthread_mutex_lock(&plane->lock);
	pthread_cond_broadcast(&plane->released);
	pthread_mutex_unlock(&plane->lock);
}

int dmp_plane_wait_released_locked(struct dmp_plane *plane, uint64_t deadline_ns)
{
	/* Exports elsewhere end without telling us: look again every few milliseconds. */
	uint64_t until_ns = dmp_now_ns() + 5000000u;
	struct timespec until;

	if (deadline_ns != 0 && deadline_ns <= dmp_now_ns())
		return -ETIMEDOUT;
	if (deadline_ns != 0 && deadline_ns < until_ns)
		until_ns = deadline_ns;
	until.tv_sec = (time_t)(until_ns / 1000000000u);
	until.tv_nsec = (long)(until_ns % 1000000000u);
	pthread_cond_timedwait(&plane->released, &plane->lock, &until);
	return 0;
}

static uint32_t bucket_of(const void *address)
{
	return (uint32_t)(((uintptr_t)address >> 12) * 2654435761u) % DMP_MAPPING_BUCKETS;
}

struct dmp_mapping *dmp_mapping_find_locked(struct dmp_plane *plane, void *address)
{
	struct dmp_mapping *mapping = plane->mappings[bucket_of(address)];

	while (mapping && mapping->address != address)
		mapping = mapping->next;
	return mapping;
}

int dmp_mapping_add_locked(struct dmp_plane *plane, struct dmp_object *object, void *address,
			   size_t length)
{
	struct dmp_mapping *mapping = dmp_mapping_find_locked(plane, address);

	if (mapping) {
		mapping->references++;
		return 0;
	}
	mapping = malloc(sizeof(*mapping));
	if (!mapping)
		return -ENOMEM;
	mapping->address = address;
	mapping->length = length;
	mapping->references = 1;
	mapping->object = object;
	mapping->next = plane->mappings[bucket_of(address)];
	plane->mappings[bucket_of(address)] = mapping;
	return 0;
}

void dmp_mapping_remove_locked(struct dmp_plane *plane, struct dmp_mapping *mapping)
{
	struct dmp_mapping **link = &plane->mappings[bucket_of(mapping->address)];

	while (*link != mapping)
		link = &(*link)->next;
	*link = mapping->next;
	if (!mapping->object)
		munmap(mapping->address, mapping->length);
	free(mapping);
}

static int map_locked(struct dmp_plane *plane, size_t length, int protection,
		      uint64_t map_offset, void **address)
{
	struct dmp_object *object;
	int error;

	if (map_offset & (DMP_MAP_UNIT - 1) || map_offset >> 52)
		return -EINVAL;
	object = dmp_table_find(&plane->table, (uint32_t)(map_offset / DMP_MAP_UNIT));
	if (!object)
		return -ENOENT;
	error = dmp_lifetime_use(object->state);
	if (error)
		return error;
	if (object->type == DMP_OBJECT_BUFFER)
		return dmp_buffer_map_locked(plane, (struct dmp_buffer *)object, length,
					     protection, address);
	if (object->type != DMP_OBJECT_CHANNEL)
		return -EINVAL;
	return dmp_channel_map_locked(plane, (struct dmp_embedded_channel *)object, length,
				      protection, address);
}

int dmp_mmap(struct dmp_plane *plane, size_t length_bytes, int protection, uint64_t map_offset,
	     void **address)
{
	int error;

	if (plane->owner != dmp_process_number())
		return -EPERM;
	if (length_bytes == 0 ||
	    (protection != PROT_READ && protection != (PROT_READ | PROT_WRITE)))
		return -EINVAL;
	pthread_mutex_lock(&plane->lock);
	error = map_locked(plane, length_bytes, protection, map_offset, address);
	if (!error)
		dmp_board_add(&plane->board->statistics.mappings, 1);
	pthread_mutex_unlock(&plane->lock);
	return error;
}

int dmp_munmap(struct dmp_plane *plane, void *address)
{
	struct dmp_mapping *mapping;

	if (plane->owner != dmp_process_number())
		return -EPERM;
	pthread_mutex_lock(&plane->lock);
	mapping = dmp_mapping_find_locked(plane, address);
	if (!mapping) {
		pthread_mutex_unlock(&plane->lock);
		return -EINVAL;
	}
	if (mapping->object && mapping->object->type == DMP_OBJECT_BUFFER)
		((struct dmp_buffer *)mapping->object)->mappings--;
	else if (mapping->object)
		((struct dmp_embedded_channel *)mapping->object)->mappings--;
	if (--mapping->references == 0)
		dmp_mapping_remove_locked(plane, mapping);
	dmp_board_add(&plane->board->statistics.mappings, (__u64)-1);
	pthread_cond_broadcast(&plane->released);
	pthread_mutex_unlock(&plane->lock);
	return 0;
}

void dmp_plane_notify(struct dmp_plane *plane)
{
	/* Pairs with the add in dmp_poll: we see it, or it sees the completion. */
	if (__atomic_load_n(&plane->poll_waiters, __ATOMIC_SEQ_CST) == 0)
		return;
	__atomic_add_fetch(&plane->poll_sequence, 1, __ATOMIC_RELEASE);
	dmp_futex_wake_all(&plane->poll_sequence);
}

static bool any_unread(struct dmp_plane *plane)
{
	bool unread = false;
	uint32_t slot;

	pthread_mutex_lock(&plane->lock);
	for (slot = 0; slot < plane->table.capacity && !unread; slot++) {
		struct dmp_object *object = dmp_table_at(&plane->table, slot);

		unread = object && object->type == DMP_OBJECT_CHANNEL &&
			 dmp_channel_has_unread((struct dmp_embedded_channel *)object);
	}
	pthread_mutex_unlock(&plane->lock);
	return unread;
}

int dmp_poll(struct dmp_plane *plane, uint64_t deadline_ns)
{
	int error = 0, ready = 0;

	if (plane->owner != dmp_process_number())
		return -EPERM;
	__atomic_add_fetch(&plane->poll_waiters, 1, __ATOMIC_SEQ_CST);
	for (;;) {
		uint32_t seen = __atomic_load_n(&plane->poll_sequence, __ATOMIC_ACQUIRE);

		ready = any_unread(plane);
		if (ready || error == -ETIMEDOUT || error == -EINTR)
			break;
		error = dmp_futex_wait(&plane->poll_sequence, seen, deadline_ns);
	}
	__atomic_sub_fetch(&plane->poll_waiters, 1, __ATOMIC_RELAXED);
	return ready ? 1 : error == -EINTR ? -EINTR : 0;
}
