/* SPDX-License-Identifier: MIT */
/*
 * traffic.h - one endpoint at work: between its channel, its machine and its fabric
 *
 * All functions: channel->lock held (given up while bytes move, in dmp_traffic_round_locked
 * only), called by the executor of the channel or, before the endpoint is attached, by the
 * thread that makes the connection.
 */
#ifndef DMP_TRAFFIC_H
#define DMP_TRAFFIC_H

#include "endpoint_embedded.h"

/* user_data of the machine's operation that proves a grant (REGION_IMPORT). */
#define DMP_TRAFFIC_PROBE (~0ull)

/* Bytes one round moves at most, so that endpoints of one channel share fairly. */
#define DMP_TRAFFIC_BURST (1u << 20)
#define DMP_TRAFFIC_BURST_ALONE (4u << 20)	/* of an endpoint, while no other wants a turn */

int dmp_traffic_init(struct dmp_embedded_endpoint *endpoint);
void dmp_traffic_free(struct dmp_embedded_endpoint *endpoint);

/* Hands the channel's running operation @index to the machine, or parks or finishes it. */
void dmp_traffic_start_locked(struct dmp_embedded_endpoint *endpoint, uint32_t index,
			      uint64_t now_ns);

/* Does starting @index want the checksum of its bytes first? */
bool dmp_traffic_wants_checksum(const struct dmp_embedded_channel *channel, uint32_t index);
void dmp_traffic_checksum(struct dmp_embedded_channel *channel, uint32_t index);

/* Requests, frames, bytes, completions. True: there may be more to do at once. */
bool dmp_traffic_round_locked(struct dmp_embedded_endpoint *endpoint, uint64_t now_ns);

/*
 * The parts, for traffic's own files.
 *	errand.c	MOVE and COPY: run (no lock held; how many are finished), finish
 *	landing.c	PLACE and ADMIT: where the peer's bytes go, what it may read
 */
uint32_t dmp_errand_run(struct dmp_embedded_endpoint *endpoint, uint64_t room);
void dmp_errand_finish_locked(struct dmp_embedded_endpoint *endpoint, uint32_t count);

void dmp_landing_place(struct dmp_embedded_endpoint *endpoint,
		       const struct dmp_endpoint_request *request);
void dmp_landing_finish(struct dmp_embedded_endpoint *endpoint);
/* A RECV or READ whose payload is coming in gives its buffer back in the middle. */
int dmp_landing_divert(struct dmp_embedded_endpoint *endpoint,
		       const struct dmp_endpoint_request *request);
/* May the peer read this, or was it right to write that? */
void dmp_landing_admit(struct dmp_embedded_endpoint *endpoint,
		       const struct dmp_endpoint_request *request);
/* The peer has what it read from there: the region is let go. Of a free place: nothing. */
void dmp_landing_read(struct dmp_embedded_endpoint *endpoint, uint32_t number);

/*
 *	piece.c		operations in the machine: whole, or large ones in pieces
 * submit: 0, -EAGAIN nothing of it is with the machine and there is no slot, or the error it
 * completes with. completed: true when the operation is over, with what it gave; else it
 * goes on, or is parked.
 */
int dmp_piece_submit(struct dmp_embedded_endpoint *endpoint, uint32_t index);
bool dmp_piece_completed(struct dmp_embedded_endpoint *endpoint,
			 const struct dmp_endpoint_completion *from, struct dmp_outcome *outcome);
void dmp_piece_cancel(struct dmp_embedded_endpoint *endpoint, uint32_t index);

void dmp_traffic_answer(struct dmp_embedded_endpoint *endpoint,
			const struct dmp_endpoint_answer *answer);

/*
 * The bytes the machine calls @local (the channel's operation, and which piece of it), and
 * whether those of an operation are to be checked.
 */
#define DMP_PIECE_BYTES (1ull << 20)
#define DMP_LOCAL_NAME(index, offset) ((index) | (offset) / DMP_PIECE_BYTES << 32)
char *dmp_traffic_local(struct dmp_embedded_channel *channel, __u64 local);
bool dmp_traffic_is_checked(const struct dmp_embedded_channel *channel, uint32_t index);

/* Ends the connection without a word; everything completes. */
void dmp_traffic_abort_locked(struct dmp_embedded_endpoint *endpoint, int reason);

#endif /* DMP_TRAFFIC_H */
