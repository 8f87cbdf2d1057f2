// SPDX-License-Identifier: MIT
/*
 * test_endpoint_states.c - the state table of an endpoint, walked in full (law L7)
 *
 * Every edge between two states, and what every sound frame does in every state.
 */
#include "endpoint_pair.h"

/* Rows: from. Columns: to, in the order of DMP_ENDPOINT_*. */
static const char *const legal[DMP_ENDPOINT_STATES] = {
	/*		  icccapwvodDccd */
	[0] /* IDLE */	= ".x..x.........",
	[1] /* CALLING */ = "..x........xxx",
	[2] /* CHECKING */ = "...x.......xxx",
	[3] /* CONFIRMING */ = "........x..xxx",
	[4] /* AWAITING */ = ".....x.....xxx",
	[5] /* PROVING */ = "......x....xxx",
	[6] /* WELCOMED */ = ".......x...xxx",
	[7] /* VERIFYING */ = "........x..xxx",
	[8] /* OPEN */	= ".........x.xxx",
	[9] /* DRAINING */ = "..........xxxx",
	[10] /* DRAINED */ = "...........xxx",
	[11] /* CLOSING */ = "............xx",
	[12] /* CUTTING */ = ".............x",
	[13] /* DEAD */	= "x.............",
};

static void test_only_legal_edges_are_taken(void)
{
	struct pair pair = make_pair(false);
	__u32 from, to;

	for (from = 0; from < DMP_ENDPOINT_STATES; from++) {
		for (to = 0; to < DMP_ENDPOINT_STATES; to++) {
			bool may = legal[from][to] == 'x';

			CHECK(dmp_endpoint_may_move(from, to) == may);
			pair.a->state = from;
			CHECK(dmp_endpoint_move(pair.a, to) == (may ? 0 : -EPROTO));
			CHECK(pair.a->state == (may ? to : from));
		}
	}
	CHECK(!dmp_endpoint_may_move(DMP_ENDPOINT_STATES, 0));
	CHECK(!dmp_endpoint_may_move(0, DMP_ENDPOINT_STATES));
	pair.a->state = DMP_ENDPOINT_IDLE;
	free_pair(&pair);
}

/* A machine of side A or B in each state, reached by the road a real one takes. */
static struct dmp_endpoint *reach(struct pair *pair, __u32 wanted)
{
	if (wanted >= DMP_ENDPOINT_OPEN) {
		*pair = make_open(false);
		if (wanted == DMP_ENDPOINT_DRAINING || wanted == DMP_ENDPOINT_DRAINED) {
			if (wanted == DMP_ENDPOINT_DRAINING)
				submit(pair->a, DMP_OP_WRITE, 10);
			dmp_endpoint_drain(pair->a, NOW, 0);
		}
		if (wanted == DMP_ENDPOINT_CLOSING)
			dmp_endpoint_goodbye(pair->a, NOW);
		if (wanted == DMP_ENDPOINT_CUTTING)
			dmp_endpoint_break(pair->a, -ECONNRESET);
		if (wanted == DMP_ENDPOINT_DEAD)
			dmp_endpoint_abort(pair->a, -ECONNRESET);
		return pair->a;
	}
	*pair = make_pair(false);
	if (wanted == DMP_ENDPOINT_IDLE) {
		dmp_endpoint_abort(pair->a, -ECONNRESET);
		CHECK(dmp_endpoint_reset(pair->a) == 0);
	}
	if (wanted == DMP_ENDPOINT_IDLE || wanted == DMP_ENDPOINT_CALLING)
		return pair->a;
	if (wanted == DMP_ENDPOINT_AWAITING)
		return pair->b;
	pass(pair->a, pair->b);
	if (wanted == DMP_ENDPOINT_PROVING)
		return pair->b;
	answer(pair->b, DMP_REQUEST_AUTHENTICATE, 0);
	pass(pair->b, pair->a);
	if (wanted == DMP_ENDPOINT_CHECKING)
		return pair->a;
	if (wanted == DMP_ENDPOINT_WELCOMED)
		return pair->b;
	answer(pair->a, DMP_REQUEST_AUTHENTICATE, 0);
	if (wanted == DMP_ENDPOINT_CONFIRMING)
		return pair->a;
	pass(pair->a, pair->b);
	return pair->b;
}

