// SPDX-License-Identifier: MIT
/* network.c - see network.h */
#define _GNU_SOURCE
#include "network.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "traffic.h"

#define EVENTS_AT_ONCE	64
#define POLL_EVERY_NS	20000u		/* while some have enough to do */
#define POLL_ENDS_NS	200000u		/* where only the end of one can be heard so */
#define EVENT_RETRY_NS	1000000u	/* an event waits for the user to take completions */
#define NOBODY		0xffffffffu

/* ---- the list of those who have something to do */

void dmp_network_mark_locked(struct dmp_embedded_channel *channel,
			     struct dmp_embedded_endpoint *endpoint)
{
	struct dmp_network *network = channel->network;

	if (endpoint->dirty || !endpoint->attached)
		return;
	endpoint->dirty = true;
	endpoint->next_dirty = NULL;
	if (network->dirty_first)
		network->dirty_last->next_dirty = endpoint;
	else
		network->dirty_first = endpoint;
	network->dirty_last = endpoint;
}

static struct dmp_embedded_endpoint *next_dirty(struct dmp_network *network)
{
	struct dmp_embedded_endpoint *endpoint = network->dirty_first;

	network->dirty_first = endpoint->next_dirty;
	endpoint->dirty = false;
	return endpoint;
}

void dmp_network_press_locked(struct dmp_embedded_endpoint *endpoint, bool presses)
{
	if (!endpoint->attached || presses == endpoint->presses)
		return;
	endpoint->presses = presses;
	if (presses)
		endpoint->channel->network->pressing++;
	else
		endpoint->channel->network->pressing--;
}

/* ---- those who can be asked without a system call */

static void activate(struct dmp_network *network, struct dmp_embedded_endpoint *endpoint)
{
	const struct dmp_fabric_type *type = endpoint->fabric ? endpoint->fabric->type : NULL;

	if (endpoint->active || !type || !type->ready ||
	    network->active_count == DMP_ACTIVE_MAX)
		return;
	endpoint->active = true;
	network->active[network->active_count] = endpoint;
	/* Pairs with the load in stirs(), by an executor who spins while a worker takes events. */
	__atomic_store_n(&network->active_count, network->active_count + 1, __ATOMIC_RELEASE);
	if (type->wake)
		type->wake(endpoint->fabric);
}

/* All go to sleep; those to whom something has come meanwhile have something to do. */
static void deactivate_all(struct dmp_embedded_channel *channel)
{
	struct dmp_network *network = channel->network;

	while (network->active_count != 0) {
		struct dmp_embedded_endpoint *endpoint = network->active[--network->active_count];
		struct dmp_fabric *fabric = endpoint->fabric;

		endpoint->active = false;
		if (fabric && fabric->type->rest && !fabric->type->rest(fabric))
			dmp_network_mark_locked(channel, endpoint);
	}
}

bool dmp_network_settle_locked(struct dmp_embedded_channel *channel)
{
	deactivate_all(channel);
	return channel->network->dirty_first != NULL;
}

/*
 * No room among the active: it goes on by its descriptor alone, and says after each turn
 * that it sleeps, since what it took and sent in that turn makes an earlier word void.
 */
static void arm_inactive(struct dmp_embedded_channel *channel,
			 struct dmp_embedded_endpoint *endpoint)
{
	struct dmp_fabric *fabric = endpoint->fabric;

	if (!endpoint->active && !endpoint->dirty && fabric && fabric->type->rest &&
	    !fabric->type->rest(fabric))
		dmp_network_mark_locked(channel, endpoint);
}

static void forget_active(struct dmp_network *network, struct dmp_embedded_endpoint *endpoint)
{
	uint32_t number;

	if (!endpoint->active)
		return;
	endpoint->active = false;
	for (number = 0; network->active[number] != endpoint; number++)
		continue;
	network->active[number] = network->active[--network->active_count];
}

bool dmp_network_is_busy_locked(struct dmp_embedded_channel *channel)
{
	struct dmp_network *network = channel->network;
	uint32_t number;

	for (number = 0; number < network->active_count; number++) {
		struct dmp_embedded_endpoint *endpoint = network->active[number];

		if (endpoint->fabric && endpoint->fabric->type->ready(endpoint->fabric))
			dmp_network_mark_locked(channel, endpoint);
	}
	return network->dirty_first != NULL;
}

