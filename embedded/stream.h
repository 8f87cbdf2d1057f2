/* SPDX-License-Identifier: MIT */
/*
 * stream.h - frames and payloads on the byte streams of a fabric
 *
 * Out: frames of the machine wait in order, each with its payload; many go with one
 * send(). In: a frame is collected in `frame`, handed to the machine, and the payload
 * that follows is received straight into the place the machine's owner names. While a
 * payload comes in, the next frame may be received behind it with the same call.
 *
 * Two halves, so that no byte moves under the lock:
 *	load, feed, place, stop	channel->lock held; they touch the machine
 *	move			no lock; executor only; it touches the fabric
 */
#ifndef DMP_STREAM_H
#define DMP_STREAM_H

#include <stdbool.h>
#include <stddef.h>

#include "endpoint.h"		/* core's machine */
#include "fabric.h"

#define DMP_STREAM_FRAMES 128u	/* frames waiting to be sent: what goes with one call */
#define DMP_STREAM_BURST (1u << 20)	/* bytes one move() carries in each direction */

/* Where the bytes of an outgoing payload lie. The owner resolves `local` of a frame. */
typedef const char *(*dmp_stream_source)(void *owner, const struct dmp_endpoint_frame *frame);

/* The last byte of a frame with payload is with the fabric. Lock held. */
typedef void (*dmp_stream_sent)(void *owner, const struct dmp_endpoint_frame *frame);

struct dmp_stream_piece {
	struct dmp_endpoint_frame frame;
	const char *payload;
	char *aside;		/* malloced copy of the rest of the payload after a stop */
	__u64 sent;		/* of frame and payload together */
};

struct dmp_stream {
	struct dmp_fabric *fabric;
	void *owner;
	dmp_stream_source source;
	dmp_stream_sent sent;

	/* out */
	struct dmp_stream_piece *pieces;	/* a ring of DMP_STREAM_FRAMES */
	__u32 out_first;
	__u32 out_count;

	/* in */
	__u8 frame[DMP_WIRE_FRAME_BYTES_MAX];
	__u32 frame_have;
	char *place;		/* NULL: throw the bytes away */
	__u64 payload_left;	/* of the payload that comes in now */
	__u64 payload_done;
	__u32 checksum;		/* CRC32C of what was placed, where `checked` */
	bool placing;		/* a payload is coming in */
	bool place_known;	/* and the owner has said where it goes */
	bool checked;
	int error;		/* the connection is lost */
};

int dmp_stream_init(struct dmp_stream *stream, struct dmp_fabric *fabric, void *owner,
		    dmp_stream_source source, dmp_stream_sent sent);
void dmp_stream_free(struct dmp_stream *stream);	/* the fabric stays the owner's */

/* Takes frames from the machine while there is room. True: there is something to send. */
bool dmp_stream_load_locked(struct dmp_stream *stream, struct dmp_endpoint *machine, __u64 now_ns);

/*
 * Sends and receives, each at most about DMP_STREAM_BURST. True if a byte moved. A lost
 * connection is in stream->error afterwards, once what had come before it was received.
 */
bool dmp_stream_move(struct dmp_stream *stream);

/*
 * After move: tells of payloads that are sent (stream->sent and dmp_endpoint_sent), and
 * hands one whole frame to the machine if there is one and no payload is coming in.
 * 1: a frame was handed in (look at requests, then call again); 0: none; -errno: protocol
 * broken or -EBUSY from the machine (answer requests, then call again).
 * When a payload that was placed is complete, *@placed is 1: answer the PLACE.
 */
int dmp_stream_feed_locked(struct dmp_stream *stream, struct dmp_endpoint *machine, __u64 now_ns,
			   int *placed);

/* The owner's answer to "where does the payload go": NULL discards it. */
void dmp_stream_place_locked(struct dmp_stream *stream, char *place, __u64 length, bool checked);

/* The rest of the incoming payload is thrown away: nothing touches the old place any more. */
void dmp_stream_discard_locked(struct dmp_stream *stream);

/*
 * Lets go of the payload of the frame @tag that is waiting or half sent: the rest is copied
 * aside and sent from there. 0, or -ENOMEM: end the connection.
 */
int dmp_stream_stop_locked(struct dmp_stream *stream, __u64 tag);

#endif /* DMP_STREAM_H */
