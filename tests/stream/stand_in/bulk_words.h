/* SPDX-License-Identifier: MIT */
/*
 * The bulk copy unit for a processor: what bulk_words.cu is on a device.
 *
 * It does what it is asked at the worst moment it may: a load at once or not before its gate is
 * waited for, a store not before somebody waits for it. So a slot that is filled too early,
 * or emptied without waiting, shows as wrong bytes. A gate that would never open is an abort.
 */
#ifndef STAND_IN_BULK_WORDS_H
#define STAND_IN_BULK_WORDS_H

#include "lanes.h"

u32 shared_room(void);
void gate_make(u32 gate);
void gates_made(void);
void gate_wait(u32 gate, u32 parity);
void bulk_load(u32 room, u64 from, u32 bytes, u32 gate);
void bulk_store(u64 to, u32 room, u32 bytes);
void stores_left(u32 left);

template <int LEFT> inline void stores_have_read(void)
{
	stores_left(LEFT);
}

inline void stores_done(void)
{
	stores_left(0);
}

#endif