/* ---- timers: an entry may be early, never late */

static void set_timer(struct dmp_network *network, struct dmp_embedded_endpoint *endpoint)
{
	uint64_t next_ns = dmp_endpoint_next_wakeup(endpoint->machine);

	if (endpoint->event_waits && endpoint->now_ns + EVENT_RETRY_NS < next_ns)
		next_ns = endpoint->now_ns + EVENT_RETRY_NS;
	if (endpoint->stop_due_ns != 0 && endpoint->stop_due_ns < next_ns)
		next_ns = endpoint->stop_due_ns;
	if (endpoint->timer_ns != 0 && next_ns >= endpoint->timer_ns)
		return;
	if (endpoint->timer_ns != 0)
		dmp_deadline_remove(&network->timers, endpoint->slot);
	endpoint->timer_ns = next_ns == ~0ull ? 0 : next_ns;
	if (endpoint->timer_ns != 0)
		dmp_deadline_insert(&network->timers, endpoint->slot, next_ns);
}

static void ring_timers(struct dmp_embedded_channel *channel, uint64_t now_ns)
{
	struct dmp_network *network = channel->network;
	__u64 due_ns;
	__u32 slot;

	while (dmp_deadline_next(&network->timers, &slot, &due_ns) && due_ns <= now_ns) {
		dmp_deadline_remove(&network->timers, slot);
		network->endpoints[slot]->timer_ns = 0;
		network->endpoints[slot]->has_event = true;	/* a fabric may have something to repeat */
		dmp_network_mark_locked(channel, network->endpoints[slot]);
	}
}

/* ---- epoll */

static uint64_t name_of(const struct dmp_embedded_endpoint *endpoint)
{
	return (uint64_t)endpoint->epoch << 32 | endpoint->slot;
}

static void take_event(struct dmp_embedded_channel *channel, uint64_t name, uint32_t events)
{
	struct dmp_network *network = channel->network;
	struct dmp_embedded_endpoint *endpoint;
	uint32_t slot = (uint32_t)name;
	uint64_t count;

	if (slot == NOBODY) {
		if (read(network->bell, &count, sizeof(count)) < 0)
			return;	/* somebody else took it */
		return;
	}
	endpoint = network->endpoints[slot];
	if (!endpoint || name_of(endpoint) != name)
		return;
	endpoint->has_event = true;
	/* Told once: the end may be behind bytes that are still to be received. */
	if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
		endpoint->stream.hung_up = true;
	activate(network, endpoint);
	dmp_network_mark_locked(channel, endpoint);
}

/* Waits up to @wait_ns (0: looks) without the lock; the lock is held again afterwards. */
static int ask_epoll(struct dmp_embedded_channel *channel, bool wait, uint64_t wait_ns)
{
	struct epoll_event events[EVENTS_AT_ONCE];
	struct dmp_network *network = channel->network;
	struct timespec limit = { .tv_sec = (time_t)(wait_ns / 1000000000u),
				  .tv_nsec = (long)(wait_ns % 1000000000u) };
	int count, number;

	pthread_mutex_unlock(&channel->lock);
	if (wait)
		dmp_plane_released(channel->plane);
	count = (int)syscall(SYS_epoll_pwait2, network->epoll, events, EVENTS_AT_ONCE,
			     wait && wait_ns == ~0ull ? NULL : &limit, NULL, 0);
	if (count < 0 && errno == ENOSYS)
		count = epoll_wait(network->epoll, events, EVENTS_AT_ONCE,
				   wait && wait_ns == ~0ull ? -1 :
				   wait_ns == 0 ? 0 : (int)(wait_ns / 1000000u) + 1);
	count = count < 0 ? -errno : count;
	pthread_mutex_lock(&channel->lock);
	network->polled_ns = dmp_now_ns();
	for (number = 0; number < count; number++)
		take_event(channel, events[number].data.u64, events[number].events);
	return count < 0 ? count : 0;
}

