// SPDX-License-Identifier: GPL-2.0
/*
 * landing.c - where bytes of the peer go, and what it may touch
 *
 * The payload that follows a frame lands in the buffer of a RECV, in a stage, nowhere, or, if a
 * peer chose to send it so, in a region whose key was looked at. A region is held while bytes
 * land in it or are sent from it. Executor only.
 *
 * Stages are bounded by the window that was granted to the peer, in bytes and in messages, and
 * are charged: memory that is not there is answered with ENOMEM, and the connection goes on.
 */
#include <linux/crc32c.h>
#include <linux/slab.h>

#include "endpoint_kernel.h"

int dmp_stage_alloc(struct dmp_stage_memory *stage, u64 length)
{
	u64 bytes = length ?: 1;
	int error;

	dmp_stage_free(stage);
	if (bytes > INT_MAX)
		return -ENOMEM;
	error = dmp_charge(bytes);
	if (error)
		return -ENOMEM;
	stage->bytes = kvmalloc(bytes, GFP_KERNEL_ACCOUNT | __GFP_RETRY_MAYFAIL | __GFP_NOWARN);
	if (!stage->bytes) {
		dmp_uncharge(bytes);
		return -ENOMEM;
	}
	stage->length = length;
	stage->charged = bytes;
	return 0;
}

void dmp_stage_free(struct dmp_stage_memory *stage)
{
	if (!stage->bytes)
		return;
	kvfree(stage->bytes);
	dmp_uncharge(stage->charged);
	*stage = (struct dmp_stage_memory){ };
}

static int find_stage(struct dmp_kernel_endpoint *endpoint, u32 stage, u64 length,
		      struct dmp_run *place)
{
	int error = dmp_stage_alloc(&endpoint->staged[stage], length);

	if (!error)
		place->address = endpoint->staged[stage].bytes;
	return error;
}

static int find_region(struct dmp_kernel_endpoint *endpoint,
		       const struct dmp_endpoint_request *request, struct dmp_run *place)
{
	struct dmp_region **region = &endpoint->landing.region;
	int error = dmp_region_admit(endpoint->plane, request->key, request->key_bytes,
				     request->offset, request->length_bytes, request->access,
				     region);

	if (!error) {
		place->memory = (*region)->buffer->memory;
		place->offset = (*region)->offset + request->offset;
	}
	return error;
}

void dmp_landing_place_locked(struct dmp_kernel_endpoint *endpoint,
			      const struct dmp_endpoint_request *request)
{
	struct dmp_landing *landing = &endpoint->landing;
	struct dmp_run place = { };

	lockdep_assert_held(&endpoint->channel->lock);
	*landing = (struct dmp_landing){
		.tag = request->tag,
		.length = request->length_bytes,
		.target = request->target,
		.stage = request->stage,
		.local = (u32)request->local,
		.checksum = request->checksum,
		.compare = request->flags & DMP_WIRE_CHECKSUM,
		.checked = request->flags & DMP_WIRE_CHECKSUM,
		.active = true,
	};
	switch (request->target) {
	case DMP_TARGET_REGION:
		landing->error = find_region(endpoint, request, &place);
		break;
	case DMP_TARGET_LOCAL:
		place = dmp_traffic_local(endpoint->channel, landing->local);
		landing->checked |= dmp_traffic_is_checked(endpoint->channel, landing->local);
		break;
	case DMP_TARGET_STAGE:
		landing->error = find_stage(endpoint, request->stage, request->length_bytes,
					    &place);
		break;
	default:
		landing->checked = false;
		break;
	}
	if (landing->error)
		place = (struct dmp_run){ };
	landing->place = place;
	dmp_kernel_stream_place(&endpoint->stream, &place, request->length_bytes);
}

/* Of bytes of ours: a message may be long. */
static u32 checksum_of(const u8 *bytes, u64 length)
{
	u32 checksum = ~0U;
	u64 done, part;

	for (done = 0; done < length; done += part) {
		part = min_t(u64, length - done, DMP_BATCH_BYTES);
		checksum = crc32c(checksum, bytes + done, part);
		cond_resched();
	}
	return ~checksum;
}