/*
 * What each frame, sound and next in sequence, does in each state: 0 honoured, P breaks the
 * protocol, S is not of this connection, B waits for an answer, R a HELLO that ends it.
 */
static const char *const outcomes[DMP_ENDPOINT_STATES] = {
	/*	hwcrgorcccppdg: HELLO WELCOME CONFIRM REFUSE GRANT OPERATION RESPONSE
		COMPLETE CANCEL CANCELLED PING PONG DRAIN GOODBYE */
	[0] = "SSSSSSSSSSSSSS",	[1] = "SSSSSSSSSSSSSS",	 [2] = "BBBBBBBBBBBBBB",
	[3] = "SSP00PPPPPPPPP", [4] = "0SSSSSSSSSSSSS",	 [5] = "BBBBBBBBBBBBBB",
	[6] = "RS00PPPPPPPPPP", [7] = "BBBBBBBBBBBBBB",	 [8] = "SSPP00PP0P0000",
	[9] = "SSPP00PP0P0000", [10] = "SSPP00PP0P0000", [11] = "SSSSSSSSSSSSSS",
	[12] = "SSSSSSSSSSSSSS", [13] = "SSSSSSSSSSSSSS",
};

static int result_of(char outcome)
{
	switch (outcome) {
	case '0':
		return 0;
	case 'P':
		return -EPROTO;
	case 'S':
		return -ESTALE;
	default:
		return -EBUSY;
	}
}

static void test_every_frame_in_every_state_does_what_the_table_says(void)
{
	__u8 bytes[DMP_WIRE_FRAME_BYTES_MAX];
	struct dmp_endpoint *machine;
	struct pair pair;
	__u32 at, type;
	int length;

	for (at = 0; at < DMP_ENDPOINT_STATES; at++) {
		for (type = 1; type < DMP_FRAME_TYPES; type++) {
			int expected = result_of(outcomes[at][type - 1]);
			struct dmp_frame frame;

			memset(&frame, 0, sizeof(frame));
			frame.type = type;
			machine = reach(&pair, at);
			CHECK(state(machine) == at);
			frame.sequence = machine->sequence_in + 1;
			frame.epoch = EPOCH;
			frame.incarnation = machine == pair.a ? B_IS : A_IS;
			frame.destination = machine->config.incarnation;
			if (type == DMP_FRAME_HELLO) {
				frame.sequence = 1;
				frame.epoch = 0;
				frame.destination = 0;
				frame.hello.version_max = 1;
				frame.hello.limits = (struct dmp_wire_limits){ 1, 1, 1 };
			}
			if (type == DMP_FRAME_WELCOME)
				frame.welcome.limits = (struct dmp_wire_limits){ 1, 1, 1 };
			if (type == DMP_FRAME_REFUSE)
				frame.refuse.reason = -EACCES;
			if (type == DMP_FRAME_OPERATION)
				frame.operation.operation = DMP_OP_SEND;
			if (type == DMP_FRAME_CANCELLED)
				frame.result.result = -ECANCELED;
			if (type == DMP_FRAME_GRANT) {
				frame.grant.sequence = 2;
				frame.grant.slots = 3;
				frame.grant.bytes = 300;
			}
			length = dmp_wire_encode(&frame, true, bytes, sizeof(bytes));
			CHECK(length > 0);
			if (dmp_endpoint_receive(machine, NOW, bytes, (size_t)length) != expected) {
				fprintf(stderr, "state %u, frame %u\n", at, type);
				CHECK(!"the outcome of the table");
			}
			if (expected == -ESTALE || expected == -EPROTO)
				CHECK(state(machine) == (expected == -EPROTO ?
							 (__u32)DMP_ENDPOINT_CUTTING : at));
			free_pair(&pair);
		}
	}
}

int main(void)
{
	test_only_legal_edges_are_taken();
	test_every_frame_in_every_state_does_what_the_table_says();
	return 0;
}
