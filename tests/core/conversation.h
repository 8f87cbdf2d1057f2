/* SPDX-License-Identifier: MIT */
/*
 * conversation.h - two endpoint machines, their owners, and a fabric that fails on demand
 *
 * Each frame that leaves a machine is a message with a number, counted over both
 * directions. A fault names a number and what becomes of that message. Without a fault
 * the same conversation has the same messages, so every one of them can be hit.
 *
 * Time jumps from event to event. An owner answers a request owner_ns later, STOP and
 * CUT at once. Content is a number per message or cell, so a wrong one is seen. A buffer
 * that an owner still touches when its operation completes is a breach of L5.
 */
#ifndef DMP_TESTS_CONVERSATION_H
#define DMP_TESTS_CONVERSATION_H

#include <string.h>

#include "check.h"
#include "dmaplane.h"
#include "endpoint.h"

#define MS		1000000ULL
#define DETECT_NS	(160 * MS)
#define GREETING_NS	(250 * MS)	/* deadline of the handshake */
#define SLOW_NS		(40 * MS)	/* what an owner needs for offset SLOW_CELL */
#define DELAY_NS	(15 * MS)
#define LATE_NS		(DETECT_NS + 4 * SLOW_NS)
#define ECHO_NS		(25 * MS)	/* when the second repeat comes */

#define CELLS		8
#define SLOW_CELL	7
#define BAD_KEY		0x66
#define BUFFERS		64
#define STAGES		8
#define PENDINGS	32
#define QUEUE		32

enum fault_kind { DELAY, REPEAT, DROP, LATE, SWAP, DAMAGE, CUT, SILENCE, FAULT_KINDS };

struct fault {
	__u32 number;
	enum fault_kind kind;
	__u32 victim;		/* once it has struck: the side that misses the message */
};

struct message {
	__u64 not_before_ns;
	__u32 frame_bytes, value;
	bool end;		/* the fabric was closed behind this */
	__u8 bytes[DMP_WIRE_FRAME_BYTES_MAX];
};

struct line {
	struct message queue[QUEUE];
	__u32 first, count;
	struct message overtaken, echo;
	bool has_overtaken, has_echo;
};

/* A request taken and not answered, or (kind 0) a payload not yet written. */
struct pending {
	struct dmp_endpoint_request request;
	__u64 due_ns;
	__u32 value;
};

struct side {
	struct dmp_endpoint *machine;
	void *memory;
	struct line out;
	struct pending pending[PENDINGS];
	__u32 pendings;
	__u32 arriving;			/* value of the payload that follows the last frame */
	__u32 cells[CELLS];		/* the region the peer reads and writes */
	__u32 buffers[BUFFERS];		/* named by `local` */
	bool touched[BUFFERS];
	__u32 stages[STAGES];
	__u32 arrived;			/* messages that are in a buffer or a stage */
	bool closed;
};

struct conversation {
	struct side side[2];		/* connector, acceptor */
	struct fault faults[2];
	__u32 fault_count, messages;
	__u64 now_ns, owner_ns;
	bool direct, cut, silent;
};

static inline struct side *peer_of(struct conversation *talk, const struct side *side)
{
	return &talk->side[side == &talk->side[0]];
}

static inline __u32 state_of(const struct side *side)
{
	struct dmp_endpoint_status status;

	dmp_endpoint_query(side->machine, &status);
	return status.state;
}

/* ---- the fabric */

static inline void enqueue(struct line *line, const struct message *message)
{
	CHECK(line->count < QUEUE);
	line->queue[(line->first + line->count++) % QUEUE] = *message;
}

static inline void go_silent(struct conversation *talk)
{
	talk->silent = true;
	talk->side[0].out.count = talk->side[1].out.count = 0;
	talk->side[0].out.has_echo = talk->side[1].out.has_echo = false;
}

