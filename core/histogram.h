/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * histogram.h - log-linear histogram of 64-bit values
 *
 * Buckets are those of dmaplane.h: exact below 32, then 32 steps per power of two, so
 * the middle of a bucket is within 1/64 of every value in it (error <= 1.6 %). Values
 * from 2^40 on share the last bucket. Memory is constant, recording is O(1), and two
 * histograms merge by addition. The caller serialises writers.
 */
#ifndef DMP_CORE_HISTOGRAM_H
#define DMP_CORE_HISTOGRAM_H

#include "dmaplane.h"
#include "types.h"

struct dmp_histogram_counts {
	__u64 samples;
	__u64 sum;
	__u64 maximum;
	__u64 counts[DMP_HISTOGRAM_BUCKETS];
};

__u32 dmp_histogram_bucket(__u64 value);

/* First value of bucket @bucket; of bucket DMP_HISTOGRAM_BUCKETS: 2^40. */
__u64 dmp_histogram_lower(__u32 bucket);

/* @count values that are all @value. */
void dmp_histogram_record(struct dmp_histogram_counts *histogram, __u64 value, __u64 count);

void dmp_histogram_merge(struct dmp_histogram_counts *into, const struct dmp_histogram_counts *from);

/* Smallest bucket middle with at least @per_million of all samples at or below it; 0 if empty. */
__u64 dmp_histogram_quantile(const struct dmp_histogram_counts *histogram, __u32 per_million);

#endif /* DMP_CORE_HISTOGRAM_H */
