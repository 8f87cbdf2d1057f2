/* SPDX-License-Identifier: MIT */
/*
 * assault.h - strangers and liars against a plane that listens
 *
 * Everything random of the attackers comes from one generator, so a seed sends the same
 * frames; when they arrive, and what the plane's threads do between two, it cannot say.
 *
 *	assault.c	the run
 *	victim.c	the plane that is attacked, and the connections that must not notice
 *	stranger.c	who has no secret: handshakes and sockets full of nonsense
 *	liar.c		who has one: a valid handshake, and then anything
 */
#ifndef DMP_TESTS_ASSAULT_H
#define DMP_TESTS_ASSAULT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "address.h"
#include "endpoint_layout.h"
#include "fabric.h"
#include "libdmaplane.h"
#include "proof.h"

#define FAIL(...)								\
	do {									\
		fprintf(stderr, "fuzz_wire: %s:%d: ", __FILE__, __LINE__);	\
		fprintf(stderr, __VA_ARGS__);					\
		fputc('\n', stderr);						\
		abort();							\
	} while (0)

#define SECOND_NS	1000000000ull
#define GRANTED_BYTES	65536u		/* of the region that liars may name */

struct assault {
	uint64_t random;
	uint64_t frames;		/* sent, whole or not */
	uint64_t handshakes;		/* of these, to begin with */
	uint64_t lies;			/* after a handshake that was valid */
	uint64_t let_in;
	uint32_t failures;		/* of our user at the shared-memory door, in a row */
	struct dmp_plane *plane;	/* the attackers'; fabrics want one */
	struct dmp_address address;	/* where the victim listens */
	struct dmp_secret secret;
	__u32 key_bytes;
	__u8 key[DMP_KEY_BYTES];	/* of the region that liars may name */
};

/* assault.c */
uint64_t assault_random(struct assault *assault);
uint32_t assault_below(struct assault *assault, uint32_t end);
uint64_t assault_odd_value(struct assault *assault);
void assault_garble(struct assault *assault, __u8 *bytes, uint32_t count);

/* Encoded bytes of a frame, with a CRC that is right whatever stands in them. */
void assault_seal(__u8 *bytes, uint32_t count);

/*
 * A fabric to the victim, or NULL. Who fails is slowed down by where he comes from: over tcp
 * each comes from another address, and our user does not fail twice in a row at the door.
 */
struct dmp_fabric *assault_dial(struct assault *assault, bool local);
bool assault_may_fail(struct assault *assault, bool local);

/* Words of a segment, of both sides, are changed. */
void assault_scribble(struct assault *assault, struct dmp_fabric *fabric, uint32_t changes);

/*
 * Ends a connection. Who says that he touches the other's memory is believed for as long as
 * his process lives, and ours goes on: so that is taken back.
 */
void assault_leave(struct dmp_fabric *fabric);

/* victim.c */
struct victim;
struct victim *victim_start(struct assault *assault);
void victim_prove_service(struct victim *victim, uint64_t seed);
void victim_settle(struct victim *victim);	/* until no attacker's endpoint is left */
uint64_t victim_accepted(struct victim *victim);
void victim_end(struct victim *victim);

/* stranger.c, liar.c: one connection each */
void stranger_visit(struct assault *assault);
void liar_visit(struct assault *assault);

#endif /* DMP_TESTS_ASSAULT_H */
