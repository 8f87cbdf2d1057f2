// SPDX-License-Identifier: MIT
/*
 * test_copy.c - every way to copy and to sum gives the same bytes and the same CRC
 *
 * The reference is a CRC computed bit by bit here, which shares no line with the
 * tables of core/ or the instructions of embedded/. Bytes around the target are
 * watched, so that a loop that stores too much is seen.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checksum.h"
#include "copy.h"
#include "core/check.h"
#include "libdmaplane.h"

#define ROOM	(1u << 20)
#define GUARD	64
#define SWEEP	((size_t)1 << 40)	/* larger than any cache: streaming stores */

static unsigned char *source_room, *target_room, *expected;

static uint32_t crc_bitwise(uint32_t seed, const unsigned char *bytes, size_t length)
{
	uint32_t crc = ~seed;
	int bit;

	while (length--) {
		crc ^= *bytes++;
		for (bit = 0; bit < 8; bit++)
			crc = crc & 1 ? crc >> 1 ^ 0x82f63b78u : crc >> 1;
	}
	return ~crc;
}

static void check_copy(size_t from, size_t to, size_t length, size_t sweep, uint32_t seed)
{
	unsigned char *source = source_room + GUARD + from;
	unsigned char *target = target_room + GUARD + to;
	uint32_t want = crc_bitwise(seed, source, length);

	memset(target - GUARD, 0xa5, length + 2 * GUARD);
	memset(expected, 0xa5, length + 2 * GUARD);
	memcpy(expected + GUARD, source, length);
	dmp_copy_bytes(target, source, length, sweep);
	CHECK(memcmp(target - GUARD, expected, length + 2 * GUARD) == 0);

	memset(target - GUARD, 0xa5, length + 2 * GUARD);
	CHECK(dmp_copy_crc32c(seed, target, source, length, sweep) == want);
	CHECK(memcmp(target - GUARD, expected, length + 2 * GUARD) == 0);

	CHECK(dmp_crc32c(seed, source, length) == want);
	CHECK(dmp_checksum_crc32c(seed, source, length) == want);
}

static void test_every_length_to_two_pages_copies_and_sums(void)
{
	size_t length;

	for (length = 0; length <= 8192 + 130; length++) {
		check_copy(length % 67, length % 71, length, 0, 0);
		check_copy(length % 5, length % 3, length, SWEEP, (uint32_t)length * 2654435761u);
	}
}

static void test_every_alignment_copies_and_sums(void)
{
	size_t from, to;

	for (from = 0; from < 64; from++)
		for (to = 0; to < 64; to++) {
			check_copy(from, to, 131 + from * 7 + to, 0, 1);
			check_copy(from, to, 1500 + from, SWEEP, 0);
		}
}

static void test_large_slices_copy_and_sum(void)
{
	check_copy(0, 0, ROOM - 4 * GUARD, SWEEP, 0);
	check_copy(1, 2, ROOM - 4 * GUARD - 3, SWEEP, 7);
	check_copy(3, 0, ROOM - 4 * GUARD - 3, 0, 0);
}

/* Four pages of 4 KiB are one turn of the loop that takes pages. */
static void test_lengths_around_whole_turns_copy_and_sum(void)
{
	size_t turns, more;

	for (turns = 1; turns <= 3; turns++)
		for (more = 0; more < 200; more += 1 + more / 4) {
			check_copy(more % 61, more % 59, turns * 16384 + more, SWEEP, (uint32_t)more);
			check_copy(0, 0, turns * 16384 - more, SWEEP, ~(uint32_t)more);
			check_copy(more % 7, 0, turns * 16384 + more, 0, 3);
		}
}

static void test_known_sums(void)
{
	static const char digits[] = "123456789";
	unsigned char bytes[32];
	int index;

	CHECK(dmp_crc32c(0, digits, 9) == 0xe3069283u);
	CHECK(dmp_checksum_crc32c(0, digits, 9) == 0xe3069283u);
	CHECK(dmp_crc32c(0, digits, 0) == 0);
	/* RFC 3720, appendix B.4 */
	memset(bytes, 0, sizeof(bytes));
	CHECK(dmp_crc32c(0, bytes, 32) == 0x8a9136aau);
	memset(bytes, 0xff, sizeof(bytes));
	CHECK(dmp_crc32c(0, bytes, 32) == 0x62a8ab43u);
	for (index = 0; index < 32; index++)
		bytes[index] = (unsigned char)index;
	CHECK(dmp_crc32c(0, bytes, 32) == 0x46dd794eu);
}

