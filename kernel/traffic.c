// SPDX-License-Identifier: GPL-2.0
/*
 * traffic.c - one endpoint at work: between its channel, its machine and its pair
 *
 * A round: answer what the machine asks, load its frames, give up the lock and move bytes
 * (frames, payloads, slices of MOVE and COPY), take the lock and tell the machine, then
 * write completions. A buffer is touched only between a request and its answer, by us inside a
 * round, by the device until it gives it back: that is how STOP and CUT are answered.
 */
#include <linux/ktime.h>
#include <linux/slab.h>

#include "endpoint_kernel.h"
#include "network.h"
#include "trace.h"

#define COMPANY_BYTES 4096	/* more than answers, which may wait for a frame to go along with */

static struct dmp_submission *submission_of(const struct dmp_kernel_channel *channel, u32 index)
{
	return &channel->machine.operations[index].submission;
}

static bool is_outgoing(const struct dmp_submission *submission)
{
	return submission->operation == DMP_OP_SEND || submission->operation == DMP_OP_WRITE ||
	       submission->operation == DMP_OP_WRITE_IMM;
}

struct dmp_run dmp_traffic_local(const struct dmp_kernel_channel *channel, u32 index)
{
	const struct dmp_submission *submission = submission_of(channel, index);
	const struct dmp_holds *holds = &channel->holds[index];
	bool source = holds->source;

	return (struct dmp_run){
		.memory = source ? holds->source->memory : holds->target->memory,
		.offset = source ? submission->source_offset : submission->target_offset,
		.length = submission->length_bytes,
	};
}

bool dmp_traffic_is_checked(const struct dmp_kernel_channel *channel, u32 index)
{
	return submission_of(channel, index)->flags & (DMP_SUBMIT_CHECKSUM | DMP_SUBMIT_VERIFY);
}

/* ---- operations in */

bool dmp_traffic_wants_checksum(const struct dmp_kernel_channel *channel, u32 index)
{
	/* That of a WRITE is made when it is posted; a frame carries it ahead of the bytes. */
	return dmp_traffic_is_checked(channel, index) &&
	       submission_of(channel, index)->operation == DMP_OP_SEND &&
	       channel->machine.operations[index].error == 0 && channel->holds[index].source;
}

void dmp_traffic_checksum(struct dmp_kernel_channel *channel, u32 index)
{
	struct dmp_run local = dmp_traffic_local(channel, index);
	struct dmp_holds *holds = &channel->holds[index];

	holds->checksum = 0;
	/* A memory that was revoked is found out when its bytes are to go. */
	holds->checksum_known = dmp_copy_checksum(local.memory, local.offset, local.length,
						  &holds->checksum) == 0;
}

static void finish(struct dmp_kernel_endpoint *endpoint, u32 index, struct dmp_outcome *outcome)
{
	struct dmp_kernel_channel *channel = endpoint->channel;
	const struct dmp_submission *submission = submission_of(channel, index);
	struct dmp_channel_counters *counters = &endpoint->counters;
	u64 accepted_ns = channel->machine.operations[index].accepted_ns;
	struct dmp_holds *holds = &channel->holds[index];
	u64 now_ns = endpoint->now_ns;

	if (outcome->length_bytes != 0)
		outcome->path = DMP_PATH_VERBS;
	if (dmp_traffic_is_checked(channel, index) && outcome->result == 0) {
		if (!(outcome->flags & DMP_COMPLETE_CHECKSUM) && holds->checksum_known)
			outcome->checksum = holds->checksum;
		if (submission->flags & DMP_SUBMIT_VERIFY &&
		    outcome->checksum != submission->checksum)
			outcome->result = -EBADMSG;
		counters->checksum_bytes += outcome->length_bytes;
	}
	counters->completions++;
	counters->bytes += outcome->length_bytes;
	counters->errors += outcome->result != 0;
	counters->cancelled += outcome->result == -ECANCELED;
	counters->timeouts += outcome->result == -ETIMEDOUT;
	dmp_histogram_record(endpoint->latency, now_ns > accepted_ns ? now_ns - accepted_ns : 0, 1);
	holds->tag = 0;
	dmp_channel_finish(&channel->machine, index, outcome, now_ns);
}

