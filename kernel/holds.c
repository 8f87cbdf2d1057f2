// SPDX-License-Identifier: GPL-2.0
/*
 * holds.c - what an operation in flight holds, from its acceptance until it is told
 *
 * What a submission names is looked up once, while plane->lock keeps it alive: buffers, an
 * endpoint of this very channel, a peer's region imported on it.
 */
#include "endpoint_kernel.h"

#define SERVED										\
	(1U << DMP_OP_NOP | 1U << DMP_OP_FILL | 1U << DMP_OP_COPY | 1U << DMP_OP_FENCE)
#define SERVED_AWAY									\
	(1U << DMP_OP_SEND | 1U << DMP_OP_RECV | 1U << DMP_OP_WRITE |			\
	 1U << DMP_OP_WRITE_IMM | 1U << DMP_OP_READ)
#define TOUCHES_REMOTE (1U << DMP_OP_WRITE | 1U << DMP_OP_WRITE_IMM | 1U << DMP_OP_READ)

/* A batch mostly names the same few objects. */
enum { RECENT_SOURCE, RECENT_TARGET, RECENT_ENDPOINT, RECENT_REMOTE };

static struct dmp_object *find_locked(struct dmp_plane *plane, struct dmp_recent *recent, u32 id,
				      u32 type, int *error)
{
	lockdep_assert_held(&plane->lock);
	if (recent->id != id) {
		struct dmp_object *object = dmp_plane_use_locked(plane, id, type, error);

		if (!object)
			return NULL;
		recent->id = id;
		recent->object = object;
	}
	return recent->object;
}

static struct dmp_buffer *find_buffer_locked(struct dmp_plane *plane, struct dmp_recent *recent,
					     u32 id, int *error)
{
	struct dmp_object *object = find_locked(plane, recent, id, DMP_OBJECT_BUFFER, error);

	lockdep_assert_held(&plane->lock);
	return object ? container_of(object, struct dmp_buffer, object) : NULL;
}

static bool is_outside(const struct dmp_buffer *buffer, u64 offset, u64 length)
{
	/* The sum was checked by dmp_submission_check. */
	return offset + length > buffer->memory->length;
}

/* An import of our own export is the same bytes by another name. */
static const struct dmp_memory *bytes_of(const struct dmp_buffer *buffer)
{
	return buffer->memory->origin ?: buffer->memory;
}

static bool overlap(const struct dmp_submission *submission)
{
	return submission->source_offset < submission->target_offset + submission->length_bytes &&
	       submission->target_offset < submission->source_offset + submission->length_bytes;
}

/* The peer's region a transfer names: of this endpoint, with the right, inside its bounds. */
static int find_remote_locked(struct dmp_plane *plane, const struct dmp_submission *submission,
			      const struct dmp_kernel_endpoint *endpoint,
			      struct dmp_recent *recent, struct dmp_remote **found)
{
	bool read = submission->operation == DMP_OP_READ;
	u64 offset = read ? submission->source_offset : submission->target_offset;
	u32 right = read ? DMP_ACCESS_REMOTE_READ : DMP_ACCESS_REMOTE_WRITE;
	struct dmp_object *object;
	struct dmp_remote *remote;
	int error = 0;

	lockdep_assert_held(&plane->lock);
	if (!(TOUCHES_REMOTE & 1U << submission->operation))
		return 0;
	object = find_locked(plane, recent, read ? submission->source_id : submission->target_id,
			     DMP_OBJECT_REMOTE, &error);
	if (!object)
		return error;
	remote = container_of(object, struct dmp_remote, object);
	if (remote->endpoint != endpoint ||
	    offset + submission->length_bytes > remote->key.length)
		return -EINVAL;
	if (!(remote->key.access & right))
		return -EACCES;
	*found = remote;
	return 0;
}

/* SEND and RECV go through slots of ours: the CPU copies. */
static int check_copied(const struct dmp_submission *submission, struct dmp_memory *memory,
			u64 offset)
{
	struct dmp_span span;
	int section, error;

	if (TOUCHES_REMOTE & 1U << submission->operation || submission->length_bytes == 0)
		return 0;
	if (!memory->operations->span)
		return -EOPNOTSUPP;
	section = dmp_memory_enter();
	error = dmp_memory_alive(memory) ? memory->operations->span(memory, offset, &span) :
					   -ESTALE;
	dmp_memory_leave(section);
	return error;
}

