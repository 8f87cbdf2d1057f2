/* SPDX-License-Identifier: GPL-2.0 */
/*
 * rdma_layout.h - what a pair is made of, for its own files only
 *
 * Counting, so that no queue overflows. In the send queue are at most SLOTS slots, MOVES
 * pieces of moves, WORDS repayments and CHORES registrations and invalidations; in the
 * receive queue SLOTS + 1; the completion queue has room for all of them. Every request is
 * counted until its completion has been polled, or that of one behind it which stands for it (only
 * slots are not all signalled): so nothing is posted without a place for itself and for its
 * completion.
 *
 * The receive queue never runs empty: the peer has at most SLOTS slots on the way that we have
 * not repaid, a slot is posted again before it is repaid, and the one more that a WRITE
 * WITH IMMEDIATE takes is posted again before the next slot with WAKE goes out. So no
 * device ever says "receiver not ready", and rnr_retry_count is 0.
 *
 * Locks, inside those of whoever calls, and never held while the peer is waited for:
 *	grants_lock	our regions' registrations. Held over admit(), so that a region ends
 *			either before it is registered or in sight of revoke()
 *	mappings_lock	memories mapped for the device; inside grants_lock
 *	bell_lock	who is rung; interrupts off
 */
#ifndef DMP_KERNEL_RDMA_LAYOUT_H
#define DMP_KERNEL_RDMA_LAYOUT_H

#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/spinlock.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>
#include <rdma/ib_verbs.h>
#include <rdma/rdma_cm.h>

#include "rdma.h"
#include "rdma_pair.h"

#define DMP_PAIR_SLOTS		32U
#define DMP_PAIR_SLOT_BYTES	8192U
#define DMP_PAIR_MOVES		64U
#define DMP_PAIR_WORDS		8U
#define DMP_PAIR_CHORES		32U
/* Where the device takes as many: scatter entries of a piece, pages of a registration. */
#define DMP_PAIR_PLACES		16U
#define DMP_PAIR_PART_PAGES	4096U
#define DMP_PAIR_PARTS_MAX	(1U << 17)	/* of a peer's region that we go on asking for */
#define DMP_PAIR_GRANTED_MAX	(2 * DMP_PAIR_PARTS_MAX)	/* rkeys of a peer known at once */
#define DMP_PAIR_SLOTS_SIGNAL	8U	/* each so many-th is signalled */
#define DMP_PAIR_LAST		2U	/* writes of nothing, see dmp_pair_close() */
#define DMP_PAIR_SEND_MAX	(DMP_PAIR_SLOTS + DMP_PAIR_MOVES + DMP_PAIR_WORDS + \
				 DMP_PAIR_CHORES + DMP_PAIR_LAST)
#define DMP_PAIR_RECEIVE_MAX	(DMP_PAIR_SLOTS + 1U)
#define DMP_PAIR_POLLED		16

/* What a completion is about: the high half of wr_id. */
#define DMP_PAIR_SENT		1ULL
#define DMP_PAIR_REPAID		2ULL
#define DMP_PAIR_MOVED		3ULL
#define DMP_PAIR_CHORE		4ULL
#define DMP_PAIR_RECEIVED	5ULL
#define DMP_PAIR_ID(what, index) ((what) << 32 | (index))

#define DMP_PAIR_ESTABLISHED	3U		/* the last step of connecting */

/* Whom an identifier of rdma_cm talks to: its context. Nonzero only for a call turned away. */
struct dmp_pair_ear {
	int (*hear)(struct dmp_pair_ear *ear, struct rdma_cm_id *id, struct rdma_cm_event *event);
};

/* Bytes of ours that the device knows. */
struct dmp_pair_bytes {
	u8 *at;
	u64 bus;
};

/* A slot that came in and is not emptied. */
struct dmp_pair_arrived {
	u32 slot;
	u32 length;		/* behind the header */
	u32 taken;
	u8 kind;
	u8 flags;
};

/* A first-in first-out of slots. */
struct dmp_pair_inbox {
	struct dmp_pair_arrived entries[DMP_PAIR_RECEIVE_MAX];
	u32 first;
	u32 count;
};

struct dmp_pair_piece {
	u64 tag;
	u64 length;
	u64 posted_ns;
	u32 rkey;
};

