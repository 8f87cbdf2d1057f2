/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * rdma.h - what two planes write to each other on a queue pair, below the frames
 *
 * The private data of rdma_cm, the header of a slot (one SEND), and the messages between
 * fabrics. Both planes compile this file, so there is one form. docs/design/verbs.md says what
 * it is for. Everything decoded here was written by a peer: -EPROTO for what nobody writes.
 *
 * The lane counts slots in 32 bits that wrap; the word of the sender has the same count in
 * its low half and zero above.
 */
#ifndef DMP_CORE_RDMA_H
#define DMP_CORE_RDMA_H

#include "dmaplane.h"
#include "types.h"

#define DMP_RDMA_VERSION	1
#define DMP_RDMA_HELLO_BYTES	24u	/* of rdma_cm's 56 */
#define DMP_RDMA_HEADER_BYTES	8u
#define DMP_RDMA_WORD_BYTES	8u
#define DMP_RDMA_SLOTS_MAX	4096u
#define DMP_RDMA_SLOT_BYTES_MIN	512u
#define DMP_RDMA_SLOT_BYTES_MAX	65536u

/*
 * Who revokes a region gives its peer so long to stop using it; then the rkey ends, and with
 * it the connection of a peer that still writes. So the peer has no more under way than comes
 * back in a part of that: between one piece and 400 Gbit/s times 80 us. A STOP of ours, too,
 * waits for what is under way.
 */
#define DMP_RDMA_LET_GO_MS	500u
#define DMP_RDMA_PIECE_BYTES	(1u << 20)
#define DMP_RDMA_MOVING_BYTES	(4u << 20)

/* The private data of a connect request and of its answer: limits, and nothing secret. */
struct dmp_rdma_hello {
	__u32 slots;		/* posted for the other side */
	__u32 slot_bytes;	/* each, with its header */
	__u32 reads;		/* RDMA READs this side answers at once */
};

/* Kinds of slots. */
#define DMP_RDMA_STREAM		1
#define DMP_RDMA_SETUP		2
#define DMP_RDMA_ASK		3
#define DMP_RDMA_GRANT		4
#define DMP_RDMA_REVOKE		5
#define DMP_RDMA_REVOKED	6

#define DMP_RDMA_WAKE		1	/* flag: the sender sleeps until slots are repaid */

struct dmp_rdma_header {
	__u8 kind;
	__u8 flags;
	__u32 length;		/* bytes behind the header */
};

/* A message between fabrics; each kind uses its own fields, see the table in rdma.c. */
struct dmp_rdma_message {
	__u64 from;		/* ASK: the first byte asked for, in the region */
	__u64 offset;		/* SETUP: of the word. GRANT: what rkey calls the byte `from` */
	__u64 length;		/* of the whole region */
	__u64 covered;		/* bytes from `from` on that rkey covers */
	__u32 number;		/* of a question, comes back with the answer */
	__u32 rkey;
	__u32 access;		/* DMP_ACCESS_REMOTE_* */
	__s32 result;
	__u32 key_bytes;
	__u8 key[DMP_KEY_BYTES];
};

#define DMP_RDMA_MESSAGE_BYTES_MAX (16u + DMP_KEY_BYTES)

void dmp_rdma_put_hello(const struct dmp_rdma_hello *hello, __u8 bytes[DMP_RDMA_HELLO_BYTES]);

/* rdma_cm pads private data with zeroes: @count may be more. -EPROTO, -EOPNOTSUPP version. */
int dmp_rdma_get_hello(const __u8 *bytes, __u32 count, struct dmp_rdma_hello *hello);

void dmp_rdma_put_header(const struct dmp_rdma_header *header, __u8 bytes[DMP_RDMA_HEADER_BYTES]);

/* @count bytes came in a slot; the header's length is exactly what is behind it. */
int dmp_rdma_get_header(const __u8 *bytes, __u32 count, struct dmp_rdma_header *header);

/* The bytes behind the header of @kind; 0 for a kind that is no message. */
__u32 dmp_rdma_put_message(__u8 kind, const struct dmp_rdma_message *message,
			   __u8 bytes[DMP_RDMA_MESSAGE_BYTES_MAX]);
int dmp_rdma_get_message(__u8 kind, const __u8 *bytes, __u32 count,
			 struct dmp_rdma_message *message);

/*
 * Is @grant, whose result is 0, an answer to who asked for @from and on? It covers at least
 * one byte and none behind the region's end. -EPROTO.
 */
int dmp_rdma_check_grant(const struct dmp_rdma_message *grant, __u64 from);

/*
 * How much of moves may be under way from now on: it was @bytes, beginning with
 * DMP_RDMA_PIECE_BYTES, and a piece has just come back, @took_ns after it was posted.
 */
__u32 dmp_rdma_pace(__u32 bytes, __u64 took_ns);

void dmp_rdma_put_word(__u32 emptied, __u8 bytes[DMP_RDMA_WORD_BYTES]);

/*
 * The word the peer wrote: *@repaid moves to it. -EPROTO if it says more than was sent or
 * less than before; @sent and @repaid count slots and wrap.
 */
int dmp_rdma_get_word(__u64 word, __u32 sent, __u32 *repaid);

#endif /* DMP_CORE_RDMA_H */
