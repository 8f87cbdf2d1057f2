/* SPDX-License-Identifier: GPL-2.0 */
/*
 * endpoint_kernel.h - an endpoint of the kernel plane: core's machine on one queue pair
 *
 *	endpoint.c	asked, destroyed
 *	remote.c	given peers' regions
 *	connect.c	CONNECT and ACCEPT: the handshake, in the caller's thread
 *	traffic.c	one round: operations in, requests answered, completions out
 *	landing.c	where payloads of the peer go, what it may touch
 *	errand.c	MOVE and COPY: posted to the device, given back, copied
 *	stream.c	frames and payloads on the byte stream of the pair
 *	network.c	all endpoints of one channel: which has something to do, timers, sleep
 *
 * Ownership. An endpoint belongs to one channel. channel->lock serialises the machine; the pair
 * and the stream belong to the executor of the channel or, before the endpoint is attached,
 * to the thread that connects. Others ask under the lock (`drop`, `ask`, cancel) and wait
 * for the executor to have seen it. What others may call on a pair (rdma_pair.h: any thread)
 * they call with channel->lock held, under which the pair goes away.
 *
 * Who holds an endpoint: the table, until it is destroyed; calls inside (`users`); imported
 * regions (`remotes`); operations in flight (`operations`).
 *
 * Locks: plane->lock, channel->lock, the region table's (a leaf). A ringer takes none.
 */
#ifndef DMP_KERNEL_ENDPOINT_H
#define DMP_KERNEL_ENDPOINT_H

#include <linux/llist.h>

#include "channel_kernel.h"
#include "endpoint.h"		/* core's machine */
#include "errand.h"
#include "proof.h"
#include "queue.h"
#include "rdma_pair.h"
#include "region.h"

#define DMP_ENDPOINTS_MAX	4096U	/* alive at once on one plane */
#define DMP_OPERATIONS_MAX	256U	/* of one with its machine; others wait in a lane */
#define DMP_RECEIVES_MAX	64U	/* RECVs posted with the machine; the rest waits too */
#define DMP_ERRANDS_MAX		(DMP_OPERATIONS_MAX + DMP_RECEIVES_MAX)
#define DMP_DETECT_MS		2000U	/* a silent peer is lost after this long */

#define DMP_STREAM_FRAMES	64U	/* frames that wait to be sent */
#define DMP_STREAM_BUFFER	4096U	/* of incoming frames */
#define DMP_TRAFFIC_BURST	(1U << 20)	/* bytes one round moves, so that endpoints share */

/* Bytes of ours for a time: a message that came before its RECV, a payload set aside. */
struct dmp_stage_memory {
	void *bytes;		/* NULL: none */
	u64 length;
	u64 charged;
};

/* A frame that is to be sent, and its payload. */
struct dmp_outgoing {
	struct dmp_endpoint_frame frame;
	struct dmp_memory *memory;	/* of the payload, unless it is in `aside`; or NULL */
	u64 offset;
	struct dmp_stage_memory aside;	/* what is left of the payload after a stop */
	u64 aside_from;			/* the first byte of the payload that is in it */
	u64 sent;			/* of frame and payload together */
};

struct dmp_kernel_stream {
	/* out: a ring of DMP_STREAM_FRAMES, of which out_done are with the pair */
	struct dmp_outgoing *outgoing;
	u32 out_first;
	u32 out_count;
	u32 out_done;
	u64 out_bytes;		/* that wait */
	bool out_full;		/* the pair had no slot for more */

	/* in: in_have bytes from in_first on, of which in_known are whole frames without payload */
	u8 *buffer;
	u32 in_first;
	u32 in_have;
	u32 in_known;
	u64 sequence;		/* of the last frame that the machine honoured */
	struct dmp_run place;	/* neither memory nor address: thrown away */
	u64 payload_left;
	u64 payload_done;
	bool placing;		/* a payload is coming in */
	bool place_known;	/* and it was said where it goes */
	bool place_lost;	/* its memory was revoked meanwhile */
	bool unasked;		/* and the machine does not want it */
	bool dry;		/* the pair had nothing more */
	bool heard;		/* the peer gave or took bytes since the last feed */
	int error;		/* the connection is lost, and all that had come was taken */
	int lost;		/* it is lost; what had come before may still be there */
};

