/* SPDX-License-Identifier: GPL-2.0 */
/*
 * listener.h - who waits at the door
 *
 * One thread per listener, the doorkeeper, takes callers from the pair's door and keeps them until
 * ACCEPT takes them:
 *
 *	SILENT -> QUEUED -> (taken by ACCEPT)
 *	   \-----> BOXED -> QUEUED
 *
 * SILENT: nothing has come from him yet; a second to say HELLO. BOXED: his origin has failed to
 * prove the secret too often (core/origin.h); waits for his time. Who is not let in is
 * sent away, and costs those who are connected already nothing.
 *
 * Bounds: `backlog` QUEUED, and four times as many SILENT and BOXED. While there is no room nobody
 * is taken: the door holds as many again and turns away the rest.
 *
 * Who holds a listener: the table, and calls inside (`references`).
 */
#ifndef DMP_KERNEL_LISTENER_H
#define DMP_KERNEL_LISTENER_H

#include "address.h"
#include "origin.h"
#include "plane.h"
#include "proof.h"
#include "rdma_pair.h"

#define DMP_LISTENERS_MAX	256U	/* of one plane */
#define DMP_LISTENERS_TOTAL	1024U	/* of all: each has a thread */

struct dmp_listener;

/* Somebody at the door; the pair belongs to whoever holds this. */
struct dmp_arrival {
	struct dmp_pair *pair;
	u64 origin;		/* of its address, for the count of failures */
	u8 peer_address[DMP_ADDRESS_BYTES];
};

/*
 * The oldest arrival, waiting for one until @deadline_ns: -ETIMEDOUT, -EAGAIN for a time that
 * has passed, -EINTR, -ENOENT, -ESTALE when the listener goes away meanwhile. On success
 * the listener is entered until dmp_listener_put(), even if it is destroyed meanwhile.
 */
int dmp_listener_take(struct dmp_plane *plane, u32 id, u64 deadline_ns,
		      struct dmp_listener **listener, struct dmp_arrival *arrival);
void dmp_listener_put(struct dmp_listener *listener);

/* What both sides must know; valid while the listener is entered. */
const struct dmp_secret *dmp_listener_secret(const struct dmp_listener *listener);

/* An arrival proved the secret, or failed to: its address is slowed down after several. */
void dmp_listener_judge(struct dmp_listener *listener, u64 origin, bool proved);

/* Closing the plane: the doorkeeper stops, everybody is sent away. */
void dmp_listener_close(struct dmp_plane *plane, struct dmp_object *object);

/* Commands. */
int dmp_listener_create(struct dmp_plane *plane, void *argument);
int dmp_listener_destroy(struct dmp_plane *plane, void *argument);

#endif /* DMP_KERNEL_LISTENER_H */
