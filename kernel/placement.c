// SPDX-License-Identifier: GPL-2.0
/*
 * placement.c - on which node pages shall be, and on which they are
 *
 * Keeps nothing. A memory is counted page by page, without a lock, in read sections short
 * enough that a revocation does not wait for a large one.
 */
#include <linux/nodemask.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>

#include "buffer.h"

#define SECTION_PAGES	16384U	/* counted in one read section */

/* Nodes with memory, as far as a mask of the contract can name them. */
static u64 nodes_with_memory(void)
{
	u64 nodes = 0;
	int node;

	for_each_node_state(node, N_MEMORY)
		if (node < DMP_NODES_MAX)
			nodes |= 1ULL << node;
	return nodes;
}

int dmp_placement_check(const struct dmp_policy *policy)
{
	return dmp_policy_check(policy, nodes_with_memory());
}

/* Pages whose node is found. A caller who is being killed does not wait for the rest. */
static u64 count_by_page(struct dmp_memory *memory, struct dmp_placement *placement)
{
	u64 index = 0, located = 0;

	while (index < placement->pages && !fatal_signal_pending(current)) {
		u64 end = min_t(u64, placement->pages, index + SECTION_PAGES);
		int section = dmp_memory_enter();

		if (!dmp_memory_alive(memory))
			end = index;
		for (; index < end; index++) {
			u64 start = index * memory->page_bytes;
			int node = memory->operations->node(memory, start > memory->page_offset ?
							    start - memory->page_offset : 0);

			if (node < 0 || node >= DMP_NODES_MAX)
				continue;
			placement->node_pages[node]++;
			located++;
		}
		dmp_memory_leave(section);
		if (index != end || !dmp_memory_alive(memory))
			break;
		cond_resched();
	}
	return located;
}

void dmp_placement_count(struct dmp_memory *memory, const struct dmp_policy *policy,
			 struct dmp_placement *placement)
{
	u64 nodes = nodes_with_memory();
	u64 wanted = dmp_policy_nodes(policy);
	u64 in_place = 0;
	int node;

	memset(placement, 0, sizeof(*placement));
	placement->how = DMP_PLACEMENT_UNKNOWN;
	placement->pages = DIV_ROUND_UP_ULL(memory->page_offset + memory->length,
					    memory->page_bytes);
	if (!memory->operations->node)
		return;
	if (num_node_state(N_MEMORY) == 1 && nodes) {
		placement->how = DMP_PLACEMENT_SINGLE;
		placement->node_pages[__ffs64(nodes)] = placement->pages;
	} else if (count_by_page(memory, placement)) {
		placement->how = DMP_PLACEMENT_COUNTED;
	} else {
		return;
	}
	for (node = 0; node < DMP_NODES_MAX; node++)
		if (wanted >> node & 1)
			in_place += placement->node_pages[node];
	if (wanted)
		placement->pages_misplaced = placement->pages - in_place;
}
