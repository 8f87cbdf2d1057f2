/* SPDX-License-Identifier: MIT */
/*
 * listener.h - who waits at the door
 *
 * One thread per listener, the doorkeeper, accepts sockets (tcp, and the unix door for
 * shm) and calls over RDMA, makes fabrics of them and keeps those who have said HELLO in a
 * bounded queue until ACCEPT takes them. Who says nothing within a second, or too many from one address who
 * failed to prove the secret, are sent away; neither costs those who are connected already
 * anything. The doorkeeper reads nothing beyond what tells it that a HELLO is there.
 */
#ifndef DMP_LISTENER_H
#define DMP_LISTENER_H

#include "address.h"
#include "fabric.h"
#include "plane.h"
#include "proof.h"

struct dmp_listener;

/* Somebody at the door; the fabric belongs to whoever holds this. */
struct dmp_arrival {
	struct dmp_fabric *fabric;
	__u8 peer_address[DMP_ADDRESS_BYTES];
	__u64 origin;		/* of its address (without port), for the count of failures */
};

/*
 * The oldest arrival, waiting for one until @deadline_ns: -ETIMEDOUT, -EAGAIN for a time
 * that has passed, -EINTR, -ENOENT, -ESTALE when the listener goes away meanwhile. On success
 * the listener is entered until dmp_listener_put(), even if it is destroyed meanwhile.
 */
int dmp_listener_take(struct dmp_plane *plane, __u32 listener_id, __u64 deadline_ns,
		      struct dmp_listener **listener, struct dmp_arrival *arrival);
void dmp_listener_put(struct dmp_plane *plane, struct dmp_listener *listener);

/* What both sides must know; valid while the listener is entered. */
const struct dmp_secret *dmp_listener_secret(const struct dmp_listener *listener);
bool dmp_listener_encrypts(const struct dmp_listener *listener);
__u32 dmp_listener_channel(const struct dmp_listener *listener);

/* An arrival proved the secret, or failed to: its address is slowed down after several. */
void dmp_listener_judge(struct dmp_listener *listener, __u64 origin, bool proved);

/* Closing the plane. */
void dmp_listener_free(struct dmp_plane *plane, struct dmp_listener *listener);

/* Commands. */
int dmp_listener_create(struct dmp_plane *plane, void *argument);
int dmp_listener_destroy(struct dmp_plane *plane, void *argument);

/*
 * The connector's side of the door: connects by the path that fits and encrypts (shm where the
 * address is this machine's and the listener is of our user, else tcp) or by @require (DMP_PATH_*,
 * 0: any; -ENODEV if it cannot be had). -ECONNREFUSED, -EHOSTUNREACH, -ETIMEDOUT, -EPERM
 * (the socket of a path is not ours), -EAGAIN (no free port), -EINTR. 0 for @deadline_ns: 10 s.
 */
int dmp_dial(struct dmp_plane *plane, const struct dmp_address *address, __u32 require,
	     __u64 deadline_ns, struct dmp_fabric **fabric);

/*
 * What nothing is required of, and nothing asked that only tcp can do: shm, else verbs where a
 * device leads to the peer and it answers there, else tcp. A peer that has no RDMA costs two
 * seconds, once a minute.
 */
int dmp_dial_best(struct dmp_plane *plane, const struct dmp_address *address, __u64 deadline_ns,
		  struct dmp_fabric **fabric);

#endif /* DMP_LISTENER_H */
