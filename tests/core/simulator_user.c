// SPDX-License-Identifier: MIT
/*
 * simulator_user.c - the user of one machine: submits, cancels, and remembers everything
 *
 * Each completion is compared with what was submitted: once, of the right operation,
 * with the bytes that were sent and in the order they were sent.
 */
#include <string.h>

#include "simulator_world.h"

/* --- the user of one machine ---------------------------------------------------- */

void user_submit(struct world *world, struct link *link, struct side *side, __u16 operation)
{
	struct dmp_endpoint_submission submission = { .operation = operation };
	struct memory *memory = &side->history[side->history_count];
	__u64 owner = simulator_peer(link, side)->incarnation;
	__u32 i, index = side->history_count;
	int error;

	if (index == HISTORY)
		return;
	memset(memory, 0, sizeof(*memory));
	memory->operation = operation;
	memory->length = 1 + simulator_pick(world, BLOCK);
	if (operation != DMP_OP_RECV && operation != DMP_OP_WRITE_IMM &&
	    simulator_chance(world, 100))
		memory->length = 0;
	for (i = 0; i < memory->length; i++)
		memory->bytes[i] = simulator_pattern(side->incarnation << 20 | index, i);
	submission.user_data = index;
	submission.local = index;
	submission.length_bytes = memory->length;
	if (simulator_chance(world, world->impatient))
		submission.deadline_ns = world->now_ns + simulator_pick(world, 8000000);
	if (simulator_chance(world, 200))
		submission.flags = DMP_SUBMIT_NOWAIT;
	if (operation == DMP_OP_WRITE || operation == DMP_OP_WRITE_IMM ||
	    operation == DMP_OP_READ) {
		submission.offset = simulator_pick(world, CELLS) * BLOCK;
		submission.key_bytes = 16;
		submission.key[0] = operation == DMP_OP_READ ? 'R' : 'W';
		if (simulator_chance(world, 30))
			owner -= 1;
		if (simulator_chance(world, 30))
			submission.key[0] = 'X';
		memcpy(submission.key + 8, &owner, sizeof(owner));
	}
	if (operation == DMP_OP_WRITE_IMM)
		submission.immediate = index + 1;
	error = dmp_endpoint_submit(side->machine, world->now_ns, &submission, &memory->tag);
	simulator_note(world, "submit", side, operation, error);
	world->out->no_credit += error == -EAGAIN && submission.flags;
	if (error)
		return;
	memory->accepted = true;
	memory->deadline_ns = submission.deadline_ns;
	memory->connection = side->connection;
	side->history_count += 1;
	world->out->submitted += 1;
}

/* A RECV has a message: whole, unaltered, from this peer, in order, wanted. */
static void check_message(struct world *world, struct side *peer, struct side *side,
			  const struct memory *memory, __u64 length)
{
	const struct memory *from;
	__u32 i;

	world->out->messages += 1;
	LAW(memory->placed, "RECV succeeded without a message");
	LAW(memory->connection == length, "RECV reports another length");
	LAW(memory->placed > side->last_message, "message %u came after %u",
	    memory->placed - 1, side->last_message - 1);
	side->last_message = memory->placed;
	if (side->peer_connection != peer->connection || !memory->placed)
		return;
	from = simulator_recall(world, peer, memory->placed - 1);
	LAW(from->operation == DMP_OP_SEND && from->length == length, "not that message");
	for (i = 0; i < length; i++)
		LAW(memory->bytes[i] == from->bytes[i], "message bytes differ");
}

static void check_success(struct world *world, struct link *link, struct side *side,
			  const struct memory *memory, __u64 length)
{
	struct side *peer = simulator_peer(link, side);
	__u32 i;

	world->out->succeeded += 1;
	switch (memory->operation) {
	case DMP_OP_RECV:
		check_message(world, peer, side, memory, length);
		return;
	case DMP_OP_READ:
		world->out->reads += 1;
		for (i = 0; i < length && peer->connection == side->peer_connection; i++)
			LAW(memory->bytes[i] == simulator_pattern(peer->incarnation, i),
			    "READ brought bytes of another incarnation");
		break;
	default:
		world->out->writes += 1;
		LAW(memory->placed == 1, "succeeded, but its bytes were placed %u times",
		    memory->placed);
	}
	LAW(length == memory->length, "succeeded with another length");
}

