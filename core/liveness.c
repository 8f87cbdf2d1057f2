// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * liveness.c - what an endpoint does because time passes, and how it is looked at
 *
 * Deadlines of operations lie in a heap; those of the connection are few and compared
 * one by one. A silent peer is asked (PING) three times before detect_ns is over, then lost.
 *
 * Where there is time for it, PINGs go out on a grid that all endpoints share: an owner of many
 * idle ones then wakes once for all of them, and so do their peers.
 */
#include "endpoint_layout.h"

#define PINGS_PER_DETECT 4	/* a power of two: no 64-bit division */
#define PING_GRID_NS (1ULL << 26)	/* 67 ms; another one */

static void tick_operations(struct dmp_endpoint *endpoint, __u64 now_ns)
{
	__u64 deadline_ns;
	__u32 index;

	/* Each turn takes one out of the heap, and nothing here puts one in. */
	while (dmp_deadline_next(&endpoint->deadlines, &index, &deadline_ns) &&
	       deadline_ns <= now_ns) {
		dmp_deadline_remove(&endpoint->deadlines, index);
		dmp_inflight_expire(endpoint, index);
	}
}

/* When a peer that says nothing more is to be asked. */
static __u64 ping_due(const struct dmp_endpoint *endpoint)
{
	__u64 interval_ns = endpoint->config.detect_ns / PINGS_PER_DETECT;
	__u64 due_ns = endpoint->heard_ns > endpoint->pinged_ns ? endpoint->heard_ns :
								  endpoint->pinged_ns;

	due_ns += interval_ns;
	/* Three times a grid is less than the quarter that is left of detect_ns. */
	if (interval_ns >= 4 * PING_GRID_NS)
		due_ns = (due_ns + PING_GRID_NS - 1) & ~(PING_GRID_NS - 1);
	return due_ns;
}

static void tick_peer(struct dmp_endpoint *endpoint, __u64 now_ns)
{
	if (now_ns >= endpoint->heard_ns + endpoint->config.detect_ns) {
		dmp_endpoint_break(endpoint, -ECONNRESET);
		return;
	}
	if (now_ns >= ping_due(endpoint)) {
		endpoint->ping = true;
		endpoint->pinged_ns = now_ns;
	}
	if (endpoint->flush_ns && now_ns >= endpoint->flush_ns) {
		endpoint->flush_ns = 0;
		dmp_credit_flush(&endpoint->receiver);
	}
}

void dmp_endpoint_tick(struct dmp_endpoint *endpoint, __u64 now_ns)
{
	bool late = endpoint->deadline_ns && now_ns >= endpoint->deadline_ns;

	tick_operations(endpoint, now_ns);
	if (dmp_endpoint_is_greeting(endpoint) && late)
		dmp_endpoint_break(endpoint, -ETIMEDOUT);
	else if (endpoint->state == DMP_ENDPOINT_CLOSING && late)
		dmp_endpoint_break(endpoint, endpoint->reason);
	else if (dmp_endpoint_is_up(endpoint) && late)
		dmp_endpoint_close(endpoint, now_ns, -ETIMEDOUT, false);
	else if (dmp_endpoint_is_up(endpoint))
		tick_peer(endpoint, now_ns);
	dmp_inflight_pump(endpoint, now_ns);
	dmp_endpoint_drain_step(endpoint, now_ns);
}

static void earlier(__u64 *wakeup_ns, __u64 candidate_ns)
{
	if (candidate_ns < *wakeup_ns)
		*wakeup_ns = candidate_ns;
}

__u64 dmp_endpoint_next_wakeup(const struct dmp_endpoint *endpoint)
{
	__u64 wakeup_ns = ~0ULL;
	__u64 deadline_ns;
	__u32 index;

	if (dmp_deadline_next(&endpoint->deadlines, &index, &deadline_ns))
		earlier(&wakeup_ns, deadline_ns);
	if (endpoint->deadline_ns && endpoint->state != DMP_ENDPOINT_CUTTING &&
	    endpoint->state != DMP_ENDPOINT_DEAD)
		earlier(&wakeup_ns, endpoint->deadline_ns);
	if (!dmp_endpoint_is_up(endpoint))
		return wakeup_ns;
	earlier(&wakeup_ns, endpoint->heard_ns + endpoint->config.detect_ns);
	earlier(&wakeup_ns, ping_due(endpoint));
	if (endpoint->flush_ns)
		earlier(&wakeup_ns, endpoint->flush_ns);
	return wakeup_ns;
}

bool dmp_endpoint_is_short_of_credit(const struct dmp_endpoint *endpoint)
{
	return endpoint->waiting.count != 0 || dmp_credit_due(&endpoint->receiver);
}

