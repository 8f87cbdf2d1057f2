// SPDX-License-Identifier: MIT
/*
 * test_channel.c - the channel machine under seeded random orders
 *
 * Laws asserted after every step
 *  L1  each accepted submission completes exactly once; none appears from nowhere
 *  L2  in_flight + unread never exceeds completion_slots
 *  events arrive in order, each once, and take no slot an operation has reserved
 *  links: what is linked to a failure is cancelled and never ran; what ran after a link
 *  ran after the success of its predecessor. fences: nothing runs across one.
 */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "channel.h"
#include "check.h"

#define SLOTS 8
#define COMPLETIONS 16
#define EVENT_DATA (1ull << 40)	/* user_data of the first event */
#define IDS 4096		/* submissions of one run; user_data is the number */

enum fate { UNSEEN, ACCEPTED, RAN, COMPLETED };

struct world {
	struct dmp_ring_control control;
	struct dmp_submission submissions[SLOTS];
	struct dmp_completion completions[COMPLETIONS];
	struct dmp_channel channel;
	struct dmp_histogram_counts latency;
	enum fate fate[IDS];
	__s32 result[IDS];
	__u16 flags[IDS];
	__u16 operation[IDS];
	__u32 next, accepted, completed, running[COMPLETIONS], running_count;
	__u32 events, events_seen;
	__u64 now, random;
};

static __u32 roll(struct world *world, __u32 sides)
{
	world->random ^= world->random << 13;
	world->random ^= world->random >> 7;
	world->random ^= world->random << 17;
	return (__u32)(world->random >> 33) % sides;
}

static void submit(struct world *world)
{
	struct dmp_submission *slot;
	__u32 used = world->control.submit_tail - world->control.submit_head;

	if (used == SLOTS || world->next == IDS)
		return;
	slot = &world->submissions[world->control.submit_tail % SLOTS];
	__builtin_memset(slot, 0, sizeof(*slot));
	slot->operation = roll(world, 8) == 0 ? DMP_OP_FENCE : DMP_OP_NOP;
	slot->flags = roll(world, 3) == 0 ? DMP_SUBMIT_LINK : 0;
	slot->user_data = world->next;
	slot->deadline_ns = roll(world, 4) == 0 ? world->now + roll(world, 20) + 1 : 0;
	world->flags[world->next] = slot->flags;
	world->operation[world->next] = slot->operation;
	world->next++;
	world->control.submit_tail++;
}

static void accept(struct world *world)
{
	__u32 first, accepted, number;

	CHECK(dmp_channel_accept(&world->channel, 1 + roll(world, SLOTS), world->now, &first,
				 &accepted) == 0);
	for (number = 0; number < accepted; number++)
		world->fate[world->accepted++] = ACCEPTED;
}

static void take(struct world *world)
{
	__u32 indices[COMPLETIONS], count, number, earlier;

	count = dmp_channel_take(&world->channel, indices, 1 + roll(world, 4), ~0ull);
	for (number = 0; number < count; number++) {
		__u64 id = world->channel.operations[indices[number]].submission.user_data;

		CHECK(world->fate[id] == ACCEPTED);
		if (id > 0 && world->flags[id - 1] & DMP_SUBMIT_LINK)
			CHECK(world->fate[id - 1] == COMPLETED &&
			      (world->result[id - 1] == 0 ||
			       world->channel.operations[indices[number]].error == -ECANCELED));
		for (earlier = 0; earlier < id; earlier++)
			if (world->operation[id] == DMP_OP_FENCE ||
			    world->operation[earlier] == DMP_OP_FENCE)
				CHECK(world->fate[earlier] == COMPLETED);
		world->fate[id] = RAN;
		world->running[world->running_count++] = indices[number];
	}
}

static void finish(struct world *world)
{
	__u32 pick, index;
	__s32 result;

	if (world->running_count == 0)
		return;
	pick = roll(world, world->running_count);
	index = world->running[pick];
	world->running[pick] = world->running[--world->running_count];
	result = world->channel.operations[index].error;
	if (result == 0 && dmp_operation_cancelled(&world->channel.operations[index]))
		result = -ECANCELED;
	else if (result == 0 && roll(world, 4) == 0)
		result = -EINVAL;
	dmp_channel_finish(&world->channel, index, result, DMP_PATH_NONE, 0, 0, world->now);
}

/* The user reads completions; each must be one that was accepted and not completed. */
static void reap(struct world *world)
{
	__u32 count = roll(world, COMPLETIONS + 1);

	while (count-- != 0 && world->control.complete_head != world->control.complete_tail) {
		struct dmp_completion *completion =
			&world->completions[world->control.complete_head % COMPLETIONS];
		__u64 id = completion->user_data;

		if (completion->flags & DMP_COMPLETE_EVENT) {
			CHECK(id == EVENT_DATA + world->events_seen);
			CHECK(completion->operation == DMP_EVENT_BUFFER_REVOKED);
			CHECK(completion->result == 0 && completion->path == DMP_PATH_NONE);
			world->events_seen++;
			world->control.complete_head++;
			continue;
		}
		CHECK(id < world->accepted);
		CHECK(world->fate[id] == ACCEPTED || world->fate[id] == RAN ||
		      completion->result == world->result[id]);
		world->completed++;
		world->control.complete_head++;
	}
}

/* An event goes out exactly when a slot is free that nobody has reserved. */
static void event(struct world *world)
{
	__u32 unread, before = world->control.complete_tail;
	bool room;
	int error;

	CHECK(dmp_channel_unread(&world->channel, &unread) == 0);
	room = world->channel.written == 0 && world->channel.in_flight + unread < COMPLETIONS;
	error = dmp_channel_event(&world->channel, EVENT_DATA + world->events,
				  DMP_EVENT_BUFFER_REVOKED, 0);
	CHECK(error == (room ? 0 : -EAGAIN));
	CHECK(world->control.complete_tail == before + (room ? 1 : 0));
	world->events += room ? 1 : 0;
}

