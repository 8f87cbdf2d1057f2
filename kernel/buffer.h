/* SPDX-License-Identifier: GPL-2.0 */
/*
 * buffer.h - a buffer: an id on one plane for a memory, and who holds it
 *
 * Freed only when nobody holds it (L3): mappings, operations in flight, and the exports
 * of its memory are counted; destroy looks at them under plane->lock held for writing,
 * while new holders need it at least for reading.
 */
#ifndef DMP_KERNEL_BUFFER_H
#define DMP_KERNEL_BUFFER_H

#include "memory.h"
#include "plane.h"

/* Where the pages are. */
struct dmp_placement {
	u32 how;		/* DMP_PLACEMENT_* */
	u64 pages;		/* of memory->page_bytes */
	u64 pages_misplaced;
	u64 node_pages[DMP_NODES_MAX];
};

struct dmp_buffer {
	struct dmp_object object;
	/* immutable after create */
	struct dmp_plane *plane;
	struct dmp_memory *memory;	/* a reference */
	struct dmp_policy policy;
	u32 create_flags;
	/* protected by plane->lock */
	struct dmp_placement placement;
	u64 revocation;			/* its number among the plane's, 0 if not revoked */
	u32 regions;
	/* atomic; grow only with plane->lock held */
	atomic_t mappings;
	atomic_t operations;
};

/* placement.c */
int dmp_placement_check(const struct dmp_policy *policy);
void dmp_placement_count(struct dmp_memory *memory, const struct dmp_policy *policy,
			 struct dmp_placement *placement);

/* mapping.c: mmap of the plane's fd. mmap_lock held; plane->lock (read) is given up meanwhile. */
int dmp_buffer_map(struct dmp_plane *plane, struct dmp_buffer *buffer,
		   struct vm_area_struct *vma);

/* The same for a mapping whose vma is an exporter's (import.c): one more, one fewer. */
void dmp_buffer_mapped(struct dmp_buffer *buffer, u64 bytes);
void dmp_buffer_unmapped(struct dmp_buffer *buffer, u64 bytes);

/* Out of the table, and nobody holds it. */
void dmp_buffer_free(struct dmp_plane *plane, struct dmp_buffer *buffer);

/* An operation takes and gives back its hold. plane->lock is held (read) for the first. */
static inline void dmp_buffer_hold_locked(struct dmp_buffer *buffer)
{
	lockdep_assert_held(&buffer->plane->lock);
	atomic_inc(&buffer->operations);
}

/* The caller then calls dmp_released(), once for many. */
static inline void dmp_buffer_release(struct dmp_buffer *buffer)
{
	/* Release: what the operation did to the memory happens before destroy sees 0. */
	smp_mb__before_atomic();
	atomic_dec(&buffer->operations);
}

/* Goes through all planes: buffers whose memory was revoked become so, channels are told. */
void dmp_buffer_tell_revoked(void);

#endif /* DMP_KERNEL_BUFFER_H */
