// SPDX-License-Identifier: GPL-2.0
/*
 * rdma_pair.c - slots: put, get, flush, repayment, completions, sleep; see rdma_pair.h
 *
 * Invariants
 *  - sent - repaid <= slots of the peer; the last of them carries WAKE, and is not used while
 *    an earlier WAKE is unanswered. So who has none left always has a wake-up coming.
 *  - A slot is posted again before the word says that it is emptied.
 *  - One WAKE is answered by one WRITE WITH IMMEDIATE, and takes the one spare receive.
 *  - The slot that is being filled is the next to go out: a letter first sends it off.
 */
#include <linux/minmax.h>
#include <linux/string.h>

#include "rdma_layout.h"

#define TELL_PARTS	4U	/* repaid when this part of the slots has come together */

int dmp_pair_lose(struct dmp_pair *pair, int error)
{
	if (!pair->lost)
		pair->lost = error;
	return pair->lost;
}

void dmp_pair_ring(struct dmp_pair *pair)
{
	unsigned long flags;

	spin_lock_irqsave(&pair->bell_lock, flags);
	if (pair->ringer)
		pair->ringer->ring(pair->ringer);
	spin_unlock_irqrestore(&pair->bell_lock, flags);
}

void dmp_pair_watch(struct dmp_pair *pair, struct dmp_pair_ringer *ringer)
{
	unsigned long flags;

	spin_lock_irqsave(&pair->bell_lock, flags);
	pair->ringer = ringer;
	spin_unlock_irqrestore(&pair->bell_lock, flags);
	dmp_pair_ring(pair);	/* for what came before */
}

/* What rdma_cm has told. */
static void hear_news(struct dmp_pair *pair)
{
	/* Pairs with tell() in rdma_connect.c. */
	int news = smp_load_acquire(&pair->news);

	/* As above: the peer's hello is there. */
	if (smp_load_acquire(&pair->step) == DMP_PAIR_ESTABLISHED)
		pair->connected = true;
	if (news)
		dmp_pair_lose(pair, news);
}

/* ---- receiving */

int dmp_pair_post_receive(struct dmp_pair *pair, u32 slot)
{
	struct ib_sge place = {
		.addr = pair->receive[slot].bus,
		.length = DMP_PAIR_SLOT_BYTES,
		.lkey = pair->pd->local_dma_lkey,
	};
	struct ib_recv_wr request = {
		.wr_id = DMP_PAIR_ID(DMP_PAIR_RECEIVED, slot), .sg_list = &place, .num_sge = 1,
	};

	ib_dma_sync_single_for_device(pair->id->device, place.addr, place.length, DMA_FROM_DEVICE);
	if (ib_post_recv(pair->id->qp, &request, NULL))
		return -ECONNRESET;
	pair->receives_out++;
	return 0;
}

static void arrived(struct dmp_pair *pair, u32 slot, u32 count)
{
	struct dmp_rdma_header header;
	struct dmp_pair_inbox *inbox;

	pair->connected = true;		/* rdma_cm may say so later than the peer's first slot */
	ib_dma_sync_single_for_cpu(pair->id->device, pair->receive[slot].bus, DMP_PAIR_SLOT_BYTES,
				   DMA_FROM_DEVICE);
	if (dmp_rdma_get_header(pair->receive[slot].at, count, &header)) {
		dmp_pair_lose(pair, -EPROTO);
		return;
	}
	inbox = header.kind == DMP_RDMA_STREAM ? &pair->stream : &pair->mail;
	inbox->entries[(inbox->first + inbox->count++) % DMP_PAIR_RECEIVE_MAX] =
		(struct dmp_pair_arrived){
			.slot = slot,
			.length = header.length,
			.kind = header.kind,
			.flags = header.flags,
		};
	pair->counters.slots_received++;
}

/* The slot at the front has been read: it is the peer's again. */
static void empty_slot(struct dmp_pair *pair, struct dmp_pair_inbox *inbox)
{
	struct dmp_pair_arrived *front = &inbox->entries[inbox->first];

	if (front->flags & DMP_RDMA_WAKE)
		pair->wake_asked = true;
	inbox->first = (inbox->first + 1) % DMP_PAIR_RECEIVE_MAX;
	inbox->count--;
	if (dmp_pair_post_receive(pair, front->slot))
		dmp_pair_lose(pair, -ECONNRESET);
	pair->emptied++;
}

