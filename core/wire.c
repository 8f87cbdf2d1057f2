// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * wire.c - the frame codec, see wire.h
 *
 * One walk serves both directions: each body is described once, as a sequence of
 * fields, and a cursor either stores or loads them. So the two directions cannot
 * disagree about a layout, and a new field is added in one place. The compiler makes
 * two of each walk, one per direction, in which a field is a move of its width.
 */
#include "checksum.h"
#include "dmaplane.h"
#include "wire.h"

#define WIRE_MAGIC	0x46504d44U	/* "DMPF" */
#define WIRE_CHECKSUM_OFFSET 52
#define WIRE_ERRNO_MAX	4095

/* A walk: inlined where its direction is a constant. */
#define WALK static inline __attribute__((always_inline))

struct cursor {
	__u8 *store;		/* encoding: where to write */
	const __u8 *load;	/* decoding: where to read */
	bool encoding;
	bool bad;		/* a field that must be zero was not */
	__u32 used;
};

/* Body bytes of each type; 0xffff marks a number that is no type. */
static const __u16 body_bytes_of[DMP_FRAME_TYPES] = {
	[0] = 0xffff,
	[DMP_FRAME_HELLO] = 64,
	[DMP_FRAME_WELCOME] = 168,
	[DMP_FRAME_CONFIRM] = 72,
	[DMP_FRAME_REFUSE] = 40,
	[DMP_FRAME_GRANT] = 24,
	[DMP_FRAME_OPERATION] = 104,
	[DMP_FRAME_RESPONSE] = 24,
	[DMP_FRAME_COMPLETE] = 24,
	[DMP_FRAME_CANCEL] = 8,
	[DMP_FRAME_CANCELLED] = 24,
	[DMP_FRAME_PING] = 8,
	[DMP_FRAME_PONG] = 8,
	[DMP_FRAME_DRAIN] = 0,
	[DMP_FRAME_GOODBYE] = 8,
};

/* Over the frame less the checksum field itself. */
static __u32 frame_checksum(const __u8 *bytes, __u32 length)
{
	__u32 crc = dmp_checksum_crc32c(0, bytes, WIRE_CHECKSUM_OFFSET);

	return dmp_checksum_crc32c(crc, bytes + DMP_WIRE_HEADER_BYTES,
				   length - DMP_WIRE_HEADER_BYTES);
}

/* Between the numbers of this machine and little-endian bytes, either way. */
static inline __u64 little(__u64 value)
{
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
	return __builtin_bswap64(value);
#else
	return value;
#endif
}

WALK __u64 walk(struct cursor *at, __u64 value, __u32 width)
{
	if (at->encoding) {
		value = little(value);
		__builtin_memcpy(at->store + at->used, &value, width);
	} else {
		value = 0;
		__builtin_memcpy(&value, at->load + at->used, width);
		value = little(value);
	}
	at->used += width;
	return value;
}

WALK void walk16(struct cursor *at, __u16 *value)
{
	__u64 loaded = walk(at, at->encoding ? *value : 0, 2);

	if (!at->encoding)
		*value = (__u16)loaded;
}

WALK void walk32(struct cursor *at, __u32 *value)
{
	__u64 loaded = walk(at, at->encoding ? *value : 0, 4);

	if (!at->encoding)
		*value = (__u32)loaded;
}

WALK void walk_s32(struct cursor *at, __s32 *value)
{
	__u64 loaded = walk(at, at->encoding ? (__u32)*value : 0, 4);

	if (!at->encoding)
		*value = (__s32)(__u32)loaded;
}

WALK void walk64(struct cursor *at, __u64 *value)
{
	__u64 loaded = walk(at, at->encoding ? *value : 0, 8);

	if (!at->encoding)
		*value = loaded;
}

WALK void walk_zero(struct cursor *at, __u32 width)
{
	__u64 loaded = walk(at, 0, width);

	if (!at->encoding && loaded)
		at->bad = true;
}

WALK void walk_bytes(struct cursor *at, __u8 *bytes, __u32 count)
{
	if (at->encoding)
		__builtin_memcpy(at->store + at->used, bytes, count);
	else
		__builtin_memcpy(bytes, at->load + at->used, count);
	at->used += count;
}

WALK void walk_limits(struct cursor *at, struct dmp_wire_limits *limits)
{
	walk32(at, &limits->operations);
	walk32(at, &limits->window_slots);
	walk64(at, &limits->window_bytes);
}

WALK void walk_hello(struct cursor *at, struct dmp_wire_hello *hello)
{
	walk16(at, &hello->version_min);
	walk16(at, &hello->version_max);
	walk_zero(at, 4);
	walk64(at, &hello->features);
	walk_limits(at, &hello->limits);
	walk_bytes(at, hello->nonce, DMP_WIRE_NONCE_BYTES);
}

