/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * ring.h - one side of a ring shared with somebody who is not trusted
 *
 * Invariants
 *  - slots is a power of two, at most DMP_SLOTS_MAX; indices run freely over 32 bits.
 *  - 0 <= tail - head <= slots, modulo 2^32.
 *  - Our own index is kept here, privately: the word in shared memory is only told.
 *  - The other side's word is read once per call; an impossible value is -EPROTO and
 *    changes nothing.
 *
 * The ring owns no memory; entries are read and written by the caller, at
 * index & (slots - 1). One side calls at a time: the caller serialises.
 */
#ifndef DMP_CORE_RING_H
#define DMP_CORE_RING_H

#include "types.h"

struct dmp_ring {
	__u32 *own_word;		/* shared: we store */
	const __u32 *other_word;	/* shared: they store */
	__u32 own;			/* our index, the truth */
	__u32 slots;
};

/* Starts at the value both words have now. -EINVAL if slots is not a power of two in range. */
int dmp_ring_init(struct dmp_ring *ring, __u32 *own_word, const __u32 *other_word, __u32 slots);

/* Producer: how many entries can be written from ring->own on. */
int dmp_ring_room(const struct dmp_ring *ring, __u32 *room);

/* Consumer: how many entries can be read from ring->own on. */
int dmp_ring_ready(const struct dmp_ring *ring, __u32 *ready);

/* Moves our index by @count and tells the other side. Must follow room() or ready(). */
void dmp_ring_advance(struct dmp_ring *ring, __u32 count);

#endif /* DMP_CORE_RING_H */
