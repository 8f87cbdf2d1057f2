/* SPDX-License-Identifier: MIT */
/*
 * endpoint_embedded.h - an endpoint of the embedded plane: core's machine on a fabric
 *
 *	endpoint.c	made, asked, destroyed
 *	connect.c	CONNECT and ACCEPT: the handshake, in the caller's thread
 *	traffic.c	one round of an endpoint: operations in, requests answered, bytes moved,
 *			completions out
 *	network.c	all endpoints of one channel: which has something to do, timers, sleep
 *
 * Ownership. An endpoint belongs to one channel. channel->lock serialises the machine;
 * what moves bytes (stream, fabric) belongs to the executor of the channel, or, before the
 * endpoint is attached, to the thread that connects. Others ask under the lock
 * (`leaving`, cancel marks) and wait for the executor to have seen it.
 */
#ifndef DMP_ENDPOINT_EMBEDDED_H
#define DMP_ENDPOINT_EMBEDDED_H

#include "channel_embedded.h"
#include "endpoint.h"
#include "errand.h"
#include "fabric.h"
#include "proof.h"
#include "queue.h"
#include "region.h"
#include "stream.h"

#define DMP_ENDPOINTS_MAX	4096u	/* alive at once on one plane */
#define DMP_OPERATIONS_MAX	256u	/* of one endpoint with its machine; the rest waits in its lane */
#define DMP_RECEIVES_MAX	64u	/* RECVs posted with the machine; the rest waits too */
#define DMP_DETECT_MS		2000u	/* a silent peer is lost after this long */
#define DMP_ERRANDS_MAX		(DMP_OPERATIONS_MAX + DMP_RECEIVES_MAX)

/* A message that came before its RECV. */
struct dmp_staged {
	char *bytes;
	__u64 length;
};

/* The payload that comes in now, and what is to be said when it is there. */
struct dmp_landing {
	struct dmp_region *region;	/* held, or NULL */
	__u64 local;			/* LOCAL: see DMP_LOCAL_NAME */
	__u64 tag;
	__u64 length;
	__u32 target;			/* DMP_TARGET_* */
	__u32 stage;
	__u32 checksum;			/* to compare with */
	__s32 error;			/* known before the bytes came */
	bool compare;
	bool checked;			/* a checksum is made while they come */
	bool active;
};

/*
 * A region the peer reads from: held until the frame with its bytes is sent. The machine's record
 * of the READ ends, and may be used again, when that frame is made: so there are as many places
 * as records and frames, and a place has a number of its own.
 */
#define DMP_ADMITTED_MAX (DMP_OPERATIONS_MAX + DMP_STREAM_FRAMES)

struct dmp_admitted {
	struct dmp_region *region;
	const char *address;
};

struct dmp_embedded_endpoint {
	struct dmp_object object;
	/* immutable once attached */
	struct dmp_plane *plane;
	struct dmp_fabric *fabric;		/* NULL once cut; channel->lock */
	__u64 user_data;
	__u64 detect_ns;
	__u32 window_slots;
	__u32 epoch;
	__u8 path;
	__u8 peer_address[DMP_ADDRESS_BYTES];
	struct dmp_secret secret;		/* forgotten after the handshake */
	bool connector;
	void *machine_memory;

	/* protected by channel->lock */
	struct dmp_endpoint *machine;
	bool presses;				/* counted in network->pressing */
	uint64_t now_ns;			/* what the machine saw last; it never goes back */
	struct dmp_lane lanes[2];		/* operations, RECVs: the machine has no slot now */
	struct dmp_channel_counters counters;
	struct dmp_histogram_counts *latency;	/* NULL: not observed */
	struct dmp_histogram_counts *stall;
	struct dmp_errands errands;		/* MOVE and COPY, being carried out in slices */
	struct dmp_errand errand_ring[DMP_ERRANDS_MAX];
	uint64_t stop_due_ns;			/* a STOP waits until then, then the connection ends */
	struct dmp_staged *staged;		/* window_slots of them */
	struct dmp_landing landing;
	struct dmp_admitted admitted[DMP_ADMITTED_MAX];
	struct dmp_queue admitted_free;
	struct dmp_queue_link admitted_links[DMP_ADMITTED_MAX];
	struct dmp_endpoint_submission probe;	/* of REGION_IMPORT on tcp */
	bool probe_waits;			/* the machine had no slot for it: it is next */
	__s32 probe_result;			/* 1: under way, else of the last one */
	bool importing;				/* one REGION_IMPORT at a time */
	bool has_event;				/* the fabric's descriptor had one */
	bool event_waits;			/* the channel has no slot for one of the machine's */
	bool drop;				/* destroyed: to be detached once it has ended */
	bool attached;				/* it is in the channel's network */
	bool opened;				/* the handshake is over */
	bool ended;				/* machine DEAD, fabric closed, all completed */

	/* executor only */
	struct dmp_stream stream;

	/* network.c, under channel->lock */
	__u32 slot;
	struct dmp_embedded_endpoint *next_dirty;
	bool dirty;
	bool active;
	__u64 timer_ns;

	/* protected by plane->lock */
	struct dmp_embedded_channel *channel;	/* NULL once it is gone; whoever is inside may read it */
	__u32 remotes;				/* imported regions alive */
	bool orphaned;				/* the channel has gone, or lets nobody in any more */
	/* atomic; grow only under plane->lock */
	uint32_t operations;			/* of the channel that name it, in flight */
	uint32_t receives;			/* of these, RECVs */
	uint32_t users;				/* calls inside */
};

/*
 * The time to tell the endpoint's machine: @now_ns, or what it was told last, if that was read
 * before the lock was given up and is older. channel->lock held.
 */
static inline uint64_t dmp_endpoint_time(struct dmp_embedded_endpoint *endpoint, uint64_t now_ns)
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

/* The channel goes: nobody enters it through an endpoint any more. plane->lock held. */
void dmp_endpoint_forget_channel_locked(struct dmp_plane *plane,
					const struct dmp_embedded_channel *channel);

/* It is gone: its endpoints are names, and nobody follows them to it. plane->lock held. */
void dmp_endpoint_leave_channel_locked(struct dmp_plane *plane,
				       const struct dmp_embedded_channel *channel);

/* A buffer goes that a device knows: peers' fabrics let go of it. plane->lock held. */
void dmp_endpoint_forget_buffer_locked(struct dmp_plane *plane, const struct dmp_buffer *buffer);

/* Closing the plane, or never published; the channel has let go of it already. */
void dmp_endpoint_free(struct dmp_plane *plane, struct dmp_embedded_endpoint *endpoint);

#endif /* DMP_ENDPOINT_EMBEDDED_H */
