/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * immediate.h - what the 32 bits of a WRITE WITH IMM say
 *
 *	31            16 15             0
 *	+---------------+---------------+
 *	| transfer tag  | chunk ordinal |
 *	+---------------+---------------+
 *
 * The tag names one transfer among those a connection has open; the ordinal
 * numbers its chunks from 0. A value that does not fit is refused, never masked:
 * a transfer with more chunks than the ordinal can count is refused at set-up.
 */
#ifndef DMP_CORE_IMMEDIATE_H
#define DMP_CORE_IMMEDIATE_H

#include "types.h"

#define DMP_IMMEDIATE_TRANSFER_BITS	16
#define DMP_IMMEDIATE_CHUNK_BITS	16

_Static_assert(DMP_IMMEDIATE_TRANSFER_BITS + DMP_IMMEDIATE_CHUNK_BITS == 32,
	       "the widths fill the immediate");
_Static_assert(DMP_IMMEDIATE_TRANSFER_BITS > 0 && DMP_IMMEDIATE_CHUNK_BITS > 0,
	       "each field has room");

/* How many transfers and chunks can be told apart. */
#define DMP_IMMEDIATE_TRANSFERS_MAX	(1U << DMP_IMMEDIATE_TRANSFER_BITS)
#define DMP_IMMEDIATE_CHUNKS_MAX	(1U << DMP_IMMEDIATE_CHUNK_BITS)

/* -EOVERFLOW if either value does not fit; @immediate is then left alone. */
int dmp_immediate_encode(__u32 transfer_tag, __u32 chunk_ordinal, __u32 *immediate);

/* Every immediate decodes. */
void dmp_immediate_decode(__u32 immediate, __u32 *transfer_tag, __u32 *chunk_ordinal);

/* At set-up: 0 if a transfer of @chunk_count chunks can be numbered, -EOVERFLOW
 * if not, -EINVAL for none. */
int dmp_immediate_fits(__u64 chunk_count);

#endif /* DMP_CORE_IMMEDIATE_H */
