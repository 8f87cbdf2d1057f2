/* SPDX-License-Identifier: MIT */
/*
 * crowd.h - a channel's worker and the others who want its processor
 *
 * A scheduler lets who runs run on, for milliseconds, and wakes a reader where its writer
 * is. So where processors are few, who was told by the worker waits for it to sleep, and
 * the two ends of a connection within one host may share a processor beside an idle one. The
 * worker heeds both. Only the worker: where a caller runs is his own business.
 */
#ifndef DMP_CROWD_H
#define DMP_CROWD_H

#include "endpoint_embedded.h"

/*
 * Executor, before it takes much: does the peer's process send from this processor? Asked once
 * after the worker was idle, and now and then only; true: it should heed that first. Later
 * there is no telling: what waits in the peer's socket for its window is sent by the processor that
 * acknowledges, which is ours.
 */
bool dmp_crowd_look_locked(struct dmp_embedded_endpoint *endpoint);

/* Worker: it had nothing to do for a while, and begins. */
void dmp_crowd_begin_locked(struct dmp_embedded_channel *channel);

/*
 * Worker, between two rounds: leaves a processor that its peer sends from, and makes way after its
 * first round, which may have woken a peer here, and for who was told of the many he asked for.
 * Lock given up meanwhile.
 */
void dmp_crowd_heed_locked(struct dmp_embedded_channel *channel);

#endif /* DMP_CROWD_H */
