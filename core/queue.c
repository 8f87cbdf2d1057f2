// SPDX-License-Identifier: GPL-2.0 OR MIT
/* queue.c - an ordered queue of indices, see queue.h */
#include "queue.h"

size_t dmp_queue_bytes(__u32 capacity)
{
	return (size_t)capacity * sizeof(struct dmp_queue_link);
}

void dmp_queue_init(struct dmp_queue *queue, void *memory, __u32 capacity)
{
	__u32 index;

	queue->links = memory;
	queue->capacity = capacity;
	queue->count = 0;
	queue->first = DMP_QUEUE_NONE;
	queue->last = DMP_QUEUE_NONE;
	for (index = 0; index < capacity; index++)
		queue->links[index].next = DMP_QUEUE_OUT;
}

bool dmp_queue_holds(const struct dmp_queue *queue, __u32 index)
{
	return index < queue->capacity &&
	       queue->links[index].next != DMP_QUEUE_OUT;
}

int dmp_queue_push(struct dmp_queue *queue, __u32 index)
{
	if (index >= queue->capacity)
		return -EINVAL;
	if (dmp_queue_holds(queue, index))
		return -EEXIST;
	queue->links[index].next = DMP_QUEUE_NONE;
	queue->links[index].previous = queue->last;
	if (queue->last == DMP_QUEUE_NONE)
		queue->first = index;
	else
		queue->links[queue->last].next = index;
	queue->last = index;
	queue->count += 1;
	return 0;
}

int dmp_queue_push_first(struct dmp_queue *queue, __u32 index)
{
	if (index >= queue->capacity)
		return -EINVAL;
	if (dmp_queue_holds(queue, index))
		return -EEXIST;
	queue->links[index].next = queue->first;
	queue->links[index].previous = DMP_QUEUE_NONE;
	if (queue->first == DMP_QUEUE_NONE)
		queue->last = index;
	else
		queue->links[queue->first].previous = index;
	queue->first = index;
	queue->count += 1;
	return 0;
}

int dmp_queue_remove(struct dmp_queue *queue, __u32 index)
{
	struct dmp_queue_link *link;

	if (!dmp_queue_holds(queue, index))
		return -ENOENT;
	link = &queue->links[index];
	if (link->previous == DMP_QUEUE_NONE)
		queue->first = link->next;
	else
		queue->links[link->previous].next = link->next;
	if (link->next == DMP_QUEUE_NONE)
		queue->last = link->previous;
	else
		queue->links[link->next].previous = link->previous;
	link->next = DMP_QUEUE_OUT;
	queue->count -= 1;
	return 0;
}

__u32 dmp_queue_peek(const struct dmp_queue *queue)
{
	return queue->first;
}

__u32 dmp_queue_pop(struct dmp_queue *queue)
{
	__u32 index = queue->first;

	if (index != DMP_QUEUE_NONE)
		dmp_queue_remove(queue, index);
	return index;
}