__u32 dmp_endpoint_state(const struct dmp_endpoint *endpoint)
{
	return endpoint->state;
}

void dmp_endpoint_query(const struct dmp_endpoint *endpoint,
			struct dmp_endpoint_status *status)
{
	*status = (struct dmp_endpoint_status){
		.peer_incarnation = endpoint->peer_incarnation,
		.features = endpoint->features,
		.send = endpoint->sender.ledger,
		.receive = endpoint->receiver.ledger,
		.stalls = endpoint->sender.stalls,
		.stall_ns = endpoint->sender.stall_ns,
		.frames_honoured = endpoint->honoured,
		.frames_stale = endpoint->stale,
		.frames_repeated = endpoint->repeated,
		.state = endpoint->state,
		.epoch = endpoint->epoch,
		.operations = endpoint->in_flight,
		.zombies = endpoint->zombies,
		.held = endpoint->held,
		.incoming = endpoint->incomings,
		.staged = endpoint->staged.count,
		.unread = endpoint->completions.count + endpoint->events.count,
		.reason = endpoint->reason,
	};
}

/* Each state says in which queue its operation is, and which flags it may carry. */
static bool operation_is_sound(const struct dmp_endpoint *endpoint, __u32 index)
{
	const struct dmp_operation *operation = &endpoint->operations[index];
	bool waiting = dmp_queue_holds(&endpoint->waiting, index);
	bool ready = dmp_queue_holds(&endpoint->ready, index);
	bool posted = dmp_queue_holds(&endpoint->posted, index);
	bool work = dmp_queue_holds(&endpoint->work, index);
	__u8 state = operation->state;

	if (waiting != (state == OPERATION_WAITING) ||
	    ready != (state == OPERATION_READY) || posted != (state == OPERATION_POSTED))
		return false;
	if (work && (operation->held || (state != OPERATION_MOVING &&
					 !(state == OPERATION_FILLING &&
					   operation->staged_copy))))
		return false;
	if (dmp_queue_holds(&endpoint->stops, index) && !operation->held)
		return false;
	if (state == OPERATION_FREE)
		return !operation->held && !operation->charged;
	if (state == OPERATION_ZOMBIE)
		return operation->delivered && !operation->held;
	return !operation->delivered && !(operation->decided && !operation->held);
}

static bool ledgers_are_sound(const struct dmp_endpoint *endpoint)
{
	const struct dmp_credit *receive = &endpoint->receiver.ledger;
	__u64 charged_slots = 0, charged_bytes = 0;
	__u32 index;

	if (dmp_credit_check(&endpoint->sender.ledger) || dmp_credit_check(receive))
		return false;
	if (receive->granted.slots - receive->completed.slots > endpoint->config.window_slots ||
	    receive->granted.bytes - receive->completed.bytes > endpoint->config.window_bytes)
		return false;
	for (index = 0; index < endpoint->config.operations_max; index++) {
		if (!endpoint->operations[index].charged)
			continue;
		charged_slots += 1;
		charged_bytes += endpoint->operations[index].charge_bytes;
	}
	return charged_slots == endpoint->sender.ledger.in_flight.slots &&
	       charged_bytes == endpoint->sender.ledger.in_flight.bytes;
}

int dmp_endpoint_check(const struct dmp_endpoint *endpoint)
{
	__u32 in_flight = 0, zombies = 0, held = 0, incomings = 0;
	__u32 index;

	if (endpoint->completions.count > endpoint->completions.capacity ||
	    endpoint->events.count > endpoint->events.capacity ||
	    endpoint->reserved > endpoint->slots)
		return -EPROTO;
	for (index = 0; index < endpoint->slots; index++) {
		const struct dmp_operation *operation = &endpoint->operations[index];

		if (!operation_is_sound(endpoint, index))
			return -EPROTO;
		zombies += operation->state == OPERATION_ZOMBIE;
		in_flight += operation->state != OPERATION_ZOMBIE &&
			     operation->state != OPERATION_FREE;
		held += operation->held;
	}
	for (index = 0; index < endpoint->config.incoming_max; index++)
		incomings += endpoint->incoming[index].state != INCOMING_FREE;
	if (incomings != endpoint->incomings)
		return -EPROTO;
	if (in_flight != endpoint->in_flight || zombies != endpoint->zombies ||
	    held != endpoint->held || in_flight > endpoint->reserved)
		return -EPROTO;
	if (dmp_endpoint_is_up(endpoint) && !ledgers_are_sound(endpoint))
		return -EPROTO;
	if (endpoint->state == DMP_ENDPOINT_DEAD && (in_flight || zombies || held))
		return -EPROTO;
	return 0;
}
