// SPDX-License-Identifier: MIT
/* channel.c - the life of a channel: created, mapped, asked, destroyed */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lifetime.h"
#include "network.h"
#include "topology.h"

#define SPIN_US_MAX 1000000u

/* Whoever is waited for in the network runs on no CPU of ours. */
static const struct dmp_spin nobody_near = { .cpu = -1 };

static int check_create(const struct dmp_channel_create *create)
{
	__u32 completion_slots = create->completion_slots;
	cpu_set_t cpus;

	if (create->slots == 0 || create->slots > DMP_SLOTS_MAX ||
	    create->slots & (create->slots - 1))
		return -EINVAL;
	if (completion_slots != 0 &&
	    (completion_slots < create->slots || completion_slots > DMP_SLOTS_MAX ||
	     completion_slots & (completion_slots - 1)))
		return -EINVAL;
	if (create->workers > DMP_WORKERS_MAX)
		return -EINVAL;
	if (create->flags & DMP_CHANNEL_SPIN ? create->spin_us > SPIN_US_MAX :
					       create->spin_us != 0)
		return -EINVAL;
	if ((create->flags & DMP_CHANNEL_BIND_CPU) && (create->flags & DMP_CHANNEL_BIND_NODE))
		return -EINVAL;
	if (!(create->flags & DMP_CHANNEL_EVENTFD) && create->eventfd != 0)
		return -EINVAL;
	if (!(create->flags & DMP_CHANNEL_BIND_CPU) && create->cpu != 0)
		return -EINVAL;
	if (create->flags & DMP_CHANNEL_BIND_NODE)
		return dmp_topology_node_cpus(create->node, &cpus);
	if (create->node != 0)
		return -EINVAL;
	if (!(create->flags & DMP_CHANNEL_BIND_CPU))
		return 0;
	if (create->cpu < 0 || create->cpu >= CPU_SETSIZE ||
	    sched_getaffinity(0, sizeof(cpus), &cpus) != 0 || !CPU_ISSET(create->cpu, &cpus))
		return -EINVAL;
	return 0;
}

/*
 * Our own duplicate, taken before it is looked at, so that it is what we saw. Its status
 * flags are the caller's too and stay as they are: who reads it may want to block.
 */
static int take_eventfd(int fd)
{
	int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	char path[64], target[64];
	ssize_t length;

	if (copy < 0)
		return errno == EBADF ? -EINVAL : -errno;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", copy);
	length = readlink(path, target, sizeof(target) - 1);
	target[length < 0 ? 0 : length] = '\0';
	if (strcmp(target, "anon_inode:[eventfd]") == 0)
		return copy;
	close(copy);
	return -EINVAL;
}

static size_t round_up(size_t value, size_t unit)
{
	return (value + unit - 1) / unit * unit;
}

