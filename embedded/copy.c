// SPDX-License-Identifier: MIT
/*
 * copy.c - which loop moves the bytes
 *
 * The choice is one word of feature bits, written by dmp_copy_init() as the library is
 * loaded and read by every call: whoever sees an older value takes a slower way to the
 * same bytes.
 * The loops themselves are in copy_x86.c and copy_arm.c, behind copy_loops.h.
 *
 * Figures that decided (one core of an AMD EPYC of 2022, 4 KiB pages, DRAM to DRAM,
 * GB/s against glibc memcpy in the same run): scattered 4 KiB 7.9 memcpy, 10.7
 * streaming stores of 16 or 32 bytes, 13.7 those of 32 with the start of the next
 * block fetched ahead; 64 KiB 13.6 / 20.9; 1 MiB 14.0 / 23.6. Data that stays in the
 * caches goes the other way (57 memcpy, 18 streaming), hence the threshold at the
 * size of the last cache. Stores of 64 bytes gain nothing over 32, rep movsb only
 * from 64 MiB on. Fetching 512 bytes of the next block helps, a whole one hurts.
 *
 * An Intel Xeon with AMX is another matter (one core, blocks of 1 MiB): 6.9 memcpy, 5.1
 * with lines fetched ahead, 10.1 without, 12.6 a line of each of four pages in turns; with
 * the CRC 4.6, 9.9, 12.5; the CRC alone 5.6, 13.9, 15.0. So there the copy takes pages.
 * What pages do to an EPYC was not measured; it keeps what was.
 */
#include "copy.h"

#include <string.h>
#include <unistd.h>

#include "checksum.h"
#include "copy_loops.h"
#include "libdmaplane.h"

#define STREAM_LENGTH_MIN	1024
#define STREAM_SWEEP_DEFAULT	(16u << 20)
#define STREAM_SWEEP_MIN	(4u << 20)
#define STREAM_SWEEP_MAX	(64u << 20)
#define PREFETCH_BYTES		512
#define PREFETCH_LINE_BYTES	64
#define BOUNCE_BYTES		2048

static unsigned int features;
static size_t stream_sweep = SIZE_MAX;

static unsigned int features_now(void)
{
	return __atomic_load_n(&features, __ATOMIC_RELAXED);
}

void dmp_copy_init(void)
{
	size_t sweep = STREAM_SWEEP_DEFAULT;
#ifdef _SC_LEVEL3_CACHE_SIZE
	long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);

	if (cache > 0)
		sweep = (size_t)cache;
#endif
	if (sweep < STREAM_SWEEP_MIN)
		sweep = STREAM_SWEEP_MIN;
	if (sweep > STREAM_SWEEP_MAX)
		sweep = STREAM_SWEEP_MAX;
	__atomic_store_n(&stream_sweep, sweep, __ATOMIC_RELAXED);
	__atomic_store_n(&features, dmp_loop_features(), __ATOMIC_RELAXED);
}

int dmp_copy_weaken(void)
{
	unsigned int have = features_now();

	if (!have)
		return 0;
	/* Bits are ordered so that a feature needs only those below it. */
	have &= ~(1U << (31 - __builtin_clz(have)));
	__atomic_store_n(&features, have, __ATOMIC_RELAXED);
	return 1;
}

const char *dmp_copy_describe(void)
{
	return dmp_loop_describe(features_now());
}

static int streams(unsigned int have, size_t length, size_t operation_bytes)
{
	return (have & DMP_LOOP_STREAM) && length >= STREAM_LENGTH_MIN &&
	       operation_bytes >= __atomic_load_n(&stream_sweep, __ATOMIC_RELAXED);
}

void dmp_copy_bytes(void *target, const void *source, size_t length, size_t operation_bytes)
{
	unsigned int have = features_now();

	if (streams(have, length, operation_bytes))
		dmp_loop_stream(have, target, source, length);
	else
		memcpy(target, source, length);
}

/* Reads the source once into a bounce that nobody else can change. */
static uint32_t copy_crc32c_bounce(unsigned int have, uint32_t seed, void *target,
				   const void *source, size_t length)
{
	unsigned char bounce[BOUNCE_BYTES];
	size_t done;

	for (done = 0; done < length; done += sizeof(bounce)) {
		size_t part = length - done < sizeof(bounce) ? length - done : sizeof(bounce);

		memcpy(bounce, (const char *)source + done, part);
		__asm__ volatile("" : : "r"(bounce) : "memory");
		memcpy((char *)target + done, bounce, part);
		if (have & DMP_LOOP_CRC)
			seed = dmp_loop_crc32c(have, seed, bounce, part);
		else
			seed = dmp_checksum_crc32c(seed, bounce, part);
	}
	return seed;
}

uint32_t dmp_copy_crc32c(uint32_t seed, void *target, const void *source, size_t length,
			 size_t operation_bytes)
{
	unsigned int have = features_now();

	if (have & DMP_LOOP_COPY_CRC)
		return dmp_loop_copy_crc32c(have, seed, target, source, length,
					    streams(have, length, operation_bytes));
	return copy_crc32c_bounce(have, seed, target, source, length);
}

uint32_t dmp_crc32c(uint32_t seed, const void *bytes, size_t length_bytes)
{
	unsigned int have = features_now();

	if (have & DMP_LOOP_CRC)
		return dmp_loop_crc32c(have, seed, bytes, length_bytes);
	return dmp_checksum_crc32c(seed, bytes, length_bytes);
}

void dmp_crc32c_groups(const void *bytes, const uint64_t *offsets, const uint64_t *lengths,
		       const uint64_t *starts, size_t count, uint32_t *checksums)
{
	size_t group;

	for (group = 0; group < count; group++) {
		uint32_t checksum = 0;
		uint64_t run;

		for (run = starts[group]; run < starts[group + 1]; run++)
			checksum = dmp_crc32c(checksum, (const char *)bytes + offsets[run],
					      lengths[run]);
		checksums[group] = checksum;
	}
}

void dmp_copy_fill(void *target, uint32_t pattern, size_t length, uint64_t phase)
{
	unsigned char row[256];
	const unsigned char *bytes = (const unsigned char *)&pattern;
	size_t done, index;

	for (index = 0; index < sizeof(row); index++)
		row[index] = bytes[(phase + index) & 3];
	if (row[0] == row[1] && row[1] == row[2] && row[2] == row[3]) {
		memset(target, row[0], length);
		return;
	}
	for (done = 0; length - done >= sizeof(row); done += sizeof(row))
		memcpy((char *)target + done, row, sizeof(row));
	memcpy((char *)target + done, row, length - done);
}

void dmp_copy_prefetch(const void *source, size_t length)
{
	size_t end = length < PREFETCH_BYTES ? length : PREFETCH_BYTES;
	size_t ahead;

	for (ahead = 0; ahead < end; ahead += PREFETCH_LINE_BYTES)
		__builtin_prefetch((const char *)source + ahead, 0, 3);
}
