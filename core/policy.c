// SPDX-License-Identifier: GPL-2.0 OR MIT
/* policy.c - which nodes a buffer may be on, see policy.h */
#include "policy.h"

int dmp_policy_check(const struct dmp_policy *policy, __u64 nodes)
{
	switch (policy->policy) {
	case DMP_POLICY_ANY:
		return policy->node == -1 && !policy->node_mask ? 0 : -EINVAL;
	case DMP_POLICY_PREFER:
		if (policy->node < 0 || policy->node >= DMP_NODES_MAX || policy->node_mask)
			return -EINVAL;
		return nodes >> policy->node & 1 ? 0 : -EINVAL;
	case DMP_POLICY_BIND:
	case DMP_POLICY_INTERLEAVE:
		if (policy->node != -1 || !policy->node_mask)
			return -EINVAL;
		return policy->node_mask & ~nodes ? -EINVAL : 0;
	default:
		return -EINVAL;
	}
}

__u64 dmp_policy_nodes(const struct dmp_policy *policy)
{
	switch (policy->policy) {
	case DMP_POLICY_PREFER:
		return 1ULL << policy->node;
	case DMP_POLICY_BIND:
	case DMP_POLICY_INTERLEAVE:
		return policy->node_mask;
	default:
		return 0;
	}
}