/* Enough is emptied to tell the peer, or it waits for that; and there is a place for the word. */
static bool owes_word(const struct dmp_pair *pair)
{
	return pair->word_known && !pair->lost && pair->words_out != DMP_PAIR_WORDS &&
	       (pair->wake_asked || pair->emptied - pair->told >= DMP_PAIR_SLOTS / TELL_PARTS);
}

/* Tells the peer what is emptied: the word is written where it looks. */
static void repay(struct dmp_pair *pair)
{
	u32 at = pair->words_sent % DMP_PAIR_WORDS * DMP_RDMA_WORD_BYTES;
	struct ib_sge place = {
		.addr = pair->words.bus + at,
		.length = DMP_RDMA_WORD_BYTES,
		.lkey = pair->pd->local_dma_lkey,
	};
	struct ib_rdma_wr request = {
		.wr = {
			.wr_id = DMP_PAIR_ID(DMP_PAIR_REPAID, 0),
			.sg_list = &place,
			.num_sge = 1,
			.opcode = pair->wake_asked ? IB_WR_RDMA_WRITE_WITH_IMM : IB_WR_RDMA_WRITE,
			.send_flags = IB_SEND_SIGNALED,
		},
		.remote_addr = pair->word_offset,
		.rkey = pair->word_rkey,
	};

	if (!owes_word(pair))
		return;
	dmp_rdma_put_word(pair->emptied, pair->words.at + at);
	ib_dma_sync_single_for_device(pair->id->device, place.addr, place.length, DMA_TO_DEVICE);
	if (ib_post_send(pair->id->qp, &request.wr, NULL)) {
		dmp_pair_lose(pair, -ECONNRESET);
		return;
	}
	pair->told = pair->emptied;
	pair->wake_asked = false;
	pair->words_sent++;
	pair->words_out++;
	pair->counters.repayments++;
}

static int run_in(const struct dmp_run *run, u64 at, const u8 *bytes, u32 length)
{
	if (run->memory)
		return dmp_copy_to(run->memory, run->offset + at, bytes, length) ? -EFAULT : 0;
	if (run->address)
		memcpy((u8 *)run->address + at, bytes, length);
	return 0;
}

ssize_t dmp_pair_get(struct dmp_pair *pair, const struct dmp_run *run)
{
	u64 done = 0;

	if (!pair->stream.count)
		dmp_pair_poll(pair);
	while (pair->stream.count && done < run->length) {
		struct dmp_pair_arrived *front = &pair->stream.entries[pair->stream.first];
		u32 part = min_t(u64, front->length - front->taken, run->length - done);
		int error = run_in(run, done, pair->receive[front->slot].at +
				   DMP_RDMA_HEADER_BYTES + front->taken, part);

		if (error)
			return done ? (ssize_t)done : error;
		front->taken += part;
		done += part;
		if (front->taken == front->length)
			empty_slot(pair, &pair->stream);
	}
	repay(pair);
	return done || !run->length ? (ssize_t)done : pair->lost;
}

/* ---- sending */

/* Slots that may be filled now. */
static u32 room(struct dmp_pair *pair)
{
	u32 free_slots = DMP_PAIR_SLOTS - pair->sends_out;
	u32 left = pair->peer_slots - (pair->sent - pair->repaid);

	if (!pair->connected || pair->lost)
		return 0;
	if (left < 2) {
		ib_dma_sync_single_for_cpu(pair->id->device, pair->word.bus, DMP_RDMA_WORD_BYTES,
					   DMA_FROM_DEVICE);
		if (dmp_rdma_get_word(le64_to_cpu(READ_ONCE(*(__le64 *)pair->word.at)), pair->sent,
				      &pair->repaid)) {
			dmp_pair_lose(pair, -EPROTO);
			return 0;
		}
		left = pair->peer_slots - (pair->sent - pair->repaid);
	}
	if (pair->wake_out && left != 0)
		left--;
	return min(left, free_slots);
}

/* The next slot to fill; room() is not 0. */
static struct dmp_pair_bytes *next_slot(struct dmp_pair *pair)
{
	return &pair->send[pair->sent % DMP_PAIR_SLOTS];
}

