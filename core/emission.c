// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * emission.c - which frame goes out next
 *
 * Frames are made when they are asked for, never kept: what is pending is a flag or a
 * place in a queue, so a slow fabric costs no memory and grants merge by themselves.
 * Order: grant, pong, ping, answers, cancels, operations, drain. What frees the peer
 * goes before what loads it. The sequence is given out here, so frames must be put on
 * the fabric in the order they were taken.
 */
#include "endpoint_layout.h"

static void emit_grant(struct dmp_endpoint *endpoint, struct dmp_frame *frame)
{
	struct dmp_credit_grant grant;

	dmp_credit_tell(&endpoint->receiver, &grant);
	endpoint->flush_ns = 0;
	frame->type = DMP_FRAME_GRANT;
	frame->grant = (struct dmp_wire_grant){
		.sequence = grant.sequence,
		.slots = grant.total.slots,
		.bytes = grant.total.bytes,
	};
}

/* The record ends here: the answer is the last the peer hears of it. */
static void emit_answer(struct dmp_endpoint *endpoint, struct dmp_frame *frame,
			struct dmp_endpoint_frame *out)
{
	__u32 index = dmp_queue_pop(&endpoint->answers);
	struct dmp_incoming *incoming = &endpoint->incoming[index];

	incoming->state = INCOMING_FREE;
	endpoint->incomings -= 1;
	if (incoming->respond) {
		frame->type = DMP_FRAME_RESPONSE;
		frame->payload_bytes = incoming->operation.length_bytes;
		frame->response = (struct dmp_wire_response){
			.tag = incoming->operation.tag,
			.length_bytes = incoming->operation.length_bytes,
			.checksum = incoming->checksum_valid ? incoming->checksum : 0,
			.flags = incoming->checksum_valid ? DMP_WIRE_CHECKSUM : 0,
		};
		if (frame->payload_bytes == 0)
			return;		/* the right was asked for; nothing is held */
		out->payload = DMP_PAYLOAD_REGION;
		out->local = incoming->cookie;
		out->tag = incoming->operation.tag;
		return;
	}
	frame->type = incoming->cancelled ? DMP_FRAME_CANCELLED : DMP_FRAME_COMPLETE;
	frame->result = (struct dmp_wire_result){
		.tag = incoming->operation.tag,
		.result = incoming->result,
		.length_bytes = incoming->moved_bytes,
	};
}

static void emit_operation(struct dmp_endpoint *endpoint, struct dmp_frame *frame,
			   struct dmp_endpoint_frame *out)
{
	__u32 index = dmp_queue_pop(&endpoint->ready);
	struct dmp_operation *operation = &endpoint->operations[index];
	const struct dmp_endpoint_submission *submission = &operation->submission;
	struct dmp_wire_operation *wire = &frame->operation;

	frame->type = DMP_FRAME_OPERATION;
	*wire = (struct dmp_wire_operation){
		.tag = operation->tag,
		.operation = submission->operation,
		.offset = submission->offset,
		.length_bytes = submission->length_bytes,
		.immediate = submission->immediate,
		.key_bytes = submission->key_bytes,
	};
	/* What the owner has behind the key is none of the peer's business. */
	__builtin_memcpy(wire->key, submission->key, submission->key_bytes);
	if (submission->flags & DMP_SUBMIT_CHECKSUM &&
	    submission->operation != DMP_OP_READ) {
		wire->flags |= DMP_WIRE_CHECKSUM;
		wire->checksum = submission->checksum;
	}
	operation->state = OPERATION_SENT;
	if (submission->operation == DMP_OP_READ)
		return;
	if ((endpoint->config.direct || submission->placed) &&
	    submission->operation == DMP_OP_WRITE_IMM) {
		wire->flags |= DMP_WIRE_PLACED;
		return;
	}
	frame->payload_bytes = submission->length_bytes;
	out->payload = DMP_PAYLOAD_LOCAL;
	out->local = submission->local;
	out->tag = operation->tag;
	operation->sending = true;
	dmp_inflight_hold(endpoint, index);
}

