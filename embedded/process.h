/* SPDX-License-Identifier: MIT */
/*
 * process.h - which process is this?
 *
 * Every call of a plane asks, because a forked child must not touch what is its parent's,
 * and getpid() is a system call: 0.35 us in some virtual machines, as much as a whole
 * batch of NOPs. A word that the kernel wipes in a child says the same for a load.
 */
#ifndef DMP_PROCESS_H
#define DMP_PROCESS_H

#include <pthread.h>
#include <stdint.h>

/*
 * A number that no parent, child or child's child of this process has, and never 0: the
 * same for as long as the process lives. Any thread; the first call may take memory.
 */
uint64_t dmp_process_number(void);

/*
 * @lock is static and a leaf: fork() waits until nobody has it, so that a child, which has a
 * plane of its own one day, finds it free and what it protects whole. Called from a
 * constructor, a few times in all.
 */
void dmp_process_guard(pthread_mutex_t *lock);

#endif /* DMP_PROCESS_H */
