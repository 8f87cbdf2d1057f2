// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * incoming.c - the peer's operations and the messages they bring
 *
 * A record lives from the OPERATION frame to the frame that answers it, in the slot
 * that the tag names; a peer that reuses a slot too early breaks the protocol. Each
 * record is answered once: RESPONSE, COMPLETE or CANCELLED.
 *
 * A message (SEND) owns a stage from its arrival until a RECV has it, whether or not it
 * is ever put there: the credit the sender spent is the promise that it exists. So a
 * RECV that gives up in the middle never costs the message. Messages reach RECVs in
 * order, which is why one COPY runs at a time.
 */
#include "endpoint_layout.h"

/* What a message takes of the window. A large WRITE_IMM takes all of it. */
__u64 dmp_incoming_charge(__u16 operation, __u64 length_bytes, __u64 window_bytes)
{
	switch (operation) {
	case DMP_OP_SEND:
		return length_bytes;
	case DMP_OP_WRITE_IMM:
		return length_bytes < window_bytes ? length_bytes : window_bytes;
	default:
		return 0;
	}
}

static bool is_charged(const struct dmp_incoming *incoming)
{
	return incoming->operation.operation == DMP_OP_SEND ||
	       incoming->operation.operation == DMP_OP_WRITE_IMM;
}

void dmp_incoming_release(struct dmp_endpoint *endpoint, __u64 now_ns, __u64 bytes)
{
	if (!dmp_endpoint_is_up(endpoint))
		return;
	dmp_credit_release(&endpoint->receiver, bytes);
	if (!endpoint->flush_ns)
		endpoint->flush_ns = now_ns + GRANT_DELAY_NS;
}

static void free_stage(struct dmp_endpoint *endpoint, __u64 now_ns, __u32 stage)
{
	__u64 bytes = endpoint->stages[stage].length_bytes;

	endpoint->stages[stage].state = STAGE_FREE;
	dmp_queue_push(&endpoint->free_stages, stage);
	dmp_incoming_release(endpoint, now_ns, bytes);
}

static void answer(struct dmp_endpoint *endpoint, __u32 index, __s32 result, __u64 bytes)
{
	struct dmp_incoming *incoming = &endpoint->incoming[index];

	incoming->state = INCOMING_ANSWERING;
	incoming->result = result;
	incoming->moved_bytes = bytes;
	dmp_queue_push(&endpoint->answers, index);
}

/* The first posted RECV with room; those that are too small fail. */
static __u32 pick_receive(struct dmp_endpoint *endpoint, __u64 length_bytes)
{
	__u32 index;

	while ((index = dmp_queue_pop(&endpoint->posted)) != DMP_QUEUE_NONE) {
		if (endpoint->operations[index].submission.length_bytes >= length_bytes)
			break;
		dmp_inflight_decide(endpoint, index, -EOVERFLOW, 0);
		dmp_inflight_settle(endpoint, index);
	}
	return index;
}

/* Bring the oldest staged message and the oldest RECV together. */
void dmp_incoming_match(struct dmp_endpoint *endpoint)
{
	__u32 stage = dmp_queue_peek(&endpoint->staged);
	struct dmp_operation *operation;
	__u32 index;

	if (!dmp_endpoint_is_up(endpoint) || endpoint->copying)
		return;
	if (stage == DMP_QUEUE_NONE) {
		if (endpoint->peer_drained && !endpoint->placing.active)
			dmp_inflight_end_receives(endpoint, -ECONNRESET);
		return;
	}
	index = pick_receive(endpoint, endpoint->stages[stage].length_bytes);
	if (index == DMP_QUEUE_NONE)
		return;
	dmp_queue_pop(&endpoint->staged);
	operation = &endpoint->operations[index];
	operation->state = OPERATION_FILLING;
	operation->staged_copy = true;
	operation->stage = stage;
	endpoint->stages[stage].state = STAGE_COPYING;
	endpoint->copying = true;
	dmp_queue_push(&endpoint->work, index);
}