static inline void put(struct conversation *talk, struct line *line, struct message *message,
		       enum fault_kind kind)
{
	switch (kind) {
	case DELAY:
	case LATE:
		message->not_before_ns = talk->now_ns + (kind == DELAY ? DELAY_NS : LATE_NS);
		break;
	case REPEAT:
		enqueue(line, message);
		line->echo = *message;
		line->echo.not_before_ns = talk->now_ns + ECHO_NS;
		line->has_echo = true;
		break;
	case DAMAGE:
		message->bytes[talk->messages * 7 % message->frame_bytes] ^= 0x10;
		break;
	case CUT:
		talk->cut = true;
		return;
	case SILENCE:
		go_silent(talk);
		return;
	case SWAP:
		line->overtaken = *message;
		line->has_overtaken = true;
		return;
	default:
		return;		/* DROP */
	}
	enqueue(line, message);
}

static inline void transmit(struct conversation *talk, struct side *from, struct message *message)
{
	struct line *line = &from->out;
	__u32 number = talk->messages++, i;
	bool was_overtaken = line->has_overtaken;

	if (talk->silent || talk->cut)
		return;
	for (i = 0; i < talk->fault_count && talk->faults[i].number != number; i++)
		;
	if (i < talk->fault_count) {
		talk->faults[i].victim = from == &talk->side[0];
		put(talk, line, message, talk->faults[i].kind);
	} else {
		enqueue(line, message);
	}
	if (was_overtaken && line->has_overtaken) {
		enqueue(line, &line->overtaken);
		line->has_overtaken = false;
	}
}

/* The fabric is gone for @side; what it has sent before still arrives. */
static inline void close_side(struct conversation *talk, struct side *side)
{
	struct message end = { .end = true };

	if (side->closed)
		return;
	side->closed = true;
	side->pendings = 0;
	memset(side->touched, 0, sizeof(side->touched));
	if (!talk->silent)
		enqueue(&side->out, &end);
}

static inline void lose(struct conversation *talk, struct side *side)
{
	close_side(talk, side);
	dmp_endpoint_abort(side->machine, -ECONNRESET);
}

static inline bool deliver(struct conversation *talk, struct side *to)
{
	struct line *line = &peer_of(talk, to)->out;
	struct message *message = &line->queue[line->first];
	bool progress = false;
	int result;

	while (line->count && message->not_before_ns <= talk->now_ns) {
		if (message->end) {
			lose(talk, to);
		} else {
			result = dmp_endpoint_receive(to->machine, talk->now_ns, message->bytes,
						      message->frame_bytes);
			if (result == -EBUSY)
				break;
			to->arriving = message->value;
		}
		line->first = (line->first + 1) % QUEUE;
		line->count -= 1;
		message = &line->queue[line->first];
		progress = true;
	}
	if (line->has_echo && line->echo.not_before_ns <= talk->now_ns) {
		result = dmp_endpoint_receive(to->machine, talk->now_ns, line->echo.bytes,
					      line->echo.frame_bytes);
		line->has_echo = result == -EBUSY;
		progress |= !line->has_echo;
	}
	return progress;
}

/* ---- the owner of a machine */

static inline void touch(struct side *side, const struct pending *pending, bool touches)
{
	const struct dmp_endpoint_request *request = &pending->request;
	bool local = request->kind == DMP_REQUEST_PLACE ?
			     request->target == DMP_TARGET_LOCAL :
			     request->kind != DMP_REQUEST_ADMIT &&
				     request->kind != DMP_REQUEST_AUTHENTICATE;

	if (local)
		side->touched[request->local] = touches;
}

static inline void defer(struct conversation *talk, struct side *side,
			 const struct dmp_endpoint_request *request)
{
	struct pending *pending = &side->pending[side->pendings++];
	bool slow = request->kind && request->offset == SLOW_CELL;

	CHECK(side->pendings <= PENDINGS);
	pending->request = *request;
	pending->due_ns = talk->now_ns + (slow ? SLOW_NS : talk->owner_ns);
	pending->value = side->arriving;
	touch(side, pending, true);
}

