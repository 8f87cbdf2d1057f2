// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * endpoint.c - memory, states, time and the end of a connection; see endpoint.h
 *
 * The machine is "up" in OPEN, DRAINING and DRAINED: only then frames other than the
 * handshake's are exchanged and the ledgers count. A connection ends in two steps.
 * First everything in flight is decided and what nobody holds is completed (CLOSING or
 * CUTTING); then the owner closes the fabric, lets go of every buffer and answers CUT
 * (DEAD). So even after a crash of the peer a completion never comes while the owner
 * still touches the buffer.
 */
#include "endpoint_layout.h"

#define EDGE(state)	(1U << DMP_ENDPOINT_##state)
#define ENDINGS		(EDGE(CLOSING) | EDGE(CUTTING) | EDGE(DEAD))
#define ERRNO_MAX	4095
#define DETECT_NS_MAX	(1ULL << 62)	/* so that adding a time cannot wrap */

static const __u32 edges[DMP_ENDPOINT_STATES] = {
	[DMP_ENDPOINT_IDLE] = EDGE(CALLING) | EDGE(AWAITING),
	[DMP_ENDPOINT_CALLING] = EDGE(CHECKING) | ENDINGS,
	[DMP_ENDPOINT_CHECKING] = EDGE(CONFIRMING) | ENDINGS,
	[DMP_ENDPOINT_CONFIRMING] = EDGE(OPEN) | ENDINGS,
	[DMP_ENDPOINT_AWAITING] = EDGE(PROVING) | ENDINGS,
	[DMP_ENDPOINT_PROVING] = EDGE(WELCOMED) | ENDINGS,
	[DMP_ENDPOINT_WELCOMED] = EDGE(VERIFYING) | ENDINGS,
	[DMP_ENDPOINT_VERIFYING] = EDGE(OPEN) | ENDINGS,
	[DMP_ENDPOINT_OPEN] = EDGE(DRAINING) | ENDINGS,
	[DMP_ENDPOINT_DRAINING] = EDGE(DRAINED) | ENDINGS,
	[DMP_ENDPOINT_DRAINED] = ENDINGS,
	[DMP_ENDPOINT_CLOSING] = EDGE(CUTTING) | EDGE(DEAD),
	[DMP_ENDPOINT_CUTTING] = EDGE(DEAD),
	[DMP_ENDPOINT_DEAD] = EDGE(IDLE),
};

bool dmp_endpoint_may_move(__u32 from, __u32 to)
{
	if (from >= DMP_ENDPOINT_STATES || to >= DMP_ENDPOINT_STATES)
		return false;
	return edges[from] & (1U << to);
}

/* The only place that changes the state. */
int dmp_endpoint_move(struct dmp_endpoint *endpoint, __u32 to)
{
	if (!dmp_endpoint_may_move(endpoint->state, to))
		return -EPROTO;
	endpoint->state = to;
	endpoint->hello_done = false;
	return 0;
}

bool dmp_endpoint_is_up(const struct dmp_endpoint *endpoint)
{
	return endpoint->state == DMP_ENDPOINT_OPEN ||
	       endpoint->state == DMP_ENDPOINT_DRAINING ||
	       endpoint->state == DMP_ENDPOINT_DRAINED;
}

bool dmp_endpoint_is_greeting(const struct dmp_endpoint *endpoint)
{
	return endpoint->state >= DMP_ENDPOINT_CALLING &&
	       endpoint->state <= DMP_ENDPOINT_VERIFYING;
}

static bool count_is_sound(__u32 count)
{
	return count && count <= DMP_ENDPOINT_TABLE_MAX;
}

static bool config_is_sound(const struct dmp_endpoint_config *config)
{
	return count_is_sound(config->operations_max) &&
	       count_is_sound(config->receives_max) &&
	       count_is_sound(config->incoming_max) &&
	       count_is_sound(config->window_slots) && config->window_bytes &&
	       config->incarnation && config->detect_ns &&
	       config->detect_ns <= DETECT_NS_MAX &&
	       !(config->features_required & ~config->features);
}

