/* SPDX-License-Identifier: GPL-2.0 */
/*
 * memory.h - the bytes behind a buffer, whatever they are
 *
 * A memory is one of six kinds, each with its operations: pages and huge (pages.c),
 * coherent (coherent.c), the caller's (user.c), a foreign dma-buf (import.c), a BAR or
 * accelerator memory (peer.c).
 *
 * References (`references`): the buffer that was made with it, each exported dma-buf, and each
 * pair's mapping of it (rdma_memory.c).
 * The last one frees it, in any context that may sleep.
 *
 * Revocation. Somebody outside may take the memory away: a device goes, an exporter moves
 * its pages. `revoked` is set once and never cleared; who touches bytes does so inside
 * dmp_memory_enter() .. dmp_memory_leave(), an SRCU read section, after looking at it.
 * dmp_memory_revoke() sets it, waits for those sections and takes the mappings away: when
 * it returns nothing touches the old bytes. It takes no lock of ours.
 */
#ifndef DMP_KERNEL_MEMORY_H
#define DMP_KERNEL_MEMORY_H

#include <linux/atomic.h>
#include <linux/dma-direction.h>
#include <linux/kref.h>
#include <linux/mm_types.h>
#include <linux/scatterlist.h>
#include <linux/types.h>

#include "dmaplane.h"
#include "policy.h"

struct dmp_memory;
struct dma_buf;
struct device;

/* A run of bytes the CPU can reach at once. */
struct dmp_span {
	void *address;		/* an __iomem address if @io */
	u64 bytes;		/* from there on, contiguous; at least 1 */
	bool io;		/* device memory: only through the io copies */
	bool write_combined;	/* reads are worth streaming loads */
};

struct dmp_memory_operations {
	/* The bytes from @offset on; inside dmp_memory_enter(). 0 or -errno (-EOPNOTSUPP). */
	int (*span)(struct dmp_memory *memory, u64 offset, struct dmp_span *span);
	/*
	 * Puts it into @vma, whole or lazily (then `fault`). mmap_lock held. NULL: cannot.
	 * What can be revoked is put in lazily. vm_pgoff says from which page on: map_pgoff
	 * is the first. Not inside dmp_memory_enter(): an exporter may have to be waited
	 * for, and it may be waiting for those sections. A mapping of a foreign dma-buf
	 * becomes its exporter's: import.c reads the buffer from vm_private_data and counts
	 * by dmp_buffer_mapped() and dmp_buffer_unmapped().
	 */
	int (*map)(struct dmp_memory *memory, struct vm_area_struct *vma);
	/* Inside dmp_memory_enter(); NULL if map() did it all, for good. */
	vm_fault_t (*fault)(struct dmp_memory *memory, struct vm_fault *fault);
	/* Node of the base page at @offset, or -1; only called if placement can be known. */
	int (*node)(struct dmp_memory *memory, u64 offset);
	/*
	 * A scatter list of all of it for @device, mapped for @direction, and its undoing. NULL:
	 * cannot be given to devices. @peer: the importer can reach other devices' memory.
	 */
	struct sg_table *(*attach)(struct dmp_memory *memory, struct device *device,
				   enum dma_data_direction direction, bool peer);
	void (*detach)(struct dmp_memory *memory, struct device *device, struct sg_table *table,
		       enum dma_data_direction direction);
	/*
	 * A scatter list of its pages from the start of the first, in segments of at most so
	 * many bytes, mapped for nobody: for devices that map in their own way. sg_free_table()
	 * and kfree() undo it; ERR_PTR. NULL: it has no pages that stay its own.
	 */
	struct sg_table *(*scatter)(struct dmp_memory *memory, unsigned int segment_bytes);
	/* One kernel address for all of it; NULL: cannot. */
	int (*vmap)(struct dmp_memory *memory, struct dmp_span *whole);
	void (*vunmap)(struct dmp_memory *memory, const struct dmp_span *whole);
	/*
	 * BUFFER_SYNC; NULL: nothing to do, the CPU is coherent with it. @flags: DMP_SYNC_*.
	 * Not inside dmp_memory_enter(), as map. See also dmp_export_sync().
	 */
	int (*sync)(struct dmp_memory *memory, u32 flags);
	/* Gives back what it is made of, and itself. Not after revocation's fence: always. */
	void (*free)(struct dmp_memory *memory);
};

struct dmp_memory {
	struct kref references;
	const struct dmp_memory_operations *operations;
	/* immutable after create */
	struct dmp_memory *origin;	/* an import of our own export: whose bytes these are */
	u64 serial;		/* names it in traces; set by dmp_memory_init(), never reused */
	u32 kind;		/* DMP_KIND_* */
	u32 page_bytes;
	u32 page_offset;	/* where in its first page it starts; only USER is not at 0 */
	u64 length;		/* usable */
	u64 map_bytes;		/* in whole pages; 0 if it cannot be mapped */
	u64 charged_bytes;	/* against dmp_bytes_max */
	pgoff_t map_pgoff;	/* in dmp_mapping_inode's space, if it can be zapped; else 0 */
	bool read_only;		/* neither plane nor mapping may write */
	bool write_combined;
	bool revocable;
	/* atomic */
	bool revoked;		/* WRITE_ONCE by dmp_memory_revoke */
	atomic_t exports;	/* dma-bufs alive */
	/* protected by a lock of export.c: dma-bufs alive, so that importers hear of a move */
	struct list_head exported;
};

