/* SPDX-License-Identifier: MIT */
/*
 * copy_loops.h - loops that need instructions not every processor has
 *
 * Private to copy.c. One file per architecture defines all of them; a loop must
 * only be called with its feature bit present.
 */
#ifndef DMP_EMBEDDED_COPY_LOOPS_H
#define DMP_EMBEDDED_COPY_LOOPS_H

#include <stddef.h>
#include <stdint.h>

/* A feature needs none of those below it in this list, some of those above. */
#define DMP_LOOP_STREAM		(1U << 0)	/* stores around the caches */
#define DMP_LOOP_STREAM_WIDE	(1U << 1)	/* 32 bytes a store */
#define DMP_LOOP_CRC		(1U << 2)	/* CRC32C by instruction */
#define DMP_LOOP_COPY_CRC	(1U << 3)	/* both in one pass */
#define DMP_LOOP_COPY_CRC_WIDE	(1U << 4)	/* with the wide carry-less multiply */
#define DMP_LOOP_PAGES		(1U << 5)	/* the wide ones read four pages in turns */
#define DMP_LOOP_AHEAD		(1U << 6)	/* no: one by one, lines fetched ahead */

unsigned int dmp_loop_features(void);
const char *dmp_loop_describe(unsigned int features);

void dmp_loop_stream(unsigned int features, void *target, const void *source, size_t length);
uint32_t dmp_loop_crc32c(unsigned int features, uint32_t seed, const void *bytes, size_t length);
uint32_t dmp_loop_copy_crc32c(unsigned int features, uint32_t seed, void *target,
			      const void *source, size_t length, int stream);

#endif /* DMP_EMBEDDED_COPY_LOOPS_H */
