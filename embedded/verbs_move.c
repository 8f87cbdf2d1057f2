// SPDX-License-Identifier: MIT
/*
 * verbs_move.c - RDMA WRITEs and READs, and registrations of local buffers; see verbs.h
 *
 * A buffer is registered whole, when it is first used on this connection, and until it or the
 * connection goes. Pieces complete in the order in which they were posted, several at a time.
 */
#ifdef DMP_VERBS
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>

#include "verbs_layout.h"

static struct ibv_mr *find_local(const struct dmp_verbs *verbs, __u32 buffer_id)
{
	__u32 number;

	for (number = verbs->local_count; number-- != 0;)
		if (verbs->locals[number].buffer_id == buffer_id)
			return verbs->locals[number].mr;
	return NULL;
}

/* What is read only is only sent. */
static int register_local(struct dmp_verbs *verbs, struct dmp_buffer *buffer, struct ibv_mr **mr)
{
	const struct dmp_verbs_range range = {
		.memory = &buffer->memory,
		.length = buffer->memory.length,
		.iova = (uintptr_t)buffer->memory.address,
		.access = buffer->memory.read_only ? 0 : IBV_ACCESS_LOCAL_WRITE,
	};

	__atomic_store_n(&buffer->registered, true, __ATOMIC_SEQ_CST);
	return dmp_verbs_register(verbs, &range, mr);
}

static int local_key(struct dmp_verbs *verbs, struct dmp_buffer *buffer, __u32 *lkey)
{
	struct dmp_verbs_local *more;
	struct ibv_mr *mr;
	int error = 0;

	pthread_mutex_lock(&verbs->locals_lock);
	mr = find_local(verbs, buffer->object.id);
	if (!mr) {
		more = realloc(verbs->locals, (verbs->local_count + 1) * sizeof(*more));
		if (more)
			verbs->locals = more;
		error = more ? register_local(verbs, buffer, &mr) : -ENOMEM;
		if (!error)
			verbs->locals[verbs->local_count++] = (struct dmp_verbs_local){
				.mr = mr, .buffer_id = buffer->object.id,
			};
	}
	if (!error)
		*lkey = mr->lkey;
	pthread_mutex_unlock(&verbs->locals_lock);
	return error;
}

ssize_t dmp_verbs_post(struct dmp_fabric *fabric, const struct dmp_move *move, __u64 tag)
{
	struct dmp_verbs *verbs = dmp_verbs_of(fabric);
	const struct dmp_remote_part *part = dmp_verbs_part(move->remote, move->offset);
	__u64 within = move->offset - part->offset;
	__u64 length = move->length < part->length - within ? move->length : part->length - within;
	struct dmp_verbs_request *piece = &verbs->moves[verbs->moves_chained];
	__u32 lkey = 0;
	int error;

	if (verbs->lost)
		return verbs->lost;
	if (dmp_verbs_is_void(verbs, part))
		return -ESTALE;
	if (verbs->piece_count == DMP_VERBS_MOVES ||
	    (verbs->piece_count != 0 &&
	     verbs->piece_bytes + length > verbs->moving_max))
		return -EAGAIN;
	error = local_key(verbs, move->buffer, &lkey);
	if (error)
		return error;
	piece->place = (struct ibv_sge){
		.addr = (uintptr_t)move->local, .length = (__u32)length, .lkey = lkey,
	};
	piece->request = (struct ibv_send_wr){
		.wr_id = DMP_VERBS_ID(DMP_VERBS_MOVED, (__u64)++verbs->posted),
		.sg_list = &piece->place,
		.num_sge = 1,
		.opcode = move->write ? IBV_WR_RDMA_WRITE : IBV_WR_RDMA_READ,
		.wr.rdma = { .remote_addr = part->base + within, .rkey = part->rkey },
	};
	verbs->moves_chained++;
	verbs->bytes_quiet += length;
	if (++verbs->moves_quiet == DMP_VERBS_MOVES_SIGNAL ||
	    verbs->bytes_quiet >= DMP_VERBS_BYTES_SIGNAL) {
		piece->request.send_flags |= IBV_SEND_SIGNALED;
		verbs->moves_quiet = 0;
		verbs->bytes_quiet = 0;
	}
	verbs->pieces[(verbs->piece_first + verbs->piece_count++) % DMP_VERBS_MOVES] =
		(struct dmp_verbs_piece){
			.tag = tag, .length = length, .rkey = part->rkey,
			.posted_ns = dmp_now_ns(),
		};
	verbs->piece_bytes += length;
	return (ssize_t)length;
}

void dmp_verbs_push(struct dmp_fabric *fabric)
{
	struct dmp_verbs *verbs = dmp_verbs_of(fabric);

	verbs->moves_quiet = 0;
	verbs->bytes_quiet = 0;
	if (verbs->moves_chained != 0)
		verbs->moves[verbs->moves_chained - 1].request.send_flags |= IBV_SEND_SIGNALED;
	dmp_verbs_ring(verbs, verbs->moves, &verbs->moves_chained);
}

bool dmp_verbs_reap(struct dmp_fabric *fabric, __u64 *tag, __u64 *length)
{
	struct dmp_verbs *verbs = dmp_verbs_of(fabric);
	const struct dmp_verbs_piece *piece = &verbs->pieces[verbs->piece_first];

	if (!verbs->pieces_done)
		dmp_verbs_poll(verbs);
	if (!verbs->pieces_done)
		return false;
	*tag = piece->tag;
	*length = piece->length;
	verbs->moving_max = dmp_rdma_pace(verbs->moving_max, dmp_now_ns() - piece->posted_ns);
	verbs->piece_first = (verbs->piece_first + 1) % DMP_VERBS_MOVES;
	verbs->piece_count--;
	verbs->piece_bytes -= *length;
	verbs->pieces_done--;
	return true;
}

void dmp_verbs_forget(struct dmp_fabric *fabric, __u32 buffer_id)
{
	struct dmp_verbs *verbs = dmp_verbs_of(fabric);
	__u32 number;

	pthread_mutex_lock(&verbs->locals_lock);
	for (number = 0; number < verbs->local_count; number++) {
		if (verbs->locals[number].buffer_id != buffer_id)
			continue;
		verbs->library->dereg_mr(verbs->locals[number].mr);
		verbs->locals[number] = verbs->locals[--verbs->local_count];
		break;
	}
	pthread_mutex_unlock(&verbs->locals_lock);
}

void dmp_verbs_free_locals(struct dmp_verbs *verbs)
{
	while (verbs->local_count != 0)
		verbs->library->dereg_mr(verbs->locals[--verbs->local_count].mr);
	free(verbs->locals);
}

#endif /* DMP_VERBS */
