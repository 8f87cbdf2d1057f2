/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * policy.h - which nodes a buffer may be on
 *
 * A policy is what a caller asked for, the same words on both planes. It is judged
 * against the nodes that have memory, which only a plane knows.
 */
#ifndef DMP_CORE_POLICY_H
#define DMP_CORE_POLICY_H

#include "dmaplane.h"
#include "types.h"

struct dmp_policy {
	__u32 policy;		/* DMP_POLICY_* */
	__s32 node;		/* PREFER: the node, else -1 */
	__u64 node_mask;	/* BIND, INTERLEAVE: the nodes, else 0 */
};

/* -EINVAL: the fields contradict each other, or name a node that is not in @nodes. */
int dmp_policy_check(const struct dmp_policy *policy, __u64 nodes);

/* The nodes that a checked policy names; 0 for "any". */
__u64 dmp_policy_nodes(const struct dmp_policy *policy);

#endif /* DMP_CORE_POLICY_H */
