/* SPDX-License-Identifier: MIT */
/*
 * placement.h - on which node pages shall be, and on which they are
 *
 * The system calls are made directly, without libnuma. Where a kernel or a
 * container refuses them, a request that is not strict goes through unplaced and
 * the count says how much it knows (DMP_PLACEMENT_*): it never guesses.
 */
#ifndef DMP_EMBEDDED_PLACEMENT_H
#define DMP_EMBEDDED_PLACEMENT_H

#include <stdbool.h>
#include <stddef.h>

#include "dmaplane.h"
#include "policy.h"

struct dmp_placement {
	__u32 how;		/* DMP_PLACEMENT_* */
	__u64 pages;
	__u64 pages_misplaced;
	__u64 node_pages[DMP_NODES_MAX];
};

/* -EINVAL: the fields contradict each other, or name a node without memory. */
int dmp_placement_check(const struct dmp_policy *policy);

/*
 * Asks for @policy on a mapping, before it is populated. Where the kernel does not
 * let us: 0, except for @strict on a machine with several nodes: -EOPNOTSUPP.
 */
int dmp_placement_apply(const struct dmp_policy *policy, void *address, size_t length, bool strict);

/*
 * Makes every page of the range resident, for writing if @writable, without
 * changing a byte and without a signal. -EFAULT: not mapped, or not with these
 * rights, or nothing behind it. -ENOMEM: no memory.
 */
int dmp_placement_populate(void *address, size_t length, size_t page_bytes, bool writable);

/* The same for kernels before 5.14, one page at a time. */
int dmp_placement_touch(void *address, size_t length, size_t page_bytes, bool writable);

/*
 * Where the pages are. One node makes the answer SINGLE by construction unless
 * @recheck. Pages that could not be located count as misplaced, except for ANY.
 */
int dmp_placement_count(const struct dmp_policy *policy, void *address, size_t length,
			size_t page_bytes, bool recheck, struct dmp_placement *out);

#endif /* DMP_EMBEDDED_PLACEMENT_H */
