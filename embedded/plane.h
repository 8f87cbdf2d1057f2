/* SPDX-License-Identifier: MIT */
/*
 * plane.h - one open embedded plane and what hangs off it
 *
 * Lock order: plane->lock, then channel->lock. Neither is held while bytes are copied
 * or while a thread sleeps.
 *
 * Who holds what
 *  - The plane owns every object in its table. An object leaves the table and is freed
 *    by the thread that destroys it, or by dmp_close().
 *  - A buffer is held by its mappings, by operations in flight (counted when they are
 *    accepted, released before their completion is told), and by exports that anybody
 *    still has open. Destroy answers EBUSY while one of them is there.
 *  - A channel is held by calls inside it (`users`); its rings also by mappings, which
 *    may outlive it.
 */
#ifndef DMP_PLANE_H
#define DMP_PLANE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "libdmaplane.h"
#include "memory.h"
#include "placement.h"
#include "table.h"

#ifndef DMP_VERSION
#define DMP_VERSION "0.1.0"
#endif

#define DMP_BUFFERS_MAX		32768u
#define DMP_CHANNELS_MAX	1024u
#define DMP_MAPPING_BUCKETS	4096u
#define DMP_BUFFER_BYTES_MAX	(1ull << 44)
#define DMP_MAP_UNIT		(1ull << 20)	/* map_offset = id * unit */

/* One address range given out by dmp_mmap(). */
struct dmp_mapping {
	struct dmp_mapping *next;	/* in its bucket */
	void *address;
	size_t length;
	uint32_t references;		/* dmp_mmap() calls not yet undone */
	struct dmp_object *object;	/* NULL once a channel is gone: then we own the range */
};

struct dmp_plane {
	/* immutable after open */
	uint64_t owner;			/* dmp_process_number(): a forked child is somebody else */
	uint64_t incarnation;
	struct dmp_board *board;	/* shared memory others read; fields stored atomically */
	int board_fd;

	pthread_mutex_t lock;
	/* protected by lock */
	struct dmp_table table;
	uint32_t buffers;
	uint32_t channels;
	uint32_t regions;		/* own and peers' */
	uint32_t endpoints;
	uint32_t listeners;
	struct dmp_mapping *mappings[DMP_MAPPING_BUCKETS];
	pthread_cond_t released;	/* a holder went; signalled only when drainers > 0 */
	uint32_t drainers;		/* atomic: threads waiting on `released` */

	struct dmp_region_table *region_table;	/* region.c's, with its own leaf lock */

	/* atomic */
	uint32_t epochs;		/* the last one given to a connection */
	uint32_t regions_writable;	/* of regions, those that peers may write to */
	uint32_t poll_waiters;
	uint32_t poll_sequence;
};

struct dmp_buffer {
	struct dmp_object object;
	/* immutable after create */
	struct dmp_memory memory;
	struct dmp_policy policy;
	uint32_t create_flags;
	/* protected by plane->lock */
	struct dmp_placement placement;
	uint32_t mappings;
	uint32_t regions;
	bool exported;			/* an fd was given out at least once */
	/* atomic */
	uint32_t operations;		/* grows only under plane->lock */
	bool registered;		/* a verbs fabric has it registered, or had */
};

/* A call that found an object it may use. Takes plane->lock held; NULL with *error set. */
struct dmp_object *dmp_plane_find_locked(struct dmp_plane *plane, uint32_t id, uint32_t type,
					 int *error);

/* Something stopped holding an object: wakes those who drain. Any lock but plane->lock. */
void dmp_plane_released(struct dmp_plane *plane);

/* Waits for `released`, or @deadline_ns: 0 or -ETIMEDOUT. plane->lock held and given back. */
int dmp_plane_wait_released_locked(struct dmp_plane *plane, uint64_t deadline_ns);

/* Wakes dmp_poll(). */
void dmp_plane_notify(struct dmp_plane *plane);

/* Mappings: find by address, or make; counted. plane->lock held. */
int dmp_mapping_add_locked(struct dmp_plane *plane, struct dmp_object *object, void *address,
			   size_t length);
struct dmp_mapping *dmp_mapping_find_locked(struct dmp_plane *plane, void *address);
void dmp_mapping_remove_locked(struct dmp_plane *plane, struct dmp_mapping *mapping);

/* Commands: the struct is copied in, flags and reserved bytes are checked. 0 or -errno. */
int dmp_buffer_create(struct dmp_plane *plane, void *argument);
int dmp_buffer_query(struct dmp_plane *plane, void *argument);
int dmp_buffer_destroy(struct dmp_plane *plane, void *argument);
int dmp_buffer_sync(struct dmp_plane *plane, void *argument);
int dmp_buffer_export(struct dmp_plane *plane, void *argument);
int dmp_buffer_import(struct dmp_plane *plane, void *argument);
int dmp_channel_create(struct dmp_plane *plane, void *argument);
int dmp_channel_query(struct dmp_plane *plane, void *argument);
int dmp_channel_destroy(struct dmp_plane *plane, void *argument);
int dmp_channel_enter(struct dmp_plane *plane, void *argument);
int dmp_channel_cancel_command(struct dmp_plane *plane, void *argument);
int dmp_statistics_read(struct dmp_plane *plane, void *argument);
int dmp_histogram_read(struct dmp_plane *plane, void *argument);

int dmp_buffer_map_locked(struct dmp_plane *plane, struct dmp_buffer *buffer, size_t length,
			  int protection, void **address);
void dmp_buffer_free(struct dmp_plane *plane, struct dmp_buffer *buffer);

/* The plane's counters, for everyone to read. */
int dmp_board_open(struct dmp_plane *plane);
void dmp_board_close(struct dmp_plane *plane);
void dmp_board_add(__u64 *field, __u64 delta);

#endif /* DMP_PLANE_H */
