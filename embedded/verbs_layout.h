/* SPDX-License-Identifier: MIT */
/*
 * verbs_layout.h - what a verbs fabric is made of, for its own files only
 *
 * Counting, so that no queue overflows. In the send queue are at most SLOTS slots, MOVES
 * pieces of moves and WORDS repayments; in the receive queue SLOTS + 1; the completion
 * queue has room for all of them.
 *
 * Slots and pieces go out in chains, one doorbell each. Of a chain of pieces every n-th is
 * signalled, and always the last one. Of slots every n-th there ever is: of n in a row one
 * is, so fewer than n are without a completion behind them when all is quiet. A completion
 * names the last slot, or piece, it stands for; who was posted before is done with it, since
 * a queue pair completes in order. Until then all of them count as in the queue. Between two
 * calls of the fabric no chain is left unposted. The end adds one request, see finish().
 */
#ifndef DMP_VERBS_LAYOUT_H
#define DMP_VERBS_LAYOUT_H

#include <pthread.h>

#include "rdma.h"
#include "verbs.h"
#include "verbs_library.h"

#ifdef DMP_VERBS

#define DMP_VERBS_SLOTS		32u
#define DMP_VERBS_SLOT_BYTES	8192u
#define DMP_VERBS_MOVES		64u
#define DMP_VERBS_WORDS		8u
#define DMP_VERBS_SEND_MAX	(DMP_VERBS_SLOTS + DMP_VERBS_MOVES + DMP_VERBS_WORDS + 1u)
#define DMP_VERBS_RECEIVE_MAX	(DMP_VERBS_SLOTS + 1u)
#define DMP_VERBS_PAGE		4096u
#define DMP_VERBS_INLINE	256u	/* wished for: a small frame is posted without its slot */
#define DMP_VERBS_SLOTS_SIGNAL	8u	/* each so many-th is signalled */
#define DMP_VERBS_MOVES_SIGNAL	16u
#define DMP_VERBS_BYTES_SIGNAL	(256u << 10)	/* or after so many bytes */

/* What a completion is about: the high half of wr_id. */
#define DMP_VERBS_SENT		1ull
#define DMP_VERBS_REPAID	2ull
#define DMP_VERBS_MOVED		3ull
#define DMP_VERBS_RECEIVED	4ull
#define DMP_VERBS_ID(what, index) ((what) << 32 | (index))

/* A slot that came in and is not emptied. */
struct dmp_verbs_arrived {
	__u32 slot;
	__u32 length;		/* behind the header */
	__u32 taken;
	__u8 kind;
	__u8 flags;
};

/* A first-in first-out of slots. */
struct dmp_verbs_inbox {
	struct dmp_verbs_arrived entries[DMP_VERBS_RECEIVE_MAX];
	__u32 first;
	__u32 count;
};

struct dmp_verbs_piece {
	__u64 tag;
	__u64 length;
	__u64 posted_ns;
	__u32 rkey;
};

/* A request of a chain. */
struct dmp_verbs_request {
	struct ibv_send_wr request;
	struct ibv_sge place;
};

/* A local buffer, registered for this connection. */
struct dmp_verbs_local {
	struct ibv_mr *mr;
	__u32 buffer_id;
};

/* A region of ours that the peer was granted, or a part of one. */
struct dmp_verbs_grant {
	struct ibv_mr *mr;	/* NULL: revoked and deregistered, and the peer is not told yet */
	__u32 rkey;
	__u64 from;		/* in the region */
	__u64 length;
	__u64 base;		/* what the rkey calls `from` */
	__u64 due_ns;		/* revoked: the peer has until then */
	__u32 slot;
	__u32 generation;
	bool revoked;
	bool told;
};

/* An rkey of the peer's that is not revoked, and the number of the answer that brought it. */
struct dmp_verbs_granted {
	__u32 rkey;
	__u32 first;
};

struct dmp_verbs {
	struct dmp_fabric fabric;	/* fd: an epoll of the bell and of rdma_cm's events */
	const struct dmp_verbs_library *library;
	struct dmp_plane *plane;
	struct rdma_event_channel *events;
	struct rdma_cm_id *id;
	struct ibv_pd *pd;
	struct ibv_comp_channel *bell;
	struct ibv_cq *cq;
	__u8 *memory;			/* slots to receive, slots to send, then the page of the word */
	struct ibv_mr *memory_mr;
	struct ibv_mr *word_mr;
	bool connected;			/* there is a queue pair that can send */
	bool armed;			/* the bell will ring, or has rung and nobody heard it */
	__u64 heard_ns;			/* when the bell and the manager were last asked */
	bool trusted;			/* the peer has proved the secret: its letters are read */

	/* sending */
	__u32 peer_slots;
	__u32 peer_slot_bytes;
	__u32 sent;
	__u32 repaid;			/* of what was sent */
	__u32 sends_out;		/* posted, no completion stands for them */
	struct dmp_verbs_request slots[DMP_VERBS_SLOTS];
	__u32 slots_chained;
	__u32 inline_max;		/* bytes that go without a slot */
	bool set_up;			/* our SETUP is sent */
	bool wake_out;			/* a slot with WAKE is not answered */
	bool wants_room;		/* verbs_send's: bytes of the stream wait */
	bool letter_waits;		/* handle_mail's: a letter of ours does */

