/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * region_key.h - the key of a region: what a peer shows who wants to touch it
 *
 * An opaque blob for everybody but the owner: the slot of the region in the owner's table, the
 * owner's incarnation, a generation that never repeats on it, 64 random bits, the rights and
 * the length. Both planes write and read this one form, so a key of one is good at the other.
 * Whoever decodes a key that came from outside believes nothing of it until the owner agreed.
 */
#ifndef DMP_CORE_REGION_KEY_H
#define DMP_CORE_REGION_KEY_H

#include "dmaplane.h"
#include "types.h"

#define DMP_REGION_KEY_BYTES	48U

/*
 * Slots a plane may have. Of the 65536 ids of an embedded plane 32768 are for buffers, 1024
 * for channels and 4096 for endpoints.
 */
#define DMP_REGION_SLOTS_MAX	24576U

#define DMP_ACCESS_ALL	(DMP_ACCESS_LOCAL_WRITE | DMP_ACCESS_REMOTE_READ | DMP_ACCESS_REMOTE_WRITE)

struct dmp_region_key {
	__u64 incarnation;
	__u64 secret;
	__u64 length;
	__u32 slot;
	__u32 generation;
	__u32 access;
};

/* Writes the blob with zeroes behind it; returns how many bytes of it count. */
__u32 dmp_region_key_encode(const struct dmp_region_key *key, __u8 bytes[DMP_KEY_BYTES]);

/* -EINVAL for what no plane writes. */
int dmp_region_key_decode(const __u8 *bytes, __u32 count, struct dmp_region_key *key);

/*
 * Do both say the same of secret, length and rights? No branch depends on how much of it
 * is right.
 */
bool dmp_region_key_equal(const struct dmp_region_key *one, const struct dmp_region_key *other);

#endif /* DMP_CORE_REGION_KEY_H */
