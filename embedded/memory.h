/* SPDX-License-Identifier: MIT */
/*
 * memory.h - the bytes of a buffer: a memfd, the user's memory, or somebody's fd
 *
 * A dmp_memory owns its descriptor and its mappings; it never owns the user's
 * memory. It is filled on success only and holds nothing after dmp_memory_free().
 * No function here takes a lock; one memory may be asked from several threads as
 * long as dmp_memory_free() comes last.
 */
#ifndef DMP_EMBEDDED_MEMORY_H
#define DMP_EMBEDDED_MEMORY_H

#include <stdbool.h>
#include <stddef.h>

#include "dmaplane.h"
#include "placement.h"

struct dmp_memory {
	int fd;			/* -1 for USER */
	void *address;		/* the plane's own mapping, or the user's address */
	void *read_only_address; /* NULL until asked for */
	size_t length;
	size_t map_bytes;	/* length in whole pages; USER: the length */
	__u32 page_bytes;
	__u32 kind;		/* DMP_KIND_* */
	bool read_only;		/* @address must not be written */
	bool dmabuf;
	bool tracked;		/* dmp_memory_exported() can tell */
};

/*
 * PAGES or HUGE: zeroed, resident, placed. @create_flags: STRICT refuses a policy
 * that the kernel does not let us set (the caller counts the pages), HUGE_PREFER
 * takes base pages where there are no huge ones; @page_bytes tells which.
 * -EOVERFLOW: the length does not round. -ENOMEM: it would not fit, found out
 * before the first page where it is large. -EPERM: above RLIMIT_FSIZE.
 */
int dmp_memory_allocate(struct dmp_memory *memory, __u32 kind, __u64 length, __u32 create_flags,
			const struct dmp_policy *policy);

/* -EFAULT unless the whole range is mapped with the rights needed. */
int dmp_memory_user(struct dmp_memory *memory, __u64 user_addr, __u64 length, bool read_only);

/*
 * A memfd that cannot shrink (else -EPERM) or a dma-buf; @fd stays the caller's.
 * -EINVAL: another kind of fd, or empty. -EPERM: it may not be written.
 */
int dmp_memory_import(struct dmp_memory *memory, int fd, bool read_only);

/* A new description of the same memory; DMP_EXPORT_* flags. */
int dmp_memory_export(struct dmp_memory *memory, __u32 export_flags, int *fd);

/* Does any other description, or a mapping of one, exist anywhere? false if unknown. */
bool dmp_memory_exported(struct dmp_memory *memory);

/* Whether dmp_memory_exported() can know on this machine. Probed once. */
bool dmp_memory_tracks_exports(void);

/* A second mapping, for reading only; made on first use, owned by @memory. */
int dmp_memory_map_read_only(struct dmp_memory *memory, void **address);

/* Unmaps and closes. Needs no memory and cannot fail. */
void dmp_memory_free(struct dmp_memory *memory);

#endif /* DMP_EMBEDDED_MEMORY_H */
