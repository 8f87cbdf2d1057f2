// SPDX-License-Identifier: MIT
/*
 * test_endpoint_hostile.c - a peer that knows the connection and lies (law L12)
 *
 * Every frame is in sequence and correctly sealed, but says whatever chance picks: tags of
 * other slots, credit nobody has, answers to what was never asked. The machine may end
 * the connection; it may not contradict itself, hand out an operation that was not
 * submitted, complete one twice, or touch memory that is not its own (sanitizers).
 */
#include "endpoint_pair.h"

#define ROUNDS	 5000
#define FRAMES	 200
#define ACCEPTED 64

static __u64 random_state = 88172645463325252ULL;

static __u32 below(__u32 limit)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return (__u32)(random_state >> 33) % limit;
}

static __u64 any_length(void)
{
	static const __u64 lengths[] = { 0, 1, 10, 99, 100, 101, 1ULL << 32, ~0ULL };

	return lengths[below(8)];
}

/* Mostly tags that exist, so that lies are plausible. */
static __u64 any_tag(const __u64 *tags, __u32 count)
{
	if (count && below(2))
		return tags[below(count)];
	return (__u64)below(3) << 32 | below(6);
}

static void lie(struct dmp_frame *frame, const __u64 *tags, __u32 count)
{
	static const __u16 operations[] = { DMP_OP_SEND, DMP_OP_WRITE, DMP_OP_WRITE_IMM,
					    DMP_OP_READ };

	frame->type = 5 + below(10);
	switch (frame->type) {
	case DMP_FRAME_GRANT:
		frame->grant.sequence = below(5);
		frame->grant.slots = any_length();
		frame->grant.bytes = any_length();
		break;
	case DMP_FRAME_OPERATION:
		frame->operation.tag = any_tag(tags, 0);
		frame->operation.operation = operations[below(4)];
		frame->operation.length_bytes = any_length();
		frame->operation.flags = (__u16)below(4);
		frame->operation.checksum = frame->operation.flags & 2 ? below(9) : 0;
		if (frame->operation.operation != DMP_OP_READ && !(frame->operation.flags & 1))
			frame->payload_bytes = frame->operation.length_bytes;
		break;
	case DMP_FRAME_RESPONSE:
		frame->response.tag = any_tag(tags, count);
		frame->response.length_bytes = any_length();
		frame->payload_bytes = frame->response.length_bytes;
		break;
	case DMP_FRAME_COMPLETE:
	case DMP_FRAME_CANCELLED:
		frame->result.tag = any_tag(tags, count);
		frame->result.length_bytes = any_length();
		frame->result.result = frame->type == DMP_FRAME_CANCELLED ? -ECANCELED :
								     -(__s32)below(3);
		break;
	case DMP_FRAME_CANCEL:
		frame->tag = any_tag(tags, 0);
		break;
	default:
		frame->stamp = 0;
		break;
	}
}

/* What an honest peer could say now, so that the lies come to a machine that is at work. */
static void behave(struct dmp_frame *frame, const struct dmp_endpoint *to)
{
	const struct dmp_credit *room = &to->receiver.ledger;
	__u32 i = below(4), generation = (__u32)to->sequence_in;

	frame->type = DMP_FRAME_PING;
	if (below(4) == 0) {
		frame->type = DMP_FRAME_GRANT;
		frame->grant.sequence = to->sender.ledger.sequence + 1;
		frame->grant.slots = to->sender.ledger.granted.slots + below(3);
		frame->grant.bytes = to->sender.ledger.granted.bytes + below(100);
	} else if (below(2) && to->incoming[i].state == INCOMING_FREE) {
		frame->type = DMP_FRAME_OPERATION;
		frame->operation.tag = (__u64)generation << 32 | i;
		frame->operation.operation = room->available.slots && room->available.bytes ?
						     DMP_OP_SEND + 2 * (__u16)below(2) :
						     DMP_OP_READ;
		frame->operation.length_bytes = room->available.bytes;
		if (frame->operation.operation == DMP_OP_READ)
			return;
		frame->operation.length_bytes = below((__u32)room->available.bytes + 1);
		frame->payload_bytes = frame->operation.length_bytes;
	} else if (to->operations[i].state == OPERATION_SENT ||
		   to->operations[i].state == OPERATION_ZOMBIE) {
		frame->type = DMP_FRAME_COMPLETE;
		frame->result.tag = to->operations[i].tag;
		if (to->operations[i].submission.operation == DMP_OP_READ) {
			frame->type = DMP_FRAME_RESPONSE;
			frame->response.length_bytes = to->operations[i].submission.length_bytes;
			frame->payload_bytes = frame->response.length_bytes;
		}
	}
}

