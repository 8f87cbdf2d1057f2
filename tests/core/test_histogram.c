// SPDX-License-Identifier: MIT
/*
 * test_histogram.c
 *
 * Laws: buckets tile the values without gap or overlap; what a quantile reports is within
 * 3 % of the truth; merging two histograms is recording both.
 */
#include "check.h"
#include "histogram.h"

static void test_buckets_tile_the_values(void)
{
	__u32 bucket;

	for (bucket = 0; bucket < DMP_HISTOGRAM_BUCKETS; bucket++) {
		__u64 lower = dmp_histogram_lower(bucket), next = dmp_histogram_lower(bucket + 1);

		CHECK(next > lower);
		CHECK(dmp_histogram_bucket(lower) == bucket);
		CHECK(dmp_histogram_bucket(next - 1) == bucket);
	}
	CHECK(dmp_histogram_bucket(1ull << 40) == DMP_HISTOGRAM_BUCKETS - 1);
	CHECK(dmp_histogram_bucket(~0ull) == DMP_HISTOGRAM_BUCKETS - 1);
}

static void test_relative_error_is_at_most_three_percent(void)
{
	static struct dmp_histogram_counts histogram;
	__u64 value;

	for (value = 1; value < 1ull << 40; value += value / 97 + 1) {
		__u64 found, error;

		__builtin_memset(&histogram, 0, sizeof(histogram));
		dmp_histogram_record(&histogram, value, 3);
		found = dmp_histogram_quantile(&histogram, 500000);
		error = found > value ? found - value : value - found;
		CHECK(error * 100 <= value * 3);
	}
}

static void test_quantiles_are_those_of_the_sorted_values(void)
{
	static struct dmp_histogram_counts histogram;
	__u64 value, found;

	CHECK(dmp_histogram_quantile(&histogram, 500000) == 0);
	for (value = 1; value <= 10000; value++)
		dmp_histogram_record(&histogram, value, 1);
	found = dmp_histogram_quantile(&histogram, 500000);
	CHECK(found > 4850 && found < 5150);
	found = dmp_histogram_quantile(&histogram, 990000);
	CHECK(found > 9600 && found < 10200);
	CHECK(histogram.maximum == 10000 && histogram.samples == 10000);
	CHECK(histogram.sum == 50005000);
}

static void test_merge_is_recording_both(void)
{
	static struct dmp_histogram_counts one, other, both;
	__u64 value;

	for (value = 1; value < 100000; value += 7) {
		dmp_histogram_record(value % 2 ? &one : &other, value, value % 5);
		dmp_histogram_record(&both, value, value % 5);
	}
	dmp_histogram_merge(&one, &other);
	CHECK(__builtin_memcmp(&one, &both, sizeof(both)) == 0);
}

int main(void)
{
	test_buckets_tile_the_values();
	test_relative_error_is_at_most_three_percent();
	test_quantiles_are_those_of_the_sorted_values();
	test_merge_is_recording_both();
	return 0;
}