	/* receiving */
	struct dmp_verbs_inbox stream;
	struct dmp_verbs_inbox mail;	/* for drain(), which has the lock */
	__u32 emptied;
	__u32 told;
	__u32 words_out;
	__u32 word_rkey;		/* of the peer's word */
	__u64 word_offset;
	bool word_known;
	bool wake_asked;		/* the peer sleeps until it is repaid */

	/* moves */
	struct dmp_verbs_piece pieces[DMP_VERBS_MOVES];
	__u32 piece_first;
	__u32 piece_count;		/* posted, not reaped */
	__u32 pieces_done;		/* of these, completed */
	__u64 piece_bytes;		/* posted, not reaped */
	__u32 moving_max;		/* how many that may be: dmp_rdma_pace() */
	struct dmp_verbs_request moves[DMP_VERBS_MOVES];
	__u32 moves_chained;
	__u32 moves_quiet;		/* since the last that was signalled */
	__u64 bytes_quiet;
	__u32 posted;			/* number of the last piece */
	__u32 moved;			/* of the last that is completed */
	pthread_mutex_t locals_lock;	/* a leaf */
	struct dmp_verbs_local *locals;
	__u32 local_count;

	/* regions; channel->lock */
	struct dmp_verbs_grant *grants;
	__u32 grant_count;
	__u32 untold;			/* revoked, and the peer does not know */
	__u64 mr_bytes_max;		/* the device registers no more at once */
	struct dmp_verbs_granted *granted;	/* by rkey */
	__u32 granted_count;
	__u32 granted_room;
	__u32 *owed;			/* rkeys that were revoked, and REVOKED is not said: in order */
	__u32 owed_first;
	__u32 owed_count;
	__u32 owed_room;
	struct dmp_remote_part *parts;	/* of what is being imported */
	__u32 part_count;
	__u32 asked;			/* the number of the last question */
	__u32 revokes;			/* that came */
	bool ask_waits;			/* it is not sent yet */
	struct dmp_rdma_message question;	/* the peer's last, */
	bool question_waits;		/* not answered */
	bool answered;
	struct dmp_rdma_message ask;
	struct dmp_rdma_message answer;

	int lost;
};

static inline struct dmp_verbs *dmp_verbs_of(struct dmp_fabric *fabric)
{
	return (struct dmp_verbs *)fabric;
}

/* verbs.c */
extern const struct dmp_fabric_type dmp_verbs_type;
int dmp_verbs_post_receive(struct dmp_verbs *verbs, __u32 slot);
void dmp_verbs_poll(struct dmp_verbs *verbs);
/* A message in a slot of its own: -EAGAIN, there is no slot now. */
int dmp_verbs_say(struct dmp_verbs *verbs, __u8 kind, const struct dmp_rdma_message *message);
int dmp_verbs_lose(struct dmp_verbs *verbs, int error);
/* Posts @count requests with one doorbell. */
int dmp_verbs_ring(struct dmp_verbs *verbs, struct dmp_verbs_request *chain, __u32 *count);

/* verbs_ladder.c. A range of a buffer's memory; the first byte is to be called @iova. */
struct dmp_verbs_range {
	const struct dmp_memory *memory;
	__u64 offset;
	__u64 length;
	__u64 iova;
	int access;
};
/* 0 and *@registered, or what the first rung said; dmp_verbs_refused() has all of it. */
int dmp_verbs_register(struct dmp_verbs *verbs, const struct dmp_verbs_range *range,
		       struct ibv_mr **registered);

/* verbs_move.c */
ssize_t dmp_verbs_post(struct dmp_fabric *fabric, const struct dmp_move *move, __u64 tag);
void dmp_verbs_push(struct dmp_fabric *fabric);
bool dmp_verbs_reap(struct dmp_fabric *fabric, __u64 *tag, __u64 *length);
void dmp_verbs_free_locals(struct dmp_verbs *verbs);

/* verbs_grant.c. channel->lock held. Answers are owed until write_letters finds a slot. */
void dmp_verbs_read_letter(struct dmp_verbs *verbs, __u8 kind,
			   const struct dmp_rdma_message *message);
/* True: one waits for a slot. */
bool dmp_verbs_write_letters(struct dmp_verbs *verbs);
void dmp_verbs_free_grants(struct dmp_verbs *verbs);

/* verbs_remote.c. write_revoked: as write_letters, of what obey left owed. channel->lock held. */
void dmp_verbs_note_answer(struct dmp_verbs *verbs, const struct dmp_rdma_message *grant);
void dmp_verbs_obey(struct dmp_verbs *verbs, __u32 rkey);
bool dmp_verbs_write_revoked(struct dmp_verbs *verbs);
/* The part that has the byte @offset of the region; the executor's. */
const struct dmp_remote_part *dmp_verbs_part(const struct dmp_remote *remote, __u64 offset);
bool dmp_verbs_is_void(const struct dmp_verbs *verbs, const struct dmp_remote_part *part);

/* verbs_connect.c */
int dmp_verbs_hear_manager(struct dmp_verbs *verbs);
void dmp_verbs_finish(struct dmp_fabric *fabric);
void dmp_verbs_close(struct dmp_fabric *fabric);

#endif /* DMP_VERBS */
#endif /* DMP_VERBS_LAYOUT_H */