/* A RECV gives up a message that is on its way to it: the message goes to its stage. */
void dmp_incoming_unfill(struct dmp_endpoint *endpoint, __u32 index)
{
	struct dmp_operation *operation = &endpoint->operations[index];
	struct dmp_placing *placing = &endpoint->placing;

	if (operation->staged_copy) {
		dmp_queue_remove(&endpoint->work, index);
		endpoint->stages[operation->stage].state = STAGE_FULL;
		dmp_queue_push_first(&endpoint->staged, operation->stage);
		endpoint->copying = false;
		operation->staged_copy = false;
	} else if (placing->active && placing->target == DMP_TARGET_LOCAL &&
		   placing->is_incoming && placing->operation == index) {
		placing->target = DMP_TARGET_STAGE;
	}
}

/* A message: reserve its stage, then send it straight to a RECV if one is next. */
static int arrive_message(struct dmp_endpoint *endpoint, const struct dmp_wire_operation *wire)
{
	struct dmp_placing *placing = &endpoint->placing;
	__u32 index = DMP_QUEUE_NONE;
	__u32 stage = dmp_queue_pop(&endpoint->free_stages);

	if (stage == DMP_QUEUE_NONE)
		return -EPROTO;
	endpoint->stages[stage] = (struct dmp_stage){
		.length_bytes = wire->length_bytes,
		.state = STAGE_PLACING,
	};
	placing->stage = stage;
	placing->target = DMP_TARGET_STAGE;
	if (!endpoint->staged.count && !endpoint->copying)
		index = pick_receive(endpoint, wire->length_bytes);
	if (index != DMP_QUEUE_NONE) {
		endpoint->operations[index].state = OPERATION_FILLING;
		placing->operation = index;
		placing->target = DMP_TARGET_LOCAL;
	}
	return 0;
}

static int accept_record(struct dmp_endpoint *endpoint, const struct dmp_frame *frame)
{
	const struct dmp_wire_operation *wire = &frame->operation;
	__u32 index = (__u32)wire->tag;
	struct dmp_incoming *incoming;

	if (endpoint->peer_drained || index >= endpoint->config.incoming_max)
		return -EPROTO;
	incoming = &endpoint->incoming[index];
	if (incoming->state != INCOMING_FREE)
		return -EPROTO;
	*incoming = (struct dmp_incoming){ .operation = *wire };
	incoming->charge_bytes = dmp_incoming_charge(wire->operation, wire->length_bytes,
						     endpoint->config.window_bytes);
	if (is_charged(incoming))
		return dmp_credit_arrive(&endpoint->receiver, incoming->charge_bytes);
	return 0;
}

int dmp_incoming_operation(struct dmp_endpoint *endpoint, const struct dmp_frame *frame)
{
	const struct dmp_wire_operation *wire = &frame->operation;
	struct dmp_placing *placing = &endpoint->placing;
	__u32 index = (__u32)wire->tag;
	int error = accept_record(endpoint, frame);

	if (error)
		return error;
	endpoint->incomings += 1;
	if (wire->operation == DMP_OP_READ || wire->flags & DMP_WIRE_PLACED) {
		endpoint->incoming[index].state = INCOMING_ADMITTING;
		return dmp_queue_push(&endpoint->admits, index);
	}
	endpoint->incoming[index].state = INCOMING_PLACING;
	*placing = (struct dmp_placing){
		.active = true,
		.is_incoming = true,
		.target = DMP_TARGET_REGION,
		.incoming = index,
		.tag = wire->tag,
		.length_bytes = wire->length_bytes,
		.checksum = wire->checksum,
		.flags = wire->flags & DMP_WIRE_CHECKSUM,
	};
	if (wire->operation == DMP_OP_SEND)
		return arrive_message(endpoint, wire);
	return 0;
}

/*
 * Stop it if the owner has not begun. What has begun is answered by its own result, and
 * what was answered needs nothing: the answer is ahead of us on the wire.
 */
int dmp_incoming_cancel(struct dmp_endpoint *endpoint, __u64 now_ns, __u64 tag)
{
	__u32 index = (__u32)tag;
	struct dmp_incoming *incoming;

	if (index >= endpoint->config.incoming_max)
		return -EPROTO;
	incoming = &endpoint->incoming[index];
	if (incoming->state != INCOMING_ADMITTING || incoming->operation.tag != tag)
		return 0;
	if (dmp_queue_remove(&endpoint->admits, index))
		return 0;
	if (is_charged(incoming))
		dmp_incoming_release(endpoint, now_ns, incoming->charge_bytes);
	incoming->cancelled = true;
	answer(endpoint, index, -ECANCELED, 0);
	return 0;
}

