// SPDX-License-Identifier: MIT
/*
 * stream.c - frames and payloads on the byte streams of a fabric, see stream.h
 *
 * What goes out is stream_out.c's. Answers that nobody is waiting for at this moment,
 * because more is coming in than we have looked at, wait for company: one call then
 * carries many: ANSWERS_HELD frames, HELD_BYTES_MAX received bytes, or all there is.
 *
 * In. The buffer holds frames only, apart from the exceptions that stream.h states;
 * what is behind a frame with payload is taken out of it before anything else is received.
 */
#include "stream.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "dmaplane.h"
#include "libdmaplane.h"

#define ANSWERS_HELD	64u
#define HELD_BYTES_MAX	(256u << 10)
#define CHECKED_BYTES	(128u << 10)	/* received at once, so that the CRC finds them cached */
#define DISCARD_BYTES	16384u
#define DIRECT_AHEAD	1024u		/* receive() is a copy there: a few frames will do */

/* Of a frame, see wire.h; behind the header the body of an OPERATION. */
#define SEQUENCE_OFFSET		16
#define PAYLOAD_OFFSET		40
#define OPERATION_OFFSET	(DMP_WIRE_HEADER_BYTES + 8)

int dmp_stream_init(struct dmp_stream *stream, struct dmp_fabric *fabric, void *owner,
		    dmp_stream_source source, dmp_stream_sent sent)
{
	memset(stream, 0, sizeof(*stream));
	stream->fabric = fabric;
	stream->owner = owner;
	stream->source = source;
	stream->sent = sent;
	stream->dry = true;
	stream->pieces = malloc(DMP_STREAM_FRAMES * sizeof(*stream->pieces));
	stream->buffer = malloc(DMP_STREAM_BUFFER);
	if (stream->pieces && stream->buffer)
		return 0;
	dmp_stream_free(stream);
	return -ENOMEM;
}

void dmp_stream_free(struct dmp_stream *stream)
{
	dmp_stream_drop_out(stream);
	free(stream->pieces);
	free(stream->buffer);
	stream->pieces = NULL;
	stream->buffer = NULL;
}

static __u64 load_le(const __u8 *bytes, int width)
{
	__u64 value = 0;

	while (width--)
		value = value << 8 | bytes[width];
	return value;
}

/* How long the frame at @bytes is, 0 if its header is not there yet; or -EPROTO. */
static int frame_length(const __u8 *bytes, __u32 have, __u32 *length)
{
	*length = 0;
	if (have < DMP_WIRE_HEADER_BYTES)
		return 0;
	return dmp_wire_peek(bytes, DMP_WIRE_HEADER_BYTES, length);
}

/* The frame behind those that are known to have no payload; as far as it is there. */
static const __u8 *first_unknown(const struct dmp_stream *stream, __u32 *have)
{
	*have = stream->in_have - stream->in_known;
	return stream->buffer + stream->in_first + stream->in_known;
}

/* How much of the frame at the front of the buffer, or of its header, is still to come. */
static __u32 rest_of_frame(const struct dmp_stream *stream)
{
	const __u8 *frame = stream->buffer + stream->in_first;
	__u32 length;

	if (stream->last_in.reached || frame_length(frame, stream->in_have, &length))
		return 0;
	if (!length)
		length = DMP_WIRE_HEADER_BYTES;
	return length > stream->in_have ? length - stream->in_have : 0;
}

/*
 * How much may be read behind what is in the buffer: the rule of stream.h. 0 behind a whole
 * frame with payload, and behind what is no frame: that is the owner's to feed.
 */
static __u32 ahead(struct dmp_stream *stream)
{
	__u32 room = DMP_STREAM_BUFFER - stream->in_have;
	__u32 bound = DMP_STREAM_AHEAD;
	__u32 have, length;
	const __u8 *frame;
	bool payload;

	if (stream->last_in.type)
		return rest_of_frame(stream);
	for (;;) {
		frame = first_unknown(stream, &have);
		if (frame_length(frame, have, &length))
			return 0;
		payload = length && load_le(frame + PAYLOAD_OFFSET, 8);
		if (!length || have < length)
			break;
		if (payload)
			return 0;
		stream->in_known += length;
	}
	if (stream->unwritable)
		return room;
	if (stream->fabric->type->direct)
		bound = DIRECT_AHEAD;
	bound = payload ? length : length + bound;
	return bound - have < room ? bound - have : room;
}

