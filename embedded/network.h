/* SPDX-License-Identifier: MIT */
/*
 * network.h - the endpoints of one channel: who has something to do, timers, sleep
 *
 * Endpoints with something to do are `dirty` and stand in a list; a round works through
 * those that stood in it when it began, so none can keep the others out. A fabric that can
 * be asked without a system call is `active` from the moment it does something until the
 * executor sleeps; the others are found by epoll. Nothing here costs more with more idle
 * endpoints: their timers stand in a heap, their descriptors in epoll.
 *
 * Locks: channel->lock, given up while bytes move or the executor sleeps. Only the
 * executor of the channel calls round and rest. Events of epoll name an endpoint by slot
 * and epoch, because it may be gone by the time they are looked at.
 */
#ifndef DMP_NETWORK_H
#define DMP_NETWORK_H

#include "deadline.h"
#include "endpoint_embedded.h"

#define DMP_ACTIVE_MAX 32u

struct dmp_network {
	int epoll;
	int bell;			/* eventfd in epoll: wakes an executor that watches */
	uint32_t count;			/* endpoints attached */
	uint32_t free_first;		/* slots */
	struct dmp_embedded_endpoint *endpoints[DMP_ENDPOINTS_MAX];
	uint32_t next_free[DMP_ENDPOINTS_MAX];
	struct dmp_deadline_heap timers;
	void *timers_memory;
	struct dmp_embedded_endpoint *dirty_first;
	struct dmp_embedded_endpoint *dirty_last;
	struct dmp_embedded_endpoint *active[DMP_ACTIVE_MAX];
	uint32_t active_count;
	uint64_t polled_ns;		/* when epoll was asked last */
	uint64_t rest_until_ns;		/* of whoever went to sleep last; ~0: no limit */
	bool ending;			/* the channel goes: everything is aborted */
	uint32_t pressing;		/* endpoints that have more to do than to answer */
};

/* Makes the channel's network on first use; attaches. -ENOMEM, -ENOSPC. Lock held. */
int dmp_network_attach_locked(struct dmp_embedded_channel *channel,
			      struct dmp_embedded_endpoint *endpoint);

/* Its descriptor is about to be closed; a copy of it may live on elsewhere. */
void dmp_network_unwatch_locked(struct dmp_embedded_channel *channel,
				const struct dmp_embedded_endpoint *endpoint);

/* Executor: the endpoint has ended and is forgotten. */
void dmp_network_detach_locked(struct dmp_embedded_channel *channel,
			       struct dmp_embedded_endpoint *endpoint);

/* After its turn: does it leave more than answers, which may wait? */
void dmp_network_press_locked(struct dmp_embedded_endpoint *endpoint, bool presses);

/* It has something to do. The caller sees to it that an executor looks. */
void dmp_network_mark_locked(struct dmp_embedded_channel *channel,
			     struct dmp_embedded_endpoint *endpoint);

/* Executor: one turn of everybody who has something to do. True: look again before sleeping. */
bool dmp_network_round_locked(struct dmp_embedded_channel *channel, uint64_t now_ns);

/*
 * Executor: sleeps until something comes, the bell rings, a timer is due or @until_ns (0: no
 * limit). `watching` is set meanwhile. 0 or -EINTR.
 */
int dmp_network_rest_locked(struct dmp_embedded_channel *channel, uint64_t until_ns);

/* Is there something, as far as can be told without a system call? For those who spin. */
bool dmp_network_is_busy_locked(struct dmp_embedded_channel *channel);

/*
 * A caller leaves the place to one who sleeps in the network already: fabrics ring from
 * here on. True: something has come meanwhile, wake him.
 */
bool dmp_network_settle_locked(struct dmp_embedded_channel *channel);

/*
 * To spin where only epoll can ask some of the fabrics: asks it again and
 * again for @budget_ns, or until @deadline_ns. True: there is something.
 */
bool dmp_network_poll_locked(struct dmp_embedded_channel *channel, uint64_t budget_ns,
			     uint64_t deadline_ns);

/* When somebody has to look although nothing has come, @until_ns at the latest; 0: never. */
uint64_t dmp_network_due_locked(const struct dmp_embedded_channel *channel, uint64_t until_ns);

/* Channel's end; nobody executes any more and all endpoints are detached. */
void dmp_network_free(struct dmp_embedded_channel *channel);

#endif /* DMP_NETWORK_H */
