// SPDX-License-Identifier: MIT
/*
 * errand.c - MOVE and COPY of an endpoint's machine, slice by slice
 *
 * An errand touches its buffer only inside dmp_errand_run(), so between two runs it can be
 * dropped at once: that is how STOP and CUT are answered. Errands are carried out in order;
 * a large one gives way to the other endpoints of the channel after each burst.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "copy.h"
#include "traffic.h"

#define ERRANDS_AT_ONCE 64u

void dmp_errand_add(struct dmp_embedded_endpoint *endpoint,
		       const struct dmp_endpoint_request *request)
{
	struct dmp_errand *errand =
		&endpoint->errands[(endpoint->errand_first + endpoint->errand_count++) %
				   DMP_ERRANDS_MAX];

	*errand = (struct dmp_errand){
		.tag = request->tag,
		.length = request->length_bytes,
		.kind = request->kind,
		.index = (uint32_t)request->local,
		.stage = request->stage,
	};
}

/* One slice; the lock is not held. */
static void run_slice(struct dmp_embedded_endpoint *endpoint, struct dmp_errand *errand,
		      uint64_t room)
{
	struct dmp_embedded_channel *channel = endpoint->channel;
	uint64_t length = errand->length - errand->done;
	const struct dmp_submission *submission;
	char *local;

	if (length > room)
		length = room;
	if (length == 0 || errand->index == (uint32_t)DMP_TRAFFIC_PROBE)
		return;
	submission = &channel->machine.operations[errand->index].submission;
	local = dmp_traffic_local(channel, errand->index) + errand->done;
	if (errand->kind == DMP_REQUEST_COPY) {
		const char *from = endpoint->staged[errand->stage].bytes + errand->done;

		if (dmp_traffic_is_checked(channel, errand->index))
			errand->checksum = dmp_copy_crc32c(errand->checksum, local, from, length,
							   length);
		else
			memcpy(local, from, length);
	} else {
		struct dmp_remote *remote = channel->holds[errand->index].remote;
		bool write = submission->operation != DMP_OP_READ;
		struct dmp_move move = {
			.remote = remote,
			.offset = errand->done + (write ? submission->target_offset :
							  submission->source_offset),
			.local = local,
			.length = length,
			.sweep = write ? remote->length :
					 channel->holds[errand->index].target->memory.length,
			.checksum = errand->checksum,
			.write = write,
			.checked = dmp_traffic_is_checked(channel, errand->index),
		};

		errand->result = endpoint->fabric->type->move(endpoint->fabric, &move);
		errand->checksum = move.checksum;
		if (errand->result)
			return;
	}
	errand->done += length;
}

/* The next errand's source comes from memory while this one is copied. */
static void fetch_source(const struct dmp_embedded_endpoint *endpoint,
			 const struct dmp_errand *errand)
{
	const struct dmp_holds *holds;

	if (errand->kind != DMP_REQUEST_MOVE || errand->index == (uint32_t)DMP_TRAFFIC_PROBE)
		return;
	holds = &endpoint->channel->holds[errand->index];
	if (holds->source)
		dmp_copy_prefetch(dmp_traffic_local(endpoint->channel, errand->index),
				  errand->length);
}

uint32_t dmp_errand_run(struct dmp_embedded_endpoint *endpoint)
{
	uint64_t room = DMP_TRAFFIC_BURST;
	uint32_t number;

	for (number = 0; number < endpoint->errand_count && number < ERRANDS_AT_ONCE && room != 0;
	     number++) {
		struct dmp_errand *errand =
			&endpoint->errands[(endpoint->errand_first + number) % DMP_ERRANDS_MAX];
		uint64_t before = errand->done;

		if (number + 1 < endpoint->errand_count)
			fetch_source(endpoint, &endpoint->errands[(endpoint->errand_first +
								   number + 1) %
								  DMP_ERRANDS_MAX]);
		run_slice(endpoint, errand, room);
		room -= errand->done - before;
		if (!errand->result && errand->done != errand->length)
			break;
	}
	return number;
}

/* The peer is not told of a WRITE_IMM whose bytes are not the ones that were meant. */
static void note_checksum(struct dmp_embedded_channel *channel, const struct dmp_errand *errand,
			  __s32 *result)
{
	const struct dmp_submission *submission = &channel->machine.operations[errand->index].submission;
	struct dmp_holds *holds = &channel->holds[errand->index];

	if (!dmp_traffic_is_checked(channel, errand->index))
		return;
	holds->checksum = errand->checksum;
	holds->checksum_known = true;
	if (submission->flags & DMP_SUBMIT_VERIFY && errand->kind == DMP_REQUEST_MOVE &&
	    !*result && errand->checksum != submission->checksum)
		*result = -EBADMSG;
}

void dmp_errand_finish_locked(struct dmp_embedded_endpoint *endpoint, uint32_t count)
{
	while (count-- != 0) {
		struct dmp_errand errand = endpoint->errands[endpoint->errand_first];
		struct dmp_endpoint_answer reply = {
			.tag = errand.tag,
			.kind = errand.kind,
			.length_bytes = errand.done,
			.result = errand.result,
		};

		endpoint->errand_first = (endpoint->errand_first + 1) % DMP_ERRANDS_MAX;
		endpoint->errand_count--;
		if (errand.index != (uint32_t)DMP_TRAFFIC_PROBE)
			note_checksum(endpoint->channel, &errand, &reply.result);
		if (errand.kind == DMP_REQUEST_COPY && !errand.result) {
			free(endpoint->staged[errand.stage].bytes);
			endpoint->staged[errand.stage].bytes = NULL;
		}
		dmp_traffic_answer(endpoint, &reply);
	}
}

bool dmp_errand_drop(struct dmp_embedded_endpoint *endpoint, __u64 tag)
{
	uint32_t number, kept = 0;
	bool found;

	for (number = 0; number < endpoint->errand_count; number++) {
		struct dmp_errand *from = &endpoint->errands[(endpoint->errand_first + number) %
							     DMP_ERRANDS_MAX];

		if (from->tag != tag)
			endpoint->errands[(endpoint->errand_first + kept++) % DMP_ERRANDS_MAX] =
				*from;
	}
	found = kept != endpoint->errand_count;
	endpoint->errand_count = kept;
	return found;
}