/* The next slot has @length bytes behind the header: off it goes. */
static int launch(struct dmp_pair *pair, u8 kind, u32 length)
{
	struct dmp_rdma_header header = { .kind = kind, .length = length };
	struct dmp_pair_bytes *slot = next_slot(pair);
	struct ib_sge place = {
		.addr = slot->bus,
		.length = DMP_RDMA_HEADER_BYTES + length,
		.lkey = pair->pd->local_dma_lkey,
	};
	struct ib_send_wr request = {
		.wr_id = DMP_PAIR_ID(DMP_PAIR_SENT, (u64)(pair->sent + 1)),
		.sg_list = &place,
		.num_sge = 1,
		.opcode = IB_WR_SEND,
	};

	/* Nobody waits for a slot to have gone: a completion for each would wake him. */
	if ((pair->sent + 1) % DMP_PAIR_SLOTS_SIGNAL == 0)
		request.send_flags = IB_SEND_SIGNALED;
	if (pair->peer_slots - (pair->sent - pair->repaid) == 1) {
		header.flags = DMP_RDMA_WAKE;
		pair->wake_out = true;
		pair->counters.wakes++;
	}
	dmp_rdma_put_header(&header, slot->at);
	ib_dma_sync_single_for_device(pair->id->device, place.addr, place.length, DMA_TO_DEVICE);
	if (ib_post_send(pair->id->qp, &request, NULL))
		return dmp_pair_lose(pair, -ECONNRESET);
	pair->sent++;
	pair->sends_out++;
	pair->counters.slots_sent++;
	return 0;
}

int dmp_pair_flush(struct dmp_pair *pair)
{
	u32 filled = pair->filled;

	if (pair->lost || !filled)
		return pair->lost;
	pair->filled = 0;
	return launch(pair, DMP_RDMA_STREAM, filled);
}

int dmp_pair_say(struct dmp_pair *pair, u8 kind, const struct dmp_rdma_message *message)
{
	u32 length;

	if (room(pair) < (pair->filled ? 2 : 1)) {
		pair->letter_waits = true;
		return -EAGAIN;
	}
	dmp_pair_flush(pair);
	length = dmp_rdma_put_message(kind, message, next_slot(pair)->at + DMP_RDMA_HEADER_BYTES);
	return launch(pair, kind, length);
}

/*
 * Where the peer is to repay us: the first slot of all. The registration is before it in the
 * send queue, so it is valid when the peer hears of it.
 */
static bool is_set_up(struct dmp_pair *pair)
{
	struct dmp_rdma_message message = { .offset = offset_in_page(pair->word.at) };

	if (pair->set_up || !room(pair))
		return pair->set_up;
	if (!pair->word_registered &&
	    dmp_pair_post_registration(pair, pair->word_mr,
				       IB_ACCESS_LOCAL_WRITE | IB_ACCESS_REMOTE_WRITE))
		return false;
	pair->word_registered = true;
	message.rkey = pair->word_mr->rkey;
	if (!dmp_pair_say(pair, DMP_RDMA_SETUP, &message))
		pair->set_up = true;
	return pair->set_up;
}

static int run_out(const struct dmp_run *run, u64 at, u8 *bytes, u32 length)
{
	if (run->memory)
		return dmp_copy_from(run->memory, run->offset + at, bytes, length) ? -EFAULT : 0;
	memcpy(bytes, (const u8 *)run->address + at, length);
	return 0;
}

ssize_t dmp_pair_put(struct dmp_pair *pair, const struct dmp_run *run)
{
	u32 bytes = min(pair->peer_slot_bytes, DMP_PAIR_SLOT_BYTES) - DMP_RDMA_HEADER_BYTES;
	u64 done = 0;
	int error = 0;

	if (pair->sends_out >= DMP_PAIR_SLOTS / 2)
		dmp_pair_poll(pair);
	pair->wants_room = false;
	while (done < run->length && !error) {
		u32 part = min_t(u64, run->length - done, bytes - pair->filled);

		if (!pair->filled && (!is_set_up(pair) || !room(pair))) {
			pair->wants_room = true;
			pair->counters.stalls += !pair->lost;
			break;
		}
		error = run_out(run, done, next_slot(pair)->at + DMP_RDMA_HEADER_BYTES +
				pair->filled, part);
		if (error)
			break;
		done += part;
		pair->filled += part;
		if (pair->filled == bytes)
			error = dmp_pair_flush(pair);
	}
	if (done || !run->length)
		return done;
	return error ? error : pair->lost;
}

/* ---- completions */

