// SPDX-License-Identifier: MIT
/*
 * test_endpoint.c - an endpoint machine, one rule at a time (laws L1, L2, L5, L7)
 *
 * Two machines are driven by hand. What happens when everything goes wrong at once is
 * the simulator's part.
 */
#include "endpoint_pair.h"

static void test_limits_out_of_range_are_refused(void)
{
	struct dmp_endpoint_config config;

#define REFUSED(change)						\
	do {							\
		config = usual;					\
		config.change;					\
		CHECK(dmp_endpoint_bytes(&config) == 0);	\
	} while (0)
	REFUSED(incarnation = 0);
	REFUSED(window_slots = 0);
	REFUSED(window_bytes = 0);
	REFUSED(detect_ns = 0);
	REFUSED(detect_ns = ~0ULL);
	REFUSED(operations_max = 0);
	REFUSED(receives_max = DMP_ENDPOINT_TABLE_MAX + 1);
	REFUSED(incoming_max = ~0U);
	REFUSED(features_required = 1);
#undef REFUSED
}

static void test_wrong_submissions_are_refused_without_a_trace(void)
{
	const struct dmp_endpoint_submission good = { .operation = DMP_OP_WRITE,
						      .length_bytes = 10 };
	struct dmp_endpoint_submission bad;
	struct pair pair = make_open(false);
	__u64 tag = 77;

#define REFUSED(error, change)							\
	do {									\
		bad = good;							\
		bad.change;							\
		CHECK(dmp_endpoint_submit(pair.a, NOW, &bad, &tag) == (error));	\
	} while (0)
	REFUSED(-EINVAL, operation = DMP_OP_COPY);
	REFUSED(-EINVAL, flags = DMP_SUBMIT_LINK);
	REFUSED(-EINVAL, key_bytes = DMP_WIRE_KEY_BYTES + 1);
	REFUSED(-EINVAL, operation = DMP_OP_WRITE_IMM; bad.length_bytes = 0);
	REFUSED(-EINVAL, immediate = 1);
	REFUSED(-EOVERFLOW, offset = ~0ULL);
	REFUSED(-EINVAL, operation = DMP_OP_SEND; bad.offset = 1);
	REFUSED(-EOVERFLOW, operation = DMP_OP_SEND; bad.length_bytes = 101);
#undef REFUSED
	CHECK(tag == 77 && pair.a->in_flight == 0 && pair.a->reserved == 0);
	free_pair(&pair);
}

static void test_message_waits_for_credit_in_order_and_nowait_does_not(void)
{
	struct dmp_endpoint_submission now = { .operation = DMP_OP_SEND, .length_bytes = 1,
					       .flags = DMP_SUBMIT_NOWAIT };
	static struct dmp_histogram_counts stalls;
	struct pair pair = make_open(false);
	struct dmp_endpoint_frame frame;
	__u64 first, second, third, write, tag;

	pair.a->config.stall = &stalls;
	first = submit(pair.a, DMP_OP_SEND, 50);
	second = submit(pair.a, DMP_OP_SEND, 50);
	third = submit_until(pair.a, DMP_OP_SEND, 7, NOW + 5 * MS);
	write = submit(pair.a, DMP_OP_WRITE, 9);
	CHECK(dmp_endpoint_submit(pair.a, NOW, &now, &tag) == -EAGAIN);
	CHECK(pass(pair.a, pair.b) == DMP_FRAME_OPERATION);
	answer(pair.b, DMP_REQUEST_PLACE, 0);
	CHECK(pass(pair.a, pair.b) == DMP_FRAME_OPERATION);
	answer(pair.b, DMP_REQUEST_PLACE, 0);
	/* no credit: the third waits, and the write behind it too */
	CHECK(take(pair.a, &frame) == 0 && pair.a->sender.stalls == 1);
	CHECK(pass(pair.b, pair.a) == DMP_FRAME_COMPLETE);
	CHECK(pass(pair.b, pair.a) == DMP_FRAME_COMPLETE);
	expect(pair.a, first, 0);
	expect(pair.a, second, 0);
	dmp_endpoint_tick(pair.a, NOW + 5 * MS - 1);
	expect_none(pair.a);
	/* its deadline runs while it waits; what was behind it goes */
	dmp_endpoint_tick(pair.a, NOW + 5 * MS);
	expect(pair.a, third, -ETIMEDOUT);
	CHECK(take(pair.a, &frame) == DMP_FRAME_OPERATION && frame.tag == write);
	CHECK(pair.a->sender.stall_ns == 5 * MS);
	CHECK(stalls.samples == 1 && stalls.sum == 5 * MS);
	free_pair(&pair);
}