/* For what goes over an endpoint. */
static int take_transfer_locked(struct dmp_kernel_channel *channel,
				const struct dmp_submission *submission, struct dmp_holds *holds,
				struct dmp_recent *recent)
{
	bool inwards = submission->operation == DMP_OP_RECV ||
		       submission->operation == DMP_OP_READ;
	struct dmp_plane *plane = channel->plane;
	struct dmp_kernel_endpoint *endpoint;
	struct dmp_remote *remote = NULL;
	struct dmp_object *object;
	struct dmp_buffer *local;
	int error = 0;

	lockdep_assert_held(&channel->plane->lock);
	object = find_locked(plane, &recent[RECENT_ENDPOINT], submission->endpoint_id,
			     DMP_OBJECT_ENDPOINT, &error);
	if (!object)
		return error;
	endpoint = dmp_endpoint_of(object);
	if (endpoint->orphaned)
		return -ECONNRESET;
	if (endpoint->channel != channel)
		return -EINVAL;
	local = find_buffer_locked(plane, &recent[inwards ? RECENT_TARGET : RECENT_SOURCE],
				   inwards ? submission->target_id : submission->source_id,
				   &error);
	if (!local)
		return error;
	if (is_outside(local, inwards ? submission->target_offset : submission->source_offset,
		       submission->length_bytes))
		return -EINVAL;
	if (inwards && local->memory->read_only)
		return -EPERM;
	error = check_copied(submission, local->memory,
			     inwards ? submission->target_offset : submission->source_offset);
	if (error)
		return error;
	error = find_remote_locked(plane, submission, endpoint, &recent[RECENT_REMOTE], &remote);
	if (error)
		return error;
	dmp_buffer_hold_locked(local);
	atomic_inc(&endpoint->operations);
	if (submission->operation == DMP_OP_RECV)
		atomic_inc(&endpoint->receives);
	if (remote)
		atomic_inc(&remote->operations);
	*(inwards ? &holds->target : &holds->source) = local;
	holds->endpoint = endpoint;
	holds->remote = remote;
	return 0;
}

static int take_local_locked(struct dmp_kernel_channel *channel,
			     const struct dmp_submission *submission, struct dmp_holds *holds,
			     struct dmp_recent *recent)
{
	struct dmp_buffer *source = NULL, *target;
	struct dmp_plane *plane = channel->plane;
	int error = 0;

	lockdep_assert_held(&channel->plane->lock);
	if (submission->source_id != 0) {
		source = find_buffer_locked(plane, &recent[RECENT_SOURCE], submission->source_id,
					    &error);
		if (!source)
			return error;
		if (is_outside(source, submission->source_offset, submission->length_bytes))
			return -EINVAL;
	}
	target = find_buffer_locked(plane, &recent[RECENT_TARGET], submission->target_id, &error);
	if (!target)
		return error;
	if (is_outside(target, submission->target_offset, submission->length_bytes))
		return -EINVAL;
	if (target->memory->read_only)
		return -EPERM;
	if (source && bytes_of(source) == bytes_of(target) && overlap(submission))
		return -EINVAL;
	/* One operation is one holder, even where it names a buffer twice. */
	if (source && source != target)
		dmp_buffer_hold_locked(source);
	dmp_buffer_hold_locked(target);
	holds->source = source;
	holds->target = target;
	return 0;
}

/*
 * 0 or the error it will complete with. plane->lock and channel->lock held. @holds is empty, and
 * stays so on an error.
 */
int dmp_holds_take_locked(struct dmp_kernel_channel *channel,
			  const struct dmp_submission *submission, struct dmp_holds *holds,
			  struct dmp_recent recent[DMP_RECENTS])
{
	u32 served = SERVED | (DMP_KERNEL_RDMA ? SERVED_AWAY : 0);
	int error = dmp_submission_check(submission, served);

	lockdep_assert_held(&channel->lock);
	if (!error && submission->endpoint_id != 0)
		error = take_transfer_locked(channel, submission, holds, recent);
	else if (!error && submission->length_bytes != 0)
		error = take_local_locked(channel, submission, holds, recent);
	if (!error && (holds->target || holds->source))
		channel->holding++;
	return error;
}

void dmp_holds_release(struct dmp_holds *holds)
{
	if (holds->source && holds->source != holds->target)
		dmp_buffer_release(holds->source);
	if (holds->target)
		dmp_buffer_release(holds->target);
	/* Release: what the operation did has happened before destroy sees 0. */
	if (holds->remote)
		(void)atomic_dec_return_release(&holds->remote->operations);
	if (holds->endpoint && holds->target && !holds->remote)
		(void)atomic_dec_return_release(&holds->endpoint->receives);
	if (holds->endpoint)
		(void)atomic_dec_return_release(&holds->endpoint->operations);
	*holds = (struct dmp_holds){ };
}
