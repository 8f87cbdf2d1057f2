/* SPDX-License-Identifier: MIT */
/*
 * pair_talk.h - two queue pairs of dmaplane.ko talk to each other in one machine
 *
 * The module stands in for the endpoints above a pair: one thread drives both sides as an
 * executor would, and sleeps when both say that they rest, until one of them rings; if none
 * rings in time a wake-up was lost. What arrives is compared with what was sent.
 *
 * All that is declared here is the running case's, one at a time.
 */
#ifndef PAIR_TALK_H
#define PAIR_TALK_H

#include <linux/prandom.h>

#include "compat.h"
#include "rdma_pair.h"

#define RUN_MAX		20000U

/* Says where, once, and is the error. */
#define FAIL(error, format, ...) \
	talk_fail(error, "%s:%d: " format, __func__, __LINE__, ##__VA_ARGS__)
#define CHECK(condition) ((condition) ? 0 : FAIL(-EILSEQ, "%s", #condition))

struct side {
	struct dmp_pair *pair;
	struct dmp_pair_ringer ringer;
	struct dmp_pair_admission admission;
	/* what a key is worth here */
	struct dmp_memory *region;
	u64 region_offset;
	u64 region_length;
	u32 region_access;
	u32 region_slot;
	/* the stream */
	u64 to_put;
	u64 put;
	u64 got;
	int lost;
};

/* A memory, and what should be in it. */
struct place {
	struct dmp_memory *memory;
	u8 *shadow;
	u64 bytes;
};

extern struct side sides[2];
extern struct dmp_pair_door *door;
extern struct sockaddr_storage address;
extern struct rnd_state dice;
extern char said[512];

int talk_fail(int error, const char *format, ...) __printf(2, 3);
u32 talk_roll(u32 most);		/* 1 .. most */
u64 talk_after_ms(u32 ms);

int talk_meet(void);
void talk_part(u32 number);
int talk_turn(u32 which);		/* a bit for each side that is driven */
int talk_drive(u32 number, bool *went);
int talk_stream(u64 there, u64 back);	/* so many bytes more each way */

int talk_make_place(struct place *place, u32 kind, u64 bytes);
void talk_free_place(struct place *place);
void talk_open_region(const struct place *place, u64 offset, u32 access);
int talk_ask(struct dmp_pair_remote *remote, const char *key);
int talk_move_all(struct dmp_pair_move *move);
int talk_end_region(u32 drivers);
int talk_with_places(u32 kind, u32 kind_there, u64 bytes, u64 bytes_there, u64 offset,
		     u32 slices, u32 parts);
int talk_meddled(void);

#endif /* PAIR_TALK_H */
