// SPDX-License-Identifier: MIT
/*
 * verbs.c - slots: the byte stream, repayment, completions, sleep; see verbs.h
 *
 * Invariants
 *  - sent - repaid <= slots of the peer; the last of them carries WAKE, and is not used while
 *    an earlier WAKE is unanswered. So who has none left always has a wake-up coming.
 *  - A slot is posted again before the word says that it is emptied.
 *  - One WAKE is answered by one WRITE WITH IMMEDIATE, and takes the one spare receive.
 *  - Every work request is counted in sends_out, words_out or piece_count until a completion
 *    stands for it; see verbs_layout.h.
 */
#ifdef DMP_VERBS
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>

#include "verbs_layout.h"

#define POLLED		16
#define TELL_PARTS	4u	/* repaid when this part of the slots has come together */
#define DEAF_NS		1000000u	/* a channel that never rests hears so late at worst */

int dmp_verbs_lose(struct dmp_verbs *verbs, int error)
{
	if (!verbs->lost)
		verbs->lost = error;
	return verbs->lost;
}

static __u8 *receive_slot(const struct dmp_verbs *verbs, __u32 slot)
{
	return verbs->memory + (size_t)slot * DMP_VERBS_SLOT_BYTES;
}

static __u8 *send_slot(const struct dmp_verbs *verbs, __u32 slot)
{
	return receive_slot(verbs, DMP_VERBS_RECEIVE_MAX + slot);
}

/* ---- receiving */

int dmp_verbs_post_receive(struct dmp_verbs *verbs, __u32 slot)
{
	struct ibv_sge place = {
		.addr = (uintptr_t)receive_slot(verbs, slot),
		.length = DMP_VERBS_SLOT_BYTES,
		.lkey = verbs->memory_mr->lkey,
	};
	struct ibv_recv_wr request = {
		.wr_id = DMP_VERBS_ID(DMP_VERBS_RECEIVED, slot), .sg_list = &place, .num_sge = 1,
	};
	struct ibv_recv_wr *refused;

	return ibv_post_recv(verbs->id->qp, &request, &refused) ? -ECONNRESET : 0;
}

static void arrived(struct dmp_verbs *verbs, __u32 slot, __u32 count)
{
	struct dmp_rdma_header header;
	struct dmp_verbs_inbox *inbox;

	verbs->connected = true;	/* rdma_cm may say so later than the peer's first slot */
	if (dmp_rdma_get_header(receive_slot(verbs, slot), count, &header)) {
		dmp_verbs_lose(verbs, -EPROTO);
		return;
	}
	inbox = header.kind == DMP_RDMA_STREAM ? &verbs->stream : &verbs->mail;
	inbox->entries[(inbox->first + inbox->count++) % DMP_VERBS_RECEIVE_MAX] =
		(struct dmp_verbs_arrived){
			.slot = slot,
			.length = header.length,
			.kind = header.kind,
			.flags = header.flags,
		};
}

/* The slot at the front has been read: it is the peer's again. */
static void empty_slot(struct dmp_verbs *verbs, struct dmp_verbs_inbox *inbox)
{
	struct dmp_verbs_arrived *front = &inbox->entries[inbox->first];

	if (front->flags & DMP_RDMA_WAKE)
		verbs->wake_asked = true;
	inbox->first = (inbox->first + 1) % DMP_VERBS_RECEIVE_MAX;
	inbox->count--;
	if (dmp_verbs_post_receive(verbs, front->slot))
		dmp_verbs_lose(verbs, -ECONNRESET);
	verbs->emptied++;
}

/* Enough is emptied to tell the peer, or it waits for that; and there is a place for the word. */
static bool owes_word(const struct dmp_verbs *verbs)
{
	return verbs->word_known && !verbs->lost && verbs->words_out != DMP_VERBS_WORDS &&
	       (verbs->wake_asked ||
		verbs->emptied - verbs->told >= DMP_VERBS_SLOTS / TELL_PARTS);
}

