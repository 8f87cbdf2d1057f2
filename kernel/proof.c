// SPDX-License-Identifier: GPL-2.0
/* proof.c - see proof.h */
#include "proof.h"

#include <crypto/algapi.h>
#include <crypto/hash.h>
#include <linux/err.h>
#include <linux/string.h>

/* Neither begins the other, so label and transcript cannot run into each other. */
static const char connector_label[] = "dmaplane connector v1";
static const char acceptor_label[] = "dmaplane acceptor v1";

#define HASH "hmac(sha256)"

bool dmp_proof_is_possible(void)
{
	static bool found;	/* only ever goes from false to true */

	if (!READ_ONCE(found) && crypto_has_shash(HASH, 0, 0))
		WRITE_ONCE(found, true);
	return READ_ONCE(found);
}

static int digest(struct crypto_shash *hash, const struct dmp_secret *secret, const char *label,
		  const void *transcript, size_t length, u8 *proof)
{
	SHASH_DESC_ON_STACK(state, hash);
	/* HMAC fills short keys with zeroes: "s" and "s\0" would be the same secret. */
	u8 count = secret->count;
	int error;

	state->tfm = hash;
	error = crypto_shash_init(state);
	if (!error)
		error = crypto_shash_update(state, label, strlen(label));
	if (!error)
		error = crypto_shash_update(state, &count, 1);
	if (!error)
		error = crypto_shash_update(state, transcript, length);
	if (!error)
		error = crypto_shash_final(state, proof);
	shash_desc_zero(state);
	return error;
}

int dmp_proof_make(const struct dmp_secret *secret, bool by_connector, const void *transcript,
		   size_t length, u8 proof[DMP_PROOF_BYTES])
{
	struct crypto_shash *hash = crypto_alloc_shash(HASH, 0, 0);
	int error;

	if (IS_ERR(hash))
		return PTR_ERR(hash);
	error = crypto_shash_setkey(hash, secret->bytes, secret->count);
	if (!error)
		error = digest(hash, secret, by_connector ? connector_label : acceptor_label,
			       transcript, length, proof);
	crypto_free_shash(hash);
	return error;
}

int dmp_proof_check(const struct dmp_secret *secret, bool by_connector, const void *transcript,
		    size_t length, const u8 *proof, u32 proof_bytes)
{
	u8 right[DMP_PROOF_BYTES];
	int error;

	if (proof_bytes != DMP_PROOF_BYTES)
		return -EACCES;
	error = dmp_proof_make(secret, by_connector, transcript, length, right);
	if (!error && crypto_memneq(right, proof, sizeof(right)))
		error = -EACCES;
	memzero_explicit(right, sizeof(right));
	return error;
}

void dmp_secret_forget(struct dmp_secret *secret)
{
	memzero_explicit(secret, sizeof(*secret));
}