#define ROUND8(bytes)	(((size_t)(bytes) + 7) & ~(size_t)7)

/* How many queues of each length lay_out() makes. */
#define QUEUES_OF_OPERATIONS	4
#define QUEUES_OF_SLOTS		4
#define QUEUES_OF_INCOMING	2
#define QUEUES_OF_WINDOW	2

/* The block, carved front to back. */
struct carver {
	__u8 *memory;
	size_t used;
};

static void *carve(struct carver *carver, size_t bytes)
{
	void *part = carver->memory + carver->used;

	carver->used += ROUND8(bytes);
	return part;
}

static void carve_queue(struct carver *carver, struct dmp_queue *queue, __u32 capacity)
{
	dmp_queue_init(queue, carve(carver, dmp_queue_bytes(capacity)), capacity);
}

/* dmp_endpoint_bytes() counts what this uses; init compares the two. */
static size_t lay_out(struct dmp_endpoint *endpoint)
{
	const struct dmp_endpoint_config *config = &endpoint->config;
	__u32 slots = config->operations_max + config->receives_max;
	struct carver at = { .memory = (__u8 *)endpoint };

	carve(&at, sizeof(*endpoint));
	endpoint->slots = slots;
	endpoint->completions.capacity = slots;
	endpoint->events.capacity = config->window_slots + 1;
	endpoint->operations = carve(&at, slots * sizeof(struct dmp_operation));
	endpoint->incoming = carve(&at, config->incoming_max * sizeof(struct dmp_incoming));
	endpoint->stages = carve(&at, config->window_slots * sizeof(struct dmp_stage));
	endpoint->completions.entries = carve(&at, endpoint->completions.capacity *
						   sizeof(struct dmp_endpoint_completion));
	endpoint->events.entries = carve(&at, endpoint->events.capacity *
					      sizeof(struct dmp_endpoint_completion));
	carve_queue(&at, &endpoint->free_operations, config->operations_max);
	carve_queue(&at, &endpoint->waiting, config->operations_max);
	carve_queue(&at, &endpoint->ready, config->operations_max);
	carve_queue(&at, &endpoint->cancels, config->operations_max);
	carve_queue(&at, &endpoint->free_receives, slots);
	carve_queue(&at, &endpoint->posted, slots);
	carve_queue(&at, &endpoint->work, slots);
	carve_queue(&at, &endpoint->stops, slots);
	carve_queue(&at, &endpoint->admits, config->incoming_max);
	carve_queue(&at, &endpoint->answers, config->incoming_max);
	carve_queue(&at, &endpoint->free_stages, config->window_slots);
	carve_queue(&at, &endpoint->staged, config->window_slots);
	dmp_deadline_init(&endpoint->deadlines, carve(&at, dmp_deadline_bytes(slots)), slots);
	return at.used;
}

size_t dmp_endpoint_bytes(const struct dmp_endpoint_config *config)
{
	size_t slots, unread, links;

	if (!config_is_sound(config))
		return 0;
	slots = (size_t)config->operations_max + config->receives_max;
	unread = slots + config->window_slots + 1;
	links = (size_t)QUEUES_OF_OPERATIONS * config->operations_max +
		QUEUES_OF_SLOTS * slots +
		(size_t)QUEUES_OF_INCOMING * config->incoming_max +
		(size_t)QUEUES_OF_WINDOW * config->window_slots;
	return ROUND8(sizeof(struct dmp_endpoint)) +
	       ROUND8(slots * sizeof(struct dmp_operation)) +
	       ROUND8(config->incoming_max * sizeof(struct dmp_incoming)) +
	       ROUND8(config->window_slots * sizeof(struct dmp_stage)) +
	       ROUND8(unread * sizeof(struct dmp_endpoint_completion)) +
	       links * sizeof(struct dmp_queue_link) +
	       ROUND8(dmp_deadline_bytes((__u32)slots));
}