static void finish_with(struct dmp_kernel_endpoint *endpoint, u32 index, int result)
{
	struct dmp_outcome outcome = { .result = result };

	finish(endpoint, index, &outcome);
}

static int submit(struct dmp_kernel_endpoint *endpoint, u32 index)
{
	const struct dmp_submission *submission = submission_of(endpoint->channel, index);
	struct dmp_holds *holds = &endpoint->channel->holds[index];
	struct dmp_endpoint_submission own = {
		.user_data = index,
		.deadline_ns = submission->deadline_ns,
		.local = index,
		.length_bytes = submission->length_bytes,
		.operation = submission->operation,
		.flags = submission->flags & DMP_SUBMIT_NOWAIT,
	};
	int error;

	/* Once its frame is out, bytes that cannot be read cost the connection. */
	if (submission->operation == DMP_OP_SEND && holds->source &&
	    !dmp_memory_alive(holds->source->memory))
		return -ESTALE;
	if (submission->operation == DMP_OP_WRITE_IMM)
		own.immediate = submission->immediate;
	if (holds->checksum_known && holds->source) {
		own.flags |= DMP_SUBMIT_CHECKSUM;
		own.checksum = holds->checksum;
	}
	if (holds->remote) {
		own.offset = submission->operation == DMP_OP_READ ? submission->source_offset :
								    submission->target_offset;
		own.key_bytes = holds->remote->key_bytes;
		memcpy(own.key, holds->remote->bytes, own.key_bytes);
	}
	error = dmp_endpoint_submit(endpoint->machine, endpoint->now_ns, &own, &holds->tag);
	if (error)
		holds->tag = 0;
	return error;
}

void dmp_traffic_start_locked(struct dmp_kernel_endpoint *endpoint, u32 index, u64 now_ns)
{
	struct dmp_kernel_channel *channel = endpoint->channel;
	const struct dmp_operation *operation = &channel->machine.operations[index];
	const struct dmp_submission *submission = &operation->submission;
	struct dmp_lane *lane = &endpoint->lanes[submission->operation == DMP_OP_RECV];
	const struct dmp_holds *holds = &channel->holds[index];
	int error = operation->error;

	lockdep_assert_held(&channel->lock);
	dmp_endpoint_time(endpoint, now_ns);
	endpoint->counters.submissions++;
	if (!error && operation->cancel)
		error = -ECANCELED;
	if (!error && submission->flags & DMP_SUBMIT_VERIFY && holds->checksum_known &&
	    is_outgoing(submission) && holds->checksum != submission->checksum)
		error = -EBADMSG;
	if (!error)
		error = lane->count != 0 ? -EAGAIN : submit(endpoint, index);
	if (error == -EAGAIN && !(submission->flags & DMP_SUBMIT_NOWAIT))
		error = dmp_channel_park(&channel->machine, lane, index);
	if (error)
		finish_with(endpoint, index, error);
	dmp_network_mark_locked(channel, endpoint);
}

void dmp_traffic_cancel_locked(struct dmp_kernel_endpoint *endpoint, u32 index)
{
	struct dmp_kernel_channel *channel = endpoint->channel;
	u64 tag = channel->holds[index].tag;

	lockdep_assert_held(&channel->lock);
	if (tag != 0)
		dmp_endpoint_cancel(endpoint->machine, dmp_endpoint_time(endpoint, ktime_get_ns()),
				    tag);
	dmp_network_mark_locked(channel, endpoint);
}

/* The machine may have slots again: those that waited longest first. */
static void unpark_locked(struct dmp_kernel_endpoint *endpoint)
{
	struct dmp_channel *machine = &endpoint->channel->machine;
	u32 which, index;
	int error;

	lockdep_assert_held(&endpoint->channel->lock);
	for (which = 0; which < ARRAY_SIZE(endpoint->lanes); which++) {
		struct dmp_lane *lane = &endpoint->lanes[which];

		while (lane->count != 0) {
			error = submit(endpoint, lane->first);
			if (error == -EAGAIN)
				break;
			dmp_channel_unpark(machine, lane, &index);
			if (error)
				finish_with(endpoint, index, error);
		}
	}
}

