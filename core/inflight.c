// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * inflight.c - the own operations of an endpoint, from submission to completion
 *
 *	submit -> WAITING -> READY -> SENT -> FINISHED -> free
 *	             \-> MOVING --^     \---> ZOMBIE ---> free	(completed before the answer)
 *	RECV   -> POSTED -> FILLING -> free
 *
 * A result is decided once; the first decision stands. The completion is delivered when
 * the result is decided and the owner does not hold the buffer; not earlier, whatever
 * the reason. A slot whose frame went out stays taken until the peer has answered, so a
 * tag is never ambiguous and the peer's table cannot be overrun.
 */
#include "endpoint_layout.h"

struct dmp_operation *dmp_inflight_find(struct dmp_endpoint *endpoint, __u64 tag)
{
	__u32 index = (__u32)tag;

	if (index >= endpoint->slots)
		return NULL;
	if (endpoint->operations[index].state == OPERATION_FREE ||
	    endpoint->operations[index].tag != tag)
		return NULL;
	return &endpoint->operations[index];
}

/* What the peer allows to be in flight towards it is part of the handshake. */
void dmp_inflight_open(struct dmp_endpoint *endpoint)
{
	__u32 count = endpoint->config.operations_max;
	__u32 index;

	if (count > endpoint->peer.operations)
		count = endpoint->peer.operations;
	for (index = 0; index < count; index++)
		dmp_queue_push(&endpoint->free_operations, index);
}

static bool needs_credit(const struct dmp_operation *operation)
{
	return operation->submission.operation == DMP_OP_SEND ||
	       operation->submission.operation == DMP_OP_WRITE_IMM;
}

static void free_slot(struct dmp_endpoint *endpoint, __u32 index)
{
	struct dmp_operation *operation = &endpoint->operations[index];

	if (operation->charged && dmp_endpoint_is_up(endpoint))
		dmp_credit_return(&endpoint->sender, operation->charge_bytes);
	operation->charged = false;
	operation->state = OPERATION_FREE;
	dmp_queue_remove(&endpoint->cancels, index);
	dmp_queue_remove(&endpoint->stops, index);
	if (index < endpoint->config.operations_max)
		dmp_queue_push(&endpoint->free_operations, index);
	else
		dmp_queue_push(&endpoint->free_receives, index);
}

void dmp_inflight_decide(struct dmp_endpoint *endpoint, __u32 index, __s32 result,
			 __u64 bytes)
{
	struct dmp_operation *operation = &endpoint->operations[index];

	if (operation->decided)
		return;
	operation->decided = true;
	operation->result = result;
	operation->moved_bytes = bytes;
}

static void deliver(struct dmp_endpoint *endpoint, __u32 index)
{
	struct dmp_operation *operation = &endpoint->operations[index];
	struct dmp_endpoint_completion completion = {
		.user_data = operation->submission.user_data,
		.length_bytes = operation->moved_bytes,
		.tag = operation->tag,
		.result = operation->result,
		.operation = operation->submission.operation,
	};

	if (operation->checksum_valid && !operation->result) {
		completion.flags |= DMP_COMPLETE_CHECKSUM;
		completion.checksum = operation->checksum;
	}
	operation->delivered = true;
	if (operation->submission.deadline_ns)
		dmp_deadline_remove(&endpoint->deadlines, index);
	endpoint->in_flight -= 1;
	dmp_endpoint_push(endpoint, &completion);
}

/* Send CANCEL once, and only for what the peer has heard of. */
static void ask_cancel(struct dmp_endpoint *endpoint, __u32 index)
{
	struct dmp_operation *operation = &endpoint->operations[index];

	if (operation->cancel_sent)
		return;
	operation->cancel_sent = true;
	dmp_queue_push(&endpoint->cancels, index);
}

/* Deliver what can be delivered, free what can be freed. */
void dmp_inflight_settle(struct dmp_endpoint *endpoint, __u32 index)
{
	struct dmp_operation *operation = &endpoint->operations[index];

	if (!operation->decided || operation->held)
		return;
	deliver(endpoint, index);
	if (operation->state == OPERATION_SENT && dmp_endpoint_is_up(endpoint)) {
		operation->state = OPERATION_ZOMBIE;
		endpoint->zombies += 1;
		ask_cancel(endpoint, index);
		return;
	}
	free_slot(endpoint, index);
}

void dmp_inflight_hold(struct dmp_endpoint *endpoint, __u32 index)
{
	endpoint->operations[index].held = true;
	endpoint->held += 1;
}

