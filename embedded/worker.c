// SPDX-License-Identifier: MIT
/*
 * worker.c - the threads of a channel: take operations, move bytes, complete
 *
 * Thread 0 is the executor, the others only share its large copies: bytes are cut into
 * slices, and each thread takes the next one. Who executes, the worker or a caller in its
 * place, is executor.c's.
 *
 * Between two slices the executor looks at
 * the operation's cancel mark and deadline, and lets queued operations expire, so a
 * long copy delays nothing by more than one slice.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <signal.h>

#include "copy.h"
#include "crowd.h"
#include "network.h"
#include "topology.h"
#include "traffic.h"

#define BATCH 64u
#define SLICE_BYTES (1u << 20)
#define SHARE_BYTES (8u << 20)		/* from here on helpers are worth waking */

struct outcome {
	int32_t result;
	uint32_t checksum;
	uint64_t length;
};

static uint64_t observed_now(void)
{
	return DMP_OBSERVE ? dmp_now_ns() : 0;
}

/* May the operation go on? 0, -ECANCELED or -ETIMEDOUT. */
static int32_t verdict(const struct dmp_operation *operation)
{
	if (dmp_operation_cancelled(operation))
		return -ECANCELED;
	if (operation->submission.deadline_ns != 0 &&
	    dmp_now_ns() >= operation->submission.deadline_ns)
		return -ETIMEDOUT;
	return 0;
}

/* Lets what is queued behind a long operation meet its deadlines. */
static void expire(struct dmp_embedded_channel *channel)
{
	bool wake = false;
	__u64 deadline_ns;

	pthread_mutex_lock(&channel->lock);
	if (dmp_channel_deadline(&channel->machine, &deadline_ns)) {
		dmp_channel_expire(&channel->machine, dmp_now_ns());
		wake = dmp_channel_tell_locked(channel);
	}
	pthread_mutex_unlock(&channel->lock);
	if (wake)
		dmp_futex_wake_all(&channel->done_sequence);
}

/* Takes the next slice of a shared copy; false when there is none left. */
static bool share_slice(struct dmp_share *share)
{
	uint64_t offset, length;

	if (__atomic_load_n(&share->stop, __ATOMIC_RELAXED))
		return false;
	offset = __atomic_fetch_add(&share->next, SLICE_BYTES, __ATOMIC_RELAXED);
	if (offset >= share->length)
		return false;
	length = share->length - offset < SLICE_BYTES ? share->length - offset : SLICE_BYTES;
	dmp_copy_bytes(share->target + offset, share->source + offset, length, share->length);
	return true;
}

/* A copy by all threads of the channel. The bytes reported are a lower bound if it stops. */
static void run_shared(struct dmp_embedded_channel *channel, struct dmp_operation *operation,
		       char *target, const char *source, struct outcome *outcome)
{
	struct dmp_share *share = &channel->share;
	uint32_t helpers = channel->workers - 1, finished;

	share->target = target;
	share->source = source;
	share->length = operation->submission.length_bytes;
	share->finished = 0;
	share->stop = 0;
	__atomic_store_n(&share->next, 0, __ATOMIC_RELAXED);
	/* Pairs with the load in help: the fields above are set. */
	__atomic_add_fetch(&share->sequence, 1, __ATOMIC_RELEASE);
	dmp_futex_wake_all(&share->sequence);
	while (share_slice(share)) {
		outcome->result = verdict(operation);
		if (outcome->result != 0)
			__atomic_store_n(&share->stop, 1, __ATOMIC_RELAXED);
		expire(channel);
	}
	/* L5: the fence of a cancelled copy is that every helper has put down its slice. */
	while ((finished = __atomic_load_n(&share->finished, __ATOMIC_ACQUIRE)) != helpers)
		dmp_futex_wait(&share->finished, finished, 0);
	outcome->length = share->length;
	if (outcome->result != 0 && share->next < share->length)
		outcome->length = share->next;
	else
		outcome->result = 0;
}