/* ---- completions out */

static void deliver_event(struct dmp_kernel_endpoint *endpoint,
			  const struct dmp_endpoint_completion *from)
{
	struct dmp_completion event = {
		.user_data = endpoint->user_data,
		.result = from->result,
		.operation = (u8)from->operation,
		.path = DMP_PATH_VERBS,
		.flags = from->flags & (DMP_COMPLETE_CHECKSUM | DMP_COMPLETE_IMMEDIATE),
		.length_bytes = from->length_bytes,
		.immediate = from->immediate,
		.checksum = from->checksum,
	};

	/* There is room: the caller has looked. */
	dmp_channel_event(&endpoint->channel->machine, &event);
	trace_dmp_event(endpoint->channel, event.operation, endpoint->object.id);
	endpoint->counters.events++;
	if (from->operation == DMP_EVENT_WRITE_IMM)
		endpoint->counters.bytes += from->length_bytes;
}

static void deliver_completion(struct dmp_kernel_endpoint *endpoint,
			       const struct dmp_endpoint_completion *from)
{
	struct dmp_outcome outcome = {
		.length_bytes = from->length_bytes,
		.result = from->result,
		.checksum = from->checksum,
		.immediate = from->immediate,
		.flags = from->flags,
	};

	/* Found wrong behind the hop, not before it: none of the bytes counts. */
	if (outcome.result == -EBADMSG)
		outcome.path = DMP_PATH_VERBS;
	finish(endpoint, (u32)from->user_data, &outcome);
}

/* True: something was taken out of the machine. */
static bool deliver_locked(struct dmp_kernel_endpoint *endpoint)
{
	struct dmp_channel *machine = &endpoint->channel->machine;
	struct dmp_endpoint_completion from;
	bool any = false;
	u32 room = 0;

	lockdep_assert_held(&endpoint->channel->lock);
	while (dmp_endpoint_next_completion(endpoint->machine, &from) == 0) {
		deliver_completion(endpoint, &from);
		any = true;
	}
	if (any)
		unpark_locked(endpoint);
	/* Before it is attached nobody knows it: what comes early waits in the machine. */
	if (!endpoint->attached || dmp_channel_event_room(machine, &room))
		return any;
	for (; room != 0 && dmp_endpoint_next_event(endpoint->machine, endpoint->now_ns,
						    &from) == 0; room--) {
		deliver_event(endpoint, &from);
		any = true;
	}
	endpoint->event_waits = room == 0 && dmp_endpoint_has_event(endpoint->machine);
	return any;
}

/* ---- requests */

void dmp_traffic_answer(struct dmp_kernel_endpoint *endpoint,
			const struct dmp_endpoint_answer *answer)
{
	dmp_endpoint_answer(endpoint->machine, endpoint->now_ns, answer);
}

static void authenticate(struct dmp_kernel_endpoint *endpoint,
			 const struct dmp_endpoint_request *request)
{
	struct dmp_endpoint_answer reply = { .kind = request->kind, .tag = request->tag };
	u8 transcript[2 * DMP_WIRE_FRAME_BYTES_MAX];
	int length = dmp_endpoint_transcript(endpoint->machine, transcript, sizeof(transcript));

	if (length < 0)
		reply.result = length;
	else if (request->tag != DMP_ENDPOINT_PROVING)
		reply.result = dmp_proof_check(&endpoint->secret, !endpoint->connector, transcript,
					       length, request->proof, request->proof_bytes);
	if (!reply.result)
		reply.result = dmp_proof_make(&endpoint->secret, endpoint->connector, transcript,
					      length, reply.proof);
	if (!reply.result)
		reply.proof_bytes = DMP_PROOF_BYTES;
	dmp_traffic_answer(endpoint, &reply);
}

/*
 * Lets go of an own operation's buffer: nothing of ours is touching it right now, but the
 * device may be. Then its completion is the answer, and if that does not come soon, the end.
 */
