// SPDX-License-Identifier: GPL-2.0
/*
 * stream.c - frames and payloads on the byte stream of a pair
 *
 * Out: frames of the machine wait in order, each with its payload; what the pair has no slot for
 * now goes on at the very byte. In: frames are collected in a small buffer and handed to the
 * machine one by one; the payload that follows a frame goes straight into the place that
 * was named for it. No byte is read behind a frame with payload until that place is known.
 *
 * Two halves, so that no byte moves under the lock (but what a STOP has copied aside):
 *	load, feed, place, redirect, stop	channel->lock held; they touch the machine
 *	move					no lock; it touches the pair
 * All belong to the executor of the endpoint, one thread at a time.
 */
#include <linux/slab.h>

#include "endpoint_kernel.h"

/* Of a frame, see core/wire.h. */
#define SEQUENCE_OFFSET	16
#define PAYLOAD_OFFSET	40

int dmp_kernel_stream_init(struct dmp_kernel_stream *stream)
{
	stream->dry = true;
	stream->outgoing = kvcalloc(DMP_STREAM_FRAMES, sizeof(*stream->outgoing),
				    GFP_KERNEL_ACCOUNT);
	stream->buffer = kmalloc(DMP_STREAM_BUFFER, GFP_KERNEL_ACCOUNT);
	return stream->outgoing && stream->buffer ? 0 : -ENOMEM;
}

static struct dmp_outgoing *outgoing_at(struct dmp_kernel_stream *stream, u32 number)
{
	return &stream->outgoing[(stream->out_first + number) % DMP_STREAM_FRAMES];
}

/* Payloads that wait are forgotten. */
void dmp_kernel_stream_free(struct dmp_kernel_stream *stream)
{
	u32 number;

	for (number = 0; stream->outgoing && number < stream->out_count; number++)
		dmp_stage_free(&outgoing_at(stream, number)->aside);
	stream->out_count = 0;
	kvfree(stream->outgoing);
	kfree(stream->buffer);
	stream->outgoing = NULL;
	stream->buffer = NULL;
}

/* ---- out */

static u64 bytes_of(const struct dmp_outgoing *outgoing)
{
	return outgoing->frame.frame_bytes + outgoing->frame.payload_bytes;
}

/* Where the payload is. */
static void find_payload(struct dmp_kernel_endpoint *endpoint, struct dmp_outgoing *outgoing)
{
	const struct dmp_endpoint_frame *frame = &outgoing->frame;

	if (frame->payload_bytes == 0)
		return;
	if (frame->payload == DMP_PAYLOAD_REGION) {
		const struct dmp_admitted *admitted = &endpoint->admitted[frame->local];

		outgoing->memory = admitted->region->buffer->memory;
		outgoing->offset = admitted->offset;
	} else {
		struct dmp_run local = dmp_traffic_local(endpoint->channel, (u32)frame->local);

		outgoing->memory = local.memory;
		outgoing->offset = local.offset;
	}
}

/* Takes frames of the machine while there is room. True: there is something to send at once. */
bool dmp_kernel_stream_load_locked(struct dmp_kernel_endpoint *endpoint)
{
	struct dmp_kernel_stream *stream = &endpoint->stream;

	lockdep_assert_held(&endpoint->channel->lock);
	while (stream->out_count < DMP_STREAM_FRAMES && stream->out_bytes < DMP_TRAFFIC_BURST) {
		struct dmp_outgoing *outgoing = outgoing_at(stream, stream->out_count);

		if (dmp_endpoint_next_frame(endpoint->machine, endpoint->now_ns,
					    &outgoing->frame))
			break;
		outgoing->memory = NULL;
		outgoing->sent = 0;
		find_payload(endpoint, outgoing);
		stream->out_bytes += bytes_of(outgoing);
		stream->out_count++;
	}
	return stream->out_bytes != 0 && !stream->out_full && !stream->lost;
}

