/* SPDX-License-Identifier: MIT */
/*
 * sha256.h - SHA-256 (FIPS 180-4) and HMAC with it (RFC 2104), for proofs of a secret
 *
 * Which instructions run and which memory they touch depends on lengths only, never on
 * the bytes. Made for the few hundred bytes of a handshake; docs/design/sha256.md.
 */
#ifndef DMP_SHA256_H
#define DMP_SHA256_H

#include <stddef.h>

#include "dmaplane.h"

#define DMP_SHA256_BYTES	32u
#define DMP_SHA256_BLOCK_BYTES	64u

struct dmp_sha256 {
	__u32 state[8];
	__u64 bytes;			/* hashed so far */
	__u8 block[DMP_SHA256_BLOCK_BYTES];
};

void dmp_sha256_init(struct dmp_sha256 *hash);
void dmp_sha256_update(struct dmp_sha256 *hash, const void *bytes, size_t length);

/* The hash is wiped afterwards. */
void dmp_sha256_final(struct dmp_sha256 *hash, __u8 digest[DMP_SHA256_BYTES]);

struct dmp_hmac {
	struct dmp_sha256 inner;
	struct dmp_sha256 outer;
};

void dmp_hmac_init(struct dmp_hmac *hmac, const void *key, size_t key_bytes);
void dmp_hmac_update(struct dmp_hmac *hmac, const void *bytes, size_t length);
void dmp_hmac_final(struct dmp_hmac *hmac, __u8 code[DMP_SHA256_BYTES]);

#endif /* DMP_SHA256_H */