/* Rings, machine and what goes with each operation. On failure what it made is freed. */
static int allocate(struct dmp_embedded_channel *channel, struct dmp_channel_create *create)
{
	__u32 completion_slots =
		create->completion_slots ? create->completion_slots :
		create->slots < DMP_SLOTS_MAX ? create->slots * 2 : create->slots;
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	int error = -ENOMEM;

	create->submissions_offset = round_up(sizeof(struct dmp_ring_control), page);
	create->completions_offset = create->submissions_offset +
		round_up(create->slots * sizeof(struct dmp_submission), page);
	create->map_bytes = create->completions_offset +
		round_up(completion_slots * sizeof(struct dmp_completion), page);
	channel->rings_bytes = create->map_bytes;
	channel->rings = mmap(NULL, channel->rings_bytes, PROT_READ | PROT_WRITE,
			      MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (channel->rings == MAP_FAILED)
		return -ENOMEM;
	channel->control = channel->rings;
	channel->machine_memory = calloc(1, dmp_channel_bytes(completion_slots));
	channel->holds = calloc(completion_slots, sizeof(*channel->holds));
	if (!channel->machine_memory || !channel->holds)
		goto err_free;
#if DMP_OBSERVE
	channel->latency = calloc(1, sizeof(*channel->latency));
	if (!channel->latency)
		goto err_free;
#endif
	error = dmp_channel_init(&channel->machine, channel->machine_memory, channel->control,
				 (void *)((char *)channel->rings + create->submissions_offset),
				 create->slots,
				 (void *)((char *)channel->rings + create->completions_offset),
				 completion_slots, channel->latency);
	if (error)
		goto err_free;
	return 0;

err_free:
	free(channel->latency);
	free(channel->holds);
	free(channel->machine_memory);
	munmap(channel->rings, channel->rings_bytes);
	return error;
}

static void free_memory(struct dmp_embedded_channel *channel, bool rings)
{
	if (channel->eventfd >= 0)
		close(channel->eventfd);
	pthread_mutex_destroy(&channel->lock);
	free(channel->latency);
	free(channel->holds);
	free(channel->machine_memory);
	if (rings)
		munmap(channel->rings, channel->rings_bytes);
	free(channel);
}

static int publish(struct dmp_plane *plane, struct dmp_embedded_channel *channel)
{
	int error = -ENOSPC;

	channel->object.type = DMP_OBJECT_CHANNEL;
	pthread_mutex_lock(&plane->lock);
	if (plane->channels < DMP_CHANNELS_MAX)
		error = dmp_table_insert(&plane->table, &channel->object);
	if (!error) {
		dmp_lifetime_move(&channel->object.state, DMP_STATE_LIVE);
		plane->channels++;
		dmp_board_add(&plane->board->statistics.channels, 1);
	}
	pthread_mutex_unlock(&plane->lock);
	return error;
}

/* Held for some hundred nanoseconds at a time: worth a few spins before sleeping. */
static void init_lock(struct dmp_embedded_channel *channel)
{
	pthread_mutexattr_t attributes;

	pthread_mutexattr_init(&attributes);
#ifdef __GLIBC__
	pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ADAPTIVE_NP);
#endif
	pthread_mutex_init(&channel->lock, &attributes);
	pthread_mutexattr_destroy(&attributes);
}

int dmp_channel_create(struct dmp_plane *plane, void *argument)
{
	struct dmp_channel_create *create = argument;
	bool fixed = create->flags & DMP_CHANNEL_SPIN;
	struct dmp_embedded_channel *channel;
	int error = check_create(create);

	if (error)
		return error;
	if (posix_memalign((void **)&channel, 128, sizeof(*channel)) != 0)
		return -ENOMEM;
	memset(channel, 0, sizeof(*channel));
	channel->plane = plane;
	channel->eventfd = -1;
	channel->cpu = create->flags & DMP_CHANNEL_BIND_CPU ? create->cpu : -1;
	channel->node = create->flags & DMP_CHANNEL_BIND_NODE ? create->node : -1;
	channel->workers = create->workers ? create->workers : 1;
	dmp_spin_init(&channel->worker_spin, &channel->waiter_spin, fixed, create->spin_us * 1000u);
	dmp_spin_init(&channel->waiter_spin, &channel->worker_spin, fixed, create->spin_us * 1000u);
	dmp_spin_init(&channel->network_spin, &nobody_near, fixed, create->spin_us * 1000u);
	error = allocate(channel, create);
	if (error) {
		free(channel);
		return error;
	}
	init_lock(channel);
	if (create->flags & DMP_CHANNEL_EVENTFD) {
		channel->eventfd = take_eventfd(create->eventfd);
		if (channel->eventfd < 0) {
			error = channel->eventfd;
			goto err_memory;
		}
	}
	error = dmp_worker_start(channel);
	if (error)
		goto err_memory;
	error = publish(plane, channel);
	if (error)
		goto err_worker;
	create->channel_id = channel->object.id;
	create->map_offset = channel->object.id * DMP_MAP_UNIT;
	return 0;

err_worker:
	dmp_worker_stop(channel);
err_memory:
	free_memory(channel, true);
	return error;
}

int dmp_channel_map_locked(struct dmp_plane *plane, struct dmp_embedded_channel *channel,
			   size_t length, int protection, void **address)
{
	int error;

	if (length > channel->rings_bytes || !(protection & PROT_WRITE))
		return -EINVAL;
	error = dmp_mapping_add_locked(plane, &channel->object, channel->rings,
				       channel->rings_bytes);
	if (error)
		return error;
	channel->mappings++;
	*address = channel->rings;
	return 0;
}

