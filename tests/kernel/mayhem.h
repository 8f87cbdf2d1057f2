/* SPDX-License-Identifier: MIT */
/*
 * mayhem.h - a process without rights that does what it likes with /dev/dmaplane
 *
 * Its requests come from the fuzzer's generator; the rest is what a process can do to fds
 * and mappings. Each thread has a piece of address space of its own in which it maps,
 * unmaps, protects and moves by chance, so that it never hits its own stack.
 */
#ifndef DMP_TESTS_MAYHEM_H
#define DMP_TESTS_MAYHEM_H

#include <stdatomic.h>

#include "device.h"

#define MAYHEM_THREADS_MAX 8u

/* Shared by the attacker and who watches it. */
struct mayhem_board {
	_Atomic uint64_t served, refused, calls, faults, forks;
	_Atomic uint32_t odd_command;	/* answered with an errno that the contract lacks */
	_Atomic int32_t odd_status;
};

/* Never returns; ends when it is killed or, after @milliseconds, by leaving with all open. */
void mayhem(struct mayhem_board *board, uint64_t seed, uint32_t threads, uint32_t milliseconds);

#endif /* DMP_TESTS_MAYHEM_H */
