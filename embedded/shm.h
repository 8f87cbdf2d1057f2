/* SPDX-License-Identifier: MIT */
/*
 * shm.h - the fabric between two processes of one user on one machine
 *
 * A segment (a sealed memfd made by the connector) holds two byte rings, one for each
 * direction, and a few words for each side. A unix SOCK_SEQPACKET socket carries what
 * memory cannot: descriptors, the bell that wakes a sleeper, and the news that the
 * peer's process has ended.
 *
 *	one direction: head (receiver), tail (sender), asleep (receiver), full (sender),
 *	touching (sender: 1 + slot of the peer's region it copies to or from, 0: none)
 *
 * Nothing the peer writes is trusted: indices are read once and checked (-EPROTO), bytes
 * are copied out before they are looked at, descriptors must be sealed against shrinking.
 * What a same-user peer can still do, and no process can prevent, is in docs/endpoints.md.
 */
#ifndef DMP_SHM_H
#define DMP_SHM_H

#include "fabric.h"
#include "region.h"

/* Connector: makes the segment and sends it. The socket is the fabric's from here on, on success. */
int dmp_shm_offer(struct dmp_plane *plane, int socket, struct dmp_fabric **fabric);

/* Acceptor: -EAGAIN if the segment has not come yet; else as above. */
int dmp_shm_answer(struct dmp_plane *plane, int socket, struct dmp_fabric **fabric);

/* Asks the peer for the memory behind @key. One question at a time; the answer comes in drain(). */
int dmp_shm_ask(struct dmp_fabric *fabric, const __u8 *key, __u32 key_bytes);

/*
 * Has the answer come? -EAGAIN not yet; 0 with the mapping in @remote (address, mapping,
 * mapping_bytes, length); -errno as the peer refused. channel->lock held.
 */
int dmp_shm_granted(struct dmp_fabric *fabric, struct dmp_remote *remote);

/* Is the peer touching our region in @slot right now? A peer whose process is gone is not. */
bool dmp_shm_is_touching(struct dmp_fabric *fabric, __u32 slot);

/* The peer's process, for those who wait until it is gone: a pidfd, -1 if the kernel has none. */
int dmp_shm_pidfd(struct dmp_fabric *fabric);

#endif /* DMP_SHM_H */