/* Queues that are full when nothing is going on. */
static void fill_vacant(struct dmp_endpoint *endpoint)
{
	__u32 index;

	for (index = endpoint->config.operations_max; index < endpoint->slots; index++)
		dmp_queue_push(&endpoint->free_receives, index);
	for (index = 0; index < endpoint->config.window_slots; index++)
		dmp_queue_push(&endpoint->free_stages, index);
}

int dmp_endpoint_init(struct dmp_endpoint **endpoint, void *memory, size_t bytes,
		      const struct dmp_endpoint_config *config)
{
	struct dmp_endpoint *fresh = memory;

	if (!config_is_sound(config))
		return -EINVAL;
	if (!memory || (size_t)memory % sizeof(__u64) || bytes < dmp_endpoint_bytes(config))
		return -EINVAL;
	__builtin_memset(memory, 0, dmp_endpoint_bytes(config));
	fresh->config = *config;
	if (lay_out(fresh) != dmp_endpoint_bytes(config))
		return -EPROTO;
	fill_vacant(fresh);
	*endpoint = fresh;
	return 0;
}

/* Forget the connection. The slots' generations stay, so old tags stay dead. */
int dmp_endpoint_reset(struct dmp_endpoint *endpoint)
{
	if (endpoint->state != DMP_ENDPOINT_DEAD ||
	    endpoint->completions.count || endpoint->events.count)
		return -EBUSY;
	while (dmp_queue_pop(&endpoint->free_operations) != DMP_QUEUE_NONE)
		;
	endpoint->epoch = 0;
	endpoint->peer_incarnation = 0;
	endpoint->features = 0;
	__builtin_memset(&endpoint->hello, 0, sizeof(endpoint->hello));
	__builtin_memset(&endpoint->welcome, 0, sizeof(endpoint->welcome));
	endpoint->sequence_out = 0;
	endpoint->sequence_in = 0;
	endpoint->authenticate = false;
	endpoint->authenticate_taken = false;
	endpoint->opened = false;
	endpoint->cut = false;
	endpoint->ping = false;
	endpoint->pong = false;
	endpoint->drain_sent = false;
	endpoint->peer_drained = false;
	endpoint->farewell_refuse = false;
	endpoint->reason = 0;
	endpoint->deadline_ns = 0;
	endpoint->flush_ns = 0;
	return dmp_endpoint_move(endpoint, DMP_ENDPOINT_IDLE);
}

/* Room was reserved at acceptance, or by the credit the peer spent. */
void dmp_endpoint_push(struct dmp_endpoint *endpoint,
		       const struct dmp_endpoint_completion *completion)
{
	bool event = (completion->flags & DMP_COMPLETE_EVENT) != 0;
	struct dmp_endpoint_outbox *outbox = event ? &endpoint->events : &endpoint->completions;
	__u32 index = outbox->first + outbox->count;

	if (index >= outbox->capacity)
		index -= outbox->capacity;
	outbox->entries[index] = *completion;
	outbox->count += 1;
}

static void announce_end(struct dmp_endpoint *endpoint)
{
	struct dmp_endpoint_completion event = {
		.result = endpoint->reason,
		.operation = DMP_EVENT_ENDPOINT_LOST,
		.flags = DMP_COMPLETE_EVENT,
	};

	if (!endpoint->opened)
		return;
	endpoint->opened = false;
	dmp_endpoint_push(endpoint, &event);
}

static void end_all(struct dmp_endpoint *endpoint, __s32 reason)
{
	endpoint->reason = reason;
	endpoint->authenticate = false;
	dmp_inflight_break(endpoint);
	dmp_incoming_break(endpoint);
	announce_end(endpoint);
}

/* The connection is over. Returns @reason, for the caller to pass on. */
int dmp_endpoint_break(struct dmp_endpoint *endpoint, __s32 reason)
{
	if (dmp_endpoint_move(endpoint, DMP_ENDPOINT_CUTTING))
		return reason;
	endpoint->cut = true;
	end_all(endpoint, reason);
	return reason;
}

