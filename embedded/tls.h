/* SPDX-License-Identifier: MIT */
/*
 * tls.h - DMP_ENCRYPT on a tcp fabric: the kernel encrypts what its socket sends
 *
 * WELCOME and CONFIRM are the last clear frames of their directions: what is behind them is
 * TLS 1.3 records (AES-256-GCM) made and opened by the kernel's TLS. No bytes pass
 * through here: frames, places and calls stay what they were. The keys, one for each
 * direction of each connection, come from the secret and the transcript of the handshake:
 *
 *	HKDF-SHA256, extract(salt, secret), expand(label of the direction | transcript)
 *
 * so that who proves the secret has the right keys, and no two connections share any.
 */
#ifndef DMP_TLS_H
#define DMP_TLS_H

#include <stdbool.h>
#include <stddef.h>

#include "proof.h"
#include "sha256.h"

struct dmp_embedded_endpoint;

/* HKDF (RFC 5869). @length is at most 255 digests. */
void dmp_hkdf_extract(const void *salt, size_t salt_bytes, const void *input, size_t input_bytes,
		      __u8 key[DMP_SHA256_BYTES]);
void dmp_hkdf_expand(const __u8 key[DMP_SHA256_BYTES], const void *info, size_t info_bytes,
		     __u8 *output, size_t length);

/*
 * -EOPNOTSUPP where the kernel has no TLS (`modprobe tls`). Also loads what it needs for the first
 * connection, which takes longer than a peer waits in the handshake if the machine is slow.
 */
int dmp_tls_probe(void);

/*
 * Before the first frame of an endpoint on tcp: the socket can be switched over, and the stream
 * stops at the last clear frames. -EOPNOTSUPP; -ECONNRESET: the peer has left already.
 */
int dmp_tls_prepare(struct dmp_embedded_endpoint *endpoint);

/*
 * Between two rounds of the handshake: switches each direction that is at its last clear
 * frame. 1: something was switched; 0: nothing was due; or -errno. channel->lock held.
 */
int dmp_tls_switch_locked(struct dmp_embedded_endpoint *endpoint);

#endif /* DMP_TLS_H */