static void complete_event(struct world *world, struct link *link, struct side *side,
			   const struct dmp_endpoint_completion *completion)
{
	struct side *peer = simulator_peer(link, side);
	struct memory *memory;

	if (completion->operation != DMP_EVENT_WRITE_IMM)
		return;
	world->out->immediates += 1;
	if (side->peer_connection != peer->connection)
		return;
	memory = simulator_recall(world, peer, completion->immediate - 1);
	LAW(memory->operation == DMP_OP_WRITE_IMM && memory->placed == 1 &&
	    !memory->announced, "immediate %u is not one that was sent and placed once",
	    completion->immediate);
	memory->announced = true;
}

static void take_completion(struct world *world, struct link *link, struct side *side,
			    const struct dmp_endpoint_completion *completion)
{
	struct simulation *out = world->out;
	struct memory *memory;

	simulator_note(world, "complete", side, completion->user_data, completion->result);
	if (completion->flags & DMP_COMPLETE_EVENT) {
		complete_event(world, link, side, completion);
		return;
	}
	memory = simulator_recall(world, side, completion->user_data);
	LAW(memory->accepted && memory->tag == completion->tag, "L1: completion of nothing");
	LAW(!memory->completed, "L1: operation %llu completed twice",
	    (unsigned long long)completion->user_data);
	memory->completed = true;
	memory->result = completion->result;
	while (side->first_open < side->history_count &&
	       side->history[side->first_open].completed)
		side->first_open += 1;
	out->completed += 1;
	out->timed_out += completion->result == -ETIMEDOUT;
	out->cancelled += completion->result == -ECANCELED;
	out->reset += completion->result == -ECONNRESET;
	out->refused_access += completion->result == -EACCES;
	out->too_small += completion->result == -EOVERFLOW;
	LAW(completion->result != -ETIMEDOUT || memory->deadline_ns, "ETIMEDOUT without deadline");
	if (!completion->result)
		check_success(world, link, side, memory, completion->length_bytes);
}

void user_read(struct world *world, struct link *link, struct side *side)
{
	struct dmp_endpoint_completion completion;

	while (!dmp_endpoint_next_completion(side->machine, &completion) ||
	       !dmp_endpoint_next_event(side->machine, world->now_ns, &completion))
		take_completion(world, link, side, &completion);
}

void user_act(struct world *world, struct link *link, struct side *side)
{
	static const __u16 operations[] = { DMP_OP_SEND, DMP_OP_SEND, DMP_OP_RECV, DMP_OP_RECV,
					    DMP_OP_WRITE, DMP_OP_WRITE_IMM,
					    DMP_OP_WRITE_IMM, DMP_OP_READ };
	__u32 open;

	user_submit(world, link, side, operations[simulator_pick(world, 8)]);
	open = side->history_count - side->first_open;
	if (open && simulator_chance(world, world->cancel)) {
		struct memory *memory = &side->history[side->first_open + simulator_pick(world, open)];
		int error = dmp_endpoint_cancel(side->machine, world->now_ns, memory->tag);

		simulator_note(world, "cancel", side, memory->tag, error);
		world->out->cancels += !error;
		LAW(!error || error == -ENOENT, "cancel answered %d", error);
	}
	if (simulator_chance(world, 2) && !dmp_endpoint_drain(side->machine, world->now_ns,
						     world->now_ns + 5 * DETECT_NS))
		world->out->drained += 1;
	if (simulator_chance(world, 1) && !dmp_endpoint_goodbye(side->machine, world->now_ns))
		world->out->goodbyes += 1;
}