/* The next bytes of @outgoing, which is not sent. */
static struct dmp_run rest_of(const struct dmp_outgoing *outgoing)
{
	u64 frame_bytes = outgoing->frame.frame_bytes, from;
	struct dmp_run run = { };

	if (outgoing->sent < frame_bytes) {
		run.address = (void *)(outgoing->frame.bytes + outgoing->sent);
		run.length = frame_bytes - outgoing->sent;
		return run;
	}
	from = outgoing->sent - frame_bytes;
	run.length = outgoing->frame.payload_bytes - from;
	if (outgoing->aside.bytes) {
		run.address = outgoing->aside.bytes + (from - outgoing->aside_from);
	} else {
		run.memory = outgoing->memory;
		run.offset = outgoing->offset + from;
	}
	run.length = min_t(u64, run.length, DMP_TRAFFIC_BURST);
	return run;
}

static void move_out(struct dmp_kernel_stream *stream, struct dmp_pair *pair)
{
	bool was_full = stream->out_full;
	u64 moved = 0;
	int error;

	stream->out_full = false;
	while (stream->out_done < stream->out_count && moved < DMP_TRAFFIC_BURST) {
		struct dmp_outgoing *outgoing = outgoing_at(stream, stream->out_done);
		struct dmp_run run = rest_of(outgoing);
		ssize_t put = dmp_pair_put(pair, &run);

		if (put < 0) {
			stream->lost = put;
			return;
		}
		outgoing->sent += put;
		stream->out_bytes -= put;
		moved += put;
		if (outgoing->sent == bytes_of(outgoing)) {
			stream->out_done++;
		} else if (put == 0) {
			stream->out_full = true;
			break;
		}
	}
	/* Where there was no room and is some now, the other side has taken something. */
	if (was_full && moved != 0)
		stream->heard = true;
	error = dmp_pair_flush(pair);
	if (error)
		stream->lost = error;
}

/* What is with the pair: the machine hears of its own, a region is let go. */
static void tell_sent_locked(struct dmp_kernel_endpoint *endpoint)
{
	struct dmp_kernel_stream *stream = &endpoint->stream;

	lockdep_assert_held(&endpoint->channel->lock);
	while (stream->out_done != 0) {
		struct dmp_outgoing *outgoing = outgoing_at(stream, 0);
		const struct dmp_endpoint_frame *frame = &outgoing->frame;

		if (frame->payload == DMP_PAYLOAD_REGION)
			dmp_landing_read_locked(endpoint, (u32)frame->local);
		else if (outgoing->aside.bytes)
			dmp_stage_free(&outgoing->aside);	/* its STOP was the answer */
		else if (frame->payload == DMP_PAYLOAD_LOCAL)
			dmp_endpoint_sent(endpoint->machine, endpoint->now_ns, frame->tag);
		stream->out_first = (stream->out_first + 1) % DMP_STREAM_FRAMES;
		stream->out_count--;
		stream->out_done--;
	}
}

static int set_aside(struct dmp_outgoing *outgoing)
{
	u64 from = 0, left;
	int error;

	if (outgoing->sent > outgoing->frame.frame_bytes)
		from = outgoing->sent - outgoing->frame.frame_bytes;
	left = outgoing->frame.payload_bytes - from;
	error = dmp_stage_alloc(&outgoing->aside, left);
	if (!error)
		error = dmp_copy_from(outgoing->memory, outgoing->offset + from,
				      outgoing->aside.bytes, left);
	if (error)
		dmp_stage_free(&outgoing->aside);
	outgoing->aside_from = from;
	return error;
}

/*
 * Lets go of the payload of the own operation @tag that waits or is half sent: what is left of it
 * is copied aside and sent from there. 0, also if there is none; else end the connection.
 */
