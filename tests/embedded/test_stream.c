// SPDX-License-Identifier: MIT
/*
 * test_stream.c - frames and payloads arrive exactly, however a fabric cuts them up
 */
#include <errno.h>
#include <sys/socket.h>

#include "stream_pair.h"
#include "tcp.h"

#define SEEDS		100u
#define BATCH		24u
#define SLICE		24000u
#define BIG		200000u

/* One operation of a batch: what is moved, and where it must be found. */
struct expected {
	char *source, *found;
	__u64 length;
};

static void fill(char *bytes, __u64 length, __u64 seed)
{
	__u64 i;

	for (i = 0; i < length; i++)
		bytes[i] = (char)draw(&seed);
}

static char *filled(__u64 length, __u64 seed)
{
	char *bytes = malloc(length);

	CHECK(bytes);
	fill(bytes, length, seed);
	return bytes;
}

/* Submits one operation of @from towards @to; how many completions must follow. */
static __u32 start_one(struct side *from, struct side *to, char *source, char *target,
		       __u64 *seed, struct expected *expected, __u32 slot)
{
	static const __u16 kinds[] = { DMP_OP_WRITE, DMP_OP_WRITE_IMM, DMP_OP_SEND, DMP_OP_READ };
	__u16 operation = kinds[draw(seed) % 4];
	__u64 length = 1 + draw(seed) % (draw(seed) % 3 ? 300 : SLICE);
	__u64 offset = (__u64)slot * SLICE;

	fill(source + offset, length, *seed | 1);
	*expected = (struct expected){ source + offset, to->region + offset, length };
	if (operation == DMP_OP_SEND) {
		expected->found = target + offset;
		if (draw(seed) % 2) {		/* before its RECV, or after */
			submit(to, DMP_OP_RECV, target + offset, SLICE, 0, 0);
			submit(from, operation, source + offset, length, 0, 0);
		} else {
			submit(from, operation, source + offset, length, 0, 0);
			submit(to, DMP_OP_RECV, target + offset, SLICE, 0, 0);
		}
		return 2;
	}
	if (operation == DMP_OP_READ) {
		memcpy(to->region + offset, source + offset, length);
		expected->found = target + offset;
		submit(from, operation, target + offset, length, offset, 0);
		return 1;
	}
	submit(from, operation, source + offset, length, offset, 0);
	return 1;
}

/* A batch in each direction, both at once. */
static void exchange(struct pair *pair, __u64 seed)
{
	static char source[2][BATCH * SLICE], target[2][BATCH * SLICE];
	struct expected expected[2 * BATCH];
	__u32 wanted = pair->a.completed + pair->b.completed;
	unsigned int rounds;
	__u32 slot, i;

	memset(target, 0, sizeof(target));
	region_for(&pair->a, BATCH * SLICE);
	region_for(&pair->b, BATCH * SLICE);
	for (slot = 0; slot < BATCH; slot++) {
		wanted += start_one(&pair->a, &pair->b, source[0], target[0], &seed,
				    &expected[2 * slot], slot);
		wanted += start_one(&pair->b, &pair->a, source[1], target[1], &seed,
				    &expected[2 * slot + 1], slot);
	}
	for (rounds = 0; rounds < 10000000; rounds++) {
		round_of(&pair->a);
		round_of(&pair->b);
		if (pair->a.completed + pair->b.completed == wanted)
			break;
	}
	CHECK(pair->a.completed + pair->b.completed == wanted);
	CHECK(!pair->a.failed && !pair->b.failed);
	for (i = 0; i < 2 * BATCH; i++)
		CHECK(!memcmp(expected[i].source, expected[i].found, expected[i].length));
	CHECK(!pair->a.stream.staged_bytes && !pair->b.stream.staged_bytes);
}

static void test_any_split_delivers_every_frame_and_byte(void)
{
	struct pair pair;
	__u64 seed;

	for (seed = 1; seed <= SEEDS; seed++) {
		pair_on_torture(&pair, seed * 0x9e3779b97f4a7c15ULL);
		pair.pipes[0].room = 1 + seed * 97 % 3000;
		exchange(&pair, seed);
		pair_end(&pair);
	}
}

