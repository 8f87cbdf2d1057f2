// SPDX-License-Identifier: MIT
/*
 * stream_out.c - what goes out of a stream, see stream.h
 *
 * A piece is a frame and its payload. Pieces leave in order; a send() that took only a
 * part is continued at the very byte.
 */
#include "stream.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "dmaplane.h"

#define VECTORS_MAX	(2 * DMP_STREAM_FRAMES)

static struct dmp_stream_piece *piece_at(struct dmp_stream *stream, __u32 index)
{
	return &stream->pieces[(stream->out_first + index) % DMP_STREAM_FRAMES];
}

static __u64 piece_bytes(const struct dmp_stream_piece *piece)
{
	return piece->frame.frame_bytes + piece->frame.payload_bytes;
}

void dmp_stream_drop_out(struct dmp_stream *stream)
{
	__u32 index;

	for (index = 0; index < stream->out_count; index++)
		free(piece_at(stream, index)->aside);
	stream->out_count = 0;
	stream->out_done = 0;
}

/* Answers and grants may wait for company: who waits for them is kept busy meanwhile. */
static bool is_prompt(const struct dmp_stream_piece *piece)
{
	switch (piece->frame.bytes[DMP_STREAM_TYPE_OFFSET]) {
	case DMP_FRAME_GRANT:
	case DMP_FRAME_COMPLETE:
	case DMP_FRAME_CANCELLED:
		return false;
	default:
		return true;
	}
}

/* Nothing of ours follows it. */
static bool is_farewell(const struct dmp_stream_piece *piece)
{
	return piece->frame.bytes[DMP_STREAM_TYPE_OFFSET] == DMP_FRAME_GOODBYE ||
	       piece->frame.bytes[DMP_STREAM_TYPE_OFFSET] == DMP_FRAME_REFUSE;
}

bool dmp_stream_load_locked(struct dmp_stream *stream, struct dmp_endpoint *machine, __u64 now_ns)
{
	struct dmp_stream_piece *piece;

	while (stream->out_count < DMP_STREAM_FRAMES && stream->out_bytes < DMP_STREAM_BURST &&
	       !stream->last_out.reached) {
		piece = piece_at(stream, stream->out_count);
		if (dmp_endpoint_next_frame(machine, now_ns, &piece->frame))
			break;
		piece->payload = NULL;
		piece->aside = NULL;
		piece->aside_from = 0;
		piece->sent = 0;
		if (piece->frame.payload_bytes) {
			piece->payload = stream->source(stream->owner, &piece->frame);
			if (!piece->payload)
				stream->out_error = -EFAULT;
		}
		stream->last_out.reached = piece->frame.bytes[DMP_STREAM_TYPE_OFFSET] == stream->last_out.type;
		stream->out_farewell |= is_farewell(piece);
		stream->out_prompt += is_prompt(piece);
		stream->out_bytes += piece_bytes(piece);
		stream->out_count += 1;
	}
	return stream->out_bytes && !stream->out_full && !stream->out_error;
}

/* The rest of a piece as one or two vectors, at most *@room bytes of it. */
static int gather_piece(const struct dmp_stream_piece *piece, struct iovec *vectors, __u64 *room)
{
	__u64 frame_bytes = piece->frame.frame_bytes;
	const char *payload = piece->payload;
	__u64 from = 0, left;
	int count = 0;

	if (piece->sent < frame_bytes) {
		vectors[0].iov_base = (void *)(piece->frame.bytes + piece->sent);
		vectors[0].iov_len = frame_bytes - piece->sent;
		count = 1;
	} else {
		from = piece->sent - frame_bytes;
	}
	left = piece->frame.payload_bytes - from;
	if (left > *room)
		left = *room;
	if (!left)
		return count;
	if (piece->aside) {
		payload = piece->aside;
		from -= piece->aside_from;
	}
	vectors[count].iov_base = (void *)(payload + from);
	vectors[count].iov_len = left;
	*room -= left;
	return count + 1;
}

