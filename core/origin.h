/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * origin.h - who failed to prove the secret, and how long he is kept waiting for it
 *
 * An origin is an IPv4 address, an IPv6 /64 (what one owner has) or, behind a unix door, a
 * user. After DMP_FAILURES_FREE failures, each within DMP_FAILURE_FORGET_NS of the one
 * before, arrivals of the origin are let through one by one, a penalty apart, and at most
 * DMP_BOXED_MAX of them wait for that. So a guesser gets at most one try per penalty, and
 * who knows the secret, but comes from the same origin, is let through after at most
 * DMP_BOXED_MAX * DMP_PENALTY_MAX_NS = 8 s once he waits. His proof ends the penalty.
 *
 * No lock and no clock in here: the caller has both.
 */
#ifndef DMP_CORE_ORIGIN_H
#define DMP_CORE_ORIGIN_H

#include "types.h"

#define DMP_ORIGINS		256U	/* remembered at once: a full table forgets the oldest */
#define DMP_FAILURES_FREE	3U
#define DMP_FAILURE_FORGET_NS	10000000000ULL
#define DMP_PENALTY_MIN_NS	100000000ULL
#define DMP_PENALTY_MAX_NS	2000000000ULL
#define DMP_BOXED_MAX		4U

struct dmp_origin {
	__u64 name;
	__u64 failed_ns;	/* the last time; 0: the row is free */
	__u64 next_ns;		/* when the next one may be let through */
	__u32 failures;
	__u32 boxed;		/* arrivals that wait now */
};

struct dmp_origins {
	struct dmp_origin rows[DMP_ORIGINS];
	__u64 served;		/* the last one whom ACCEPT took; valid if served_any */
	bool served_any;
};

/* Names: of an IPv4 address in host order, of the 16 bytes of an IPv6 address, of a user. */
__u64 dmp_origin_of_ipv4(__u32 address);
__u64 dmp_origin_of_ipv6(const __u8 address[16]);
__u64 dmp_origin_of_user(__u32 uid);

/*
 * Somebody came: 0 and, in *@until_ns, 0 or the time he has to wait for, boxed; -EAGAIN if
 * enough of them wait already.
 */
int dmp_origin_arrive(struct dmp_origins *origins, __u64 name, __u64 now_ns, __u64 *until_ns);

/* One who was boxed waits no more. */
void dmp_origin_unbox(struct dmp_origins *origins, __u64 name);

/* One who came from there proved the secret, or did not. */
void dmp_origin_judge(struct dmp_origins *origins, __u64 name, bool proved, __u64 now_ns);

/* Nobody who comes from there has to wait. */
bool dmp_origin_is_clean(struct dmp_origins *origins, __u64 name);

/*
 * ACCEPT takes one of them. Next it is the turn of others, if any wait: who says HELLO and
 * then lets ACCEPT wait, many times over, delays others by one such wait, not by all.
 */
void dmp_origin_serve(struct dmp_origins *origins, __u64 name);
bool dmp_origin_is_next(const struct dmp_origins *origins, __u64 name);

#endif /* DMP_CORE_ORIGIN_H */
