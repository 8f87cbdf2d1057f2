// SPDX-License-Identifier: MIT
/*
 * test_rdma.c - the form two planes share on a queue pair (law L12: what a peer says is checked)
 */
#include <string.h>

#include "check.h"
#include "rdma.h"

static const struct dmp_rdma_hello HELLO = { .slots = 32, .slot_bytes = 8192, .reads = 16 };

static void test_hello_comes_back(void)
{
	__u8 bytes[56] = { 0 };
	struct dmp_rdma_hello said;

	dmp_rdma_put_hello(&HELLO, bytes);
	CHECK(!dmp_rdma_get_hello(bytes, sizeof(bytes), &said));	/* padded by rdma_cm */
	CHECK(!memcmp(&said, &HELLO, sizeof(said)));
	CHECK(dmp_rdma_get_hello(bytes, DMP_RDMA_HELLO_BYTES - 1, &said) == -EPROTO);
	bytes[4]++;
	CHECK(dmp_rdma_get_hello(bytes, sizeof(bytes), &said) == -EOPNOTSUPP);
}

/* Each changed byte is refused, or is one of the three numbers. */
static void test_hello_says_nothing_else(void)
{
	struct dmp_rdma_hello said;
	__u8 bytes[DMP_RDMA_HELLO_BYTES];
	unsigned int at;

	for (at = 0; at < sizeof(bytes); at++) {
		dmp_rdma_put_hello(&HELLO, bytes);
		bytes[at] ^= 0x80;
		CHECK(dmp_rdma_get_hello(bytes, sizeof(bytes), &said) < 0 ||
		      (said.slots == 160 && at == 8) || (said.reads == 144 && at == 16) ||
		      (said.slot_bytes == 8320 && at == 12) || (said.slot_bytes == 40960 && at == 13));
	}
	for (at = 0; at < 4; at++) {
		static const struct dmp_rdma_hello odd[] = {
			{ 1, 8192, 1 }, { DMP_RDMA_SLOTS_MAX + 1, 8192, 1 },
			{ 32, DMP_RDMA_SLOT_BYTES_MIN - 1, 1 }, { 32, 8192, 256 },
		};

		dmp_rdma_put_hello(&odd[at], bytes);
		CHECK(dmp_rdma_get_hello(bytes, sizeof(bytes), &said) == -EPROTO);
	}
}

static void test_header_is_exact(void)
{
	struct dmp_rdma_header header = { DMP_RDMA_STREAM, DMP_RDMA_WAKE, 100 }, said;
	__u8 bytes[DMP_RDMA_HEADER_BYTES];
	unsigned int value;

	dmp_rdma_put_header(&header, bytes);
	CHECK(!dmp_rdma_get_header(bytes, 108, &said));
	CHECK(said.kind == DMP_RDMA_STREAM && said.flags == DMP_RDMA_WAKE && said.length == 100);
	CHECK(dmp_rdma_get_header(bytes, 107, &said) == -EPROTO);
	CHECK(dmp_rdma_get_header(bytes, 109, &said) == -EPROTO);
	CHECK(dmp_rdma_get_header(bytes, 7, &said) == -EPROTO);
	for (value = 0; value < 256; value++) {
		bytes[0] = (__u8)value;
		CHECK((dmp_rdma_get_header(bytes, 108, &said) == 0) ==
		      (value >= DMP_RDMA_STREAM && value <= DMP_RDMA_REVOKED));
	}
	header.length = 0;
	dmp_rdma_put_header(&header, bytes);
	CHECK(dmp_rdma_get_header(bytes, 8, &said) == -EPROTO);	/* an empty slot says nothing */
}

static struct dmp_rdma_message sample(__u8 kind)
{
	struct dmp_rdma_message message = { 0 };

	if (kind == DMP_RDMA_ASK) {
		message.number = 0x01020304;
		message.key_bytes = 48;
		message.from = 0x0102030405060708;
		memset(message.key, 0x5a, 48);
	} else if (kind == DMP_RDMA_GRANT) {
		message.number = 7;
		message.result = -EACCES;
		message.rkey = 0xfffffffe;
		message.access = 3;
		message.offset = 0x1122334455667788;
		message.length = 4096;
		message.covered = 2048;
	} else {
		message.rkey = 0x80000001;
		message.offset = kind == DMP_RDMA_SETUP ? 64 : 0;
	}
	return message;
}

static void test_messages_come_back_and_nothing_shorter_does(void)
{
	__u8 bytes[DMP_RDMA_MESSAGE_BYTES_MAX + 1];
	struct dmp_rdma_message message, said;
	__u32 count, length;
	__u8 kind;

	for (kind = DMP_RDMA_SETUP; kind <= DMP_RDMA_REVOKED; kind++) {
		message = sample(kind);
		memset(bytes, 0xff, sizeof(bytes));
		count = dmp_rdma_put_message(kind, &message, bytes);
		CHECK(count && count <= DMP_RDMA_MESSAGE_BYTES_MAX && bytes[count] == 0xff);
		CHECK(!dmp_rdma_get_message(kind, bytes, count, &said));
		CHECK(!memcmp(&said, &message, sizeof(said)));
		for (length = 0; length <= sizeof(bytes); length++)
			CHECK(length == count ||
			      dmp_rdma_get_message(kind, bytes, length, &said) == -EPROTO);
	}
	CHECK(!dmp_rdma_put_message(DMP_RDMA_STREAM, &message, bytes));
	CHECK(dmp_rdma_get_message(DMP_RDMA_STREAM, bytes, 8, &said) == -EPROTO);
}

