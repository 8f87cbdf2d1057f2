/* SPDX-License-Identifier: MIT */
/*
 * shm_segment.h - the layout two processes share, and this side's view of it
 *
 * The segment: one page with the words of both sides, then two rings of bytes; the first
 * is the connector's to send in, the second the acceptor's. Every line has one writer.
 *
 * Indices are free-running 32-bit byte counts, head <= tail <= head + ring bytes. Byte
 * number i of a ring lies at (i - base) modulo the ring's bytes. The sender moves `base`
 * only while the ring is empty and the receiver has said so, to begin again at the first
 * byte: so an endpoint that only says now and then that it is alive keeps to one page.
 *
 * Whoever writes a word keeps a copy in struct dmp_shm and never reads it back, so
 * the peer can harm only what it reads from us.
 */
#ifndef DMP_SHM_SEGMENT_H
#define DMP_SHM_SEGMENT_H

#include <stddef.h>
#include <stdint.h>

#include "fabric.h"
#include "shm.h"

#define DMP_SHM_MAGIC		0x53504d44u	/* "DMPS" */
#define DMP_SHM_VERSION		1u
#define DMP_SHM_RING_BYTES	(256u << 10)	/* what our connectors ask for */
#define DMP_SHM_RING_BYTES_MIN	(4u << 10)
#define DMP_SHM_RING_BYTES_MAX	(4u << 20)
#define DMP_SHM_HEADER_BYTES	4096u
#define DMP_SHM_LINE_BYTES	128		/* two cache lines: they are fetched in pairs */
#define DMP_SHM_BOARD_BYTES	(DMP_REGIONS_MAX * sizeof(uint32_t))

/* `asleep`: 0 awake, else a number that no other sleep soon has, and what to be woken for. */
#define DMP_SHM_WAKE_ROOM	1u
#define DMP_SHM_WAKE_STEP	2u	/* the number counts from here up */

/* The words that one side writes and the other reads. */
struct dmp_shm_side {
	/* written with every send */
	_Alignas(DMP_SHM_LINE_BYTES) uint32_t tail;
	uint32_t base;
	/* written when an eighth of the ring has been received, and before sleep */
	_Alignas(DMP_SHM_LINE_BYTES) uint32_t head;
	/* seldom written, so that looking at it costs nothing */
	_Alignas(DMP_SHM_LINE_BYTES) uint32_t asleep;
	uint32_t closed;
	/* 1 + slot of the region of the other side that is being copied to or from */
	_Alignas(DMP_SHM_LINE_BYTES) uint32_t touching;
};

struct dmp_shm_header {
	uint32_t magic;
	uint32_t version;
	uint32_t ring_bytes;
	struct dmp_shm_side sides[2];	/* connector, acceptor */
};

_Static_assert(sizeof(struct dmp_shm_side) == 4 * DMP_SHM_LINE_BYTES, "four lines a side");
_Static_assert(sizeof(struct dmp_shm_header) <= DMP_SHM_HEADER_BYTES, "the words fit a page");

/* A question about a region's memory, or the answer to one. */
#define DMP_SHM_QUIET		0	/* none */
#define DMP_SHM_TO_SEND		1	/* the socket had no room: again in drain() */
#define DMP_SHM_ASKED		2	/* question only: no answer yet */
#define DMP_SHM_ANSWERED	3	/* question only: granted() has not taken it */

struct dmp_shm_exchange {
	uint64_t offset;
	uint64_t length;
	uint32_t state;
	uint32_t serial;
	uint32_t key_bytes;
	int32_t result;
	int fd;				/* owned; -1: none */
	uint8_t key[DMP_KEY_BYTES];
};

struct dmp_shm {
	struct dmp_fabric fabric;
	/* immutable after offer or answer */
	struct dmp_plane *plane;
	struct dmp_shm_header *segment;
	struct dmp_shm_side *ours;
	struct dmp_shm_side *theirs;
	char *out;
	char *in;
	uint32_t ring_bytes;
	size_t segment_bytes;
	int pidfd;			/* -1: the kernel has none; then the socket tells */

	/* executor only */
	const uint32_t *board;		/* NULL until the acceptor has answered */
	uint32_t tail;			/* sent */
	uint32_t base;
	uint32_t room_seen;		/* the peer's head, as last read */
	uint32_t head;			/* received */
	uint32_t head_told;
	uint32_t tail_seen;		/* the peer's tail and base, as last read */
	uint32_t base_seen;
	uint32_t touching;
	uint32_t rests;
	uint32_t rung;			/* the peer's `asleep` that was rung for */
	int error;			/* the peer's words are impossible: at once, and for good */
	int lost;			/* from drain(): once the ring is empty, and for good */
	bool resting;
	bool wants_room;		/* the last send took less than it was given */

	/* channel->lock */
	struct dmp_shm_exchange question;	/* ours */
	struct dmp_shm_exchange reply;		/* to the peer's */

	/* shm_peer.c's, once the fabric is closed */
	struct dmp_shm *next_left;
};

/* shm.c */
void dmp_shm_attach(struct dmp_shm *shm, bool connector);

/* shm_socket.c: takes the messages that have come; lets go of everything and frees. */
int dmp_shm_drain(struct dmp_fabric *fabric);
void dmp_shm_detach(struct dmp_shm *shm);

/* shm_peer.c */
int dmp_shm_peer_check(int socket);		/* -EPERM: another user's */
int dmp_shm_peer_pidfd(int socket);		/* -1: the kernel has none */

/*
 * Closes the connection and frees @shm: at once, or, while the peer is touching one of our
 * regions, when it has let go. What shm_socket.c owns is gone before.
 */
void dmp_shm_leave(struct dmp_shm *shm);

/* -EBUSY while too many peers have left with their hands on something. */
int dmp_shm_may_join(void);

#endif /* DMP_SHM_SEGMENT_H */
