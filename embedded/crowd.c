// SPDX-License-Identifier: MIT
#define _GNU_SOURCE
#include "crowd.h"

#include <sched.h>

#include "fabric.h"
#include "topology.h"

#define LOOK_EVERY_NS 10000000u		/* else two workers could chase each other around */
#define MUCH_BYTES (256u << 10)		/* of a payload: less is not worth a move */

bool dmp_crowd_look_locked(struct dmp_embedded_endpoint *endpoint)
{
	struct dmp_embedded_channel *channel = endpoint->channel;
	const struct dmp_stream *stream = &endpoint->stream;

	if (!channel->crowd_unknown || !endpoint->fabric->type->processor || !stream->placing ||
	    stream->payload_done + stream->payload_left < MUCH_BYTES ||
	    endpoint->now_ns < channel->crowd_due_ns)
		return false;
	channel->crowd_unknown = false;
	channel->crowd_due_ns = endpoint->now_ns + LOOK_EVERY_NS;
	channel->crowded = endpoint->fabric->type->processor(endpoint->fabric) == sched_getcpu();
	return channel->crowded;
}

/* Of @cpus, those near the processor we run on, where there are any. */
static void prefer_near(cpu_set_t *cpus)
{
	unsigned int cpu, node;
	cpu_set_t near;

	if (getcpu(&cpu, &node) || dmp_topology_node_cpus((int)node, &near))
		return;
	CPU_AND(&near, &near, cpus);
	if (CPU_COUNT(&near) != 0)
		*cpus = near;
}

/*
 * There is no call to go elsewhere: so we may not run here for a moment. What we may run on is
 * what it was then, unless somebody else has said otherwise meanwhile. (One thing remains: what was
 * the default of our cpuset is a wish of our own from here on.)
 */
static void leave_processor(void)
{
	cpu_set_t ours, others, now;
	int here = sched_getcpu();

	if (here < 0 || here >= CPU_SETSIZE || sched_getaffinity(0, sizeof(ours), &ours))
		return;
	others = ours;
	CPU_CLR(here, &others);
	if (CPU_COUNT(&others) == 0)
		return;
	prefer_near(&others);
	if (!sched_setaffinity(0, sizeof(others), &others) &&
	    !sched_getaffinity(0, sizeof(now), &now) && CPU_EQUAL(&now, &others))
		sched_setaffinity(0, sizeof(ours), &ours);
}

void dmp_crowd_begin_locked(struct dmp_embedded_channel *channel)
{
	channel->crowded = false;	/* what a caller saw in our place was his processor */
	channel->makes_way = channel->network;
	channel->crowd_unknown = true;
}

void dmp_crowd_heed_locked(struct dmp_embedded_channel *channel)
{
	bool crowded = channel->crowded;

	if (!crowded && !channel->makes_way)
		return;
	channel->crowded = channel->makes_way = false;
	pthread_mutex_unlock(&channel->lock);
	if (crowded)
		leave_processor();
	else
		sched_yield();
	pthread_mutex_lock(&channel->lock);
}
