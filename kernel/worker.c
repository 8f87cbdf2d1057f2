// SPDX-License-Identifier: GPL-2.0
/*
 * worker.c - who executes: takes operations, moves bytes, writes completions
 *
 * One executor at a time (`executing`, under the lock): the channel's thread, or a caller in its
 * place (executor.c). Operations that move no bytes are completed under the lock they are taken
 * under; the others run without it.
 *
 * Between two slices of a copy the executor looks at the operation's cancel mark and
 * deadline, and lets queued operations expire, so a long copy delays nothing by more than
 * a slice. The largest copies are shared with work items that take slices from one cursor;
 * the operation ends when all of them have ended (L5).
 *
 * A completion that was written is told before the lock is given up.
 */
#include <linux/cpumask.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/topology.h>
#include <linux/workqueue.h>

#include "endpoint_kernel.h"
#include "network.h"
#include "trace.h"

#define SHARE_BYTES (8U << 20)		/* from here on others are worth waking */

/* A large copy in progress: its executor and the work items take slices of it. */
struct dmp_share {
	/* set by the executor before the items are queued */
	const struct dmp_submission *submission;
	struct dmp_memory *target;
	struct dmp_memory *source;
	/* atomic */
	atomic64_t next;		/* offset of the next slice */
	atomic_t error;			/* once set no more slices are taken */
	u32 count;
	struct dmp_share_item {
		struct work_struct work;
		struct dmp_share *share;
	} items[];
};

/* Ours: a copy may take long, and must not keep anybody else's work items waiting. */
static struct workqueue_struct *share_queue;

int dmp_worker_init(void)
{
	share_queue = alloc_workqueue("dmaplane", WQ_UNBOUND, 0);
	return share_queue ? 0 : -ENOMEM;
}

void dmp_worker_exit(void)
{
	destroy_workqueue(share_queue);
}

/* May the operation go on? 0, -ECANCELED or -ETIMEDOUT. */
static s32 verdict(const struct dmp_operation *operation)
{
	if (dmp_operation_cancelled(operation))
		return -ECANCELED;
	if (operation->submission.deadline_ns != 0 &&
	    ktime_get_ns() >= operation->submission.deadline_ns)
		return -ETIMEDOUT;
	return 0;
}

static void expire_locked(struct dmp_kernel_channel *channel)
{
	struct dmp_channel *machine = &channel->machine;
	u32 before = machine->written;
	u64 deadline_ns, now_ns;

	lockdep_assert_held(&channel->lock);
	if (!dmp_channel_deadline(machine, &deadline_ns))
		return;
	now_ns = ktime_get_ns();
	if (deadline_ns > now_ns)
		return;
	dmp_channel_expire(machine, now_ns);
	trace_dmp_expire(channel, machine->written - before);
}

/* Between two slices: what is queued behind a long operation meets its deadlines. */
static void look_around(struct dmp_kernel_channel *channel)
{
	bool wake;

	cond_resched();
	/* Who queues one with a deadline just now has it looked at after the next slice. */
	if (READ_ONCE(channel->machine.deadlines.count) == 0)
		return;
	mutex_lock(&channel->lock);
	expire_locked(channel);
	wake = dmp_channel_tell_locked(channel);
	mutex_unlock(&channel->lock);
	if (wake)
		dmp_channel_wake(channel);
	dmp_released();
}

/* Copies the next slice of a shared copy; false when there is none left. */
static bool share_slice(struct dmp_share *share)
{
	const struct dmp_submission *submission = share->submission;
	u64 offset, length;
	int error;

	if (atomic_read(&share->error) != 0)
		return false;
	offset = atomic64_fetch_add(DMP_BATCH_BYTES, &share->next);
	if (offset >= submission->length_bytes)
		return false;
	length = min_t(u64, submission->length_bytes - offset, DMP_BATCH_BYTES);
	error = dmp_copy_slice(share->target, submission->target_offset + offset, share->source,
			       submission->source_offset + offset, length, NULL);
	/* More than a verdict, which came too late if this was the last slice. */
	if (error)
		atomic_set(&share->error, error);
	return error == 0;
}

static void share_work(struct work_struct *work)
{
	struct dmp_share *share = container_of(work, struct dmp_share_item, work)->share;

	while (share_slice(share))
		cond_resched();
}

/* A copy by all hands. The bytes reported are an upper bound if it stops. */
static void run_shared(struct dmp_kernel_channel *channel, struct dmp_operation *operation,
		       const struct dmp_holds *holds, struct dmp_outcome *outcome)
{
	struct dmp_share *share = channel->share;
	u64 length = operation->submission.length_bytes;
	u32 item;

	share->submission = &operation->submission;
	share->target = holds->target->memory;
	share->source = holds->source->memory;
	atomic64_set(&share->next, 0);
	atomic_set(&share->error, 0);
	for (item = 0; item < share->count; item++)
		queue_work_node(channel->node, share_queue, &share->items[item].work);
	while (share_slice(share)) {
		s32 stop = verdict(operation);

		if (stop)
			atomic_cmpxchg(&share->error, 0, stop);
		look_around(channel);
	}
	/* The fence: every item has put down its slice; one that has not begun need not begin. */
	for (item = 0; item < share->count; item++)
		cancel_work_sync(&share->items[item].work);
	outcome->length_bytes = min_t(u64, atomic64_read(&share->next), length);
	outcome->result = atomic_read(&share->error);
	/* Cancelled too late: everything has been copied. */
	if (outcome->length_bytes == length &&
	    (outcome->result == -ECANCELED || outcome->result == -ETIMEDOUT))
		outcome->result = 0;
}

