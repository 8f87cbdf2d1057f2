// SPDX-License-Identifier: MIT
/* test_immediate.c - the immediate codec (law L7: a value that does not fit is refused) */
#include "check.h"
#include "immediate.h"

static void test_every_field_value_survives_the_round_trip(void)
{
	__u32 immediate, transfer, chunk, value;

	for (value = 0; value < DMP_IMMEDIATE_TRANSFERS_MAX; value++) {
		CHECK(dmp_immediate_encode(value, value ^ 0x5a5a, &immediate) == 0);
		dmp_immediate_decode(immediate, &transfer, &chunk);
		CHECK(transfer == value && chunk == (value ^ 0x5a5a));
	}
}

static void test_every_immediate_decodes_to_fields_that_encode_it(void)
{
	__u32 transfer, chunk, back;
	__u64 value;

	for (value = 0; value <= 0xffffffffULL; value += 65521) {
		dmp_immediate_decode((__u32)value, &transfer, &chunk);
		CHECK(dmp_immediate_encode(transfer, chunk, &back) == 0);
		CHECK(back == (__u32)value);
	}
}

static void test_a_value_that_does_not_fit_is_refused_not_masked(void)
{
	static const __u32 wide[] = { 1U << 16, (1U << 16) + 7, 1U << 31, 0xffffffffU };
	__u32 immediate = 0x12345678;
	unsigned int i;

	for (i = 0; i < sizeof(wide) / sizeof(wide[0]); i++) {
		CHECK(dmp_immediate_encode(wide[i], 0, &immediate) == -EOVERFLOW);
		CHECK(dmp_immediate_encode(0, wide[i], &immediate) == -EOVERFLOW);
	}
	CHECK(immediate == 0x12345678);
}

static void test_a_transfer_that_cannot_be_numbered_is_refused_at_set_up(void)
{
	CHECK(dmp_immediate_fits(0) == -EINVAL);
	CHECK(dmp_immediate_fits(1) == 0);
	CHECK(dmp_immediate_fits(DMP_IMMEDIATE_CHUNKS_MAX) == 0);
	CHECK(dmp_immediate_fits(DMP_IMMEDIATE_CHUNKS_MAX + 1ULL) == -EOVERFLOW);
	CHECK(dmp_immediate_fits(1ULL << 40) == -EOVERFLOW);
}

int main(void)
{
	test_every_field_value_survives_the_round_trip();
	test_every_immediate_decodes_to_fields_that_encode_it();
	test_a_value_that_does_not_fit_is_refused_not_masked();
	test_a_transfer_that_cannot_be_numbered_is_refused_at_set_up();
	return 0;
}