/* End it with a last word: REFUSE during the handshake, GOODBYE after. */
int dmp_endpoint_close(struct dmp_endpoint *endpoint, __u64 now_ns, __s32 reason,
		       bool refuse)
{
	int error = dmp_endpoint_move(endpoint, DMP_ENDPOINT_CLOSING);

	if (error)
		return error;
	endpoint->farewell = reason;
	endpoint->farewell_refuse = refuse;
	endpoint->deadline_ns = now_ns + endpoint->config.detect_ns;
	end_all(endpoint, reason);
	return 0;
}

static int die(struct dmp_endpoint *endpoint)
{
	int error = dmp_endpoint_move(endpoint, DMP_ENDPOINT_DEAD);

	if (error)
		return error;
	endpoint->cut = false;
	endpoint->placing.active = false;
	dmp_inflight_release_all(endpoint);
	return 0;
}

int dmp_endpoint_abort(struct dmp_endpoint *endpoint, __s32 reason)
{
	if (endpoint->state == DMP_ENDPOINT_IDLE || endpoint->state == DMP_ENDPOINT_DEAD)
		return -ENOENT;
	if (endpoint->state != DMP_ENDPOINT_CLOSING)
		dmp_endpoint_break(endpoint, reason);
	return die(endpoint);
}

int dmp_endpoint_goodbye(struct dmp_endpoint *endpoint, __u64 now_ns)
{
	endpoint->opened = false;	/* the owner ends it, and needs not be told */
	if (dmp_endpoint_is_up(endpoint))
		return dmp_endpoint_close(endpoint, now_ns, 0, false);
	if (!dmp_endpoint_is_greeting(endpoint))
		return -ENOENT;
	dmp_endpoint_break(endpoint, -ECONNRESET);
	return 0;
}

int dmp_endpoint_drain(struct dmp_endpoint *endpoint, __u64 now_ns, __u64 deadline_ns)
{
	int error = dmp_endpoint_move(endpoint, DMP_ENDPOINT_DRAINING);

	if (error)
		return error;
	endpoint->deadline_ns = deadline_ns;
	dmp_inflight_end_receives(endpoint, -ECANCELED);
	dmp_endpoint_drain_step(endpoint, now_ns);
	return 0;
}

/* Each side says DRAIN when its own work is done, and goodbye when both have. */
void dmp_endpoint_drain_step(struct dmp_endpoint *endpoint, __u64 now_ns)
{
	if (endpoint->state == DMP_ENDPOINT_DRAINING && !endpoint->in_flight &&
	    !endpoint->zombies)
		dmp_endpoint_move(endpoint, DMP_ENDPOINT_DRAINED);
	if (endpoint->state != DMP_ENDPOINT_DRAINED || !endpoint->drain_sent ||
	    !endpoint->peer_drained || endpoint->incomings)
		return;
	dmp_endpoint_close(endpoint, now_ns, 0, false);
}

/* The frame is the next one of this connection. */
static int dispatch(struct dmp_endpoint *endpoint, __u64 now_ns,
		    const struct dmp_frame *frame)
{
	switch (frame->type) {
	case DMP_FRAME_GRANT: {
		struct dmp_credit_grant grant = {
			.total = { frame->grant.slots, frame->grant.bytes },
			.sequence = frame->grant.sequence,
			.epoch = frame->epoch,
		};

		return dmp_credit_hear(&endpoint->sender, &grant);
	}
	case DMP_FRAME_OPERATION:
		return dmp_incoming_operation(endpoint, frame);
	case DMP_FRAME_RESPONSE:
		return dmp_inflight_response(endpoint, frame);
	case DMP_FRAME_COMPLETE:
	case DMP_FRAME_CANCELLED:
		return dmp_inflight_result(endpoint, frame);
	case DMP_FRAME_CANCEL:
		return dmp_incoming_cancel(endpoint, now_ns, frame->tag);
	case DMP_FRAME_PING:
		endpoint->pong = true;
		endpoint->pong_stamp = frame->stamp;
		return 0;
	case DMP_FRAME_PONG:
		return 0;
	case DMP_FRAME_DRAIN:
		if (endpoint->peer_drained)
			return -EPROTO;
		endpoint->peer_drained = true;
		dmp_incoming_match(endpoint);
		return 0;
	case DMP_FRAME_GOODBYE:
		if (frame->reason || endpoint->state != DMP_ENDPOINT_DRAINED)
			dmp_endpoint_break(endpoint, -ECONNRESET);
		else
			dmp_endpoint_break(endpoint, 0);
		return 0;
	default:
		return -EPROTO;
	}
}