static void stop_locked(struct dmp_kernel_endpoint *endpoint,
			const struct dmp_endpoint_request *request)
{
	struct dmp_endpoint_answer reply = { .kind = request->kind, .tag = request->tag };
	int error = 0, dropped = dmp_errand_drop_locked(endpoint, request->tag);

	lockdep_assert_held(&endpoint->channel->lock);
	if (dropped == -EINPROGRESS)
		return;
	if (dropped) {
		if (endpoint->landing.active && endpoint->landing.target == DMP_TARGET_LOCAL &&
		    endpoint->landing.local == (u32)request->local)
			error = dmp_landing_divert_locked(endpoint, request);
		else
			error = dmp_kernel_stream_stop(&endpoint->stream, request->tag);
	}
	dmp_traffic_answer(endpoint, &reply);
	if (error)
		dmp_traffic_abort_locked(endpoint, error);
}

/* The pair ends, and nothing of the device touches memory any more. The lock is given up. */
static void close_pair_locked(struct dmp_kernel_endpoint *endpoint)
{
	struct dmp_pair *pair = endpoint->pair;

	lockdep_assert_held(&endpoint->channel->lock);
	if (!pair)
		return;
	/* In this order: whoever looks without the lock finds one of them. */
	WRITE_ONCE(endpoint->cutting, true);
	smp_wmb();	/* pairs with smp_rmb() of is_being_cut() */
	WRITE_ONCE(endpoint->pair, NULL);
	mutex_unlock(&endpoint->channel->lock);
	dmp_pair_close(pair);
	mutex_lock(&endpoint->channel->lock);
	WRITE_ONCE(endpoint->cutting, false);
	dmp_released();
}

/* Nothing touches a buffer of ours or of a peer after this. */
static void let_go_locked(struct dmp_kernel_endpoint *endpoint)
{
	u32 number;

	lockdep_assert_held(&endpoint->channel->lock);
	close_pair_locked(endpoint);
	if (endpoint->landing.region)
		dmp_region_release(endpoint->landing.region);
	endpoint->landing.region = NULL;
	endpoint->landing.active = false;
	endpoint->errands.count = 0;
	endpoint->stop_due_ns = 0;
	for (number = 0; number < DMP_ADMITTED_MAX; number++)
		dmp_landing_read_locked(endpoint, number);
	dmp_ask_abort_locked(endpoint);
}

static void cut_locked(struct dmp_kernel_endpoint *endpoint,
		       const struct dmp_endpoint_request *request)
{
	struct dmp_endpoint_answer reply = { .kind = request->kind, .tag = request->tag };

	lockdep_assert_held(&endpoint->channel->lock);
	/* The last word is small and mostly fits; who does not get it sees the end all the same. */
	if (endpoint->pair && !endpoint->stream.error) {
		dmp_kernel_stream_load_locked(endpoint);
		mutex_unlock(&endpoint->channel->lock);
		dmp_kernel_stream_move(endpoint);
		mutex_lock(&endpoint->channel->lock);
	}
	let_go_locked(endpoint);
	dmp_traffic_answer(endpoint, &reply);
}

static void answer_requests_locked(struct dmp_kernel_endpoint *endpoint)
{
	struct dmp_endpoint_request request;

	lockdep_assert_held(&endpoint->channel->lock);
	while (dmp_endpoint_next_request(endpoint->machine, &request) == 0) {
		switch (request.kind) {
		case DMP_REQUEST_AUTHENTICATE:
			authenticate(endpoint, &request);
			break;
		case DMP_REQUEST_PLACE:
			dmp_landing_place_locked(endpoint, &request);
			break;
		case DMP_REQUEST_ADMIT:
			dmp_landing_admit_locked(endpoint, &request);
			break;
		case DMP_REQUEST_MOVE:
		case DMP_REQUEST_COPY:
			dmp_errands_add(&endpoint->errands, &request);
			break;
		case DMP_REQUEST_STOP:
			stop_locked(endpoint, &request);
			break;
		case DMP_REQUEST_CUT:
			cut_locked(endpoint, &request);
			return;
		default:
			break;
		}
	}
}

/* ---- bytes */