void dmp_inflight_let_go(struct dmp_endpoint *endpoint, __u32 index)
{
	if (!endpoint->operations[index].held)
		return;
	endpoint->operations[index].held = false;
	endpoint->held -= 1;
	dmp_queue_remove(&endpoint->stops, index);
}

/* Take an operation that is not held out of whatever it waits in. */
static void detach(struct dmp_endpoint *endpoint, __u32 index)
{
	struct dmp_operation *operation = &endpoint->operations[index];

	switch (operation->state) {
	case OPERATION_WAITING:
		dmp_queue_remove(&endpoint->waiting, index);
		break;
	case OPERATION_READY:
		dmp_queue_remove(&endpoint->ready, index);
		break;
	case OPERATION_MOVING:
		dmp_queue_remove(&endpoint->work, index);
		break;
	case OPERATION_POSTED:
		dmp_queue_remove(&endpoint->posted, index);
		break;
	case OPERATION_FILLING:
		dmp_incoming_unfill(endpoint, index);
		break;
	case OPERATION_FINISHED:
		if (endpoint->placing.active && !endpoint->placing.is_incoming &&
		    endpoint->placing.operation == index)
			endpoint->placing.target = DMP_TARGET_DISCARD;
		break;
	default:
		break;
	}
}

static void finish(struct dmp_endpoint *endpoint, __u32 index, __s32 result)
{
	bool filling = endpoint->operations[index].state == OPERATION_FILLING;

	detach(endpoint, index);
	dmp_inflight_decide(endpoint, index, result, 0);
	dmp_inflight_settle(endpoint, index);
	if (filling)
		dmp_incoming_match(endpoint);
}

static void start(struct dmp_endpoint *endpoint, __u32 index)
{
	struct dmp_operation *operation = &endpoint->operations[index];

	if (endpoint->config.direct && operation->submission.operation != DMP_OP_SEND) {
		operation->state = OPERATION_MOVING;
		dmp_queue_push(&endpoint->work, index);
	} else {
		operation->state = OPERATION_READY;
		dmp_queue_push(&endpoint->ready, index);
	}
}

static void end_stall(struct dmp_endpoint *endpoint, __u64 now_ns)
{
	__u64 before_ns = endpoint->sender.stall_ns;

	if (!endpoint->sender.stalled)
		return;
	dmp_credit_stall_end(&endpoint->sender, now_ns);
	if (endpoint->config.stall)
		dmp_histogram_record(endpoint->config.stall,
				     endpoint->sender.stall_ns - before_ns, 1);
}

/* Start what waits, in order, as far as credit goes. */
void dmp_inflight_pump(struct dmp_endpoint *endpoint, __u64 now_ns)
{
	struct dmp_operation *operation;
	__u32 index;

	if (!dmp_endpoint_is_up(endpoint)) {
		end_stall(endpoint, now_ns);
		return;
	}
	while ((index = dmp_queue_peek(&endpoint->waiting)) != DMP_QUEUE_NONE) {
		operation = &endpoint->operations[index];
		if (needs_credit(operation)) {
			if (dmp_credit_take(&endpoint->sender, operation->charge_bytes)) {
				dmp_credit_stall_begin(&endpoint->sender, now_ns);
				return;
			}
			operation->charged = true;
		}
		dmp_queue_pop(&endpoint->waiting);
		start(endpoint, index);
	}
	end_stall(endpoint, now_ns);
}

int dmp_endpoint_cancel(struct dmp_endpoint *endpoint, __u64 now_ns, __u64 tag)
{
	struct dmp_operation *operation = dmp_inflight_find(endpoint, tag);
	__u32 index = (__u32)tag;

	if (!operation || operation->delivered)
		return -ENOENT;
	operation->cancel = true;
	if (operation->held) {
		/* A frame being written is followed by CANCEL; a MOVE can stop now. */
		if (operation->state == OPERATION_MOVING)
			dmp_queue_push(&endpoint->stops, index);
		return 0;
	}
	if (operation->state == OPERATION_SENT) {
		ask_cancel(endpoint, index);
		return 0;
	}
	finish(endpoint, index, -ECANCELED);
	dmp_inflight_pump(endpoint, now_ns);
	return 0;
}

/* The deadline of @index has passed; it is out of the heap already. */
void dmp_inflight_expire(struct dmp_endpoint *endpoint, __u32 index)
{
	struct dmp_operation *operation = &endpoint->operations[index];

	if (operation->held) {
		operation->expired = true;
		dmp_queue_push(&endpoint->stops, index);
		return;
	}
	finish(endpoint, index, -ETIMEDOUT);
}