/* Tells the peer what is emptied: the word is written where it looks. */
static void repay(struct dmp_verbs *verbs)
{
	__u8 word[DMP_RDMA_WORD_BYTES];
	struct ibv_sge place = { .addr = (uintptr_t)word, .length = sizeof(word) };
	struct ibv_send_wr request = {
		.wr_id = DMP_VERBS_ID(DMP_VERBS_REPAID, 0),
		.sg_list = &place,
		.num_sge = 1,
		.opcode = verbs->wake_asked ? IBV_WR_RDMA_WRITE_WITH_IMM : IBV_WR_RDMA_WRITE,
		.send_flags = IBV_SEND_SIGNALED | IBV_SEND_INLINE,
		.wr.rdma = { .remote_addr = verbs->word_offset, .rkey = verbs->word_rkey },
	};
	struct ibv_send_wr *refused;

	if (!owes_word(verbs))
		return;
	dmp_rdma_put_word(verbs->emptied, word);
	if (ibv_post_send(verbs->id->qp, &request, &refused)) {
		dmp_verbs_lose(verbs, -ECONNRESET);
		return;
	}
	verbs->told = verbs->emptied;
	verbs->wake_asked = false;
	verbs->words_out++;
}

static ssize_t verbs_receive(struct dmp_fabric *fabric, const struct iovec *pieces, int count)
{
	struct dmp_verbs *verbs = dmp_verbs_of(fabric);
	size_t done = 0, at = 0;
	int number = 0;

	if (!verbs->stream.count)
		dmp_verbs_poll(verbs);
	while (verbs->stream.count && number < count) {
		struct dmp_verbs_arrived *front = &verbs->stream.entries[verbs->stream.first];
		size_t part = front->length - front->taken;

		if (part > pieces[number].iov_len - at)
			part = pieces[number].iov_len - at;
		memcpy((char *)pieces[number].iov_base + at,
		       receive_slot(verbs, front->slot) + DMP_RDMA_HEADER_BYTES + front->taken,
		       part);
		front->taken += (__u32)part;
		done += part;
		at += part;
		if (at == pieces[number].iov_len) {
			number++;
			at = 0;
		}
		if (front->taken == front->length)
			empty_slot(verbs, &verbs->stream);
	}
	repay(verbs);
	return done || !count ? (ssize_t)done : verbs->lost;
}

/* ---- sending */

/* Slots that may be filled now. */
static __u32 room(struct dmp_verbs *verbs)
{
	__u32 free_slots = DMP_VERBS_SLOTS - verbs->sends_out, left;
	const __u64 *word;

	left = verbs->peer_slots - (verbs->sent - verbs->repaid);
	if (left < 2) {
		word = (const __u64 *)send_slot(verbs, DMP_VERBS_SLOTS);
		if (dmp_rdma_get_word(le64toh(__atomic_load_n(word, __ATOMIC_ACQUIRE)),
				      verbs->sent, &verbs->repaid))
			dmp_verbs_lose(verbs, -EPROTO);
		left = verbs->peer_slots - (verbs->sent - verbs->repaid);
	}
	if (verbs->wake_out && left != 0)
		left--;
	if (!verbs->connected || verbs->lost)
		return 0;
	return left < free_slots ? left : free_slots;
}

/* The next slot to fill; room() is not 0. */
static __u8 *next_slot(struct dmp_verbs *verbs)
{
	return send_slot(verbs, verbs->sent % DMP_VERBS_SLOTS);
}

int dmp_verbs_ring(struct dmp_verbs *verbs, struct dmp_verbs_request *chain, __u32 *count)
{
	struct ibv_send_wr *refused;
	__u32 number, last = *count - 1;

	if (*count == 0)
		return 0;
	*count = 0;
	for (number = 0; number < last; number++)
		chain[number].request.next = &chain[number + 1].request;
	chain[last].request.next = NULL;
	if (ibv_post_send(verbs->id->qp, &chain[0].request, &refused))
		return dmp_verbs_lose(verbs, -ECONNRESET);
	return 0;
}

/* The next slot has @length bytes behind the header: it goes with the chain. */
static void chain_slot(struct dmp_verbs *verbs, __u8 kind, __u32 length)
{
	struct dmp_verbs_request *slot = &verbs->slots[verbs->slots_chained++];
	struct dmp_rdma_header header = { .kind = kind, .length = length };

	slot->place = (struct ibv_sge){
		.addr = (uintptr_t)next_slot(verbs),
		.length = DMP_RDMA_HEADER_BYTES + length,
		.lkey = verbs->memory_mr->lkey,
	};
	slot->request = (struct ibv_send_wr){
		.wr_id = DMP_VERBS_ID(DMP_VERBS_SENT, (__u64)(verbs->sent + 1)),
		.sg_list = &slot->place,
		.num_sge = 1,
		.opcode = IBV_WR_SEND,
	};
	if (slot->place.length <= verbs->inline_max)
		slot->request.send_flags |= IBV_SEND_INLINE;
	/* Nobody waits for a slot to have gone: a completion for each would wake him. */
	if ((verbs->sent + 1) % DMP_VERBS_SLOTS_SIGNAL == 0)
		slot->request.send_flags |= IBV_SEND_SIGNALED;
	if (verbs->peer_slots - (verbs->sent - verbs->repaid) == 1) {
		header.flags = DMP_RDMA_WAKE;
		verbs->wake_out = true;
	}
	dmp_rdma_put_header(&header, next_slot(verbs));
	verbs->sent++;
	verbs->sends_out++;
}