WALK void walk_welcome(struct cursor *at, struct dmp_wire_welcome *welcome)
{
	walk16(at, &welcome->version);
	walk16(at, &welcome->proof_bytes);
	walk_zero(at, 4);
	walk64(at, &welcome->features);
	walk_limits(at, &welcome->limits);
	walk64(at, &welcome->hello_incarnation);
	walk_bytes(at, welcome->hello_nonce, DMP_WIRE_NONCE_BYTES);
	walk_bytes(at, welcome->nonce, DMP_WIRE_NONCE_BYTES);
	walk_bytes(at, welcome->proof, DMP_WIRE_PROOF_BYTES);
}

WALK void walk_operation(struct cursor *at, struct dmp_wire_operation *operation)
{
	walk64(at, &operation->tag);
	walk16(at, &operation->operation);
	walk16(at, &operation->flags);
	walk32(at, &operation->key_bytes);
	walk64(at, &operation->offset);
	walk64(at, &operation->length_bytes);
	walk32(at, &operation->immediate);
	walk32(at, &operation->checksum);
	walk_bytes(at, operation->key, DMP_WIRE_KEY_BYTES);
}

WALK void walk_body(struct cursor *at, struct dmp_frame *frame)
{
	switch (frame->type) {
	case DMP_FRAME_HELLO:
		walk_hello(at, &frame->hello);
		break;
	case DMP_FRAME_WELCOME:
		walk_welcome(at, &frame->welcome);
		break;
	case DMP_FRAME_CONFIRM:
		walk32(at, &frame->confirm.proof_bytes);
		walk_zero(at, 4);
		walk_bytes(at, frame->confirm.proof, DMP_WIRE_PROOF_BYTES);
		break;
	case DMP_FRAME_REFUSE:
		walk_s32(at, &frame->refuse.reason);
		walk_zero(at, 4);
		walk_bytes(at, frame->refuse.hello_nonce, DMP_WIRE_NONCE_BYTES);
		break;
	case DMP_FRAME_GRANT:
		walk64(at, &frame->grant.sequence);
		walk64(at, &frame->grant.slots);
		walk64(at, &frame->grant.bytes);
		break;
	case DMP_FRAME_OPERATION:
		walk_operation(at, &frame->operation);
		break;
	case DMP_FRAME_RESPONSE:
		walk64(at, &frame->response.tag);
		walk64(at, &frame->response.length_bytes);
		walk32(at, &frame->response.checksum);
		walk32(at, &frame->response.flags);
		break;
	case DMP_FRAME_COMPLETE:
	case DMP_FRAME_CANCELLED:
		walk64(at, &frame->result.tag);
		walk64(at, &frame->result.length_bytes);
		walk_s32(at, &frame->result.result);
		walk_zero(at, 4);
		break;
	case DMP_FRAME_CANCEL:
		walk64(at, &frame->tag);
		break;
	case DMP_FRAME_PING:
	case DMP_FRAME_PONG:
		walk64(at, &frame->stamp);
		break;
	case DMP_FRAME_GOODBYE:
		walk_s32(at, &frame->reason);
		walk_zero(at, 4);
		break;
	default:
		break;
	}
}

static bool errno_is_sound(__s32 result)
{
	return result <= 0 && result >= -WIRE_ERRNO_MAX;
}

static bool limits_are_sound(const struct dmp_wire_limits *limits)
{
	return limits->operations && limits->window_slots && limits->window_bytes;
}

static bool operation_is_sound(const struct dmp_frame *frame)
{
	const struct dmp_wire_operation *operation = &frame->operation;
	__u64 inline_bytes = operation->length_bytes;
	__u64 end;

	if (operation->flags & ~DMP_WIRE_OPERATION_FLAGS)
		return false;
	if (operation->key_bytes > DMP_WIRE_KEY_BYTES)
		return false;
	if (__builtin_add_overflow(operation->offset, operation->length_bytes, &end))
		return false;
	if (!(operation->flags & DMP_WIRE_CHECKSUM) && operation->checksum)
		return false;
	switch (operation->operation) {
	case DMP_OP_SEND:
		if (operation->flags & DMP_WIRE_PLACED || operation->offset ||
		    operation->key_bytes)
			return false;
		break;
	case DMP_OP_WRITE_IMM:
		if (operation->flags & DMP_WIRE_PLACED)
			inline_bytes = 0;
		break;
	case DMP_OP_WRITE:
		if (operation->flags & DMP_WIRE_PLACED)
			return false;
		break;
	case DMP_OP_READ:
		if (operation->flags)
			return false;
		inline_bytes = 0;
		break;
	default:
		return false;
	}
	return frame->payload_bytes == inline_bytes;
}