/* The last frame; the owner is then asked to close the fabric. */
static bool emit_farewell(struct dmp_endpoint *endpoint, struct dmp_frame *frame)
{
	if (endpoint->farewell_refuse) {
		frame->type = DMP_FRAME_REFUSE;
		frame->refuse.reason = endpoint->farewell;
		__builtin_memcpy(frame->refuse.hello_nonce, endpoint->hello.nonce,
				 DMP_WIRE_NONCE_BYTES);
	} else {
		frame->type = DMP_FRAME_GOODBYE;
		frame->reason = endpoint->farewell;
	}
	endpoint->cut = true;
	dmp_endpoint_move(endpoint, DMP_ENDPOINT_CUTTING);
	return true;
}

/*
 * A grant that waits for its time goes along with an operation, where it costs no packet of its
 * own; but not with each of them.
 */
static bool grant_may_join(const struct dmp_endpoint *endpoint, __u64 now_ns)
{
	return endpoint->flush_ns && endpoint->ready.count &&
	       now_ns + GRANT_DELAY_NS - GRANT_JOIN_NS >= endpoint->flush_ns;
}

/* Choose; false if there is nothing to say. */
static bool emit(struct dmp_endpoint *endpoint, __u64 now_ns, struct dmp_frame *frame,
		 struct dmp_endpoint_frame *out)
{
	__u32 index;

	if (endpoint->state == DMP_ENDPOINT_CLOSING)
		return emit_farewell(endpoint, frame);
	if (!dmp_endpoint_is_up(endpoint))
		return dmp_handshake_emit(endpoint, frame);
	if (dmp_credit_due(&endpoint->receiver) || grant_may_join(endpoint, now_ns)) {
		emit_grant(endpoint, frame);
	} else if (endpoint->pong) {
		endpoint->pong = false;
		frame->type = DMP_FRAME_PONG;
		frame->stamp = endpoint->pong_stamp;
	} else if (endpoint->ping) {
		endpoint->ping = false;
		frame->type = DMP_FRAME_PING;
		frame->stamp = now_ns;
	} else if (endpoint->answers.count) {
		emit_answer(endpoint, frame, out);
	} else if ((index = dmp_queue_pop(&endpoint->cancels)) != DMP_QUEUE_NONE) {
		frame->type = DMP_FRAME_CANCEL;
		frame->tag = endpoint->operations[index].tag;
	} else if (endpoint->ready.count) {
		emit_operation(endpoint, frame, out);
	} else if (endpoint->state == DMP_ENDPOINT_DRAINED && !endpoint->drain_sent) {
		endpoint->drain_sent = true;
		frame->type = DMP_FRAME_DRAIN;
	} else {
		return false;
	}
	return true;
}

int dmp_endpoint_next_frame(struct dmp_endpoint *endpoint, __u64 now_ns,
			    struct dmp_endpoint_frame *out)
{
	struct dmp_frame frame;
	int length;

	frame.payload_bytes = 0;
	out->payload = DMP_PAYLOAD_NONE;
	out->local = 0;
	out->tag = 0;
	if (!emit(endpoint, now_ns, &frame, out))
		return -EAGAIN;
	endpoint->sequence_out += 1;
	frame.sequence = endpoint->sequence_out;
	frame.incarnation = endpoint->config.incarnation;
	frame.destination = endpoint->peer_incarnation;
	frame.epoch = endpoint->epoch;
	length = dmp_wire_encode(&frame, !endpoint->config.unchecked, out->bytes,
				 sizeof(out->bytes));
	if (length < 0)		/* only a fault of ours makes a frame unsound */
		return dmp_endpoint_break(endpoint, -EPROTO);
	out->frame_bytes = (__u32)length;
	out->payload_bytes = frame.payload_bytes;
	dmp_endpoint_drain_step(endpoint, now_ns);
	return 0;
}
