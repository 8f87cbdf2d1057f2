/* SPDX-License-Identifier: MIT */
/*
 * simulator.h - endpoint machines on a network that misbehaves, from a seed
 *
 * Three nodes, a link between each two, a machine at each end of a link, and an owner
 * for each machine that plays fabric and user: it moves real bytes, slowly, and answers
 * late, except to STOP and CUT. The network drops, repeats, swaps, delays and corrupts
 * frames, and brings old ones of dead connections back later; links are cut and
 * nodes restart as a new incarnation. Everything follows from the seed.
 *
 * After every step each law is asserted on what the owners saw; a breach ends the run
 * with a message and the step. Run the same seed with trace to see what led to it.
 */
#ifndef DMP_TESTS_SIMULATOR_H
#define DMP_TESTS_SIMULATOR_H

#include "types.h"

/* What happened, to prove that a run exercised what it claims to. */
#define SIMULATOR_COUNTERS(X)							\
	X(submitted) X(completed) X(succeeded) X(timed_out) X(cancelled)	\
	X(reset) X(refused_access) X(too_small) X(cancels) X(stops)		\
	X(messages) X(staged) X(immediates) X(reads) X(writes) X(moves) X(faults)		\
	X(no_credit) X(frames) X(dropped) X(repeated) X(swapped) X(ghosts) X(corrupted)	\
	X(cuts) X(restarts) X(stale) X(opened) X(superseded) X(refused_proof)	\
	X(drained) X(goodbyes) X(zombies) X(homecomings)

struct simulation {
	__u64 seed;
	__u32 steps;
	bool trace;		/* print each event */
	/* results */
	bool failed;
	__u32 failed_step;
	char message[200];
	__u64 trace_hash;	/* of every event, in order */
#define X(name) __u64 name;
	SIMULATOR_COUNTERS(X)
#undef X
};

/* Run; false if a law was broken. */
bool simulate(struct simulation *simulation);

#endif /* DMP_TESTS_SIMULATOR_H */
