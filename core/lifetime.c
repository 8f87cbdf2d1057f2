// SPDX-License-Identifier: GPL-2.0 OR MIT
/* lifetime.c - see lifetime.h */
#include "lifetime.h"

#define STATES (DMP_STATE_DEAD + 1)
#define TO(state) (1U << (state))

static const __u8 edges[STATES] = {
	[DMP_STATE_NONE] = TO(DMP_STATE_LIVE),
	[DMP_STATE_LIVE] = TO(DMP_STATE_DRAINING) | TO(DMP_STATE_REVOKED) | TO(DMP_STATE_DEAD),
	[DMP_STATE_DRAINING] = TO(DMP_STATE_REVOKED) | TO(DMP_STATE_DEAD),
	[DMP_STATE_REVOKED] = TO(DMP_STATE_DEAD),
	[DMP_STATE_DEAD] = 0,
};

int dmp_lifetime_move(__u32 *state, __u32 to)
{
	if (*state >= STATES || to >= STATES || !(edges[*state] & TO(to)))
		return -EPROTO;
	*state = to;
	return 0;
}

int dmp_lifetime_use(__u32 state)
{
	switch (state) {
	case DMP_STATE_LIVE:
		return 0;
	case DMP_STATE_DRAINING:
	case DMP_STATE_REVOKED:
		return -ESTALE;
	default:
		return -ENOENT;
	}
}