/* Values, whatever the direction: the encoder refuses what the decoder would. */
static bool frame_is_sound(const struct dmp_frame *frame)
{
	switch (frame->type) {
	case DMP_FRAME_OPERATION:
		return operation_is_sound(frame);
	case DMP_FRAME_RESPONSE:
		if (frame->response.flags & ~DMP_WIRE_CHECKSUM)
			return false;
		return frame->payload_bytes == frame->response.length_bytes;
	default:
		break;
	}
	if (frame->payload_bytes)
		return false;
	switch (frame->type) {
	case DMP_FRAME_HELLO:
		return frame->hello.version_min <= frame->hello.version_max &&
		       limits_are_sound(&frame->hello.limits);
	case DMP_FRAME_WELCOME:
		return frame->welcome.proof_bytes <= DMP_WIRE_PROOF_BYTES &&
		       limits_are_sound(&frame->welcome.limits);
	case DMP_FRAME_CONFIRM:
		return frame->confirm.proof_bytes <= DMP_WIRE_PROOF_BYTES;
	case DMP_FRAME_REFUSE:
		return errno_is_sound(frame->refuse.reason) && frame->refuse.reason;
	case DMP_FRAME_COMPLETE:
		return errno_is_sound(frame->result.result);
	case DMP_FRAME_CANCELLED:
		return frame->result.result == -ECANCELED;
	case DMP_FRAME_GOODBYE:
		return errno_is_sound(frame->reason);
	default:
		return true;
	}
}

/* The header less its checksum. */
WALK void walk_header(struct cursor *at, struct dmp_frame *frame,
		      __u32 *magic, __u32 *version, __u32 *body_bytes)
{
	__u64 type;

	walk32(at, magic);
	*version = (__u32)walk(at, *version, 1);
	type = walk(at, at->encoding ? frame->type : 0, 1);
	if (!at->encoding)
		frame->type = (__u32)type;
	walk_zero(at, 2);
	walk32(at, &frame->epoch);
	walk32(at, body_bytes);
	walk64(at, &frame->sequence);
	walk64(at, &frame->incarnation);
	walk64(at, &frame->destination);
	walk64(at, &frame->payload_bytes);
	walk_zero(at, 4);
}

int dmp_wire_encode(const struct dmp_frame *frame, bool checked, void *bytes, size_t room)
{
	struct cursor at = { .store = bytes, .encoding = true };
	struct dmp_frame *same = (struct dmp_frame *)frame;	/* encoding only reads it */
	__u32 version = DMP_WIRE_VERSION;
	__u32 magic = WIRE_MAGIC;
	__u32 body_bytes;
	__u32 length;

	if (!frame->type || frame->type >= DMP_FRAME_TYPES || !frame_is_sound(frame))
		return -EINVAL;
	body_bytes = body_bytes_of[frame->type];
	length = DMP_WIRE_HEADER_BYTES + body_bytes;
	if (room < length)
		return -ENOSPC;
	walk_header(&at, same, &magic, &version, &body_bytes);
	at.used = DMP_WIRE_HEADER_BYTES;
	walk_body(&at, same);
	at.used = WIRE_CHECKSUM_OFFSET;
	walk(&at, checked ? frame_checksum(bytes, length) : 0, 4);
	return (int)length;
}

/* All of the header but its checksum, into @frame; the length of what it heads. */
static int load_header(const void *header, size_t length, struct dmp_frame *frame,
		       __u32 *frame_bytes)
{
	struct cursor at = { .load = header };
	__u32 body_bytes = 0;
	__u32 version = 0;
	__u32 magic = 0;

	if (length < DMP_WIRE_HEADER_BYTES)
		return -EPROTO;
	walk_header(&at, frame, &magic, &version, &body_bytes);
	if (at.bad || magic != WIRE_MAGIC || version != DMP_WIRE_VERSION)
		return -EPROTO;
	if (!frame->type || frame->type >= DMP_FRAME_TYPES)
		return -EPROTO;
	if (body_bytes != body_bytes_of[frame->type])
		return -EPROTO;
	*frame_bytes = DMP_WIRE_HEADER_BYTES + body_bytes;
	return 0;
}

int dmp_wire_peek(const void *header, size_t length, __u32 *frame_bytes)
{
	struct dmp_frame frame;

	return load_header(header, length, &frame, frame_bytes);
}

int dmp_wire_decode(const void *bytes, size_t length, bool checked, struct dmp_frame *frame)
{
	struct cursor at = { .load = bytes, .used = WIRE_CHECKSUM_OFFSET };
	__u32 expected;
	int error;

	error = load_header(bytes, length, frame, &expected);
	if (error)
		return error;
	if (length != expected)
		return -EPROTO;
	if ((__u32)walk(&at, 0, 4) != (checked ? frame_checksum(bytes, expected) : 0))
		return -EPROTO;
	walk_body(&at, frame);
	if (at.bad || at.used != expected || !frame_is_sound(frame))
		return -EPROTO;
	return 0;
}