/* A WRITE_IMM has landed: tell the user; its credit returns when that is read. */
static void announce(struct dmp_endpoint *endpoint, const struct dmp_incoming *incoming,
		     const struct dmp_endpoint_answer *from)
{
	struct dmp_endpoint_completion event = {
		.length_bytes = incoming->operation.length_bytes,
		.operation = DMP_EVENT_WRITE_IMM,
		.flags = DMP_COMPLETE_EVENT | DMP_COMPLETE_IMMEDIATE,
		.immediate = incoming->operation.immediate,
	};

	if (from->flags & DMP_WIRE_CHECKSUM) {
		event.flags |= DMP_COMPLETE_CHECKSUM;
		event.checksum = from->checksum;
	}
	dmp_endpoint_push(endpoint, &event);
}

static void finish_write(struct dmp_endpoint *endpoint, __u64 now_ns, __u32 index,
			 const struct dmp_endpoint_answer *from)
{
	struct dmp_incoming *incoming = &endpoint->incoming[index];

	if (incoming->operation.operation == DMP_OP_WRITE_IMM) {
		if (from->result)
			dmp_incoming_release(endpoint, now_ns, incoming->charge_bytes);
		else
			announce(endpoint, incoming, from);
	}
	answer(endpoint, index, from->result,
	       from->result ? 0 : incoming->operation.length_bytes);
}

int dmp_incoming_admitted(struct dmp_endpoint *endpoint, __u64 now_ns,
			  const struct dmp_endpoint_answer *from)
{
	__u32 index = (__u32)from->tag;
	struct dmp_incoming *incoming;

	if (!dmp_endpoint_is_up(endpoint) || index >= endpoint->config.incoming_max)
		return -ESTALE;
	incoming = &endpoint->incoming[index];
	if (incoming->state != INCOMING_ADMITTING || incoming->operation.tag != from->tag ||
	    dmp_queue_holds(&endpoint->admits, index))
		return -ESTALE;
	if (incoming->operation.operation == DMP_OP_WRITE_IMM) {
		finish_write(endpoint, now_ns, index, from);
		return 0;
	}
	incoming->respond = !from->result;
	incoming->cookie = from->cookie;
	incoming->checksum = from->checksum;
	incoming->checksum_valid = from->flags & DMP_WIRE_CHECKSUM;
	answer(endpoint, index, from->result, 0);
	return 0;
}

static void finish_message(struct dmp_endpoint *endpoint, __u64 now_ns,
			   const struct dmp_placing *placing,
			   const struct dmp_endpoint_answer *from)
{
	struct dmp_stage *stage = &endpoint->stages[placing->stage];

	answer(endpoint, placing->incoming, from->result,
	       from->result ? 0 : placing->length_bytes);
	if (placing->target == DMP_TARGET_LOCAL || from->result) {
		free_stage(endpoint, now_ns, placing->stage);
	} else {
		stage->state = STAGE_FULL;
		stage->checksum = from->checksum;
		stage->checksum_valid = from->flags & DMP_WIRE_CHECKSUM;
		dmp_queue_push(&endpoint->staged, placing->stage);
	}
}

/* The payload has been taken from the fabric. */
int dmp_incoming_placed(struct dmp_endpoint *endpoint, __u64 now_ns,
			const struct dmp_endpoint_answer *from)
{
	struct dmp_placing placing = endpoint->placing;
	struct dmp_operation *operation;

	if (!placing.active || !placing.taken || placing.tag != from->tag)
		return -ESTALE;
	endpoint->placing.active = false;
	if (placing.held && !dmp_endpoint_is_up(endpoint)) {
		dmp_inflight_let_go(endpoint, placing.operation);
		dmp_inflight_settle(endpoint, placing.operation);
		return 0;
	}
	if (placing.target == DMP_TARGET_LOCAL) {
		operation = &endpoint->operations[placing.operation];
		operation->checksum = from->checksum;
		operation->checksum_valid = from->flags & DMP_WIRE_CHECKSUM;
		dmp_inflight_let_go(endpoint, placing.operation);
		dmp_inflight_decide(endpoint, placing.operation, from->result,
				    from->result ? 0 : placing.length_bytes);
		dmp_inflight_settle(endpoint, placing.operation);
	}
	if (placing.is_incoming) {
		if (endpoint->incoming[placing.incoming].operation.operation == DMP_OP_SEND)
			finish_message(endpoint, now_ns, &placing, from);
		else
			finish_write(endpoint, now_ns, placing.incoming, from);
	}
	dmp_incoming_match(endpoint);
	return 0;
}

