/* SPDX-License-Identifier: MIT */
/*
 * device.h - the kernel plane behind the calls of libdmaplane.h, for attackers
 *
 * device.c serves dmp_open(), dmp_ioctl(), dmp_mmap() and the rest from /dev/dmaplane, so
 * that the fuzzer of the embedded plane attacks the module unchanged. What only a kernel
 * has (its counters, its other exporters of memory) is here too.
 */
#ifndef DMP_TESTS_DEVICE_H
#define DMP_TESTS_DEVICE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/types.h>

#include "libdmaplane.h"

#define DEVICE_PATH	"/dev/dmaplane"
#define SECOND_NS	1000000000ull

#define FAIL(...)								\
	do {									\
		fprintf(stderr, "%s:%d: ", __FILE_NAME__, __LINE__);		\
		fprintf(stderr, __VA_ARGS__);					\
		fputc('\n', stderr);						\
		abort();							\
	} while (0)

/* A channel with its rings mapped. */
struct device_rings {
	struct dmp_channel_create channel;
	struct dmp_client client;
	void *mapping;
};

int device_fd(const struct dmp_plane *plane);

/* An errno the contract names; 0 is none. @status is 0 or negative. */
bool device_errno_is_known(int status);

int device_buffer(struct dmp_plane *plane, struct dmp_buffer_create *create, uint32_t kind,
		  uint64_t length_bytes);
int device_destroy(struct dmp_plane *plane, unsigned int command, uint32_t id);
int device_export(struct dmp_plane *plane, uint32_t buffer_id, uint32_t flags);
int device_import(struct dmp_plane *plane, int fd, struct dmp_buffer_import *import);
int device_statistics(struct dmp_plane *plane, struct dmp_statistics *statistics);
int device_rings_open(struct dmp_plane *plane, struct device_rings *rings, uint32_t slots,
		      uint32_t workers);
int device_rings_close(struct dmp_plane *plane, struct device_rings *rings);

/* What the module holds of the machine, or -1 if the file is not there. */
int64_t device_charged_bytes(void);
int64_t device_memories(void);
int64_t device_references(void);
/* "name value" or "name: value" of a file of /proc; -1 if there is none. */
int64_t device_proc_value(const char *path, const char *name);
/* Pages that could be used again now: free ones and caches. */
int64_t device_reusable_kib(void);
/* Pages pinned by anybody (FOLL_PIN) and not yet given back. */
int64_t device_pinned_pages(void);

/* Exporters that are not ours: an fd of a dma-buf, or -errno where there is none here. */
int device_udmabuf(uint64_t length_bytes);
int device_heap(uint64_t length_bytes);
/* A device of vgem, to import into and to export from. */
int device_vgem_open(void);
int device_vgem_export(int vgem, uint64_t length_bytes, uint32_t *handle);
int device_vgem_import(int vgem, int fd, uint32_t *handle);
int device_vgem_close_handle(int vgem, uint32_t handle);

/* splitmix64, as in the fuzzer: a seed replays. */
uint64_t random_next(uint64_t *state);
uint32_t random_below(uint64_t *state, uint32_t end);
void sleep_us(uint64_t us);

#endif /* DMP_TESTS_DEVICE_H */