uint64_t dmp_network_due_locked(const struct dmp_embedded_channel *channel, uint64_t until_ns)
{
	__u64 due_ns;
	__u32 slot;

	if (dmp_channel_deadline(&channel->machine, &due_ns) && (until_ns == 0 || due_ns < until_ns))
		until_ns = due_ns;
	if (dmp_deadline_next(&channel->network->timers, &slot, &due_ns) &&
	    (until_ns == 0 || due_ns < until_ns))
		until_ns = due_ns;
	if (channel->event_due_ns != 0 && (until_ns == 0 || channel->event_due_ns < until_ns))
		until_ns = channel->event_due_ns;
	return until_ns;
}

int dmp_network_rest_locked(struct dmp_embedded_channel *channel, uint64_t until_ns)
{
	struct dmp_network *network = channel->network;
	uint64_t wait_ns = ~0ull, now_ns;

	deactivate_all(channel);
	if (network->dirty_first || (network->ending && network->count != 0) || channel->news)
		return 0;
	until_ns = dmp_network_due_locked(channel, until_ns);
	now_ns = dmp_now_ns();
	if (until_ns != 0) {
		if (until_ns <= now_ns)
			return 0;
		wait_ns = until_ns - now_ns;
	}
	network->rest_until_ns = until_ns ? until_ns : ~0ull;
	channel->watching = true;
	return ask_epoll(channel, true, wait_ns);
}

bool dmp_network_poll_locked(struct dmp_embedded_channel *channel, uint64_t budget_ns,
			     uint64_t deadline_ns)
{
	uint64_t end_ns = dmp_now_ns() + budget_ns;

	if (deadline_ns != 0 && deadline_ns < end_ns)
		end_ns = deadline_ns;
	while (dmp_now_ns() < end_ns) {
		ask_epoll(channel, false, 0);
		if (dmp_network_is_busy_locked(channel) || channel->news)
			return true;
	}
	return false;
}

/* ---- a round */

static void detach_if_dropped(struct dmp_embedded_channel *channel,
			      struct dmp_embedded_endpoint *endpoint)
{
	if (endpoint->ended && endpoint->drop) {
		dmp_network_detach_locked(channel, endpoint);
		dmp_channel_nudge_locked(channel);
	}
}

static void end_all(struct dmp_embedded_channel *channel)
{
	struct dmp_network *network = channel->network;
	uint32_t slot;

	for (slot = 0; slot < DMP_ENDPOINTS_MAX && network->count != 0; slot++) {
		struct dmp_embedded_endpoint *endpoint = network->endpoints[slot];

		if (!endpoint)
			continue;
		endpoint->drop = true;
		dmp_traffic_abort_locked(endpoint, -ECONNRESET);
		dmp_network_detach_locked(channel, endpoint);
	}
	dmp_channel_nudge_locked(channel);
}

bool dmp_network_round_locked(struct dmp_embedded_channel *channel, uint64_t now_ns)
{
	struct dmp_network *network = channel->network;
	struct dmp_embedded_endpoint *last;
	uint64_t every_ns;
	bool any = false;

	if (network->ending) {
		end_all(channel);
		return false;
	}
	ring_timers(channel, now_ns);
	dmp_network_is_busy_locked(channel);
	/* Those who keep us busy do not keep others from being heard; who is idle will sleep. */
	every_ns = network->active_count == network->count ? POLL_ENDS_NS : POLL_EVERY_NS;
	if (network->dirty_first && now_ns > network->polled_ns + every_ns)
		ask_epoll(channel, false, 0);
	last = network->dirty_last;
	while (network->dirty_first && !network->ending) {
		struct dmp_embedded_endpoint *endpoint = next_dirty(network);
		bool was_last = endpoint == last;

		activate(network, endpoint);
		if (dmp_traffic_round_locked(endpoint, now_ns)) {
			any = true;
			dmp_network_mark_locked(channel, endpoint);
		}
		if (endpoint->ended)
			forget_active(network, endpoint);
		else
			arm_inactive(channel, endpoint);
		set_timer(network, endpoint);
		detach_if_dropped(channel, endpoint);
		if (was_last)
			break;
		now_ns = dmp_now_ns();
	}
	/* The end may have come while we moved bytes, and whoever stops us with it. */
	return any || network->dirty_first != NULL || (network->ending && network->count != 0);
}

