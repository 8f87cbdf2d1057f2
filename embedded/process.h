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

#include <stdint.h>

/*
 * A number that no parent, child or child's child of this process has, and never 0: the
 * same for as long as the process lives. Any thread; the first call may take memory.
 */
uint64_t dmp_process_number(void);

#endif /* DMP_PROCESS_H */
