/* SPDX-License-Identifier: GPL-2.0 */
/*
 * plane.h - one open file of /dev/dmaplane and what hangs off it
 *
 * Lock order: mmap_lock, plane->lock, channel->lock. None of ours is held while user
 * memory is read or written, while bytes are copied, or while a thread sleeps for long.
 *
 * Who holds what
 *  - The plane lives as long as its file; every mapping of one of its objects holds that
 *    file. So when the file is released nobody is inside, and nothing is mapped.
 *  - The plane owns every object in its table. An object leaves the table and is freed by
 *    the call that destroys it, or by the file's release.
 *  - A buffer is held by its mappings and by operations in flight; its memory also by
 *    exported dma-bufs, which may outlive buffer and plane.
 *  - A channel is held by calls inside it (`users`); the pages of its rings also by
 *    mappings, which may outlive it.
 *  - Of regions, endpoints and listeners region.h, endpoint_kernel.h and listener.h tell.
 */
#ifndef DMP_KERNEL_PLANE_H
#define DMP_KERNEL_PLANE_H

#include <linux/atomic.h>
#include <linux/fs.h>
#include <linux/list.h>
#include <linux/rwsem.h>
#include <linux/wait.h>
#include <linux/xarray.h>

#include "channel.h"
#include "command.h"
#include "dmaplane.h"

#define DMP_VERSION		"0.1.0"
#define DMP_BUFFERS_MAX		32768U
#define DMP_CHANNELS_MAX	1024U
#define DMP_BUFFER_BYTES_MAX	(1ULL << 44)
#define DMP_MAP_UNIT		(1ULL << 20)	/* map_offset = id * unit */

/* In the table: so that poll finds the channels among many buffers, and so on. */
#define DMP_MARK_CHANNEL	XA_MARK_1
#define DMP_MARK_ENDPOINT	XA_MARK_2

/* Endpoints are there where the kernel has RDMA to carry them. */
#define DMP_KERNEL_RDMA		IS_ENABLED(CONFIG_INFINIBAND_ADDR_TRANS)

enum dmp_object_type {
	DMP_OBJECT_BUFFER = 1,
	DMP_OBJECT_CHANNEL,
	DMP_OBJECT_REGION,
	DMP_OBJECT_REMOTE,		/* a peer's region */
	DMP_OBJECT_LISTENER,
	DMP_OBJECT_ENDPOINT,
};

/* The head of everything that has an id. State is protected by plane->lock. */
struct dmp_object {
	u32 id;
	u32 type;
	u32 state;
};

struct dmp_plane {
	/* immutable after open */
	u64 incarnation;
	pid_t owner;			/* who opened it, for the eyes of an administrator */
	struct list_head planes;	/* in dmp_planes; protected by dmp_planes_lock */

	/* read: find and hold objects. write: change the table, states, what it counts */
	struct rw_semaphore lock;
	/* protected by lock */
	struct xarray objects;		/* id -> struct dmp_object */
	u32 id_next;
	u32 buffers;
	u32 channels;
	u32 regions;			/* own and peers' */
	u32 endpoints;
	u32 listeners;
	u64 buffer_bytes;
	u64 revocations;		/* buffers revoked so far: the number of the latest */
	struct dmp_channel_counters retired;	/* of channels that are gone */
	u64 retired_wakeups;

	/* regions by slot; a leaf: taken with plane->lock or a channel's held, or none */
	struct mutex region_lock;
	/* protected by region_lock */
	struct xarray region_slots;	/* slot -> struct dmp_region */
	u32 region_generation;		/* the last one given */

	/* atomic */
	atomic_t mappings;
	atomic_t epochs;		/* the last one given to a connection */

	wait_queue_head_t poll_wait;	/* woken by every told completion */
};

extern struct list_head dmp_planes;
extern struct mutex dmp_planes_lock;	/* outside plane->lock */
extern const struct file_operations dmp_plane_fops;

/*
 * Woken when something stops holding an object of any plane: a mapping, an operation, an
 * export, a call. Those who drain sleep here; dmp_released() costs a load when nobody does.
 */
extern wait_queue_head_t dmp_released_wait;
void dmp_released(void);

/* Table. plane->lock held: for writing to insert and remove, for reading to find. */
int dmp_plane_insert_locked(struct dmp_plane *plane, struct dmp_object *object);
void dmp_plane_remove_locked(struct dmp_plane *plane, struct dmp_object *object);
struct dmp_object *dmp_plane_find_locked(struct dmp_plane *plane, u32 id, u32 type);

/* The same for new use: NULL with *error -ENOENT, or -ESTALE if it drains or is revoked. */
struct dmp_object *dmp_plane_use_locked(struct dmp_plane *plane, u32 id, u32 type, int *error);

/* Absolute CLOCK_MONOTONIC nanoseconds of the contract, 0 meaning never. */
ktime_t dmp_deadline_time(u64 deadline_ns);

/* One sleep of a drainer who is queued on dmp_released_wait: 0, -EINTR or -ETIMEDOUT. */
int dmp_sleep_until(struct wait_queue_entry *wait, ktime_t deadline);

/* Module parameters. */
extern ulong dmp_bytes_max;		/* of all planes: what we allocated, rings, pins */
extern uint dmp_buffers_total_max;
extern uint dmp_channels_total_max;

/* Handlers: the struct is copied in, its size, flags and reserved bytes are checked. */
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
int dmp_topology_fill(struct dmp_plane *plane, void *argument);

/*
 * One call. Handlers get `argument`; one that gives the caller a file leaves it here with
 * the fd reserved for it, and it is installed once the answer has reached the caller.
 */
struct dmp_call {
	struct file *file;	/* NULL: none */
	int fd;
	u64 argument[DMP_COMMAND_BYTES_MAX / 8];
};

static inline struct dmp_call *dmp_call_of(void *argument)
{
	return container_of(argument, struct dmp_call, argument);
}

/* Context: may sleep; called with no lock held. */
long dmp_command(struct dmp_plane *plane, unsigned int number, void __user *argument);

#endif /* DMP_KERNEL_PLANE_H */
