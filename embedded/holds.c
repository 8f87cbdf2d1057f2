// SPDX-License-Identifier: MIT
/*
 * holds.c - what an operation names: looked up once, held until it has completed
 *
 * The look-up happens when the operation is accepted, while plane->lock keeps everything
 * alive; from then on a count on each object does.
 */
#define _GNU_SOURCE
#include <errno.h>

#include "endpoint_embedded.h"

#define SERVED                                                                          \
	(1u << DMP_OP_NOP | 1u << DMP_OP_FILL | 1u << DMP_OP_COPY | 1u << DMP_OP_FENCE |  \
	 1u << DMP_OP_SEND | 1u << DMP_OP_RECV | 1u << DMP_OP_WRITE |                      \
	 1u << DMP_OP_WRITE_IMM | 1u << DMP_OP_READ)
#define TOUCHES_REMOTE                                                                  \
	(1u << DMP_OP_WRITE | 1u << DMP_OP_WRITE_IMM | 1u << DMP_OP_READ)

enum recently { RECENT_SOURCE, RECENT_TARGET, RECENT_ENDPOINT, RECENT_REMOTE };

static struct dmp_object *find(struct dmp_plane *plane, struct dmp_recent *recent, uint32_t id,
			       uint32_t type, int *error)
{
	if (recent->id != id) {
		struct dmp_object *object = dmp_plane_find_locked(plane, id, type, error);

		if (!object)
			return NULL;
		recent->id = id;
		recent->object = object;
	}
	return recent->object;
}

static struct dmp_buffer *find_buffer(struct dmp_plane *plane, struct dmp_recent *recent, uint32_t id,
				      int *error)
{
	return (struct dmp_buffer *)find(plane, recent, id, DMP_OBJECT_BUFFER, error);
}

static bool outside(const struct dmp_buffer *buffer, uint64_t offset, uint64_t length)
{
	/* The sum was checked by dmp_submission_check. */
	return offset + length > buffer->memory.length;
}

/* The peer's region a transfer names: of this endpoint, with the right, inside its bounds. */
static int find_remote(struct dmp_plane *plane, const struct dmp_submission *submission,
		       const struct dmp_embedded_endpoint *endpoint, struct dmp_recent *recent,
		       struct dmp_remote **found)
{
	bool read = submission->operation == DMP_OP_READ;
	uint64_t offset = read ? submission->source_offset : submission->target_offset;
	struct dmp_remote *remote;
	int error = 0;

	if (!(TOUCHES_REMOTE & 1u << submission->operation))
		return 0;
	remote = (struct dmp_remote *)find(plane, recent,
					   read ? submission->source_id : submission->target_id,
					   DMP_OBJECT_REMOTE, &error);
	if (!remote)
		return error;
	if (remote->endpoint != endpoint || offset + submission->length_bytes > remote->length)
		return -EINVAL;
	if (!(remote->access & (read ? DMP_ACCESS_REMOTE_READ : DMP_ACCESS_REMOTE_WRITE)))
		return -EACCES;
	*found = remote;
	return 0;
}

/* The same as hold() for what goes over an endpoint. */
static int hold_transfer(struct dmp_plane *plane, struct dmp_embedded_channel *channel,
			 const struct dmp_submission *submission, struct dmp_holds *holds,
			 struct dmp_recent *recent)
{
	bool inwards = submission->operation == DMP_OP_RECV || submission->operation == DMP_OP_READ;
	struct dmp_embedded_endpoint *endpoint;
	struct dmp_remote *remote = NULL;
	struct dmp_buffer *local;
	int error = 0;

	endpoint = (struct dmp_embedded_endpoint *)find(plane, &recent[RECENT_ENDPOINT],
							submission->endpoint_id,
							DMP_OBJECT_ENDPOINT, &error);
	if (!endpoint)
		return error;
	if (endpoint->orphaned)
		return -ECONNRESET;
	if (endpoint->channel != channel)
		return -EINVAL;
	local = find_buffer(plane, &recent[inwards ? RECENT_TARGET : RECENT_SOURCE],
			    inwards ? submission->target_id : submission->source_id, &error);
	if (!local)
		return error;
	if (outside(local, inwards ? submission->target_offset : submission->source_offset,
		    submission->length_bytes))
		return -EINVAL;
	if (inwards && local->memory.read_only)
		return -EPERM;
	error = find_remote(plane, submission, endpoint, &recent[RECENT_REMOTE], &remote);
	if (error)
		return error;
	__atomic_add_fetch(&local->operations, 1, __ATOMIC_RELAXED);
	__atomic_add_fetch(&endpoint->operations, 1, __ATOMIC_RELAXED);
	if (submission->operation == DMP_OP_RECV)
		__atomic_add_fetch(&endpoint->receives, 1, __ATOMIC_RELAXED);
	if (remote)
		__atomic_add_fetch(&remote->operations, 1, __ATOMIC_RELAXED);
	*(inwards ? &holds->target : &holds->source) = local;
	holds->endpoint = endpoint;
	holds->remote = remote;
	return 0;
}

int dmp_holds_take(struct dmp_embedded_channel *channel, const struct dmp_submission *submission,
		   struct dmp_holds *holds, struct dmp_recent recent[DMP_RECENTS])
{
	int error = dmp_submission_check(submission, SERVED);
	struct dmp_buffer *source = NULL, *target = NULL;
	struct dmp_plane *plane = channel->plane;

	*holds = (struct dmp_holds){ .source = NULL };
	if (!error && submission->endpoint_id != 0)
		return hold_transfer(plane, channel, submission, holds, recent);
	if (error || submission->length_bytes == 0)
		return error;
	if (submission->source_id != 0) {
		source = find_buffer(plane, &recent[RECENT_SOURCE], submission->source_id, &error);
		if (!source)
			return error;
		if (outside(source, submission->source_offset, submission->length_bytes))
			return -EINVAL;
	}
	target = find_buffer(plane, &recent[RECENT_TARGET], submission->target_id, &error);
	if (!target)
		return error;
	if (outside(target, submission->target_offset, submission->length_bytes))
		return -EINVAL;
	if (target->memory.read_only)
		return -EPERM;
	if (source == target &&
	    submission->source_offset < submission->target_offset + submission->length_bytes &&
	    submission->target_offset < submission->source_offset + submission->length_bytes)
		return -EINVAL;
	/* One operation is one holder, even where it names a buffer twice. */
	if (source && source != target)
		__atomic_add_fetch(&source->operations, 1, __ATOMIC_RELAXED);
	__atomic_add_fetch(&target->operations, 1, __ATOMIC_RELAXED);
	holds->source = source;
	holds->target = target;
	return 0;
}

/* Release: what the operation did to the memory happens before destroy can see 0. */
void dmp_holds_release(struct dmp_holds *holds)
{
	if (holds->source && holds->source != holds->target)
		__atomic_sub_fetch(&holds->source->operations, 1, __ATOMIC_SEQ_CST);
	if (holds->target)
		__atomic_sub_fetch(&holds->target->operations, 1, __ATOMIC_SEQ_CST);
	if (holds->remote)
		__atomic_sub_fetch(&holds->remote->operations, 1, __ATOMIC_SEQ_CST);
	if (holds->endpoint && holds->target && !holds->remote)
		__atomic_sub_fetch(&holds->endpoint->receives, 1, __ATOMIC_SEQ_CST);
	if (holds->endpoint)
		__atomic_sub_fetch(&holds->endpoint->operations, 1, __ATOMIC_SEQ_CST);
	*holds = (struct dmp_holds){ .source = NULL };
}
