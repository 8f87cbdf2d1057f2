// SPDX-License-Identifier: GPL-2.0
/*
 * trace.c - the bodies of the tracepoints, and what they find out only when they are on
 *
 * Owns nothing. Runs in the thread that passes the edge, under whatever lock that has.
 */
#include <linux/ktime.h>

#define CREATE_TRACE_POINTS
#include "trace.h"

/*
 * Placement may be counted again while an event reads it: the worst is a node that had
 * the most pages a moment ago.
 */
int dmp_trace_node(const struct dmp_buffer *buffer)
{
	const struct dmp_placement *placement = &buffer->placement;
	u64 most = 0;
	int node, found = -1;

	for (node = 0; node < DMP_NODES_MAX; node++) {
		u64 pages = READ_ONCE(placement->node_pages[node]);

		if (pages > most) {
			most = pages;
			found = node;
		}
	}
	return found;
}

/*
 * Results and lengths are read from the ring, where a hostile user could have changed
 * them already. That deceives whoever watches him, and nobody else.
 */
void dmp_trace_each_completion_locked(const struct dmp_kernel_channel *channel)
{
	const struct dmp_channel *machine = &channel->machine;
	u64 now_ns = ktime_get_ns();
	u32 index = machine->written_first;
	u32 at = machine->complete.own;
	u32 end = at + machine->written + machine->events_written;

	lockdep_assert_held(&channel->lock);
	for (; at != end && index != DMP_OPERATION_NONE; at++) {
		const struct dmp_completion *completion =
			&machine->completions[at & (machine->completion_slots - 1)];
		const struct dmp_operation *operation;

		if (READ_ONCE(completion->flags) & DMP_COMPLETE_EVENT)
			continue;
		operation = &machine->operations[index];
		trace_dmp_complete(channel, &operation->submission,
				   READ_ONCE(completion->result),
				   READ_ONCE(completion->length_bytes),
				   now_ns - operation->accepted_ns);
		index = operation->next;
	}
}

/* Credit is the machine's: what it was and is now is looked at while somebody watches. */
void dmp_trace_credit_locked(struct dmp_kernel_endpoint *endpoint)
{
	struct dmp_endpoint_status status;

	lockdep_assert_held(&endpoint->channel->lock);
	if (!trace_dmp_credit_enabled())
		return;
	dmp_endpoint_query(endpoint->machine, &status);
	if (status.stalls + status.receive.granted.slots == endpoint->traced)
		return;
	endpoint->traced = status.stalls + status.receive.granted.slots;
	trace_dmp_credit(endpoint, &status);
}
