/* SPDX-License-Identifier: MIT */
/*
 * fuzz.h - what the fuzzer knows about the plane it attacks
 *
 * Everything random comes from one generator, so a seed replays the same requests.
 * (What the plane's threads do between two of them is not in the fuzzer's hands.)
 * The fuzzer keeps a list of what it believes is alive, to ask for things that exist,
 * and frees all of it at the end: what the plane still counts then is a leak.
 */
#ifndef DMP_TESTS_FUZZ_H
#define DMP_TESTS_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "libdmaplane.h"

#define FUZZ_BUFFERS_MAX	64
#define FUZZ_CHANNELS_MAX	6
#define FUZZ_MAPPINGS_MAX	32
#define FUZZ_EXPORTS_MAX	32
#define FUZZ_REGIONS_MAX	32
#define FUZZ_LISTENERS_MAX	4
#define FUZZ_ARENA_BYTES	(1u << 20)

#define FAIL(...)								\
	do {									\
		fprintf(stderr, "fuzz: %s:%d: ", __FILE__, __LINE__);		\
		fprintf(stderr, __VA_ARGS__);					\
		fputc('\n', stderr);						\
		abort();							\
	} while (0)

struct fuzz_buffer {
	uint32_t id;
	uint64_t map_offset;
	uint64_t length_bytes;
};

struct fuzz_channel {
	uint32_t id;
	uint64_t map_offset;
	uint64_t map_bytes;
};

struct fuzz_mapping {
	void *address;
	size_t length_bytes;
};

struct fuzz {
	uint64_t random;
	struct dmp_plane *plane;
	struct fuzz_buffer buffers[FUZZ_BUFFERS_MAX];
	struct fuzz_channel channels[FUZZ_CHANNELS_MAX];
	struct fuzz_mapping mappings[FUZZ_MAPPINGS_MAX];
	int exports[FUZZ_EXPORTS_MAX];
	uint32_t regions[FUZZ_REGIONS_MAX];
	uint32_t listeners[FUZZ_LISTENERS_MAX];
	uint32_t buffer_count, channel_count, mapping_count, export_count;
	uint32_t region_count, listener_count;
	uint8_t *arena;			/* memory for kind USER, between two guards */
	uint8_t *guard;			/* structs end where this begins */
	int eventfd;
	uint64_t accepted, refused;	/* commands */
};

/* generator.c: random numbers, and structs that are wrong in a thousand ways */
uint64_t fuzz_random(struct fuzz *fuzz);
uint32_t fuzz_below(struct fuzz *fuzz, uint32_t end);
uint64_t fuzz_odd_value(struct fuzz *fuzz);
uint32_t fuzz_buffer_id(struct fuzz *fuzz);
uint32_t fuzz_channel_id(struct fuzz *fuzz);
uint32_t fuzz_region_id(struct fuzz *fuzz);
uint32_t fuzz_listener_id(struct fuzz *fuzz);
uint64_t fuzz_near_deadline(struct fuzz *fuzz);
unsigned int fuzz_make_request(struct fuzz *fuzz, uint8_t *request, size_t room,
			       uint32_t *length_bytes);

/* fuzz.c */
int fuzz_call(struct fuzz *fuzz, unsigned int command, const void *request,
	      uint32_t length_bytes, void *answer);
void fuzz_prove_service(struct fuzz *fuzz);

/* hostile.c: a user who writes what he likes into the rings */
void fuzz_hostile(struct fuzz *fuzz, uint64_t writes);

#endif /* DMP_TESTS_FUZZ_H */