int dmp_kernel_stream_stop(struct dmp_kernel_stream *stream, u64 tag)
{
	u32 number;

	for (number = stream->out_done; number < stream->out_count; number++) {
		struct dmp_outgoing *outgoing = outgoing_at(stream, number);

		if (outgoing->frame.payload == DMP_PAYLOAD_LOCAL && outgoing->frame.tag == tag &&
		    outgoing->memory && !outgoing->aside.bytes)
			return set_aside(outgoing);
	}
	return 0;
}

/* ---- in */

static u64 load_le64(const u8 *bytes)
{
	__le64 value;

	memcpy(&value, bytes, sizeof(value));
	return le64_to_cpu(value);
}

/*
 * Goes past whole frames without payload. How many bytes more may be read behind what is there:
 * to the end of a header, of a frame; 0 behind a frame with payload, a full buffer, or nonsense.
 */
static u32 bytes_ahead(struct dmp_kernel_stream *stream)
{
	u32 room = DMP_STREAM_BUFFER - stream->in_first - stream->in_have;

	for (;;) {
		const u8 *frame = stream->buffer + stream->in_first + stream->in_known;
		u32 have = stream->in_have - stream->in_known, length;

		if (have < DMP_WIRE_HEADER_BYTES)
			return min_t(u32, DMP_WIRE_HEADER_BYTES - have, room);
		if (dmp_wire_peek(frame, DMP_WIRE_HEADER_BYTES, &length))
			return 0;
		if (have < length)
			return min(length - have, room);
		if (load_le64(frame + PAYLOAD_OFFSET) != 0)
			return 0;
		stream->in_known += length;
	}
}

static bool takes_payload(const struct dmp_kernel_stream *stream)
{
	return stream->placing && stream->place_known && stream->payload_left != 0;
}

/* The next bytes to receive; false: the owner feeds or places first. */
static bool next_run(struct dmp_kernel_stream *stream, struct dmp_run *run)
{
	*run = (struct dmp_run){ };
	if (takes_payload(stream)) {
		*run = stream->place;
		if (run->memory)
			run->offset += stream->payload_done;
		else if (run->address)
			run->address += stream->payload_done;
		run->length = min_t(u64, stream->payload_left, DMP_TRAFFIC_BURST);
		return true;
	}
	if (stream->placing)
		return false;
	run->length = bytes_ahead(stream);
	run->address = stream->buffer + stream->in_first + stream->in_have;
	return run->length != 0;
}

static void move_in(struct dmp_kernel_stream *stream, struct dmp_pair *pair)
{
	struct dmp_run run;
	u64 moved = 0;

	/* What was fed is gone: mostly nothing is left to be moved to the front. */
	if (stream->in_first != 0 && !stream->placing) {
		memmove(stream->buffer, stream->buffer + stream->in_first, stream->in_have);
		stream->in_first = 0;
	}
	while (moved < DMP_TRAFFIC_BURST && next_run(stream, &run)) {
		ssize_t got = dmp_pair_get(pair, &run);

		stream->dry = got <= 0;
		/* The memory was revoked, not the connection lost: the rest is thrown away. */
		if (got == -EFAULT && run.memory) {
			stream->place = (struct dmp_run){ };
			stream->place_lost = true;
			continue;
		}
		if (got < 0)
			stream->error = got;
		if (got <= 0)
			return;
		if (stream->placing) {
			stream->payload_done += got;
			stream->payload_left -= got;
		} else {
			stream->in_have += got;
		}
		stream->heard = true;
		moved += got;
	}
}

/*
 * Sends and receives, each at most about a burst. That nothing can be sent is in stream->lost;
 * what had come before is still received, and stream->error is set when there is no more.
 */
bool dmp_kernel_stream_move(struct dmp_kernel_endpoint *endpoint)
{
	struct dmp_kernel_stream *stream = &endpoint->stream;

	if (!stream->lost)
		move_out(stream, endpoint->pair);
	move_in(stream, endpoint->pair);
	return stream->heard;
}

/* After move and feed: may there be something to receive that the pair will not tell of? */
bool dmp_kernel_stream_is_hungry(const struct dmp_kernel_stream *stream)
{
	return !stream->dry && !stream->error && (!stream->placing || takes_payload(stream));
}