static __u64 gather(struct dmp_stream *stream, struct iovec *vectors, int *count)
{
	__u64 room = DMP_STREAM_BURST;
	__u64 total = 0;
	__u32 index;
	int i;

	*count = 0;
	for (index = stream->out_done; index < stream->out_count && room; index++)
		*count += gather_piece(piece_at(stream, index), vectors + *count, &room);
	for (i = 0; i < *count; i++)
		total += vectors[i].iov_len;
	return total;
}

/* @bytes more are with the fabric. */
static void advance(struct dmp_stream *stream, __u64 bytes)
{
	struct dmp_stream_piece *piece;
	__u64 part;

	stream->out_bytes -= bytes;
	while (bytes) {
		piece = piece_at(stream, stream->out_done);
		part = piece_bytes(piece) - piece->sent;
		if (part > bytes)
			part = bytes;
		piece->sent += part;
		bytes -= part;
		if (piece->sent < piece_bytes(piece))
			return;
		stream->out_prompt -= is_prompt(piece);
		stream->out_done += 1;
	}
}

/*
 * A PING waits behind the payload that is being sent, for longer than a peer may be
 * silent if the link is slow. But where the fabric was full and is not any more, the other
 * side has taken something: so it is heard.
 */
bool dmp_stream_move_out(struct dmp_stream *stream)
{
	struct iovec vectors[VECTORS_MAX];
	bool was_full = stream->out_full;
	__u64 wanted, moved = 0;
	ssize_t sent;
	int count;

	stream->held_bytes = 0;
	stream->out_full = false;
	while (stream->out_bytes && !stream->out_error && moved < DMP_STREAM_BURST) {
		wanted = gather(stream, vectors, &count);
		sent = stream->fabric->type->send(stream->fabric, vectors, count);
		if (sent < 0)
			stream->out_error = (int)sent;
		stream->out_full = sent < 0 || (__u64)sent < wanted;
		if (sent <= 0)
			break;
		advance(stream, (__u64)sent);
		moved += (__u64)sent;
		if (stream->out_full)
			break;
	}
	if (was_full && moved)
		stream->heard = true;
	return moved != 0;
}

void dmp_stream_tell_sent(struct dmp_stream *stream, struct dmp_endpoint *machine, __u64 now_ns)
{
	struct dmp_stream_piece *piece;

	while (stream->out_done) {
		piece = piece_at(stream, 0);
		if (piece->aside) {
			free(piece->aside);
			piece->aside = NULL;
		} else if (piece->frame.payload != DMP_PAYLOAD_NONE) {
			stream->sent(stream->owner, &piece->frame);
			if (piece->frame.payload == DMP_PAYLOAD_LOCAL)
				dmp_endpoint_sent(machine, now_ns, piece->frame.tag);
		}
		stream->out_first = (stream->out_first + 1) % DMP_STREAM_FRAMES;
		stream->out_count -= 1;
		stream->out_done -= 1;
	}
	if (!stream->out_count)		/* an endpoint that says little uses little memory */
		stream->out_first = 0;
}

/* Copies what is left of the payload. The caller's buffer is free afterwards. */
static int set_aside(struct dmp_stream_piece *piece)
{
	__u64 from = 0, left;

	if (piece->sent > piece->frame.frame_bytes)
		from = piece->sent - piece->frame.frame_bytes;
	left = piece->frame.payload_bytes - from;
	piece->aside = malloc(left);
	if (!piece->aside)
		return -ENOMEM;
	memcpy(piece->aside, piece->payload + from, left);
	piece->aside_from = from;
	return 0;
}

int dmp_stream_stop_locked(struct dmp_stream *stream, __u64 tag)
{
	struct dmp_stream_piece *piece;
	__u32 index;
	int error;

	for (index = stream->out_done; index < stream->out_count; index++) {
		piece = piece_at(stream, index);
		if (piece->frame.payload != DMP_PAYLOAD_LOCAL || piece->frame.tag != tag ||
		    piece->aside || !piece->payload)
			continue;
		error = set_aside(piece);
		if (!error)
			stream->sent(stream->owner, &piece->frame);
		return error;
	}
	return 0;
}
