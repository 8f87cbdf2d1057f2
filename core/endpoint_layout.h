/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * endpoint_layout.h - what an endpoint is made of, for its own files only
 *
 *	endpoint.c	memory, states, frames and answers in, the end of a connection
 *	handshake.c	HELLO to the first GRANT
 *	acceptance.c	what is accepted
 *	inflight.c	own operations: start, answer, cancel, complete
 *	incoming.c	the peer's operations and the messages they bring
 *	emission.c	which frame goes out next
 *	liveness.c	time; how a machine is looked at and checked
 *
 * Ownership: everything lies in the one block the owner gave to dmp_endpoint_init.
 * Every operation slot is in exactly one state; which queues it may be in follows from
 * the state and is verified by dmp_endpoint_check().
 */
#ifndef DMP_CORE_ENDPOINT_LAYOUT_H
#define DMP_CORE_ENDPOINT_LAYOUT_H

#include "deadline.h"
#include "dmaplane.h"
#include "endpoint.h"
#include "queue.h"

/* A grant that waits for company waits no longer than this. */
#define GRANT_DELAY_NS	1000000ULL
#define GRANT_JOIN_NS	50000ULL	/* younger ones wait on, also where a frame goes out */

/* States of an own operation; the comment names the queue it is in. */
enum dmp_operation_state {
	OPERATION_FREE,		/* free_operations or free_receives */
	OPERATION_WAITING,	/* waiting: for credit, or behind one that waits */
	OPERATION_READY,	/* ready: its frame may go */
	OPERATION_MOVING,	/* direct: in work until taken, then held */
	OPERATION_SENT,		/* its frame went out, the peer's answer is awaited */
	OPERATION_POSTED,	/* a RECV in posted */
	OPERATION_FILLING,	/* a RECV: a message is on its way into it */
	OPERATION_FINISHED,	/* no answer is awaited; held until the owner lets go */
	OPERATION_ZOMBIE,	/* completed, but the peer's answer is outstanding */
	OPERATION_STATES,
};

struct dmp_operation {
	struct dmp_endpoint_submission submission;
	__u64 tag;
	__u64 charge_bytes;
	__u64 moved_bytes;
	__u32 generation;
	__u32 stage;		/* FILLING from the stage: which message */
	__u32 checksum;
	__s32 result;
	__u8 state;
	bool charged;		/* holds credit of the peer */
	bool held;		/* the owner touches the buffer */
	bool sending;		/* held because its payload is being written */
	bool copying;		/* held because a staged message is copied in */
	bool moving;		/* held because a direct fabric moves its bytes */
	bool cancel_sent;	/* CANCEL is on its way, or was */
	bool decided;		/* result is final */
	bool delivered;		/* the completion was pushed */
	bool cancel;		/* asked for */
	bool expired;		/* the deadline has passed while held */
	bool staged_copy;	/* FILLING by COPY, not by PLACE */
	bool checksum_valid;
};

enum dmp_incoming_state {
	INCOMING_FREE,
	INCOMING_ADMITTING,	/* in admit until taken */
	INCOMING_PLACING,	/* the payload is being placed */
	INCOMING_ANSWERING,	/* in answers: RESPONSE, COMPLETE or CANCELLED goes out */
};

struct dmp_incoming {
	struct dmp_wire_operation operation;
	__u64 charge_bytes;
	__u64 cookie;
	__u64 moved_bytes;
	__u32 checksum;
	__s32 result;
	__u8 state;
	bool checksum_valid;
	bool respond;		/* the answer is a RESPONSE */
	bool cancelled;		/* the answer is CANCELLED */
};

enum dmp_stage_state { STAGE_FREE, STAGE_PLACING, STAGE_FULL, STAGE_COPYING };

/* A message that came before its RECV. */
struct dmp_stage {
	__u64 length_bytes;
	__u32 checksum;
	__u8 state;
	bool checksum_valid;
};

