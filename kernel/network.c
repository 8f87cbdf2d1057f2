// SPDX-License-Identifier: GPL-2.0
/* network.c - see network.h */
#include "network.h"

#include <linux/ktime.h>
#include <linux/slab.h>

#include "trace.h"

#define EVENT_RETRY_NS	NSEC_PER_MSEC	/* an event waits for the user to take completions */
#define LAST_WORDS_NS	(50 * NSEC_PER_MSEC)	/* of all endpoints of a channel that goes */
#define NOBODY		U32_MAX
#define RUNG		0		/* bit of endpoint->rung */

/* ---- the list of those who have something to do */

void dmp_network_mark_locked(struct dmp_kernel_channel *channel,
			     struct dmp_kernel_endpoint *endpoint)
{
	lockdep_assert_held(&channel->lock);
	if (endpoint->attached && list_empty(&endpoint->dirty))
		list_add_tail(&endpoint->dirty, &channel->network->dirty);
}

/* From interrupts. The channel is there as long as the pair may ring. */
static void stir(struct dmp_pair_ringer *ringer)
{
	struct dmp_kernel_endpoint *endpoint =
		container_of(ringer, struct dmp_kernel_endpoint, ringer);

	if (test_and_set_bit(RUNG, &endpoint->rung))
		return;
	llist_add(&endpoint->stirring, &endpoint->channel->stirring);
	wake_up_process(endpoint->channel->worker);
}

static void take_stirring_locked(struct dmp_kernel_channel *channel)
{
	struct dmp_kernel_endpoint *endpoint, *next;
	struct llist_node *first = llist_del_all(&channel->stirring);

	lockdep_assert_held(&channel->lock);
	llist_for_each_entry_safe(endpoint, next, first, stirring) {
		clear_bit(RUNG, &endpoint->rung);
		/* Pairs with test_and_set_bit(): what comes after we have looked rings again. */
		smp_mb__after_atomic();
		dmp_network_mark_locked(channel, endpoint);
	}
}

/* ---- those whose pairs do not ring, and are asked */

static void forget_active(struct dmp_network *network, struct dmp_kernel_endpoint *endpoint)
{
	if (list_empty(&endpoint->active))
		return;
	list_del_init(&endpoint->active);
	network->active_count--;
}

/* Who finds no room among the active rings after each turn. */
static void activate_locked(struct dmp_kernel_channel *channel,
			    struct dmp_kernel_endpoint *endpoint)
{
	struct dmp_network *network = channel->network;

	lockdep_assert_held(&channel->lock);
	if (!endpoint->pair || endpoint->ended) {
		forget_active(network, endpoint);
	} else if (list_empty(&endpoint->active)) {
		if (network->active_count < DMP_ACTIVE_MAX) {
			list_add_tail(&endpoint->active, &network->active);
			network->active_count++;
		} else if (!dmp_pair_rest(endpoint->pair)) {
			dmp_network_mark_locked(channel, endpoint);
		}
	}
}

static void ask_active_locked(struct dmp_kernel_channel *channel)
{
	struct dmp_kernel_endpoint *endpoint;

	lockdep_assert_held(&channel->lock);
	list_for_each_entry(endpoint, &channel->network->active, active)
		if (endpoint->pair && dmp_pair_is_ready(endpoint->pair))
			dmp_network_mark_locked(channel, endpoint);
}

bool dmp_network_settle_locked(struct dmp_kernel_channel *channel)
{
	struct dmp_network *network = channel->network;

	lockdep_assert_held(&channel->lock);
	while (!list_empty(&network->active)) {
		struct dmp_kernel_endpoint *endpoint =
			list_first_entry(&network->active, struct dmp_kernel_endpoint, active);

		forget_active(network, endpoint);
		if (endpoint->pair && !dmp_pair_rest(endpoint->pair))
			dmp_network_mark_locked(channel, endpoint);
	}
	return !dmp_network_is_wanted_locked(channel);
}

bool dmp_network_is_wanted_locked(struct dmp_kernel_channel *channel)
{
	struct dmp_network *network = channel->network;

	lockdep_assert_held(&channel->lock);
	return network && (!list_empty(&network->dirty) || !llist_empty(&channel->stirring) ||
			   (network->ending && network->count != 0));
}

bool dmp_network_rings(struct dmp_kernel_channel *channel)
{
	struct dmp_network *network = READ_ONCE(channel->network);

	return network && (!llist_empty(&channel->stirring) ||
			   !list_empty_careful(&network->dirty) || READ_ONCE(network->ending));
}

