/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * errand.h - MOVE and COPY of an endpoint's machine, from the request to the answer
 *
 * A plane carries errands out and notes here how far it came. It does so itself (`done` alone
 * grows), or gives parts of them to a device (`posted` grows, `done` follows when the device
 * gives them back). Both in order; answers go out in order as well.
 *
 * Invariants
 *  - done <= posted <= length where a device moves; posted == 0 where the plane does.
 *  - Only what a device has cannot be dropped. So L5: after drop() has answered 0 nothing
 *    touches the buffer, and after -EINPROGRESS nothing more is given to the device.
 *
 * No lock, no memory of its own: the ring is the caller's, and so is the order of calls.
 */
#ifndef DMP_CORE_ERRAND_H
#define DMP_CORE_ERRAND_H

#include "endpoint.h"

struct dmp_errand {
	__u64 tag;
	__u64 length;
	__u64 done;
	__u64 posted;		/* to a device that moves by itself; done or under way */
	__u64 summed;		/* bytes that `checksum` covers, where it is made in parts */
	__u32 kind;		/* DMP_REQUEST_MOVE or COPY */
	__u32 index;		/* of the channel's operation: the low half of `local` */
	__u32 stage;		/* COPY */
	__u32 checksum;
	__s32 result;
	bool stopped;		/* no more is posted; STOP waits for what is under way */
};

struct dmp_errands {
	struct dmp_errand *ring;
	__u32 room;		/* as many as the machine can have asked for */
	__u32 first;
	__u32 count;
	bool wait;		/* for completions of a device, and for nothing else */
};

void dmp_errands_init(struct dmp_errands *errands, struct dmp_errand *ring, __u32 room);

void dmp_errands_add(struct dmp_errands *errands, const struct dmp_endpoint_request *request);

/* The one at place @number, which is below `count`. */
static inline struct dmp_errand *dmp_errands_at(const struct dmp_errands *errands, __u32 number)
{
	return &errands->ring[(errands->first + number) % errands->room];
}

/*
 * The device gives back @length bytes of @tag. It does so in the order in which it was given
 * them, so a walk over what it gives back begins with *@number 0. -ENOENT: nobody asked.
 */
int dmp_errands_give_back(struct dmp_errands *errands, __u32 *number, __u64 tag, __u64 length);

/* Carried out, failed or stopped, and nothing of it is under way. */
bool dmp_errand_is_over(const struct dmp_errand *errand);

/*
 * Lets go of @tag's buffer. 0: at once, and no answer follows. -EINPROGRESS: a device has it,
 * take() answers STOP or, if all was done by then, the errand. -ENOENT: it is no errand.
 */
int dmp_errands_drop(struct dmp_errands *errands, __u64 tag);

/* Does a STOP wait for the device? */
bool dmp_errands_is_stopping(const struct dmp_errands *errands);

/* Takes the first one, which is over: what it was, and the answer to the machine. */
void dmp_errands_take(struct dmp_errands *errands, struct dmp_errand *errand,
		      struct dmp_endpoint_answer *answer);

#endif /* DMP_CORE_ERRAND_H */