/* Bytes in a row, as the device sees them. */
struct dmp_pair_segment {
	u64 offset;		/* from the start of the memory's first page */
	u64 bus;
	u64 bytes;
};

/* A memory mapped for the device; @users are registrations, and the list while it is on it. */
struct dmp_pair_mapping {
	struct list_head mappings;
	struct dmp_memory *memory;	/* a reference */
	struct sg_table *table;
	struct dmp_pair_segment *segments;
	u32 segment_count;
	u64 charged;		/* against dmp_bytes_max: the lists */
	u32 users;			/* protected by mappings_lock */
	enum dma_data_direction direction;
};

/* A part of a region of ours that the peer was granted. */
struct dmp_pair_grant {
	struct list_head grants;
	struct dmp_pair_mapping *mapping;	/* a user; NULL: let go, only the rkey is kept */
	struct ib_mr *mr;
	u64 from;		/* in the region */
	u64 length;
	u64 base;		/* what the rkey calls the byte @from */
	u64 due_ns;		/* revoked: the peer has until then */
	u32 slot;
	bool revoked;
	bool told;
	bool let_go;		/* the peer says so */
	bool ending;		/* its invalidation is posted, */
	bool ended;		/* and has completed */
};

struct dmp_pair {
	struct dmp_pair_ear ear;
	struct rdma_cm_id *id;
	struct ib_pd *pd;
	struct ib_cq *cq;
	u32 places;			/* scatter entries of a piece that is written, */
	u32 places_read;		/* that is read */
	u32 part_pages;			/* of a registration */

	/* rung by interrupts and rdma_cm */
	spinlock_t bell_lock;
	struct dmp_pair_ringer *ringer;	/* protected by bell_lock */
	struct delayed_work due;	/* the time of a revoked registration is over */

	/* written by rdma_cm's thread, read by the executor; released and acquired */
	wait_queue_head_t heard;
	u32 step;			/* of connecting: the last event that went well */
	int news;			/* the connection's end */
	bool dialled;			/* immutable: by us */

	/* all below is the executor's, where nothing else is said */
	bool connected;			/* there is a queue pair that can send */
	bool armed;			/* the completion queue will ring; any context */
	bool trusted;			/* the peer has proved the secret: its letters are read */
	int lost;
	struct dmp_pair_admission *admission;
	struct ib_wc completions[DMP_PAIR_POLLED];

	/* memory of the slots and words */
	struct dmp_pair_bytes receive[DMP_PAIR_RECEIVE_MAX];
	struct dmp_pair_bytes send[DMP_PAIR_SLOTS];
	struct dmp_pair_bytes word;	/* what the peer repays, a page */
	struct dmp_pair_bytes words;	/* what we repay, on its way: a ring of them */
	struct ib_mr *word_mr;
	bool word_registered;		/* asked for */

	/* sending */
	u32 peer_slots;
	u32 peer_slot_bytes;
	u32 sent;
	u32 repaid;			/* of what was sent */
	u32 sends_out;			/* posted, no completion stands for them */
	u32 filled;			/* bytes in the slot that goes out next */
	bool set_up;			/* our SETUP is sent */
	bool wake_out;			/* a slot with WAKE is not answered */
	bool wants_room;		/* put()'s: bytes of the stream wait */
	bool letter_waits;		/* handle_mail()'s: a letter of ours does */

	/* receiving */
	struct dmp_pair_inbox stream;
	struct dmp_pair_inbox mail;
	u32 receives_out;
	u32 emptied;
	u32 told;
	u32 words_sent;
	u32 words_out;
	u32 word_rkey;			/* of the peer's word */
	u64 word_offset;
	bool word_known;
	bool wake_asked;		/* the peer sleeps until it is repaid */

	/* moves */
	struct dmp_pair_piece pieces[DMP_PAIR_MOVES];
	u32 piece_first;
	u32 piece_count;		/* posted, not reaped */
	u32 pieces_done;		/* of these, completed */
	u64 piece_bytes;		/* posted, not reaped */
	u32 moving_max;			/* how many may be under way: dmp_rdma_pace() */
	struct ib_sge sges[DMP_PAIR_PLACES];
	struct mutex mappings_lock;
	struct list_head mappings;	/* protected by mappings_lock */