/* Notes results as they are written, before the user sees them. */
static void observe(struct world *world)
{
	__u32 index, number = 0;

	for (index = world->channel.written_first; index != DMP_OPERATION_NONE;
	     index = world->channel.operations[index].next, number++) {
		struct dmp_completion *completion =
			&world->completions[(world->channel.complete.own + number) % COMPLETIONS];
		__u64 id = completion->user_data;

		if (world->fate[id] == COMPLETED)
			continue;
		world->fate[id] = COMPLETED;
		world->result[id] = completion->result;
	}
	CHECK(number == world->channel.written);
}

static void laws(struct world *world)
{
	__u32 unread, index, in_use = 0;

	observe(world);
	CHECK(dmp_channel_unread(&world->channel, &unread) == 0);
	CHECK(world->channel.in_flight + unread <= COMPLETIONS);
	for (index = 0; index < COMPLETIONS; index++)
		in_use += world->channel.operations[index].state != DMP_OPERATION_FREE;
	CHECK(in_use + world->channel.written == world->channel.in_flight);
	CHECK(world->accepted - world->completed + world->events - world->events_seen ==
	      world->channel.in_flight + unread);
	CHECK(world->channel.running == world->running_count);
	CHECK(world->latency.samples + world->channel.latency_count ==
	      world->channel.counters.completions);
	CHECK(world->channel.written != 0 || world->channel.latency_count == 0);
}

static void step(struct world *world)
{
	struct dmp_cancellation cancellation;

	switch (roll(world, 13)) {
	case 0: case 1: case 2:
		submit(world);
		break;
	case 3: case 4:
		accept(world);
		break;
	case 5: case 6:
		take(world);
		break;
	case 7: case 8:
		finish(world);
		break;
	case 9:
		dmp_channel_flush(&world->channel);
		if (roll(world, 4) == 0)
			reap(world);
		break;
	case 10:
		world->now += roll(world, 5);
		dmp_channel_expire(&world->channel, world->now);
		break;
	case 11:
		event(world);
		break;
	default:
		dmp_channel_cancel(&world->channel, roll(world, 8) == 0,
				   world->accepted ? roll(world, world->accepted) : 0, world->now,
				   &cancellation);
		CHECK(cancellation.pending <= cancellation.found);
		dmp_channel_cancel_abandon(&world->channel, &cancellation);
	}
	laws(world);
}

static void run(__u64 seed)
{
	struct world *world = calloc(1, sizeof(*world));
	void *memory = calloc(1, dmp_channel_bytes(COMPLETIONS));
	__u32 number;

	world->random = seed * 0x9e3779b97f4a7c15ull + 1;
	world->now = 1;
	world->control.submit_tail = world->control.submit_head = (__u32)seed * 0x01000193u;
	world->control.complete_tail = world->control.complete_head = 0u - (__u32)seed % 64;
	CHECK(dmp_channel_init(&world->channel, memory, &world->control, world->submissions,
			       SLOTS, world->completions, COMPLETIONS, &world->latency) == 0);
	for (number = 0; number < 4000; number++)
		step(world);
	/* Everything still in flight can be brought to its end. */
	for (number = 0; number < 16 * COMPLETIONS; number++) {
		take(world);
		finish(world);
		laws(world);
		dmp_channel_flush(&world->channel);
		reap(world);
	}
	CHECK(world->channel.in_flight == 0 && world->completed == world->accepted);
	while (world->events_seen != world->events)
		reap(world);
	CHECK(world->latency.samples == world->completed);
	CHECK(world->channel.counters.completions == world->completed);
	free(memory);
	free(world);
}

static void test_a_full_completion_ring_stops_acceptance(void)
{
	static struct world world;
	static __u64 memory[1024];
	__u32 first, accepted, total = 0, round;

	CHECK(sizeof(memory) >= dmp_channel_bytes(COMPLETIONS));
	world.random = 5;
	CHECK(dmp_channel_init(&world.channel, memory, &world.control, world.submissions, SLOTS,
			       world.completions, COMPLETIONS, NULL) == 0);
	for (round = 0; round < 8; round++) {
		while (world.control.submit_tail - world.control.submit_head < SLOTS)
			submit(&world);
		CHECK(dmp_channel_accept(&world.channel, SLOTS, 0, &first, &accepted) == 0);
		total += accepted;
	}
	CHECK(total == COMPLETIONS);
	world.control.complete_head--;		/* a user who lies about what he has read */
	CHECK(dmp_channel_accept(&world.channel, SLOTS, 0, &first, &accepted) == 0);
	CHECK(accepted == 0);
	world.control.complete_head = 12345;
	CHECK(dmp_channel_accept(&world.channel, SLOTS, 0, &first, &accepted) == -EPROTO);
	CHECK(dmp_channel_event(&world.channel, 1, DMP_EVENT_BUFFER_REVOKED, 0) == -EPROTO);
}

static __u64 seed;

static void print_seed(void)
{
	fprintf(stderr, "test_channel: replay with argument %llu\n", (unsigned long long)seed);
}

int main(int argc, char **argv)
{
	__u64 last = argc > 1 ? strtoull(argv[1], NULL, 0) : 1000;

	atexit(print_seed);
	for (seed = argc > 1 ? last : 0; seed <= last; seed++)
		run(seed);
	test_a_full_completion_ring_stops_acceptance();
	_exit(0);
}