static void pair_on_sockets(struct pair *pair)
{
	struct dmp_fabric *a, *b;
	int sockets[2];

	CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, sockets));
	CHECK(!dmp_tcp_fabric(sockets[0], &a) && !dmp_tcp_fabric(sockets[1], &b));
	CHECK(a->type->path == DMP_PATH_TCP && !a->type->direct);
	pair->pipes = NULL;
	pair_open(pair, a, b);
}

static void test_sockets_deliver_every_frame_and_byte(void)
{
	struct pair pair;
	__u64 seed;

	pair_on_sockets(&pair);
	for (seed = 1; seed <= 20; seed++)
		exchange(&pair, seed);
	pair_end(&pair);
}

/* Answers come in bulk where nobody may write; messages and READs still arrive. */
static void test_an_unwritable_plane_reads_far_and_loses_nothing(void)
{
	char *message = filled(SLICE, 5), *got = calloc(1, SLICE);
	struct pair pair;
	__u64 seed;
	int i;

	CHECK(got);
	for (seed = 0; seed < 30; seed++) {
		pair_on_torture(&pair, seed * 77);
		pair.a.stream.unwritable = true;
		region_for(&pair.b, SLICE);
		memcpy(pair.b.region, message, SLICE);
		for (i = 0; i < 8; i++) {
			submit(&pair.a, DMP_OP_WRITE, message, 1000, 2000, 0);
			submit(&pair.a, DMP_OP_READ, got + 700 * i, 700, 700 * i, 0);
			submit(&pair.a, DMP_OP_RECV, got + SLICE / 2 + 300 * i, 300, 0, 0);
			submit(&pair.b, DMP_OP_SEND, message + SLICE / 2 + 300 * i, 300, 0, 0);
		}
		memcpy(pair.b.region, message, SLICE);
		memcpy(message + 2000, message, 1000);	/* what the WRITEs will have made of it */
		memcpy(pair.b.region + 2000, message, 1000);
		while (pair.a.completed + pair.b.completed < 32)
			settle(&pair, 1);
		CHECK(!pair.a.failed && !pair.b.failed);
		CHECK(!memcmp(got, message, 5600));
		CHECK(!memcmp(got + SLICE / 2, message + SLICE / 2, 2400));
		pair_end(&pair);
	}
	free(message);
	free(got);
}

static void test_the_limit_of_reading_ahead_is_an_operation_frame(void)
{
	struct dmp_endpoint_frame frame;
	struct pair pair;

	pair_on_torture(&pair, 0);
	submit(&pair.a, DMP_OP_WRITE, "x", 1, 0, 0);
	CHECK(!dmp_endpoint_next_frame(pair.a.machine, START_NS, &frame));
	CHECK(frame.frame_bytes == DMP_STREAM_AHEAD);
	dmp_endpoint_abort(pair.a.machine, -ECONNRESET);
	pair_end(&pair);
}

/* A WRITE half sent and one not begun run into their deadline; their bytes arrive as they were. */
static void test_stop_frees_the_buffer_and_the_bytes_arrive_all_the_same(void)
{
	char *first = filled(BIG, 1), *second = filled(BIG, 2), *kept = malloc(2 * BIG);
	struct pair pair;
	__u64 tags[2];

	CHECK(kept);
	memcpy(kept, first, BIG);
	memcpy(kept + BIG, second, BIG);
	pair_on_torture(&pair, 0);
	region_for(&pair.b, 2 * BIG);
	pair.pipes[0].room = BIG / 2;
	tags[0] = submit(&pair.a, DMP_OP_WRITE, first, BIG, 0, START_NS + MS);
	tags[1] = submit(&pair.a, DMP_OP_WRITE, second, BIG, BIG, START_NS + MS);
	round_of(&pair.a);
	CHECK(pair.a.stream.out_count == 2 && pair.a.stream.pieces[0].sent == BIG / 2);
	CHECK(!dmp_stream_stop_locked(&pair.a.stream, 12345) && !pair.a.sent_count);
	pair.a.now_ns += 2 * MS;
	round_of(&pair.a);
	CHECK(pair.a.completed == 2 && pair.a.failed == 2 && pair.a.last_result == -ETIMEDOUT);
	CHECK(pair.a.sent_count == 2);
	CHECK(pair.a.sent_tags[0] == tags[0] && pair.a.sent_tags[1] == tags[1]);
	memset(first, 0, BIG);
	memset(second, 0, BIG);
	settle(&pair, 1000);
	CHECK(!memcmp(pair.b.region, kept, 2 * BIG));
	CHECK(pair.a.sent_count == 2 && pair.a.stream.out_count == 0);
	pair_end(&pair);
	free(first);
	free(second);
	free(kept);
}

