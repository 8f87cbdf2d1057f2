// SPDX-License-Identifier: MIT
/*
 * test_simulator.c - the endpoint laws over a few hundred seeds, and the simulator itself
 *
 * `simulate --seeds 10000 --steps 1000` is the long form. Here too each counter must have
 * moved, so that a change that stops exercising something is noticed, and a seed must
 * replay to the same trace.
 */
#include <string.h>

#include "check.h"
#include "simulator.h"

#define SEEDS 300
#define STEPS 1000

static void test_every_law_holds_and_every_event_occurs(void)
{
	struct simulation total = { .seed = 0 };
	__u64 seed;

	for (seed = 1; seed <= SEEDS; seed++) {
		struct simulation one = { .seed = seed, .steps = STEPS };

		if (!simulate(&one)) {
			fprintf(stderr, "seed %llu, step %u: %s\n", (unsigned long long)seed,
				one.failed_step, one.message);
			fprintf(stderr, "replay: simulate --seed %llu --steps %d --trace\n",
				(unsigned long long)seed, STEPS);
			exit(1);
		}
#define X(name) total.name += one.name;
		SIMULATOR_COUNTERS(X)
#undef X
	}
#define X(name) CHECK(total.name > 0);
	SIMULATOR_COUNTERS(X)
#undef X
	CHECK(total.completed <= total.submitted);
}

static void test_a_seed_replays_to_the_same_trace(void)
{
	__u64 seed, previous = 0;

	for (seed = 1; seed <= 20; seed++) {
		struct simulation first = { .seed = seed, .steps = STEPS };
		struct simulation second = { .seed = seed, .steps = STEPS };

		CHECK(simulate(&first) && simulate(&second));
		CHECK(first.trace_hash == second.trace_hash);
		CHECK(first.trace_hash != previous);
		previous = first.trace_hash;
	}
}

int main(void)
{
	test_every_law_holds_and_every_event_occurs();
	test_a_seed_replays_to_the_same_trace();
	return 0;
}
