// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * region_key.c - see region_key.h
 *
 * A key, little-endian:
 *	 0  4  magic "dmpk"			24  8  length of the region
 *	 4  4  version				32  4  slot
 *	 8  8  incarnation of the owner		36  4  generation
 *	16  8  random bits			40  4  access
 *						44  4  0
 */
#include "region_key.h"

#define KEY_MAGIC	0x6b706d64U
#define KEY_VERSION	1U

_Static_assert(DMP_REGION_KEY_BYTES <= DMP_KEY_BYTES, "a key fits the contract's blob");

static void put(__u8 *bytes, __u64 value, int count)
{
	int index;

	for (index = 0; index < count; index++)
		bytes[index] = (__u8)(value >> 8 * index);
}

static __u64 get(const __u8 *bytes, int count)
{
	__u64 value = 0;

	while (count-- > 0)
		value = value << 8 | bytes[count];
	return value;
}

__u32 dmp_region_key_encode(const struct dmp_region_key *key, __u8 bytes[DMP_KEY_BYTES])
{
	__builtin_memset(bytes, 0, DMP_KEY_BYTES);
	put(bytes, KEY_MAGIC, 4);
	put(bytes + 4, KEY_VERSION, 4);
	put(bytes + 8, key->incarnation, 8);
	put(bytes + 16, key->secret, 8);
	put(bytes + 24, key->length, 8);
	put(bytes + 32, key->slot, 4);
	put(bytes + 36, key->generation, 4);
	put(bytes + 40, key->access, 4);
	return DMP_REGION_KEY_BYTES;
}

int dmp_region_key_decode(const __u8 *bytes, __u32 count, struct dmp_region_key *key)
{
	struct dmp_region_key found;

	if (count != DMP_REGION_KEY_BYTES || get(bytes, 4) != KEY_MAGIC ||
	    get(bytes + 4, 4) != KEY_VERSION || get(bytes + 44, 4) != 0)
		return -EINVAL;
	found.incarnation = get(bytes + 8, 8);
	found.secret = get(bytes + 16, 8);
	found.length = get(bytes + 24, 8);
	found.slot = (__u32)get(bytes + 32, 4);
	found.generation = (__u32)get(bytes + 36, 4);
	found.access = (__u32)get(bytes + 40, 4);
	if (found.length == 0 || found.slot >= DMP_REGION_SLOTS_MAX || found.generation == 0 ||
	    found.access == 0 || found.access & ~DMP_ACCESS_ALL)
		return -EINVAL;
	*key = found;
	return 0;
}

bool dmp_region_key_equal(const struct dmp_region_key *one, const struct dmp_region_key *other)
{
	volatile __u64 difference = one->secret ^ other->secret;

	difference |= one->length ^ other->length;
	difference |= one->access ^ other->access;
	return difference == 0;
}