/* Half of a WRITE is there; the rest must go nowhere, and what follows is understood. */
static void test_discard_in_the_middle_touches_nothing_more(void)
{
	char *bytes = filled(BIG, 3), *message = filled(100, 4), got[100];
	struct pair pair;
	__u64 i;

	pair_on_torture(&pair, 0);
	region_for(&pair.b, BIG);
	pair.pipes[0].room = BIG / 2;
	submit(&pair.a, DMP_OP_WRITE, bytes, BIG, 0, 0);
	submit(&pair.a, DMP_OP_SEND, message, 100, 0, 0);
	submit(&pair.b, DMP_OP_RECV, got, 100, 0, 0);
	round_of(&pair.a);
	round_of(&pair.b);
	round_of(&pair.b);
	CHECK(pair.b.stream.payload_done == BIG / 2 - DMP_STREAM_AHEAD);
	dmp_stream_discard_locked(&pair.b.stream);
	settle(&pair, 1000);
	CHECK(!memcmp(pair.b.region, bytes, BIG / 2 - DMP_STREAM_AHEAD));
	for (i = BIG / 2 - DMP_STREAM_AHEAD; i < BIG; i++)
		CHECK(!pair.b.region[i]);
	CHECK(pair.b.completed == 1 && !pair.b.failed && !memcmp(got, message, 100));
	CHECK(pair.a.completed == 2 && pair.a.failed == 1);
	pair_end(&pair);
	free(bytes);
	free(message);
}

/* A RECV gives up half way; the message is whole for the next one. */
static void test_a_message_moves_from_its_receive_to_its_stage(void)
{
	char *bytes = filled(BIG, 6), *first = calloc(1, BIG), *second = calloc(1, BIG);
	struct pair pair;

	CHECK(first && second);
	pair_on_torture(&pair, 0);
	pair.pipes[0].room = BIG / 2;
	submit(&pair.b, DMP_OP_RECV, first, BIG, 0, START_NS + MS);
	submit(&pair.a, DMP_OP_SEND, bytes, BIG, 0, 0);
	round_of(&pair.a);
	round_of(&pair.b);
	round_of(&pair.b);
	CHECK(pair.b.stream.payload_done == BIG / 2 - DMP_STREAM_AHEAD);
	pair.b.now_ns += 2 * MS;
	round_of(&pair.b);
	CHECK(pair.b.completed == 1 && pair.b.last_result == -ETIMEDOUT);
	memset(first, 0, BIG);
	submit(&pair.b, DMP_OP_RECV, second, BIG, 0, 0);
	settle(&pair, 1000);
	CHECK(pair.b.completed == 2 && !pair.b.last_result && !memcmp(second, bytes, BIG));
	CHECK(first[0] == 0 && !memcmp(first, first + 1, BIG - 1));
	pair_end(&pair);
	free(bytes);
	free(first);
	free(second);
}

/* The connection breaks inside the third of four WRITEs. */
static void test_what_came_before_a_loss_is_fed_first(void)
{
	const __u64 one = DMP_STREAM_AHEAD + 1000;
	char *bytes = filled(4000, 7);
	struct pair pair;
	int i;

	pair_on_torture(&pair, 0);
	region_for(&pair.b, 4000);
	pair.pipes[0].lost_at = pair.pipes[0].out + 2 * one + DMP_STREAM_AHEAD + 400;
	for (i = 0; i < 4; i++)
		submit(&pair.a, DMP_OP_WRITE_IMM, bytes + 1000 * i, 1000, 1000 * (__u64)i, 0);
	round_of(&pair.a);
	for (i = 0; i < 20 && !pair.b.stream.error; i++)
		round_of(&pair.b);
	CHECK(pair.b.stream.error == -ECONNRESET);
	CHECK(pair.b.events == 2);
	CHECK(!memcmp(pair.b.region, bytes, 2400) && !pair.b.region[2400]);
	CHECK(!dmp_stream_move(&pair.b.stream));
	dmp_endpoint_abort(pair.b.machine, -ECONNRESET);
	pair_end(&pair);
	free(bytes);
}