static void *help(void *argument)
{
	struct dmp_embedded_channel *channel = argument;
	struct dmp_share *share = &channel->share;
	uint32_t seen = 0, now;

	for (;;) {
		/* Pairs with the add in run_shared and in dmp_worker_stop. */
		while ((now = __atomic_load_n(&share->sequence, __ATOMIC_ACQUIRE)) == seen)
			dmp_futex_wait(&share->sequence, seen, 0);
		seen = now;
		if (__atomic_load_n(&share->stop, __ATOMIC_RELAXED) == 2)
			return NULL;
		while (share_slice(share))
			continue;
		__atomic_add_fetch(&share->finished, 1, __ATOMIC_RELEASE);
		dmp_futex_wake_all(&share->finished);
	}
}

static void run_slice(const struct dmp_submission *submission, char *target, const char *source,
		      uint64_t offset, uint64_t length, uint64_t sweep, struct outcome *outcome)
{
	if (submission->operation == DMP_OP_FILL)
		dmp_copy_fill(target + offset, submission->immediate, length, offset);
	else if (submission->flags & (DMP_SUBMIT_CHECKSUM | DMP_SUBMIT_VERIFY))
		outcome->checksum = dmp_copy_crc32c(outcome->checksum, target + offset,
						    source + offset, length,
						    sweep);
	else
		dmp_copy_bytes(target + offset, source + offset, length, sweep);
}

static void run_bytes(struct dmp_embedded_channel *channel, struct dmp_operation *operation,
		      const struct dmp_holds *holds, struct outcome *outcome)
{
	const struct dmp_submission *submission = &operation->submission;
	char *target = (char *)holds->target->memory.address + submission->target_offset;
	const char *source = NULL;
	uint64_t left = submission->length_bytes;
	/*
	 * Small copies into a buffer that does not fit the cache are a sweep over it: nobody
	 * will find their bytes in the cache anyway, so they stream like one large copy.
	 */
	uint64_t sweep = holds->target->memory.length;

	if (holds->source)
		source = (const char *)holds->source->memory.address + submission->source_offset;
	if (channel->workers > 1 && left >= SHARE_BYTES && submission->operation == DMP_OP_COPY &&
	    !(submission->flags & (DMP_SUBMIT_CHECKSUM | DMP_SUBMIT_VERIFY))) {
		run_shared(channel, operation, target, source, outcome);
		return;
	}
	while (left != 0) {
		uint64_t length = left < SLICE_BYTES ? left : SLICE_BYTES;

		run_slice(submission, target, source, outcome->length, length, sweep, outcome);
		outcome->length += length;
		left -= length;
		if (left != 0) {
			expire(channel);
			outcome->result = verdict(operation);
			if (outcome->result != 0)
				return;
		}
	}
	if (submission->flags & DMP_SUBMIT_VERIFY && outcome->checksum != submission->checksum)
		outcome->result = -EBADMSG;
}

static void run(struct dmp_embedded_channel *channel, uint32_t index, struct outcome *outcome)
{
	struct dmp_operation *operation = &channel->machine.operations[index];

	outcome->length = 0;
	outcome->checksum = 0;
	outcome->result = operation->error;
	if (outcome->result == 0)
		outcome->result = verdict(operation);
	if (outcome->result == 0 && operation->submission.length_bytes != 0)
		run_bytes(channel, operation, &channel->holds[index], outcome);
}

static void finish_locked(struct dmp_embedded_channel *channel, const uint32_t *indices,
			  const struct outcome *outcomes, uint32_t count)
{
	uint64_t now_ns = observed_now();
	uint32_t number;

	for (number = 0; number < count; number++) {
		const struct dmp_outcome outcome = {
			.length_bytes = outcomes[number].length,
			.result = outcomes[number].result,
			.checksum = outcomes[number].checksum,
			.path = outcomes[number].length != 0 ? DMP_PATH_LOCAL : DMP_PATH_NONE,
		};

		dmp_channel_finish(&channel->machine, indices[number], &outcome, now_ns);
	}
}