/* CONFIRM at the acceptor, the first GRANT or a late REFUSE at the connector. */
static int dispatch_greeting(struct dmp_endpoint *endpoint, __u64 now_ns,
			     const struct dmp_frame *frame)
{
	if (frame->type == DMP_FRAME_REFUSE) {
		dmp_endpoint_break(endpoint, frame->refuse.reason);
		return 0;
	}
	if (endpoint->state == DMP_ENDPOINT_WELCOMED && frame->type == DMP_FRAME_CONFIRM) {
		endpoint->confirm = frame->confirm;
		endpoint->authenticate = true;
		return dmp_endpoint_move(endpoint, DMP_ENDPOINT_VERIFYING);
	}
	if (endpoint->state == DMP_ENDPOINT_CONFIRMING && frame->type == DMP_FRAME_GRANT) {
		dmp_handshake_open(endpoint, now_ns);
		return dispatch(endpoint, now_ns, frame);
	}
	return -EPROTO;
}

static bool is_of_this_connection(const struct dmp_endpoint *endpoint,
				  const struct dmp_frame *frame)
{
	return endpoint->peer_incarnation && frame->epoch == endpoint->epoch &&
	       frame->incarnation == endpoint->peer_incarnation &&
	       frame->destination == endpoint->config.incarnation;
}

int dmp_endpoint_receive(struct dmp_endpoint *endpoint, __u64 now_ns,
			 const void *bytes, size_t length)
{
	struct dmp_frame frame;
	int error;

	if (!dmp_endpoint_is_up(endpoint) && !dmp_endpoint_is_greeting(endpoint))
		return -ESTALE;
	if (endpoint->authenticate || endpoint->placing.active)
		return -EBUSY;
	error = dmp_wire_decode(bytes, length, !endpoint->config.unchecked, &frame);
	if (error)
		return dmp_endpoint_break(endpoint, error);
	if (frame.type == DMP_FRAME_HELLO || frame.type == DMP_FRAME_WELCOME ||
	    (frame.type == DMP_FRAME_REFUSE && endpoint->state == DMP_ENDPOINT_CALLING)) {
		error = dmp_handshake_frame(endpoint, now_ns, &frame);
		endpoint->stale += error == -ESTALE;
		return error;
	}
	if (!is_of_this_connection(endpoint, &frame)) {
		endpoint->stale += 1;
		return -ESTALE;
	}
	if (frame.sequence <= endpoint->sequence_in) {
		endpoint->repeated += 1;
		return 0;
	}
	if (frame.sequence != endpoint->sequence_in + 1)
		return dmp_endpoint_break(endpoint, -ECONNRESET);
	endpoint->sequence_in = frame.sequence;
	endpoint->heard_ns = now_ns;
	endpoint->honoured += 1;
	if (dmp_endpoint_is_greeting(endpoint))
		error = dispatch_greeting(endpoint, now_ns, &frame);
	else
		error = dispatch(endpoint, now_ns, &frame);
	if (error)
		return dmp_endpoint_break(endpoint, error);
	dmp_inflight_pump(endpoint, now_ns);
	dmp_endpoint_drain_step(endpoint, now_ns);
	return 0;
}

void dmp_endpoint_alive(struct dmp_endpoint *endpoint, __u64 now_ns)
{
	endpoint->heard_ns = now_ns;
}

