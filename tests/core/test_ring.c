// SPDX-License-Identifier: MIT
/*
 * test_ring.c - a ring of four, every order of operations
 *
 * Law: tail - head stays within 0 .. slots whatever the order, entries come out once and
 * in order, indices survive the 2^32 wrap, and an impossible index of the other side is
 * -EPROTO and changes nothing.
 */
#include "check.h"
#include "dmaplane.h"
#include "ring.h"

#define SLOTS 4
#define DEPTH 9		/* steps of one order: each pushes or pops 1 .. 2 entries */

struct world {
	__u32 head, tail;
	__u32 entries[SLOTS];
	struct dmp_ring producer, consumer;
	__u32 pushed, popped;
};

static void start(struct world *world, __u32 at)
{
	world->head = at;
	world->tail = at;
	world->pushed = 0;
	world->popped = 0;
	CHECK(dmp_ring_init(&world->producer, &world->tail, &world->head, SLOTS) == 0);
	CHECK(dmp_ring_init(&world->consumer, &world->head, &world->tail, SLOTS) == 0);
}

static void push(struct world *world, __u32 wanted)
{
	__u32 room, number;

	CHECK(dmp_ring_room(&world->producer, &room) == 0);
	CHECK(room == SLOTS - (world->pushed - world->popped));
	if (wanted > room)
		wanted = room;
	for (number = 0; number < wanted; number++)
		world->entries[(world->producer.own + number) % SLOTS] = world->pushed++;
	dmp_ring_advance(&world->producer, wanted);
}

static void pop(struct world *world, __u32 wanted)
{
	__u32 ready, number;

	CHECK(dmp_ring_ready(&world->consumer, &ready) == 0);
	CHECK(ready == world->pushed - world->popped);
	if (wanted > ready)
		wanted = ready;
	for (number = 0; number < wanted; number++)
		CHECK(world->entries[(world->consumer.own + number) % SLOTS] == world->popped++);
	dmp_ring_advance(&world->consumer, wanted);
}

static void test_every_order_keeps_entries_in_order(__u32 at)
{
	__u32 order, step, steps;

	for (order = 0; order < 1u << (2 * DEPTH); order++) {
		struct world world;

		start(&world, at);
		for (step = 0, steps = order; step < DEPTH; step++, steps >>= 2) {
			if (steps & 1)
				push(&world, 1 + (steps >> 1 & 1));
			else
				pop(&world, 1 + (steps >> 1 & 1));
		}
	}
}

static void test_impossible_index_is_refused_and_changes_nothing(void)
{
	struct world world;
	__u32 wrong, out = 77;

	for (wrong = 1; wrong < 100; wrong++) {
		start(&world, 0xfffffffeu);
		push(&world, 3);
		world.head = 0xfffffffeu - wrong;	/* freed more than there was */
		CHECK(dmp_ring_room(&world.producer, &out) == (wrong <= 1 ? 0 : -EPROTO));
		start(&world, 0xfffffffeu);
		world.tail = 0xfffffffeu - wrong;	/* behind the head */
		CHECK(dmp_ring_ready(&world.consumer, &out) == -EPROTO);
		world.tail = 0xfffffffeu + SLOTS + wrong;
		CHECK(dmp_ring_ready(&world.consumer, &out) == -EPROTO);
		CHECK(world.consumer.own == 0xfffffffeu);
	}
}

static void test_slots_must_be_a_power_of_two_in_range(void)
{
	__u32 head = 0, tail = 0, slots;
	struct dmp_ring ring;

	for (slots = 0; slots <= 2 * DMP_SLOTS_MAX; slots++) {
		int allowed = slots != 0 && slots <= DMP_SLOTS_MAX && !(slots & (slots - 1));

		CHECK(dmp_ring_init(&ring, &head, &tail, slots) == (allowed ? 0 : -EINVAL));
	}
}

int main(void)
{
	test_every_order_keeps_entries_in_order(0);
	test_every_order_keeps_entries_in_order(0xfffffffcu);
	test_impossible_index_is_refused_and_changes_nothing();
	test_slots_must_be_a_power_of_two_in_range();
	return 0;
}