/* The one payload that is being taken from the fabric. */
struct dmp_placing {
	bool active;
	bool taken;
	bool held;		/* a local buffer is being filled from it */
	__u32 target;		/* DMP_TARGET_* */
	__u32 operation;	/* LOCAL: own operation */
	__u32 incoming;		/* the peer's operation, if is_incoming */
	__u32 stage;		/* STAGE */
	bool is_incoming;
	__u64 tag;
	__u64 length_bytes;
	__u32 checksum;
	__u16 flags;
};

/* What the owner has not read yet. */
struct dmp_endpoint_outbox {
	struct dmp_endpoint_completion *entries;
	__u32 capacity;
	__u32 first;		/* place of the oldest */
	__u32 count;
};

struct dmp_endpoint {
	struct dmp_endpoint_config config;	/* immutable after init */

	/* tables and queues: the arrays are immutable, the contents are not */
	struct dmp_operation *operations;	/* operations_max, then receives_max */
	struct dmp_incoming *incoming;
	struct dmp_stage *stages;
	struct dmp_endpoint_outbox completions;	/* of own operations */
	struct dmp_endpoint_outbox events;
	struct dmp_queue free_operations;
	struct dmp_queue free_receives;
	struct dmp_queue waiting;
	struct dmp_queue ready;
	struct dmp_queue posted;
	struct dmp_queue work;		/* MOVE and COPY not taken yet */
	struct dmp_queue stops;
	struct dmp_queue cancels;	/* CANCEL frames to send */
	struct dmp_queue admits;
	struct dmp_queue answers;
	struct dmp_queue free_stages;
	struct dmp_queue staged;
	struct dmp_deadline_heap deadlines;
	__u32 slots;			/* operations_max + receives_max */
	__u32 reserved;			/* completions promised or unread */

	/* the connection */
	__u32 state;
	__u32 epoch;
	__u64 peer_incarnation;
	__u64 features;
	struct dmp_wire_limits peer;
	struct dmp_wire_hello hello;
	struct dmp_wire_welcome welcome;
	struct dmp_wire_confirm confirm;
	__u64 sequence_out;		/* of the last frame sent */
	__u64 sequence_in;		/* of the last frame honoured */
	bool connector;
	bool hello_done;		/* the handshake frame of this state went out */
	bool authenticate;		/* an AUTHENTICATE is to be taken */
	bool authenticate_taken;
	bool opened;			/* was OPEN: a LOST event is due at the end */
	bool cut;			/* a CUT is to be taken */
	bool ping;
	bool pong;
	bool drain_sent;
	bool peer_drained;
	bool copying;			/* one COPY at a time keeps messages in order */
	__u64 pong_stamp;
	__s32 reason;
	__s32 farewell;			/* CLOSING: errno of the last frame */
	bool farewell_refuse;		/* CLOSING: REFUSE, not GOODBYE */
	struct dmp_placing placing;
	struct dmp_credit_sender sender;
	struct dmp_credit_receiver receiver;

	/* time */
	__u64 deadline_ns;		/* of handshake, drain or closing; 0: none */
	__u64 heard_ns;
	__u64 pinged_ns;
	__u64 flush_ns;			/* a grant waits until then; 0: none does */

	/* counts */
	__u64 honoured;
	__u64 stale;
	__u64 repeated;
	__u32 in_flight;		/* accepted, not completed */
	__u32 incomings;		/* records of the peer's operations */
	__u32 zombies;
	__u32 held;
};

/* endpoint.c */
int dmp_endpoint_move(struct dmp_endpoint *endpoint, __u32 to);
int dmp_endpoint_break(struct dmp_endpoint *endpoint, __s32 reason);
int dmp_endpoint_close(struct dmp_endpoint *endpoint, __u64 now_ns, __s32 reason,
		       bool refuse);
void dmp_endpoint_push(struct dmp_endpoint *endpoint,
		       const struct dmp_endpoint_completion *completion);
