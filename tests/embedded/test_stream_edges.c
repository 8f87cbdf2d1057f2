// SPDX-License-Identifier: MIT
/*
 * test_stream_edges.c - a turn that ends is not missed
 *
 * An executor sleeps on edges: it hears of bytes that come, and of room where there was none,
 * once. Here a side gets a turn only for such an edge, or because its last turn asked for
 * another one (load, or dmp_stream_is_hungry). Whatever the sizes and however little room the
 * fabric has: everything completes, and then nobody asks for turns any more.
 */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/check.h"
#include "stream_pair.h"

#define TURNS_MAX	200000u
#define PLAYS		400u
#define OPERATIONS_EACH	12u
#define REGION_BYTES	(96u << 10)

/* What an edge-triggered descriptor would say of one side. */
struct edges {
	const struct pipe_bytes *in, *out;
	size_t seen;		/* bytes that had come when it was told last */
	bool asks;		/* its last turn wants another */
	unsigned int turns;
};

static bool has_edge(struct side *side, struct edges *edges)
{
	bool came = edges->in->in != edges->seen;
	bool room = side->stream.out_full && edges->out->in - edges->out->out < edges->out->room;

	edges->seen = edges->in->in;
	return came || room;
}

/* As dmp_traffic_round_locked does it. */
static void turn(struct side *side, struct edges *edges)
{
	round_of(side);
	answer_requests(side);
	take_completions(side);
	edges->asks = dmp_stream_load_locked(&side->stream, side->machine, side->now_ns) ||
		      dmp_stream_is_hungry(&side->stream);
	edges->turns++;
	CHECK(edges->turns < TURNS_MAX);
}

static void run(struct pair *pair, struct edges *a, struct edges *b)
{
	bool any;

	do {
		any = false;
		if (has_edge(&pair->a, a) || a->asks) {
			turn(&pair->a, a);
			any = true;
		}
		if (has_edge(&pair->b, b) || b->asks) {
			turn(&pair->b, b);
			any = true;
		}
	} while (any);
}

/* One operation, and the RECV that it needs; how many completions come of it. */
static __u32 start(struct side *from, struct side *to, char *bytes, __u64 *seed)
{
	static const __u32 lengths[] = { 0, 1, 100, 159, 160, 161, 4096, 8192, 9000, 70000 };
	static const __u16 operations[] = { DMP_OP_SEND, DMP_OP_WRITE, DMP_OP_WRITE_IMM, DMP_OP_READ };
	__u32 length = lengths[draw(seed) % (sizeof(lengths) / sizeof(lengths[0]))];
	__u16 operation = operations[draw(seed) % 4];

	if (operation == DMP_OP_WRITE_IMM && !length)
		length = 1;	/* of nothing there is none */
	if (operation != DMP_OP_SEND) {
		submit(from, operation, bytes, length, 0, 0);
		return 1;
	}
	if (draw(seed) % 2) {
		submit(to, DMP_OP_RECV, bytes + REGION_BYTES, REGION_BYTES, 0, 0);
		submit(from, operation, bytes, length, 0, 0);
	} else {
		submit(from, operation, bytes, length, 0, 0);
		submit(to, DMP_OP_RECV, bytes + REGION_BYTES, REGION_BYTES, 0, 0);
	}
	return 2;
}

static void play(__u64 seed, size_t room)
{
	char *bytes = calloc(2, REGION_BYTES);
	struct edges a, b;
	struct pair pair;
	__u32 wanted, i;

	CHECK(bytes);
	pair_on_torture(&pair, 0);
	pair.pipes[0].room = pair.pipes[1].room = room;
	region_for(&pair.a, REGION_BYTES);
	region_for(&pair.b, REGION_BYTES);
	wanted = pair.a.completed + pair.b.completed;
	a = (struct edges){ .in = &pair.pipes[1], .out = &pair.pipes[0], .asks = true };
	b = (struct edges){ .in = &pair.pipes[0], .out = &pair.pipes[1], .asks = true };
	for (i = 0; i < OPERATIONS_EACH; i++) {
		wanted += start(&pair.a, &pair.b, bytes, &seed);
		if (draw(&seed) % 2)
			wanted += start(&pair.b, &pair.a, bytes, &seed);
		a.asks = b.asks = true;		/* who submits marks his endpoint */
		if (draw(&seed) % 3)
			run(&pair, &a, &b);
	}
	run(&pair, &a, &b);
	CHECK(pair.a.completed + pair.b.completed == wanted);
	CHECK(!pair.a.failed && !pair.b.failed);
	CHECK(!a.asks && !b.asks);
	pair_end(&pair);
	free(bytes);
}

static void test_edges_are_enough(void)
{
	static const size_t rooms[] = { 7, 160, 1000, 5000, PIPE_BYTES };
	__u64 seed;

	for (seed = 1; seed <= PLAYS; seed++)
		play(seed * 0x9e3779b97f4a7c15ULL, rooms[seed % 5]);
}

int main(void)
{
	test_edges_are_enough();
	return 0;
}
