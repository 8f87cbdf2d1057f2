// SPDX-License-Identifier: MIT
/*
 * errand.c - MOVE and COPY of an endpoint's machine, slice by slice
 *
 * An errand touches its buffer only inside dmp_errand_run(), so between two runs it can be
 * dropped at once: that is how STOP and CUT are answered. Errands are carried out in order;
 * a large one gives way to the other endpoints of the channel after each burst.
 *
 * Where the fabric is a device (`post`), slices of many errands are under way at once. What is
 * under way cannot be dropped: its STOP is answered when the device has given it back.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "copy.h"
#include "traffic.h"

#define ERRANDS_AT_ONCE 64u
#define POSTED_BYTES	(1u << 20)	/* a slice a device has; STOP waits for no more of an errand */

static struct dmp_errand *errand_at(struct dmp_embedded_endpoint *endpoint, __u32 number)
{
	return dmp_errands_at(&endpoint->errands, number);
}

/* The next @length bytes of a MOVE. */
static struct dmp_move next_move(struct dmp_embedded_endpoint *endpoint,
				 const struct dmp_errand *errand, __u64 from, __u64 length)
{
	struct dmp_embedded_channel *channel = endpoint->channel;
	const struct dmp_submission *submission =
		&channel->machine.operations[errand->index].submission;
	const struct dmp_holds *holds = &channel->holds[errand->index];
	bool write = submission->operation != DMP_OP_READ;

	return (struct dmp_move){
		.remote = holds->remote,
		.buffer = write ? holds->source : holds->target,
		.offset = from + (write ? submission->target_offset : submission->source_offset),
		.local = dmp_traffic_local(channel, errand->index) + from,
		.length = length,
		.sweep = write ? holds->remote->length : holds->target->memory.length,
		.checksum = errand->checksum,
		.write = write,
		.checked = dmp_traffic_is_checked(channel, errand->index),
	};
}

/* One slice; the lock is not held. */
static void run_slice(struct dmp_embedded_endpoint *endpoint, struct dmp_errand *errand,
		      uint64_t room)
{
	struct dmp_embedded_channel *channel = endpoint->channel;
	uint64_t length = errand->length - errand->done;

	if (length > room)
		length = room;
	if (length == 0 || errand->index == (uint32_t)DMP_TRAFFIC_PROBE)
		return;
	if (errand->kind == DMP_REQUEST_COPY) {
		char *local = dmp_traffic_local(channel, errand->index) + errand->done;
		const char *from = endpoint->staged[errand->stage].bytes + errand->done;

		if (dmp_traffic_is_checked(channel, errand->index))
			errand->checksum = dmp_copy_crc32c(errand->checksum, local, from, length,
							   length);
		else
			memcpy(local, from, length);
	} else {
		struct dmp_move move = next_move(endpoint, errand, errand->done, length);

		errand->result = endpoint->fabric->type->move(endpoint->fabric, &move);
		errand->checksum = move.checksum;
		if (errand->result)
			return;
	}
	errand->done += length;
}

/* ---- a device moves */

/* What the device has given back. */
static void reap(struct dmp_embedded_endpoint *endpoint)
{
	__u64 tag, length;
	__u32 number = 0;

	while (endpoint->fabric->type->reap(endpoint->fabric, &tag, &length))
		if (dmp_errands_give_back(&endpoint->errands, &number, tag, length))
			return;
}

/* Posts what is left of a MOVE; false: no more goes in now. */
static bool post_rest(struct dmp_embedded_endpoint *endpoint, struct dmp_errand *errand)
{
	while (errand->posted < errand->length && !errand->result && !errand->stopped) {
		__u64 length = errand->length - errand->posted;
		struct dmp_move move;
		ssize_t posted;

		if (length > POSTED_BYTES)
			length = POSTED_BYTES;
		move = next_move(endpoint, errand, errand->posted, length);
		if (errand->posted == 0 && move.checked && move.write)
			errand->checksum = dmp_crc32c(0, move.local, errand->length);
		posted = endpoint->fabric->type->post(endpoint->fabric, &move, errand->tag);
		if (posted == -EAGAIN)
			return false;
		if (posted < 0)
			errand->result = (int)posted;
		else
			errand->posted += (__u64)posted;
	}
	return true;
}

/* How many errands at the front are over. */
static uint32_t run_posted(struct dmp_embedded_endpoint *endpoint)
{
	uint32_t number, over = 0;

	reap(endpoint);
	for (number = 0; number < endpoint->errands.count; number++) {
		struct dmp_errand *errand = errand_at(endpoint, number);

		if (errand->kind == DMP_REQUEST_COPY)
			run_slice(endpoint, errand, errand->length);
		else if (!post_rest(endpoint, errand))
			break;
	}
	endpoint->fabric->type->push(endpoint->fabric);
	while (over < endpoint->errands.count && dmp_errand_is_over(errand_at(endpoint, over))) {
		struct dmp_errand *errand = errand_at(endpoint, over++);
		struct dmp_move whole;

		if (errand->kind != DMP_REQUEST_MOVE || errand->done != errand->length ||
		    errand->length == 0)
			continue;
		whole = next_move(endpoint, errand, 0, errand->length);
		if (whole.checked && !whole.write)
			errand->checksum = dmp_crc32c(0, whole.local, whole.length);
	}
	endpoint->errands.wait = over < endpoint->errands.count;
	return over;
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

uint32_t dmp_errand_run(struct dmp_embedded_endpoint *endpoint, uint64_t room)
{
	uint32_t number;

	if (endpoint->fabric->type->post)
		return run_posted(endpoint);
	for (number = 0; number < endpoint->errands.count && number < ERRANDS_AT_ONCE && room != 0;
	     number++) {
		struct dmp_errand *errand = errand_at(endpoint, number);
		uint64_t before = errand->done;

		if (number + 1 < endpoint->errands.count)
			fetch_source(endpoint, errand_at(endpoint, number + 1));
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
	struct dmp_endpoint_answer reply;
	struct dmp_errand errand;

	while (count-- != 0) {
		dmp_errands_take(&endpoint->errands, &errand, &reply);
		if (errand.index != (uint32_t)DMP_TRAFFIC_PROBE)
			note_checksum(endpoint->channel, &errand, &reply.result);
		if (errand.kind == DMP_REQUEST_COPY && !errand.result) {
			free(endpoint->staged[errand.stage].bytes);
			endpoint->staged[errand.stage].bytes = NULL;
		}
		dmp_traffic_answer(endpoint, &reply);
	}
}
