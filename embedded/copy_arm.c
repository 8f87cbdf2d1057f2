// SPDX-License-Identifier: MIT
/*
 * copy_arm.c - the loops of aarch64, and of what has no loops of its own
 *
 * aarch64: memcpy of the C library is kept (it already streams where that helps), CRC32C
 * has an instruction that is optional in ARMv8.0.
 */
#include "copy_loops.h"

#ifndef __x86_64__

#include <stdlib.h>
#include <string.h>

#ifdef __aarch64__

#include <asm/hwcap.h>
#include <sys/auxv.h>

unsigned int dmp_loop_features(void)
{
	return getauxval(AT_HWCAP) & HWCAP_CRC32 ? DMP_LOOP_CRC : 0;
}

uint32_t dmp_loop_crc32c(unsigned int features, uint32_t seed, const void *bytes, size_t length)
{
	const unsigned char *next = bytes;
	uint32_t crc = ~seed;

	(void)features;
	for (; length >= 8; length -= 8, next += 8) {
		uint64_t word;

		memcpy(&word, next, 8);
		__asm__(".arch_extension crc\n\tcrc32cx %w0, %w0, %x1" : "+r"(crc) : "r"(word));
	}
	for (; length > 0; length--, next++)
		__asm__(".arch_extension crc\n\tcrc32cb %w0, %w0, %w1"
			: "+r"(crc)
			: "r"((uint32_t)*next));
	return ~crc;
}

#else

unsigned int dmp_loop_features(void)
{
	return 0;
}

uint32_t dmp_loop_crc32c(unsigned int features, uint32_t seed, const void *bytes, size_t length)
{
	(void)features, (void)seed, (void)bytes, (void)length;
	abort();
}

#endif /* __aarch64__ */

const char *dmp_loop_describe(unsigned int features)
{
	return features & DMP_LOOP_CRC ? "crc32" : "portable";
}

/* Never announced by dmp_loop_features() here, so a call is a mistake of ours. */
void dmp_loop_stream(unsigned int features, void *target, const void *source, size_t length)
{
	(void)features, (void)target, (void)source, (void)length;
	abort();
}

uint32_t dmp_loop_copy_crc32c(unsigned int features, uint32_t seed, void *target,
			      const void *source, size_t length, int stream)
{
	(void)features, (void)seed, (void)target, (void)source, (void)length, (void)stream;
	abort();
}

#endif /* !__x86_64__ */