/* Fills what is common. The caller has zeroed it; its reference is the first. */
void dmp_memory_init(struct dmp_memory *memory, const struct dmp_memory_operations *operations,
		     u32 kind, u64 length);
void dmp_memory_get(struct dmp_memory *memory);
void dmp_memory_put(struct dmp_memory *memory);

/*
 * Memory of ours that a user makes us take, against dmp_bytes_max: 0, -ENOSPC, or -ENOMEM
 * if it would leave too little for everybody else.
 */
int dmp_charge(u64 bytes);
void dmp_uncharge(u64 bytes);

/* Would these pages leave the machine what others need? */
bool dmp_pages_fit(u64 pages);

/* Against dmp_bytes_max: 0 or -ENOSPC. Undone by dmp_memory_put() of the last reference. */
int dmp_memory_charge(struct dmp_memory *memory, u64 bytes);

/* The same for memory that is there already, and that we only keep: the limit alone. */
int dmp_memory_charge_resident(struct dmp_memory *memory, u64 bytes);
u64 dmp_memory_charged_bytes(void);
u32 dmp_memory_count(void);		/* memories alive, exported ones without a buffer too */

/*
 * Read sections. A section may sleep, but takes no reservation lock (of a dma-buf): it may be
 * held by an exporter whose move_notify waits for the section. dmp_memory_alive() is only of
 * use inside one; a memory is dead too when its origin is.
 */
int dmp_memory_enter(void);
void dmp_memory_leave(int section);
bool dmp_memory_alive(const struct dmp_memory *memory);

/*
 * Context: may sleep; no lock of ours may be held by the caller, none is taken. Buffers of
 * this memory become REVOKED, and their owners hear of it, a moment later (a work item).
 */
void dmp_memory_revoke(struct dmp_memory *memory);

/*
 * copy.c: bytes of the kernel's own into a memory, and out of it. Context: may sleep, not inside
 * a section. -ESTALE if it was revoked, -EOPNOTSUPP if the CPU cannot reach it.
 */
int dmp_copy_to(struct dmp_memory *memory, u64 offset, const void *bytes, u64 length);
int dmp_copy_from(struct dmp_memory *memory, u64 offset, void *bytes, u64 length);

/* Makers: a memory with one reference, or ERR_PTR. The policy is already checked. */
struct dmp_memory *dmp_pages_create(const struct dmp_buffer_create *create,
				    const struct dmp_policy *policy);
struct dmp_memory *dmp_coherent_create(const struct dmp_buffer_create *create,
				       const struct dmp_policy *policy);
struct dmp_memory *dmp_user_create(const struct dmp_buffer_create *create);
struct dmp_memory *dmp_peer_create(const struct dmp_buffer_create *create);
struct dmp_memory *dmp_import_create(int fd, bool read_only);

/* Waits for what dmp_memory_revoke() put off; at module exit, when no memory is left. */
void dmp_memory_exit(void);

/*
 * export.c: the file of a new dma-buf, which holds a reference; or ERR_PTR.
 * Context: may sleep; not inside a section.
 */
struct file *dmp_export_create(struct dmp_memory *memory, bool read_only);
/*
 * Tells every importer that the pages are gone. Called by dmp_memory_revoke() after its
 * fence. Context: may sleep, takes the reservation locks of the dma-bufs of @memory.
 */
void dmp_export_revoke(struct dmp_memory *memory);
/* BUFFER_SYNC for the devices that importers of @memory have mapped it for. As above. */
void dmp_export_sync(struct dmp_memory *memory, u32 flags);
/* The memory behind @dmabuf if that is an export of ours, else NULL. */
struct dmp_memory *dmp_export_memory(const struct dma_buf *dmabuf);
/* import.c: the file of the foreign dma-buf @memory is made of, once more; or ERR_PTR. */
struct file *dmp_import_file(struct dmp_memory *memory, bool read_only);

/* mapping.c: the inode whose address space all mappings that can be zapped are in. */
int dmp_mapping_init(void);
void dmp_mapping_exit(void);
struct address_space *dmp_mapping_space(void);
pgoff_t dmp_mapping_reserve(u64 bytes);		/* a range never given out before */
void dmp_mapping_zap(struct dmp_memory *memory);

/* coherent.c: devices of our own, one a node, that memory is allocated and mapped for. */
int dmp_device_init(void);
void dmp_device_exit(void);
struct device *dmp_device(int node);		/* -1: any */

/* peer.c: providers and the notifier that tells of devices that go. */
int dmp_peer_init(void);
void dmp_peer_exit(void);

#endif /* DMP_KERNEL_MEMORY_H */