/* Lets go of a buffer at once: what comes for it goes where the machine says. */
static inline void stop(struct conversation *talk, struct side *side,
			const struct dmp_endpoint_request *stop)
{
	struct dmp_endpoint_answer answer = { .kind = DMP_REQUEST_STOP, .tag = stop->tag };
	__u32 i;

	for (i = 0; i < side->pendings; i++) {
		struct pending *pending = &side->pending[i];

		if (!side->touched[stop->local] || pending->request.local != stop->local)
			continue;
		touch(side, pending, false);
		if (pending->request.kind == DMP_REQUEST_PLACE) {
			pending->request.target = stop->target ? stop->target :
								  DMP_TARGET_DISCARD;
			pending->request.stage = stop->stage;
		} else {
			*pending = side->pending[--side->pendings];
		}
		break;
	}
	CHECK(dmp_endpoint_answer(side->machine, talk->now_ns, &answer) == 0);
}

static inline __s32 verdict(const struct dmp_endpoint_request *request)
{
	if (request->key_bytes && request->key[0] == BAD_KEY)
		return -EACCES;
	return request->offset < CELLS ? 0 : -EINVAL;
}

static inline void place(struct side *side, const struct pending *pending,
			 struct dmp_endpoint_answer *answer)
{
	const struct dmp_endpoint_request *request = &pending->request;

	switch (request->target) {
	case DMP_TARGET_REGION:
		answer->result = verdict(request);
		if (!answer->result && request->length_bytes)
			side->cells[request->offset] = pending->value;
		break;
	case DMP_TARGET_LOCAL:
		side->buffers[request->local] = pending->value;
		break;
	case DMP_TARGET_STAGE:
		side->stages[request->stage] = pending->value;
		break;
	default:
		break;
	}
	side->arrived += request->operation == DMP_OP_SEND;
}

/* Direct fabrics: the initiator's owner reaches into the peer's region. */
static inline void move(struct conversation *talk, struct side *side,
			const struct dmp_endpoint_request *request,
			struct dmp_endpoint_answer *answer)
{
	__u32 *cells = peer_of(talk, side)->cells;

	answer->result = verdict(request);
	if (answer->result || !request->length_bytes)
		return;
	if (request->operation == DMP_OP_READ)
		side->buffers[request->local] = cells[request->offset];
	else
		cells[request->offset] = side->buffers[request->local];
}

static inline void perform(struct conversation *talk, struct side *side,
			   const struct pending *pending)
{
	const struct dmp_endpoint_request *request = &pending->request;
	struct dmp_endpoint_answer answer = { .kind = request->kind, .tag = request->tag,
					      .length_bytes = request->length_bytes };

	touch(side, pending, false);
	switch (request->kind) {
	case 0:
		dmp_endpoint_sent(side->machine, talk->now_ns, request->tag);
		return;
	case DMP_REQUEST_PLACE:
		place(side, pending, &answer);
		break;
	case DMP_REQUEST_ADMIT:
		answer.result = verdict(request);
		answer.cookie = request->offset;
		break;
	case DMP_REQUEST_MOVE:
		move(talk, side, request, &answer);
		break;
	case DMP_REQUEST_COPY:
		side->buffers[request->local] = side->stages[request->stage];
		break;
	default:
		break;
	}
	/* -ESTALE: the connection has ended meanwhile */
	dmp_endpoint_answer(side->machine, talk->now_ns, &answer);
}

static inline bool take_requests(struct conversation *talk, struct side *side)
{
	struct dmp_endpoint_answer closed = { .kind = DMP_REQUEST_CUT };
	struct dmp_endpoint_request request;
	bool progress = false;

	while (!dmp_endpoint_next_request(side->machine, &request)) {
		progress = true;
		if (request.kind == DMP_REQUEST_CUT) {
			close_side(talk, side);
			closed.tag = request.tag;
			CHECK(!dmp_endpoint_answer(side->machine, talk->now_ns, &closed));
		} else if (request.kind == DMP_REQUEST_STOP) {
			stop(talk, side, &request);
		} else {
			defer(talk, side, &request);
		}
	}
	return progress;
}