/* Only who has the place changes the list of the active, and touches pairs of those on it. */
bool dmp_network_stirs(struct dmp_kernel_channel *channel)
{
	struct dmp_network *network = READ_ONCE(channel->network);
	struct dmp_kernel_endpoint *endpoint;

	if (!network || dmp_network_rings(channel))
		return network;
	list_for_each_entry(endpoint, &network->active, active)
		if (endpoint->pair && dmp_pair_is_ready(endpoint->pair))
			return true;
	return false;
}

void dmp_network_press_locked(struct dmp_kernel_endpoint *endpoint, bool presses)
{
	lockdep_assert_held(&endpoint->channel->lock);
	if (!endpoint->attached || presses == endpoint->presses)
		return;
	endpoint->presses = presses;
	if (presses)
		endpoint->channel->network->pressing++;
	else
		endpoint->channel->network->pressing--;
}

/* ---- timers: an entry may be early, never late; it is set after each turn */

static void set_timer(struct dmp_network *network, struct dmp_kernel_endpoint *endpoint)
{
	u64 next_ns = dmp_endpoint_next_wakeup(endpoint->machine);

	if (endpoint->event_waits)
		next_ns = min(next_ns, endpoint->now_ns + EVENT_RETRY_NS);
	if (endpoint->stop_due_ns != 0)
		next_ns = min(next_ns, endpoint->stop_due_ns);
	if (endpoint->timer_ns != 0 && next_ns >= endpoint->timer_ns)
		return;
	if (endpoint->timer_ns != 0)
		dmp_deadline_remove(&network->timers, endpoint->slot);
	endpoint->timer_ns = next_ns == U64_MAX ? 0 : next_ns;
	if (endpoint->timer_ns != 0)
		dmp_deadline_insert(&network->timers, endpoint->slot, next_ns);
}

static void ring_timers_locked(struct dmp_kernel_channel *channel, u64 now_ns)
{
	struct dmp_network *network = channel->network;
	u64 due_ns;
	u32 slot;

	lockdep_assert_held(&channel->lock);
	while (dmp_deadline_next(&network->timers, &slot, &due_ns) && due_ns <= now_ns) {
		dmp_deadline_remove(&network->timers, slot);
		network->endpoints[slot]->timer_ns = 0;
		dmp_network_mark_locked(channel, network->endpoints[slot]);
	}
}

bool dmp_network_deadline_locked(const struct dmp_kernel_channel *channel, u64 *deadline_ns)
{
	u32 slot;

	lockdep_assert_held(&channel->lock);
	return channel->network &&
	       dmp_deadline_next(&channel->network->timers, &slot, deadline_ns);
}

/* ---- a round */

static void detach_locked(struct dmp_kernel_channel *channel,
			  struct dmp_kernel_endpoint *endpoint)
{
	struct dmp_network *network = channel->network;

	lockdep_assert_held(&channel->lock);
	if (!endpoint->attached)
		return;
	/* Its pair is gone and rings no more; it may have, a moment ago. */
	take_stirring_locked(channel);
	list_del_init(&endpoint->dirty);
	forget_active(network, endpoint);
	dmp_network_press_locked(endpoint, false);
	if (endpoint->timer_ns != 0)
		dmp_deadline_remove(&network->timers, endpoint->slot);
	endpoint->timer_ns = 0;
	network->endpoints[endpoint->slot] = NULL;
	network->next_free[endpoint->slot] = network->free_first;
	network->free_first = endpoint->slot;
	network->count--;
	dmp_channel_reserve_events(&channel->machine, -1);
	dmp_channel_nudge_locked(channel);
	/* Last. Pairs with is_detached(): who sees it may free the endpoint. */
	smp_store_release(&endpoint->attached, false);
	dmp_released();
}

/* Each pair would give what was sent last its time; where nobody answers that adds up. */
static void end_all_locked(struct dmp_kernel_channel *channel)
{
	struct dmp_network *network = channel->network;
	u64 until_ns = ktime_get_ns() + LAST_WORDS_NS;
	u32 slot;

	lockdep_assert_held(&channel->lock);
	for (slot = 0; slot < DMP_ENDPOINTS_MAX && network->count != 0; slot++) {
		struct dmp_kernel_endpoint *endpoint = network->endpoints[slot];

		if (!endpoint)
			continue;
		endpoint->drop = true;
		if (endpoint->pair && ktime_get_ns() >= until_ns)
			dmp_pair_give_up(endpoint->pair);
		dmp_traffic_abort_locked(endpoint, -ECONNRESET);
		detach_locked(channel, endpoint);
	}
}

