// SPDX-License-Identifier: MIT
/*
 * landing.c - where bytes of the peer go, and what it may read
 *
 * The payload that follows a frame lands in a region (after its key was looked at), in the
 * buffer of a RECV or READ, in a stage, or nowhere. A region is held while bytes land in it
 * or are sent from it. All functions: channel->lock held, executor only.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "traffic.h"

void dmp_landing_finish(struct dmp_embedded_endpoint *endpoint)
{
	struct dmp_landing *landing = &endpoint->landing;
	struct dmp_endpoint_answer reply = {
		.kind = DMP_REQUEST_PLACE,
		.tag = landing->tag,
		.length_bytes = landing->length,
		.result = landing->error,
	};

	landing->active = false;
	if (landing->checked) {
		reply.checksum = endpoint->stream.checksum;
		reply.flags = DMP_WIRE_CHECKSUM;
		if (landing->compare && reply.checksum != landing->checksum && !reply.result)
			reply.result = -EBADMSG;
	}
	if (landing->region)
		dmp_region_release(endpoint->plane, landing->region);
	landing->region = NULL;
	dmp_traffic_answer(endpoint, &reply);
}

static char *stage_for(struct dmp_embedded_endpoint *endpoint, __u32 stage, __u64 length)
{
	struct dmp_staged *staged = &endpoint->staged[stage];

	free(staged->bytes);
	staged->bytes = malloc(length != 0 ? length : 1);
	staged->length = length;
	return staged->bytes;
}

void dmp_landing_place(struct dmp_embedded_endpoint *endpoint,
		  const struct dmp_endpoint_request *request)
{
	struct dmp_landing *landing = &endpoint->landing;
	char *address = NULL;

	*landing = (struct dmp_landing){
		.tag = request->tag,
		.length = request->length_bytes,
		.target = request->target,
		.stage = request->stage,
		.local = request->local,
		.checksum = request->checksum,
		.compare = request->flags & DMP_WIRE_CHECKSUM,
		.checked = request->flags & DMP_WIRE_CHECKSUM,
		.active = true,
	};
	switch (request->target) {
	case DMP_TARGET_REGION:
		landing->error = dmp_region_admit(endpoint->plane, request->key,
						  request->key_bytes, request->offset,
						  request->length_bytes, request->access,
						  &landing->region, &address);
		break;
	case DMP_TARGET_LOCAL:
		if (landing->local != DMP_TRAFFIC_PROBE) {
			address = dmp_traffic_local(endpoint->channel, landing->local);
			landing->checked |=
				dmp_traffic_is_checked(endpoint->channel,
								   (uint32_t)landing->local);
		}
		break;
	case DMP_TARGET_STAGE:
		address = stage_for(endpoint, request->stage, request->length_bytes);
		if (!address)
			landing->error = -ENOMEM;
		break;
	default:
		break;
	}
	if (landing->error)
		landing->checked = false;
	dmp_stream_place_locked(&endpoint->stream, landing->error ? NULL : address,
				request->length_bytes, landing->checked);
}

void dmp_landing_admit(struct dmp_embedded_endpoint *endpoint,
		  const struct dmp_endpoint_request *request)
{
	struct dmp_endpoint_answer reply = { .kind = request->kind, .tag = request->tag };
	struct dmp_region *region = NULL;
	char *address = NULL;
	uint32_t number;

	reply.result = dmp_region_admit(endpoint->plane, request->key, request->key_bytes,
					request->offset, request->length_bytes, request->access,
					&region, &address);
	if (!reply.result && request->operation == DMP_OP_READ && request->length_bytes != 0) {
		number = dmp_queue_pop(&endpoint->admitted_free);
		endpoint->admitted[number].region = region;
		endpoint->admitted[number].address = address;
		reply.cookie = number;
	} else if (!reply.result) {
		dmp_region_release(endpoint->plane, region);
	}
	dmp_traffic_answer(endpoint, &reply);
}

void dmp_landing_read(struct dmp_embedded_endpoint *endpoint, uint32_t number)
{
	struct dmp_admitted *admitted = &endpoint->admitted[number];

	if (!admitted->region)
		return;
	dmp_region_release(endpoint->plane, admitted->region);
	admitted->region = NULL;
	dmp_queue_push(&endpoint->admitted_free, number);
}

int dmp_landing_divert(struct dmp_embedded_endpoint *endpoint,
			  const struct dmp_endpoint_request *request)
{
	struct dmp_landing *landing = &endpoint->landing;
	char *stage;

	landing->target = request->target;
	if (request->target != DMP_TARGET_STAGE) {
		landing->checked = false;
		dmp_stream_discard_locked(&endpoint->stream);
		return 0;
	}
	stage = stage_for(endpoint, request->stage, landing->length);
	if (!stage)
		return -ENOMEM;
	landing->stage = request->stage;
	dmp_stream_replace_locked(&endpoint->stream, stage);
	return 0;
}
