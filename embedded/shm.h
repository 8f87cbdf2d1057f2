/* SPDX-License-Identifier: MIT */
/*
 * shm.h - the fabric between two processes of one user on one machine
 *
 * A segment (a sealed memfd made by the connector) holds two byte rings, one for each
 * direction, and a few words for each side. A unix SOCK_SEQPACKET socket carries what
 * memory cannot: descriptors, the bell that wakes a sleeper, and the news that the
 * peer's process has ended.
 *
 *	each side writes: tail and base (what it sent), head (what it received), asleep,
 *	closed, touching (1 + slot of the peer's region it copies to or from, 0: none)
 *
 * Nothing the peer writes is trusted: indices are read once and checked (-EPROTO), bytes
 * are copied out before they are looked at, descriptors must be sealed against shrinking.
 * What a same-user peer can still do, and no process can prevent, is in docs/endpoints.md.
 *
 * The end. A peer that closes or dies is noticed by drain(), which answers -ECONNRESET
 * (-EPROTO for a message that makes no sense); receive() goes on giving what the peer wrote
 * before, and answers the same when that is all taken. So: on an error of drain(), receive
 * until receive() fails too.
 *
 * Revocation. A move writes `touching`, then reads `closed` and the region board of the
 * peer, then copies. Who revokes changes the board, then looks at `touching`
 * (dmp_shm_is_touching). A run of moves in one region writes `touching` once; it is
 * cleared by the next receive(), ready() or rest(). Who closes writes `closed`, then looks
 * at `touching`: if the peer is in the middle of a slice, even a stopped process, the
 * segment is left behind and dmp_shm_left_touching() keeps an eye on it.
 *
 * Memory of an idle endpoint: 12 KiB of the segment (three pages) and about 1 KiB here; after
 * much traffic up to 516 KiB of the segment.
 *
 * Files: shm.c rings, sleep and moves; shm_socket.c descriptors and messages; shm_peer.c the
 * peer's process; shm_segment.h the layout.
 */
#ifndef DMP_SHM_H
#define DMP_SHM_H

#include "fabric.h"
#include "region.h"

/*
 * Connector: makes the segment and sends it. The socket is the fabric's from here on, on
 * success. Frames may be sent at once; the peer's region board comes with its answer, which
 * drain() takes: before any frame of the peer, so a move finds it.
 */
int dmp_shm_offer(struct dmp_plane *plane, int socket, struct dmp_fabric **fabric);

/* Acceptor: -EAGAIN if the segment has not come yet; else as above. */
int dmp_shm_answer(struct dmp_plane *plane, int socket, struct dmp_fabric **fabric);

/*
 * Asks the peer for the memory behind @key. One question at a time: a new one replaces an
 * older, whose answer is thrown away. The answer comes in drain(). channel->lock held.
 */
int dmp_shm_ask(struct dmp_fabric *fabric, const __u8 *key, __u32 key_bytes);

/*
 * Has the answer come? -EAGAIN not yet; 0 with the mapping in @remote (address, mapping,
 * mapping_bytes), which owns it; -errno as the peer refused, -EACCES it grants another length
 * than remote->length, -ECONNRESET it is gone.
 * Writable if @remote->access has REMOTE_WRITE. Whole pages are mapped: what else of the
 * owner's buffer lies in the first and the last page (of the buffer's size) is seen too.
 * channel->lock held.
 */
int dmp_shm_granted(struct dmp_fabric *fabric, struct dmp_remote *remote);

/*
 * L9: makes every page of the mapping resident, so that the first transfer does not fault.
 * Takes its time (0.1 s and more for 1 GiB of small pages): no lock held.
 */
int dmp_shm_prove(const struct dmp_remote *remote);

/* Is the peer touching our region in @slot right now? A peer whose process is gone is not. */
bool dmp_shm_is_touching(struct dmp_fabric *fabric, __u32 slot);

/* The same of peers of @plane whose fabric was closed here. Any lock. */
bool dmp_shm_left_touching(const struct dmp_plane *plane, __u32 slot);

/* The plane closes, its regions are gone: forget who was left. */
void dmp_shm_forget_left(const struct dmp_plane *plane);

/* The peer's process, for those who wait until it is gone: a pidfd, -1 if the kernel has none. */
int dmp_shm_pidfd(struct dmp_fabric *fabric);

#endif /* DMP_SHM_H */
