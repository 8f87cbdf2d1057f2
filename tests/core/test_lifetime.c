// SPDX-License-Identifier: MIT
/* test_lifetime.c - every edge of the state table, and that there is no other */
#include "check.h"
#include "lifetime.h"

static int legal(__u32 from, __u32 to)
{
	switch (from) {
	case DMP_STATE_NONE:
		return to == DMP_STATE_LIVE;
	case DMP_STATE_LIVE:
		return to == DMP_STATE_DRAINING || to == DMP_STATE_REVOKED || to == DMP_STATE_DEAD;
	case DMP_STATE_DRAINING:
		return to == DMP_STATE_REVOKED || to == DMP_STATE_DEAD;
	case DMP_STATE_REVOKED:
		return to == DMP_STATE_DEAD;
	default:
		return 0;
	}
}

int main(void)
{
	__u32 from, to;

	for (from = 0; from < 8; from++)
		for (to = 0; to < 8; to++) {
			__u32 state = from;
			int result = dmp_lifetime_move(&state, to);

			CHECK(result == (legal(from, to) ? 0 : -EPROTO));
			CHECK(state == (legal(from, to) ? to : from));
		}
	CHECK(dmp_lifetime_use(DMP_STATE_LIVE) == 0);
	CHECK(dmp_lifetime_use(DMP_STATE_DRAINING) == -ESTALE);
	CHECK(dmp_lifetime_use(DMP_STATE_REVOKED) == -ESTALE);
	CHECK(dmp_lifetime_use(DMP_STATE_NONE) == -ENOENT);
	CHECK(dmp_lifetime_use(DMP_STATE_DEAD) == -ENOENT);
	return 0;
}
