// SPDX-License-Identifier: MIT
/*
 * stream.c - frames and payloads on the byte streams of a fabric, see stream.h
 *
 * Out. A piece is a frame and its payload. Pieces leave in order; a send() that took
 * only a part is continued at the very byte. Answers that nobody is waiting for at
 * this moment, because more is coming in than we have looked at, wait for company: one
 * call then carries many: ANSWERS_HELD frames, HELD_BYTES_MAX received bytes, or all there is.
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

#define VECTORS_MAX	(2 * DMP_STREAM_FRAMES)
#define ANSWERS_HELD	64u
#define HELD_BYTES_MAX	(256u << 10)
#define CHECKED_BYTES	(128u << 10)	/* received at once, so that the CRC finds them cached */
#define DISCARD_BYTES	16384u
#define DIRECT_AHEAD	1024u		/* receive() is a copy there: a few frames will do */

/* Of a frame, see wire.h; behind the header the body of an OPERATION. */
#define TYPE_OFFSET		5
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

static struct dmp_stream_piece *piece_at(struct dmp_stream *stream, __u32 index)
{
	return &stream->pieces[(stream->out_first + index) % DMP_STREAM_FRAMES];
}

static __u64 piece_bytes(const struct dmp_stream_piece *piece)
{
	return piece->frame.frame_bytes + piece->frame.payload_bytes;
}

void dmp_stream_free(struct dmp_stream *stream)
{
	__u32 index;

	for (index = 0; index < stream->out_count; index++)
		free(piece_at(stream, index)->aside);
	free(stream->pieces);
	free(stream->buffer);
	stream->pieces = NULL;
	stream->buffer = NULL;
	stream->out_count = 0;
	stream->out_done = 0;
}

/* ---- out */

/* Answers and grants may wait for company: who waits for them is kept busy meanwhile. */
static bool is_prompt(const struct dmp_stream_piece *piece)
{
	switch (piece->frame.bytes[TYPE_OFFSET]) {
	case DMP_FRAME_GRANT:
	case DMP_FRAME_COMPLETE:
	case DMP_FRAME_CANCELLED:
		return false;
	default:
		return true;
	}
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
		stream->last_out.reached = piece->frame.bytes[TYPE_OFFSET] == stream->last_out.type;
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
static bool move_out(struct dmp_stream *stream)
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

/* Pieces that are with the fabric: the owner hears of payloads, the machine of its own. */
static void tell_sent(struct dmp_stream *stream, struct dmp_endpoint *machine, __u64 now_ns)
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

/* ---- in */

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
		stream->drained = stream->dry;
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
		moved = move_out(stream);
	if (move_in(stream))
		moved = true;
	else
		stream->dry = true;
	if (held && !holds_back(stream) && move_out(stream))
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
	stream->writing = frame[TYPE_OFFSET] == DMP_FRAME_OPERATION &&
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
		stream->last_in.reached = frame[TYPE_OFFSET] == stream->last_in.type;
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
	tell_sent(stream, machine, now_ns);
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