/* The payload that comes in now, and what is to be said when it is there. */
struct dmp_landing {
	struct dmp_region *region;	/* held, or NULL */
	struct dmp_run place;
	u64 tag;
	u64 length;
	u32 local;		/* LOCAL: the channel's operation */
	u32 target;		/* DMP_TARGET_* */
	u32 stage;
	u32 checksum;		/* to compare with */
	s32 error;		/* known before the bytes came */
	bool compare;
	bool checked;		/* a checksum is made of them */
	bool active;
};

/*
 * A region the peer reads from: held until the frame with its bytes is sent. The machine's record
 * of the READ ends, and may be used again, when that frame is made: so there are as many places
 * as records and frames, and a place has a number of its own.
 */
#define DMP_ADMITTED_MAX	(DMP_OPERATIONS_MAX + DMP_STREAM_FRAMES)

struct dmp_admitted {
	struct dmp_region *region;
	u64 offset;		/* in the buffer's memory */
};

/*
 * One REGION_IMPORT: what is asked of the peer, and what has come of it. A region that may be read
 * is read before it is believed: its first byte and its last.
 */
enum dmp_ask_state {
	DMP_ASK_NONE,
	DMP_ASK_WANTED,
	DMP_ASK_SENT,
	DMP_ASK_PROBING,
	DMP_ASK_DONE,
};

#define DMP_CANARIES	2U
#define DMP_CANARY_TAG	U64_MAX		/* of no operation of a machine */

struct dmp_ask {
	enum dmp_ask_state state;
	int result;
	struct dmp_memory *canary;	/* the asker's: bytes that are read and forgotten */
	u32 canaries_posted;
	u32 canaries_back;
	u32 key_bytes;
	u8 key[DMP_KEY_BYTES];
	struct dmp_pair_remote remote;	/* DONE with 0: the asker's */
};

struct dmp_kernel_endpoint {
	struct dmp_object object;
	/* immutable once attached */
	struct dmp_plane *plane;
	struct dmp_kernel_channel *channel;	/* not to be followed once `orphaned` */
	u64 user_data;
	u64 detect_ns;
	u64 charged_bytes;		/* against dmp_bytes_max */
	u32 window_slots;
	u32 epoch;
	u8 peer_address[DMP_ADDRESS_BYTES];
	struct dmp_secret secret;	/* forgotten after the handshake */
	bool connector;
	void *machine_memory;
	struct dmp_pair_admission admission;

	/* protected by channel->lock */
	struct dmp_pair *pair;		/* NULL once cut */
	struct dmp_endpoint *machine;
	bool presses;			/* counted in network->pressing */
	u64 now_ns;			/* what the machine saw last; it never goes back */
	struct dmp_lane lanes[2];	/* operations, RECVs: the machine has no slot now */
	struct dmp_channel_counters counters;
	struct dmp_histogram_counts *latency;
	struct dmp_histogram_counts *stall;
	struct dmp_errands errands;	/* MOVE and COPY, being carried out; DMP_ERRANDS_MAX */
	u64 stop_due_ns;		/* a STOP waits until then, then the connection ends */
	struct dmp_stage_memory *staged;	/* window_slots of them */
	struct dmp_landing landing;
	struct dmp_admitted *admitted;	/* DMP_ADMITTED_MAX */
	struct dmp_queue admitted_free;
	void *admitted_links;
	struct dmp_ask ask;
	u64 traced;			/* of stalls and grants, those that were traced */
	bool cutting;			/* the pair is being closed: it may still touch memory */
	bool event_waits;		/* the channel has no slot for one of the machine's */
	bool drop;			/* destroyed: to be detached once it has ended */
	bool given_up;			/* the executor is to abort it: nobody waits for its peer */
	bool attached;			/* it is in the channel's network */
	bool ended;			/* machine DEAD, pair closed, all completed */

	/* executor only */
	struct dmp_kernel_stream stream;

