// SPDX-License-Identifier: GPL-2.0 OR MIT
/* origin.c - see origin.h */
#include "origin.h"

/*
 * Prefixes of IPv6 networks that exist begin with other bits, and ::1 is 0, so the three
 * kinds do not meet. Nothing is hashed: nobody can choose an address that counts as another's.
 */
#define ORIGIN_IPV4	(1ULL << 32)
#define ORIGIN_USER	(2ULL << 32)

__u64 dmp_origin_of_ipv4(__u32 address)
{
	return ORIGIN_IPV4 | address;
}

static bool is_mapped_ipv4(const __u8 *bytes)
{
	unsigned int i;

	for (i = 0; i < 10; i++)
		if (bytes[i])
			return false;
	return bytes[10] == 0xff && bytes[11] == 0xff;
}

__u64 dmp_origin_of_ipv6(const __u8 address[16])
{
	__u64 prefix = 0;
	unsigned int i;

	if (is_mapped_ipv4(address))
		return ORIGIN_IPV4 | (__u64)address[12] << 24 | (__u64)address[13] << 16 |
		       (__u64)address[14] << 8 | address[15];
	for (i = 0; i < 8; i++)
		prefix = prefix << 8 | address[i];
	return prefix;
}

__u64 dmp_origin_of_user(__u32 uid)
{
	return ORIGIN_USER | uid;
}

static bool is_forgotten(const struct dmp_origin *row, __u64 now_ns)
{
	return row->boxed == 0 && row->failed_ns + DMP_FAILURE_FORGET_NS <= now_ns;
}

static struct dmp_origin *find(struct dmp_origins *origins, __u64 name)
{
	unsigned int i;

	for (i = 0; i < DMP_ORIGINS; i++)
		if (origins->rows[i].failed_ns != 0 && origins->rows[i].name == name)
			return &origins->rows[i];
	return NULL;
}

/* A row to write on: a free or forgotten one, else the one that failed longest ago. */
static struct dmp_origin *oldest(struct dmp_origins *origins)
{
	struct dmp_origin *chosen = NULL;
	unsigned int i;

	for (i = 0; i < DMP_ORIGINS; i++) {
		struct dmp_origin *row = &origins->rows[i];

		if (row->boxed == 0 && (!chosen || row->failed_ns < chosen->failed_ns))
			chosen = row;
	}
	return chosen;
}

int dmp_origin_arrive(struct dmp_origins *origins, __u64 name, __u64 now_ns, __u64 *until_ns)
{
	struct dmp_origin *row = find(origins, name);
	unsigned int doublings;
	__u64 penalty;

	*until_ns = 0;
	if (!row || row->failures < DMP_FAILURES_FREE || is_forgotten(row, now_ns))
		return 0;
	if (row->boxed >= DMP_BOXED_MAX)
		return -EAGAIN;
	doublings = row->failures - DMP_FAILURES_FREE;
	penalty = doublings < 8 ? DMP_PENALTY_MIN_NS << doublings : DMP_PENALTY_MAX_NS;
	if (penalty > DMP_PENALTY_MAX_NS)
		penalty = DMP_PENALTY_MAX_NS;
	if (row->next_ns < now_ns)
		row->next_ns = now_ns;
	row->next_ns += penalty;
	*until_ns = row->next_ns;
	row->boxed++;
	return 0;
}

void dmp_origin_unbox(struct dmp_origins *origins, __u64 name)
{
	struct dmp_origin *row = find(origins, name);

	if (row && row->boxed != 0)
		row->boxed--;
}

void dmp_origin_judge(struct dmp_origins *origins, __u64 name, bool proved, __u64 now_ns)
{
	struct dmp_origin *row = find(origins, name);

	if (proved) {
		if (row)
			row->failures = 0;
		return;
	}
	if (!row)
		row = oldest(origins);
	if (!row)	/* each row has somebody waiting: all are slowed down as it is */
		return;
	if (row->name != name || is_forgotten(row, now_ns)) {
		__builtin_memset(row, 0, sizeof(*row));
		row->name = name;
	}
	row->failed_ns = now_ns;
	row->failures++;
}

bool dmp_origin_is_clean(struct dmp_origins *origins, __u64 name)
{
	const struct dmp_origin *row = find(origins, name);

	return !row || row->failures < DMP_FAILURES_FREE;
}

void dmp_origin_serve(struct dmp_origins *origins, __u64 name)
{
	origins->served = name;
	origins->served_any = true;
}

bool dmp_origin_is_next(const struct dmp_origins *origins, __u64 name)
{
	return !origins->served_any || origins->served != name;
}
