// SPDX-License-Identifier: GPL-2.0
/*
 * errand.c - MOVE and COPY of an endpoint's machine
 *
 * A COPY is done in one run. Slices of many MOVEs are with the device at once, posted in the
 * order of their errands and given back in that order. What the device has cannot be dropped:
 * its STOP is answered when the device has given it back.
 */
#include "endpoint_kernel.h"
#include "trace.h"

#define POSTED_BYTES	(1U << 20)	/* a slice, so that STOP waits for few */
#define SUMMED_BYTES	(16U << 20)	/* of checksums, in a round: PONGs and STOPs wait for it */
#define STOP_NS		(500 * NSEC_PER_MSEC)

static struct dmp_errand *errand_at(struct dmp_kernel_endpoint *endpoint, u32 number)
{
	return dmp_errands_at(&endpoint->errands, number);
}

/* A message from its stage into the memory of a RECV. No lock held, as below. */
static void copy(struct dmp_kernel_endpoint *endpoint, struct dmp_errand *errand)
{
	struct dmp_run local = dmp_traffic_local(endpoint->channel, errand->index);
	bool checked = dmp_traffic_is_checked(endpoint->channel, errand->index);
	const void *from = endpoint->staged[errand->stage].bytes;

	while (errand->done < errand->length && !errand->result) {
		u64 length = min_t(u64, errand->length - errand->done, DMP_BATCH_BYTES);

		errand->result = dmp_copy_to_checked(local.memory, local.offset + errand->done,
						     from + errand->done, length,
						     checked ? &errand->checksum : NULL);
		if (!errand->result)
			errand->done += length;
		cond_resched();
	}
}

/* The next bytes of a MOVE. */
static struct dmp_pair_move next_move(struct dmp_kernel_endpoint *endpoint,
				      const struct dmp_errand *errand)
{
	struct dmp_kernel_channel *channel = endpoint->channel;
	const struct dmp_submission *submission =
		&channel->machine.operations[errand->index].submission;
	struct dmp_run local = dmp_traffic_local(channel, errand->index);
	bool write = submission->operation != DMP_OP_READ;

	return (struct dmp_pair_move){
		.remote = &channel->holds[errand->index].remote->granted,
		.memory = local.memory,
		.local = local.offset + errand->posted,
		.offset = errand->posted +
			  (write ? submission->target_offset : submission->source_offset),
		.length = min_t(u64, errand->length - errand->posted, POSTED_BYTES),
		.write = write,
	};
}

/*
 * Goes on with the checksum of a MOVE, *@left bytes at most, and for as long as it takes where a
 * STOP waits for it. False: it is not whole yet, and a later round goes on.
 */
static bool sum(struct dmp_kernel_endpoint *endpoint, struct dmp_errand *errand, u64 *left)
{
	struct dmp_run local = dmp_traffic_local(endpoint->channel, errand->index);
	u64 length = errand->length - errand->summed;

	if (!errand->stopped)
		length = min(length, *left);
	errand->result = dmp_copy_checksum(local.memory, local.offset + errand->summed, length,
					   &errand->checksum);
	errand->summed += length;
	*left -= min(length, *left);
	return errand->result || errand->summed == errand->length;
}

/* Is there a checksum to be made, before a WRITE or behind a READ? */
static bool wants_sum(struct dmp_kernel_endpoint *endpoint, const struct dmp_errand *errand,
		      bool write)
{
	const struct dmp_operation *operation =
		&endpoint->channel->machine.operations[errand->index];

	return errand->kind == DMP_REQUEST_MOVE && errand->summed != errand->length &&
	       dmp_traffic_is_checked(endpoint->channel, errand->index) &&
	       (operation->submission.operation != DMP_OP_READ) == write;
}

/* Posts what is left of a MOVE; false: no more goes in now. */
static bool post_rest(struct dmp_kernel_endpoint *endpoint, struct dmp_errand *errand)
{
	while (errand->posted < errand->length && !errand->result && !errand->stopped) {
		struct dmp_pair_move move = next_move(endpoint, errand);
		int error = dmp_pair_post(endpoint->pair, &move, errand->tag);

		if (error == -EAGAIN)
			return false;
		errand->result = error;
		if (!error) {
			trace_dmp_post(endpoint, errand->tag, move.length, move.write);
			errand->posted += move.length;
		}
	}
	return true;
}