static void test_sums_chain_at_every_cut(void)
{
	uint32_t whole = dmp_crc32c(0, source_room, 1000);
	size_t cut;

	for (cut = 0; cut <= 1000; cut++) {
		uint32_t first = dmp_crc32c(0, source_room, cut);

		CHECK(dmp_crc32c(first, source_room + cut, 1000 - cut) == whole);
	}
}

static void test_groups_of_runs_are_summed_as_one_each(void)
{
	static const uint64_t offsets[] = { 100, 0, 500, 7, 600 };
	static const uint64_t lengths[] = { 50, 100, 33, 0, 400 };
	static const uint64_t starts[] = { 0, 1, 3, 3, 5 };
	const char *bytes = (const char *)source_room;
	uint32_t sums[4], second = dmp_crc32c(0, bytes, 100);

	dmp_crc32c_groups(bytes, offsets, lengths, starts, 4, sums);
	CHECK(sums[0] == dmp_crc32c(0, bytes + 100, 50));
	CHECK(sums[1] == dmp_crc32c(second, bytes + 500, 33));
	CHECK(sums[2] == 0);
	CHECK(sums[3] == dmp_crc32c(0, bytes + 600, 400));
	dmp_crc32c_groups(bytes, offsets, lengths, starts, 0, NULL);
}

static void test_fill_repeats_the_pattern_from_its_phase(void)
{
	static const uint32_t patterns[] = { 0, 0x5a5a5a5au, 0x01020304u, 0xdeadbeefu };
	size_t length, index, which;
	uint64_t phase;

	for (which = 0; which < sizeof(patterns) / sizeof(*patterns); which++)
		for (phase = 0; phase < 5; phase++)
			for (length = 0; length < 1100; length += length < 20 ? 1 : 53) {
				const unsigned char *bytes = (const void *)&patterns[which];

				memset(target_room, 0xa5, length + 2 * GUARD);
				dmp_copy_fill(target_room + GUARD, patterns[which], length, phase);
				for (index = 0; index < length; index++)
					CHECK(target_room[GUARD + index] ==
					      bytes[(phase + index) % 4]);
				CHECK(target_room[GUARD - 1] == 0xa5);
				CHECK(target_room[GUARD + length] == 0xa5);
			}
}

static void test_prefetch_of_any_address_is_harmless(void)
{
	dmp_copy_prefetch(NULL, 0);
	dmp_copy_prefetch((const void *)64, SIZE_MAX);
	dmp_copy_prefetch(source_room, ROOM);
}

static void run_all(void)
{
	printf("%s\n", dmp_copy_describe());
	test_known_sums();
	test_every_length_to_two_pages_copies_and_sums();
	test_every_alignment_copies_and_sums();
	test_large_slices_copy_and_sum();
	test_lengths_around_whole_turns_copy_and_sum();
	test_sums_chain_at_every_cut();
	test_groups_of_runs_are_summed_as_one_each();
	test_fill_repeats_the_pattern_from_its_phase();
	test_prefetch_of_any_address_is_harmless();
}

int main(void)
{
	uint64_t state = 88172645463325252u;
	size_t index;

	source_room = malloc(ROOM);
	target_room = malloc(ROOM);
	expected = malloc(ROOM);
	CHECK(source_room && target_room && expected);
	for (index = 0; index < ROOM; index++) {
		state ^= state << 13, state ^= state >> 7, state ^= state << 17;
		source_room[index] = (unsigned char)state;
	}
	run_all();	/* before dmp_copy_init(): portable */
	dmp_copy_init();
	dmp_copy_init();
	run_all();
	for (index = 0; dmp_copy_weaken(); index++) {
		CHECK(index < 8);
		run_all();
	}
	free(source_room), free(target_room), free(expected);
	return 0;
}
