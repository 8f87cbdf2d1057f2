/* SPDX-License-Identifier: MIT */
/*
 * verbs.h - the fabric over an RDMA device: one reliable-connected queue pair
 *
 * Frames travel in SENDs (slots), bytes of WRITE and READ in RDMA WRITEs and READs. The form
 * is core/rdma.h, the reasons are in docs/design/verbs.md.
 *
 *	verbs.c		slots: the byte stream, repayment, completions, sleep
 *	verbs_move.c	post and reap; registrations of local buffers
 *	verbs_grant.c	own regions, for the peer: grant, revoke
 *	verbs_remote.c	the peer's regions, for us: ask, parts, void
 *	verbs_connect.c	from an address to a queue pair, and its end
 *	verbs_absent.c	all of this where rdma-core's headers were not there
 *
 * What is called by whom is said in fabric.h. Everything of one connection, the protection
 * domain too, is the fabric's own, so an rkey is of no use on any other queue pair.
 */
#ifndef DMP_VERBS_H
#define DMP_VERBS_H

#include "address.h"
#include "fabric.h"
#include "region.h"

struct dmp_verbs_door;

#define DMP_VERBS_MANAGER "/dev/infiniband/rdma_cm"	/* without it there is no RDMA for us */

/*
 * Connector, blocking: -ENODEV no RDMA on the way to that address (dmp_verbs_probe() knows
 * more), -ECONNREFUSED, -EHOSTUNREACH, -ETIMEDOUT, -EOPNOTSUPP another version.
 */
int dmp_verbs_dial(struct dmp_plane *plane, const struct dmp_address *address, __u64 deadline_ns,
		   struct dmp_fabric **fabric);

/* Acceptor: listens on @address, whose port is set. -ENODEV, -EADDRINUSE, -EHOSTUNREACH. */
int dmp_verbs_door_open(const struct dmp_address *address, __u32 backlog,
			struct dmp_verbs_door **door);
int dmp_verbs_door_fd(const struct dmp_verbs_door *door);
void dmp_verbs_door_close(struct dmp_verbs_door *door);

/*
 * Whoever has called: a fabric whose queue pair is about to be up (`ready` tells of his first
 * bytes), and where he calls from. -EAGAIN: nobody. Else that one is gone already.
 */
int dmp_verbs_door_take(struct dmp_plane *plane, struct dmp_verbs_door *door,
			struct sockaddr_storage *peer, socklen_t *length,
			struct dmp_fabric **fabric);

/*
 * The handshake is over: until here nothing is registered for the peer, whatever it asks.
 * channel->lock held.
 */
void dmp_verbs_trust(struct dmp_fabric *fabric);

/* As dmp_shm_ask() and dmp_shm_granted(): the parts of @remote. channel->lock held. */
int dmp_verbs_ask(struct dmp_fabric *fabric, const __u8 *key, __u32 key_bytes);
int dmp_verbs_granted(struct dmp_fabric *fabric, struct dmp_remote *remote);

/*
 * The generation of our region in @slot has ended: the peer is told, and until it has let go
 * the registration holds. True: something is registered still. channel->lock held; who
 * calls wakes the executor.
 */
bool dmp_verbs_revoke(struct dmp_fabric *fabric, __u32 slot, __u64 now_ns);

/* Of what was revoked, is anything registered? Not after its time is over. channel->lock held. */
bool dmp_verbs_is_registered(struct dmp_fabric *fabric, __u32 slot, __u64 now_ns);

/* The buffer goes: its local registration with it. No operation of it is in flight. Any lock. */
void dmp_verbs_forget(struct dmp_fabric *fabric, __u32 buffer_id);

/* Tests, as a device that registers few bytes at once: what is granted from now on goes in parts. */
void dmp_verbs_limit_parts(__u64 bytes);

#endif /* DMP_VERBS_H */
