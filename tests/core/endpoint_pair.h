/* SPDX-License-Identifier: MIT */
/*
 * endpoint_pair.h - two endpoint machines that a test drives by hand
 *
 * A is the connector, B the acceptor. Time stands at NOW unless a test passes another.
 */
#ifndef DMP_TESTS_ENDPOINT_PAIR_H
#define DMP_TESTS_ENDPOINT_PAIR_H

#include <string.h>

#include "check.h"
#include "dmaplane.h"
#include "endpoint_layout.h"

#define MS	  1000000ULL
#define NOW	  (1000 * MS)
#define DETECT_NS (300 * MS)
#define A_IS	  0xa1
#define B_IS	  0xb1
#define EPOCH	  5

static const struct dmp_endpoint_config usual = {
	.incarnation = A_IS,
	.window_slots = 2,
	.window_bytes = 100,
	.detect_ns = DETECT_NS,
	.operations_max = 4,
	.receives_max = 3,
	.incoming_max = 4,
};

struct pair {
	struct dmp_endpoint *a, *b;
	void *memory_a, *memory_b;
};

/* Memory of exactly the size asked for, so that a sanitizer sees one byte too many. */
static inline struct dmp_endpoint *make(const struct dmp_endpoint_config *config, void **memory)
{
	size_t bytes = dmp_endpoint_bytes(config);
	struct dmp_endpoint *endpoint;

	CHECK(bytes);
	*memory = malloc(bytes);
	CHECK(*memory);
	CHECK(dmp_endpoint_init(&endpoint, *memory, bytes - 1, config) == -EINVAL);
	CHECK(dmp_endpoint_init(&endpoint, *memory, bytes, config) == 0);
	return endpoint;
}

static inline struct pair make_pair(bool direct)
{
	const __u8 nonce_a[DMP_WIRE_NONCE_BYTES] = { 1 };
	const __u8 nonce_b[DMP_WIRE_NONCE_BYTES] = { 2 };
	struct dmp_endpoint_config config = usual;
	struct pair pair;

	config.direct = direct;
	pair.a = make(&config, &pair.memory_a);
	config.incarnation = B_IS;
	pair.b = make(&config, &pair.memory_b);
	CHECK(dmp_endpoint_connect(pair.a, NOW, NOW + 100 * MS, nonce_a) == 0);
	CHECK(dmp_endpoint_accept(pair.b, NOW, NOW + 100 * MS, EPOCH, nonce_b) == 0);
	return pair;
}

static inline void free_pair(struct pair *pair)
{
	CHECK(dmp_endpoint_check(pair->a) == 0 && dmp_endpoint_check(pair->b) == 0);
	free(pair->memory_a);
	free(pair->memory_b);
}

static inline __u32 state(const struct dmp_endpoint *endpoint)
{
	return endpoint->state;
}

/* Take the next frame; its type, 0 if there is none. */
static inline __u32 take(struct dmp_endpoint *from, struct dmp_endpoint_frame *frame)
{
	if (dmp_endpoint_next_frame(from, NOW, frame))
		return 0;
	return frame->bytes[5];
}

/* One frame across; its type. A payload counts as written at once. */
static inline __u32 pass(struct dmp_endpoint *from, struct dmp_endpoint *to)
{
	struct dmp_endpoint_frame frame;
	__u32 type = take(from, &frame);

	if (!type)
		return 0;
	if (frame.payload == DMP_PAYLOAD_LOCAL)
		CHECK(dmp_endpoint_sent(from, NOW, frame.tag) == 0);
	CHECK(dmp_endpoint_receive(to, NOW, frame.bytes, frame.frame_bytes) == 0);
	return type;
}

/* The one request of @kind that must be next, answered with @result. */
static inline struct dmp_endpoint_request answer(struct dmp_endpoint *endpoint, __u32 kind, __s32 result)
{
	struct dmp_endpoint_answer answer = { .kind = kind, .result = result };
	struct dmp_endpoint_request request;

	CHECK(dmp_endpoint_next_request(endpoint, &request) == 0);
	CHECK(request.kind == kind);
	answer.tag = request.tag;
	answer.length_bytes = request.length_bytes;
	CHECK(dmp_endpoint_answer(endpoint, NOW, &answer) == 0);
	return request;
}

static inline void stopped(struct dmp_endpoint *endpoint, __u64 tag)
{
	struct dmp_endpoint_answer answer = { .kind = DMP_REQUEST_STOP, .tag = tag };

	CHECK(dmp_endpoint_answer(endpoint, NOW, &answer) == 0);
}

static inline struct pair make_open(bool direct)
{
	struct pair pair = make_pair(direct);

	CHECK(pass(pair.a, pair.b) == DMP_FRAME_HELLO);
	answer(pair.b, DMP_REQUEST_AUTHENTICATE, 0);
	CHECK(pass(pair.b, pair.a) == DMP_FRAME_WELCOME);
	answer(pair.a, DMP_REQUEST_AUTHENTICATE, 0);
	CHECK(pass(pair.a, pair.b) == DMP_FRAME_CONFIRM);
	answer(pair.b, DMP_REQUEST_AUTHENTICATE, 0);
	CHECK(pass(pair.b, pair.a) == DMP_FRAME_GRANT);
	CHECK(pass(pair.a, pair.b) == DMP_FRAME_GRANT);
	CHECK(state(pair.a) == DMP_ENDPOINT_OPEN && state(pair.b) == DMP_ENDPOINT_OPEN);
	return pair;
}

static inline __u64 submit_until(struct dmp_endpoint *endpoint, __u16 operation, __u64 length,
			  __u64 deadline_ns)
{
	struct dmp_endpoint_submission submission = {
		.operation = operation,
		.length_bytes = length,
		.user_data = length,
		.deadline_ns = deadline_ns,
	};
	__u64 tag;

	CHECK(dmp_endpoint_submit(endpoint, NOW, &submission, &tag) == 0);
	return tag;
}

static inline __u64 submit(struct dmp_endpoint *endpoint, __u16 operation, __u64 length)
{
	return submit_until(endpoint, operation, length, 0);
}

static inline void expect(struct dmp_endpoint *endpoint, __u64 tag, __s32 result)
{
	struct dmp_endpoint_completion completion;

	CHECK(dmp_endpoint_next_completion(endpoint, &completion) == 0);
	CHECK(completion.tag == tag && completion.result == result);
}

static inline void expect_none(struct dmp_endpoint *endpoint)
{
	struct dmp_endpoint_completion completion;

	CHECK(dmp_endpoint_next_completion(endpoint, &completion) == -EAGAIN);
	CHECK(dmp_endpoint_next_event(endpoint, NOW, &completion) == -EAGAIN);
}

static inline void expect_event(struct dmp_endpoint *endpoint, __u16 operation, __s32 result)
{
	struct dmp_endpoint_completion completion;

	CHECK(dmp_endpoint_next_event(endpoint, NOW, &completion) == 0);
	CHECK(completion.flags & DMP_COMPLETE_EVENT);
	CHECK(completion.operation == operation && completion.result == result);
}

#endif /* DMP_TESTS_ENDPOINT_PAIR_H */