static int ring_slots(struct dmp_verbs *verbs)
{
	return dmp_verbs_ring(verbs, verbs->slots, &verbs->slots_chained);
}

int dmp_verbs_say(struct dmp_verbs *verbs, __u8 kind, const struct dmp_rdma_message *message)
{
	if (!room(verbs))
		return -EAGAIN;
	chain_slot(verbs, kind, dmp_rdma_put_message(kind, message, next_slot(verbs) +
						     DMP_RDMA_HEADER_BYTES));
	return ring_slots(verbs);
}

/* Where the peer is to repay us: the first slot of all. */
static bool is_set_up(struct dmp_verbs *verbs)
{
	struct dmp_rdma_message message = { .rkey = verbs->connected ? verbs->word_mr->rkey : 0 };

	if (!verbs->set_up && !dmp_verbs_say(verbs, DMP_RDMA_SETUP, &message))
		verbs->set_up = true;
	return verbs->set_up;
}

static ssize_t verbs_send(struct dmp_fabric *fabric, const struct iovec *pieces, int count)
{
	struct dmp_verbs *verbs = dmp_verbs_of(fabric);
	__u32 bytes = verbs->peer_slot_bytes - DMP_RDMA_HEADER_BYTES;
	size_t done = 0, at = 0;
	int number = 0;

	if (bytes > DMP_VERBS_SLOT_BYTES - DMP_RDMA_HEADER_BYTES)
		bytes = DMP_VERBS_SLOT_BYTES - DMP_RDMA_HEADER_BYTES;
	if (verbs->sends_out >= DMP_VERBS_SLOTS / 2)
		dmp_verbs_poll(verbs);
	while (number < count && is_set_up(verbs) && room(verbs)) {
		__u8 *slot = next_slot(verbs) + DMP_RDMA_HEADER_BYTES;
		__u32 filled = 0;

		while (filled < bytes && number < count) {
			size_t part = pieces[number].iov_len - at;

			if (part > bytes - filled)
				part = bytes - filled;
			memcpy(slot + filled, (const char *)pieces[number].iov_base + at, part);
			filled += (__u32)part;
			at += part;
			if (at == pieces[number].iov_len) {
				number++;
				at = 0;
			}
		}
		if (!filled)
			break;
		chain_slot(verbs, DMP_RDMA_STREAM, filled);
		done += filled;
	}
	if (ring_slots(verbs))
		return verbs->lost;
	verbs->wants_room = number < count;
	return done ? (ssize_t)done : verbs->lost;
}

/* ---- completions */

static void completed(struct dmp_verbs *verbs, const struct ibv_wc *completion)
{
	__u32 index = (__u32)completion->wr_id;

	if (completion->status != IBV_WC_SUCCESS) {
		dmp_verbs_lose(verbs, -ECONNRESET);
		return;
	}
	switch (completion->wr_id >> 32) {
	case DMP_VERBS_SENT:
		verbs->sends_out = verbs->sent - index;
		break;
	case DMP_VERBS_REPAID:
		verbs->words_out--;
		break;
	case DMP_VERBS_MOVED:
		verbs->pieces_done += index - verbs->moved;
		verbs->moved = index;
		verbs->letter_waits |= verbs->owed_count != 0;
		break;
	default:
		if (completion->opcode == IBV_WC_RECV_RDMA_WITH_IMM) {
			verbs->wake_out = false;
			if (dmp_verbs_post_receive(verbs, index))
				dmp_verbs_lose(verbs, -ECONNRESET);
		} else {
			arrived(verbs, index, completion->byte_len);
		}
		break;
	}
}