/* A WRITE or READ of nothing asks whether it would be allowed. */
static void test_an_empty_transfer_brings_the_peers_verdict(void)
{
	static const __u16 operations[] = { DMP_OP_WRITE, DMP_OP_READ };
	static const __s32 verdicts[] = { 0, -EACCES, -ESTALE };
	struct pair pair = make_open(false), direct = make_open(true);
	struct dmp_endpoint_request request;
	bool read, allowed;
	__u64 tag;
	int i, j;

	for (i = 0; i < 6; i++) {
		read = operations[i % 2] == DMP_OP_READ;
		allowed = verdicts[i / 2] == 0;
		tag = submit(pair.a, operations[i % 2], 0);
		CHECK(pass(pair.a, pair.b) == DMP_FRAME_OPERATION);
		request = answer(pair.b, read ? DMP_REQUEST_ADMIT : DMP_REQUEST_PLACE,
				 verdicts[i / 2]);
		CHECK(request.length_bytes == 0);
		CHECK(request.access == (read ? DMP_ACCESS_REMOTE_READ :
						DMP_ACCESS_REMOTE_WRITE));
		CHECK(read || request.target == DMP_TARGET_REGION);
		CHECK(pass(pair.b, pair.a) == (read && allowed ? DMP_FRAME_RESPONSE :
							       DMP_FRAME_COMPLETE));
		if (read && allowed)
			answer(pair.a, DMP_REQUEST_PLACE, 0);
		expect(pair.a, tag, verdicts[i / 2]);
	}
	for (j = 0; j < 2; j++) {
		tag = submit(direct.a, operations[j], 0);
		CHECK(answer(direct.a, DMP_REQUEST_MOVE, 0).length_bytes == 0);
		expect(direct.a, tag, 0);
	}
	free_pair(&pair);
	free_pair(&direct);
}

/* What the owner keeps behind the valid bytes of a key stays at home. */
static void test_only_the_valid_bytes_of_a_key_travel(void)
{
	struct dmp_endpoint_submission submission = { .operation = DMP_OP_READ,
						      .length_bytes = 1, .key_bytes = 5 };
	struct pair pair = make_open(false);
	struct dmp_endpoint_frame frame;
	int i, secrets = 0;
	__u64 tag;

	memset(submission.key, 0x77, sizeof(submission.key));
	CHECK(dmp_endpoint_submit(pair.a, NOW, &submission, &tag) == 0);
	CHECK(take(pair.a, &frame) == DMP_FRAME_OPERATION);
	for (i = 0; i < DMP_WIRE_KEY_BYTES; i++)
		secrets += frame.bytes[frame.frame_bytes - DMP_WIRE_KEY_BYTES + i] == 0x77;
	CHECK(secrets == 5);
	free_pair(&pair);
}

static void test_receive_gets_a_staged_message_and_credit_returns(void)
{
	struct pair pair = make_open(false);
	struct dmp_endpoint_request request;
	__u64 small, large;

	submit(pair.a, DMP_OP_SEND, 100);
	CHECK(pass(pair.a, pair.b) == DMP_FRAME_OPERATION);
	request = answer(pair.b, DMP_REQUEST_PLACE, 0);
	CHECK(request.target == DMP_TARGET_STAGE);
	small = submit(pair.b, DMP_OP_RECV, 99);
	large = submit(pair.b, DMP_OP_RECV, 100);
	expect(pair.b, small, -EOVERFLOW);	/* too small fails; the message is not lost */
	CHECK(!dmp_credit_due(&pair.b->receiver));
	request = answer(pair.b, DMP_REQUEST_COPY, 0);
	CHECK(request.tag == large && request.length_bytes == 100);
	expect(pair.b, large, 0);
	CHECK(pass(pair.b, pair.a) == DMP_FRAME_GRANT);
	CHECK(pair.a->sender.ledger.granted.bytes == 200);
	free_pair(&pair);
}

