/* SPDX-License-Identifier: MIT */
/*
 * stream.h - frames and payloads on the byte streams of a fabric
 *
 * Out: frames of the machine wait in order, each with its payload; many go with one
 * send(). In: frames are collected in a small buffer and handed to the machine one by
 * one; the payload that follows a frame is received straight into the place the
 * machine's owner names, and the frame behind it with the same call.
 *
 * Two halves, so that no byte moves under the lock:
 *	load, feed, place, stop	channel->lock held; they touch the machine
 *	move			no lock; it touches the fabric
 * All of them belong to the executor of the endpoint, one thread at a time.
 *
 * What is never staged. Bytes of a WRITE or WRITE_IMM go from the fabric to their place
 * and nowhere else. At a place in the stream where a frame is to begin, the soonest a
 * byte of a WRITE can come is DMP_STREAM_AHEAD bytes later, behind the OPERATION frame
 * that announces it. So the rule of the buffer is
 *
 *	no byte is read that lies DMP_STREAM_AHEAD or more behind the end of the
 *	last frame that is known to have no payload, or behind a payload
 *
 * and a frame whose header announces a payload is read to its end and no further. An
 * answer is half as long, so answers come two to a call; several such calls are made
 * while more is there. Two cases may read further: a direct fabric, where a WRITE has no
 * payload; and a plane that has no region a peer may write to (`unwritable`), to which no
 * WRITE can be sent that would be let in. What of a SEND or of the answer to a READ is
 * read too far is copied to its place; elsewhere that is at most DMP_STREAM_AHEAD less
 * the RESPONSE frame.
 */
#ifndef DMP_STREAM_H
#define DMP_STREAM_H

#include <stdbool.h>
#include <stddef.h>

#include "endpoint.h"		/* core's machine */
#include "fabric.h"

#define DMP_STREAM_FRAMES 128u	/* frames waiting to be sent: what goes with one call */
#define DMP_STREAM_BURST (1u << 20)	/* bytes one move() carries in each direction */
#define DMP_STREAM_AHEAD 160u	/* bytes of an OPERATION frame */
#define DMP_STREAM_BUFFER 8192u	/* of incoming frames */

/* Where the bytes of an outgoing payload lie. The owner resolves `local` of a frame. */
typedef const char *(*dmp_stream_source)(void *owner, const struct dmp_endpoint_frame *frame);

/* The last byte of a frame with payload is with the fabric. Lock held. */
typedef void (*dmp_stream_sent)(void *owner, const struct dmp_endpoint_frame *frame);

struct dmp_stream_piece {
	struct dmp_endpoint_frame frame;
	const char *payload;
	char *aside;		/* malloced copy of the rest of the payload after a stop */
	__u64 aside_from;	/* the first byte of the payload that is in it */
	__u64 sent;		/* of frame and payload together */
};

/*
 * The bytes behind a frame of this type are of another form (tls.c). Once it is loaded, or
 * handed in, nothing behind it is, until the owner has seen to it and clears this; and
 * while there is a type for incoming frames, no byte is read behind the end of a frame.
 */
struct dmp_stream_last {
	__u8 type;		/* 0: there is none */
	bool reached;
};

struct dmp_stream {
	struct dmp_fabric *fabric;
	void *owner;
	dmp_stream_source source;
	dmp_stream_sent sent;
	bool unwritable;	/* the executor's to set, see above; may be late */
	struct dmp_stream_last last_out;	/* the owner's to set, before the first frame */
	struct dmp_stream_last last_in;

	/* out: a ring of DMP_STREAM_FRAMES; out_done of out_count are with the fabric */
	struct dmp_stream_piece *pieces;
	__u32 out_first;
	__u32 out_count;
	__u32 out_done;
	__u32 out_prompt;	/* pieces that wait and may not be held back */
	__u64 out_bytes;	/* that wait */
	__u64 held_bytes;	/* received since answers began to wait for company */
	bool out_full;		/* the fabric had no room for more */
	bool out_farewell;	/* the last frame of all is loaded */
	int out_error;		/* nothing can be sent; what has come is still received */

