// SPDX-License-Identifier: MIT
/*
 * piece.c - operations of a channel with the machine of their endpoint
 *
 * On a fabric with one stream a large WRITE or READ goes in pieces, a few at a time, so that
 * small operations, answers and PINGs never stand behind more than those. A large WRITE_IMM
 * sends its bytes as WRITEs; the frame that announces them follows when all are answered.
 * Everything else is one piece. A direct fabric cuts its copies itself (errand.c), a message
 * has to arrive whole, and what is checked carries one checksum.
 *
 * All functions: channel->lock held.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>

#include "traffic.h"

static const struct dmp_submission *submission_of(const struct dmp_embedded_endpoint *endpoint,
						  uint32_t index)
{
	return &endpoint->channel->machine.operations[index].submission;
}

static bool goes_in_pieces(const struct dmp_embedded_endpoint *endpoint, uint32_t index)
{
	const struct dmp_submission *submission = submission_of(endpoint, index);

	return endpoint->path == DMP_PATH_TCP && submission->length_bytes > DMP_PIECE_BYTES &&
	       endpoint->channel->holds[index].remote &&
	       !(submission->flags & DMP_SUBMIT_NOWAIT) &&
	       !dmp_traffic_is_checked(endpoint->channel, index);
}

/* A place for one more tag; NULL if as many as may are with the machine. */
static __u64 *free_tag(struct dmp_holds *holds)
{
	unsigned int number;

	for (number = 0; number < DMP_PIECES_MAX; number++)
		if (holds->tags[number] == 0)
			return &holds->tags[number];
	return NULL;
}

static bool is_with_machine(const struct dmp_holds *holds)
{
	unsigned int number;

	for (number = 0; number < DMP_PIECES_MAX; number++)
		if (holds->tags[number] != 0)
			return true;
	return false;
}

/* Bytes @offset and on of the operation. */
static int submit(struct dmp_embedded_endpoint *endpoint, uint32_t index, __u64 offset,
		  __u64 length, __u16 operation, __u64 *tag)
{
	const struct dmp_submission *submission = submission_of(endpoint, index);
	const struct dmp_holds *holds = &endpoint->channel->holds[index];
	struct dmp_endpoint_submission own;

	memset(&own, 0, offsetof(struct dmp_endpoint_submission, key));
	own.user_data = index;
	own.deadline_ns = submission->deadline_ns;
	own.local = DMP_LOCAL_NAME((__u64)index, offset);
	own.length_bytes = length;
	own.operation = operation;
	own.flags = submission->flags & DMP_SUBMIT_NOWAIT;
	if (operation == DMP_OP_WRITE_IMM)
		own.immediate = submission->immediate;
	if (holds->checksum_known && holds->source) {
		own.flags |= DMP_SUBMIT_CHECKSUM;
		own.checksum = holds->checksum;
	}
	if (holds->remote) {
		own.offset = offset + (operation == DMP_OP_READ ? submission->source_offset :
								  submission->target_offset);
		own.key_bytes = holds->remote->key_bytes;
		memcpy(own.key, holds->remote->key, holds->remote->key_bytes);
	}
	own.placed = operation == DMP_OP_WRITE_IMM && holds->begun != 0;
	return dmp_endpoint_submit(endpoint->machine, endpoint->now_ns, &own, tag);
}

/* The bytes are all there: says so. */
static int announce(struct dmp_embedded_endpoint *endpoint, uint32_t index)
{
	struct dmp_holds *holds = &endpoint->channel->holds[index];
	int error = submit(endpoint, index, 0, submission_of(endpoint, index)->length_bytes,
			   DMP_OP_WRITE_IMM, &holds->tags[0]);

	if (!error)
		holds->announced = true;
	return error;
}

