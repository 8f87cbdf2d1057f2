/* SPDX-License-Identifier: MIT */
/*
 * region_table.h - what region.c asks of the table of slots
 *
 * See region.h for what peers ask of it. Any lock may be held.
 */
#ifndef DMP_REGION_TABLE_H
#define DMP_REGION_TABLE_H

#include "region.h"

/* Gives @region a slot and a generation; peers cannot use it yet. -ENOSPC, -ENOMEM, ... */
int dmp_region_take_slot(struct dmp_plane *plane, struct dmp_region *region);

/* Keeps peers out and gives the slot back. */
void dmp_region_give_slot(struct dmp_plane *plane, struct dmp_region *region);

/* The word of the slot on the board: the region's generation, or none. */
void dmp_region_let_in(struct dmp_plane *plane, const struct dmp_region *region);
void dmp_region_keep_out(struct dmp_plane *plane, const struct dmp_region *region);

/* The same, unless an admitted use holds the region: false, and nothing is changed. */
bool dmp_region_keep_out_if_idle(struct dmp_plane *plane, const struct dmp_region *region);

/* Writes the key of @region, DMP_KEY_BYTES with zeros behind it. How many bytes count. */
__u32 dmp_region_write_key(const struct dmp_plane *plane, const struct dmp_region *region,
			   __u8 *bytes);

#endif /* DMP_REGION_TABLE_H */