	/* our regions */
	struct mutex grants_lock;
	struct list_head grants;	/* protected by grants_lock */
	struct dmp_pair_grant *chores[DMP_PAIR_CHORES];	/* posted; NULL: a registration */
	u32 chore_first;
	u32 chore_count;
	bool chores_done;		/* some completed since letters were last written */
	struct dmp_rdma_message question;	/* the peer's last, */
	bool question_waits;		/* not answered: no slot, or no room for a chore */

	/* the peer's */
	struct xarray granted;		/* rkey: what came of it after that answer is good */
	u32 granted_count;
	struct dmp_pair_remote gathered;	/* parts that came so far */
	u32 gathered_max;
	u32 asked;			/* the number of the last question */
	u32 revokes;			/* that came */
	u64 asked_from;
	bool ask_waits;			/* it is not sent yet */
	bool answered;			/* all parts are there, or @ask_result says why not */
	int ask_result;
	struct dmp_rdma_message ask;

	struct dmp_pair_counters counters;
};

/* rdma_pair.c */
int dmp_pair_post_receive(struct dmp_pair *pair, u32 slot);
void dmp_pair_poll(struct dmp_pair *pair);
int dmp_pair_lose(struct dmp_pair *pair, int error);
/* Any context. */
void dmp_pair_ring(struct dmp_pair *pair);
/* A letter in a slot of its own: -EAGAIN, there is no slot now. */
int dmp_pair_say(struct dmp_pair *pair, u8 kind, const struct dmp_rdma_message *message);

/* rdma_connect.c */
int dmp_pair_hear(struct rdma_cm_id *id, struct rdma_cm_event *event);
struct dmp_pair *dmp_pair_make(void);
int dmp_pair_make_queues(struct dmp_pair *pair);
void dmp_pair_fill_parameters(const struct dmp_pair *pair, struct rdma_conn_param *param,
			      u8 bytes[DMP_RDMA_HELLO_BYTES]);
void dmp_pair_put_hello(const struct ib_device *device, u8 bytes[DMP_RDMA_HELLO_BYTES]);
void dmp_pair_set_peer(struct dmp_pair *pair, const struct dmp_rdma_hello *hello);
int dmp_pair_wait_error(long left);
long dmp_pair_ticks_until(u64 deadline_ns);	/* jiffies; a deadline of 0: never */

/* rdma_move.c */
bool dmp_pair_is_moving(const struct dmp_pair *pair, u32 rkey);

/* rdma_grant.c. Answers are owed until write_letters finds a slot. */
void dmp_pair_read_letter(struct dmp_pair *pair, u8 kind, const struct dmp_rdma_message *message);
void dmp_pair_write_letters(struct dmp_pair *pair);
void dmp_pair_chore_done(struct dmp_pair *pair);
bool dmp_pair_owes_revoked(const struct dmp_pair *pair);
bool dmp_pair_is_void(const struct dmp_pair *pair, const struct dmp_pair_part *part);
void dmp_pair_free_grants(struct dmp_pair *pair);
void dmp_pair_free_granted(struct dmp_pair *pair);

/* rdma_memory.c */
/* What is there of @memory, or made: with one more user; or ERR_PTR. */
struct dmp_pair_mapping *dmp_pair_map(struct dmp_pair *pair, struct dmp_memory *memory);
void dmp_pair_unmap(struct dmp_pair *pair, struct dmp_pair_mapping *mapping);
void dmp_pair_free_mappings(struct dmp_pair *pair);
/* Entries of @mapping for the device, from @offset on: how many, and how far they reach. */
u32 dmp_pair_places(const struct dmp_pair *pair, const struct dmp_pair_mapping *mapping,
		    u64 offset, u64 *length, struct ib_sge *sges, u32 most);
/* A fast registration of [@offset, + @length) of @mapping, or ERR_PTR; to be posted. */
struct ib_mr *dmp_pair_make_mr(struct dmp_pair *pair, const struct dmp_pair_mapping *mapping,
			       u64 offset, u64 length);
struct ib_mr *dmp_pair_make_word_mr(struct dmp_pair *pair);
int dmp_pair_post_registration(struct dmp_pair *pair, struct ib_mr *mr, int access);
int dmp_pair_post_invalidation(struct dmp_pair *pair, struct dmp_pair_grant *grant);

#endif /* DMP_KERNEL_RDMA_LAYOUT_H */
