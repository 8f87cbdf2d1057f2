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
#include "fabric.h"
#include "proof.h"
#include "region.h"
#include "stream.h"

#define DMP_ENDPOINTS_MAX	4096u	/* alive at once on one plane */
#define DMP_OPERATIONS_MAX	256u	/* of one endpoint with its machine; the rest waits in its lane */
#define DMP_RECEIVES_MAX	1024u	/* RECVs posted */
#define DMP_DETECT_MS		2000u	/* a silent peer is lost after this long */
#define DMP_MOVES_MAX		64u

/* A message that came before its RECV. */
struct dmp_staged {
	char *bytes;
	__u64 length;
};

/* A MOVE or COPY of the machine that has been taken and is being carried out. */
struct dmp_errand {
	__u64 tag;
	__u64 done;
	__u32 kind;		/* DMP_REQUEST_MOVE or COPY */
	__u32 index;		/* of the channel's operation */
	__u32 stage;		/* COPY */
	__u32 checksum;
	__s32 result;
	bool stop;		/* let go at the next piece */
	bool finished;
};

struct dmp_embedded_endpoint {
	struct dmp_object object;
	/* immutable once attached */
	struct dmp_plane *plane;
	struct dmp_embedded_channel *channel;	/* NULL after the channel has gone (plane->lock) */
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
	struct dmp_lane lane;			/* operations the machine has no slot for */
	struct dmp_channel_counters counters;
	struct dmp_histogram_counts *latency;	/* NULL: not observed */
	struct dmp_histogram_counts *stall;
	__u64 events;
	__u64 held_event_count;			/* events the channel has no slot for yet */
	struct dmp_endpoint_completion held_event;
	bool event_is_held;
	struct dmp_errand errands[DMP_MOVES_MAX];
	__u32 errand_first;
	__u32 errand_count;
	struct dmp_staged *staged;		/* window_slots of them */
	struct dmp_region *placing_region;	/* of the peer's WRITE whose payload comes in */
	__u64 placing_tag;
	__u32 probe_state;			/* of REGION_IMPORT, see traffic.h */
	__s32 probe_result;
	bool leaving;				/* destroyed: the executor detaches it */
	bool attached;				/* it is in the channel's network */
	bool lost_told;
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
	__u32 remotes;				/* imported regions alive */
};

/* Commands. */
int dmp_endpoint_connect_command(struct dmp_plane *plane, void *argument);
int dmp_endpoint_accept_command(struct dmp_plane *plane, void *argument);
int dmp_endpoint_query_command(struct dmp_plane *plane, void *argument);
int dmp_endpoint_destroy_command(struct dmp_plane *plane, void *argument);
int dmp_region_import_command(struct dmp_plane *plane, void *argument);

/* Closing the plane; the channel is gone already. */
void dmp_endpoint_free(struct dmp_plane *plane, struct dmp_embedded_endpoint *endpoint);

#endif /* DMP_ENDPOINT_EMBEDDED_H */