struct kick {
	const uint32_t *sequence;
	uint32_t seen;
};

static bool kicked(const void *context)
{
	const struct kick *kick = context;

	/* Pairs with the add in dmp_channel_kick. */
	return __atomic_load_n(kick->sequence, __ATOMIC_ACQUIRE) != kick->seen;
}

/* Sleeps until there is something to look at. Lock held, given up, and held again. */
static void rest_locked(struct dmp_embedded_channel *channel)
{
	uint32_t seen = __atomic_load_n(&channel->work_sequence, __ATOMIC_RELAXED);
	struct kick kick = { &channel->work_sequence, seen };
	__u64 deadline_ns = 0, asleep_ns;

	if (channel->network && !channel->stop) {
		dmp_executor_rest_locked(channel);
		return;
	}
	pthread_mutex_unlock(&channel->lock);
	/* Drainers of buffers count holders: the last operations have let go. */
	dmp_plane_released(channel->plane);
	if (dmp_spin_until(&channel->worker_spin, kicked, &kick, 0)) {
		pthread_mutex_lock(&channel->lock);
		return;
	}
	pthread_mutex_lock(&channel->lock);
	/* The kick comes after the lock: what was queued meanwhile may not have changed it yet. */
	if (__atomic_load_n(&channel->work_sequence, __ATOMIC_RELAXED) != seen || channel->stop ||
	    (channel->machine.queued != 0 && !channel->executing))
		return;
	dmp_channel_deadline(&channel->machine, &deadline_ns);
	channel->worker_sleeps = true;
	pthread_mutex_unlock(&channel->lock);
	asleep_ns = dmp_now_ns();
	dmp_futex_wait(&channel->work_sequence, seen, deadline_ns);
	/* Work came so soon that spinning would have caught it: spin longer next time. */
	if (dmp_now_ns() - asleep_ns < DMP_SPIN_MAX_NS)
		dmp_spin_learn(&channel->worker_spin, true);
	pthread_mutex_lock(&channel->lock);
	channel->worker_sleeps = false;
	channel->worker_wakes = false;
}

static void prefetch(const struct dmp_embedded_channel *channel, uint32_t index)
{
	const struct dmp_submission *submission = &channel->machine.operations[index].submission;
	const struct dmp_buffer *source = channel->holds[index].source;

	if (source)
		dmp_copy_prefetch((char *)source->memory.address + submission->source_offset,
				  submission->length_bytes);
}

/* Moves the indices of transfers behind those of local operations; how many are local. */
static uint32_t part_transfers(const struct dmp_embedded_channel *channel, uint32_t *indices,
			       uint32_t count, bool *checksums)
{
	uint32_t transfers[BATCH];
	uint32_t local = 0, away = 0, number;

	*checksums = false;
	for (number = 0; number < count; number++) {
		uint32_t index = indices[number];

		if (channel->holds[index].endpoint) {
			transfers[away++] = index;
			*checksums |= dmp_traffic_wants_checksum(channel, index);
		} else {
			indices[local++] = index;
		}
	}
	for (number = 0; number < away; number++)
		indices[local + number] = transfers[number];
	return local;
}

/* Hands transfers to their endpoints, in order. Lock held, given up to make checksums. */
static void start_transfers_locked(struct dmp_embedded_channel *channel, const uint32_t *indices,
				   uint32_t count, bool checksums, uint64_t now_ns)
{
	uint32_t number;

	if (checksums) {
		pthread_mutex_unlock(&channel->lock);
		for (number = 0; number < count; number++)
			if (dmp_traffic_wants_checksum(channel, indices[number]))
				dmp_traffic_checksum(channel, indices[number]);
		pthread_mutex_lock(&channel->lock);
	}
	for (number = 0; number < count; number++)
		dmp_traffic_start_locked(channel->holds[indices[number]].endpoint,
					 indices[number], now_ns);
}