/* Everything that has come in whole. */
static void feed_locked(struct dmp_kernel_endpoint *endpoint)
{
	struct dmp_kernel_channel *channel = endpoint->channel;

	lockdep_assert_held(&endpoint->channel->lock);
	while (endpoint->pair) {
		bool placed;
		int got = dmp_kernel_stream_feed_locked(endpoint, &placed);

		if (placed && endpoint->landing.active) {
			mutex_unlock(&channel->lock);
			dmp_landing_check(endpoint);
			mutex_lock(&channel->lock);
			dmp_landing_finish_locked(endpoint);
		}
		answer_requests_locked(endpoint);
		if (got == 0 && !placed)
			break;
		if (got < 0 && got != -EBUSY && got != -ESTALE)
			break;
	}
}

static void settle_end_locked(struct dmp_kernel_endpoint *endpoint)
{
	struct dmp_endpoint_status status;
	u32 which, index;

	lockdep_assert_held(&endpoint->channel->lock);
	if (dmp_endpoint_state(endpoint->machine) != DMP_ENDPOINT_DEAD)
		return;
	dmp_endpoint_query(endpoint->machine, &status);
	for (which = 0; which < ARRAY_SIZE(endpoint->lanes); which++)
		while (dmp_channel_unpark(&endpoint->channel->machine, &endpoint->lanes[which],
					  &index))
			finish_with(endpoint, index, -ECONNRESET);
	if (status.unread != 0 && endpoint->attached && !endpoint->drop)
		return;		/* an event waits for a slot */
	if (!endpoint->ended) {
		endpoint->ended = true;
		trace_dmp_endpoint_end(endpoint, status.reason);
		dmp_channel_nudge_locked(endpoint->channel);
	}
}

void dmp_traffic_abort_locked(struct dmp_kernel_endpoint *endpoint, int reason)
{
	lockdep_assert_held(&endpoint->channel->lock);
	dmp_endpoint_time(endpoint, ktime_get_ns());
	let_go_locked(endpoint);
	dmp_endpoint_abort(endpoint->machine, reason);
	deliver_locked(endpoint);
	settle_end_locked(endpoint);
}

/* Errands first: the frame that tells of one goes with the answers that wait. */
static void move_bytes_locked(struct dmp_kernel_endpoint *endpoint)
{
	struct dmp_kernel_channel *channel = endpoint->channel;
	u32 finished, turn;

	lockdep_assert_held(&endpoint->channel->lock);
	if (endpoint->errands.count != 0) {
		mutex_unlock(&channel->lock);
		finished = dmp_errand_run(endpoint);
		mutex_lock(&channel->lock);
		dmp_endpoint_time(endpoint, ktime_get_ns());
		dmp_errand_finish_locked(endpoint, finished);
	}
	dmp_kernel_stream_load_locked(endpoint);
	/* What a frame brings along is mostly here too, now that its place is known. */
	for (turn = 0; turn < 2; turn++) {
		mutex_unlock(&channel->lock);
		dmp_kernel_stream_move(endpoint);
		mutex_lock(&channel->lock);
		dmp_endpoint_time(endpoint, ktime_get_ns());
		feed_locked(endpoint);
		if (!endpoint->pair || !dmp_kernel_stream_is_hungry(&endpoint->stream))
			break;
	}
}

/* What the pair itself has to say, and to be asked. */
static void serve_pair_locked(struct dmp_kernel_endpoint *endpoint)
{
	int error;

	lockdep_assert_held(&endpoint->channel->lock);
	if (!endpoint->pair)
		return;
	/* An error is one of get too, once all that had come is taken. */
	error = dmp_pair_serve(endpoint->pair);
	if (error && !endpoint->stream.lost)
		endpoint->stream.lost = error;
	/* A region may have been let go by the peer. */
	dmp_released();
	dmp_ask_serve_locked(endpoint);
}