static int run_slice(const struct dmp_submission *submission, const struct dmp_holds *holds,
		     u64 done, u64 length, u32 *checksum)
{
	bool checked = submission->flags & (DMP_SUBMIT_CHECKSUM | DMP_SUBMIT_VERIFY);

	if (submission->operation == DMP_OP_FILL)
		return dmp_copy_fill(holds->target->memory, submission->target_offset + done,
				     length, submission->immediate, done);
	return dmp_copy_slice(holds->target->memory, submission->target_offset + done,
			      holds->source->memory, submission->source_offset + done, length,
			      checked ? checksum : NULL);
}

static bool is_shared(const struct dmp_kernel_channel *channel,
		      const struct dmp_submission *submission)
{
	return channel->share && submission->operation == DMP_OP_COPY &&
	       submission->length_bytes >= SHARE_BYTES &&
	       !(submission->flags & (DMP_SUBMIT_CHECKSUM | DMP_SUBMIT_VERIFY));
}

/* Moves the bytes of one operation. No lock held. */
static void run(struct dmp_kernel_channel *channel, u32 index, struct dmp_outcome *outcome)
{
	struct dmp_operation *operation = &channel->machine.operations[index];
	const struct dmp_submission *submission = &operation->submission;
	const struct dmp_holds *holds = &channel->holds[index];
	u64 left = submission->length_bytes;

	*outcome = (struct dmp_outcome){ .result = verdict(operation) };
	if (outcome->result != 0)
		return;
	if (is_shared(channel, submission)) {
		run_shared(channel, operation, holds, outcome);
		return;
	}
	while (left != 0) {
		u64 length = min_t(u64, left, DMP_BATCH_BYTES);

		outcome->result = run_slice(submission, holds, outcome->length_bytes, length,
					    &outcome->checksum);
		/* Of a slice that fails any byte may have changed, unless it was not begun. */
		if (outcome->result != -ESTALE)
			outcome->length_bytes += length;
		left -= length;
		if (outcome->result == 0 && left != 0) {
			look_around(channel);
			outcome->result = verdict(operation);
		}
		if (outcome->result != 0)
			return;
	}
	if (submission->flags & DMP_SUBMIT_VERIFY && outcome->checksum != submission->checksum)
		outcome->result = -EBADMSG;
}

static bool is_peer(const struct dmp_buffer *buffer)
{
	const struct dmp_memory *memory = buffer->memory;

	return (memory->origin ? memory->origin : memory)->kind == DMP_KIND_PEER;
}

static u8 path_of(const struct dmp_holds *holds)
{
	if (is_peer(holds->target) || (holds->source && is_peer(holds->source)))
		return DMP_PATH_PEER;
	return DMP_PATH_LOCAL;
}

static void finish_locked(struct dmp_kernel_channel *channel, u32 count)
{
	u64 now_ns = ktime_get_ns();
	u32 number;

	lockdep_assert_held(&channel->lock);
	for (number = 0; number < count; number++) {
		struct dmp_outcome *outcome = &channel->outcomes[number];
		u32 index = channel->indices[number];

		if (outcome->length_bytes != 0)
			outcome->path = path_of(&channel->holds[index]);
		dmp_channel_finish(&channel->machine, index, outcome, now_ns);
	}
}

/* Hands transfers to their endpoints, in order. The lock is given up to make checksums. */
static void start_transfers_locked(struct dmp_kernel_channel *channel, u32 count, bool checksums)
{
	u64 now_ns;
	u32 number;

	lockdep_assert_held(&channel->lock);
	if (checksums) {
		mutex_unlock(&channel->lock);
		for (number = 0; number < count; number++)
			if (dmp_traffic_wants_checksum(channel, channel->transfers[number]))
				dmp_traffic_checksum(channel, channel->transfers[number]);
		mutex_lock(&channel->lock);
	}
	now_ns = ktime_get_ns();
	for (number = 0; number < count; number++) {
		u32 index = channel->transfers[number];

		dmp_traffic_start_locked(channel->holds[index].endpoint, index, now_ns);
	}
}

/*
 * Completes what was taken and moves no bytes, starts what goes to a peer; returns how many are
 * left to run.
 */