/* Two messages of no bytes: the second has to wait until the first PLACE is answered. */
static void test_a_busy_machine_gets_the_frame_again(void)
{
	struct dmp_endpoint_request request;
	struct pair pair;
	int placed;

	pair_on_torture(&pair, 0);
	submit(&pair.a, DMP_OP_SEND, NULL, 0, 0, 0);
	submit(&pair.a, DMP_OP_SEND, NULL, 0, 0, 0);
	round_of(&pair.a);
	pair.b.holds_requests = true;
	pair.b.stream.unwritable = true;	/* so that both are in the buffer at once */
	CHECK(dmp_stream_move(&pair.b.stream));
	CHECK(dmp_stream_feed_locked(&pair.b.stream, pair.b.machine, START_NS, &placed) == 1);
	CHECK(dmp_stream_feed_locked(&pair.b.stream, pair.b.machine, START_NS, &placed) == -EBUSY);
	CHECK(dmp_stream_feed_locked(&pair.b.stream, pair.b.machine, START_NS, &placed) == -EBUSY);
	CHECK(!placed && !dmp_endpoint_next_request(pair.b.machine, &request));
	CHECK(request.kind == DMP_REQUEST_PLACE);
	dmp_stream_place_locked(&pair.b.stream, NULL, 0, false);
	CHECK(dmp_stream_feed_locked(&pair.b.stream, pair.b.machine, START_NS, &placed) == 1);
	CHECK(placed == 1);
	reply(&pair.b, DMP_REQUEST_PLACE, request.tag, 0, 0);
	CHECK(dmp_stream_feed_locked(&pair.b.stream, pair.b.machine, START_NS, &placed) == 1);
	CHECK(!placed);
	pair.b.holds_requests = false;
	settle(&pair, 100);
	CHECK(pair.a.completed == 2 && !pair.a.failed);
	pair_end(&pair);
}

/* Payloads are told of in order, each not before its last byte has left. */
static void test_sent_is_told_in_order_and_not_early(void)
{
	char *bytes = filled(8 * 3000, 8);
	struct pair pair;
	__u64 tags[8];
	size_t base;
	int i, last = 0;

	pair_on_torture(&pair, 0);
	region_for(&pair.b, 8 * 3000);
	base = pair.pipes[0].out;
	for (i = 0; i < 8; i++)
		tags[i] = submit(&pair.a, DMP_OP_WRITE, bytes + 3000 * i, 3000, 3000 * (__u64)i, 0);
	for (i = 1; i < 4000 && pair.a.completed < 8; i++) {
		size_t left;

		pair.pipes[0].room = (size_t)i * 37 % 5000;
		if (pair.pipes[0].room < pair.pipes[0].in - pair.pipes[0].out)
			pair.pipes[0].room = pair.pipes[0].in - pair.pipes[0].out;
		round_of(&pair.a);
		left = (pair.pipes[0].in - base) / (DMP_STREAM_AHEAD + 3000);
		CHECK(pair.a.sent_count == (left < 8 ? left : 8));
		round_of(&pair.b);
		last = i;
	}
	CHECK(last > 8 && pair.a.sent_count == 8 && pair.a.completed == 8);
	for (i = 0; i < 8; i++)
		CHECK(pair.a.sent_tags[i] == tags[i]);
	CHECK(!memcmp(pair.b.region, bytes, 8 * 3000));
	pair_end(&pair);
	free(bytes);
}

/* A frame and its payload come twice, as no fabric of ours would do it. */
static void test_the_payload_of_a_repeated_frame_is_thrown_away(void)
{
	char *bytes = filled(500, 9), got[500];
	struct pipe_bytes *pipe;
	struct pair pair;
	size_t from, i;

	pair_on_torture(&pair, 0);
	region_for(&pair.b, 500);
	pipe = &pair.pipes[0];
	from = pipe->in;
	submit(&pair.a, DMP_OP_WRITE, bytes, 500, 0, 0);
	round_of(&pair.a);
	for (i = 0; i < DMP_STREAM_AHEAD + 500; i++) {
		pipe->bytes[pipe->in] = pipe->bytes[from + i];
		pipe->of_write[pipe->in++] = 0;
	}
	memset(pipe->bytes + pipe->in - 500, 0x55, 500);
	submit(&pair.a, DMP_OP_SEND, bytes, 500, 0, 0);
	submit(&pair.b, DMP_OP_RECV, got, 500, 0, 0);
	settle(&pair, 100);
	CHECK(!memcmp(pair.b.region, bytes, 500) && !memcmp(got, bytes, 500));
	CHECK(pair.a.completed == 2 && !pair.a.failed && pair.b.completed == 1);
	pair_end(&pair);
	free(bytes);
}

