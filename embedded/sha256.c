// SPDX-License-Identifier: MIT
/* sha256.c - see sha256.h; names of the functions and constants are those of FIPS 180-4 */
#define _GNU_SOURCE
#include "sha256.h"

#include <string.h>

/* Fractional parts of the cube roots of the first 64 primes (4.2.2). */
static const __u32 round_constants[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
	0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
	0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
	0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
	0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
	0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
	0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
	0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
	0xc67178f2,
};

/* Fractional parts of the square roots of the first 8 primes (5.3.3). */
static const __u32 initial_state[8] = {
	0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
	0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
};

static __u32 rotr(__u32 x, unsigned int n)
{
	return x >> n | x << (32 - n);
}

static __u32 load_be32(const __u8 *bytes)
{
	return (__u32)bytes[0] << 24 | (__u32)bytes[1] << 16 | (__u32)bytes[2] << 8 | bytes[3];
}

static void store_be32(__u8 *bytes, __u32 value)
{
	bytes[0] = (__u8)(value >> 24);
	bytes[1] = (__u8)(value >> 16);
	bytes[2] = (__u8)(value >> 8);
	bytes[3] = (__u8)value;
}

/* 6.2.2: v[0 .. 7] are a .. h. */
static void compress(__u32 state[8], const __u8 block[DMP_SHA256_BLOCK_BYTES])
{
	__u32 schedule[64], v[8];
	unsigned int t;

	for (t = 0; t < 16; t++)
		schedule[t] = load_be32(block + 4 * t);
	for (; t < 64; t++) {
		__u32 w2 = schedule[t - 2], w15 = schedule[t - 15];

		schedule[t] = (rotr(w2, 17) ^ rotr(w2, 19) ^ w2 >> 10) + schedule[t - 7] +
			      (rotr(w15, 7) ^ rotr(w15, 18) ^ w15 >> 3) + schedule[t - 16];
	}
	memcpy(v, state, sizeof(v));
	for (t = 0; t < 64; t++) {
		__u32 sum1 = rotr(v[4], 6) ^ rotr(v[4], 11) ^ rotr(v[4], 25);
		__u32 choice = (v[4] & v[5]) ^ (~v[4] & v[6]);
		__u32 first = v[7] + sum1 + choice + round_constants[t] + schedule[t];
		__u32 sum0 = rotr(v[0], 2) ^ rotr(v[0], 13) ^ rotr(v[0], 22);
		__u32 majority = (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]);

		memmove(v + 1, v, 7 * sizeof(v[0]));
		v[4] += first;
		v[0] = first + sum0 + majority;
	}
	for (t = 0; t < 8; t++)
		state[t] += v[t];
	explicit_bzero(schedule, sizeof(schedule));
	explicit_bzero(v, sizeof(v));
}

void dmp_sha256_init(struct dmp_sha256 *hash)
{
	memcpy(hash->state, initial_state, sizeof(hash->state));
	hash->bytes = 0;
}

void dmp_sha256_update(struct dmp_sha256 *hash, const void *bytes, size_t length)
{
	const __u8 *from = bytes;

	while (length != 0) {
		size_t have = hash->bytes % DMP_SHA256_BLOCK_BYTES;
		size_t take = DMP_SHA256_BLOCK_BYTES - have;

		if (take > length)
			take = length;
		memcpy(hash->block + have, from, take);
		hash->bytes += take;
		from += take;
		length -= take;
		if (have + take == DMP_SHA256_BLOCK_BYTES)
			compress(hash->state, hash->block);
	}
}

/* Padding (5.1.1): one bit, zeros, and the length in bits at the end of a block. */
void dmp_sha256_final(struct dmp_sha256 *hash, __u8 digest[DMP_SHA256_BYTES])
{
	size_t have = hash->bytes % DMP_SHA256_BLOCK_BYTES;
	size_t zeros = (have < 56 ? 55 : 119) - have;
	__u8 padding[DMP_SHA256_BLOCK_BYTES + 8] = { 0x80 };
	__u64 bits = hash->bytes * 8;
	unsigned int i;

	store_be32(padding + 1 + zeros, (__u32)(bits >> 32));
	store_be32(padding + 1 + zeros + 4, (__u32)bits);
	dmp_sha256_update(hash, padding, 1 + zeros + 8);
	for (i = 0; i < 8; i++)
		store_be32(digest + 4 * i, hash->state[i]);
	explicit_bzero(hash, sizeof(*hash));
}

void dmp_hmac_init(struct dmp_hmac *hmac, const void *key, size_t key_bytes)
{
	__u8 pad[DMP_SHA256_BLOCK_BYTES] = { 0 };
	unsigned int i;

	if (key_bytes > sizeof(pad)) {
		dmp_sha256_init(&hmac->inner);
		dmp_sha256_update(&hmac->inner, key, key_bytes);
		dmp_sha256_final(&hmac->inner, pad);
	} else if (key_bytes != 0) {
		memcpy(pad, key, key_bytes);
	}
	for (i = 0; i < sizeof(pad); i++)
		pad[i] ^= 0x36;
	dmp_sha256_init(&hmac->inner);
	dmp_sha256_update(&hmac->inner, pad, sizeof(pad));
	for (i = 0; i < sizeof(pad); i++)
		pad[i] ^= 0x36 ^ 0x5c;
	dmp_sha256_init(&hmac->outer);
	dmp_sha256_update(&hmac->outer, pad, sizeof(pad));
	explicit_bzero(pad, sizeof(pad));
}

void dmp_hmac_update(struct dmp_hmac *hmac, const void *bytes, size_t length)
{
	dmp_sha256_update(&hmac->inner, bytes, length);
}

void dmp_hmac_final(struct dmp_hmac *hmac, __u8 code[DMP_SHA256_BYTES])
{
	__u8 digest[DMP_SHA256_BYTES];

	dmp_sha256_final(&hmac->inner, digest);
	dmp_sha256_update(&hmac->outer, digest, sizeof(digest));
	dmp_sha256_final(&hmac->outer, code);
	explicit_bzero(digest, sizeof(digest));
}