static void received(struct dmp_pair *pair, const struct ib_wc *completion)
{
	u32 slot = (u32)completion->wr_id;

	if (completion->opcode != IB_WC_RECV_RDMA_WITH_IMM) {
		arrived(pair, slot, completion->byte_len);
		return;
	}
	pair->wake_out = false;
	if (dmp_pair_post_receive(pair, slot))
		dmp_pair_lose(pair, -ECONNRESET);
}

static void completed(struct dmp_pair *pair, const struct ib_wc *completion)
{
	u64 what = completion->wr_id >> 32;
	bool good = completion->status == IB_WC_SUCCESS;

	if (!good)
		dmp_pair_lose(pair, -ECONNRESET);
	switch (what) {
	case DMP_PAIR_SENT:
		pair->sends_out = pair->sent - (u32)completion->wr_id;
		break;
	case DMP_PAIR_REPAID:
		pair->words_out--;
		break;
	case DMP_PAIR_MOVED:
		/* What is lost is counted by close() and given back by nobody. */
		pair->pieces_done++;
		pair->letter_waits |= dmp_pair_owes_revoked(pair);
		break;
	case DMP_PAIR_CHORE:
		dmp_pair_chore_done(pair);
		break;
	default:
		pair->receives_out--;
		if (good)
			received(pair, completion);
		break;
	}
}

void dmp_pair_poll(struct dmp_pair *pair)
{
	int count, number;

	do {
		count = ib_poll_cq(pair->cq, DMP_PAIR_POLLED, pair->completions);
		for (number = 0; number < count; number++)
			completed(pair, &pair->completions[number]);
	} while (count == DMP_PAIR_POLLED);
	if (count < 0)
		dmp_pair_lose(pair, -ECONNRESET);
}

/* ---- sleep */

static bool has_mail(const struct dmp_pair *pair)
{
	if (!pair->mail.count)
		return false;
	return pair->trusted || pair->mail.entries[pair->mail.first].kind == DMP_RDMA_SETUP;
}

static bool has_work(struct dmp_pair *pair)
{
	return pair->lost || pair->stream.count || has_mail(pair) || pair->pieces_done ||
	       pair->chores_done || owes_word(pair) ||
	       ((pair->wants_room || pair->letter_waits) && room(pair));
}

bool dmp_pair_is_ready(struct dmp_pair *pair)
{
	dmp_pair_poll(pair);
	hear_news(pair);
	return has_work(pair);
}

/* Letters that came, in order, and those of ours that wait for a slot. */
static void handle_mail(struct dmp_pair *pair)
{
	pair->letter_waits = false;
	while (pair->mail.count && !pair->lost) {
		const struct dmp_pair_arrived *front = &pair->mail.entries[pair->mail.first];
		struct dmp_rdma_message message;

		if (dmp_rdma_get_message(front->kind, pair->receive[front->slot].at +
					 DMP_RDMA_HEADER_BYTES, front->length, &message)) {
			dmp_pair_lose(pair, -EPROTO);
			return;
		}
		if (front->kind == DMP_RDMA_SETUP) {
			if (pair->word_known)
				dmp_pair_lose(pair, -EPROTO);
			pair->word_rkey = message.rkey;
			pair->word_offset = message.offset;
			pair->word_known = true;
		} else if (pair->trusted) {
			dmp_pair_read_letter(pair, front->kind, &message);
		} else {
			break;
		}
		empty_slot(pair, &pair->mail);
	}
	if (is_set_up(pair))
		dmp_pair_write_letters(pair);
}

int dmp_pair_serve(struct dmp_pair *pair)
{
	hear_news(pair);
	dmp_pair_poll(pair);
	handle_mail(pair);
	repay(pair);
	return pair->lost;
}

bool dmp_pair_rest(struct dmp_pair *pair)
{
	if (!READ_ONCE(pair->armed)) {
		/* Before it can ring, so that a ring is never lost. */
		WRITE_ONCE(pair->armed, true);
		if (ib_req_notify_cq(pair->cq, IB_CQ_NEXT_COMP) < 0)
			dmp_pair_lose(pair, -ECONNRESET);
	}
	dmp_pair_poll(pair);
	hear_news(pair);
	return !has_work(pair);
}

void dmp_pair_count(const struct dmp_pair *pair, struct dmp_pair_counters *counters)
{
	*counters = pair->counters;
}
