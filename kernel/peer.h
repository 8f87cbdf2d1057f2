/* SPDX-License-Identifier: GPL-2.0 */
/*
 * peer.h - memory that belongs to a device: who can give it, and what it gave
 *
 * A provider knows how one sort of device hands out its memory. What it hands out are
 * runs: physical ranges inside the device's own memory BARs, in the order in which the
 * buffer shows them. Everything else (mapping, faults, spans, dma-buf importers, a device
 * that goes) is the same for all and lives in peer.c.
 *
 * Who holds a peer: its memory's references. The peer holds its device (a reference), and
 * by its provider what the runs need to stay what they are.
 */
#ifndef DMP_KERNEL_PEER_H
#define DMP_KERNEL_PEER_H

#include <linux/atomic.h>
#include <linux/list.h>
#include <linux/rcupdate.h>
#include <linux/types.h>

#include "memory.h"

struct pci_dev;
struct dmp_peer;

/* Kernel address space that all peers together may take (of 32 TiB on x86-64). */
#define DMP_PEER_BYTES_MAX	(1ULL << 42)

struct dmp_peer_run {
	u64 offset;		/* in the buffer */
	u64 bytes;		/* whole pages */
	phys_addr_t start;
	void __iomem *address;	/* NULL: not mapped; set by peer.c */
};

struct dmp_peer_provider {
	size_t peer_bytes;	/* of its own struct, which starts with a struct dmp_peer */
	/* Does this one speak for @device? Called for DMP_PEER_DEVICE_MEMORY only. */
	bool (*speaks_for)(struct pci_dev *device);
	/*
	 * Takes [@address, @address + @bytes): sets runs and run_count (kvfree by peer.c).
	 * The memory is ready to be revoked. give_back undoes what a failure leaves.
	 */
	int (*take)(struct dmp_peer *peer, u32 bar, u64 address, u64 bytes);
	/*
	 * Undoes what was done to the device itself, while it still is where it was: called
	 * when it goes, or else by free. May be NULL. dmp_peers_lock held.
	 */
	void (*let_go)(struct dmp_peer *peer);
	/* Undoes the rest of take; nothing is mapped any more. May be NULL. */
	void (*give_back)(struct dmp_peer *peer);
};

struct dmp_peer {
	struct dmp_memory memory;		/* kind PEER */
	/* immutable after create */
	const struct dmp_peer_provider *provider;
	struct pci_dev *device;			/* a reference */
	struct dmp_peer_run *runs;		/* by offset, without gaps */
	u32 run_count;
	u64 counted_bytes;			/* against DMP_PEER_BYTES_MAX */
	/* protected by dmp_peers_lock */
	struct list_head peers;
	bool device_gone;			/* its revocation has begun */
	/* atomic; set in this order by create, cleared in the other by revocation */
	bool claimed;				/* nobody maps the range with another caching */
	atomic_t mapped;			/* all runs are in the kernel's address space */

	struct rcu_head rcu;			/* who looks for it may meet it while it is freed */
};

static inline struct dmp_peer *dmp_peer_of(struct dmp_memory *memory)
{
	return container_of(memory, struct dmp_peer, memory);
}

/* A reference, unless the last one has gone. Inside rcu_read_lock() or dmp_peers_lock. */
static inline bool dmp_peer_get_alive(struct dmp_peer *peer)
{
	return kref_get_unless_zero(&peer->memory.references);
}

/* It is being taken away. The caller has a reference. Context: as dmp_memory_revoke(). */
void dmp_peer_revoke(struct dmp_peer *peer);

extern const struct dmp_peer_provider dmp_peer_bar;	/* peer_bar.c */
extern const struct dmp_peer_provider dmp_peer_nvidia;	/* peer_nvidia.c */
int dmp_peer_nvidia_init(void);
void dmp_peer_nvidia_exit(void);

#endif /* DMP_KERNEL_PEER_H */