/* Finds a channel in any state, and enters it. */
static int enter_any(struct dmp_plane *plane, uint32_t id, struct dmp_embedded_channel **found)
{
	struct dmp_object *object;

	pthread_mutex_lock(&plane->lock);
	object = dmp_table_find(&plane->table, id);
	if (object && object->type == DMP_OBJECT_CHANNEL) {
		*found = (struct dmp_embedded_channel *)object;
		__atomic_add_fetch(&(*found)->users, 1, __ATOMIC_SEQ_CST);
	} else {
		object = NULL;
	}
	pthread_mutex_unlock(&plane->lock);
	return object ? 0 : -ENOENT;
}

void dmp_channel_put(struct dmp_embedded_channel *channel)
{
	struct dmp_plane *plane = channel->plane;

	/* After the subtraction the channel may be gone. */
	__atomic_sub_fetch(&channel->users, 1, __ATOMIC_SEQ_CST);
	dmp_plane_released(plane);
}

bool dmp_channel_has_unread(struct dmp_embedded_channel *channel)
{
	__u32 unread = 0;

	pthread_mutex_lock(&channel->lock);
	if (dmp_channel_unread(&channel->machine, &unread) != 0)
		unread = 1;	/* broken rings: let the caller enter and be told */
	pthread_mutex_unlock(&channel->lock);
	return unread != 0;
}

int dmp_channel_query(struct dmp_plane *plane, void *argument)
{
	struct dmp_channel_query *query = argument;
	struct dmp_embedded_channel *channel;
	__u32 unread = 0;
	int error = enter_any(plane, query->channel_id, &channel);

	if (error)
		return error;
	pthread_mutex_lock(&channel->lock);
	query->operations = channel->machine.in_flight;
	error = dmp_channel_unread(&channel->machine, &unread);
	pthread_mutex_unlock(&channel->lock);
	pthread_mutex_lock(&plane->lock);
	query->state = channel->object.state;
	query->mappings = channel->mappings;
	pthread_mutex_unlock(&plane->lock);
	query->slots = channel->machine.slots;
	query->completion_slots = channel->machine.completion_slots;
	query->unread = unread;
	query->cpu = channel->cpu;
	query->node = channel->node;
	query->workers = channel->workers;
	dmp_channel_put(channel);
	return error;
}

int dmp_channel_statistics(struct dmp_plane *plane, struct dmp_statistics *statistics)
{
	struct dmp_embedded_channel *channel;
	struct dmp_channel_counters *counters;
	int error = enter_any(plane, statistics->id, &channel);

	if (error)
		return error;
	counters = &channel->machine.counters;
	memset((char *)statistics + 16, 0, sizeof(*statistics) - 16);
	pthread_mutex_lock(&channel->lock);
	statistics->submissions = counters->submissions;
	statistics->completions = counters->completions;
	statistics->errors = counters->errors;
	statistics->cancelled = counters->cancelled;
	statistics->timeouts = counters->timeouts;
	statistics->bytes = counters->bytes;
	statistics->checksum_bytes = counters->checksum_bytes;
	statistics->batches = counters->batches;
	statistics->events = counters->events;
	statistics->wakeups = channel->wakeups;
	pthread_mutex_unlock(&channel->lock);
	pthread_mutex_lock(&plane->lock);
	statistics->mappings = channel->mappings;
	pthread_mutex_unlock(&plane->lock);
	dmp_channel_put(channel);
	return 0;
}

int dmp_histogram_read(struct dmp_plane *plane, void *argument)
{
	struct dmp_histogram *histogram = argument;
	struct dmp_embedded_channel *channel;
	int error;

	if ((histogram->scope != DMP_SCOPE_CHANNEL && histogram->scope != DMP_SCOPE_ENDPOINT) ||
	    histogram->kind > DMP_HISTOGRAM_STALL ||
	    histogram->bucket_first % DMP_HISTOGRAM_WINDOW != 0 ||
	    histogram->bucket_first >= DMP_HISTOGRAM_BUCKETS)
		return -EINVAL;
	memset(&histogram->samples, 0, sizeof(*histogram) - offsetof(struct dmp_histogram, samples));
	if (histogram->scope == DMP_SCOPE_ENDPOINT)
		return dmp_endpoint_histogram(plane, histogram);
	error = enter_any(plane, histogram->id, &channel);
	if (error)
		return error;
	if (histogram->kind == DMP_HISTOGRAM_LATENCY && channel->latency) {
		pthread_mutex_lock(&channel->lock);
		histogram->samples = channel->latency->samples;
		histogram->sum = channel->latency->sum;
		histogram->maximum = channel->latency->maximum;
		memcpy(histogram->counts, &channel->latency->counts[histogram->bucket_first],
		       sizeof(histogram->counts));
		pthread_mutex_unlock(&channel->lock);
	}
	dmp_channel_put(channel);
	return 0;
}

