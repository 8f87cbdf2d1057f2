/* SPDX-License-Identifier: GPL-2.0 */
/*
 * rdma_pair.h - one reliable-connected queue pair: slots for bytes, pieces for moves
 *
 * Frames travel in SENDs (slots), bytes of WRITE and READ in RDMA WRITEs and READs. The form is
 * core/rdma.h, the reasons are in docs/design/verbs.md and kernel-rdma.md.
 *
 *	rdma_pair.c	slots: put, get, flush, repayment, completions, sleep
 *	rdma_connect.c	from an address to a queue pair, and its end
 *	rdma_door.c	listening, callers
 *	rdma_move.c	post and reap
 *	rdma_grant.c	regions: ask, grant, revoke
 *	rdma_memory.c	a memory as a device sees it: its mapping, and fast registrations
 *	rdma_absent.c	all of this on a kernel without RDMA
 *
 * Who calls. One thread at a time, the executor of the channel; during the handshake the
 * thread that connects or accepts. All functions may sleep unless said otherwise; none waits for
 * the peer but dial, door_take and close. The ringer is called from interrupts.
 *
 * Who owns what. A pair owns all it has of the device, and references to the memories it has
 * mapped; close() ends all device access and lets go: that is what answering CUT rests on. A
 * device that is removed waits until every pair and door on it is closed: a loss is followed
 * by close() soon, also of a pair nobody uses yet. A door closes itself.
 */
#ifndef DMP_KERNEL_RDMA_PAIR_H
#define DMP_KERNEL_RDMA_PAIR_H

#include <linux/errno.h>
#include <linux/socket.h>
#include <linux/types.h>

#include "dmaplane.h"
#include "memory.h"

struct dmp_pair;
struct dmp_pair_door;

/*
 * Something may be there to look at. Any context, interrupts too, under a spinlock of the pair:
 * it only takes note and wakes. May ring for nothing.
 */
struct dmp_pair_ringer {
	void (*ring)(struct dmp_pair_ringer *ringer);
};

/* Bytes of ours: at an address, or in a memory from @offset on. Neither: thrown away (get). */
struct dmp_run {
	void *address;
	struct dmp_memory *memory;
	u64 offset;
	u64 length;
};

/* A peer's region as it was granted: parts in order, without gaps, each with its rkey. */
struct dmp_pair_part {
	u64 from;		/* in the region */
	u64 length;
	u64 base;		/* what the peer calls the first byte of it */
	u32 rkey;
	u32 grant;		/* the number of the answer that brought it */
};

struct dmp_pair_remote {
	struct dmp_pair_part *parts;	/* kvmalloc'ed */
	u32 count;
	u64 charged;		/* against dmp_bytes_max: the parts */
	u64 length;		/* of the whole region */
	u32 access;
};

/* A slice of an own WRITE, WRITE_IMM or READ. */
struct dmp_pair_move {
	const struct dmp_pair_remote *remote;
	struct dmp_memory *memory;
	u64 local;		/* offset in @memory */
	u64 offset;		/* in the peer's region; in bounds, the right is granted */
	u64 length;		/* in, out: what was posted of it, at least a byte */
	bool write;		/* towards the peer */
};

/*
 * A peer says why, in numbers of errno.h. What is none of them, and what the callers of ours take
 * for something of their own (a signal, "not yet"), is nonsense.
 */
static inline int dmp_pair_reason(int said)
{
	return said >= -EHWPOISON && said != -EINTR && said != -EAGAIN ? said : -EPROTO;
}

/* ---- its life */

/*
 * Connector. Sleeps, interruptibly: -EINTR; -ENODEV no device on the way to that address,
 * -ECONNREFUSED, -EHOSTUNREACH, -ETIMEDOUT, -EOPNOTSUPP another version.
 */
int dmp_pair_dial(const struct sockaddr_storage *to, u64 deadline_ns, struct dmp_pair **pair);

/* From here on @ringer is rung; before that nobody. NULL: nobody any more, and none is in it. */
void dmp_pair_watch(struct dmp_pair *pair, struct dmp_pair_ringer *ringer);

/* What was said last is not waited for by close(). The executor, or who has it alone. */
void dmp_pair_give_up(struct dmp_pair *pair);

/* The queue pair flushed and gone, nothing of the device touches memory, all let go. */
void dmp_pair_close(struct dmp_pair *pair);

/* Acceptor. @here: a port of 0 becomes the one taken. -ENODEV, -EADDRINUSE, -EHOSTUNREACH. */
int dmp_pair_door_open(struct sockaddr_storage *here, u32 backlog, struct dmp_pair_door **door);