static bool takes_payload(const struct dmp_stream *stream)
{
	return stream->placing && stream->place_known && stream->payload_left;
}

/* @count bytes of the payload are in their place. */
static void placed(struct dmp_stream *stream, __u64 count)
{
	if (stream->place && stream->checked)
		stream->checksum = dmp_crc32c(stream->checksum,
					      stream->place + stream->payload_done, count);
	stream->payload_done += count;
	stream->payload_left -= count;
	stream->heard = true;
}

/* The beginning of a payload that was read with the frames before it. */
static bool take_buffered(struct dmp_stream *stream)
{
	__u64 count = stream->in_have;

	if (count > stream->payload_left)
		count = stream->payload_left;
	if (!count)
		return false;
	if (stream->place)
		memcpy(stream->place + stream->payload_done, stream->buffer + stream->in_first,
		       count);
	if (stream->writing && stream->place)
		stream->staged_bytes += count;
	stream->in_first += (__u32)count;
	stream->in_have -= (__u32)count;
	placed(stream, count);
	return true;
}

/* Room behind what is in the buffer; it is nearly always empty here. */
static void make_room(struct dmp_stream *stream)
{
	if (stream->in_have)
		memmove(stream->buffer, stream->buffer + stream->in_first, stream->in_have);
	stream->in_first = 0;
}

/* One call: the rest of the payload, and @frames bytes behind it. As the fabric's receive(). */
static ssize_t receive(struct dmp_stream *stream, char *scratch, __u32 frames, __u64 *wanted)
{
	__u64 bound = stream->checked ? CHECKED_BYTES : DMP_STREAM_BURST;
	struct iovec vectors[2];
	__u64 part = 0;
	ssize_t got;
	int count = 0;

	*wanted = 0;
	if (takes_payload(stream)) {
		vectors[0].iov_base = stream->place + stream->payload_done;
		if (!stream->place) {
			vectors[0].iov_base = scratch;
			bound = DISCARD_BYTES;
		}
		part = stream->payload_left < bound ? stream->payload_left : bound;
		vectors[0].iov_len = part;
		*wanted = part;
		count = 1;
	}
	if (part == (stream->placing ? stream->payload_left : 0)) {
		make_room(stream);
		vectors[count].iov_base = stream->buffer + stream->in_have;
		vectors[count].iov_len = frames;
		*wanted += frames;
		count += 1;
	}
	got = stream->fabric->type->receive(stream->fabric, vectors, count);
	if (got <= 0)
		return got;
	if ((__u64)got < part)
		part = (__u64)got;
	if (part)
		placed(stream, part);
	stream->in_have += (__u32)((__u64)got - part);
	return got;
}

/* Is there anything to receive before the owner has fed or placed? *@frames: how much of frames. */
static bool may_receive(struct dmp_stream *stream, __u32 *frames)
{
	if (stream->error || (stream->placing && !takes_payload(stream)))
		return false;
	*frames = ahead(stream);
	return stream->placing || *frames;
}

static bool move_in(struct dmp_stream *stream)
{
	char scratch[DISCARD_BYTES];
	__u64 moved = 0;
	__u64 wanted;
	__u32 frames;
	ssize_t got;

	stream->drained = false;
	if (takes_payload(stream) && take_buffered(stream))
		moved = 1;
	while (moved < DMP_STREAM_BURST && may_receive(stream, &frames)) {
		got = receive(stream, scratch, frames, &wanted);
		if (got < 0)
			stream->error = (int)got;
		else if (!got)
			stream->error = stream->out_error;
		stream->dry = got < 0 || (__u64)got < wanted;
		stream->drained = stream->dry && (got <= 0 || !stream->records);
		if (got <= 0)
			break;
		moved += (__u64)got;
		stream->held_bytes += (__u64)got;
		if (stream->dry)
			break;
	}
	return moved != 0;
}

bool dmp_stream_is_hungry(struct dmp_stream *stream)
{
	__u32 frames;

	if (!may_receive(stream, &frames))
		return false;
	/* The beginning of a payload whose place is known by now may be with us already. */
	return !stream->drained || (takes_payload(stream) && stream->in_have) ||
	       stream->hung_up || stream->out_error;
}

/* Are there only answers to send, few of them, and is there more to receive meanwhile? */
static bool holds_back(const struct dmp_stream *stream)
{
	return !stream->dry && !stream->out_prompt &&
	       stream->out_count - stream->out_done < ANSWERS_HELD &&
	       stream->held_bytes < HELD_BYTES_MAX;
}

