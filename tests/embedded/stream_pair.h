/* SPDX-License-Identifier: MIT */
/*
 * stream_pair.h - two machines, each on a stream, and a fabric that a test can torture
 *
 * The pipe of the fabric carries beside each byte whether it belongs to a WRITE, so that
 * receiving one into anything but its place is noticed, whoever counts what. How much a
 * call takes or gives is drawn from the seed, where one is set.
 *
 * `local` of a submission is the address of its bytes; a region is one block of memory
 * with no key. A side answers all requests itself, unless a test holds them back.
 */
#ifndef DMP_TESTS_STREAM_PAIR_H
#define DMP_TESTS_STREAM_PAIR_H

#include <string.h>

#include "core/check.h"
#include "dmaplane.h"
#include "libdmaplane.h"
#include "stream.h"

#define MS		1000000ULL
#define START_NS	(1000 * MS)
#define STAGES		64u
#define OPERATIONS	32u
#define PIPE_BYTES	(1u << 22)

static inline __u64 draw(__u64 *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

/* ---- the fabric */

struct pipe_bytes {
	__u8 bytes[PIPE_BYTES];
	__u8 of_write[PIPE_BYTES];
	size_t in, out;			/* bytes ever put in and taken out */
	size_t room;			/* how many may be on the way */
	size_t lost_at;			/* none is given from this one on; 0: never */
	__u8 frame[DMP_WIRE_FRAME_BYTES_MAX];	/* the parser: which bytes are a WRITE's */
	size_t frame_have;
	__u64 payload_left;
	bool writing;
};

struct torture {
	struct dmp_fabric fabric;
	struct pipe_bytes *to, *from;
	const struct dmp_stream *stream;	/* of this side */
	__u64 seed;				/* 0: whatever there is */
	unsigned int sends;
	bool broken;				/* nothing can be sent */
};

static inline void parse(struct pipe_bytes *pipe, __u8 byte)
{
	__u32 length = 0;
	int i;

	pipe->of_write[pipe->in % PIPE_BYTES] = pipe->payload_left && pipe->writing;
	if (pipe->payload_left) {
		pipe->payload_left -= 1;
		return;
	}
	pipe->frame[pipe->frame_have++] = byte;
	if (pipe->frame_have < DMP_WIRE_HEADER_BYTES ||
	    dmp_wire_peek(pipe->frame, DMP_WIRE_HEADER_BYTES, &length) ||
	    pipe->frame_have < length)
		return;
	for (i = 47; i >= 40; i--)
		pipe->payload_left = pipe->payload_left << 8 | pipe->frame[i];
	pipe->writing = pipe->frame[5] == DMP_FRAME_OPERATION &&
			(pipe->frame[64] == DMP_OP_WRITE || pipe->frame[64] == DMP_OP_WRITE_IMM);
	pipe->frame_have = 0;
}

static inline size_t some(struct torture *torture, size_t most)
{
	size_t few;

	if (!torture->seed || !most)
		return most;
	few = draw(&torture->seed) % 4 ? 7 : most;
	return draw(&torture->seed) % ((few < most ? few : most) + 1);
}

static inline ssize_t torture_send(struct dmp_fabric *fabric, const struct iovec *pieces, int count)
{
	struct torture *torture = (struct torture *)fabric;
	struct pipe_bytes *pipe = torture->to;
	size_t left = some(torture, pipe->room - (pipe->in - pipe->out));
	ssize_t taken = 0;
	size_t i;

	if (torture->broken)
		return -ECONNRESET;
	torture->sends += 1;
	for (; count && left; count--, pieces++) {
		for (i = 0; i < pieces->iov_len && left; i++, left--, taken++) {
			pipe->bytes[pipe->in % PIPE_BYTES] = ((__u8 *)pieces->iov_base)[i];
			parse(pipe, ((__u8 *)pieces->iov_base)[i]);
			pipe->in += 1;
		}
	}
	return taken;
}

static inline ssize_t torture_receive(struct dmp_fabric *fabric, const struct iovec *pieces,
				      int count)
{
	struct torture *torture = (struct torture *)fabric;
	struct pipe_bytes *pipe = torture->from;
	size_t end = pipe->lost_at && pipe->lost_at < pipe->in ? pipe->lost_at : pipe->in;
	size_t left = some(torture, end - pipe->out);
	const __u8 *buffer = torture->stream->buffer;
	ssize_t given = 0;
	__u8 *target;
	size_t i;

	if (pipe->lost_at && pipe->out == pipe->lost_at)
		return -ECONNRESET;
	for (; count && left; count--, pieces++) {
		for (i = 0; i < pieces->iov_len && left; i++, left--, given++) {
			target = (__u8 *)pieces->iov_base + i;
			*target = pipe->bytes[pipe->out % PIPE_BYTES];
			CHECK(!pipe->of_write[pipe->out % PIPE_BYTES] || target < buffer ||
			      target >= buffer + DMP_STREAM_BUFFER);
			pipe->out += 1;
		}
	}
	return given;
}

static inline void torture_close(struct dmp_fabric *fabric)
{
	free(fabric);
}

static const struct dmp_fabric_type torture_type = {
	.path = DMP_PATH_TCP,
	.send = torture_send,
	.receive = torture_receive,
	.close = torture_close,
};

/* ---- a side */

struct side {
	struct dmp_endpoint *machine;
	void *memory;
	struct dmp_stream stream;
	struct dmp_fabric *fabric;
	char *region;
	__u64 region_bytes;
	char *stages[STAGES];
	struct dmp_endpoint_request landing;
	bool landing_active;
	bool holds_requests;		/* the test answers, not we */
	__u64 sent_tags[1024];		/* of own operations, as told */
	__u32 sent_count;
	__u32 completed, failed, events;
	__s32 last_result;
	__u64 now_ns;
};

static inline const char *payload_of(void *owner, const struct dmp_endpoint_frame *frame)
{
	(void)owner;
	return (const char *)(uintptr_t)frame->local;
}

static inline void payload_sent(void *owner, const struct dmp_endpoint_frame *frame)
{
	struct side *side = owner;

	if (frame->payload == DMP_PAYLOAD_LOCAL)
		side->sent_tags[side->sent_count++ % 1024] = frame->tag;
}

static inline void side_start(struct side *side, struct dmp_fabric *fabric, bool connector)
{
	const __u8 nonce[DMP_WIRE_NONCE_BYTES] = { connector };
	struct dmp_endpoint_config config = {
		.incarnation = connector ? 0xa1 : 0xb1,
		.window_slots = STAGES,
		.window_bytes = 1 << 20,
		.detect_ns = 300 * MS,
		.operations_max = OPERATIONS,
		.receives_max = OPERATIONS,
		.incoming_max = OPERATIONS,
	};

	memset(side, 0, sizeof(*side));
	side->now_ns = START_NS;
	side->fabric = fabric;
	side->memory = malloc(dmp_endpoint_bytes(&config));
	CHECK(side->memory);
	CHECK(!dmp_endpoint_init(&side->machine, side->memory, dmp_endpoint_bytes(&config),
				 &config));
	CHECK(!dmp_stream_init(&side->stream, fabric, side, payload_of, payload_sent));
	if (connector)
		CHECK(!dmp_endpoint_connect(side->machine, START_NS, START_NS + 100 * MS, nonce));
	else
		CHECK(!dmp_endpoint_accept(side->machine, START_NS, START_NS + 100 * MS, 5, nonce));
}

static inline void side_end(struct side *side)
{
	__u32 stage;

	CHECK(!dmp_endpoint_check(side->machine));
	dmp_stream_free(&side->stream);
	if (side->fabric)
		side->fabric->type->close(side->fabric);
	for (stage = 0; stage < STAGES; stage++)
		free(side->stages[stage]);
	free(side->region);
	free(side->memory);
}

static inline void reply(struct side *side, __u32 kind, __u64 tag, __s32 result, __u64 cookie)
{
	struct dmp_endpoint_answer answer = {
		.kind = kind, .tag = tag, .result = result, .cookie = cookie,
	};

	dmp_endpoint_answer(side->machine, side->now_ns, &answer);
}

static inline char *place_of(struct side *side, const struct dmp_endpoint_request *request)
{
	switch (request->target) {
	case DMP_TARGET_REGION:
		if (!side->region || request->offset + request->length_bytes > side->region_bytes)
			return NULL;
		return side->region + request->offset;
	case DMP_TARGET_LOCAL:
		return (char *)(uintptr_t)request->local;
	case DMP_TARGET_STAGE:
		free(side->stages[request->stage]);
		side->stages[request->stage] = malloc(request->length_bytes + 1);
		CHECK(side->stages[request->stage]);
		return side->stages[request->stage];
	default:
		return NULL;
	}
}

static inline void finish_landing(struct side *side)
{
	struct dmp_endpoint_request *landing = &side->landing;
	__s32 result = 0;

	CHECK(side->landing_active);
	side->landing_active = false;
	if (landing->target == DMP_TARGET_REGION && !side->stream.place)
		result = -EACCES;
	else if (landing->flags & DMP_WIRE_CHECKSUM && side->stream.checked &&
		 landing->checksum != side->stream.checksum)
		result = -EBADMSG;
	CHECK(side->stream.payload_done == landing->length_bytes);
	reply(side, DMP_REQUEST_PLACE, landing->tag, result, 0);
}

static inline void answer_stop(struct side *side, const struct dmp_endpoint_request *request)
{
	bool is_landing = side->landing_active && request->target == DMP_TARGET_STAGE;

	if (is_landing)
		dmp_stream_replace_locked(&side->stream, place_of(side, request));
	else if (side->landing_active && side->landing.tag == request->tag)
		dmp_stream_discard_locked(&side->stream);
	else
		CHECK(!dmp_stream_stop_locked(&side->stream, request->tag));
	reply(side, DMP_REQUEST_STOP, request->tag, 0, 0);
}

static inline void answer_requests(struct side *side)
{
	struct dmp_endpoint_request request;
	char *place;

	while (!dmp_endpoint_next_request(side->machine, &request)) {
		switch (request.kind) {
		case DMP_REQUEST_PLACE:
			side->landing = request;
			side->landing_active = true;
			place = place_of(side, &request);
			dmp_stream_place_locked(&side->stream, place, request.length_bytes,
						request.flags & DMP_WIRE_CHECKSUM);
			break;
		case DMP_REQUEST_ADMIT:
			place = side->region + request.offset;
			reply(side, request.kind, request.tag, 0, (__u64)(uintptr_t)place);
			break;
		case DMP_REQUEST_COPY:
			memcpy((char *)(uintptr_t)request.local, side->stages[request.stage],
			       request.length_bytes);
			reply(side, request.kind, request.tag, 0, 0);
			break;
		case DMP_REQUEST_STOP:
			answer_stop(side, &request);
			break;
		default:
			reply(side, request.kind, request.tag, 0, 0);
			break;
		}
	}
}

static inline void take_completions(struct side *side)
{
	struct dmp_endpoint_completion completion;

	while (!dmp_endpoint_next_event(side->machine, side->now_ns, &completion))
		side->events += 1;
	while (!dmp_endpoint_next_completion(side->machine, &completion)) {
		side->completed += 1;
		side->failed += completion.result != 0;
		side->last_result = completion.result;
	}
}

/* What an executor does in one round; true if anything moved. */
static inline bool round_of(struct side *side)
{
	bool moved;
	int placed, fed;

	dmp_endpoint_tick(side->machine, side->now_ns);
	if (!side->holds_requests)
		answer_requests(side);
	dmp_stream_load_locked(&side->stream, side->machine, side->now_ns);
	moved = dmp_stream_move(&side->stream);
	do {
		fed = dmp_stream_feed_locked(&side->stream, side->machine, side->now_ns, &placed);
		if (placed)
			finish_landing(side);
		if (!side->holds_requests)
			answer_requests(side);
	} while (fed == 1 || (fed == -EBUSY && !side->holds_requests));
	take_completions(side);
	return moved || dmp_stream_load_locked(&side->stream, side->machine, side->now_ns);
}

/* ---- a pair of them */

struct pair {
	struct side a, b;		/* a connects */
	struct pipe_bytes *pipes;	/* a to b, b to a; NULL on sockets */
};

static inline void pair_open(struct pair *pair, struct dmp_fabric *a, struct dmp_fabric *b)
{
	struct dmp_endpoint_status status = { 0 };
	unsigned int rounds;

	side_start(&pair->a, a, true);
	side_start(&pair->b, b, false);
	if (pair->pipes) {
		((struct torture *)a)->stream = &pair->a.stream;
		((struct torture *)b)->stream = &pair->b.stream;
	}
	for (rounds = 0; rounds < 100000; rounds++) {
		round_of(&pair->a);
		round_of(&pair->b);
		dmp_endpoint_query(pair->a.machine, &status);
		if (status.state != DMP_ENDPOINT_OPEN || !status.send.available.slots)
			continue;
		dmp_endpoint_query(pair->b.machine, &status);
		if (status.state == DMP_ENDPOINT_OPEN && status.send.available.slots)
			return;
	}
	CHECK(!"the handshake ends");
}

static inline struct torture *torture_of(struct side *side)
{
	return (struct torture *)side->fabric;
}

static inline void pair_on_torture(struct pair *pair, __u64 seed)
{
	struct torture *a = calloc(1, sizeof(*a));
	struct torture *b = calloc(1, sizeof(*b));

	pair->pipes = calloc(2, sizeof(*pair->pipes));
	CHECK(a && b && pair->pipes);
	a->fabric.type = &torture_type;
	b->fabric.type = &torture_type;
	a->to = b->from = &pair->pipes[0];
	b->to = a->from = &pair->pipes[1];
	pair->pipes[0].room = pair->pipes[1].room = PIPE_BYTES;
	a->seed = seed;
	b->seed = seed ? seed * 31 + 7 : 0;
	pair_open(pair, &a->fabric, &b->fabric);
}

static inline void pair_end(struct pair *pair)
{
	side_end(&pair->a);
	side_end(&pair->b);
	free(pair->pipes);
}

static inline __u64 submit(struct side *side, __u16 operation, char *local, __u64 length,
			   __u64 offset, __u64 deadline_ns)
{
	struct dmp_endpoint_submission submission = {
		.operation = operation,
		.local = (__u64)(uintptr_t)local,
		.length_bytes = length,
		.offset = offset,
		.deadline_ns = deadline_ns,
	};
	__u64 tag;

	if (operation != DMP_OP_RECV && operation != DMP_OP_READ && local && length % 2) {
		submission.flags = DMP_SUBMIT_CHECKSUM;
		submission.checksum = dmp_crc32c(0, local, length);
	}
	CHECK(!dmp_endpoint_submit(side->machine, side->now_ns, &submission, &tag));
	return tag;
}

static inline char *region_for(struct side *side, __u64 bytes)
{
	free(side->region);
	side->region = calloc(1, bytes);
	side->region_bytes = bytes;
	CHECK(side->region);
	return side->region;
}

static inline void settle(struct pair *pair, unsigned int rounds)
{
	while (rounds--) {
		bool a = round_of(&pair->a);
		bool b = round_of(&pair->b);

		if (!a && !b && !torture_of(&pair->a)->seed)
			return;
	}
}

#endif /* DMP_TESTS_STREAM_PAIR_H */
