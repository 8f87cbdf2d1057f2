// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * credit.c - the credit ledger, see credit.h
 *
 * Invariant, slots and bytes each: granted = available + in_flight + completed.
 * Every function moves an amount from one column to its neighbour, or adds to
 * granted and available together; nothing else changes a column.
 */
#include "credit.h"

static bool amount_adds_up(__u64 granted, __u64 available, __u64 in_flight,
			   __u64 completed)
{
	__u64 sum;

	if (__builtin_add_overflow(available, in_flight, &sum))
		return false;
	if (__builtin_add_overflow(sum, completed, &sum))
		return false;
	return sum == granted;
}

int dmp_credit_check(const struct dmp_credit *ledger)
{
	if (!amount_adds_up(ledger->granted.slots, ledger->available.slots,
			    ledger->in_flight.slots, ledger->completed.slots))
		return -EPROTO;
	if (!amount_adds_up(ledger->granted.bytes, ledger->available.bytes,
			    ledger->in_flight.bytes, ledger->completed.bytes))
		return -EPROTO;
	return 0;
}

/* Move one message of @bytes between columns; false if @from does not hold it. */
static bool amount_move(struct dmp_credit_amount *from,
			struct dmp_credit_amount *to, __u64 bytes)
{
	if (from->slots < 1 || from->bytes < bytes)
		return false;
	from->slots -= 1;
	from->bytes -= bytes;
	to->slots += 1;
	to->bytes += bytes;
	return true;
}

static void ledger_init(struct dmp_credit *ledger, __u32 epoch)
{
	*ledger = (struct dmp_credit){ .epoch = epoch };
}

static void ledger_raise(struct dmp_credit *ledger,
			 const struct dmp_credit_amount *total)
{
	ledger->available.slots += total->slots - ledger->granted.slots;
	ledger->available.bytes += total->bytes - ledger->granted.bytes;
	ledger->granted = *total;
}

void dmp_credit_sender_init(struct dmp_credit_sender *sender, __u32 epoch)
{
	*sender = (struct dmp_credit_sender){ .stalled = false };
	ledger_init(&sender->ledger, epoch);
}

int dmp_credit_hear(struct dmp_credit_sender *sender,
		    const struct dmp_credit_grant *grant)
{
	struct dmp_credit *ledger = &sender->ledger;

	if (grant->epoch != ledger->epoch)
		return -ESTALE;
	if (grant->sequence < ledger->sequence)
		return 0;
	if (grant->total.slots < ledger->granted.slots ||
	    grant->total.bytes < ledger->granted.bytes)
		return -EPROTO;
	if (grant->sequence == ledger->sequence) {
		if (grant->total.slots != ledger->granted.slots ||
		    grant->total.bytes != ledger->granted.bytes)
			return -EPROTO;
		return 0;
	}
	ledger_raise(ledger, &grant->total);
	ledger->sequence = grant->sequence;
	return 0;
}

int dmp_credit_take(struct dmp_credit_sender *sender, __u64 bytes)
{
	struct dmp_credit *ledger = &sender->ledger;

	if (!amount_move(&ledger->available, &ledger->in_flight, bytes))
		return -EAGAIN;
	return 0;
}

int dmp_credit_return(struct dmp_credit_sender *sender, __u64 bytes)
{
	struct dmp_credit *ledger = &sender->ledger;

	if (!amount_move(&ledger->in_flight, &ledger->available, bytes))
		return -EPROTO;
	return 0;
}

int dmp_credit_complete(struct dmp_credit_sender *sender, __u64 bytes)
{
	struct dmp_credit *ledger = &sender->ledger;

	if (!amount_move(&ledger->in_flight, &ledger->completed, bytes))
		return -EPROTO;
	return 0;
}

void dmp_credit_stall_begin(struct dmp_credit_sender *sender, __u64 now_ns)
{
	if (sender->stalled)
		return;
	sender->stalled = true;
	sender->stalled_since_ns = now_ns;
	sender->stalls += 1;
}

void dmp_credit_stall_end(struct dmp_credit_sender *sender, __u64 now_ns)
{
	if (!sender->stalled)
		return;
	sender->stalled = false;
	if (now_ns > sender->stalled_since_ns)
		sender->stall_ns += now_ns - sender->stalled_since_ns;
}

static __u64 half(__u64 window)
{
	return window > 1 ? window / 2 : 1;
}

int dmp_credit_receiver_init(struct dmp_credit_receiver *receiver, __u32 epoch,
			     struct dmp_credit_amount window)
{
	if (!window.slots || !window.bytes)
		return -EINVAL;
	*receiver = (struct dmp_credit_receiver){
		.window = window,
		.low = { window.slots / 4, window.bytes / 4 },
		.high = { half(window.slots), half(window.bytes) },
	};
	ledger_init(&receiver->ledger, epoch);
	return 0;
}

int dmp_credit_arrive(struct dmp_credit_receiver *receiver, __u64 bytes)
{
	struct dmp_credit *ledger = &receiver->ledger;

	if (!amount_move(&ledger->available, &ledger->in_flight, bytes))
		return -EPROTO;
	return 0;
}

int dmp_credit_release(struct dmp_credit_receiver *receiver, __u64 bytes)
{
	struct dmp_credit *ledger = &receiver->ledger;

	if (!amount_move(&ledger->in_flight, &ledger->completed, bytes))
		return -EPROTO;
	return 0;
}

struct dmp_credit_amount
dmp_credit_untold(const struct dmp_credit_receiver *receiver)
{
	const struct dmp_credit *ledger = &receiver->ledger;
	struct dmp_credit_amount untold;

	/* What is outstanding (granted - completed) never exceeds the window. */
	untold.slots = receiver->window.slots -
		       (ledger->granted.slots - ledger->completed.slots);
	untold.bytes = receiver->window.bytes -
		       (ledger->granted.bytes - ledger->completed.bytes);
	return untold;
}

bool dmp_credit_due(const struct dmp_credit_receiver *receiver)
{
	const struct dmp_credit *ledger = &receiver->ledger;
	struct dmp_credit_amount untold = dmp_credit_untold(receiver);

	if (!untold.slots && !untold.bytes)
		return false;
	if (receiver->flush)
		return true;
	if (untold.slots && ledger->available.slots <= receiver->low.slots)
		return true;
	if (untold.bytes && ledger->available.bytes <= receiver->low.bytes)
		return true;
	return untold.slots >= receiver->high.slots ||
	       untold.bytes >= receiver->high.bytes;
}

void dmp_credit_flush(struct dmp_credit_receiver *receiver)
{
	struct dmp_credit_amount untold = dmp_credit_untold(receiver);

	receiver->flush = untold.slots || untold.bytes;
}

void dmp_credit_tell(struct dmp_credit_receiver *receiver,
		     struct dmp_credit_grant *grant)
{
	struct dmp_credit *ledger = &receiver->ledger;
	struct dmp_credit_amount untold = dmp_credit_untold(receiver);
	struct dmp_credit_amount total;

	total.slots = ledger->granted.slots + untold.slots;
	total.bytes = ledger->granted.bytes + untold.bytes;
	ledger_raise(ledger, &total);
	if (untold.slots || untold.bytes)
		ledger->sequence += 1;
	receiver->flush = false;
	grant->total = total;
	grant->sequence = ledger->sequence;
	grant->epoch = ledger->epoch;
}
