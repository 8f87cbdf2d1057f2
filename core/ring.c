// SPDX-License-Identifier: GPL-2.0 OR MIT
/* ring.c - see ring.h for the invariants */
#include "ring.h"

#include "atomic.h"
#include "dmaplane.h"

int dmp_ring_init(struct dmp_ring *ring, __u32 *own_word, const __u32 *other_word, __u32 slots)
{
	if (slots == 0 || slots > DMP_SLOTS_MAX || (slots & (slots - 1)) != 0)
		return -EINVAL;
	ring->own_word = own_word;
	ring->other_word = other_word;
	ring->own = dmp_load_acquire(own_word);
	ring->slots = slots;
	return 0;
}

int dmp_ring_room(const struct dmp_ring *ring, __u32 *room)
{
	/* Pairs with the consumer's store in dmp_ring_advance: it is done with the slots. */
	__u32 used = ring->own - dmp_load_acquire(ring->other_word);

	if (used > ring->slots)
		return -EPROTO;
	*room = ring->slots - used;
	return 0;
}

int dmp_ring_ready(const struct dmp_ring *ring, __u32 *ready)
{
	/* Pairs with the producer's store in dmp_ring_advance: the entries are written. */
	__u32 count = dmp_load_acquire(ring->other_word) - ring->own;

	if (count > ring->slots)
		return -EPROTO;
	*ready = count;
	return 0;
}

void dmp_ring_advance(struct dmp_ring *ring, __u32 count)
{
	ring->own += count;
	/* Pairs with the load in dmp_ring_room or dmp_ring_ready of the other side. */
	dmp_store_release(ring->own_word, ring->own);
}
