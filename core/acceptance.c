// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * acceptance.c - what an endpoint accepts
 *
 * Accepting takes a slot, which reserves the completion and a place in the peer's table,
 * and puts the deadline into the heap. Nothing here can fail after that, so what is
 * accepted completes. What is not accepted leaves no trace.
 */
#include "endpoint_layout.h"

#define SUBMIT_FLAGS	(DMP_SUBMIT_NOWAIT | DMP_SUBMIT_CHECKSUM)

static int validate(const struct dmp_endpoint *endpoint,
		    const struct dmp_endpoint_submission *submission)
{
	__u64 end;

	if (submission->flags & ~SUBMIT_FLAGS)
		return -EINVAL;
	if (submission->key_bytes > DMP_WIRE_KEY_BYTES)
		return -EINVAL;
	if (submission->immediate && submission->operation != DMP_OP_WRITE_IMM)
		return -EINVAL;
	if (__builtin_add_overflow(submission->offset, submission->length_bytes, &end))
		return -EOVERFLOW;
	switch (submission->operation) {
	case DMP_OP_SEND:
		if (submission->length_bytes > endpoint->peer.window_bytes)
			return -EOVERFLOW;
		break;
	case DMP_OP_RECV:
		if (submission->checksum)
			return -EINVAL;
		break;
	case DMP_OP_WRITE:
	case DMP_OP_READ:
		return 0;	/* of nothing too: the peer says whether it would be allowed */
	case DMP_OP_WRITE_IMM:
		return submission->length_bytes ? 0 : -EINVAL;
	default:
		return -EINVAL;
	}
	return submission->key_bytes || submission->offset ? -EINVAL : 0;
}

static int may_submit(const struct dmp_endpoint *endpoint)
{
	switch (endpoint->state) {
	case DMP_ENDPOINT_OPEN:
		return 0;
	case DMP_ENDPOINT_DRAINING:
	case DMP_ENDPOINT_DRAINED:
		return -ESTALE;
	case DMP_ENDPOINT_IDLE:
	case DMP_ENDPOINT_CLOSING:
	case DMP_ENDPOINT_CUTTING:
	case DMP_ENDPOINT_DEAD:
		return -ECONNRESET;
	default:
		return -EAGAIN;
	}
}

/* NOWAIT: could it start at once? */
static bool credit_is_there(const struct dmp_endpoint *endpoint,
			    const struct dmp_endpoint_submission *submission, __u64 charge)
{
	const struct dmp_credit *ledger = &endpoint->sender.ledger;

	if (submission->operation == DMP_OP_RECV)
		return true;
	if (endpoint->waiting.count)
		return false;
	if (submission->operation != DMP_OP_SEND &&
	    submission->operation != DMP_OP_WRITE_IMM)
		return true;
	return ledger->available.slots && ledger->available.bytes >= charge;
}

int dmp_endpoint_submit(struct dmp_endpoint *endpoint, __u64 now_ns,
			const struct dmp_endpoint_submission *submission, __u64 *tag)
{
	bool receive = submission->operation == DMP_OP_RECV;
	struct dmp_queue *vacant = receive ? &endpoint->free_receives :
					     &endpoint->free_operations;
	struct dmp_operation *operation;
	__u32 generation, index;
	__u64 charge;
	int error;

	error = may_submit(endpoint);
	if (!error)
		error = validate(endpoint, submission);
	if (error)
		return error;
	charge = dmp_incoming_charge(submission->operation, submission->length_bytes,
				     endpoint->peer.window_bytes);
	if (submission->flags & DMP_SUBMIT_NOWAIT &&
	    !credit_is_there(endpoint, submission, charge))
		return -EAGAIN;
	if (endpoint->reserved >= endpoint->slots)
		return -EAGAIN;
	index = dmp_queue_pop(vacant);
	if (index == DMP_QUEUE_NONE)
		return -EAGAIN;
	operation = &endpoint->operations[index];
	generation = operation->generation + 1;
	*operation = (struct dmp_operation){
		.submission = *submission,
		.generation = generation,
		.tag = (__u64)generation << 32 | index,
		.charge_bytes = charge,
		.state = receive ? OPERATION_POSTED : OPERATION_WAITING,
	};
	endpoint->reserved += 1;
	endpoint->in_flight += 1;
	if (submission->deadline_ns)
		dmp_deadline_insert(&endpoint->deadlines, index, submission->deadline_ns);
	*tag = operation->tag;
	if (receive) {
		dmp_queue_push(&endpoint->posted, index);
		dmp_incoming_match(endpoint);
	} else {
		dmp_queue_push(&endpoint->waiting, index);
		dmp_inflight_pump(endpoint, now_ns);
	}
	return 0;
}
