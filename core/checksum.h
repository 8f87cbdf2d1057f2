/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * checksum.h - CRC32C in plain C
 *
 * The Castagnoli CRC of the contract: reflected, seeded with and finished by
 * inversion, so that CRC of "123456789" is 0xe3069283. Results chain: the CRC of
 * what came before is the seed of what follows, and 0 starts.
 *
 * This is the answer every faster one is measured against, and the one that works
 * everywhere; planes may have instructions that do better.
 */
#ifndef DMP_CORE_CHECKSUM_H
#define DMP_CORE_CHECKSUM_H

#include "types.h"

__u32 dmp_checksum_crc32c(__u32 seed, const void *bytes, __u64 length);

#endif /* DMP_CORE_CHECKSUM_H */
