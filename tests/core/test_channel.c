// SPDX-License-Identifier: MIT
/*
 * test_channel.c - the channel machine under seeded random orders
 *
 * Laws asserted after every step
 *  L1  each accepted submission completes exactly once; none appears from nowhere
 *  L2  in_flight + events + unread never exceeds completion_slots; acceptance leaves
 *  the slots reserved for events over
 *  events arrive in order, each once, and take no slot an operation has reserved
 *  lanes: parked operations come back in order of parking; a deadline or a cancel takes
 *  them out at once
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
#define LANES 2
#define EVENT_DATA (1ull << 40)	/* user_data of the first event */
#define IDS 4096		/* submissions of one run; user_data is the number */

enum fate { UNSEEN, ACCEPTED, RAN, COMPLETED };

struct world {
	struct dmp_ring_control control;
	struct dmp_submission submissions[SLOTS];
	struct dmp_completion completions[COMPLETIONS];
	struct dmp_channel channel;
	struct dmp_lane lanes[LANES];
	struct dmp_histogram_counts latency;
	enum fate fate[IDS];
	__s32 result[IDS];
	__u16 flags[IDS];
	__u16 operation[IDS];
	__u32 next, accepted, completed, running[COMPLETIONS], running_count;
	__u32 events, events_seen;
	__u64 parks, parked[IDS];	/* number of the latest parking, of each id */
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

/* Slots of the completion ring that are full or promised. */
static __u32 taken_slots(struct world *world)
{
	__u32 unread;

	CHECK(dmp_channel_unread(&world->channel, &unread) == 0);
	return world->channel.in_flight + world->channel.events_written + unread;
}

static void accept(struct world *world)
{
	__u32 first, accepted, number;

	CHECK(dmp_channel_accept(&world->channel, 1 + roll(world, SLOTS), world->now, &first,
				 &accepted) == 0);
	if (accepted != 0)
		CHECK(taken_slots(world) + world->channel.events_reserved <= COMPLETIONS);
	for (number = 0; number < accepted; number++)
		world->fate[world->accepted++] = ACCEPTED;
}

static void take(struct world *world)
{
	__u32 indices[COMPLETIONS], count, number, earlier;
	bool can = dmp_channel_can_take(&world->channel);

	count = dmp_channel_take(&world->channel, indices, 1 + roll(world, 4), ~0ull);
	CHECK(can == (count != 0));
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
	dmp_channel_finish(&world->channel, index, &(struct dmp_outcome){ .result = result },
			   world->now);
}

/* What runs has no room at its endpoint after all. A fence never needs any. */
static void park(struct world *world)
{
	__u32 pick, index;
	__u64 id;
	int error;

	if (world->running_count == 0)
		return;
	pick = roll(world, world->running_count);
	index = world->running[pick];
	id = world->channel.operations[index].submission.user_data;
	if (world->operation[id] == DMP_OP_FENCE)
		return;
	error = dmp_channel_park(&world->channel, &world->lanes[roll(world, LANES)], index);
	CHECK(error == (world->channel.operations[index].cancel ? -ECANCELED : 0));
	if (error)
		return;
	world->running[pick] = world->running[--world->running_count];
	world->fate[id] = ACCEPTED;
	world->parked[id] = ++world->parks;
}

static void unpark(struct world *world)
{
	struct dmp_lane *lane = &world->lanes[roll(world, LANES)];
	__u32 index, behind, count = lane->count;
	__u64 id;

	CHECK(dmp_channel_unpark(&world->channel, lane, &index) == (count != 0));
	if (count == 0)
		return;
	id = world->channel.operations[index].submission.user_data;
	CHECK(world->fate[id] == ACCEPTED && lane->count == count - 1);
	for (behind = lane->first; behind != DMP_OPERATION_NONE;
	     behind = world->channel.operations[behind].next)
		CHECK(world->parked[world->channel.operations[behind].submission.user_data] >
		      world->parked[id]);
	world->fate[id] = RAN;
	world->running[world->running_count++] = index;
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
			CHECK(completion->operation == DMP_EVENT_WRITE_IMM);
			CHECK(completion->flags ==
			      (DMP_COMPLETE_EVENT | DMP_COMPLETE_IMMEDIATE));
			CHECK(completion->result == -EPERM && completion->path == DMP_PATH_SHM);
			CHECK(completion->immediate == (__u32)id && completion->length_bytes == 7);
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
	struct dmp_completion completion = {
		.user_data = EVENT_DATA + world->events, .result = -EPERM,
		.operation = DMP_EVENT_WRITE_IMM, .path = DMP_PATH_SHM,
		.flags = DMP_COMPLETE_IMMEDIATE, .length_bytes = 7,
		.immediate = (__u32)(EVENT_DATA + world->events),
	};
	__u32 room, free = COMPLETIONS - taken_slots(world);

	CHECK(dmp_channel_event_room(&world->channel, &room) == 0 && room == free);
	CHECK(dmp_channel_event(&world->channel, &completion) == (room ? 0 : -EAGAIN));
	world->events += room ? 1 : 0;
	CHECK(world->channel.counters.events == world->events);
}

/* All that is written is told at once: one step of the ring. */
static void flush(struct world *world)
{
	__u32 written = world->channel.written + world->channel.events_written;
	__u32 before = world->control.complete_tail;

	CHECK(dmp_channel_flush(&world->channel) == written);
	CHECK(world->control.complete_tail == before + written);
}

static void reserve(struct world *world)
{
	__s32 before = (__s32)world->channel.events_reserved;
	__s32 delta = (__s32)roll(world, 7) - 3, after = before + delta;
	int error = after < 0 ? -EINVAL : after > COMPLETIONS / 2 ? -ENOSPC : 0;

	CHECK(dmp_channel_reserve_events(&world->channel, delta) == error);
	CHECK((__s32)world->channel.events_reserved == (error ? before : after));
}

/* Notes results as they are written, before the user sees them. */
static void observe(struct world *world)
{
	__u32 index = world->channel.written_first, number;
	__u32 written = world->channel.written + world->channel.events_written;

	for (number = 0; number < written; number++) {
		struct dmp_completion *completion =
			&world->completions[(world->channel.complete.own + number) % COMPLETIONS];
		__u64 id = completion->user_data;

		if (completion->flags & DMP_COMPLETE_EVENT)
			continue;
		CHECK(world->channel.operations[index].submission.user_data == id);
		index = world->channel.operations[index].next;
		if (world->fate[id] == COMPLETED)
			continue;
		world->fate[id] = COMPLETED;
		world->result[id] = completion->result;
	}
	CHECK(index == DMP_OPERATION_NONE);
}

static void laws(struct world *world)
{
	__u32 unread, index, in_use = 0;

	observe(world);
	CHECK(dmp_channel_unread(&world->channel, &unread) == 0);
	CHECK(taken_slots(world) <= COMPLETIONS);
	CHECK(world->lanes[0].count + world->lanes[1].count == world->channel.parked);
	for (index = 0; index < COMPLETIONS; index++)
		in_use += world->channel.operations[index].state != DMP_OPERATION_FREE;
	CHECK(in_use + world->channel.written == world->channel.in_flight);
	CHECK(world->accepted - world->completed + world->events - world->events_seen ==
	      taken_slots(world));
	CHECK(world->channel.running == world->running_count);
	CHECK(world->latency.samples + world->channel.latency_count ==
	      world->channel.counters.completions);
	CHECK(world->channel.written != 0 || world->channel.latency_count == 0);
}

static void step(struct world *world)
{
	struct dmp_cancellation cancellation;

	switch (roll(world, 17)) {
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
		flush(world);
		if (roll(world, 2) == 0)
			reap(world);
		break;
	case 10:
		world->now += roll(world, 5);
		dmp_channel_expire(&world->channel, world->now);
		break;
	case 11: case 12:
		event(world);
		break;
	case 13:
		if (roll(world, 4) == 0)
			reserve(world);
		break;
	case 14:
		park(world);
		break;
	case 15:
		unpark(world);
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
	for (number = 0; number < LANES; number++)
		dmp_lane_init(&world->lanes[number]);
	for (number = 0; number < 4000; number++)
		step(world);
	/* Everything still in flight can be brought to its end. */
	for (number = 0; number < 16 * COMPLETIONS; number++) {
		take(world);
		unpark(world);
		finish(world);
		laws(world);
		flush(world);
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
	CHECK(dmp_channel_event(&world.channel, &(struct dmp_completion){ 0 }) == -EPROTO);
}

struct wish {
	__u16 operation;
	__u32 endpoint;
	__u64 length_bytes;
};

/* Is it brief to begin @count such operations at once? */
static bool is_brief(const struct wish *wishes, __u32 count)
{
	static struct world world;
	static __u64 memory[1024];
	__u32 first, accepted, number;

	__builtin_memset(&world, 0, sizeof(world));
	CHECK(dmp_channel_init(&world.channel, memory, &world.control, world.submissions, SLOTS,
			       world.completions, COMPLETIONS, NULL) == 0);
	for (number = 0; number < count; number++)
		world.submissions[number] = (struct dmp_submission){
			.operation = wishes[number].operation,
			.endpoint_id = wishes[number].endpoint,
			.length_bytes = wishes[number].length_bytes,
		};
	world.control.submit_tail = count;
	CHECK(dmp_channel_accept(&world.channel, count, 0, &first, &accepted) == 0);
	CHECK(accepted == count);
	return dmp_channel_is_brief(&world.channel);
}

static void test_a_few_small_transfers_are_brief(void)
{
	struct wish small = { DMP_OP_SEND, 7, 8 }, whole = { DMP_OP_WRITE_IMM, 7, 64 << 10 };
	struct wish awaited = { DMP_OP_RECV, 7, 1 << 30 }, local = { DMP_OP_COPY, 0, 8 };

	CHECK(is_brief(NULL, 0));
	CHECK(is_brief(&small, 1));
	CHECK(is_brief(&whole, 1));
	CHECK(!is_brief((struct wish[]){ whole, small }, 2));
	CHECK(is_brief((struct wish[]){ awaited, small, awaited }, 3));
	CHECK(!is_brief(&local, 1));
	CHECK(!is_brief((struct wish[]){ small, local }, 2));
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
	test_a_few_small_transfers_are_brief();
	_exit(0);
}