	/* network.c, under channel->lock */
	u32 slot;
	struct list_head dirty;		/* on the list of those with something to do, or empty */
	struct list_head active;	/* its pair does not ring, it is asked; or empty */
	u64 timer_ns;

	/* atomic; from interrupts */
	struct dmp_pair_ringer ringer;
	struct llist_node stirring;
	unsigned long rung;		/* bit 0: on the channel's list of those that stir */
	wait_queue_head_t greet_wait;	/* the thread that connects, before it is attached */

	/* protected by plane->lock */
	u32 remotes;			/* imported regions alive */
	bool orphaned;			/* the channel has gone, or lets nobody in any more */
	/* atomic; grow only with plane->lock held */
	atomic_t operations;		/* of the channel that name it, in flight */
	atomic_t receives;		/* of these, RECVs */
	atomic_t users;			/* calls inside */
};

/* An endpoint is in the table as its object. */
static inline struct dmp_kernel_endpoint *dmp_endpoint_of(struct dmp_object *object)
{
	return container_of(object, struct dmp_kernel_endpoint, object);
}

/*
 * The time to tell the endpoint's machine: @now_ns, or what it was told last, if that was read
 * before the lock was given up and is older.
 */
static inline u64 dmp_endpoint_time(struct dmp_kernel_endpoint *endpoint, u64 now_ns)
{
	if (now_ns > endpoint->now_ns)
		endpoint->now_ns = now_ns;
	return endpoint->now_ns;
}

/* Commands. */
int dmp_endpoint_connect_command(struct dmp_plane *plane, void *argument);
int dmp_endpoint_accept_command(struct dmp_plane *plane, void *argument);
int dmp_endpoint_query_command(struct dmp_plane *plane, void *argument);
int dmp_endpoint_destroy_command(struct dmp_plane *plane, void *argument);
int dmp_region_import_command(struct dmp_plane *plane, void *argument);

int dmp_endpoint_statistics(struct dmp_plane *plane, struct dmp_statistics *statistics);
int dmp_endpoint_histogram(struct dmp_plane *plane, struct dmp_histogram *histogram);

/* The endpoint and its channel, which is NULL if it has gone; both are there until left. */
struct dmp_kernel_channel *dmp_endpoint_enter_locked(struct dmp_plane *plane,
						     struct dmp_kernel_endpoint *endpoint);
void dmp_endpoint_leave(struct dmp_kernel_endpoint *endpoint,
			struct dmp_kernel_channel *channel);

/* The executor ends the connection without a word, at once. */
void dmp_endpoint_give_up_locked(struct dmp_kernel_endpoint *endpoint);

/* It has something to do, and somebody looks. */
void dmp_endpoint_kick_locked(struct dmp_kernel_endpoint *endpoint);

/* The channel goes: nobody enters it through an endpoint any more. */
void dmp_endpoint_forget_channel_locked(struct dmp_plane *plane,
					const struct dmp_kernel_channel *channel);

/* A buffer goes: no pair keeps it mapped. plane->lock is held. */
void dmp_endpoint_forget_memory_locked(struct dmp_plane *plane, const struct dmp_memory *memory);

/*
 * A region that has ended: each peer it is registered for is told. True: a device can still
 * reach it; looks again by itself, and dmp_released() follows.
 */
bool dmp_endpoint_is_reaching_locked(struct dmp_plane *plane, const struct dmp_region *region);

/* Out of the table, or never in it; the channel has let go of it already. */
void dmp_endpoint_free(struct dmp_kernel_endpoint *endpoint);

/*
 * traffic.c. channel->lock held, given up while bytes move; called by the executor of the
 * channel or, before the endpoint is attached, by the thread that makes the connection.
 */
int dmp_traffic_init(struct dmp_kernel_endpoint *endpoint);
void dmp_traffic_free(struct dmp_kernel_endpoint *endpoint);

/* Hands the channel's running operation @index to the machine, or parks or finishes it. */
void dmp_traffic_start_locked(struct dmp_kernel_endpoint *endpoint, u32 index, u64 now_ns);

/* Does starting @index want the checksum of its bytes first? Then it is made, without the lock. */
bool dmp_traffic_wants_checksum(const struct dmp_kernel_channel *channel, u32 index);
void dmp_traffic_checksum(struct dmp_kernel_channel *channel, u32 index);