static void test_cancel_waits_until_the_peer_has_answered(void)
{
	struct pair pair = make_open(false);
	__u64 queued, sent;

	sent = submit(pair.a, DMP_OP_READ, 10);
	CHECK(pass(pair.a, pair.b) == DMP_FRAME_OPERATION);
	queued = submit(pair.a, DMP_OP_READ, 11);
	CHECK(dmp_endpoint_cancel(pair.a, NOW, queued) == 0);
	expect(pair.a, queued, -ECANCELED);	/* nobody has heard of it */
	CHECK(dmp_endpoint_cancel(pair.a, NOW, queued) == -ENOENT);
	CHECK(dmp_endpoint_cancel(pair.a, NOW, sent) == 0);
	expect_none(pair.a);
	CHECK(pass(pair.a, pair.b) == DMP_FRAME_CANCEL);
	expect_none(pair.a);
	CHECK(pass(pair.b, pair.a) == DMP_FRAME_CANCELLED);
	expect(pair.a, sent, -ECANCELED);
	free_pair(&pair);
}

static void test_timed_out_read_does_not_land_in_its_buffer(void)
{
	struct pair pair = make_open(false);
	struct dmp_endpoint_request request;
	__u64 tag = submit_until(pair.a, DMP_OP_READ, 10, NOW + MS);

	CHECK(pass(pair.a, pair.b) == DMP_FRAME_OPERATION);
	answer(pair.b, DMP_REQUEST_ADMIT, 0);
	dmp_endpoint_tick(pair.a, NOW + MS);
	expect(pair.a, tag, -ETIMEDOUT);
	CHECK(pair.a->zombies == 1);
	CHECK(pass(pair.b, pair.a) == DMP_FRAME_RESPONSE);
	request = answer(pair.a, DMP_REQUEST_PLACE, 0);
	CHECK(request.target == DMP_TARGET_DISCARD && pair.a->zombies == 0);
	expect_none(pair.a);
	free_pair(&pair);
}

static void test_held_buffer_is_asked_back_at_the_deadline(void)
{
	struct pair pair = make_open(false);
	struct dmp_endpoint_request request;
	struct dmp_endpoint_frame frame;
	__u64 tag = submit_until(pair.a, DMP_OP_WRITE, 10, NOW + MS);

	CHECK(take(pair.a, &frame) == DMP_FRAME_OPERATION && frame.tag == tag);
	dmp_endpoint_tick(pair.a, NOW + MS);
	expect_none(pair.a);			/* its payload is being written */
	CHECK(dmp_endpoint_next_request(pair.a, &request) == 0);
	CHECK(request.kind == DMP_REQUEST_STOP && request.tag == tag);
	stopped(pair.a, tag);
	expect(pair.a, tag, -ETIMEDOUT);
	CHECK(dmp_endpoint_sent(pair.a, NOW, tag) == -ESTALE);
	free_pair(&pair);
}

static void test_message_survives_a_receive_that_gives_up_half_way(void)
{
	struct pair pair = make_open(false);
	struct dmp_endpoint_answer placed = { .kind = DMP_REQUEST_PLACE };
	struct dmp_endpoint_request place, stop;
	__u64 tag = submit_until(pair.b, DMP_OP_RECV, 10, NOW + MS), next;

	submit(pair.a, DMP_OP_SEND, 10);
	CHECK(pass(pair.a, pair.b) == DMP_FRAME_OPERATION);
	CHECK(dmp_endpoint_next_request(pair.b, &place) == 0);
	CHECK(place.target == DMP_TARGET_LOCAL);
	dmp_endpoint_tick(pair.b, NOW + MS);
	expect_none(pair.b);
	CHECK(dmp_endpoint_next_request(pair.b, &stop) == 0);
	CHECK(stop.kind == DMP_REQUEST_STOP && stop.target == DMP_TARGET_STAGE);
	stopped(pair.b, stop.tag);
	expect(pair.b, tag, -ETIMEDOUT);
	placed.tag = place.tag;
	CHECK(dmp_endpoint_answer(pair.b, NOW, &placed) == 0);
	next = submit(pair.b, DMP_OP_RECV, 10);
	CHECK(answer(pair.b, DMP_REQUEST_COPY, 0).stage == stop.stage);
	expect(pair.b, next, 0);
	free_pair(&pair);
}

