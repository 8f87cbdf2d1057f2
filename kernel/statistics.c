// SPDX-License-Identifier: GPL-2.0
/* statistics.c - counters of a plane and of a channel, and a channel's histograms */
#include "endpoint_kernel.h"

static void add_counters(struct dmp_statistics *statistics,
			 const struct dmp_channel_counters *counters)
{
	statistics->submissions += counters->submissions;
	statistics->completions += counters->completions;
	statistics->errors += counters->errors;
	statistics->cancelled += counters->cancelled;
	statistics->timeouts += counters->timeouts;
	statistics->bytes += counters->bytes;
	statistics->checksum_bytes += counters->checksum_bytes;
	statistics->batches += counters->batches;
	statistics->events += counters->events;
}

void dmp_channel_count(struct dmp_kernel_channel *channel, struct dmp_statistics *statistics)
{
	mutex_lock(&channel->lock);
	add_counters(statistics, &channel->machine.counters);
	statistics->wakeups += channel->wakeups;
	mutex_unlock(&channel->lock);
}

void dmp_plane_count_locked(struct dmp_plane *plane, struct dmp_statistics *statistics)
{
	struct dmp_object *object;
	unsigned long id;

	lockdep_assert_held(&plane->lock);
	add_counters(statistics, &plane->retired);
	statistics->wakeups += plane->retired_wakeups;
	xa_for_each_marked(&plane->objects, id, object, DMP_MARK_CHANNEL)
		dmp_channel_count(container_of(object, struct dmp_kernel_channel, object),
				  statistics);
	statistics->buffers = plane->buffers;
	statistics->buffer_bytes = plane->buffer_bytes;
	statistics->channels = plane->channels;
	statistics->mappings = atomic_read(&plane->mappings);
	statistics->endpoints = plane->endpoints;
	statistics->regions = plane->regions;
}

/* A channel in any state, for as long as plane->lock is held. */
static struct dmp_kernel_channel *find_channel_locked(struct dmp_plane *plane, u32 id)
{
	struct dmp_object *object = dmp_plane_find_locked(plane, id, DMP_OBJECT_CHANNEL);

	lockdep_assert_held(&plane->lock);
	return object ? container_of(object, struct dmp_kernel_channel, object) : NULL;
}

static int count_channel(struct dmp_plane *plane, struct dmp_statistics *statistics)
{
	struct dmp_kernel_channel *channel;

	down_read(&plane->lock);
	channel = find_channel_locked(plane, statistics->id);
	if (channel) {
		dmp_channel_count(channel, statistics);
		statistics->mappings = atomic_read(&channel->mappings->alive);
	}
	up_read(&plane->lock);
	return channel ? 0 : -ENOENT;
}

int dmp_statistics_read(struct dmp_plane *plane, void *argument)
{
	struct dmp_statistics *statistics = argument;

	memset_after(statistics, 0, id);
	switch (statistics->scope) {
	case DMP_SCOPE_PLANE:
		if (statistics->id != 0)
			return -EINVAL;
		down_read(&plane->lock);
		dmp_plane_count_locked(plane, statistics);
		up_read(&plane->lock);
		return 0;
	case DMP_SCOPE_CHANNEL:
		return count_channel(plane, statistics);
	case DMP_SCOPE_ENDPOINT:
		return DMP_KERNEL_RDMA ? dmp_endpoint_statistics(plane, statistics) : -EOPNOTSUPP;
	default:
		return -EINVAL;
	}
}

int dmp_histogram_read(struct dmp_plane *plane, void *argument)
{
	struct dmp_histogram *histogram = argument;
	struct dmp_kernel_channel *channel;

	bool endpoint = histogram->scope == DMP_SCOPE_ENDPOINT;

	if (endpoint && !DMP_KERNEL_RDMA)
		return -EOPNOTSUPP;
	if ((histogram->scope != DMP_SCOPE_CHANNEL && !endpoint) ||
	    histogram->kind > DMP_HISTOGRAM_STALL ||
	    histogram->bucket_first % DMP_HISTOGRAM_WINDOW != 0 ||
	    histogram->bucket_first >= DMP_HISTOGRAM_BUCKETS)
		return -EINVAL;
	memset_after(histogram, 0, bucket_first);
	if (endpoint)
		return dmp_endpoint_histogram(plane, histogram);
	down_read(&plane->lock);
	channel = find_channel_locked(plane, histogram->id);
	if (channel && histogram->kind == DMP_HISTOGRAM_LATENCY) {
		mutex_lock(&channel->lock);
		histogram->samples = channel->latency->samples;
		histogram->sum = channel->latency->sum;
		histogram->maximum = channel->latency->maximum;
		memcpy(histogram->counts, &channel->latency->counts[histogram->bucket_first],
		       sizeof(histogram->counts));
		mutex_unlock(&channel->lock);
	}
	up_read(&plane->lock);
	return channel ? 0 : -ENOENT;
}
