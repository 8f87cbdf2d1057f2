/* SPDX-License-Identifier: MIT */
/*
 * proof.h - that a side knows the secret, without saying it
 *
 * HMAC-SHA256 under the secret, over a label of the direction, the length of the secret and
 * the transcript of the handshake (both nonces, incarnations, versions, features, limits).
 * The label keeps a proof from being sent back, the length keeps HMAC's padding from making
 * two secrets equal. No secret is the empty secret: the proof is made all the same, so
 * that a side which wants one refuses a side which has none.
 */
#ifndef DMP_PROOF_H
#define DMP_PROOF_H

#include <stdbool.h>
#include <stddef.h>

#include "dmaplane.h"

#define DMP_PROOF_BYTES 32u

struct dmp_secret {
	__u8 bytes[DMP_SECRET_BYTES];
	__u32 count;
};

void dmp_proof_make(const struct dmp_secret *secret, bool by_connector, const void *transcript,
		    size_t length, __u8 proof[DMP_PROOF_BYTES]);

/* Takes the same time whatever the proof is. */
bool dmp_proof_check(const struct dmp_secret *secret, bool by_connector, const void *transcript,
		     size_t length, const __u8 *proof, __u32 proof_bytes);

/* Overwrites it, also where the compiler thinks that nobody looks. */
void dmp_secret_forget(struct dmp_secret *secret);

#endif /* DMP_PROOF_H */