/* ---- who belongs */

static int make(struct dmp_embedded_channel *channel)
{
	struct epoll_event event = { .events = EPOLLIN | EPOLLET, .data.u64 = NOBODY };
	struct dmp_network *network = calloc(1, sizeof(*network));
	int error = -ENOMEM;
	uint32_t slot;

	if (!network)
		return -ENOMEM;
	network->timers_memory = calloc(1, dmp_deadline_bytes(DMP_ENDPOINTS_MAX));
	if (!network->timers_memory)
		goto err_free;
	dmp_deadline_init(&network->timers, network->timers_memory, DMP_ENDPOINTS_MAX);
	network->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (network->epoll < 0) {
		error = -errno;
		goto err_timers;
	}
	network->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (network->bell < 0) {
		error = -errno;
		goto err_epoll;
	}
	if (epoll_ctl(network->epoll, EPOLL_CTL_ADD, network->bell, &event) != 0) {
		error = -errno;
		goto err_bell;
	}
	for (slot = 0; slot < DMP_ENDPOINTS_MAX; slot++)
		network->next_free[slot] = slot + 1 < DMP_ENDPOINTS_MAX ? slot + 1 : NOBODY;
	channel->network = network;
	return 0;

err_bell:
	close(network->bell);
err_epoll:
	close(network->epoll);
err_timers:
	free(network->timers_memory);
err_free:
	free(network);
	return error;
}

int dmp_network_attach_locked(struct dmp_embedded_channel *channel,
			      struct dmp_embedded_endpoint *endpoint)
{
	struct epoll_event event = { .events = EPOLLIN | EPOLLRDHUP | EPOLLET };
	struct dmp_network *network;
	int error = channel->network ? 0 : make(channel);

	if (error)
		return error;
	network = channel->network;
	if (network->free_first == NOBODY)
		return -ENOSPC;
	error = dmp_channel_reserve_events(&channel->machine, 1);
	if (error)
		return error;
	endpoint->slot = network->free_first;
	event.data.u64 = name_of(endpoint);
	/* Where `ready` tells of room, the descriptor is only a bell. */
	if (!endpoint->fabric->type->ready)
		event.events |= EPOLLOUT;
	if (epoll_ctl(network->epoll, EPOLL_CTL_ADD, endpoint->fabric->fd, &event) != 0) {
		error = -errno;
		dmp_channel_reserve_events(&channel->machine, -1);
		return error;
	}
	network->free_first = network->next_free[endpoint->slot];
	network->endpoints[endpoint->slot] = endpoint;
	network->count++;
	endpoint->attached = true;
	endpoint->has_event = true;
	dmp_network_mark_locked(channel, endpoint);
	return 0;
}

void dmp_network_unwatch_locked(struct dmp_embedded_channel *channel,
				const struct dmp_embedded_endpoint *endpoint)
{
	if (endpoint->attached)
		epoll_ctl(channel->network->epoll, EPOLL_CTL_DEL, endpoint->fabric->fd, NULL);
}

static void forget_dirty(struct dmp_network *network, struct dmp_embedded_endpoint *endpoint)
{
	struct dmp_embedded_endpoint **link = &network->dirty_first;
	struct dmp_embedded_endpoint *before = NULL;

	if (!endpoint->dirty)
		return;
	while (*link != endpoint) {
		before = *link;
		link = &before->next_dirty;
	}
	*link = endpoint->next_dirty;
	if (network->dirty_last == endpoint)
		network->dirty_last = before;
	endpoint->dirty = false;
}

void dmp_network_detach_locked(struct dmp_embedded_channel *channel,
			       struct dmp_embedded_endpoint *endpoint)
{
	struct dmp_network *network = channel->network;

	if (!endpoint->attached)
		return;
	forget_dirty(network, endpoint);
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
	endpoint->attached = false;
}

void dmp_network_free(struct dmp_embedded_channel *channel)
{
	struct dmp_network *network = channel->network;

	if (!network)
		return;
	close(network->bell);
	close(network->epoll);
	free(network->timers_memory);
	free(network);
	channel->network = NULL;
}