/* As many pieces as there is room for. */
static int submit_pieces(struct dmp_embedded_endpoint *endpoint, uint32_t index)
{
	const struct dmp_submission *submission = submission_of(endpoint, index);
	struct dmp_holds *holds = &endpoint->channel->holds[index];
	__u16 operation = submission->operation;
	__u64 *tag;
	int error = 0;

	if (operation == DMP_OP_WRITE_IMM)
		operation = DMP_OP_WRITE;
	while (!error && holds->begun < submission->length_bytes && (tag = free_tag(holds))) {
		__u64 length = submission->length_bytes - holds->begun;

		if (length > DMP_PIECE_BYTES)
			length = DMP_PIECE_BYTES;
		error = submit(endpoint, index, holds->begun, length, operation, tag);
		if (!error)
			holds->begun += length;
	}
	if (!error && submission->operation == DMP_OP_WRITE_IMM && !holds->announced &&
	    holds->begun == submission->length_bytes && !is_with_machine(holds))
		error = announce(endpoint, index);
	return error;
}

int dmp_piece_submit(struct dmp_embedded_endpoint *endpoint, uint32_t index)
{
	const struct dmp_submission *submission = submission_of(endpoint, index);
	struct dmp_holds *holds = &endpoint->channel->holds[index];
	int error;

	if (!goes_in_pieces(endpoint, index))
		return submit(endpoint, index, 0, submission->length_bytes, submission->operation,
			      &holds->tags[0]);
	error = submit_pieces(endpoint, index);
	if (!error || !is_with_machine(holds))
		return error;
	/* What is with the machine already brings it back here. */
	if (error != -EAGAIN)
		holds->error = error;
	return 0;
}

static void take_back(struct dmp_holds *holds, const struct dmp_endpoint_completion *from)
{
	unsigned int number;

	for (number = 0; number < DMP_PIECES_MAX; number++)
		if (holds->tags[number] == from->tag)
			holds->tags[number] = 0;
	if (from->result == 0 && !holds->announced)
		holds->done += from->length_bytes;
	else if (from->result != 0 && !holds->error)
		holds->error = from->result;
}

/* Is there more of it to hand to the machine? */
static bool is_unfinished(const struct dmp_submission *submission, const struct dmp_holds *holds)
{
	return holds->begun < submission->length_bytes ||
	       (submission->operation == DMP_OP_WRITE_IMM && !holds->announced);
}

bool dmp_piece_completed(struct dmp_embedded_endpoint *endpoint,
			 const struct dmp_endpoint_completion *from, struct dmp_outcome *outcome)
{
	struct dmp_embedded_channel *channel = endpoint->channel;
	uint32_t index = (uint32_t)from->user_data;
	const struct dmp_operation *operation = &channel->machine.operations[index];
	struct dmp_holds *holds = &channel->holds[index];

	outcome->length_bytes = from->length_bytes;
	outcome->result = from->result;
	outcome->checksum = from->checksum;
	outcome->immediate = from->immediate;
	outcome->flags = from->flags;
	if (!goes_in_pieces(endpoint, index))
		return true;
	take_back(holds, from);
	if (!holds->error && is_unfinished(&operation->submission, holds)) {
		int error = operation->cancel ? -ECANCELED : submit_pieces(endpoint, index);

		/* No slot, and nothing under way that would bring it back: it waits for one. */
		if (error == -EAGAIN && !is_with_machine(holds))
			error = dmp_channel_park(&channel->machine, &endpoint->lanes[0], index);
		else if (error == -EAGAIN)
			error = 0;
		if (!error)
			return false;
		holds->error = error;
	}
	if (is_with_machine(holds))
		return false;
	outcome->length_bytes = holds->done;
	outcome->result = holds->error;
	return true;
}

void dmp_piece_cancel(struct dmp_embedded_endpoint *endpoint, uint32_t index)
{
	struct dmp_holds *holds = &endpoint->channel->holds[index];
	uint64_t now_ns = dmp_endpoint_time(endpoint, dmp_now_ns());
	unsigned int number;

	for (number = 0; number < DMP_PIECES_MAX; number++)
		if (holds->tags[number] != 0)
			dmp_endpoint_cancel(endpoint->machine, now_ns, holds->tags[number]);
}
