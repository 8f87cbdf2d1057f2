// SPDX-License-Identifier: GPL-2.0 OR MIT
/* histogram.c - see histogram.h */
#include "histogram.h"

#define STEPS_SHIFT 5	/* DMP_HISTOGRAM_STEPS == 1 << STEPS_SHIFT */

_Static_assert(DMP_HISTOGRAM_STEPS == 1 << STEPS_SHIFT, "steps and shift must agree");
_Static_assert(DMP_HISTOGRAM_BUCKETS % DMP_HISTOGRAM_WINDOW == 0, "windows must tile the buckets");

__u32 dmp_histogram_bucket(__u64 value)
{
	__u32 top, bucket;

	if (value < DMP_HISTOGRAM_STEPS)
		return (__u32)value;
	top = 63 - (__u32)__builtin_clzll(value);
	bucket = (top - STEPS_SHIFT + 1) * DMP_HISTOGRAM_STEPS +
		 ((__u32)(value >> (top - STEPS_SHIFT)) - DMP_HISTOGRAM_STEPS);
	return bucket < DMP_HISTOGRAM_BUCKETS ? bucket : DMP_HISTOGRAM_BUCKETS - 1;
}

__u64 dmp_histogram_lower(__u32 bucket)
{
	__u32 group = bucket / DMP_HISTOGRAM_STEPS;
	__u64 step = bucket % DMP_HISTOGRAM_STEPS;

	if (group == 0)
		return step;
	return (DMP_HISTOGRAM_STEPS + step) << (group - 1);
}

void dmp_histogram_record(struct dmp_histogram_counts *histogram, __u64 value, __u64 count)
{
	histogram->counts[dmp_histogram_bucket(value)] += count;
	histogram->samples += count;
	histogram->sum += value * count;
	if (count != 0 && value > histogram->maximum)
		histogram->maximum = value;
}

void dmp_histogram_merge(struct dmp_histogram_counts *into, const struct dmp_histogram_counts *from)
{
	__u32 bucket;

	for (bucket = 0; bucket < DMP_HISTOGRAM_BUCKETS; bucket++)
		into->counts[bucket] += from->counts[bucket];
	into->samples += from->samples;
	into->sum += from->sum;
	if (from->maximum > into->maximum)
		into->maximum = from->maximum;
}

__u64 dmp_histogram_quantile(const struct dmp_histogram_counts *histogram, __u32 per_million)
{
	/* Divided first, so that it fits for any number of samples. */
	__u64 wanted = histogram->samples / 1000000 * per_million +
		       (histogram->samples % 1000000 * per_million + 999999) / 1000000;
	__u64 seen = 0;
	__u32 bucket;

	if (wanted == 0)
		wanted = 1;
	for (bucket = 0; bucket < DMP_HISTOGRAM_BUCKETS; bucket++) {
		seen += histogram->counts[bucket];
		if (seen >= wanted) {
			__u64 lower = dmp_histogram_lower(bucket);

			return lower + (dmp_histogram_lower(bucket + 1) - lower) / 2;
		}
	}
	return 0;
}
