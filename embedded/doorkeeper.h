/* SPDX-License-Identifier: MIT */
/*
 * doorkeeper.h - the inside of a listener: its thread and those at its door
 *
 * A visitor has a slot from the moment he is accepted:
 *
 *	SILENT -> QUEUED -> (taken by ACCEPT)
 *	   \-----> BOXED <-> QUEUED
 *
 * SILENT: no HELLO yet (tcp: no whole one; else: not a byte); a second to say it. BOXED: his
 * origin has failed too often (origin.h); waits for his time. QUEUED: waits for ACCEPT, in order; if others of his origin
 * fail too often meanwhile, he goes to the box like one who comes now, and is announced again
 * when he is back. He may be sent away in any state; hanging up does it.
 *
 * Bounds. SILENT and BOXED together hold half_open_max visitors: a new one takes the place of
 * the one who has been silent longest. While `backlog` are QUEUED nobody is accepted: the
 * kernel's queue holds them.
 *
 * Locks. listener->lock is a leaf. Slots that are SILENT or BOXED are touched by the
 * doorkeeper only; states change, and QUEUED slots are touched, under the lock. Fabrics are
 * called without it.
 *
 * visitor.c holds what happens to a visitor, doorkeeper.c the thread.
 */
#ifndef DMP_DOORKEEPER_H
#define DMP_DOORKEEPER_H

#include <pthread.h>

#include "door.h"
#include "listener.h"
#include "origin.h"

#define DMP_SILENCE_NS		1000000000ull	/* who says nothing for so long is sent away */
#define DMP_HALF_OPEN_FACTOR	4u
#define DMP_VISITOR_NONE	0xffffffffu

enum dmp_visitor_state {
	DMP_VISITOR_FREE,
	DMP_VISITOR_SILENT,
	DMP_VISITOR_BOXED,
	DMP_VISITOR_QUEUED,
};

struct dmp_visitor {
	__u32 state;
	__u32 serial;			/* of this use of the slot: an old event names another */
	__u32 next;
	__u32 previous;
	int socket;			/* what is watched; the fabric's own once there is one */
	bool local;			/* came through the unix door */
	bool rests;			/* the fabric was told that we sleep */
	bool announced;
	bool waited;			/* he has been BOXED, once is enough */
	__u64 due_ns;			/* SILENT: patience ends; BOXED: he may pass */
	struct dmp_arrival arrival;
};

/* A chain of visitors, oldest first. */
struct dmp_visitors {
	__u32 first;
	__u32 last;
	__u32 count;
};

struct dmp_listener {
	struct dmp_object object;
	/* immutable after create */
	struct dmp_plane *plane;
	struct dmp_doors doors;
	struct dmp_secret secret;
	__u32 channel_id;
	bool encrypt;			/* only who encrypts is let in */
	__u32 backlog;
	__u32 half_open_max;
	int epoll;
	int poke;			/* eventfd: look at `stop`, the queue and pardons */
	pthread_t thread;

	/* atomic: one of the table, one of each call inside; the last one frees */
	__u32 references;

	/* doorkeeper only */
	struct dmp_visitors silent;
	struct dmp_visitors boxed;
	__u64 pause_ns;			/* out of descriptors: accept again then; 0: no pause */
	__u64 announce_ns;		/* the channel had no slot: try again then */
	bool doors_watched;
	bool channel_gone;

	pthread_mutex_t lock;
	/* protected by lock */
	bool suspicion;			/* an origin fails: look through the queue */
	bool open;			/* it has its id: visitors may come */
	bool stop;
	struct dmp_visitors queue;
	struct dmp_visitors unused;
	struct dmp_visitor *visitors;
	struct dmp_origins origins;
	__u32 sequence;			/* futex: takers sleep on it */
};

/* ---- visitor.c */

/* Makes all @slots of listener->visitors free ones. */
void dmp_visitor_init(struct dmp_listener *listener, __u32 slots);
struct dmp_visitor *dmp_visitor_first(struct dmp_listener *listener,
				      const struct dmp_visitors *chain);
struct dmp_visitor *dmp_visitor_next(struct dmp_listener *listener,
				     const struct dmp_visitor *visitor);

/*
 * Takes over a socket that was accepted, or a fabric whose socket it is, in place of the
 * longest silent if there is no room.
 */
void dmp_visitor_receive(struct dmp_listener *listener, int socket, struct dmp_fabric *fabric,
			 bool local, const struct sockaddr_storage *peer, socklen_t length,
			 __u64 now_ns);

/* A SILENT visitor may have said something. */
void dmp_visitor_look(struct dmp_listener *listener, struct dmp_visitor *visitor, __u64 now_ns);

/* Those QUEUED whose origin has failed too often since they came: boxed, or sent away. */
void dmp_visitor_sift(struct dmp_listener *listener, __u64 now_ns);

/* Closes what he came with, and his slot is free. Not for QUEUED ones while takers are there. */
void dmp_visitor_dismiss(struct dmp_listener *listener, struct dmp_visitor *visitor);

/* He is complete. Lock held. */
void dmp_visitor_enqueue_locked(struct dmp_listener *listener, struct dmp_visitor *visitor);

/* The slot is free; what he came with is the caller's. Lock held. */
void dmp_visitor_vacate_locked(struct dmp_listener *listener, struct dmp_visitor *visitor);

/* ---- doorkeeper.c */

int dmp_doorkeeper_start(struct dmp_listener *listener);

/* Stops the thread and sends everybody away; takers find `stop` and go home. */
void dmp_doorkeeper_stop(struct dmp_listener *listener);

/* Takes the oldest QUEUED visitor, or answers -EAGAIN. Lock held. */
int dmp_doorkeeper_pop_locked(struct dmp_listener *listener, struct dmp_arrival *arrival);

/* The doorkeeper has something to look at. */
void dmp_doorkeeper_poke(struct dmp_listener *listener);

#endif /* DMP_DOORKEEPER_H */