static inline bool take_frames(struct conversation *talk, struct side *side)
{
	struct dmp_endpoint_frame frame;
	bool progress = false;

	while (!dmp_endpoint_next_frame(side->machine, talk->now_ns, &frame)) {
		struct dmp_endpoint_request writing = { .tag = frame.tag, .local = frame.local };
		struct message message = { .frame_bytes = frame.frame_bytes };

		memcpy(message.bytes, frame.bytes, frame.frame_bytes);
		if (frame.payload == DMP_PAYLOAD_LOCAL) {
			message.value = side->buffers[frame.local];
			defer(talk, side, &writing);
		} else if (frame.payload == DMP_PAYLOAD_REGION) {
			message.value = side->cells[frame.local];
		}
		transmit(talk, side, &message);
		progress = true;
	}
	return progress;
}

static inline bool answer_due(struct conversation *talk, struct side *side)
{
	bool progress = false;
	__u32 i = 0;

	while (i < side->pendings) {
		struct pending due = side->pending[i];

		if (due.due_ns > talk->now_ns) {
			i++;
			continue;
		}
		side->pendings -= 1;
		memmove(&side->pending[i], &side->pending[i + 1],
			(side->pendings - i) * sizeof(due));
		perform(talk, side, &due);
		take_requests(talk, side);	/* may hold a STOP for what is still pending */
		progress = true;
		i = 0;
	}
	return progress;
}

/* ---- both together */

static inline bool turn(struct conversation *talk, struct side *side)
{
	bool progress = take_requests(talk, side);

	progress |= take_frames(talk, side);
	progress |= answer_due(talk, side);
	progress |= deliver(talk, side);
	if (progress)
		CHECK(dmp_endpoint_check(side->machine) == 0);
	return progress;
}

static inline void sooner(__u64 *next_ns, bool known, __u64 at_ns)
{
	if (known && at_ns < *next_ns)
		*next_ns = at_ns;
}

/* When something happens by itself; what is due already waits for something else. */
static inline __u64 next_event(const struct conversation *talk)
{
	__u64 next_ns = ~0ULL;
	__u32 i, j;

	for (i = 0; i < 2; i++) {
		const struct side *side = &talk->side[i];
		const struct message *head = &side->out.queue[side->out.first];

		sooner(&next_ns, true, dmp_endpoint_next_wakeup(side->machine));
		for (j = 0; j < side->pendings; j++)
			sooner(&next_ns, true, side->pending[j].due_ns);
		sooner(&next_ns, side->out.count && head->not_before_ns > talk->now_ns,
		       head->not_before_ns);
		sooner(&next_ns, side->out.has_echo && side->out.echo.not_before_ns > talk->now_ns,
		       side->out.echo.not_before_ns);
	}
	return next_ns;
}

static inline void begin(struct conversation *talk, const struct dmp_endpoint_config *limits)
{
	__u8 nonce[DMP_WIRE_NONCE_BYTES] = { 1 };
	__u32 i;

	talk->now_ns = 1000 * MS;
	for (i = 0; i < 2; i++) {
		struct dmp_endpoint_config config = *limits;
		struct side *side = &talk->side[i];
		size_t bytes;

		config.incarnation = 0xa1 + i;
		config.direct = talk->direct;
		bytes = dmp_endpoint_bytes(&config);
		side->memory = malloc(bytes);
		CHECK(side->memory && !dmp_endpoint_init(&side->machine, side->memory, bytes,
							 &config));
	}
	CHECK(!dmp_endpoint_connect(talk->side[0].machine, talk->now_ns,
				    talk->now_ns + GREETING_NS, nonce));
	nonce[0] = 2;
	CHECK(!dmp_endpoint_accept(talk->side[1].machine, talk->now_ns,
				   talk->now_ns + GREETING_NS, 5, nonce));
}

#endif /* DMP_TESTS_CONVERSATION_H */