static void test_end_of_connection_completes_all_but_waits_for_held_buffers(void)
{
	struct pair pair = make_open(true);
	struct dmp_endpoint_request move;
	__u64 held = submit(pair.a, DMP_OP_WRITE, 10), posted;

	CHECK(dmp_endpoint_next_request(pair.a, &move) == 0 && move.kind == DMP_REQUEST_MOVE);
	posted = submit(pair.a, DMP_OP_RECV, 10);
	dmp_endpoint_tick(pair.a, NOW + DETECT_NS);	/* the peer is silent */
	CHECK(state(pair.a) == DMP_ENDPOINT_CUTTING);
	expect(pair.a, posted, -ECONNRESET);
	expect_event(pair.a, DMP_EVENT_ENDPOINT_LOST, -ECONNRESET);
	expect_none(pair.a);
	answer(pair.a, DMP_REQUEST_CUT, 0);
	CHECK(state(pair.a) == DMP_ENDPOINT_DEAD);
	CHECK(dmp_endpoint_reset(pair.a) == -EBUSY);	/* a completion is unread */
	expect(pair.a, held, -ECONNRESET);
	CHECK(dmp_endpoint_reset(pair.a) == 0);
	free_pair(&pair);
}

/* Simulator, seed 104603: the answer was refused, and the buffer held until CUT. */
static void test_answer_to_a_move_frees_the_buffer_after_the_end_too(void)
{
	struct pair pair = make_open(true);
	__u64 tag = submit(pair.a, DMP_OP_WRITE, 10);
	struct dmp_endpoint_answer moved = { .kind = DMP_REQUEST_MOVE, .tag = tag };
	struct dmp_endpoint_request move;

	CHECK(dmp_endpoint_next_request(pair.a, &move) == 0 && move.kind == DMP_REQUEST_MOVE);
	CHECK(dmp_endpoint_goodbye(pair.a, NOW) == 0);
	expect_none(pair.a);
	CHECK(dmp_endpoint_answer(pair.a, NOW, &moved) == 0);
	expect(pair.a, tag, -ECONNRESET);
	CHECK(dmp_endpoint_answer(pair.a, NOW, &moved) == -ESTALE);
	free_pair(&pair);
}

static void test_silent_peer_is_asked_before_it_is_lost(void)
{
	struct pair pair = make_open(false);
	struct dmp_endpoint_frame frame;

	CHECK(dmp_endpoint_next_wakeup(pair.a) == NOW + DETECT_NS / 4);
	dmp_endpoint_tick(pair.a, NOW + DETECT_NS / 4 - 1);
	CHECK(take(pair.a, &frame) == 0);
	dmp_endpoint_tick(pair.a, NOW + DETECT_NS / 4);
	CHECK(pass(pair.a, pair.b) == DMP_FRAME_PING);
	CHECK(pass(pair.b, pair.a) == DMP_FRAME_PONG);
	dmp_endpoint_tick(pair.a, NOW + DETECT_NS - 1);
	CHECK(state(pair.a) == DMP_ENDPOINT_OPEN);
	dmp_endpoint_tick(pair.a, NOW + DETECT_NS);
	CHECK(state(pair.a) == DMP_ENDPOINT_CUTTING);
	free_pair(&pair);
}