static void turn_locked(struct dmp_kernel_channel *channel, struct dmp_kernel_endpoint *endpoint)
{
	lockdep_assert_held(&channel->lock);
	list_del_init(&endpoint->dirty);
	if (dmp_traffic_round_locked(endpoint, ktime_get_ns()))
		dmp_network_mark_locked(channel, endpoint);
	activate_locked(channel, endpoint);
	set_timer(channel->network, endpoint);
	if (endpoint->ended && endpoint->drop)
		detach_locked(channel, endpoint);
}

bool dmp_network_round_locked(struct dmp_kernel_channel *channel, u64 now_ns)
{
	struct dmp_network *network = channel->network;
	bool any;
	LIST_HEAD(batch);

	lockdep_assert_held(&channel->lock);
	if (network->ending) {
		end_all_locked(channel);
		return false;
	}
	take_stirring_locked(channel);
	ring_timers_locked(channel, now_ns);
	ask_active_locked(channel);
	list_splice_init(&network->dirty, &batch);
	any = !list_empty(&batch);
	while (!list_empty(&batch)) {
		if (network->ending) {
			/* The end has come while we moved bytes. */
			list_splice_init(&batch, &network->dirty);
			break;
		}
		turn_locked(channel, list_first_entry(&batch, struct dmp_kernel_endpoint, dirty));
	}
	return any || dmp_network_is_wanted_locked(channel);
}

/* ---- who belongs */

static void free_network(struct dmp_network *network)
{
	if (!network)
		return;
	dmp_uncharge(network->charged_bytes);
	kvfree(network->timers_memory);
	kvfree(network);
}

static struct dmp_network *new_network(void)
{
	u64 bytes = sizeof(struct dmp_network) + dmp_deadline_bytes(DMP_ENDPOINTS_MAX);
	struct dmp_network *network;
	u32 slot;

	if (dmp_charge(bytes))
		return NULL;
	network = kvzalloc(sizeof(*network), GFP_KERNEL_ACCOUNT);
	if (!network) {
		dmp_uncharge(bytes);
		return NULL;
	}
	network->charged_bytes = bytes;
	network->timers_memory = kvzalloc(dmp_deadline_bytes(DMP_ENDPOINTS_MAX),
					  GFP_KERNEL_ACCOUNT);
	if (!network->timers_memory) {
		free_network(network);
		return NULL;
	}
	dmp_deadline_init(&network->timers, network->timers_memory, DMP_ENDPOINTS_MAX);
	INIT_LIST_HEAD(&network->dirty);
	INIT_LIST_HEAD(&network->active);
	for (slot = 0; slot < DMP_ENDPOINTS_MAX; slot++)
		network->next_free[slot] = slot + 1 < DMP_ENDPOINTS_MAX ? slot + 1 : NOBODY;
	return network;
}

int dmp_network_make(struct dmp_kernel_channel *channel)
{
	struct dmp_network *network;

	if (READ_ONCE(channel->network))
		return 0;
	network = new_network();
	if (!network)
		return -ENOMEM;
	mutex_lock(&channel->lock);
	if (!channel->network) {
		WRITE_ONCE(channel->network, network);
		network = NULL;		/* the channel's from here on */
	}
	mutex_unlock(&channel->lock);
	free_network(network);
	return 0;
}

int dmp_network_attach_locked(struct dmp_kernel_channel *channel,
			      struct dmp_kernel_endpoint *endpoint)
{
	struct dmp_network *network = channel->network;
	int error;

	lockdep_assert_held(&channel->lock);
	if (network->ending)
		return -ESTALE;
	if (network->free_first == NOBODY)
		return -ENOSPC;
	error = dmp_channel_reserve_events(&channel->machine, 1);
	if (error)
		return error;
	endpoint->slot = network->free_first;
	network->free_first = network->next_free[endpoint->slot];
	network->endpoints[endpoint->slot] = endpoint;
	network->count++;
	endpoint->attached = true;
	/* The thread that connected is woken no more, the executor is; and he looks by himself. */
	dmp_pair_watch(endpoint->pair, NULL);
	endpoint->rung = 0;
	endpoint->ringer.ring = stir;
	dmp_pair_watch(endpoint->pair, &endpoint->ringer);
	dmp_network_mark_locked(channel, endpoint);
	return 0;
}

void dmp_network_end(struct dmp_kernel_channel *channel)
{
	bool kick = false;

	mutex_lock(&channel->lock);
	if (channel->network) {
		channel->network->ending = true;
		kick = dmp_channel_claim_locked(channel);
	}
	mutex_unlock(&channel->lock);
	if (kick)
		dmp_channel_kick(channel);
}

void dmp_network_free(struct dmp_kernel_channel *channel)
{
	free_network(channel->network);
	channel->network = NULL;
}
