// SPDX-License-Identifier: MIT
/*
 * traffic.c - see traffic.h
 *
 * A round: answer what the machine asks, load its frames, give up the lock and move bytes
 * (frames, payloads, slices of MOVE and COPY), take the lock and tell the machine, then
 * write completions. A buffer is touched only between a request and its answer; STOP and
 * CUT are answered at once, because between two moves nothing of ours touches anything.
 */
#define _GNU_SOURCE
#include "traffic.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "crowd.h"
#include "libdmaplane.h"
#include "network.h"

#define STOP_NS 500000000u	/* a device has so long to give back what is stopped */
#define COMPANY_BYTES 4096u	/* more than answers, which may wait for a frame to go along with */

static struct dmp_submission *submission_of(struct dmp_embedded_channel *channel, uint32_t index)
{
	return &channel->machine.operations[index].submission;
}

static bool is_outgoing(const struct dmp_submission *submission)
{
	return submission->operation == DMP_OP_SEND || submission->operation == DMP_OP_WRITE ||
	       submission->operation == DMP_OP_WRITE_IMM;
}

static bool is_checked(const struct dmp_submission *submission)
{
	return submission->flags & (DMP_SUBMIT_CHECKSUM | DMP_SUBMIT_VERIFY);
}

char *dmp_traffic_local(struct dmp_embedded_channel *channel, __u64 local)
{
	uint32_t index = (uint32_t)local;
	const struct dmp_submission *submission = submission_of(channel, index);
	const struct dmp_holds *holds = &channel->holds[index];
	__u64 offset = (local >> 32) * DMP_PIECE_BYTES;

	if (holds->source)
		return (char *)holds->source->memory.address + submission->source_offset + offset;
	return (char *)holds->target->memory.address + submission->target_offset + offset;
}

bool dmp_traffic_is_checked(const struct dmp_embedded_channel *channel, uint32_t index)
{
	return is_checked(&channel->machine.operations[index].submission);
}

/* ---- operations in */

bool dmp_traffic_wants_checksum(const struct dmp_embedded_channel *channel, uint32_t index)
{
	const struct dmp_submission *submission = &channel->machine.operations[index].submission;
	const struct dmp_embedded_endpoint *endpoint = channel->holds[index].endpoint;

	/* A direct fabric makes it while it copies; a frame carries it ahead of the bytes. */
	return is_checked(submission) && is_outgoing(submission) &&
	       channel->machine.operations[index].error == 0 && channel->holds[index].source &&
	       (submission->operation == DMP_OP_SEND || endpoint->path == DMP_PATH_TCP);
}

void dmp_traffic_checksum(struct dmp_embedded_channel *channel, uint32_t index)
{
	struct dmp_holds *holds = &channel->holds[index];

	holds->checksum = dmp_crc32c(0, dmp_traffic_local(channel, index),
					    submission_of(channel, index)->length_bytes);
	holds->checksum_known = true;
}

static void finish(struct dmp_embedded_endpoint *endpoint, uint32_t index,
		   struct dmp_outcome *outcome)
{
	struct dmp_embedded_channel *channel = endpoint->channel;
	const struct dmp_submission *submission = submission_of(channel, index);
	struct dmp_channel_counters *counters = &endpoint->counters;
	struct dmp_holds *holds = &channel->holds[index];
	uint64_t now_ns = endpoint->now_ns;

