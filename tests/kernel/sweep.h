/* SPDX-License-Identifier: MIT */
/*
 * sweep.h - a sequence of calls, run again and again with another failure injected
 *
 * A sequence notes what it made in the ledger, as soon as it has it. The sweep compares
 * the plane's own counts with the ledger: what a failed call leaves behind shows at once.
 */
#ifndef DMP_TESTS_SWEEP_H
#define DMP_TESTS_SWEEP_H

#include "device.h"

#define LEDGER_MAX	16

struct ledger_mapping {
	void *address;
	size_t length_bytes;
	bool of_plane;		/* counts as a mapping of the plane */
};

struct sweep {
	struct dmp_plane *plane;	/* NULL: the sequence opens it */
	uint32_t buffers[LEDGER_MAX], channels[LEDGER_MAX];
	struct ledger_mapping mappings[LEDGER_MAX];
	int fds[LEDGER_MAX];
	uint32_t buffer_count, channel_count, mapping_count, fd_count;
	int foreign;		/* a foreign driver's fd, where the sequence needs one */
	uint8_t *arena;		/* the caller's memory, resident */
	const char *failed;	/* the step that did not succeed, and what it answered */
	int status;
};

#define ARENA_BYTES	(1u << 20)

struct sequence {
	const char *name;
	/* Runs with nothing injected. Negative: this machine lacks what it needs. */
	int (*prepare)(struct sweep *sweep);
	/* Runs with a failure ahead. Returns the first status that is not 0. */
	int (*run)(struct sweep *sweep);
};

extern const struct sequence sequences[];
extern const uint32_t sequence_count;

/* Notes what a step answered; the sweep judges it when nothing is injected any more. */
int sweep_step(struct sweep *sweep, const char *step, int status);

#define TRY(sweep, call)							\
	do {									\
		int status_ = sweep_step(sweep, #call, call);			\
										\
		if (status_ < 0)						\
			return status_;						\
	} while (0)

#endif /* DMP_TESTS_SWEEP_H */