void dmp_landing_check(struct dmp_kernel_endpoint *endpoint)
{
	struct dmp_landing *landing = &endpoint->landing;
	u32 checksum = 0;

	if (endpoint->stream.place_lost && !landing->error)
		landing->error = -ESTALE;
	if (!landing->checked || landing->error)
		return;
	if (landing->place.memory)
		landing->error = dmp_copy_checksum(landing->place.memory, landing->place.offset,
						   landing->length, &checksum);
	else
		checksum = checksum_of(landing->place.address, landing->length);
	if (!landing->error && landing->compare && checksum != landing->checksum)
		landing->error = -EBADMSG;
	landing->checksum = checksum;
}

void dmp_landing_finish_locked(struct dmp_kernel_endpoint *endpoint)
{
	struct dmp_landing *landing = &endpoint->landing;
	struct dmp_endpoint_answer reply = {
		.kind = DMP_REQUEST_PLACE,
		.tag = landing->tag,
		.length_bytes = landing->length,
		.result = landing->error,
	};

	lockdep_assert_held(&endpoint->channel->lock);
	landing->active = false;
	if (landing->checked && (!landing->error || landing->error == -EBADMSG)) {
		reply.checksum = landing->checksum;
		reply.flags = DMP_WIRE_CHECKSUM;
	}
	if (landing->region)
		dmp_region_release(landing->region);
	landing->region = NULL;
	dmp_traffic_answer(endpoint, &reply);
}

/*
 * What of the payload has come is copied into the stage, and the rest goes there. Under the lock: a
 * stage is at most 2 GiB.
 */
static int move_to_stage(struct dmp_kernel_endpoint *endpoint, u32 number, struct dmp_run *place)
{
	struct dmp_kernel_stream *stream = &endpoint->stream;
	struct dmp_landing *landing = &endpoint->landing;
	int error = find_stage(endpoint, number, landing->length, place);

	if (!error && stream->payload_done != 0 && landing->place.memory)
		error = dmp_copy_from(landing->place.memory, landing->place.offset, place->address,
				      stream->payload_done);
	return error;
}

int dmp_landing_divert_locked(struct dmp_kernel_endpoint *endpoint,
			      const struct dmp_endpoint_request *request)
{
	struct dmp_landing *landing = &endpoint->landing;
	struct dmp_run place = { };

	lockdep_assert_held(&endpoint->channel->lock);
	landing->target = request->target;
	if (request->target == DMP_TARGET_STAGE) {
		int error = move_to_stage(endpoint, request->stage, &place);

		if (error)
			return error;
		landing->stage = request->stage;
	} else {
		landing->checked = false;
	}
	landing->place = place;
	dmp_kernel_stream_redirect(&endpoint->stream, &place);
	return 0;
}

void dmp_landing_read_locked(struct dmp_kernel_endpoint *endpoint, u32 number)
{
	struct dmp_admitted *admitted = &endpoint->admitted[number];

	lockdep_assert_held(&endpoint->channel->lock);
	if (!admitted->region)
		return;
	dmp_region_release(admitted->region);
	admitted->region = NULL;
	dmp_queue_push(&endpoint->admitted_free, number);
}

void dmp_landing_admit_locked(struct dmp_kernel_endpoint *endpoint,
			      const struct dmp_endpoint_request *request)
{
	struct dmp_endpoint_answer reply = { .kind = request->kind, .tag = request->tag };
	struct dmp_region *region = NULL;
	u32 number;

	lockdep_assert_held(&endpoint->channel->lock);
	reply.result = dmp_region_admit(endpoint->plane, request->key, request->key_bytes,
					request->offset, request->length_bytes, request->access,
					&region);
	if (!reply.result && request->operation == DMP_OP_READ && request->length_bytes != 0) {
		number = dmp_queue_pop(&endpoint->admitted_free);
		endpoint->admitted[number].region = region;
		endpoint->admitted[number].offset = region->offset + request->offset;
		reply.cookie = number;
	} else if (!reply.result) {
		dmp_region_release(region);
	}
	dmp_traffic_answer(endpoint, &reply);
}
