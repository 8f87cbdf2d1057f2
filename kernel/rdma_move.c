// SPDX-License-Identifier: GPL-2.0
/*
 * rdma_move.c - RDMA WRITEs and READs, posted and reaped; see rdma_pair.h
 *
 * A piece is of one part of the peer's region and as long as the scatter entries of the queue
 * pair reach in the local memory. Pieces complete in the order in which they were posted.
 */
#include <linux/ktime.h>
#include <linux/minmax.h>

#include "rdma_layout.h"

/* The part that holds @offset; NULL if there is none: a remote that is not whole. */
static const struct dmp_pair_part *part_at(const struct dmp_pair_remote *remote, u64 offset)
{
	u32 first = 0, end = remote->count;

	while (end - first > 1) {
		u32 middle = first + (end - first) / 2;

		if (remote->parts[middle].from <= offset)
			first = middle;
		else
			end = middle;
	}
	if (first == end || offset - remote->parts[first].from >= remote->parts[first].length)
		return NULL;
	return &remote->parts[first];
}

static int post_piece(struct dmp_pair *pair, const struct dmp_pair_part *part,
		      struct dmp_pair_move *move, u64 length)
{
	struct ib_rdma_wr request = {
		.wr = {
			.wr_id = DMP_PAIR_ID(DMP_PAIR_MOVED, 0),
			.sg_list = pair->sges,
			.opcode = move->write ? IB_WR_RDMA_WRITE : IB_WR_RDMA_READ,
			.send_flags = IB_SEND_SIGNALED,
		},
		.remote_addr = part->base + (move->offset - part->from),
		.rkey = part->rkey,
	};
	struct dmp_pair_mapping *mapping = dmp_pair_map(pair, move->memory);
	int error = 0;

	if (IS_ERR(mapping))
		return PTR_ERR(mapping);
	if (!move->write && mapping->direction != DMA_BIDIRECTIONAL)
		error = -EPERM;
	if (!error) {
		request.wr.num_sge = dmp_pair_places(pair, mapping, move->local, &length,
						     pair->sges, move->write ? pair->places :
						     pair->places_read);
		if (ib_post_send(pair->id->qp, &request.wr, NULL))
			error = dmp_pair_lose(pair, -ECONNRESET);
	}
	/* The list keeps it: forget() is not called while a move is posted. */
	dmp_pair_unmap(pair, mapping);
	if (!error)
		move->length = length;
	return error;
}

int dmp_pair_post(struct dmp_pair *pair, struct dmp_pair_move *move, u64 tag)
{
	const struct dmp_pair_part *part = part_at(move->remote, move->offset);
	u64 length = min_t(u64, move->length, DMP_RDMA_PIECE_BYTES);
	int error;

	if (pair->lost)
		return pair->lost;
	if (!part || !length)
		return -EINVAL;
	if (dmp_pair_is_void(pair, part))
		return -ESTALE;
	if (!pair->connected || pair->piece_count == DMP_PAIR_MOVES ||
	    (pair->piece_count && pair->piece_bytes + length > pair->moving_max))
		return -EAGAIN;
	length = min(length, part->length - (move->offset - part->from));
	error = post_piece(pair, part, move, length);
	if (error)
		return error;
	pair->pieces[(pair->piece_first + pair->piece_count++) % DMP_PAIR_MOVES] =
		(struct dmp_pair_piece){
			.tag = tag, .length = move->length, .rkey = part->rkey,
			.posted_ns = ktime_get_ns(),
		};
	pair->piece_bytes += move->length;
	pair->counters.moves++;
	return 0;
}

bool dmp_pair_reap(struct dmp_pair *pair, u64 *tag, u64 *length)
{
	const struct dmp_pair_piece *piece = &pair->pieces[pair->piece_first];

	if (!pair->pieces_done)
		dmp_pair_poll(pair);
	/* Which of those that came back failed nobody says: the connection is over. */
	if (!pair->pieces_done || pair->lost)
		return false;
	*tag = piece->tag;
	*length = piece->length;
	pair->moving_max = dmp_rdma_pace(pair->moving_max, ktime_get_ns() - piece->posted_ns);
	pair->piece_first = (pair->piece_first + 1) % DMP_PAIR_MOVES;
	pair->piece_count--;
	pair->piece_bytes -= *length;
	pair->pieces_done--;
	return true;
}

bool dmp_pair_is_moving(const struct dmp_pair *pair, u32 rkey)
{
	u32 number;

	for (number = pair->pieces_done; number < pair->piece_count; number++)
		if (pair->pieces[(pair->piece_first + number) % DMP_PAIR_MOVES].rkey == rkey)
			return true;
	return false;
}
