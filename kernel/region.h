/* SPDX-License-Identifier: GPL-2.0 */
/*
 * region.h - registered ranges: own ones, which peers may name, and peers' ones
 *
 * A region holds its buffer. A peer names a region by its key (core/region_key.h), which the
 * owner's side checks at every use. Bytes move without us, by registrations that a pair made
 * after it had asked (dmp_pair_admission): so a region that ends is revoked at each of them.
 *
 * Locks: plane->lock makes, finds and destroys. The table's own lock, a leaf, lets the
 * executors of all channels find by key meanwhile: what takes a key may be called with any
 * lock held.
 */
#ifndef DMP_KERNEL_REGION_H
#define DMP_KERNEL_REGION_H

#include "buffer.h"
#include "rdma_pair.h"
#include "region_key.h"

#define DMP_REGIONS_MAX DMP_REGION_SLOTS_MAX

struct dmp_kernel_endpoint;

struct dmp_region {
	struct dmp_object object;
	/* immutable after create */
	struct dmp_buffer *buffer;
	struct dmp_region_key key;
	u64 offset;			/* in the buffer */
	/* atomic */
	atomic_t operations;		/* grows only under the table's lock while it is live */
	bool registered;		/* a pair was given its memory; never taken back */
	/* protected by the table's lock */
	bool live;			/* peers may use it */
};

/* A peer's region, named on an endpoint by REGION_IMPORT. */
struct dmp_remote {
	struct dmp_object object;
	/* immutable after import */
	struct dmp_kernel_endpoint *endpoint;
	struct dmp_region_key key;
	u32 key_bytes;
	u8 bytes[DMP_KEY_BYTES];	/* the key as the peer wrote it */
	struct dmp_pair_remote granted;
	/* atomic; grows only with plane->lock held */
	atomic_t operations;
};

/* With the plane. */
void dmp_region_open(struct dmp_plane *plane);
void dmp_region_close(struct dmp_plane *plane);

/*
 * A peer wants to touch (key, offset, length): 0, holding the region. -EACCES no such key or
 * right, -ESTALE it was revoked, -EINVAL outside. A length of 0 asks only whether it might.
 */
int dmp_region_admit(struct dmp_plane *plane, const u8 *key, u32 key_bytes, u64 offset,
		     u64 length, u32 access, struct dmp_region **region);
void dmp_region_release(struct dmp_region *region);

/* The same for a pair that will register it. */
int dmp_region_register(struct dmp_plane *plane, const u8 *key, u32 key_bytes,
			struct dmp_pair_admitted *admitted);

/* A remote with everything filled in becomes known. -ENOSPC, -ENOMEM. */
int dmp_remote_publish(struct dmp_plane *plane, struct dmp_remote *remote);

/* Closing the plane: out of the table, or never in it. */
void dmp_region_free(struct dmp_plane *plane, struct dmp_region *region);
void dmp_remote_free(struct dmp_remote *remote);

/* Commands. QUERY and DESTROY serve both kinds; REGION_IMPORT is remote.c's. */
int dmp_region_create(struct dmp_plane *plane, void *argument);
int dmp_region_query(struct dmp_plane *plane, void *argument);
int dmp_region_destroy(struct dmp_plane *plane, void *argument);

#endif /* DMP_KERNEL_REGION_H */