/* The owner has let go of a buffer whose frame is out, or will finish elsewhere. */
static void sent(struct dmp_endpoint *endpoint, __u32 index)
{
	struct dmp_operation *operation = &endpoint->operations[index];

	dmp_inflight_let_go(endpoint, index);
	if (operation->expired)
		dmp_inflight_decide(endpoint, index, -ETIMEDOUT, 0);
	else if (operation->cancel && !operation->decided)
		ask_cancel(endpoint, index);
	dmp_inflight_settle(endpoint, index);
}

int dmp_endpoint_sent(struct dmp_endpoint *endpoint, __u64 now_ns, __u64 tag)
{
	struct dmp_operation *operation = dmp_inflight_find(endpoint, tag);

	if (!operation || !operation->held || !operation->sending)
		return -ESTALE;
	operation->sending = false;
	sent(endpoint, (__u32)tag);
	dmp_inflight_pump(endpoint, now_ns);
	dmp_endpoint_drain_step(endpoint, now_ns);
	return 0;
}

int dmp_inflight_stopped(struct dmp_endpoint *endpoint, __u64 tag)
{
	struct dmp_operation *operation = dmp_inflight_find(endpoint, tag);
	__u32 index = (__u32)tag;

	if (!operation || !operation->held)
		return -ESTALE;
	if (operation->sending) {
		operation->sending = false;
		sent(endpoint, index);
		return 0;
	}
	if (endpoint->placing.active && endpoint->placing.operation == index)
		endpoint->placing.held = false;
	operation->copying = false;
	dmp_inflight_let_go(endpoint, index);
	finish(endpoint, index, operation->expired ? -ETIMEDOUT : -ECANCELED);
	return 0;
}

/* Direct fabrics: the bytes of an own operation have moved, or failed to. */
int dmp_inflight_moved(struct dmp_endpoint *endpoint,
		       const struct dmp_endpoint_answer *answer)
{
	struct dmp_operation *operation = dmp_inflight_find(endpoint, answer->tag);
	__u32 index = (__u32)answer->tag;
	__s32 result = answer->result;

	/* not the state: the connection may have ended since the bytes set off */
	if (!operation || !operation->moving || !operation->held)
		return -ESTALE;
	operation->moving = false;
	dmp_inflight_let_go(endpoint, index);
	if (!result && operation->submission.operation == DMP_OP_WRITE_IMM) {
		if (operation->expired)
			result = -ETIMEDOUT;
		else if (operation->cancel)
			result = -ECANCELED;
		else if (!operation->decided) {
			operation->state = OPERATION_READY;
			dmp_queue_push(&endpoint->ready, index);
			return 0;
		}
	}
	operation->checksum = answer->checksum;
	operation->checksum_valid = (answer->flags & DMP_WIRE_CHECKSUM) != 0;
	dmp_inflight_decide(endpoint, index, result, answer->length_bytes);
	dmp_inflight_settle(endpoint, index);
	return 0;
}

static void credit_answered(struct dmp_endpoint *endpoint, struct dmp_operation *operation)
{
	if (operation->charged)
		dmp_credit_complete(&endpoint->sender, operation->charge_bytes);
	operation->charged = false;
}

/* An operation of ours that the peer may still answer. */
static struct dmp_operation *find_awaited(struct dmp_endpoint *endpoint, __u64 tag)
{
	struct dmp_operation *operation = dmp_inflight_find(endpoint, tag);

	if (!operation || (operation->state != OPERATION_SENT &&
			   operation->state != OPERATION_ZOMBIE))
		return NULL;
	return operation;
}

static void bury(struct dmp_endpoint *endpoint, __u32 index)
{
	endpoint->zombies -= 1;
	free_slot(endpoint, index);
}

/* COMPLETE or CANCELLED. Each operation is answered once, so an unknown tag is a lie. */
int dmp_inflight_result(struct dmp_endpoint *endpoint, const struct dmp_frame *frame)
{
	struct dmp_operation *operation = find_awaited(endpoint, frame->result.tag);
	__u32 index = (__u32)frame->result.tag;

	if (!operation || frame->result.length_bytes > operation->submission.length_bytes)
		return -EPROTO;
	if (frame->type == DMP_FRAME_CANCELLED && !operation->cancel_sent)
		return -EPROTO;
	if (!frame->result.result && operation->submission.operation == DMP_OP_READ)
		return -EPROTO;
	credit_answered(endpoint, operation);
	if (operation->state == OPERATION_ZOMBIE) {
		bury(endpoint, index);
		return 0;
	}
	operation->state = OPERATION_FINISHED;
	dmp_inflight_decide(endpoint, index, frame->result.result,
			    frame->result.length_bytes);
	dmp_inflight_settle(endpoint, index);
	return 0;
}

