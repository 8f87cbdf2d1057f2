/* SPDX-License-Identifier: GPL-2.0 */
/*
 * proof.h - that a side knows the secret, without saying it
 *
 * The same bytes as the embedded plane's: HMAC-SHA256 under the secret, over a label of the
 * direction, the length of the secret and the transcript of the handshake. The label keeps a
 * proof from being sent back, the length keeps HMAC's padding from making two secrets equal.
 * No secret is the empty secret: the proof is made all the same.
 */
#ifndef DMP_KERNEL_PROOF_H
#define DMP_KERNEL_PROOF_H

#include "dmaplane.h"
#include "types.h"

#define DMP_PROOF_BYTES 32U

struct dmp_secret {
	u8 bytes[DMP_SECRET_BYTES];
	u32 count;
};

/* Has this kernel what a proof is made with? Context: may sleep, may load a module. */
bool dmp_proof_is_possible(void);

/* Context: may sleep. 0, or the crypto API's -errno. */
int dmp_proof_make(const struct dmp_secret *secret, bool by_connector, const void *transcript,
		   size_t length, u8 proof[DMP_PROOF_BYTES]);

/* -EACCES if it is not right; takes the same time whatever the proof is. */
int dmp_proof_check(const struct dmp_secret *secret, bool by_connector, const void *transcript,
		    size_t length, const u8 *proof, u32 proof_bytes);

void dmp_secret_forget(struct dmp_secret *secret);

#endif /* DMP_KERNEL_PROOF_H */