/* CANCEL has marked @index, which is with the machine. */
void dmp_traffic_cancel_locked(struct dmp_kernel_endpoint *endpoint, u32 index);

/* Requests, frames, bytes, completions. True: there may be more to do at once. */
bool dmp_traffic_round_locked(struct dmp_kernel_endpoint *endpoint, u64 now_ns);

/* Ends the connection without a word; everything completes. */
void dmp_traffic_abort_locked(struct dmp_kernel_endpoint *endpoint, int reason);

void dmp_traffic_answer(struct dmp_kernel_endpoint *endpoint,
			const struct dmp_endpoint_answer *answer);

/* Where the bytes of the channel's operation @index are. */
struct dmp_run dmp_traffic_local(const struct dmp_kernel_channel *channel, u32 index);
bool dmp_traffic_is_checked(const struct dmp_kernel_channel *channel, u32 index);

/* Charged; 0 or -ENOMEM. Of no bytes: a place that is no byte long. */
int dmp_stage_alloc(struct dmp_stage_memory *stage, u64 length);
void dmp_stage_free(struct dmp_stage_memory *stage);

/* remote.c: what is wanted is asked, and answered; the pair has gone. */
void dmp_ask_serve_locked(struct dmp_kernel_endpoint *endpoint);
void dmp_ask_abort_locked(struct dmp_kernel_endpoint *endpoint);

/* errand.c: run without the lock; how many at the front are over. finish tells the machine. */
u32 dmp_errand_run(struct dmp_kernel_endpoint *endpoint);
/* What the device has given back, where there is no errand. */
void dmp_errand_reap(struct dmp_kernel_endpoint *endpoint);
void dmp_errand_finish_locked(struct dmp_kernel_endpoint *endpoint, u32 count);
/* Lets go of @tag's buffer. -ENOENT it is no errand; -EINPROGRESS the device has it. */
int dmp_errand_drop_locked(struct dmp_kernel_endpoint *endpoint, u64 tag);
/* A STOP has been waiting for the device for too long. */
bool dmp_errand_is_stuck_locked(struct dmp_kernel_endpoint *endpoint);

/* landing.c: PLACE and ADMIT. */
void dmp_landing_place_locked(struct dmp_kernel_endpoint *endpoint,
			      const struct dmp_endpoint_request *request);
/* All of it has come; without the lock, a checksum may be made. */
void dmp_landing_check(struct dmp_kernel_endpoint *endpoint);
void dmp_landing_finish_locked(struct dmp_kernel_endpoint *endpoint);
/* A RECV or READ whose payload is coming in gives its buffer back in the middle. */
int dmp_landing_divert_locked(struct dmp_kernel_endpoint *endpoint,
			      const struct dmp_endpoint_request *request);
void dmp_landing_admit_locked(struct dmp_kernel_endpoint *endpoint,
			      const struct dmp_endpoint_request *request);
/* The peer has what it read from there: the region is let go. Of a free place: nothing. */
void dmp_landing_read_locked(struct dmp_kernel_endpoint *endpoint, u32 number);

/* stream.c: see there. */
int dmp_kernel_stream_init(struct dmp_kernel_stream *stream);
void dmp_kernel_stream_free(struct dmp_kernel_stream *stream);
bool dmp_kernel_stream_load_locked(struct dmp_kernel_endpoint *endpoint);
bool dmp_kernel_stream_move(struct dmp_kernel_endpoint *endpoint);
int dmp_kernel_stream_feed_locked(struct dmp_kernel_endpoint *endpoint, bool *placed);
bool dmp_kernel_stream_is_hungry(const struct dmp_kernel_stream *stream);
void dmp_kernel_stream_place(struct dmp_kernel_stream *stream, const struct dmp_run *place,
			     u64 length);
void dmp_kernel_stream_redirect(struct dmp_kernel_stream *stream, const struct dmp_run *place);
int dmp_kernel_stream_stop(struct dmp_kernel_stream *stream, u64 tag);

#endif /* DMP_KERNEL_ENDPOINT_H */