bool dmp_endpoint_is_up(const struct dmp_endpoint *endpoint);
bool dmp_endpoint_is_greeting(const struct dmp_endpoint *endpoint);
void dmp_endpoint_drain_step(struct dmp_endpoint *endpoint, __u64 now_ns);

/* handshake.c */
int dmp_handshake_frame(struct dmp_endpoint *endpoint, __u64 now_ns,
			const struct dmp_frame *frame);
int dmp_handshake_answer(struct dmp_endpoint *endpoint, __u64 now_ns,
			 const struct dmp_endpoint_answer *answer);
void dmp_handshake_request(struct dmp_endpoint *endpoint,
			   struct dmp_endpoint_request *request);
bool dmp_handshake_emit(struct dmp_endpoint *endpoint, struct dmp_frame *frame);
void dmp_handshake_open(struct dmp_endpoint *endpoint, __u64 now_ns);

/* inflight.c */
struct dmp_operation *dmp_inflight_find(struct dmp_endpoint *endpoint, __u64 tag);
void dmp_inflight_open(struct dmp_endpoint *endpoint);
void dmp_inflight_pump(struct dmp_endpoint *endpoint, __u64 now_ns);
void dmp_inflight_decide(struct dmp_endpoint *endpoint, __u32 index, __s32 result,
			 __u64 bytes);
void dmp_inflight_settle(struct dmp_endpoint *endpoint, __u32 index);
void dmp_inflight_hold(struct dmp_endpoint *endpoint, __u32 index);
void dmp_inflight_let_go(struct dmp_endpoint *endpoint, __u32 index);
void dmp_inflight_expire(struct dmp_endpoint *endpoint, __u32 index);
void dmp_inflight_break(struct dmp_endpoint *endpoint);
void dmp_inflight_release_all(struct dmp_endpoint *endpoint);
void dmp_inflight_end_receives(struct dmp_endpoint *endpoint, __s32 result);
int dmp_inflight_result(struct dmp_endpoint *endpoint, const struct dmp_frame *frame);
int dmp_inflight_response(struct dmp_endpoint *endpoint, const struct dmp_frame *frame);
int dmp_inflight_moved(struct dmp_endpoint *endpoint,
		       const struct dmp_endpoint_answer *answer);
int dmp_inflight_stopped(struct dmp_endpoint *endpoint, __u64 tag);
void dmp_inflight_request(struct dmp_endpoint *endpoint, __u32 index, __u32 kind,
			  struct dmp_endpoint_request *request);
void dmp_inflight_work(struct dmp_endpoint *endpoint, __u32 index,
		       struct dmp_endpoint_request *request);

/* incoming.c */
int dmp_incoming_operation(struct dmp_endpoint *endpoint, const struct dmp_frame *frame);
int dmp_incoming_cancel(struct dmp_endpoint *endpoint, __u64 now_ns, __u64 tag);
int dmp_incoming_admitted(struct dmp_endpoint *endpoint, __u64 now_ns,
			  const struct dmp_endpoint_answer *from);
int dmp_incoming_placed(struct dmp_endpoint *endpoint, __u64 now_ns,
			const struct dmp_endpoint_answer *from);
int dmp_incoming_copied(struct dmp_endpoint *endpoint, __u64 now_ns,
			const struct dmp_endpoint_answer *from);
void dmp_incoming_match(struct dmp_endpoint *endpoint);
void dmp_incoming_unfill(struct dmp_endpoint *endpoint, __u32 index);
void dmp_incoming_release(struct dmp_endpoint *endpoint, __u64 now_ns, __u64 bytes);
void dmp_incoming_break(struct dmp_endpoint *endpoint);
void dmp_incoming_admit_request(struct dmp_endpoint *endpoint, __u32 index,
				struct dmp_endpoint_request *request);
void dmp_incoming_place_request(struct dmp_endpoint *endpoint,
				struct dmp_endpoint_request *request);
__u64 dmp_incoming_charge(__u16 operation, __u64 length_bytes, __u64 window_bytes);

#endif /* DMP_CORE_ENDPOINT_LAYOUT_H */