/* The owner answers, sometimes; it never has to believe a length. */
static void serve(struct dmp_endpoint *endpoint)
{
	struct dmp_endpoint_request request;
	struct dmp_endpoint_frame frame;

	while (!dmp_endpoint_next_request(endpoint, &request)) {
		struct dmp_endpoint_answer answer = { .kind = request.kind, .tag = request.tag };

		if (request.kind == DMP_REQUEST_PLACE && request.target == DMP_TARGET_STAGE)
			CHECK(request.stage < usual.window_slots &&
			      request.length_bytes <= usual.window_bytes);
		answer.result = below(4) ? 0 : -EACCES;
		if (request.kind == DMP_REQUEST_CUT)
			answer.result = 0;
		CHECK(dmp_endpoint_answer(endpoint, NOW, &answer) == 0);
	}
	while (below(4) && !dmp_endpoint_next_frame(endpoint, NOW, &frame))
		if (frame.payload == DMP_PAYLOAD_LOCAL)
			CHECK(dmp_endpoint_sent(endpoint, NOW, frame.tag) == 0);
}

static void read_all(struct dmp_endpoint *endpoint, const __u64 *tags, __u32 count, bool *done)
{
	struct dmp_endpoint_completion completion;
	__u32 i;

	while (!dmp_endpoint_next_completion(endpoint, &completion) ||
	       !dmp_endpoint_next_event(endpoint, NOW, &completion)) {
		if (completion.flags & DMP_COMPLETE_EVENT)
			continue;
		for (i = 0; i < count && tags[i] != completion.tag; i++)
			;
		CHECK(i < count && !done[i]);
		done[i] = true;
	}
}

static void one_connection(bool direct)
{
	static const __u16 operations[] = { DMP_OP_SEND, DMP_OP_WRITE, DMP_OP_WRITE_IMM,
					    DMP_OP_READ, DMP_OP_RECV };
	struct pair pair = make_open(direct);
	__u8 bytes[DMP_WIRE_FRAME_BYTES_MAX];
	__u32 count = 0, turns, i;
	bool done[ACCEPTED] = { false };
	__u64 tags[ACCEPTED];
	int length;

	for (turns = 0; turns < FRAMES && dmp_endpoint_is_up(pair.a); turns++) {
		struct dmp_endpoint_submission submission = {
			.operation = operations[below(5)], .length_bytes = 1 + below(100) };
		struct dmp_frame frame;

		if (count < ACCEPTED &&
		    !dmp_endpoint_submit(pair.a, NOW, &submission, &tags[count]))
			count += 1;
		if (count && !below(4))
			dmp_endpoint_cancel(pair.a, NOW, tags[below(count)]);
		serve(pair.a);
		memset(&frame, 0, sizeof(frame));
		if (below(24))
			behave(&frame, pair.a);
		else
			lie(&frame, tags, count);
		frame.sequence = pair.a->sequence_in + 1;
		frame.epoch = EPOCH;
		frame.incarnation = B_IS;
		frame.destination = A_IS;
		length = dmp_wire_encode(&frame, true, bytes, sizeof(bytes));
		if (length > 0)
			dmp_endpoint_receive(pair.a, NOW, bytes, (size_t)length);
		CHECK(dmp_endpoint_check(pair.a) == 0);
		serve(pair.a);
		CHECK(dmp_endpoint_check(pair.a) == 0);
		read_all(pair.a, tags, count, done);
	}
	dmp_endpoint_abort(pair.a, -ECONNRESET);
	read_all(pair.a, tags, count, done);
	for (i = 0; i < count; i++)
		CHECK(done[i]);
	free_pair(&pair);
}

int main(void)
{
	__u32 round;

	for (round = 0; round < ROUNDS; round++)
		one_connection(round & 1);
	return 0;
}
