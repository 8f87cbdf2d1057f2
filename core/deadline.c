// SPDX-License-Identifier: GPL-2.0 OR MIT
/* deadline.c - a bounded heap of deadlines, see deadline.h */
#include "deadline.h"

#define DMP_DEADLINE_OUT 0xffffffffU

size_t dmp_deadline_bytes(__u32 capacity)
{
	return (size_t)capacity * (sizeof(struct dmp_deadline_entry) + sizeof(__u32));
}

void dmp_deadline_init(struct dmp_deadline_heap *heap, void *memory, __u32 capacity)
{
	__u32 index;

	heap->entries = memory;
	heap->place = (__u32 *)(heap->entries + capacity);
	heap->capacity = capacity;
	heap->count = 0;
	for (index = 0; index < capacity; index++)
		heap->place[index] = DMP_DEADLINE_OUT;
}

static void settle_at(struct dmp_deadline_heap *heap, __u32 at,
		      struct dmp_deadline_entry entry)
{
	heap->entries[at] = entry;
	heap->place[entry.index] = at;
}

/* Put @entry where it belongs between @at and the root. */
static void sift_up(struct dmp_deadline_heap *heap, __u32 at,
		    struct dmp_deadline_entry entry)
{
	while (at) {
		__u32 parent = (at - 1) / 2;

		if (heap->entries[parent].deadline_ns <= entry.deadline_ns)
			break;
		settle_at(heap, at, heap->entries[parent]);
		at = parent;
	}
	settle_at(heap, at, entry);
}

/* Put @entry where it belongs between @at and the leaves. */
static void sift_down(struct dmp_deadline_heap *heap, __u32 at,
		      struct dmp_deadline_entry entry)
{
	for (;;) {
		__u32 child = 2 * at + 1;

		if (child >= heap->count)
			break;
		if (child + 1 < heap->count && heap->entries[child + 1].deadline_ns <
						       heap->entries[child].deadline_ns)
			child += 1;
		if (entry.deadline_ns <= heap->entries[child].deadline_ns)
			break;
		settle_at(heap, at, heap->entries[child]);
		at = child;
	}
	settle_at(heap, at, entry);
}

int dmp_deadline_insert(struct dmp_deadline_heap *heap, __u32 index, __u64 deadline_ns)
{
	struct dmp_deadline_entry entry = { .deadline_ns = deadline_ns, .index = index };

	if (index >= heap->capacity)
		return -EINVAL;
	if (heap->place[index] != DMP_DEADLINE_OUT)
		return -EEXIST;
	heap->count += 1;
	sift_up(heap, heap->count - 1, entry);
	return 0;
}

int dmp_deadline_remove(struct dmp_deadline_heap *heap, __u32 index)
{
	struct dmp_deadline_entry last;
	__u32 at;

	if (index >= heap->capacity || heap->place[index] == DMP_DEADLINE_OUT)
		return -ENOENT;
	at = heap->place[index];
	heap->place[index] = DMP_DEADLINE_OUT;
	heap->count -= 1;
	if (at == heap->count)
		return 0;
	last = heap->entries[heap->count];
	if (at && heap->entries[(at - 1) / 2].deadline_ns > last.deadline_ns)
		sift_up(heap, at, last);
	else
		sift_down(heap, at, last);
	return 0;
}

bool dmp_deadline_next(const struct dmp_deadline_heap *heap, __u32 *index,
		       __u64 *deadline_ns)
{
	if (!heap->count)
		return false;
	*index = heap->entries[0].index;
	*deadline_ns = heap->entries[0].deadline_ns;
	return true;
}
