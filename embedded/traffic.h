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

int dmp_traffic_init(struct dmp_embedded_endpoint *endpoint);
void dmp_traffic_free(struct dmp_embedded_endpoint *endpoint);

/* Hands the channel's running operation @index to the machine, or parks or finishes it. */
void dmp_traffic_start_locked(struct dmp_embedded_endpoint *endpoint, uint32_t index);

/* Does starting @index want the checksum of its bytes first? */
bool dmp_traffic_wants_checksum(const struct dmp_embedded_channel *channel, uint32_t index);
void dmp_traffic_checksum(struct dmp_embedded_channel *channel, uint32_t index);

/* Requests, frames, bytes, completions. True: there may be more to do at once. */
bool dmp_traffic_round_locked(struct dmp_embedded_endpoint *endpoint);

/* Ends the connection without a word; everything completes. */
void dmp_traffic_abort_locked(struct dmp_embedded_endpoint *endpoint, int reason);

#endif /* DMP_TRAFFIC_H */