/* The bytes of a READ follow: into the buffer if someone still wants them. */
int dmp_inflight_response(struct dmp_endpoint *endpoint, const struct dmp_frame *frame)
{
	const struct dmp_wire_response *response = &frame->response;
	struct dmp_operation *operation = find_awaited(endpoint, response->tag);
	struct dmp_placing *placing = &endpoint->placing;
	__u32 index = (__u32)response->tag;

	if (!operation || operation->submission.operation != DMP_OP_READ ||
	    operation->submission.length_bytes != response->length_bytes)
		return -EPROTO;
	*placing = (struct dmp_placing){
		.active = true,
		.target = DMP_TARGET_DISCARD,
		.operation = index,
		.tag = response->tag,
		.length_bytes = response->length_bytes,
		.checksum = response->checksum,
		.flags = (__u16)response->flags,
	};
	if (operation->state == OPERATION_ZOMBIE) {
		bury(endpoint, index);
		return 0;
	}
	operation->state = OPERATION_FINISHED;
	if (operation->cancel) {
		dmp_inflight_decide(endpoint, index, -ECANCELED, 0);
		dmp_inflight_settle(endpoint, index);
		return 0;
	}
	placing->target = DMP_TARGET_LOCAL;
	return 0;
}

/* The connection has ended: everything is decided, what is held waits for the owner. */
void dmp_inflight_break(struct dmp_endpoint *endpoint)
{
	struct dmp_operation *operation;
	__u32 index;

	for (index = 0; index < endpoint->slots; index++) {
		operation = &endpoint->operations[index];
		if (operation->state == OPERATION_FREE)
			continue;
		if (operation->state == OPERATION_ZOMBIE) {
			bury(endpoint, index);
			continue;
		}
		detach(endpoint, index);
		operation->state = OPERATION_FINISHED;
		dmp_inflight_decide(endpoint, index, -ECONNRESET, 0);
		dmp_inflight_settle(endpoint, index);
	}
}

/* The owner touches nothing any more. */
void dmp_inflight_release_all(struct dmp_endpoint *endpoint)
{
	__u32 index;

	for (index = 0; index < endpoint->slots; index++) {
		if (endpoint->operations[index].state == OPERATION_FREE)
			continue;
		dmp_inflight_let_go(endpoint, index);
		dmp_inflight_settle(endpoint, index);
	}
}

/* Complete the RECVs that no message is on its way to. */
void dmp_inflight_end_receives(struct dmp_endpoint *endpoint, __s32 result)
{
	__u32 index;

	while ((index = dmp_queue_pop(&endpoint->posted)) != DMP_QUEUE_NONE) {
		dmp_inflight_decide(endpoint, index, result, 0);
		dmp_inflight_settle(endpoint, index);
	}
}

/* Describe a MOVE, COPY or STOP of @index. */
void dmp_inflight_request(struct dmp_endpoint *endpoint, __u32 index, __u32 kind,
			  struct dmp_endpoint_request *request)
{
	const struct dmp_operation *operation = &endpoint->operations[index];
	const struct dmp_endpoint_submission *submission = &operation->submission;
	const struct dmp_placing *placing = &endpoint->placing;

	request->kind = kind;
	request->tag = operation->tag;
	request->local = submission->local;
	request->offset = submission->offset;
	request->length_bytes = submission->length_bytes;
	request->operation = submission->operation;
	request->key_bytes = submission->key_bytes;
	__builtin_memcpy(request->key, submission->key, DMP_WIRE_KEY_BYTES);
	if (kind == DMP_REQUEST_COPY) {
		request->stage = operation->stage;
		request->length_bytes = endpoint->stages[operation->stage].length_bytes;
	}
	if (kind == DMP_REQUEST_STOP && operation->state == OPERATION_FILLING &&
	    placing->active && placing->operation == index) {
		request->target = DMP_TARGET_STAGE;
		request->stage = placing->stage;
	}
}

/* Hand out a MOVE or a COPY; the buffer is held from here on. */
void dmp_inflight_work(struct dmp_endpoint *endpoint, __u32 index,
		       struct dmp_endpoint_request *request)
{
	struct dmp_operation *operation = &endpoint->operations[index];

	operation->copying = operation->state == OPERATION_FILLING;
	operation->moving = !operation->copying;
	dmp_inflight_hold(endpoint, index);
	dmp_inflight_request(endpoint, index,
			     operation->copying ? DMP_REQUEST_COPY : DMP_REQUEST_MOVE,
			     request);
}