static void test_messages_that_lie_are_refused(void)
{
	struct dmp_rdma_message message = sample(DMP_RDMA_GRANT), said;
	__u8 bytes[DMP_RDMA_MESSAGE_BYTES_MAX];
	__u32 count;

	message.covered = ~0ULL;
	count = dmp_rdma_put_message(DMP_RDMA_GRANT, &message, bytes);
	CHECK(dmp_rdma_get_message(DMP_RDMA_GRANT, bytes, count, &said) == -EPROTO);
	message = sample(DMP_RDMA_GRANT);
	message.result = 1;
	count = dmp_rdma_put_message(DMP_RDMA_GRANT, &message, bytes);
	CHECK(dmp_rdma_get_message(DMP_RDMA_GRANT, bytes, count, &said) == -EPROTO);
	message = sample(DMP_RDMA_ASK);
	message.key_bytes = DMP_KEY_BYTES + 1;
	count = dmp_rdma_put_message(DMP_RDMA_ASK, &message, bytes);
	CHECK(dmp_rdma_get_message(DMP_RDMA_ASK, bytes, count, &said) == -EPROTO);
}

/* One byte at least, and none behind the end, whatever was asked for. */
static void test_a_grant_covers_what_was_asked_and_no_more(void)
{
	struct dmp_rdma_message grant = { .length = 10 };
	__u64 from;

	for (from = 0; from < 13; from++)
		for (grant.covered = 0; grant.covered < 13; grant.covered++)
			CHECK((dmp_rdma_check_grant(&grant, from) == 0) ==
			      (grant.covered >= 1 && from + grant.covered <= 10));
	grant.length = ~0ULL;
	grant.covered = ~0ULL;
	CHECK(!dmp_rdma_check_grant(&grant, 0));
	CHECK(dmp_rdma_check_grant(&grant, 1) == -EPROTO);
	CHECK(dmp_rdma_check_grant(&grant, ~0ULL) == -EPROTO);
}

/* No word mints slots, also where the count wraps. */
static void test_a_word_repays_what_was_sent_and_no_more(void)
{
	static const __u32 starts[] = { 0, 5, 0x7ffffffe, 0xfffffffc };
	__u32 start, sent, word, repaid;
	unsigned int which;

	for (which = 0; which < 4; which++) {
		start = starts[which];
		for (sent = 0; sent < 9; sent++) {
			for (word = 0; word < 20; word++) {
				repaid = start;
				CHECK((dmp_rdma_get_word((__u32)(start + word - 5), start + sent,
							 &repaid) == 0) ==
				      (word >= 5 && word - 5 <= sent));
				CHECK(repaid - start <= sent);
			}
		}
	}
	repaid = 0;
	CHECK(dmp_rdma_get_word(1ULL << 32, 4, &repaid) == -EPROTO && repaid == 0);
}

/*
 * On a device of any pace, what is under way comes back within the time that a revocation
 * gives, unless one piece alone takes longer; and on a fast one it is all that may be.
 */
static void test_what_is_under_way_comes_back_in_time(void)
{
	__u64 piece_ns, took_ns;
	__u32 bytes, round;

	for (piece_ns = 1000; piece_ns < 10000000000ull; piece_ns += piece_ns / 7) {
		bytes = DMP_RDMA_PIECE_BYTES;
		for (round = 0; round < 16; round++) {
			took_ns = piece_ns * (bytes / DMP_RDMA_PIECE_BYTES);
			CHECK(took_ns < DMP_RDMA_LET_GO_MS * 1000000ull / 2 ||
			      bytes == DMP_RDMA_PIECE_BYTES);
			bytes = dmp_rdma_pace(bytes, took_ns);
			CHECK(bytes >= DMP_RDMA_PIECE_BYTES && bytes <= DMP_RDMA_MOVING_BYTES);
		}
		CHECK(piece_ns > 10000000 || bytes == DMP_RDMA_MOVING_BYTES);
	}
	/* One that slows down is followed. */
	bytes = dmp_rdma_pace(DMP_RDMA_MOVING_BYTES, 400000000);
	CHECK(dmp_rdma_pace(bytes, 200000000) == DMP_RDMA_PIECE_BYTES);
}

int main(void)
{
	test_hello_comes_back();
	test_hello_says_nothing_else();
	test_header_is_exact();
	test_messages_come_back_and_nothing_shorter_does();
	test_messages_that_lie_are_refused();
	test_a_grant_covers_what_was_asked_and_no_more();
	test_a_word_repays_what_was_sent_and_no_more();
	test_what_is_under_way_comes_back_in_time();
	return 0;
}