/*
 * The next caller, in order; sleeps, interruptibly: -EINTR, -ETIMEDOUT (deadline 0: never),
 * -ESTALE the door is shut, or its device is gone. Any other error: that caller is gone, and
 * @from says who it was.
 * At most @backlog callers wait; more are rejected. A caller who hangs up is forgotten.
 */
int dmp_pair_door_take(struct dmp_pair_door *door, u64 deadline_ns, struct sockaddr_storage *from,
		       struct dmp_pair **pair);
/* Sends those who wait in take home with -ESTALE; close() is for when they have left. */
void dmp_pair_door_shut(struct dmp_pair_door *door);
void dmp_pair_door_close(struct dmp_pair_door *door);

/* ---- bytes, in order, as on a stream */

/*
 * Bytes taken; 0: no slot is free, and the ringer rings when one is; -errno: the connection is
 * lost (-EFAULT: @run's memory is). What was put may wait in a half-filled slot for flush().
 */
ssize_t dmp_pair_put(struct dmp_pair *pair, const struct dmp_run *run);
int dmp_pair_flush(struct dmp_pair *pair);

/*
 * Bytes given, 0: none are there; -errno: the connection is lost, and nothing more is to come
 * (-EFAULT: @run's memory is, and the bytes are still there).
 */
ssize_t dmp_pair_get(struct dmp_pair *pair, const struct dmp_run *run);

/*
 * Letters between the pairs are read and written, rdma_cm's news taken. To be called when it has
 * rung, and again if it has rung since that call began. -errno: the connection is lost.
 */
int dmp_pair_serve(struct dmp_pair *pair);

/* Is there something to get, reap or serve, or room where put had none? Polls; never sleeps. */
bool dmp_pair_is_ready(struct dmp_pair *pair);

/* The executor is about to sleep. False: do not, something has come; else it will ring. */
bool dmp_pair_rest(struct dmp_pair *pair);

/* ---- moves */

/*
 * On its way, the memory the device's until reap() gives @tag and the length back, in the order
 * of posting. -EAGAIN: later, it will ring; -ESTALE the region was revoked; -EOPNOTSUPP the
 * device cannot reach that memory (what can be revoked, what has no pages); -EPERM it may not
 * be written; -ENOMEM; else lost. After a loss nothing is given back.
 */
int dmp_pair_post(struct dmp_pair *pair, struct dmp_pair_move *move, u64 tag);
bool dmp_pair_reap(struct dmp_pair *pair, u64 *tag, u64 *length);

/* The buffer goes: so does its mapping for the device. No move of it is posted. Any thread. */
void dmp_pair_forget(struct dmp_pair *pair, const struct dmp_memory *memory);

/* ---- regions */

/*
 * What a key is worth, asked inside serve(): 0 with the rest filled in, -EACCES, -ESTALE. A lock
 * of the pair is held, which revoke() and is_registered() take: so a region that ends is either
 * refused here or found there. Neither is to be called under a lock that admit() takes.
 */
struct dmp_pair_admitted {
	struct dmp_memory *memory;	/* with a reference, the pair's from here on */
	u64 offset;
	u64 length;
	u32 access;
	u32 slot;			/* names the region for revoke() */
};

struct dmp_pair_admission {
	int (*admit)(struct dmp_pair_admission *admission, const u8 *key, u32 key_bytes,
		     struct dmp_pair_admitted *admitted);
};

/* The handshake is over: until here no question of the peer is read, nothing registered. */
void dmp_pair_trust(struct dmp_pair *pair, struct dmp_pair_admission *admission);

/* Asks for all parts of a region. One at a time. granted(): -EAGAIN not yet, it will ring. */
int dmp_pair_ask(struct dmp_pair *pair, const u8 *key, u32 key_bytes);
int dmp_pair_granted(struct dmp_pair *pair, struct dmp_pair_remote *remote);
void dmp_pair_remote_free(struct dmp_pair_remote *remote);

/*
 * Our region @slot has ended: the peer is told and has half a second to let go, then the
 * registrations are invalidated (it rings). True: one was good until now; is_registered() says
 * whether all are gone. Not of the executor only: any thread.
 */
bool dmp_pair_revoke(struct dmp_pair *pair, u32 slot);
bool dmp_pair_is_registered(struct dmp_pair *pair, u32 slot);

/* ---- what it counted */

struct dmp_pair_counters {
	u64 slots_sent;
	u64 slots_received;
	u64 repayments;
	u64 wakes;		/* slots that asked to be woken */
	u64 moves;
	u64 stalls;		/* put found no slot */
};

void dmp_pair_count(const struct dmp_pair *pair, struct dmp_pair_counters *counters);

#endif /* DMP_KERNEL_RDMA_PAIR_H */