static void test_bytes_that_are_no_frame_end_the_connection(void)
{
	struct pair pair;
	int i;

	pair_on_torture(&pair, 0);
	for (i = 0; i < 100; i++)
		pair.pipes[0].bytes[pair.pipes[0].in++] = 0xee;
	for (i = 0; i < 10; i++)
		round_of(&pair.b);
	CHECK(pair.b.stream.error == -EPROTO);
	CHECK(dmp_endpoint_state(pair.b.machine) == DMP_ENDPOINT_DEAD);
	pair_end(&pair);
}

/* Many WRITEs are waiting to be received: their answers travel together. */
static void test_answers_wait_for_company_while_more_comes_in(void)
{
	char *bytes = filled(1000, 10);
	unsigned int sends;
	struct pair pair;
	int i;

	pair_on_torture(&pair, 0);
	region_for(&pair.b, 1000);
	for (i = 0; i < 30; i++)
		submit(&pair.a, DMP_OP_WRITE, bytes, 1000, 0, 0);
	sends = torture_of(&pair.a)->sends;
	round_of(&pair.a);
	CHECK(torture_of(&pair.a)->sends == sends + 1);
	sends = torture_of(&pair.b)->sends;
	settle(&pair, 1000);
	CHECK(pair.a.completed == 30 && !pair.a.failed);
	CHECK(torture_of(&pair.b)->sends - sends <= 3);
	pair_end(&pair);
	free(bytes);
}

/* The last word goes at once, though there is more to be received. */
static void test_a_farewell_is_not_held_back(void)
{
	char *bytes = filled(1000, 11);
	struct pair pair;
	size_t before;
	int i;

	pair_on_torture(&pair, 0);
	region_for(&pair.b, 1000);
	for (i = 0; i < 20; i++)
		submit(&pair.a, DMP_OP_WRITE, bytes, 1000, 0, 0);
	round_of(&pair.a);
	round_of(&pair.b);
	round_of(&pair.b);
	CHECK(!pair.b.stream.dry);
	before = pair.pipes[1].in;
	CHECK(!dmp_endpoint_goodbye(pair.b.machine, START_NS));
	dmp_stream_load_locked(&pair.b.stream, pair.b.machine, START_NS);
	dmp_stream_move(&pair.b.stream);
	CHECK(!pair.b.stream.out_bytes && pair.pipes[1].in > before);
	dmp_endpoint_abort(pair.b.machine, 0);
	pair_end(&pair);
	free(bytes);
}

static void test_a_full_fabric_is_no_reason_to_come_again(void)
{
	char *bytes = filled(1000, 12);
	struct pair pair;

	pair_on_torture(&pair, 0);
	region_for(&pair.b, 1000);
	pair.pipes[0].room = 100;
	submit(&pair.a, DMP_OP_WRITE, bytes, 1000, 0, 0);
	CHECK(!round_of(&pair.a) || !round_of(&pair.a));
	CHECK(pair.a.stream.out_bytes);
	settle(&pair, 1000);
	round_of(&pair.b);
	pair.pipes[0].room = PIPE_BYTES;
	settle(&pair, 1000);
	CHECK(pair.a.completed == 1 && !pair.a.failed);
	pair_end(&pair);
	free(bytes);
}

/* Nothing can be sent any more, but what the peer had said before is heard to its end. */
static void test_a_broken_way_out_does_not_hide_what_came_in(void)
{
	char *bytes = filled(BIG, 13);
	struct pair pair;
	int i;

	pair_on_torture(&pair, 0);
	region_for(&pair.b, BIG);
	submit(&pair.a, DMP_OP_WRITE_IMM, bytes, BIG, 0, 0);
	round_of(&pair.a);
	torture_of(&pair.b)->broken = true;
	submit(&pair.b, DMP_OP_SEND, bytes, 10, 0, 0);
	dmp_stream_load_locked(&pair.b.stream, pair.b.machine, START_NS);
	for (i = 0; i < 20 && !pair.b.stream.error; i++)
		round_of(&pair.b);
	CHECK(pair.b.stream.error == -ECONNRESET && pair.b.events == 1);
	CHECK(!memcmp(pair.b.region, bytes, BIG));
	dmp_endpoint_abort(pair.b.machine, -ECONNRESET);
	pair_end(&pair);
	free(bytes);
}