/* A frame with payload was handed in; @honoured: the machine asks where to put it. */
static void expect_payload(struct dmp_kernel_stream *stream, u64 bytes, bool honoured)
{
	stream->placing = true;
	stream->place = (struct dmp_run){ };
	stream->place_known = !honoured;
	stream->unasked = !honoured;
	stream->place_lost = false;
	stream->payload_done = 0;
	stream->payload_left = bytes;
}

/* Hands in the frame at the front of the buffer: 1, 0 it is not whole, or -errno. */
static int feed_frame_locked(struct dmp_kernel_endpoint *endpoint)
{
	struct dmp_kernel_stream *stream = &endpoint->stream;
	const u8 *frame = stream->buffer + stream->in_first;
	bool honoured = false;
	u64 payload_bytes;
	u32 length;
	int error;

	lockdep_assert_held(&endpoint->channel->lock);
	if (stream->in_have < DMP_WIRE_HEADER_BYTES)
		return 0;
	if (dmp_wire_peek(frame, DMP_WIRE_HEADER_BYTES, &length)) {
		/* The stream cannot be followed any further; the machine says so too. */
		error = dmp_endpoint_receive(endpoint->machine, endpoint->now_ns, frame,
					     DMP_WIRE_HEADER_BYTES);
		if (error == -EBUSY)
			return error;
		stream->error = -EPROTO;
		return -EPROTO;
	}
	if (stream->in_have < length)
		return 0;
	error = dmp_endpoint_receive(endpoint->machine, endpoint->now_ns, frame, length);
	if (error && error != -ESTALE)
		return error;
	/* A repeat is ignored with 0. What follows an ignored frame is thrown away. */
	if (!error && load_le64(frame + SEQUENCE_OFFSET) > stream->sequence) {
		stream->sequence = load_le64(frame + SEQUENCE_OFFSET);
		honoured = true;
	}
	payload_bytes = load_le64(frame + PAYLOAD_OFFSET);
	if (payload_bytes != 0)
		expect_payload(stream, payload_bytes, honoured);
	stream->in_first += length;
	stream->in_have -= length;
	stream->in_known -= min(stream->in_known, length);
	return 1;
}

/*
 * After move. 1: a frame was handed in, or a payload is complete (look at requests, then call
 * again); 0: nothing; -errno: protocol broken, or -EBUSY (answer requests, then call again).
 * *@placed: a payload that was asked for is complete; answer the PLACE.
 */
int dmp_kernel_stream_feed_locked(struct dmp_kernel_endpoint *endpoint, bool *placed)
{
	struct dmp_kernel_stream *stream = &endpoint->stream;

	lockdep_assert_held(&endpoint->channel->lock);
	*placed = false;
	tell_sent_locked(endpoint);
	if (stream->heard) {
		stream->heard = false;
		dmp_endpoint_alive(endpoint->machine, endpoint->now_ns);
	}
	if (stream->placing) {
		if (!stream->place_known || stream->payload_left != 0)
			return 0;
		stream->placing = false;
		*placed = !stream->unasked;
		return 1;
	}
	if (stream->error == -EPROTO)
		return 0;
	return feed_frame_locked(endpoint);
}

/* Where the payload goes. For a PLACE of no bytes too. */
void dmp_kernel_stream_place(struct dmp_kernel_stream *stream, const struct dmp_run *place,
			     u64 length)
{
	if (!stream->placing) {
		expect_payload(stream, 0, true);
		stream->unasked = false;
	}
	/* The machine has compared the two lengths. */
	if (length == stream->payload_left)
		stream->place = *place;
	stream->place_known = true;
}

/* What is still to come of the payload goes elsewhere; at the place it would have had there. */
void dmp_kernel_stream_redirect(struct dmp_kernel_stream *stream, const struct dmp_run *place)
{
	stream->place = *place;
}