/* An owner of many idle endpoints wakes once for all: they ask at the same instants. */
static void test_endpoints_with_time_for_it_ask_together(void)
{
	struct pair pair = make_open(false);
	__u64 first, second, detect_ns = 2000 * MS;

	pair.a->config.detect_ns = detect_ns;
	dmp_endpoint_alive(pair.a, NOW + 3 * MS);
	first = dmp_endpoint_next_wakeup(pair.a);
	dmp_endpoint_alive(pair.a, NOW + 5 * MS);
	second = dmp_endpoint_next_wakeup(pair.a);
	CHECK(first == second);
	CHECK(first >= NOW + 5 * MS + detect_ns / 4);
	/* and still three times before the peer is lost */
	CHECK(3 * (first - (NOW + 3 * MS)) < detect_ns);
	dmp_endpoint_tick(pair.a, first - 1);
	CHECK(!pair.a->ping);
	dmp_endpoint_tick(pair.a, first);
	CHECK(pair.a->ping);
	free_pair(&pair);
}

static void test_both_drain_and_part_without_an_error(void)
{
	struct pair pair = make_open(false);
	struct dmp_endpoint_submission late = { .operation = DMP_OP_WRITE, .length_bytes = 1 };
	struct dmp_endpoint_frame frame;
	__u64 write = submit(pair.a, DMP_OP_WRITE, 10), tag;

	CHECK(dmp_endpoint_drain(pair.a, NOW, NOW + 50 * MS) == 0);
	CHECK(dmp_endpoint_submit(pair.a, NOW, &late, &tag) == -ESTALE);
	CHECK(pass(pair.a, pair.b) == DMP_FRAME_OPERATION);
	answer(pair.b, DMP_REQUEST_PLACE, 0);
	CHECK(pass(pair.a, pair.b) == 0);		/* its own work is not done */
	CHECK(pass(pair.b, pair.a) == DMP_FRAME_COMPLETE);
	expect(pair.a, write, 0);
	CHECK(pass(pair.a, pair.b) == DMP_FRAME_DRAIN);
	CHECK(dmp_endpoint_drain(pair.b, NOW, 0) == 0);
	CHECK(pass(pair.b, pair.a) == DMP_FRAME_DRAIN);
	CHECK(take(pair.a, &frame) == DMP_FRAME_GOODBYE);
	CHECK(take(pair.b, &frame) == DMP_FRAME_GOODBYE);	/* they may cross */
	answer(pair.a, DMP_REQUEST_CUT, 0);
	expect_event(pair.a, DMP_EVENT_ENDPOINT_LOST, 0);
	CHECK(state(pair.a) == DMP_ENDPOINT_DEAD);
	free_pair(&pair);
}

static void test_wrong_proof_is_refused_with_its_reason(void)
{
	struct pair pair = make_pair(false);

	pass(pair.a, pair.b);
	answer(pair.b, DMP_REQUEST_AUTHENTICATE, 0);
	pass(pair.b, pair.a);
	answer(pair.a, DMP_REQUEST_AUTHENTICATE, 0);
	pass(pair.a, pair.b);
	answer(pair.b, DMP_REQUEST_AUTHENTICATE, -EACCES);
	CHECK(pass(pair.b, pair.a) == DMP_FRAME_REFUSE);
	CHECK(pair.a->reason == -EACCES && state(pair.a) == DMP_ENDPOINT_CUTTING);
	expect_none(pair.a);			/* it never was open: no event */
	free_pair(&pair);
}

int main(void)
{
	test_limits_out_of_range_are_refused();
	test_wrong_submissions_are_refused_without_a_trace();
	test_message_waits_for_credit_in_order_and_nowait_does_not();
	test_an_empty_transfer_brings_the_peers_verdict();
	test_only_the_valid_bytes_of_a_key_travel();
	test_receive_gets_a_staged_message_and_credit_returns();
	test_cancel_waits_until_the_peer_has_answered();
	test_timed_out_read_does_not_land_in_its_buffer();
	test_held_buffer_is_asked_back_at_the_deadline();
	test_message_survives_a_receive_that_gives_up_half_way();
	test_end_of_connection_completes_all_but_waits_for_held_buffers();
	test_answer_to_a_move_frees_the_buffer_after_the_end_too();
	test_silent_peer_is_asked_before_it_is_lost();
	test_endpoints_with_time_for_it_ask_together();
	test_both_drain_and_part_without_an_error();
	test_wrong_proof_is_refused_with_its_reason();
	return 0;
}