	if (outcome->length_bytes != 0)
		outcome->path = endpoint->path;
	if (is_checked(submission) && outcome->result == 0) {
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
	if (endpoint->latency) {
		uint64_t accepted_ns = channel->machine.operations[index].accepted_ns;

		dmp_histogram_record(endpoint->latency,
				     now_ns > accepted_ns ? now_ns - accepted_ns : 0, 1);
	}
	dmp_channel_finish(&channel->machine, index, outcome, now_ns);
}

static void finish_with(struct dmp_embedded_endpoint *endpoint, uint32_t index, int result)
{
	struct dmp_outcome outcome = { .result = result };

	finish(endpoint, index, &outcome);
}

void dmp_traffic_start_locked(struct dmp_embedded_endpoint *endpoint, uint32_t index,
			      uint64_t now_ns)
{
	struct dmp_embedded_channel *channel = endpoint->channel;
	const struct dmp_operation *operation = &channel->machine.operations[index];
	bool receive = operation->submission.operation == DMP_OP_RECV;
	struct dmp_lane *lane = &endpoint->lanes[receive];
	struct dmp_holds *holds = &channel->holds[index];
	int error = operation->error;

	dmp_endpoint_time(endpoint, now_ns);
	endpoint->counters.submissions++;
	if (!error && operation->cancel)
		error = -ECANCELED;
	if (!error && operation->submission.flags & DMP_SUBMIT_VERIFY && holds->checksum_known &&
	    is_outgoing(&operation->submission) &&
	    holds->checksum != operation->submission.checksum)
		error = -EBADMSG;
	if (!error)
		error = lane->count != 0 ? -EAGAIN : dmp_piece_submit(endpoint, index);
	if (error == -EAGAIN && !(operation->submission.flags & DMP_SUBMIT_NOWAIT))
		error = dmp_channel_park(&channel->machine, lane, index);
	if (error)
		finish_with(endpoint, index, error);
	dmp_network_mark_locked(channel, endpoint);
}

/* True: it still waits for a slot, and operations that came later do too. */
static bool probe_waits_locked(struct dmp_embedded_endpoint *endpoint)
{
	__u64 tag;
	int error;

	if (!endpoint->probe_waits)
		return false;
	error = dmp_endpoint_submit(endpoint->machine, endpoint->now_ns, &endpoint->probe, &tag);
	if (error == -EAGAIN)
		return true;
	endpoint->probe_waits = false;
	if (error) {
		endpoint->probe_result = error;
		dmp_channel_nudge_locked(endpoint->channel);
	}
	return false;
}

/* The machine may have slots again: those that waited longest first. */
static void unpark_locked(struct dmp_embedded_endpoint *endpoint)
{
	struct dmp_channel *machine = &endpoint->channel->machine;
	unsigned int which;
	uint32_t index;
	int error;

	/* A RECV has slots of its own. */
	for (which = probe_waits_locked(endpoint); which < 2; which++) {
		struct dmp_lane *lane = &endpoint->lanes[which];

		while (lane->count != 0) {
			error = dmp_piece_submit(endpoint, lane->first);
			if (error == -EAGAIN)
				break;
			dmp_channel_unpark(machine, lane, &index);
			if (error)
				finish_with(endpoint, index, error);
		}
	}
}

/* ---- completions out */

static void deliver_event(struct dmp_embedded_endpoint *endpoint,
			  const struct dmp_endpoint_completion *from)
{
	struct dmp_completion event = {
		.user_data = endpoint->user_data,
		.result = from->result,
		.operation = (__u8)from->operation,
		.path = endpoint->path,
		.flags = from->flags & (DMP_COMPLETE_CHECKSUM | DMP_COMPLETE_IMMEDIATE),
		.length_bytes = from->length_bytes,
		.immediate = from->immediate,
		.checksum = from->checksum,
	};

	/* There is room: the caller has looked. */
	dmp_channel_event(&endpoint->channel->machine, &event);
	endpoint->counters.events++;
	if (from->operation == DMP_EVENT_WRITE_IMM)
		endpoint->counters.bytes += from->length_bytes;
}

static bool deliver_locked(struct dmp_embedded_endpoint *endpoint)
{
	struct dmp_channel *machine = &endpoint->channel->machine;
	struct dmp_endpoint_completion from;
	bool any = false;
	__u32 room = 0;

	while (dmp_endpoint_next_completion(endpoint->machine, &from) == 0) {
		struct dmp_outcome outcome = { 0 };

		any = true;
		if (from.user_data == DMP_TRAFFIC_PROBE) {
			endpoint->probe_result = from.result;
			dmp_channel_nudge_locked(endpoint->channel);
		} else if (dmp_piece_completed(endpoint, &from, &outcome)) {
			/* Found wrong behind the hop, not before it: none of the bytes counts. */
			if (outcome.result == -EBADMSG)
				outcome.path = endpoint->path;
			finish(endpoint, (uint32_t)from.user_data, &outcome);
		}
	}
	if (any)
		unpark_locked(endpoint);
	/* Before it is attached nobody knows it: what comes early waits in the machine. */
	if (!endpoint->attached || dmp_channel_event_room(machine, &room) != 0)
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

void dmp_traffic_answer(struct dmp_embedded_endpoint *endpoint,
			const struct dmp_endpoint_answer *answer)
{
	dmp_endpoint_answer(endpoint->machine, endpoint->now_ns, answer);
}

static void authenticate(struct dmp_embedded_endpoint *endpoint,
			 const struct dmp_endpoint_request *request)
{
	struct dmp_endpoint_answer reply = { .kind = request->kind, .tag = request->tag };
	__u8 transcript[2 * DMP_WIRE_FRAME_BYTES_MAX];
	int length = dmp_endpoint_transcript(endpoint->machine, transcript, sizeof(transcript));

	if (length < 0) {
		reply.result = length;
	} else if (request->tag != DMP_ENDPOINT_PROVING &&
		   !dmp_proof_check(&endpoint->secret, !endpoint->connector, transcript,
				    (size_t)length, request->proof, request->proof_bytes)) {
		reply.result = -EACCES;
	} else {
		dmp_proof_make(&endpoint->secret, endpoint->connector, transcript, (size_t)length,
			       reply.proof);
		reply.proof_bytes = DMP_PROOF_BYTES;
	}
	dmp_traffic_answer(endpoint, &reply);
}

/*
 * Lets go of an own operation's buffer: nothing of ours is touching it right now, but a
 * device may be. Then its completion is the answer, and if that does not come soon, the end.
 */
static void stop(struct dmp_embedded_endpoint *endpoint,
		 const struct dmp_endpoint_request *request)
{
	struct dmp_endpoint_answer reply = { .kind = request->kind, .tag = request->tag };
	int error = 0, dropped = dmp_errands_drop(&endpoint->errands, request->tag);

	if (dropped == -EINPROGRESS) {
		if (endpoint->stop_due_ns == 0)
			endpoint->stop_due_ns = endpoint->now_ns + STOP_NS;
		return;
	}
	if (dropped) {
		if (endpoint->landing.active && endpoint->landing.target == DMP_TARGET_LOCAL &&
		    endpoint->landing.local == request->local)
			error = dmp_landing_divert(endpoint, request);
		else
			error = dmp_stream_stop_locked(&endpoint->stream, request->tag);
	}
	dmp_traffic_answer(endpoint, &reply);
	if (error)
		dmp_traffic_abort_locked(endpoint, error);
}

/* Nothing touches a buffer of ours or of a peer after this. */
static void let_go(struct dmp_embedded_endpoint *endpoint)
{
	uint32_t number;

	if (endpoint->landing.active && endpoint->landing.region)
		dmp_region_release(endpoint->plane, endpoint->landing.region);
	endpoint->landing.region = NULL;
	endpoint->landing.active = false;
	endpoint->errands.count = 0;
	endpoint->stop_due_ns = 0;
	for (number = 0; number < DMP_ADMITTED_MAX; number++)
		dmp_landing_read(endpoint, number);
	if (endpoint->fabric) {
		dmp_network_unwatch_locked(endpoint->channel, endpoint);
		endpoint->fabric->type->close(endpoint->fabric);
		endpoint->fabric = NULL;
	}
}

static void cut(struct dmp_embedded_endpoint *endpoint,
		const struct dmp_endpoint_request *request)
{
	struct dmp_endpoint_answer reply = { .kind = request->kind, .tag = request->tag };

	/* The last word is small and mostly fits; who does not get it sees the end all the same. */
	if (endpoint->fabric && !endpoint->stream.error)
		dmp_stream_move(&endpoint->stream);
	if (endpoint->fabric && endpoint->stream.out_farewell && !endpoint->stream.out_bytes &&
	    endpoint->fabric->type->finish)
		endpoint->fabric->type->finish(endpoint->fabric);
	let_go(endpoint);
	dmp_traffic_answer(endpoint, &reply);
}

static void answer_requests_locked(struct dmp_embedded_endpoint *endpoint)
{
	struct dmp_endpoint_request request;

	while (dmp_endpoint_next_request(endpoint->machine, &request) == 0) {
		switch (request.kind) {
		case DMP_REQUEST_AUTHENTICATE:
			authenticate(endpoint, &request);
			break;
		case DMP_REQUEST_PLACE:
			dmp_landing_place(endpoint, &request);
			break;
		case DMP_REQUEST_ADMIT:
			dmp_landing_admit(endpoint, &request);
			break;
		case DMP_REQUEST_MOVE:
		case DMP_REQUEST_COPY:
			dmp_errands_add(&endpoint->errands, &request);
			break;
		case DMP_REQUEST_STOP:
			stop(endpoint, &request);
			break;
		case DMP_REQUEST_CUT:
			cut(endpoint, &request);
			return;
		default:
			break;
		}
	}
}

/* ---- bytes */

static const char *payload_of(void *owner, const struct dmp_endpoint_frame *frame)
{
	struct dmp_embedded_endpoint *endpoint = owner;

	if (frame->payload == DMP_PAYLOAD_REGION)
		return endpoint->admitted[frame->local].address;
	if (frame->local == DMP_TRAFFIC_PROBE)
		return NULL;
	return dmp_traffic_local(endpoint->channel, frame->local);
}

/* The stream tells the machine itself of local payloads; a region is ours to release. */
static void payload_sent(void *owner, const struct dmp_endpoint_frame *frame)
{
	if (frame->payload == DMP_PAYLOAD_REGION)
		dmp_landing_read(owner, (uint32_t)frame->local);
}

/* Everything that has come in whole. */
static void feed_locked(struct dmp_embedded_endpoint *endpoint)
{
	while (endpoint->fabric) {
		int placed = 0;
		int got = dmp_stream_feed_locked(&endpoint->stream, endpoint->machine,
						 endpoint->now_ns, &placed);

		if (placed && endpoint->landing.active)
			dmp_landing_finish(endpoint);
		answer_requests_locked(endpoint);
		if (got == 0 && !placed)
			break;
		if (got < 0 && got != -EBUSY && got != -ESTALE)
			break;
	}
}

static void settle_end_locked(struct dmp_embedded_endpoint *endpoint)
{
	struct dmp_endpoint_status status;
	unsigned int which;
	uint32_t index;

	if (dmp_endpoint_state(endpoint->machine) != DMP_ENDPOINT_DEAD)
		return;
	dmp_endpoint_query(endpoint->machine, &status);
	for (which = 0; which < 2; which++)
		while (dmp_channel_unpark(&endpoint->channel->machine, &endpoint->lanes[which],
					  &index))
			finish_with(endpoint, index, -ECONNRESET);
	if (status.unread != 0 && endpoint->attached && !endpoint->drop)
		return;		/* an event waits for a slot */
	if (!endpoint->ended) {
		endpoint->ended = true;
		dmp_channel_nudge_locked(endpoint->channel);
	}
}

void dmp_traffic_abort_locked(struct dmp_embedded_endpoint *endpoint, int reason)
{
	dmp_endpoint_time(endpoint, dmp_now_ns());
	let_go(endpoint);
	dmp_endpoint_abort(endpoint->machine, reason);
	deliver_locked(endpoint);
	settle_end_locked(endpoint);
}

/* So much in a row: little where others wait, more where each turn would only wake the peer. */
static uint64_t burst_locked(const struct dmp_embedded_channel *channel)
{
	bool alone = !channel->network->dirty_first && channel->machine.queued == 0;

	return alone ? DMP_TRAFFIC_BURST_ALONE : DMP_TRAFFIC_BURST;
}

/* Errands first: the frame that tells of one goes with the answers that wait. */
static void move_bytes_locked(struct dmp_embedded_endpoint *endpoint)
{
	struct dmp_embedded_channel *channel = endpoint->channel;
	uint32_t finished, turn;

	if (endpoint->errands.count != 0) {
		uint64_t room = burst_locked(channel);

		pthread_mutex_unlock(&channel->lock);
		finished = dmp_errand_run(endpoint, room);
		pthread_mutex_lock(&channel->lock);
		dmp_endpoint_time(endpoint, dmp_now_ns());
		dmp_errand_finish_locked(endpoint, finished);
	}
	dmp_stream_load_locked(&endpoint->stream, endpoint->machine, endpoint->now_ns);
	/* What a frame brings along is mostly here too, now that its place is known. */
	for (turn = 0; turn < 2; turn++) {
		pthread_mutex_unlock(&channel->lock);
		dmp_stream_move(&endpoint->stream);
		pthread_mutex_lock(&channel->lock);
		/* Where errands move what is large, frames take no time to speak of. */
		if (!endpoint->fabric->type->direct)
			dmp_endpoint_time(endpoint, dmp_now_ns());
		feed_locked(endpoint);
		if (!endpoint->fabric || !dmp_stream_is_hungry(&endpoint->stream) ||
		    dmp_crowd_look_locked(endpoint))
			break;
	}
}

/* True: a device keeps what it was asked back for too long. */
static bool is_stuck(struct dmp_embedded_endpoint *endpoint)
{
	if (!dmp_errands_is_stopping(&endpoint->errands))
		endpoint->stop_due_ns = 0;
	return endpoint->stop_due_ns != 0 && endpoint->now_ns >= endpoint->stop_due_ns;
}

bool dmp_traffic_round_locked(struct dmp_embedded_endpoint *endpoint, uint64_t now_ns)
{
	struct dmp_embedded_channel *channel = endpoint->channel;
	bool more = false, moves, presses;

	dmp_endpoint_time(endpoint, now_ns);
	dmp_endpoint_tick(endpoint->machine, endpoint->now_ns);
	/* An error of drain is one of receive too, once all that had come is taken. */
	if (endpoint->fabric && endpoint->fabric->type->drain &&
	    (endpoint->has_event || endpoint->fabric->type->post)) {
		endpoint->fabric->type->drain(endpoint->fabric);
		if (endpoint->importing)
			dmp_channel_nudge_locked(channel);
	}
	endpoint->has_event = false;
	probe_waits_locked(endpoint);
	answer_requests_locked(endpoint);
	if (endpoint->fabric) {
		endpoint->stream.unwritable =
			__atomic_load_n(&endpoint->plane->regions_writable, __ATOMIC_RELAXED) == 0;
		move_bytes_locked(endpoint);
	}
	if (endpoint->fabric && endpoint->stream.error)
		dmp_traffic_abort_locked(endpoint, endpoint->stream.error);
	if (endpoint->fabric && endpoint->stop_due_ns != 0 && is_stuck(endpoint))
		dmp_traffic_abort_locked(endpoint, -ECONNRESET);
	/* Whoever waited for a slot of the machine may have one now. */
	do
		answer_requests_locked(endpoint);
	while (deliver_locked(endpoint));
	moves = endpoint->errands.count != 0 && !endpoint->errands.wait;
	presses = moves || dmp_endpoint_is_short_of_credit(endpoint->machine);
	if (endpoint->fabric) {
		more = dmp_stream_load_locked(&endpoint->stream, endpoint->machine,
					      endpoint->now_ns) ||
		       dmp_stream_is_hungry(&endpoint->stream);
		presses |= endpoint->stream.placing || endpoint->stream.out_bytes > COMPANY_BYTES;
	}
	settle_end_locked(endpoint);
	dmp_network_press_locked(endpoint, presses && !endpoint->ended);
	return (more || moves) && !endpoint->ended;
}

/* ---- memory */

int dmp_traffic_init(struct dmp_embedded_endpoint *endpoint)
{
	uint32_t number;

	dmp_lane_init(&endpoint->lanes[0]);
	dmp_lane_init(&endpoint->lanes[1]);
	dmp_queue_init(&endpoint->admitted_free, endpoint->admitted_links, DMP_ADMITTED_MAX);
	for (number = 0; number < DMP_ADMITTED_MAX; number++)
		dmp_queue_push(&endpoint->admitted_free, number);
	dmp_errands_init(&endpoint->errands, endpoint->errand_ring, DMP_ERRANDS_MAX);
	endpoint->staged = calloc(endpoint->window_slots, sizeof(*endpoint->staged));
	if (!endpoint->staged)
		return -ENOMEM;
	return dmp_stream_init(&endpoint->stream, endpoint->fabric, endpoint, payload_of,
			       payload_sent);
}

void dmp_traffic_free(struct dmp_embedded_endpoint *endpoint)
{
	uint32_t stage;

	let_go(endpoint);
	dmp_stream_free(&endpoint->stream);
	for (stage = 0; endpoint->staged && stage < endpoint->window_slots; stage++)
		free(endpoint->staged[stage].bytes);
	free(endpoint->staged);
}