/* A staged message is in its RECV's buffer, or could not be put there. */
int dmp_incoming_copied(struct dmp_endpoint *endpoint, __u64 now_ns,
			const struct dmp_endpoint_answer *from)
{
	struct dmp_operation *operation = dmp_inflight_find(endpoint, from->tag);
	__u32 index = (__u32)from->tag;
	struct dmp_stage *stage;

	if (!operation || !operation->held || !operation->copying)
		return -ESTALE;
	dmp_inflight_let_go(endpoint, index);
	operation->copying = false;
	if (dmp_endpoint_is_up(endpoint)) {
		stage = &endpoint->stages[operation->stage];
		if (from->result) {
			dmp_incoming_unfill(endpoint, index);
		} else {
			operation->checksum = stage->checksum;
			operation->checksum_valid = stage->checksum_valid;
			dmp_inflight_decide(endpoint, index, 0, stage->length_bytes);
			endpoint->copying = false;
			free_stage(endpoint, now_ns, operation->stage);
		}
	}
	dmp_inflight_decide(endpoint, index, from->result, 0);
	dmp_inflight_settle(endpoint, index);
	dmp_incoming_match(endpoint);
	return 0;
}

/* The connection has ended: what the peer asked for and nobody took is gone. */
void dmp_incoming_break(struct dmp_endpoint *endpoint)
{
	__u32 index;

	/* a buffer that is being filled right now is still waited for */
	endpoint->placing.active = endpoint->placing.active && endpoint->placing.held;
	endpoint->copying = false;
	endpoint->incomings = 0;
	for (index = 0; index < endpoint->config.incoming_max; index++) {
		endpoint->incoming[index].state = INCOMING_FREE;
		dmp_queue_remove(&endpoint->admits, index);
		dmp_queue_remove(&endpoint->answers, index);
	}
	for (index = 0; index < endpoint->config.window_slots; index++) {
		endpoint->stages[index].state = STAGE_FREE;
		dmp_queue_remove(&endpoint->staged, index);
		if (!dmp_queue_holds(&endpoint->free_stages, index))
			dmp_queue_push(&endpoint->free_stages, index);
	}
}

void dmp_incoming_admit_request(struct dmp_endpoint *endpoint, __u32 index,
				struct dmp_endpoint_request *request)
{
	const struct dmp_wire_operation *wire = &endpoint->incoming[index].operation;

	request->kind = DMP_REQUEST_ADMIT;
	request->tag = wire->tag;
	request->offset = wire->offset;
	request->length_bytes = wire->length_bytes;
	request->operation = wire->operation;
	request->access = wire->operation == DMP_OP_READ ? DMP_ACCESS_REMOTE_READ :
							   DMP_ACCESS_REMOTE_WRITE;
	request->checksum = wire->checksum;
	request->flags = wire->flags & DMP_WIRE_CHECKSUM;
	request->key_bytes = wire->key_bytes;
	__builtin_memcpy(request->key, wire->key, DMP_WIRE_KEY_BYTES);
}

/* Hand out the PLACE; a local buffer is held from here on. */
void dmp_incoming_place_request(struct dmp_endpoint *endpoint,
				struct dmp_endpoint_request *request)
{
	struct dmp_placing *placing = &endpoint->placing;

	if (placing->target == DMP_TARGET_REGION)
		dmp_incoming_admit_request(endpoint, placing->incoming, request);
	if (placing->target == DMP_TARGET_LOCAL) {
		request->local = endpoint->operations[placing->operation].submission.local;
		dmp_inflight_hold(endpoint, placing->operation);
		placing->held = true;
	}
	if (placing->is_incoming)
		request->operation = endpoint->incoming[placing->incoming].operation.operation;
	else
		request->operation = DMP_OP_READ;
	placing->taken = true;
	request->kind = DMP_REQUEST_PLACE;
	request->target = placing->target;
	request->stage = placing->stage;
	request->tag = placing->tag;
	request->length_bytes = placing->length_bytes;
	request->checksum = placing->checksum;
	request->flags = placing->flags;
}