/* Waits until no call is inside. plane->lock held; waiters have been sent home. */
static void wait_for_users_locked(struct dmp_plane *plane, struct dmp_embedded_channel *channel,
				  uint32_t mine)
{
	__atomic_add_fetch(&plane->drainers, 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&channel->users, __ATOMIC_SEQ_CST) > mine)
		dmp_plane_wait_released_locked(plane, 0);
	__atomic_sub_fetch(&plane->drainers, 1, __ATOMIC_SEQ_CST);
}

static void send_waiters_home(struct dmp_embedded_channel *channel)
{
	pthread_mutex_lock(&channel->lock);
	__atomic_store_n(&channel->closing, true, __ATOMIC_RELAXED);
	__atomic_add_fetch(&channel->done_sequence, 1, __ATOMIC_RELEASE);
	pthread_mutex_unlock(&channel->lock);
	dmp_futex_wake_all(&channel->done_sequence);
}

/* Its endpoints lose their connections; the worker sees to it. */
static void end_network(struct dmp_embedded_channel *channel)
{
	pthread_mutex_lock(&channel->lock);
	if (channel->network) {
		channel->network->ending = true;
		dmp_channel_kick(channel, dmp_channel_claim_wake_locked(channel));
	}
	pthread_mutex_unlock(&channel->lock);
}

int dmp_channel_destroy(struct dmp_plane *plane, void *argument)
{
	struct dmp_destroy *destroy = argument;
	struct dmp_embedded_channel *channel;
	bool drain = destroy->flags & DMP_DESTROY_DRAIN;
	int error;

	if (!drain && destroy->deadline_ns != 0)
		return -EINVAL;
	error = enter_any(plane, destroy->id, &channel);
	if (error)
		return error;
	pthread_mutex_lock(&plane->lock);
	if (channel->object.state == DMP_STATE_LIVE)
		dmp_lifetime_move(&channel->object.state, DMP_STATE_DRAINING);
	pthread_mutex_unlock(&plane->lock);
	if (drain) {
		error = dmp_channel_drain(channel, destroy->deadline_ns);
		if (error) {
			dmp_channel_put(channel);
			return error;
		}
	} else {
		dmp_channel_cancel_everything(channel);
	}
	pthread_mutex_lock(&plane->lock);
	if (channel->object.state == DMP_STATE_DEAD) {	/* another destroyer was first */
		pthread_mutex_unlock(&plane->lock);
		dmp_channel_put(channel);
		return -ENOENT;
	}
	dmp_lifetime_move(&channel->object.state, DMP_STATE_DEAD);
	dmp_table_remove(&plane->table, &channel->object);
	dmp_endpoint_forget_channel_locked(plane, channel);
	send_waiters_home(channel);
	end_network(channel);
	wait_for_users_locked(plane, channel, 1);
	pthread_mutex_unlock(&plane->lock);
	dmp_channel_free(plane, channel);
	return 0;
}

void dmp_channel_free(struct dmp_plane *plane, struct dmp_embedded_channel *channel)
{
	struct dmp_mapping *mapping;

	if (channel->object.state != DMP_STATE_DEAD) {	/* the plane closes */
		dmp_channel_cancel_everything(channel);
		pthread_mutex_lock(&plane->lock);
		dmp_endpoint_forget_channel_locked(plane, channel);
		dmp_table_remove(&plane->table, &channel->object);
		pthread_mutex_unlock(&plane->lock);
	}
	end_network(channel);
	dmp_worker_stop(channel);
	dmp_network_free(channel);
	pthread_mutex_lock(&plane->lock);
	plane->channels--;
	dmp_board_add(&plane->board->statistics.channels, (__u64)-1);
	mapping = dmp_mapping_find_locked(plane, channel->rings);
	if (mapping)
		mapping->object = NULL;	/* the rings are the mapping's from here on */
	/* Until here a peer may have been touching; who looks for that follows the endpoint to us. */
	dmp_endpoint_leave_channel_locked(plane, channel);
	free_memory(channel, mapping == NULL);
	pthread_mutex_unlock(&plane->lock);
}
