// SPDX-License-Identifier: GPL-2.0 OR MIT
/* immediate.c - the immediate codec, see immediate.h */
#include "immediate.h"

int dmp_immediate_encode(__u32 transfer_tag, __u32 chunk_ordinal, __u32 *immediate)
{
	if (transfer_tag >= DMP_IMMEDIATE_TRANSFERS_MAX)
		return -EOVERFLOW;
	if (chunk_ordinal >= DMP_IMMEDIATE_CHUNKS_MAX)
		return -EOVERFLOW;
	*immediate = transfer_tag << DMP_IMMEDIATE_CHUNK_BITS | chunk_ordinal;
	return 0;
}

void dmp_immediate_decode(__u32 immediate, __u32 *transfer_tag, __u32 *chunk_ordinal)
{
	*transfer_tag = immediate >> DMP_IMMEDIATE_CHUNK_BITS;
	*chunk_ordinal = immediate & (DMP_IMMEDIATE_CHUNKS_MAX - 1);
}

int dmp_immediate_fits(__u64 chunk_count)
{
	if (!chunk_count)
		return -EINVAL;
	if (chunk_count > DMP_IMMEDIATE_CHUNKS_MAX)
		return -EOVERFLOW;
	return 0;
}
