// SPDX-License-Identifier: MIT
/*
 * test_wire.c - the frame codec (law L12: nothing a peer sends is trusted)
 *
 * One frame of every type, filled with bytes that differ, is encoded and decoded;
 * then every truncation, every change of every single byte, and random bytes.
 */
#include <string.h>

#include "check.h"
#include "dmaplane.h"
#include "wire.h"

static __u64 random_state = 88172645463325252ULL;

static __u64 random_next(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

static void fill(void *bytes, size_t count, int seed)
{
	__u8 *at = bytes;
	size_t i;

	for (i = 0; i < count; i++)
		at[i] = (__u8)(seed + (int)i * 7);
}

static void sample_operation(struct dmp_frame *frame, int variant)
{
	static const __u16 operations[] = { DMP_OP_SEND, DMP_OP_WRITE, DMP_OP_WRITE_IMM,
					    DMP_OP_READ };
	struct dmp_wire_operation *operation = &frame->operation;

	operation->tag = 0x4142434445464748ULL;
	operation->operation = operations[variant % 4];
	operation->length_bytes = 4096;
	frame->payload_bytes = operation->operation == DMP_OP_READ ? 0 : 4096;
	if (operation->operation != DMP_OP_SEND) {
		operation->offset = 0x51525354;
		operation->key_bytes = 64;
		fill(operation->key, DMP_WIRE_KEY_BYTES, 9);
		operation->immediate = 0x61626364;
	}
	if (variant & 4 && operation->operation != DMP_OP_READ) {
		operation->flags |= DMP_WIRE_CHECKSUM;
		operation->checksum = 0x71727374;
	}
	if (variant & 8 && operation->operation == DMP_OP_WRITE_IMM) {
		operation->flags |= DMP_WIRE_PLACED;
		frame->payload_bytes = 0;
	}
}

/* A sound frame of @type; @variant picks among the operations and flags. */
static struct dmp_frame sample(__u32 type, int variant)
{
	const struct dmp_wire_limits limits = { 64, 128, 1ULL << 40 };
	struct dmp_frame frame;

	memset(&frame, 0, sizeof(frame));
	frame.type = type;
	frame.epoch = 0x01020304;
	frame.sequence = 0x1112131415161718ULL;
	frame.incarnation = 0x2122232425262728ULL;
	frame.destination = 0x3132333435363738ULL;
	switch (type) {
	case DMP_FRAME_HELLO:
		frame.hello.version_min = 1;
		frame.hello.version_max = 3;
		frame.hello.features = 0x8000000000000001ULL;
		frame.hello.limits = limits;
		fill(frame.hello.nonce, DMP_WIRE_NONCE_BYTES, 3);
		break;
	case DMP_FRAME_WELCOME:
		frame.welcome.version = 2;
		frame.welcome.proof_bytes = 32;
		frame.welcome.features = 5;
		frame.welcome.limits = limits;
		frame.welcome.hello_incarnation = 0x3132333435363738ULL;
		fill(frame.welcome.hello_nonce, DMP_WIRE_NONCE_BYTES, 4);
		fill(frame.welcome.nonce, DMP_WIRE_NONCE_BYTES, 5);
		fill(frame.welcome.proof, DMP_WIRE_PROOF_BYTES, 6);
		break;
	case DMP_FRAME_CONFIRM:
		frame.confirm.proof_bytes = 64;
		fill(frame.confirm.proof, DMP_WIRE_PROOF_BYTES, 7);
		break;
	case DMP_FRAME_REFUSE:
		frame.refuse.reason = -EACCES;
		fill(frame.refuse.hello_nonce, DMP_WIRE_NONCE_BYTES, 8);
		break;
	case DMP_FRAME_GRANT:
		frame.grant.sequence = 9;
		frame.grant.slots = 10;
		frame.grant.bytes = 1ULL << 50;
		break;
	case DMP_FRAME_OPERATION:
		sample_operation(&frame, variant);
		break;
	case DMP_FRAME_RESPONSE:
		frame.response.tag = 77;
		frame.response.length_bytes = 999;
		frame.response.checksum = 88;
		frame.response.flags = DMP_WIRE_CHECKSUM;
		frame.payload_bytes = 999;
		break;
	case DMP_FRAME_COMPLETE:
		frame.result.tag = 78;
		frame.result.length_bytes = 1000;
		frame.result.result = -EBADMSG;
		break;
	case DMP_FRAME_CANCELLED:
		frame.result.tag = 79;
		frame.result.result = -ECANCELED;
		break;
	case DMP_FRAME_CANCEL:
		frame.tag = 80;
		break;
	case DMP_FRAME_PING:
	case DMP_FRAME_PONG:
		frame.stamp = 81;
		break;
	case DMP_FRAME_GOODBYE:
		frame.reason = -ECONNRESET;
		break;
	default:
		break;
	}
	return frame;
}

static int variants(__u32 type)
{
	return type == DMP_FRAME_OPERATION ? 16 : 1;
}

static void test_every_frame_survives_the_round_trip(void)
{
	__u8 bytes[DMP_WIRE_FRAME_BYTES_MAX];
	struct dmp_frame frame, back;
	__u32 type, frame_bytes;
	int variant, length;

	for (type = 1; type < DMP_FRAME_TYPES; type++) {
		for (variant = 0; variant < variants(type); variant++) {
			frame = sample(type, variant);
			length = dmp_wire_encode(&frame, true, bytes, sizeof(bytes));
			CHECK(length >= DMP_WIRE_HEADER_BYTES);
			CHECK(dmp_wire_peek(bytes, DMP_WIRE_HEADER_BYTES, &frame_bytes) == 0);
			CHECK(frame_bytes == (__u32)length);
			memset(&back, 0, sizeof(back));
			CHECK(dmp_wire_decode(bytes, (size_t)length, true, &back) == 0);
			CHECK(memcmp(&frame, &back, sizeof(frame)) == 0);
		}
	}
}

static void test_numbers_are_little_endian_at_their_documented_places(void)
{
	struct dmp_frame frame = sample(DMP_FRAME_PING, 0);
	__u8 bytes[DMP_WIRE_FRAME_BYTES_MAX];

	frame.stamp = 0x0807060504030201ULL;
	CHECK(dmp_wire_encode(&frame, true, bytes, sizeof(bytes)) == 64);
	CHECK(memcmp(bytes, "DMPF\x01\x0b\x00\x00", 8) == 0);
	CHECK(memcmp(bytes + 8, "\x04\x03\x02\x01\x08\x00\x00\x00", 8) == 0);
	CHECK(memcmp(bytes + 16, "\x18\x17\x16\x15\x14\x13\x12\x11", 8) == 0);
	CHECK(memcmp(bytes + 24, "\x28\x27\x26\x25\x24\x23\x22\x21", 8) == 0);
	CHECK(memcmp(bytes + 32, "\x38\x37\x36\x35\x34\x33\x32\x31", 8) == 0);
	CHECK(memcmp(bytes + 56, "\x01\x02\x03\x04\x05\x06\x07\x08", 8) == 0);
}

/* Exactly as long as the frame, so that a sanitizer sees one byte too many. */
static int decode_exact(const __u8 *bytes, size_t length, struct dmp_frame *frame)
{
	__u8 *copy = malloc(length ? length : 1);
	int result;

	CHECK(copy);
	memcpy(copy, bytes, length);
	result = dmp_wire_decode(copy, length, true, frame);
	free(copy);
	return result;
}

static void test_every_truncation_and_extension_is_refused(void)
{
	__u8 bytes[DMP_WIRE_FRAME_BYTES_MAX + 8];
	struct dmp_frame frame, back;
	size_t length, cut;
	__u32 type;
	int variant;

	for (type = 1; type < DMP_FRAME_TYPES; type++) {
		for (variant = 0; variant < variants(type); variant++) {
			memset(bytes, 0, sizeof(bytes));
			frame = sample(type, variant);
			length = (size_t)dmp_wire_encode(&frame, true, bytes, sizeof(bytes));
			for (cut = 0; cut < length; cut++)
				CHECK(decode_exact(bytes, cut, &back) == -EPROTO);
			for (cut = length + 1; cut <= length + 8; cut++)
				CHECK(decode_exact(bytes, cut, &back) == -EPROTO);
		}
	}
}

static void test_every_change_of_one_byte_is_detected(void)
{
	__u8 bytes[DMP_WIRE_FRAME_BYTES_MAX];
	struct dmp_frame frame, back;
	int variant, length, i, change;
	__u32 type;

	for (type = 1; type < DMP_FRAME_TYPES; type++) {
		for (variant = 0; variant < variants(type); variant++) {
			frame = sample(type, variant);
			length = dmp_wire_encode(&frame, true, bytes, sizeof(bytes));
			for (i = 0; i < length; i++) {
				for (change = 1; change < 256; change++) {
					bytes[i] ^= (__u8)change;
					CHECK(dmp_wire_decode(bytes, (size_t)length, true,
							      &back) == -EPROTO);
					bytes[i] ^= (__u8)change;
				}
			}
		}
	}
}

/* Both sides know from the kind of fabric; one that does not agree understands nothing. */
static void test_an_unchecked_frame_has_no_checksum(void)
{
	__u8 checked[DMP_WIRE_FRAME_BYTES_MAX], bytes[DMP_WIRE_FRAME_BYTES_MAX];
	struct dmp_frame frame, back;
	__u32 type;
	int length, i;

	for (type = 1; type < DMP_FRAME_TYPES; type++) {
		frame = sample(type, 0);
		length = dmp_wire_encode(&frame, true, checked, sizeof(checked));
		CHECK(dmp_wire_encode(&frame, false, bytes, sizeof(bytes)) == length);
		CHECK(!memcmp(bytes + 52, "\0\0\0\0", 4));
		CHECK(!memcmp(bytes, checked, 52));
		CHECK(!memcmp(bytes + 56, checked + 56, (size_t)length - 56));
		memset(&back, 0, sizeof(back));
		CHECK(dmp_wire_decode(bytes, (size_t)length, false, &back) == 0);
		CHECK(!memcmp(&frame, &back, sizeof(frame)));
		CHECK(dmp_wire_decode(bytes, (size_t)length, true, &back) == -EPROTO);
		CHECK(dmp_wire_decode(checked, (size_t)length, false, &back) == -EPROTO);
		for (i = 52; i < 56; i++) {
			bytes[i] = 1;
			CHECK(dmp_wire_decode(bytes, (size_t)length, false, &back) == -EPROTO);
			bytes[i] = 0;
		}
	}
}

static void test_random_bytes_are_refused(void)
{
	__u8 bytes[DMP_WIRE_FRAME_BYTES_MAX];
	struct dmp_frame frame;
	size_t i, length;
	int round;

	for (round = 0; round < 200000; round++) {
		length = random_next() % (sizeof(bytes) + 1);
		for (i = 0; i < length; i++)
			bytes[i] = (__u8)random_next();
		if (length > 6 && round & 1) {
			memcpy(bytes, "DMPF\x01", 5);
			bytes[5] = (__u8)(round / 2 % 16);
		}
		CHECK(dmp_wire_decode(bytes, length, true, &frame) == -EPROTO);
	}
}

/* Each row breaks one value of an otherwise sound frame. */
static void test_values_out_of_range_are_refused_by_both_directions(void)
{
	__u8 bytes[DMP_WIRE_FRAME_BYTES_MAX];
	struct dmp_frame frame;

#define REFUSED(frame_type, variant, change)					\
	do {									\
		frame = sample(frame_type, variant);				\
		CHECK(dmp_wire_encode(&frame, true, bytes, sizeof(bytes)) > 0);	\
		change;								\
		CHECK(dmp_wire_encode(&frame, true, bytes, sizeof(bytes)) == -EINVAL); \
	} while (0)

	REFUSED(DMP_FRAME_PING, 0, frame.type = 0);
	REFUSED(DMP_FRAME_PING, 0, frame.type = DMP_FRAME_TYPES);
	REFUSED(DMP_FRAME_PING, 0, frame.type = 0x10b);
	REFUSED(DMP_FRAME_PING, 0, frame.payload_bytes = 1);
	REFUSED(DMP_FRAME_HELLO, 0, frame.hello.version_min = 4);
	REFUSED(DMP_FRAME_HELLO, 0, frame.hello.limits.operations = 0);
	REFUSED(DMP_FRAME_HELLO, 0, frame.hello.limits.window_slots = 0);
	REFUSED(DMP_FRAME_HELLO, 0, frame.hello.limits.window_bytes = 0);
	REFUSED(DMP_FRAME_WELCOME, 0, frame.welcome.proof_bytes = 65);
	REFUSED(DMP_FRAME_CONFIRM, 0, frame.confirm.proof_bytes = 65);
	REFUSED(DMP_FRAME_REFUSE, 0, frame.refuse.reason = 0);
	REFUSED(DMP_FRAME_REFUSE, 0, frame.refuse.reason = 1);
	REFUSED(DMP_FRAME_REFUSE, 0, frame.refuse.reason = -4096);
	REFUSED(DMP_FRAME_OPERATION, 0, frame.operation.operation = DMP_OP_RECV);
	REFUSED(DMP_FRAME_OPERATION, 0, frame.operation.flags = 4);
	REFUSED(DMP_FRAME_OPERATION, 0, frame.operation.flags = DMP_WIRE_PLACED);
	REFUSED(DMP_FRAME_OPERATION, 0, frame.operation.offset = 1);
	REFUSED(DMP_FRAME_OPERATION, 0, frame.operation.checksum = 1);
	REFUSED(DMP_FRAME_OPERATION, 0, frame.payload_bytes = 4095);
	REFUSED(DMP_FRAME_OPERATION, 1, frame.operation.key_bytes = 65);
	REFUSED(DMP_FRAME_OPERATION, 1, frame.operation.offset = ~0ULL);
	REFUSED(DMP_FRAME_OPERATION, 1, frame.payload_bytes = 0);
	REFUSED(DMP_FRAME_OPERATION, 1, frame.operation.flags = DMP_WIRE_PLACED);
	REFUSED(DMP_FRAME_OPERATION, 3, frame.payload_bytes = 4096);
	REFUSED(DMP_FRAME_OPERATION, 3, frame.operation.flags = DMP_WIRE_PLACED);
	REFUSED(DMP_FRAME_RESPONSE, 0, frame.payload_bytes = 998);
	REFUSED(DMP_FRAME_RESPONSE, 0, frame.response.flags = DMP_WIRE_PLACED);
	REFUSED(DMP_FRAME_COMPLETE, 0, frame.result.result = 1);
	REFUSED(DMP_FRAME_CANCELLED, 0, frame.result.result = 0);
	REFUSED(DMP_FRAME_GOODBYE, 0, frame.reason = -5000);
#undef REFUSED
	frame = sample(DMP_FRAME_PING, 0);
	CHECK(dmp_wire_encode(&frame, true, bytes, 63) == -ENOSPC);
}

int main(void)
{
	test_every_frame_survives_the_round_trip();
	test_numbers_are_little_endian_at_their_documented_places();
	test_every_truncation_and_extension_is_refused();
	test_every_change_of_one_byte_is_detected();
	test_an_unchecked_frame_has_no_checksum();
	test_random_bytes_are_refused();
	test_values_out_of_range_are_refused_by_both_directions();
	return 0;
}
