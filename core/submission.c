// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * submission.c - what a submission may say, one row per operation
 *
 * A field an operation does not use must be zero, so that it can be given a meaning.
 */
#include "channel.h"

#define USES_ENDPOINT	(1U << 0)
#define USES_SOURCE	(1U << 1)
#define USES_TARGET	(1U << 2)
#define USES_IMMEDIATE	(1U << 3)
#define USES_LENGTH	(1U << 4)
#define USES_CHECKSUM	(1U << 5)
#define MAY_BE_EMPTY	(1U << 6)
#define BY_WORDS	(1U << 7)

#define SUBMIT_FLAGS                                                                    \
	(DMP_SUBMIT_LINK | DMP_SUBMIT_CHECKSUM | DMP_SUBMIT_VERIFY | DMP_SUBMIT_NOWAIT)
#define CHECKSUM_FLAGS (DMP_SUBMIT_CHECKSUM | DMP_SUBMIT_VERIFY)
#define OPERATIONS (DMP_OP_READ + 1)
#define KNOWN (1U << 31)

static const __u32 operations[OPERATIONS] = {
	[DMP_OP_NOP] = KNOWN,
	[DMP_OP_FILL] = KNOWN | USES_TARGET | USES_IMMEDIATE | USES_LENGTH | BY_WORDS,
	[DMP_OP_COPY] = KNOWN | USES_SOURCE | USES_TARGET | USES_LENGTH | USES_CHECKSUM,
	[DMP_OP_FENCE] = KNOWN,
	[DMP_OP_SEND] = KNOWN | USES_ENDPOINT | USES_SOURCE | USES_LENGTH | USES_CHECKSUM |
			MAY_BE_EMPTY,
	[DMP_OP_RECV] = KNOWN | USES_ENDPOINT | USES_TARGET | USES_LENGTH | USES_CHECKSUM,
	[DMP_OP_WRITE] = KNOWN | USES_ENDPOINT | USES_SOURCE | USES_TARGET | USES_LENGTH |
			 USES_CHECKSUM,
	[DMP_OP_WRITE_IMM] = KNOWN | USES_ENDPOINT | USES_SOURCE | USES_TARGET | USES_LENGTH |
			     USES_IMMEDIATE | USES_CHECKSUM,
	[DMP_OP_READ] = KNOWN | USES_ENDPOINT | USES_SOURCE | USES_TARGET | USES_LENGTH |
			USES_CHECKSUM,
};

static bool side_is_wrong(__u32 used, __u32 id, __u64 offset)
{
	return used ? id == 0 : (id != 0 || offset != 0);
}

int dmp_submission_check(const struct dmp_submission *submission, __u32 served)
{
	__u64 length = submission->length_bytes;
	__u32 rules;

	if (submission->operation >= OPERATIONS)
		return -EINVAL;
	rules = operations[submission->operation];
	if (!(rules & KNOWN) || (submission->flags & ~SUBMIT_FLAGS))
		return -EINVAL;
	if (!(served & (1U << submission->operation)))
		return -EOPNOTSUPP;
	if (!(rules & USES_ENDPOINT) != (submission->endpoint_id == 0) ||
	    side_is_wrong(rules & USES_SOURCE, submission->source_id,
			  submission->source_offset) ||
	    side_is_wrong(rules & USES_TARGET, submission->target_id,
			  submission->target_offset))
		return -EINVAL;
	if (!(rules & USES_IMMEDIATE) && submission->immediate != 0)
		return -EINVAL;
	if ((submission->flags & CHECKSUM_FLAGS) && !(rules & USES_CHECKSUM))
		return -EINVAL;
	if (!(submission->flags & DMP_SUBMIT_VERIFY) && submission->checksum != 0)
		return -EINVAL;
	if (!(rules & USES_LENGTH))
		return length == 0 ? 0 : -EINVAL;
	if (length == 0 && !(rules & MAY_BE_EMPTY))
		return -EINVAL;
	if ((rules & BY_WORDS) && ((submission->target_offset | length) & 3))
		return -EINVAL;
	if (submission->source_offset + length < length ||
	    submission->target_offset + length < length)
		return -EOVERFLOW;
	return 0;
}