bool dmp_traffic_round_locked(struct dmp_kernel_endpoint *endpoint, u64 now_ns)
{
	struct dmp_kernel_stream *stream = &endpoint->stream;
	bool more = false, moves, presses;
	u32 canaries_back;

	lockdep_assert_held(&endpoint->channel->lock);
	dmp_endpoint_time(endpoint, now_ns);
	if (endpoint->pair && endpoint->given_up) {
		dmp_pair_give_up(endpoint->pair);
		dmp_traffic_abort_locked(endpoint, -ECONNRESET);
	}
	dmp_endpoint_tick(endpoint->machine, endpoint->now_ns);
	serve_pair_locked(endpoint);
	canaries_back = endpoint->ask.canaries_back;
	answer_requests_locked(endpoint);
	if (endpoint->pair)
		move_bytes_locked(endpoint);
	if (endpoint->pair && !stream->error && stream->dry)
		stream->error = stream->lost;
	if (endpoint->pair && stream->error)
		dmp_traffic_abort_locked(endpoint, stream->error == -EPROTO ? -EPROTO :
									      -ECONNRESET);
	if (endpoint->pair && dmp_errand_is_stuck_locked(endpoint))
		dmp_traffic_abort_locked(endpoint, -ECONNRESET);
	/* Whoever waited for a slot of the machine may have one now. */
	do
		answer_requests_locked(endpoint);
	while (deliver_locked(endpoint));
	moves = endpoint->errands.count != 0 && !endpoint->errands.wait;
	presses = moves || dmp_endpoint_is_short_of_credit(endpoint->machine);
	if (endpoint->pair) {
		more = dmp_kernel_stream_load_locked(endpoint) ||
		       dmp_kernel_stream_is_hungry(stream);
		presses |= stream->placing || stream->out_bytes > COMPANY_BYTES;
	}
	settle_end_locked(endpoint);
	dmp_trace_credit_locked(endpoint);
	dmp_network_press_locked(endpoint, presses && !endpoint->ended);
	more |= moves;
	/* A canary came back with the errands: the ask is served again, nothing rings for it. */
	if (endpoint->ask.canaries_back != canaries_back)
		more = true;
	return more && !endpoint->ended;
}

/* ---- memory */

int dmp_traffic_init(struct dmp_kernel_endpoint *endpoint)
{
	gfp_t gfp = GFP_KERNEL_ACCOUNT;
	struct dmp_errand *ring = kvcalloc(DMP_ERRANDS_MAX, sizeof(*ring), gfp);
	u32 number;

	dmp_lane_init(&endpoint->lanes[0]);
	dmp_lane_init(&endpoint->lanes[1]);
	endpoint->staged = kvcalloc(endpoint->window_slots, sizeof(*endpoint->staged), gfp);
	dmp_errands_init(&endpoint->errands, ring, DMP_ERRANDS_MAX);
	endpoint->admitted = kvcalloc(DMP_ADMITTED_MAX, sizeof(*endpoint->admitted), gfp);
	endpoint->admitted_links = kvzalloc(dmp_queue_bytes(DMP_ADMITTED_MAX), gfp);
	endpoint->latency = kvzalloc(sizeof(*endpoint->latency), gfp);
	endpoint->stall = kvzalloc(sizeof(*endpoint->stall), gfp);
	if (!endpoint->staged || !ring || !endpoint->admitted || !endpoint->admitted_links ||
	    !endpoint->latency || !endpoint->stall)
		return -ENOMEM;
	dmp_queue_init(&endpoint->admitted_free, endpoint->admitted_links, DMP_ADMITTED_MAX);
	for (number = 0; number < DMP_ADMITTED_MAX; number++)
		dmp_queue_push(&endpoint->admitted_free, number);
	return dmp_kernel_stream_init(&endpoint->stream);
}

void dmp_traffic_free(struct dmp_kernel_endpoint *endpoint)
{
	u32 stage;

	dmp_kernel_stream_free(&endpoint->stream);
	for (stage = 0; endpoint->staged && stage < endpoint->window_slots; stage++)
		dmp_stage_free(&endpoint->staged[stage]);
	kvfree(endpoint->staged);
	kvfree(endpoint->errands.ring);
	kvfree(endpoint->admitted);
	kvfree(endpoint->admitted_links);
	kvfree(endpoint->latency);
	kvfree(endpoint->stall);
}
