/* SPDX-License-Identifier: MIT */
/*
 * region.h - registered ranges: own ones, which peers may name, and peers' ones
 *
 * A region holds its buffer. A peer names a region by its key: an opaque blob with the
 * region's slot, the plane's incarnation, a generation that never repeats on this plane,
 * 64 random bits, the rights and the length. The owner's side checks every use
 * (dmp_region_admit) and holds the region while bytes move.
 *
 * Revocation. Destroying a region ends its generation: the word of its slot on the region
 * board, shared memory that every shm peer maps for reading, changes first. A shm peer
 * writes down which slot it is about to touch, then reads the word, then copies
 * (shm.h: `touching`); so after the change either the peer sees it, or we see the peer.
 *
 * Locks: plane->lock makes, finds and destroys. The region table's own lock, a leaf, lets the
 * executors of all channels find by key while that goes on: what takes a key may be called
 * with any lock held.
 */
#ifndef DMP_REGION_H
#define DMP_REGION_H

#include <stdbool.h>

#include "plane.h"
#include "region_key.h"

/* Alive at once on one plane, own and peers'; slots of the board. */
#define DMP_REGIONS_MAX DMP_REGION_SLOTS_MAX

struct dmp_embedded_endpoint;

struct dmp_region {
	struct dmp_object object;
	/* immutable after create */
	struct dmp_buffer *buffer;
	__u64 offset;
	__u64 length;
	__u64 secret;			/* the random bits of the key */
	__u32 access;
	__u32 generation;
	__u32 slot;
	/* atomic */
	uint32_t operations;		/* grows only under the table's lock while it is live */
	bool shared;			/* a shm peer was given the memory */
	bool registered;		/* a device was, for a peer on verbs */
};

/* So many bytes of a peer's region, from @offset on, that one rkey covers. */
struct dmp_remote_part {
	__u64 offset;
	__u64 length;
	__u64 base;			/* of the byte `offset`, behind rkey */
	__u32 rkey;
	__u32 grant;			/* the number of the answer that brought it */
};

/* A peer's region, named on an endpoint by REGION_IMPORT. */
struct dmp_remote {
	struct dmp_object object;
	/* immutable after import */
	struct dmp_embedded_endpoint *endpoint;
	__u64 length;
	__u32 access;
	__u32 generation;
	__u32 slot;
	__u32 key_bytes;
	__u8 key[DMP_KEY_BYTES];
	struct dmp_remote_part *parts;	/* verbs: all of it, in order, without a gap */
	__u32 part_count;
	char *address;			/* shm: the first byte of the region here, else NULL */
	void *mapping;			/* shm: what to unmap */
	size_t mapping_bytes;
	/* atomic; grows only under plane->lock */
	uint32_t operations;
};

/*
 * A peer wants to touch (key, offset, length): 0, holding the region, and where the bytes
 * are. -EACCES no such key or right, -ESTALE it was revoked, -EINVAL outside. A length of
 * 0 asks only whether it might; it holds the region too. A release wakes who drains.
 */
int dmp_region_admit(struct dmp_plane *plane, const __u8 *key, __u32 key_bytes, __u64 offset,
		     __u64 length, __u32 access, struct dmp_region **region, char **address);
void dmp_region_release(struct dmp_plane *plane, struct dmp_region *region);

/*
 * For a shm peer that shows @key: a new descriptor of the buffer's memory, for reading only
 * unless REMOTE_WRITE was granted, and where the region lies in it: a byte offset that need
 * not be a page's. -EACCES and -ESTALE as above. -EOPNOTSUPP for memory that has no
 * descriptor (kind USER), or none that is sealed against shrinking (dma-buf).
 */
int dmp_region_share(struct dmp_plane *plane, const __u8 *key, __u32 key_bytes, int *fd,
		     __u64 *offset, __u64 *length);

/*
 * The region board: one 32-bit generation (0: none) for each slot. Made on first use. The
 * descriptor stays the table's.
 */
int dmp_region_board(struct dmp_plane *plane, const uint32_t **words, int *read_only_fd);

/*
 * Does a shm peer touch the region right now? plane->lock held, no channel's; a peer that
 * is stopped in a copy touches it until its process goes on or is gone. Of a region that is
 * revoked: is it registered with a device for a peer on verbs? He is told, here, and has
 * half a second to let go.
 */
bool dmp_region_is_touched_locked(struct dmp_plane *plane, const struct dmp_region *region);

/* With the plane: the table of slots and its lock; closed after every region is freed. */
int dmp_region_open(struct dmp_plane *plane);
void dmp_region_close(struct dmp_plane *plane);

/*
 * Closing the plane: all that is left, executors and peers gone. Neither looks at the buffer
 * or the endpoint, whose counts REGION_DESTROY keeps. Who makes a remote public counts it, in
 * plane->regions, in statistics.regions (taken back by dmp_remote_free) and on its endpoint.
 * drop: of one that never was public.
 */
void dmp_region_free(struct dmp_plane *plane, struct dmp_region *region);
void dmp_remote_free(struct dmp_plane *plane, struct dmp_remote *remote);
void dmp_remote_drop(struct dmp_remote *remote);

/* Commands. REGION_QUERY and REGION_DESTROY serve both kinds; REGION_IMPORT is endpoint's. */
int dmp_region_create(struct dmp_plane *plane, void *argument);
int dmp_region_query(struct dmp_plane *plane, void *argument);
int dmp_region_destroy(struct dmp_plane *plane, void *argument);

#endif /* DMP_REGION_H */
