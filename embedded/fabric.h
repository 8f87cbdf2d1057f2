/* SPDX-License-Identifier: MIT */
/*
 * fabric.h - what moves the bytes of one connection
 *
 * A fabric is a pair of byte streams that carry frames and their payloads, plus, where
 * it is direct, a way to touch the peer's regions without the peer's CPU. It knows
 * nothing of operations, credit or states: those are core/'s.
 *
 * Who calls. All functions belong to the executor of the endpoint's channel (one thread
 * at a time); during the handshake to the thread that connects or accepts. `send`,
 * `receive`, `move`, `post` and `reap` run without a lock, `rest`, `drain`, `finish` and
 * `close` with channel->lock held, `ready` with it or without. Nothing here waits for the
 * peer but `finish`; `post` may take as long as a device needs to register a buffer.
 *
 * Who owns what. A fabric owns its sockets and its mappings of the peer's memory, and
 * lets go of all of them in close(): that is what answering CUT rests on.
 */
#ifndef DMP_FABRIC_H
#define DMP_FABRIC_H

#include <stdbool.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "dmaplane.h"

struct dmp_buffer;
struct dmp_fabric;
struct dmp_remote;

/* A slice of an own WRITE, WRITE_IMM or READ on a direct fabric. */
struct dmp_move {
	struct dmp_remote *remote;
	struct dmp_buffer *buffer;	/* that `local` lies in */
	__u64 offset;		/* in the peer's region; in bounds, the right is granted */
	char *local;
	__u64 length;
	__u64 sweep;		/* as for dmp_copy_bytes: how large the walked memory is */
	__u32 checksum;		/* in, out: CRC32C so far, where `checked` */
	bool write;		/* towards the peer */
	bool checked;
};

struct dmp_fabric_type {
	__u8 path;		/* DMP_PATH_* */
	bool direct;		/* as in struct dmp_endpoint_config: there is a `move`, or a `post` */

	/* Bytes taken or given; 0: none now; -errno: the connection is lost. */
	ssize_t (*send)(struct dmp_fabric *fabric, const struct iovec *pieces, int count);
	ssize_t (*receive)(struct dmp_fabric *fabric, const struct iovec *pieces, int count);

	/*
	 * Is there something to receive, or room where `send` had none? Costs no system
	 * call. NULL: only epoll knows.
	 */
	bool (*ready)(struct dmp_fabric *fabric);

	/*
	 * The executor is about to sleep on `fd`. False: do not, something has come. Holds for
	 * what was received and sent before: who goes on without wake() calls it again before
	 * it sleeps. May be NULL.
	 */
	bool (*rest)(struct dmp_fabric *fabric);

	/* It is awake again and will ask `ready`. May be NULL. */
	void (*wake)(struct dmp_fabric *fabric);

	/*
	 * `fd` had an event (edge-triggered: EPOLLIN, EPOLLRDHUP and, where there is no `ready`,
	 * EPOLLOUT), or some time has passed: take what is on it besides the stream. -errno: the
	 * peer is gone. May be NULL.
	 */
	int (*drain)(struct dmp_fabric *fabric);

	/*
	 * The processor that hands in what comes, where the peer's own process does that with its
	 * own: a stream within one host. -1: another, or unknown. May be NULL.
	 */
	int (*processor)(struct dmp_fabric *fabric);

	/* Direct: one slice. -ESTALE: the region was revoked. */
	int (*move)(struct dmp_fabric *fabric, struct dmp_move *move);

	/*
	 * Direct, where a device moves the bytes, in the place of `move`. post: so many bytes of
	 * the slice, from its beginning and at least one, are on their way, their buffer the
	 * device's until reap gives @tag and as many bytes back, in the order of posting; -EAGAIN:
	 * later, `ready` will tell; else nothing has begun. push: who posted is done for
	 * now; what was kept back for company goes. What had begun when the connection was
	 * lost is not given back: close() lets go of it.
	 */
	ssize_t (*post)(struct dmp_fabric *fabric, const struct dmp_move *move, __u64 tag);
	void (*push)(struct dmp_fabric *fabric);
	bool (*reap)(struct dmp_fabric *fabric, __u64 *tag, __u64 *length);

	/*
	 * The last frame was sent, close() comes next: waits for a moment, 50 ms at most, until
	 * the peer's side has it. Not called where a connection just ends. May be NULL.
	 */
	void (*finish)(struct dmp_fabric *fabric);

	/* Lets go of everything and frees the fabric. */
	void (*close)(struct dmp_fabric *fabric);
};

/* The first member of every fabric. */
struct dmp_fabric {
	const struct dmp_fabric_type *type;
	int fd;			/* for the channel's epoll */
};

#endif /* DMP_FABRIC_H */