static u32 begin_locked(struct dmp_kernel_channel *channel, u32 count)
{
	struct dmp_channel *machine = &channel->machine;
	u32 number, left = 0, away = 0;
	u64 now_ns = ktime_get_ns();
	bool checksums = false;

	lockdep_assert_held(&channel->lock);
	for (number = 0; number < count; number++) {
		u32 index = channel->indices[number];
		struct dmp_outcome outcome = { .result = machine->operations[index].error };

		/* One whose link had failed before it came holds its buffers, and moves nothing. */
		if (DMP_KERNEL_RDMA && channel->holds[index].endpoint) {
			channel->transfers[away++] = index;
			checksums |= dmp_traffic_wants_checksum(channel, index);
		} else if (channel->holds[index].target && outcome.result == 0) {
			channel->indices[left++] = index;
		} else {
			dmp_channel_finish(machine, index, &outcome, now_ns);
		}
	}
	if (DMP_KERNEL_RDMA && away != 0)
		start_transfers_locked(channel, away, checksums);
	return left;
}

/*
 * One round of the executor: expire, take, a turn of its endpoints, run, finish. What ran is told
 * at the start of the next round, together with what that one finds. The lock is given up
 * while bytes move. Returns false when there was nothing to do.
 */
bool dmp_executor_round_locked(struct dmp_kernel_channel *channel)
{
	struct dmp_channel *machine = &channel->machine;
	u32 count, left = 0, number;
	bool wake, more = false;

	lockdep_assert_held(&channel->lock);
	expire_locked(channel);
	count = dmp_channel_take(machine, channel->indices, DMP_BATCH, DMP_BATCH_BYTES);
	if (count != 0) {
		trace_dmp_take(channel, count);
		left = begin_locked(channel, count);
	}
	if (DMP_KERNEL_RDMA && channel->network)
		more = dmp_network_round_locked(channel, ktime_get_ns());
	wake = dmp_channel_tell_locked(channel);
	if (left == 0 && !wake)
		return count != 0 || more;
	mutex_unlock(&channel->lock);
	if (wake)
		dmp_channel_wake(channel);
	dmp_released();
	for (number = 0; number < left; number++) {
		run(channel, channel->indices[number], &channel->outcomes[number]);
		cond_resched();
	}
	mutex_lock(&channel->lock);
	finish_locked(channel, left);
	return true;
}

static int work(void *argument)
{
	struct dmp_kernel_channel *channel = argument;

	trace_dmp_worker_start(channel);
	mutex_lock(&channel->lock);
	for (;;) {
		if (!channel->executing && !dmp_executor_is_leased_locked(channel)) {
			channel->executing = true;
			while (dmp_executor_round_locked(channel))
				cond_resched();
			channel->executing = false;
			/* A network that was told to end is taken apart first. */
			if (kthread_should_stop() && !dmp_executor_is_wanted_locked(channel))
				break;
		}
		dmp_executor_rest_locked(channel);
	}
	mutex_unlock(&channel->lock);
	trace_dmp_worker_stop(channel);
	return 0;
}

/* Where the worker may run: where it is bound to, within where its creator may. */
static int place_worker(struct dmp_kernel_channel *channel)
{
	cpumask_var_t cpus;
	int error;

	if (!alloc_cpumask_var(&cpus, GFP_KERNEL))
		return -ENOMEM;
	cpumask_copy(cpus, current->cpus_ptr);
	if (channel->cpu >= 0)
		cpumask_and(cpus, cpus, cpumask_of(channel->cpu));
	else if (channel->node >= 0)
		cpumask_and(cpus, cpus, cpumask_of_node(channel->node));
	error = set_cpus_allowed_ptr(channel->worker, cpus);
	free_cpumask_var(cpus);
	return error;
}

/* Work items run on any CPU: only for those who may use any, and have not asked for one. */
static bool may_share(const struct dmp_kernel_channel *channel)
{
	return channel->workers > 1 && channel->cpu < 0 &&
	       cpumask_subset(cpu_online_mask, current->cpus_ptr);
}

static int make_share(struct dmp_kernel_channel *channel)
{
	struct dmp_share *share;
	u32 item;

	if (!may_share(channel))
		return 0;
	share = kzalloc(struct_size(share, items, channel->workers - 1), GFP_KERNEL_ACCOUNT);
	if (!share)
		return -ENOMEM;
	share->count = channel->workers - 1;
	for (item = 0; item < share->count; item++) {
		share->items[item].share = share;
		INIT_WORK(&share->items[item].work, share_work);
	}
	channel->share = share;
	return 0;
}

int dmp_worker_start(struct dmp_kernel_channel *channel)
{
	struct task_struct *worker;
	int error = make_share(channel);

	if (error)
		return error;
	worker = kthread_create_on_node(work, channel, channel->node, "dmaplane:%d",
					channel->plane->owner);
	if (IS_ERR(worker)) {
		error = PTR_ERR(worker);
		goto err_share;
	}
	channel->worker = worker;
	error = place_worker(channel);
	if (error)
		goto err_worker;
	set_user_nice(worker, task_nice(current));
	wake_up_process(worker);
	return 0;

err_worker:
	kthread_stop(worker);
err_share:
	kfree(channel->share);
	return error;
}

void dmp_worker_stop(struct dmp_kernel_channel *channel)
{
	kthread_stop(channel->worker);
	kfree(channel->share);
}
