/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * lifetime.h - the states of an object, as a table of legal edges
 *
 * NONE -> LIVE -> DRAINING -> DEAD, with LIVE -> DEAD for an object nothing holds and
 * REVOKED for one whose memory somebody else took away. States are DMP_STATE_*.
 * The caller serialises.
 */
#ifndef DMP_CORE_LIFETIME_H
#define DMP_CORE_LIFETIME_H

#include "dmaplane.h"
#include "types.h"

/* Moves along a legal edge; -EPROTO and unchanged otherwise. */
int dmp_lifetime_move(__u32 *state, __u32 to);

/* May it be used anew? 0, -ESTALE while it drains or is revoked, -ENOENT if it is not there. */
int dmp_lifetime_use(__u32 state);

#endif /* DMP_CORE_LIFETIME_H */