uint32_t dmp_executor_round_locked(struct dmp_embedded_channel *channel, bool *woke)
{
	struct outcome outcomes[BATCH];
	uint32_t indices[BATCH];
	uint32_t count, local, number;
	bool checksums = false, more = false;
	uint64_t now_ns = channel->network ? dmp_now_ns() : 0;
	__u64 deadline_ns;

	channel->news = false;
	dmp_channel_signal_due_locked(channel, now_ns);
	if (dmp_channel_deadline(&channel->machine, &deadline_ns))
		dmp_channel_expire(&channel->machine, dmp_now_ns());
	count = dmp_channel_take(&channel->machine, indices, BATCH, DMP_BATCH_BYTES);
	local = count;
	if (channel->network) {
		local = part_transfers(channel, indices, count, &checksums);
		start_transfers_locked(channel, indices + local, count - local, checksums,
				       now_ns);
		more = dmp_network_round_locked(channel, now_ns);
	}
	*woke = dmp_channel_tell_locked(channel);
	if (local == 0 && !*woke)
		return count + more;
	pthread_mutex_unlock(&channel->lock);
	if (*woke)
		dmp_futex_wake_all(&channel->done_sequence);
	for (number = 0; number < local; number++) {
		if (number + 1 < local)
			prefetch(channel, indices[number + 1]);
		run(channel, indices[number], &outcomes[number]);
	}
	pthread_mutex_lock(&channel->lock);
	finish_locked(channel, indices, outcomes, local);
	return count + more;
}

static void *work(void *argument)
{
	struct dmp_embedded_channel *channel = argument;

	pthread_mutex_lock(&channel->lock);
	for (;;) {
		bool woke = false;

		if (!channel->executing) {
			channel->executing = true;
			dmp_crowd_begin_locked(channel);
			while (dmp_executor_round_locked(channel, &woke) != 0 || woke)
				dmp_crowd_heed_locked(channel);
			channel->executing = false;
			if (channel->stop)
				break;
		}
		rest_locked(channel);
	}
	pthread_mutex_unlock(&channel->lock);
	return NULL;
}

/* Puts the calling thread's child where the channel is bound to. */
static int bind_attributes(struct dmp_embedded_channel *channel, pthread_attr_t *attributes)
{
	cpu_set_t cpus;

	if (channel->cpu < 0 && channel->node < 0)
		return 0;
	if (channel->node >= 0) {
		int error = dmp_topology_node_cpus(channel->node, &cpus);

		if (error)
			return error;
	} else {
		CPU_ZERO(&cpus);
		CPU_SET(channel->cpu, &cpus);
	}
	return -pthread_attr_setaffinity_np(attributes, sizeof(cpus), &cpus);
}

int dmp_worker_start(struct dmp_embedded_channel *channel)
{
	uint32_t wanted = channel->workers;
	pthread_attr_t attributes;
	sigset_t all, before;
	int error;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 128 << 10);
	error = bind_attributes(channel, &attributes);
	/* Signals are the program's business: none is delivered to a worker. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	channel->workers = 0;
	while (!error && channel->workers < wanted) {
		error = -pthread_create(&channel->threads[channel->workers], &attributes,
					channel->workers == 0 ? work : help, channel);
		if (!error)
			channel->workers++;
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attributes);
	if (error)
		dmp_worker_stop(channel);
	return error;
}

void dmp_worker_stop(struct dmp_embedded_channel *channel)
{
	uint32_t thread;
	bool wake;

	pthread_mutex_lock(&channel->lock);
	channel->stop = true;
	wake = dmp_channel_claim_wake_locked(channel);
	pthread_mutex_unlock(&channel->lock);
	dmp_channel_kick(channel, wake);
	if (channel->workers != 0)
		pthread_join(channel->threads[0], NULL);
	__atomic_store_n(&channel->share.stop, 2, __ATOMIC_RELAXED);
	__atomic_add_fetch(&channel->share.sequence, 1, __ATOMIC_RELEASE);
	dmp_futex_wake_all(&channel->share.sequence);
	for (thread = 1; thread < channel->workers; thread++)
		pthread_join(channel->threads[thread], NULL);
}
