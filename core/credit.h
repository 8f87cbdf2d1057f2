/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * credit.h - the right to place messages and bytes at a peer
 *
 * Two ledgers face each other on every connection. The receiver decides how much
 * the sender may have outstanding and says so in cumulative totals; the sender
 * takes from what it was told before it sends.
 *
 *	granted = available + in_flight + completed	(slots and bytes, both sides)
 *
 *	             sender                          receiver
 *	granted      totals of the newest grant      totals told to the sender
 *	available    may be taken now                told, not yet arrived
 *	in_flight    taken, peer has not answered    arrived, room still occupied
 *	completed    answered by the peer            room free again
 *
 * The four numbers are kept apart and dmp_credit_check() adds them up, so that a
 * slip in any one operation shows.
 *
 * Grants carry the connection's epoch and a sequence. Totals are cumulative, so a
 * grant may be repeated, merged with a later one, or lost before a later one
 * without a difference; an older one that comes late is ignored; one of another
 * epoch is -ESTALE. Totals are 64 bits wide and are never reset within an epoch.
 *
 * The receiver owns the policy: it never grants beyond `window` of room, and it
 * speaks again when the sender is down to the low watermark, or when the high
 * watermark of room has come back, or when dmp_credit_flush() says that waiting
 * longer would only delay. All memory belongs to the caller; nothing is locked.
 */
#ifndef DMP_CORE_CREDIT_H
#define DMP_CORE_CREDIT_H

#include "types.h"

/* An amount of credit: messages, and the bytes they bring. */
struct dmp_credit_amount {
	__u64 slots;
	__u64 bytes;
};

struct dmp_credit {
	struct dmp_credit_amount granted;
	struct dmp_credit_amount available;
	struct dmp_credit_amount in_flight;
	struct dmp_credit_amount completed;
	__u64 sequence;		/* of the newest grant told or heard */
	__u32 epoch;
};

/* The sender's side: the ledger, and how often and how long it ran dry. */
struct dmp_credit_sender {
	struct dmp_credit ledger;
	__u64 stalls;
	__u64 stall_ns;
	__u64 stalled_since_ns;
	bool stalled;
};

/* The receiver's side: the ledger, and when to speak. */
struct dmp_credit_receiver {
	struct dmp_credit ledger;
	struct dmp_credit_amount window;	/* immutable after init */
	struct dmp_credit_amount low;		/* immutable after init */
	struct dmp_credit_amount high;		/* immutable after init */
	bool flush;		/* tell what there is, however little */
};

/* What a grant says. */
struct dmp_credit_grant {
	struct dmp_credit_amount total;
	__u64 sequence;
	__u32 epoch;
};

/* 0, or -EPROTO if the ledger does not add up. */
int dmp_credit_check(const struct dmp_credit *ledger);

void dmp_credit_sender_init(struct dmp_credit_sender *sender, __u32 epoch);

/*
 * Hear a grant. 0 if it was honoured or is an old one, -ESTALE for another epoch,
 * -EPROTO for a newer sequence with smaller totals or a known sequence with larger.
 */
int dmp_credit_hear(struct dmp_credit_sender *sender,
		    const struct dmp_credit_grant *grant);

/* Take credit for one message: -EAGAIN if there is not enough of either kind. */
int dmp_credit_take(struct dmp_credit_sender *sender, __u64 bytes);

/* Undo a take whose message never left: the credit can be used again. */
int dmp_credit_return(struct dmp_credit_sender *sender, __u64 bytes);

/* The peer has answered the message. -EPROTO if nothing such was in flight. */
int dmp_credit_complete(struct dmp_credit_sender *sender, __u64 bytes);

/* A message starts, or stops, to wait for credit. Both may be repeated. */
void dmp_credit_stall_begin(struct dmp_credit_sender *sender, __u64 now_ns);
void dmp_credit_stall_end(struct dmp_credit_sender *sender, __u64 now_ns);

/*
 * @window is the room the receiver sets aside, in messages and in bytes; both are
 * at least 1. Low is a quarter of it and high a half, rounded so that they part.
 */
int dmp_credit_receiver_init(struct dmp_credit_receiver *receiver, __u32 epoch,
			     struct dmp_credit_amount window);

/* A message has arrived: -EPROTO if the sender had no credit for it. */
int dmp_credit_arrive(struct dmp_credit_receiver *receiver, __u64 bytes);

/* The room of a message is free again. -EPROTO if nothing such was occupied. */
int dmp_credit_release(struct dmp_credit_receiver *receiver, __u64 bytes);

/* Room that was freed and not told yet. */
struct dmp_credit_amount
dmp_credit_untold(const struct dmp_credit_receiver *receiver);

/* True if a grant should be sent now (see the watermarks above). */
bool dmp_credit_due(const struct dmp_credit_receiver *receiver);

/* Make any untold room due; nothing happens if there is none. */
void dmp_credit_flush(struct dmp_credit_receiver *receiver);

/* Give all untold room to the sender and write what to tell it. */
void dmp_credit_tell(struct dmp_credit_receiver *receiver,
		     struct dmp_credit_grant *grant);

#endif /* DMP_CORE_CREDIT_H */