bool dmp_stream_move(struct dmp_stream *stream)
{
	bool held = stream->out_bytes && holds_back(stream);
	bool moved = false;

	if (!held)
		moved = dmp_stream_move_out(stream);
	if (move_in(stream))
		moved = true;
	else
		stream->dry = true;
	if (held && !holds_back(stream) && dmp_stream_move_out(stream))
		moved = true;
	return moved;
}

/* ---- between the buffer and the machine */

static void consume(struct dmp_stream *stream, __u32 length)
{
	stream->in_first += length;
	stream->in_have -= length;
	stream->in_known -= stream->in_known < length ? stream->in_known : length;
}

/* A frame with payload was handed in; @honoured: the machine asks where to put it. */
static void expect_payload(struct dmp_stream *stream, const __u8 *frame, __u64 bytes,
			   bool honoured)
{
	__u64 operation = load_le(frame + OPERATION_OFFSET, 2);

	stream->placing = true;
	stream->place = NULL;
	stream->place_known = !honoured;
	stream->unasked = !honoured;
	stream->checked = false;
	stream->checksum = 0;
	stream->payload_done = 0;
	stream->payload_left = bytes;
	stream->writing = frame[DMP_STREAM_TYPE_OFFSET] == DMP_FRAME_OPERATION &&
			  (operation == DMP_OP_WRITE || operation == DMP_OP_WRITE_IMM);
}

/* Hands in the frame at the front of the buffer. */
static int feed_frame(struct dmp_stream *stream, struct dmp_endpoint *machine, __u64 now_ns)
{
	const __u8 *frame = stream->buffer + stream->in_first;
	__u64 sequence, payload_bytes;
	bool honoured = false;
	__u32 length;
	int error;

	if (frame_length(frame, stream->in_have, &length)) {
		/* The stream cannot be followed any further; the machine says so too. */
		error = dmp_endpoint_receive(machine, now_ns, frame, DMP_WIRE_HEADER_BYTES);
		if (error == -EBUSY)
			return error;
		stream->error = -EPROTO;
		return -EPROTO;
	}
	if (!length || stream->in_have < length)
		return 0;
	error = dmp_endpoint_receive(machine, now_ns, frame, length);
	if (error && error != -ESTALE)
		return error;
	/* A repeat is ignored with 0. What follows an ignored frame is thrown away. */
	sequence = load_le(frame + SEQUENCE_OFFSET, 8);
	if (!error && sequence > stream->sequence) {
		stream->sequence = sequence;
		honoured = true;
		stream->last_in.reached = frame[DMP_STREAM_TYPE_OFFSET] == stream->last_in.type;
	}
	payload_bytes = load_le(frame + PAYLOAD_OFFSET, 8);
	if (payload_bytes)
		expect_payload(stream, frame, payload_bytes, honoured);
	consume(stream, length);
	return 1;
}

int dmp_stream_feed_locked(struct dmp_stream *stream, struct dmp_endpoint *machine, __u64 now_ns,
			   int *placed)
{
	*placed = 0;
	dmp_stream_tell_sent(stream, machine, now_ns);
	if (stream->heard) {
		stream->heard = false;
		dmp_endpoint_alive(machine, now_ns);
	}
	if (stream->placing) {
		if (!stream->place_known || stream->payload_left)
			return 0;
		stream->placing = false;
		*placed = !stream->unasked;
		return 1;
	}
	if (stream->error == -EPROTO)
		return 0;
	return feed_frame(stream, machine, now_ns);
}

void dmp_stream_place_locked(struct dmp_stream *stream, char *place, __u64 length, bool checked)
{
	if (!stream->placing) {		/* a payload of no bytes */
		stream->placing = true;
		stream->payload_left = 0;
		stream->payload_done = 0;
		stream->checksum = 0;
		stream->unasked = false;
	}
	/* The machine has compared the two lengths; a caller that mixes them up loses bytes. */
	stream->place = length == stream->payload_left ? place : NULL;
	stream->checked = checked;
	stream->place_known = true;
}

void dmp_stream_discard_locked(struct dmp_stream *stream)
{
	stream->place = NULL;
	stream->checked = false;
}

void dmp_stream_replace_locked(struct dmp_stream *stream, char *place)
{
	if (stream->place && stream->payload_done)
		memcpy(place, stream->place, stream->payload_done);
	stream->place = place;
}