/* A payload takes three times as long as a peer may be silent, and nothing comes back meanwhile. */
static void test_a_slow_link_is_not_a_silent_peer(void)
{
	char *bytes = filled(50000, 15);
	struct pair pair;

	pair_on_torture(&pair, 0);
	region_for(&pair.b, 50000);
	pair.pipes[0].room = 1000;
	submit(&pair.a, DMP_OP_WRITE, bytes, 50000, 0, 0);
	while (!pair.a.completed) {
		pair.a.now_ns += 20 * MS;
		pair.b.now_ns += 20 * MS;
		round_of(&pair.a);
		round_of(&pair.b);
	}
	CHECK(!pair.a.failed && pair.a.now_ns > START_NS + 900 * MS);
	submit(&pair.a, DMP_OP_WRITE, bytes, 50000, 0, 0);
	while (pair.a.completed < 2) {		/* the peer stops: that is silence */
		pair.a.now_ns += 20 * MS;
		round_of(&pair.a);
	}
	CHECK(pair.a.failed == 1 && pair.a.last_result == -ECONNRESET);
	pair_end(&pair);
	free(bytes);
}

static const char *no_payload(void *owner, const struct dmp_endpoint_frame *frame)
{
	(void)owner;
	(void)frame;
	return NULL;
}

static void test_a_payload_that_is_gone_ends_the_connection_with_its_name(void)
{
	struct pair pair;
	size_t before;

	pair_on_torture(&pair, 0);
	pair.a.stream.source = no_payload;
	before = pair.pipes[0].in;
	submit(&pair.a, DMP_OP_WRITE, "x", 1, 0, 0);
	round_of(&pair.a);
	CHECK(pair.a.stream.error == -EFAULT && pair.pipes[0].in == before);
	dmp_endpoint_abort(pair.a.machine, -EFAULT);
	pair_end(&pair);
}

/* Thirty answers, two to a call, still in one round: the initiator refills in bulk. */
static void test_answers_are_taken_in_bulk_without_reading_too_far(void)
{
	char *bytes = filled(1000, 14);
	struct pair pair;
	int i;

	pair_on_torture(&pair, 0);
	region_for(&pair.b, 1000);
	for (i = 0; i < 30; i++)
		submit(&pair.a, DMP_OP_WRITE, bytes, 1000, 0, 0);
	round_of(&pair.a);
	while (round_of(&pair.b))
		;
	CHECK(pair.a.completed == 0);
	round_of(&pair.a);
	CHECK(pair.a.completed == 30 && !pair.a.failed);
	pair_end(&pair);
	free(bytes);
}

int main(void)
{
	test_any_split_delivers_every_frame_and_byte();
	test_sockets_deliver_every_frame_and_byte();
	test_an_unwritable_plane_reads_far_and_loses_nothing();
	test_the_limit_of_reading_ahead_is_an_operation_frame();
	test_stop_frees_the_buffer_and_the_bytes_arrive_all_the_same();
	test_discard_in_the_middle_touches_nothing_more();
	test_a_message_moves_from_its_receive_to_its_stage();
	test_what_came_before_a_loss_is_fed_first();
	test_a_busy_machine_gets_the_frame_again();
	test_sent_is_told_in_order_and_not_early();
	test_the_payload_of_a_repeated_frame_is_thrown_away();
	test_bytes_that_are_no_frame_end_the_connection();
	test_answers_wait_for_company_while_more_comes_in();
	test_a_farewell_is_not_held_back();
	test_a_full_fabric_is_no_reason_to_come_again();
	test_a_broken_way_out_does_not_hide_what_came_in();
	test_a_payload_that_is_gone_ends_the_connection_with_its_name();
	test_answers_are_taken_in_bulk_without_reading_too_far();
	test_a_slow_link_is_not_a_silent_peer();
	return 0;
}
