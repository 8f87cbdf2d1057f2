/* SPDX-License-Identifier: GPL-2.0 */
/*
 * network.h - the endpoints of one channel: who has something to do, timers, sleep
 *
 * Endpoints with something to do are `dirty` and stand in a list; a round works through those
 * that stood in it when it began, so none can keep the others out. A pair that has something
 * rings: its endpoint goes on the channel's lock-free list of those that stir, and the worker
 * is woken. From then until the executor sleeps it is `active`: it need not ring, it is asked.
 * Idle endpoints cost nothing: their timers stand in a heap.
 *
 * Locks: channel->lock, given up while bytes move. Only the executor of the channel calls round,
 * settle and detach.
 */
#ifndef DMP_KERNEL_NETWORK_H
#define DMP_KERNEL_NETWORK_H

#include "deadline.h"
#include "endpoint_kernel.h"

#define DMP_ACTIVE_MAX 32U

struct dmp_network {
	u32 count;			/* endpoints attached */
	u32 free_first;			/* slots */
	u32 active_count;
	bool ending;			/* the channel goes: everything is aborted */
	u32 pressing;			/* endpoints that have more to do than to answer */
	struct list_head dirty;
	struct list_head active;
	struct dmp_deadline_heap timers;
	void *timers_memory;
	u64 charged_bytes;
	struct dmp_kernel_endpoint *endpoints[DMP_ENDPOINTS_MAX];
	u32 next_free[DMP_ENDPOINTS_MAX];
};

/* Makes the channel's network, once. Context: may sleep; no lock held. */
int dmp_network_make(struct dmp_kernel_channel *channel);

/* From here on the executor has it. -ENOSPC: no slot, or the channel has none for its events. */
int dmp_network_attach_locked(struct dmp_kernel_channel *channel,
			      struct dmp_kernel_endpoint *endpoint);

/* It has something to do. The caller sees to it that an executor looks. */
void dmp_network_mark_locked(struct dmp_kernel_channel *channel,
			     struct dmp_kernel_endpoint *endpoint);

/* One turn of everybody who has something to do. True: look again before sleeping. */
bool dmp_network_round_locked(struct dmp_kernel_channel *channel, u64 now_ns);

/* The executor is about to sleep: pairs ring from here on. False: somebody has something. */
bool dmp_network_settle_locked(struct dmp_kernel_channel *channel);

/* Has anybody something to do, as far as is known? */
bool dmp_network_is_wanted_locked(struct dmp_kernel_channel *channel);

/* Has something come, as far as it rings or was marked? Anybody, without the lock. */
bool dmp_network_rings(struct dmp_kernel_channel *channel);

/* And are the pairs ready? For who has the executor's place and spins; without the lock. */
bool dmp_network_stirs(struct dmp_kernel_channel *channel);

/* After its turn: does it leave more than answers, which may wait? */
void dmp_network_press_locked(struct dmp_kernel_endpoint *endpoint, bool presses);

/* The next timer; false if there is none. */
bool dmp_network_deadline_locked(const struct dmp_kernel_channel *channel, u64 *deadline_ns);

/* The channel goes: its endpoints lose their connections; the executor sees to it. */
void dmp_network_end(struct dmp_kernel_channel *channel);

/* Nobody executes any more, and all endpoints are detached. */
void dmp_network_free(struct dmp_kernel_channel *channel);

#endif /* DMP_KERNEL_NETWORK_H */
