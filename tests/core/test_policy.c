// SPDX-License-Identifier: MIT
/* test_policy.c - which nodes a buffer may be on (law L6: what was asked for can be met, or it is an error) */
#include "check.h"
#include "policy.h"

#define NODES	5	/* every mask of so many is tried */

static bool is_possible(const struct dmp_policy *policy, __u64 nodes)
{
	if (policy->policy == DMP_POLICY_PREFER)
		return !policy->node_mask && policy->node >= 0 && policy->node < DMP_NODES_MAX &&
		       (nodes & 1ULL << policy->node);
	if (policy->node != -1)
		return false;
	if (policy->policy == DMP_POLICY_BIND || policy->policy == DMP_POLICY_INTERLEAVE)
		return policy->node_mask && (policy->node_mask & nodes) == policy->node_mask;
	return policy->policy == DMP_POLICY_ANY && !policy->node_mask;
}

static void test_what_is_accepted_names_nodes_there_are_and_nothing_else(void)
{
	struct dmp_policy policy;
	__u64 nodes;

	for (nodes = 0; nodes < 1 << NODES; nodes++)
		for (policy.policy = 0; policy.policy <= DMP_POLICY_INTERLEAVE + 1; policy.policy++)
			for (policy.node = -2; policy.node <= DMP_NODES_MAX; policy.node++)
				for (policy.node_mask = 0; policy.node_mask < 1 << NODES;
				     policy.node_mask++) {
					int result = dmp_policy_check(&policy, nodes);

					CHECK(result == (is_possible(&policy, nodes) ? 0 : -EINVAL));
					if (!result)
						CHECK(!(dmp_policy_nodes(&policy) & ~nodes));
				}
}

static void test_the_last_node_can_be_named(void)
{
	struct dmp_policy prefer = { DMP_POLICY_PREFER, DMP_NODES_MAX - 1, 0 };
	struct dmp_policy bind = { DMP_POLICY_BIND, -1, ~0ULL };

	CHECK(!dmp_policy_check(&prefer, ~0ULL));
	CHECK(dmp_policy_nodes(&prefer) == 1ULL << (DMP_NODES_MAX - 1));
	CHECK(!dmp_policy_check(&bind, ~0ULL));
	CHECK(dmp_policy_nodes(&bind) == ~0ULL);
}

static void test_any_node_is_no_node(void)
{
	struct dmp_policy any = { DMP_POLICY_ANY, -1, 0 };

	CHECK(!dmp_policy_check(&any, 0));
	CHECK(!dmp_policy_nodes(&any));
}

int main(void)
{
	test_what_is_accepted_names_nodes_there_are_and_nothing_else();
	test_the_last_node_can_be_named();
	test_any_node_is_no_node();
	return 0;
}
