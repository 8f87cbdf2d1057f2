// SPDX-License-Identifier: MIT
/* test_queue.c - the index queue, every order of operations on three indices */
#include <string.h>

#include "check.h"
#include "queue.h"

#define CAPACITY 3
#define DEPTH	 6

/* The model: a plain array in order. */
struct model {
	__u32 entries[CAPACITY];
	__u32 count;
};

static int model_find(const struct model *model, __u32 index)
{
	__u32 i;

	for (i = 0; i < model->count; i++)
		if (model->entries[i] == index)
			return (int)i;
	return -1;
}

static void model_remove(struct model *model, int place)
{
	memmove(&model->entries[place], &model->entries[place + 1],
		(model->count - 1 - (__u32)place) * sizeof(__u32));
	model->count -= 1;
}

static void compare(const struct dmp_queue *queue, const struct model *model)
{
	__u32 index = queue->first;
	__u32 i;

	CHECK(queue->count == model->count);
	for (i = 0; i < model->count; i++) {
		CHECK(index == model->entries[i]);
		index = queue->links[index].next;
	}
	CHECK(index == DMP_QUEUE_NONE);
	for (i = 0; i < CAPACITY; i++)
		CHECK(dmp_queue_holds(queue, i) == (model_find(model, i) >= 0));
}

static void step(struct dmp_queue *queue, struct model *model, int operation)
{
	__u32 index = (__u32)operation % CAPACITY;
	int place = model_find(model, index);

	switch (operation / CAPACITY) {
	case 0:
		CHECK(dmp_queue_push(queue, index) == (place < 0 ? 0 : -EEXIST));
		if (place < 0)
			model->entries[model->count++] = index;
		break;
	case 1:
		CHECK(dmp_queue_push_first(queue, index) == (place < 0 ? 0 : -EEXIST));
		if (place < 0) {
			memmove(&model->entries[1], &model->entries[0],
				model->count * sizeof(__u32));
			model->entries[0] = index;
			model->count += 1;
		}
		break;
	case 2:
		CHECK(dmp_queue_remove(queue, index) == (place < 0 ? -ENOENT : 0));
		if (place >= 0)
			model_remove(model, place);
		break;
	default:
		if (model->count) {
			CHECK(dmp_queue_peek(queue) == model->entries[0]);
			CHECK(dmp_queue_pop(queue) == model->entries[0]);
			model_remove(model, 0);
		} else {
			CHECK(dmp_queue_peek(queue) == DMP_QUEUE_NONE);
			CHECK(dmp_queue_pop(queue) == DMP_QUEUE_NONE);
		}
	}
	compare(queue, model);
}

int main(void)
{
	const int operations = 3 * CAPACITY + 1;
	struct dmp_queue_link links[CAPACITY];
	struct dmp_queue queue;
	long total = 1, number, rest;
	int i;

	CHECK(dmp_queue_bytes(CAPACITY) == sizeof(links));
	for (i = 0; i < DEPTH; i++)
		total *= operations;
	for (number = 0; number < total; number++) {
		struct model model = { .count = 0 };

		dmp_queue_init(&queue, links, CAPACITY);
		for (i = 0, rest = number; i < DEPTH; i++, rest /= operations)
			step(&queue, &model, (int)(rest % operations));
	}
	CHECK(dmp_queue_push(&queue, CAPACITY) == -EINVAL);
	CHECK(dmp_queue_push_first(&queue, CAPACITY) == -EINVAL);
	CHECK(dmp_queue_remove(&queue, CAPACITY) == -ENOENT);
	CHECK(!dmp_queue_holds(&queue, CAPACITY));
	return 0;
}
