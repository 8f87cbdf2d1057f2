// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * checksum.c - CRC32C, eight bytes at a time from eight tables
 *
 * Invariant: tables[k][b] is the CRC register after byte b and k zero bytes. As a
 * CRC is linear over XOR, an entry is the XOR of those of its bits; so eight
 * numbers per table say it all and the compiler writes out the rest. Nothing is
 * set up at run time and nothing is owned: the tables are read-only.
 */
#include "checksum.h"

#define TABLES	8

#define ENTRY(n, b0, b1, b2, b3, b4, b5, b6, b7)				\
	(((n) & 1 ? b0 : 0) ^ ((n) & 2 ? b1 : 0) ^ ((n) & 4 ? b2 : 0) ^		\
	 ((n) & 8 ? b3 : 0) ^ ((n) & 16 ? b4 : 0) ^ ((n) & 32 ? b5 : 0) ^	\
	 ((n) & 64 ? b6 : 0) ^ ((n) & 128 ? b7 : 0))
#define ENTRIES_4(n, ...)							\
	ENTRY(n, __VA_ARGS__), ENTRY((n) + 1, __VA_ARGS__),			\
	ENTRY((n) + 2, __VA_ARGS__), ENTRY((n) + 3, __VA_ARGS__)
#define ENTRIES_16(n, ...)							\
	ENTRIES_4(n, __VA_ARGS__), ENTRIES_4((n) + 4, __VA_ARGS__),		\
	ENTRIES_4((n) + 8, __VA_ARGS__), ENTRIES_4((n) + 12, __VA_ARGS__)
#define ENTRIES_64(n, ...)							\
	ENTRIES_16(n, __VA_ARGS__), ENTRIES_16((n) + 16, __VA_ARGS__),		\
	ENTRIES_16((n) + 32, __VA_ARGS__), ENTRIES_16((n) + 48, __VA_ARGS__)
/* The arguments are the entries of bytes 1, 2, 4, ... 128. */
#define TABLE(...)								\
	{ ENTRIES_64(0, __VA_ARGS__), ENTRIES_64(64, __VA_ARGS__),		\
	  ENTRIES_64(128, __VA_ARGS__), ENTRIES_64(192, __VA_ARGS__) }

static const __u32 tables[TABLES][256] = {
	TABLE(0xf26b8303u, 0xe13b70f7u, 0xc79a971fu, 0x8ad958cfu,
	      0x105ec76fu, 0x20bd8edeu, 0x417b1dbcu, 0x82f63b78u),
	TABLE(0x13a29877u, 0x274530eeu, 0x4e8a61dcu, 0x9d14c3b8u,
	      0x3fc5f181u, 0x7f8be302u, 0xff17c604u, 0xfbc3faf9u),
	TABLE(0xa541927eu, 0x4f6f520du, 0x9edea41au, 0x38513ec5u,
	      0x70a27d8au, 0xe144fb14u, 0xc76580d9u, 0x8b277743u),
	TABLE(0xdd45aab8u, 0xbf672381u, 0x7b2231f3u, 0xf64463e6u,
	      0xe964b13du, 0xd725148bu, 0xaba65fe7u, 0x52a0c93fu),
	TABLE(0x38116facu, 0x7022df58u, 0xe045beb0u, 0xc5670b91u,
	      0x8f2261d3u, 0x1ba8b557u, 0x37516aaeu, 0x6ea2d55cu),
	TABLE(0xef306b19u, 0xdb8ca0c3u, 0xb2f53777u, 0x6006181fu,
	      0xc00c303eu, 0x85f4168du, 0x0e045bebu, 0x1c08b7d6u),
	TABLE(0x68032cc8u, 0xd0065990u, 0xa5e0c5d1u, 0x4e2dfd53u,
	      0x9c5bfaa6u, 0x3d5b83bdu, 0x7ab7077au, 0xf56e0ef4u),
	TABLE(0x493c7d27u, 0x9278fa4eu, 0x211d826du, 0x423b04dau,
	      0x847609b4u, 0x0d006599u, 0x1a00cb32u, 0x34019664u),
};

/* The same on any byte order and alignment; compilers make one load of it. */
static __u32 load_word(const __u8 *bytes)
{
	return bytes[0] | (__u32)bytes[1] << 8 | (__u32)bytes[2] << 16 |
	       (__u32)bytes[3] << 24;
}

__u32 dmp_checksum_crc32c(__u32 seed, const void *bytes, __u64 length)
{
	const __u8 *next = bytes;
	__u32 crc = ~seed;

	for (; length >= 8; length -= 8, next += 8) {
		__u32 low = crc ^ load_word(next);
		__u32 high = load_word(next + 4);

		crc = tables[7][low & 255] ^ tables[6][low >> 8 & 255] ^
		      tables[5][low >> 16 & 255] ^ tables[4][low >> 24] ^
		      tables[3][high & 255] ^ tables[2][high >> 8 & 255] ^
		      tables[1][high >> 16 & 255] ^ tables[0][high >> 24];
	}
	for (; length > 0; length--, next++)
		crc = crc >> 8 ^ tables[0][(crc ^ *next) & 255];
	return ~crc;
}