	/* in */
	__u8 *buffer;		/* frames, whole and in part: in_have bytes from in_first */
	__u32 in_first;
	__u32 in_have;
	__u32 in_known;		/* of in_have: whole frames without payload */
	__u64 sequence;		/* of the last frame that the machine honoured */
	char *place;		/* NULL: throw the bytes away */
	__u64 payload_left;	/* of the payload that comes in now */
	__u64 payload_done;
	__u64 staged_bytes;	/* of WRITEs, that were in the buffer */
	__u32 checksum;		/* CRC32C of what was placed, where `checked` */
	bool placing;		/* a payload is coming in */
	bool place_known;	/* and the owner has said where it goes */
	bool unasked;		/* and the machine does not want it */
	bool writing;		/* and it belongs to a WRITE */
	bool checked;
	bool dry;		/* the last call took all there was */
	bool drained;		/* and it was one to the fabric, in the last move */
	bool records;		/* the owner's to set: a call may end with a record, not with all */
	bool hung_up;		/* the owner's to set: the peer is gone, an error or end is to come */
	bool heard;		/* the peer gave or took bytes since the last feed */
	int error;		/* the connection is lost */
};

int dmp_stream_init(struct dmp_stream *stream, struct dmp_fabric *fabric, void *owner,
		    dmp_stream_source source, dmp_stream_sent sent);

/* The fabric stays the owner's. Payloads that wait are forgotten, `sent` is not told. */
void dmp_stream_free(struct dmp_stream *stream);

/*
 * Takes frames from the machine while there is room, and while less than a burst of
 * bytes waits: the machine puts what is urgent first, which helps only as long as
 * little is ahead of it here. True: there is something to send, and room for it as far
 * as is known; without room the fabric's `ready`, or epoll, tells when to go on. After a
 * last frame the fabric may be closed once stream->out_bytes is 0 or out_error is set.
 */
bool dmp_stream_load_locked(struct dmp_stream *stream, struct dmp_endpoint *machine, __u64 now_ns);

/*
 * Sends and receives, each at most about DMP_STREAM_BURST. True if a byte moved. Answers
 * may have been held back until there are more of them: load says whether any are left. A lost
 * connection is in stream->error afterwards, once what had come before it was received;
 * so feed to the end, then look at it. -EFAULT: not the peer, but local memory went away.
 */
bool dmp_stream_move(struct dmp_stream *stream);

/*
 * After move and feed: may there be something to receive that the fabric will not tell of
 * again? Where the last call got less than it asked for, what comes later is an event of its own.
 */
bool dmp_stream_is_hungry(struct dmp_stream *stream);

/*
 * After move: tells of payloads that are sent (stream->sent and, for own operations,
 * dmp_endpoint_sent), and hands one whole frame to the machine if there is one and no
 * payload is coming in.
 * 1: a frame was handed in, or a payload is complete (look at requests, then call
 * again); 0: none; -errno: protocol broken or -EBUSY from the machine (answer requests,
 * then call again).
 * When a payload that the owner placed is complete, *@placed is 1: answer the PLACE.
 */
int dmp_stream_feed_locked(struct dmp_stream *stream, struct dmp_endpoint *machine, __u64 now_ns,
			   int *placed);

/*
 * The owner's answer to "where does the payload go": NULL discards it. To be called for
 * a PLACE of no bytes too; *@placed follows with the next feed, whatever the place.
 */
void dmp_stream_place_locked(struct dmp_stream *stream, char *place, __u64 length, bool checked);

/* The rest of the incoming payload is thrown away: nothing touches the old place any more. */
void dmp_stream_discard_locked(struct dmp_stream *stream);

/*
 * What of the payload has come is copied to @place, and the rest goes there: a message
 * that was on its way into a RECV goes into its stage. The old place is let go.
 */
void dmp_stream_replace_locked(struct dmp_stream *stream, char *place);

/*
 * Lets go of the payload of the own operation @tag that is waiting or half sent: the rest is
 * copied aside and sent from there, and stream->sent is told at once, but not the
 * machine, which gets an answer to its STOP. 0, also if there is none; or -ENOMEM: end
 * the connection.
 */
int dmp_stream_stop_locked(struct dmp_stream *stream, __u64 tag);

/* The parts, for the stream's own files; stream_out.c has what load and stop do, and these. */

#define DMP_STREAM_TYPE_OFFSET 5	/* of a frame, see wire.h */

/* Executor: sends at most about DMP_STREAM_BURST. True if a byte moved. */
bool dmp_stream_move_out(struct dmp_stream *stream);

/* Pieces that are with the fabric: the owner hears of payloads, the machine of its own. */
void dmp_stream_tell_sent(struct dmp_stream *stream, struct dmp_endpoint *machine, __u64 now_ns);

/* Forgets all that waits; `sent` is not told. */
void dmp_stream_drop_out(struct dmp_stream *stream);

#endif /* DMP_STREAM_H */
