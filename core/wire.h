/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * wire.h - the frames of the endpoint protocol
 *
 * A frame is a header of 56 bytes, a body whose length is fixed by the frame's
 * type, and, for OPERATION and RESPONSE only, payload bytes that follow the frame
 * and are no part of it. All numbers are little-endian.
 *
 *	offset bytes
 *	 0     4    magic "DMPF"
 *	 4     1    wire version
 *	 5     1    type
 *	 6     2    zero
 *	 8     4    epoch of the connection, 0 before the acceptor has chosen it
 *	12     4    body bytes
 *	16     8    sequence: 1, 2, 3 ... in each direction of a connection
 *	24     8    incarnation of the sender
 *	32     8    incarnation of the receiver, 0 in HELLO, which cannot know it
 *	40     8    payload bytes that follow the body
 *	48     4    zero
 *	52     4    CRC32C of the 52 bytes above and the body; zero on a fabric whose
 *		    bytes cannot flip
 *
 * Both incarnations and the epoch together name a connection for good: the epoch is
 * never used twice by one incarnation of the acceptor. With the sender's incarnation
 * alone, a frame meant for an acceptor that has since restarted, and counts its epochs
 * from 1 again, could pass.
 *
 * Results on the wire are 0 or a negative errno in the numbering that Linux
 * shares between x86-64 and aarch64.
 *
 * Decoding trusts nothing: length, magic, version, type, checksum, zero fields and
 * the range of every value are checked, and what is wrong is -EPROTO. The decoder
 * reads exactly the bytes it was given. What stands in the frame after an error, or in
 * a body of another type than the frame's, means nothing.
 */
#ifndef DMP_CORE_WIRE_H
#define DMP_CORE_WIRE_H

#include "types.h"

#define DMP_WIRE_VERSION	1
#define DMP_WIRE_HEADER_BYTES	56
#define DMP_WIRE_BODY_BYTES_MAX	168
#define DMP_WIRE_FRAME_BYTES_MAX (DMP_WIRE_HEADER_BYTES + DMP_WIRE_BODY_BYTES_MAX)
#define DMP_WIRE_NONCE_BYTES	32
#define DMP_WIRE_PROOF_BYTES	64
#define DMP_WIRE_KEY_BYTES	64

/* Frame types. Numbers are never reused. */
#define DMP_FRAME_HELLO		1	/* connector: who I am, what I can do */
#define DMP_FRAME_WELCOME	2	/* acceptor: the same, the epoch, a proof */
#define DMP_FRAME_CONFIRM	3	/* connector: its proof */
#define DMP_FRAME_REFUSE	4	/* either: no connection, and why */
#define DMP_FRAME_GRANT		5	/* cumulative receive credit */
#define DMP_FRAME_OPERATION	6	/* SEND, WRITE, WRITE_IMM, READ */
#define DMP_FRAME_RESPONSE	7	/* the bytes of a READ */
#define DMP_FRAME_COMPLETE	8	/* the result of an operation */
#define DMP_FRAME_CANCEL	9	/* stop an operation if it still can be */
#define DMP_FRAME_CANCELLED	10	/* it was stopped, its memory is left alone */
#define DMP_FRAME_PING		11
#define DMP_FRAME_PONG		12
#define DMP_FRAME_DRAIN		13	/* no operation follows from my side */
#define DMP_FRAME_GOODBYE	14	/* nothing follows from my side */
#define DMP_FRAME_TYPES		15

/* Features, in HELLO and WELCOME. Numbers are never reused. */
#define DMP_WIRE_ENCRYPT	(1U << 0)	/* on a wire nothing behind WELCOME and CONFIRM is clear */

/* Flags of an OPERATION. */
#define DMP_WIRE_PLACED		(1U << 0)	/* WRITE_IMM: the bytes are there already */
#define DMP_WIRE_CHECKSUM	(1U << 1)	/* `checksum` is the CRC32C of the bytes */
#define DMP_WIRE_OPERATION_FLAGS (DMP_WIRE_PLACED | DMP_WIRE_CHECKSUM)

/* What a side is able to take in. */
struct dmp_wire_limits {
	__u32 operations;	/* in flight towards it at once */
	__u32 window_slots;
	__u64 window_bytes;
};

struct dmp_wire_hello {
	__u16 version_min;
	__u16 version_max;
	__u64 features;
	struct dmp_wire_limits limits;
	__u8 nonce[DMP_WIRE_NONCE_BYTES];
};

struct dmp_wire_welcome {
	__u16 version;
	__u16 proof_bytes;
	__u64 features;			/* common to both */
	struct dmp_wire_limits limits;
	__u64 hello_incarnation;	/* of the HELLO this answers */
	__u8 hello_nonce[DMP_WIRE_NONCE_BYTES];
	__u8 nonce[DMP_WIRE_NONCE_BYTES];
	__u8 proof[DMP_WIRE_PROOF_BYTES];
};

struct dmp_wire_confirm {
	__u32 proof_bytes;
	__u8 proof[DMP_WIRE_PROOF_BYTES];
};

struct dmp_wire_refuse {
	__s32 reason;			/* a negative errno */
	__u8 hello_nonce[DMP_WIRE_NONCE_BYTES];
};

struct dmp_wire_grant {
	__u64 sequence;
	__u64 slots;
	__u64 bytes;
};

struct dmp_wire_operation {
	__u64 tag;			/* slot of the initiator | its generation << 32 */
	__u16 operation;		/* DMP_OP_* */
	__u16 flags;			/* DMP_WIRE_* */
	__u32 key_bytes;
	__u64 offset;			/* in the region the key names */
	__u64 length_bytes;
	__u32 immediate;
	__u32 checksum;
	__u8 key[DMP_WIRE_KEY_BYTES];
};

struct dmp_wire_response {
	__u64 tag;
	__u64 length_bytes;
	__u32 checksum;
	__u32 flags;			/* DMP_WIRE_CHECKSUM or 0 */
};

struct dmp_wire_result {		/* COMPLETE and CANCELLED */
	__u64 tag;
	__u64 length_bytes;
	__s32 result;
};

struct dmp_frame {
	__u32 type;
	__u32 epoch;
	__u64 sequence;
	__u64 incarnation;	/* of the sender */
	__u64 destination;	/* incarnation of the receiver */
	__u64 payload_bytes;
	union {
		struct dmp_wire_hello hello;
		struct dmp_wire_welcome welcome;
		struct dmp_wire_confirm confirm;
		struct dmp_wire_refuse refuse;
		struct dmp_wire_grant grant;
		struct dmp_wire_operation operation;
		struct dmp_wire_response response;
		struct dmp_wire_result result;
		__u64 tag;		/* CANCEL */
		__u64 stamp;		/* PING, PONG */
		__s32 reason;		/* GOODBYE */
	};
};

/*
 * Encode @frame into @bytes. Returns the length, -ENOSPC if @room is too small,
 * -EINVAL if a value of the frame is not one the decoder would accept. @checked: with a
 * checksum; which it is follows from the kind of fabric, so both sides know.
 */
int dmp_wire_encode(const struct dmp_frame *frame, bool checked, void *bytes, size_t room);

/* Decode one whole frame of exactly @length bytes: 0 or -EPROTO. */
int dmp_wire_decode(const void *bytes, size_t length, bool checked, struct dmp_frame *frame);

/*
 * For a byte stream: from the first DMP_WIRE_HEADER_BYTES, how long the frame is.
 * 0 or -EPROTO. The checksum is not looked at yet, so believe nothing else.
 */
int dmp_wire_peek(const void *header, size_t length, __u32 *frame_bytes);

#endif /* DMP_CORE_WIRE_H */
