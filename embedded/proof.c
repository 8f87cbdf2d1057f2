// SPDX-License-Identifier: MIT
/* proof.c - see proof.h */
#define _GNU_SOURCE
#include "proof.h"

#include <string.h>

#include "sha256.h"

_Static_assert(DMP_PROOF_BYTES == DMP_SHA256_BYTES, "a proof is one HMAC");

/* Neither begins the other, so label and transcript cannot run into each other. */
static const char connector_label[] = "dmaplane connector v1";
static const char acceptor_label[] = "dmaplane acceptor v1";

void dmp_proof_make(const struct dmp_secret *secret, bool by_connector, const void *transcript,
		    size_t length, __u8 proof[DMP_PROOF_BYTES])
{
	const char *label = by_connector ? connector_label : acceptor_label;
	struct dmp_hmac hmac;
	__u8 count;

	dmp_hmac_init(&hmac, secret->bytes, secret->count);
	dmp_hmac_update(&hmac, label, strlen(label));
	/* HMAC fills short keys with zeroes: "s" and "s\0" would be the same secret. */
	count = (__u8)secret->count;
	dmp_hmac_update(&hmac, &count, 1);
	dmp_hmac_update(&hmac, transcript, length);
	dmp_hmac_final(&hmac, proof);
}

bool dmp_proof_check(const struct dmp_secret *secret, bool by_connector, const void *transcript,
		     size_t length, const __u8 *proof, __u32 proof_bytes)
{
	__u8 right[DMP_PROOF_BYTES], different = 0;
	unsigned int i;

	if (proof_bytes != DMP_PROOF_BYTES)
		return false;
	dmp_proof_make(secret, by_connector, transcript, length, right);
	for (i = 0; i < DMP_PROOF_BYTES; i++)
		different |= right[i] ^ proof[i];
	explicit_bzero(right, sizeof(right));
	return different == 0;
}

void dmp_secret_forget(struct dmp_secret *secret)
{
	explicit_bzero(secret->bytes, sizeof(secret->bytes));
	secret->count = 0;
}