void dmp_errand_reap(struct dmp_kernel_endpoint *endpoint)
{
	u32 number = 0;
	u64 tag, length;

	while (dmp_pair_reap(endpoint->pair, &tag, &length)) {
		if (tag == DMP_CANARY_TAG) {
			endpoint->ask.canaries_back++;
			continue;
		}
		if (WARN_ON_ONCE(dmp_errands_give_back(&endpoint->errands, &number, tag, length)))
			return;
	}
}

u32 dmp_errand_run(struct dmp_kernel_endpoint *endpoint)
{
	u64 left = SUMMED_BYTES;
	bool summing = false;
	u32 number, over = 0;

	dmp_errand_reap(endpoint);
	for (number = 0; number < endpoint->errands.count; number++) {
		struct dmp_errand *errand = errand_at(endpoint, number);

		if (errand->kind == DMP_REQUEST_COPY)
			copy(endpoint, errand);
		else if (!errand->result && wants_sum(endpoint, errand, true))
			summing = !sum(endpoint, errand, &left);
		if (summing || (errand->kind == DMP_REQUEST_MOVE && !post_rest(endpoint, errand)))
			break;
	}
	for (; over < endpoint->errands.count; over++) {
		struct dmp_errand *errand = errand_at(endpoint, over);

		if (!dmp_errand_is_over(errand))
			break;
		if (errand->done == errand->length && !errand->result &&
		    wants_sum(endpoint, errand, false) && !sum(endpoint, errand, &left)) {
			summing = true;
			break;
		}
	}
	endpoint->errands.wait = over < endpoint->errands.count && !summing;
	return over;
}

/* The peer is not told of a WRITE_IMM whose bytes are not the ones that were meant. */
static void note_checksum(struct dmp_kernel_channel *channel, const struct dmp_errand *errand,
			  s32 *result)
{
	const struct dmp_submission *submission =
		&channel->machine.operations[errand->index].submission;
	struct dmp_holds *holds = &channel->holds[errand->index];

	if (!dmp_traffic_is_checked(channel, errand->index))
		return;
	holds->checksum = errand->checksum;
	holds->checksum_known = true;
	if (submission->flags & DMP_SUBMIT_VERIFY && errand->kind == DMP_REQUEST_MOVE &&
	    !*result && errand->checksum != submission->checksum)
		*result = -EBADMSG;
}

void dmp_errand_finish_locked(struct dmp_kernel_endpoint *endpoint, u32 count)
{
	struct dmp_endpoint_answer reply;
	struct dmp_errand errand;

	lockdep_assert_held(&endpoint->channel->lock);
	while (count-- != 0) {
		dmp_errands_take(&endpoint->errands, &errand, &reply);
		note_checksum(endpoint->channel, &errand, &reply.result);
		if (errand.kind == DMP_REQUEST_COPY)
			dmp_stage_free(&endpoint->staged[errand.stage]);
		dmp_traffic_answer(endpoint, &reply);
	}
}

int dmp_errand_drop_locked(struct dmp_kernel_endpoint *endpoint, u64 tag)
{
	int dropped = dmp_errands_drop(&endpoint->errands, tag);

	lockdep_assert_held(&endpoint->channel->lock);
	if (dropped == -EINPROGRESS && endpoint->stop_due_ns == 0)
		endpoint->stop_due_ns = endpoint->now_ns + STOP_NS;
	return dropped;
}

bool dmp_errand_is_stuck_locked(struct dmp_kernel_endpoint *endpoint)
{
	lockdep_assert_held(&endpoint->channel->lock);
	if (!dmp_errands_is_stopping(&endpoint->errands))
		endpoint->stop_due_ns = 0;
	return endpoint->stop_due_ns != 0 && endpoint->now_ns >= endpoint->stop_due_ns;
}