void dmp_verbs_poll(struct dmp_verbs *verbs)
{
	struct ibv_wc completions[POLLED];
	int count, number;

	if (!verbs->id->qp)
		return;
	do {
		count = ibv_poll_cq(verbs->cq, POLLED, completions);
		for (number = 0; number < count; number++)
			completed(verbs, &completions[number]);
	} while (count == POLLED);
	if (count < 0)
		dmp_verbs_lose(verbs, -ECONNRESET);
}

/* ---- sleep */

/* What waits for a slot is no work until there is one: a peer that repays nothing costs nothing. */
static bool has_work(struct dmp_verbs *verbs)
{
	bool letters = verbs->trusted && verbs->letter_waits;

	return verbs->lost || verbs->stream.count || verbs->pieces_done || owes_word(verbs) ||
	       (verbs->mail.count && verbs->trusted) ||
	       ((verbs->wants_room || letters) && room(verbs));
}

static bool verbs_ready(struct dmp_fabric *fabric)
{
	struct dmp_verbs *verbs = dmp_verbs_of(fabric);

	dmp_verbs_poll(verbs);
	return has_work(verbs);
}

/* Letters that came, in order, and those of ours that wait for a slot. */
static void handle_mail(struct dmp_verbs *verbs)
{
	while (verbs->mail.count && !verbs->lost) {
		const struct dmp_verbs_arrived *front = &verbs->mail.entries[verbs->mail.first];
		struct dmp_rdma_message message;

		if (dmp_rdma_get_message(front->kind, receive_slot(verbs, front->slot) +
					 DMP_RDMA_HEADER_BYTES, front->length, &message)) {
			dmp_verbs_lose(verbs, -EPROTO);
			return;
		}
		if (front->kind == DMP_RDMA_SETUP) {
			if (verbs->word_known)
				dmp_verbs_lose(verbs, -EPROTO);
			verbs->word_rkey = message.rkey;
			verbs->word_offset = message.offset;
			verbs->word_known = true;
		} else if (verbs->trusted) {
			dmp_verbs_read_letter(verbs, front->kind, &message);
		} else {
			break;
		}
		empty_slot(verbs, &verbs->mail);
	}
	verbs->letter_waits = !is_set_up(verbs) || dmp_verbs_write_letters(verbs);
}

/* The bell rings once for each time it is armed. */
static void hear_bell(struct dmp_verbs *verbs)
{
	struct ibv_cq *cq;
	void *owner;

	if (verbs->library->get_cq_event(verbs->bell, &cq, &owner))
		return;
	verbs->library->ack_cq_events(cq, 1);
	verbs->armed = false;
}

/* What made fabric->fd readable: it tells an edge, so all that is there is taken. */
static void hear(struct dmp_verbs *verbs)
{
	struct epoll_event said[2];
	int number, count, error = 0;

	verbs->heard_ns = dmp_now_ns();
	count = epoll_wait(verbs->fabric.fd, said, 2, 0);
	for (number = 0; number < count; number++) {
		if (said[number].data.fd == verbs->events->fd)
			error = dmp_verbs_hear_manager(verbs);
		else
			hear_bell(verbs);
	}
	if (error)
		dmp_verbs_lose(verbs, error);
}

static int verbs_drain(struct dmp_fabric *fabric)
{
	struct dmp_verbs *verbs = dmp_verbs_of(fabric);

	if (verbs->armed || !verbs->connected || dmp_now_ns() - verbs->heard_ns > DEAF_NS)
		hear(verbs);
	dmp_verbs_poll(verbs);
	handle_mail(verbs);
	repay(verbs);
	return verbs->lost;
}

static bool verbs_rest(struct dmp_fabric *fabric)
{
	struct dmp_verbs *verbs = dmp_verbs_of(fabric);

	if (!verbs->armed) {
		/* drain() looked at no edge while it was not armed. */
		hear(verbs);
		if (verbs->id->qp && ibv_req_notify_cq(verbs->cq, 0))
			dmp_verbs_lose(verbs, -ECONNRESET);
		verbs->armed = true;
	}
	dmp_verbs_poll(verbs);
	return !has_work(verbs);
}

const struct dmp_fabric_type dmp_verbs_type = {
	.path = DMP_PATH_VERBS,
	.direct = true,
	.send = verbs_send,
	.receive = verbs_receive,
	.ready = verbs_ready,
	.rest = verbs_rest,
	.drain = verbs_drain,
	.post = dmp_verbs_post,
	.push = dmp_verbs_push,
	.reap = dmp_verbs_reap,
	.finish = dmp_verbs_finish,
	.close = dmp_verbs_close,
};

#endif /* DMP_VERBS */
