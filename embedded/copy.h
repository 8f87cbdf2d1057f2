/* SPDX-License-Identifier: MIT */
/*
 * copy.h - moving bytes with the CPU
 *
 * The fastest way differs by processor and by how much is moved, so it is chosen
 * once at run time; every choice stores the same bytes and gives the same CRC.
 * The functions own nothing, may be called from any thread, and order their
 * stores before any store-release that follows, streaming ones included.
 */
#ifndef DMP_EMBEDDED_COPY_H
#define DMP_EMBEDDED_COPY_H

#include <stddef.h>
#include <stdint.h>

/* Looks at the processor. Idempotent; before it everything is portable C, and right. */
void dmp_copy_init(void);

/*
 * Copies @length bytes; source and target must not overlap. @operation_bytes says how
 * much memory the copies like this one sweep over: the length of the target
 * buffer if it is known, at least that of the whole operation. Sweeps larger than
 * the last-level cache are stored around the caches.
 */
void dmp_copy_bytes(void *target, const void *source, size_t length, size_t operation_bytes);

/*
 * The same, and the CRC32C (continued from @seed, 0 at the start) of the very bytes
 * stored: each byte of the source is read once, so a source that changes meanwhile
 * cannot make the two disagree.
 */
uint32_t dmp_copy_crc32c(uint32_t seed, void *target, const void *source, size_t length,
			 size_t operation_bytes);

/* Repeats the four bytes of @pattern over @length bytes; the first is byte @phase % 4. */
void dmp_copy_fill(void *target, uint32_t pattern, size_t length, uint64_t phase);

/*
 * Starts to fetch the first bytes of the next operation's source; call it just before
 * copying the present one. Never faults.
 */
void dmp_copy_prefetch(const void *source, size_t length);

/* What dmp_copy_init() chose, for people: "avx2 vpclmulqdq", "portable", ... */
const char *dmp_copy_describe(void);

/*
 * Tests: gives up the strongest feature in use, so that the next weaker way is taken.
 * False once nothing is left but portable C.
 */
int dmp_copy_weaken(void);

#endif /* DMP_EMBEDDED_COPY_H */