int dmp_endpoint_next_request(struct dmp_endpoint *endpoint,
			      struct dmp_endpoint_request *request)
{
	__u32 index;

	/* key and proof are valid as far as key_bytes and proof_bytes go */
	__builtin_memset(request, 0, __builtin_offsetof(struct dmp_endpoint_request, key));
	if (endpoint->cut) {
		endpoint->cut = false;
		request->kind = DMP_REQUEST_CUT;
		request->tag = endpoint->epoch;
	} else if (endpoint->authenticate && !endpoint->authenticate_taken) {
		dmp_handshake_request(endpoint, request);
	} else if (endpoint->placing.active && !endpoint->placing.taken) {
		dmp_incoming_place_request(endpoint, request);
	} else if ((index = dmp_queue_pop(&endpoint->stops)) != DMP_QUEUE_NONE) {
		dmp_inflight_request(endpoint, index, DMP_REQUEST_STOP, request);
	} else if ((index = dmp_queue_pop(&endpoint->admits)) != DMP_QUEUE_NONE) {
		dmp_incoming_admit_request(endpoint, index, request);
	} else if ((index = dmp_queue_pop(&endpoint->work)) != DMP_QUEUE_NONE) {
		dmp_inflight_work(endpoint, index, request);
	} else {
		return -EAGAIN;
	}
	return 0;
}

int dmp_endpoint_answer(struct dmp_endpoint *endpoint, __u64 now_ns,
			const struct dmp_endpoint_answer *answer)
{
	int error;

	if (answer->result > 0 || answer->result < -ERRNO_MAX)
		return -EINVAL;
	switch (answer->kind) {
	case DMP_REQUEST_AUTHENTICATE:
		error = dmp_handshake_answer(endpoint, now_ns, answer);
		break;
	case DMP_REQUEST_PLACE:
		error = dmp_incoming_placed(endpoint, now_ns, answer);
		break;
	case DMP_REQUEST_ADMIT:
		error = dmp_incoming_admitted(endpoint, now_ns, answer);
		break;
	case DMP_REQUEST_MOVE:
		error = dmp_inflight_moved(endpoint, answer);
		break;
	case DMP_REQUEST_COPY:
		error = dmp_incoming_copied(endpoint, now_ns, answer);
		break;
	case DMP_REQUEST_STOP:
		error = dmp_inflight_stopped(endpoint, answer->tag);
		break;
	case DMP_REQUEST_CUT:
		if (endpoint->state != DMP_ENDPOINT_CUTTING)
			return -ESTALE;
		return die(endpoint);
	default:
		return -EINVAL;
	}
	dmp_inflight_pump(endpoint, now_ns);
	dmp_endpoint_drain_step(endpoint, now_ns);
	return error;
}

static int take(struct dmp_endpoint_outbox *outbox, struct dmp_endpoint_completion *completion)
{
	if (!outbox->count)
		return -EAGAIN;
	*completion = outbox->entries[outbox->first];
	outbox->count -= 1;
	outbox->first += 1;
	if (outbox->first == outbox->capacity)
		outbox->first = 0;
	return 0;
}

int dmp_endpoint_next_completion(struct dmp_endpoint *endpoint,
				 struct dmp_endpoint_completion *completion)
{
	int error = take(&endpoint->completions, completion);

	if (!error)
		endpoint->reserved -= 1;
	return error;
}

bool dmp_endpoint_has_event(const struct dmp_endpoint *endpoint)
{
	return endpoint->events.count != 0;
}

int dmp_endpoint_next_event(struct dmp_endpoint *endpoint, __u64 now_ns,
			    struct dmp_endpoint_completion *completion)
{
	int error = take(&endpoint->events, completion);

	if (error)
		return error;
	if (completion->operation == DMP_EVENT_WRITE_IMM)
		dmp_incoming_release(endpoint, now_ns,
				     dmp_incoming_charge(DMP_OP_WRITE_IMM,
							 completion->length_bytes,
							 endpoint->config.window_bytes));
	return 0;
}
