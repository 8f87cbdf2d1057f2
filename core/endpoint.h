/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * endpoint.h - one side of a reliable connection, as a machine without I/O
 *
 * Frames, answers and the time go in; frames, requests and completions come out.
 * The machine allocates nothing, locks nothing, reads no clock: its owner (a fabric
 * of a plane) gives memory once and calls under its own lock, with a time that does
 * not run backwards. After each call the owner empties, in this order, next_request,
 * next_frame, next_completion and next_event.
 *
 * Laws
 *  - Each submission that was accepted gives one completion, by the first tick at or
 *    after its deadline. Accepting reserves the completion's place.
 *  - SEND and WRITE_IMM start only with credit of the receiver (slots and bytes), in
 *    the order of submission. Everything behind one that waits waits too.
 *  - A frame is honoured only if it carries the epoch of this connection, the
 *    incarnation of this peer and our own. A second HELLO ends the connection; it is not honoured
 *    itself, so a new incarnation comes in only once the old connection is dead.
 *  - A completion says that nothing here touches the operation's buffer any more. If
 *    it says ECANCELED, nothing at the peer does either: either nothing was sent, or
 *    the peer has answered.
 *  - Frames of a connection are numbered. A repeat is ignored, a gap ends the
 *    connection, and so does silence of detect_ns. There is no retransmission: fabrics
 *    deliver in order or not at all.
 *
 * Who touches memory
 * The machine asks, the owner moves bytes and answers. A buffer is "held" from the
 * moment a request or frame that names it is taken until the answer. STOP asks for a
 * held buffer back at once: the owner finishes, or moves the rest elsewhere, or ends
 * the connection (dmp_endpoint_abort), and answers before it does anything else.
 *
 *	tcp	direct = false. A frame with payload is written, then the payload straight
 *		out of the local buffer; dmp_endpoint_sent() when the last byte is with the
 *		kernel. On PLACE the payload is received straight into its final place. On
 *		STOP the rest of an outgoing chunk is copied aside and sent from there; an
 *		incoming one is received into a scratch area, or the stage, from there on.
 *	shm	direct = true. On MOVE the initiator copies to or from the mapped region of
 *		the peer and answers; WRITE_IMM then sends a frame that says PLACED. Frames
 *		and the payload of SEND travel in a ring of shared memory.
 *	verbs	direct = true. On MOVE an RDMA WRITE or READ is posted and answered at its
 *		work completion. Frames and payloads of SEND travel in slots, SENDs on the
 *		same queue pair. CUT is answered once the queue pair is destroyed: the
 *		device touches no memory of the connection from then on.
 */
#ifndef DMP_CORE_ENDPOINT_H
#define DMP_CORE_ENDPOINT_H

#include "credit.h"
#include "histogram.h"
#include "types.h"
#include "wire.h"

struct dmp_endpoint;

/* States. The table of legal edges is in endpoint.c and in docs/protocol.md. */
#define DMP_ENDPOINT_IDLE	0
#define DMP_ENDPOINT_CALLING	1	/* connector: HELLO goes out */
#define DMP_ENDPOINT_CHECKING	2	/* connector: owner checks the peer's proof */
#define DMP_ENDPOINT_CONFIRMING	3	/* connector: CONFIRM goes out, first GRANT awaited */
#define DMP_ENDPOINT_AWAITING	4	/* acceptor: HELLO awaited */
#define DMP_ENDPOINT_PROVING	5	/* acceptor: owner makes its proof */
#define DMP_ENDPOINT_WELCOMED	6	/* acceptor: WELCOME goes out, CONFIRM awaited */
#define DMP_ENDPOINT_VERIFYING	7	/* acceptor: owner checks the peer's proof */
#define DMP_ENDPOINT_OPEN	8
#define DMP_ENDPOINT_DRAINING	9	/* takes no submission, finishes the old */
#define DMP_ENDPOINT_DRAINED	10	/* finished; waits for the peer to finish */
#define DMP_ENDPOINT_CLOSING	11	/* a last frame goes out */
#define DMP_ENDPOINT_CUTTING	12	/* owner closes the fabric and lets go of buffers */
#define DMP_ENDPOINT_DEAD	13
#define DMP_ENDPOINT_STATES	14

struct dmp_endpoint_config {
	__u64 incarnation;	/* of this plane, not 0 */
	__u64 features;		/* offered */
	__u64 features_required;/* refused without; a subset of features */
	__u64 window_bytes;	/* receive credit: room for messages in all */
	__u64 detect_ns;	/* a peer silent for so long is lost */
	__u32 window_slots;	/* receive credit: messages and immediates */
	__u32 operations_max;	/* own operations in flight, RECV not counted */
	__u32 receives_max;	/* own RECVs posted */
	__u32 incoming_max;	/* operations of the peer in flight */
	struct dmp_histogram_counts *stall;	/* NULL, or gets the length of each stall */
	bool direct;		/* the fabric moves bytes of WRITE and READ itself */
	bool unchecked;		/* its bytes cannot flip (shared memory): frames carry no CRC */
};

#define DMP_ENDPOINT_TABLE_MAX	65536	/* each of the four counts above */

/* An own operation. `local` is the owner's name for the local buffer range. */
struct dmp_endpoint_submission {
	__u64 user_data;
	__u64 deadline_ns;	/* 0: none */
	__u64 local;
	__u64 length_bytes;	/* RECV: room in the buffer. WRITE, READ: 0 asks for the right */
	__u64 offset;		/* in the peer's region */
	__u32 immediate;
	__u32 checksum;		/* with DMP_SUBMIT_CHECKSUM, of the bytes that go out */
	__u16 operation;	/* DMP_OP_SEND, RECV, WRITE, WRITE_IMM, READ */
	__u16 flags;		/* DMP_SUBMIT_NOWAIT, DMP_SUBMIT_CHECKSUM */
	__u32 key_bytes;
	bool placed;		/* WRITE_IMM: earlier WRITEs, all complete, have brought its bytes */
	__u8 key[DMP_WIRE_KEY_BYTES];
};

/* user_data, result, operation, flags and the rest as in struct dmp_completion. */
struct dmp_endpoint_completion {
	__u64 user_data;
	__u64 length_bytes;
	__u64 tag;		/* 0 for an event */
	__s32 result;
	__u32 immediate;
	__u32 checksum;
	__u16 operation;
	__u16 flags;
};

/* Requests to the owner. */
#define DMP_REQUEST_AUTHENTICATE 1	/* check .proof over the transcript, give ours */
#define DMP_REQUEST_PLACE	2	/* take the payload that follows the last frame */
#define DMP_REQUEST_ADMIT	3	/* may the peer touch (key, offset, length)? */
#define DMP_REQUEST_MOVE	4	/* direct: move bytes of an own WRITE, WRITE_IMM, READ */
#define DMP_REQUEST_COPY	5	/* a message from the stage to a RECV's buffer */
#define DMP_REQUEST_STOP	6	/* let go of an own operation's buffer now */
#define DMP_REQUEST_CUT		7	/* close the fabric, let go of all buffers */

/* Where a PLACE goes. */
#define DMP_TARGET_REGION	1	/* key, offset: check them, then place */
#define DMP_TARGET_LOCAL	2	/* buffer `local` of an own RECV or READ */
#define DMP_TARGET_STAGE	3	/* the owner's memory for message number `stage` */
#define DMP_TARGET_DISCARD	4	/* nowhere */

struct dmp_endpoint_request {
	__u64 tag;
	__u64 local;
	__u64 offset;
	__u64 length_bytes;
	__u32 kind;		/* DMP_REQUEST_* */
	__u32 target;		/* DMP_TARGET_* */
	__u32 stage;
	__u32 access;		/* DMP_ACCESS_REMOTE_* that the region must grant */
	__u32 checksum;
	__u16 operation;
	__u16 flags;		/* DMP_WIRE_CHECKSUM: compare, answer -EBADMSG */
	__u32 key_bytes;
	__u32 proof_bytes;	/* AUTHENTICATE: 0 if the peer has not proved itself yet */
	__u8 key[DMP_WIRE_KEY_BYTES];		/* valid: key_bytes of them */
	__u8 proof[DMP_WIRE_PROOF_BYTES];	/* valid: proof_bytes of them */
};

/*
 * Answers carry the kind and tag of the request. `cookie` and `checksum` are for an
 * ADMIT of READ: they come back with the RESPONSE frame.
 */
struct dmp_endpoint_answer {
	__u64 tag;
	__u64 length_bytes;	/* bytes moved */
	__u64 cookie;
	__u32 kind;
	__s32 result;
	__u32 checksum;
	__u16 flags;		/* DMP_WIRE_CHECKSUM: checksum is valid */
	__u16 proof_bytes;
	__u8 proof[DMP_WIRE_PROOF_BYTES];
};

/* Where the payload of an outgoing frame lies. */
#define DMP_PAYLOAD_NONE	0
#define DMP_PAYLOAD_LOCAL	1	/* buffer `local`; held until dmp_endpoint_sent(tag) */
#define DMP_PAYLOAD_REGION	2	/* what ADMIT let in; `local` is the answer's cookie */

struct dmp_endpoint_frame {
	__u64 payload_bytes;
	__u64 local;
	__u64 tag;
	__u32 payload;		/* DMP_PAYLOAD_* */
	__u32 frame_bytes;
	__u8 bytes[DMP_WIRE_FRAME_BYTES_MAX];
};

struct dmp_endpoint_status {
	__u64 peer_incarnation;
	__u64 features;
	struct dmp_credit send;
	struct dmp_credit receive;
	__u64 stalls;
	__u64 stall_ns;
	__u64 frames_honoured;
	__u64 frames_stale;	/* of another epoch or incarnation */
	__u64 frames_repeated;
	__u32 state;
	__u32 epoch;
	__u32 operations;	/* accepted, not completed */
	__u32 zombies;		/* completed, the peer's answer outstanding */
	__u32 held;		/* own buffers the owner touches right now */
	__u32 incoming;		/* of the peer, not answered */
	__u32 staged;		/* messages no RECV has taken */
	__u32 unread;		/* completions and events not taken */
	__s32 reason;		/* why the connection ended */
};

/* Memory: 0 if a limit is out of range. Aligned for __u64. */
size_t dmp_endpoint_bytes(const struct dmp_endpoint_config *config);
int dmp_endpoint_init(struct dmp_endpoint **endpoint, void *memory, size_t bytes,
		      const struct dmp_endpoint_config *config);

/*
 * Start. The nonce is fresh randomness; the epoch was never used by this acceptor
 * before. Handshake states end with ETIMEDOUT at the deadline, which is required.
 */
int dmp_endpoint_connect(struct dmp_endpoint *endpoint, __u64 now_ns, __u64 deadline_ns,
			 const __u8 nonce[DMP_WIRE_NONCE_BYTES]);
int dmp_endpoint_accept(struct dmp_endpoint *endpoint, __u64 now_ns, __u64 deadline_ns,
			__u32 epoch, const __u8 nonce[DMP_WIRE_NONCE_BYTES]);

/* From DEAD with every completion taken back to IDLE. -EBUSY before. */
int dmp_endpoint_reset(struct dmp_endpoint *endpoint);

/*
 * The bytes both proofs are made over: the HELLO and WELCOME of this handshake as
 * encoded, without proofs. Returns the length, -ENOSPC, or -EINVAL when there are none.
 */
int dmp_endpoint_transcript(const struct dmp_endpoint *endpoint, void *bytes, size_t room);

/*
 * One whole frame came in. 0 honoured or repeated; -ESTALE not of this connection and
 * ignored; -EBUSY answer the open AUTHENTICATE or PLACE first, then give it again;
 * -EPROTO or -ECONNRESET the connection ends because of it.
 */
int dmp_endpoint_receive(struct dmp_endpoint *endpoint, __u64 now_ns,
			 const void *bytes, size_t length);

/* Bytes of a long payload keep coming: the peer is not silent. */
void dmp_endpoint_alive(struct dmp_endpoint *endpoint, __u64 now_ns);

/* -EAGAIN when there is nothing. */
int dmp_endpoint_next_frame(struct dmp_endpoint *endpoint, __u64 now_ns,
			    struct dmp_endpoint_frame *frame);
int dmp_endpoint_next_request(struct dmp_endpoint *endpoint,
			      struct dmp_endpoint_request *request);
int dmp_endpoint_next_completion(struct dmp_endpoint *endpoint,
				 struct dmp_endpoint_completion *completion);

/* Is credit what one of the two sides waits for? Then what is to be said is said soon. */
bool dmp_endpoint_is_short_of_credit(const struct dmp_endpoint *endpoint);

/*
 * Events come apart from completions, so that an owner with no room for an event can
 * leave it here (its credit is not given back until it is taken) and complete all the same.
 */
int dmp_endpoint_next_event(struct dmp_endpoint *endpoint, __u64 now_ns,
			    struct dmp_endpoint_completion *event);
bool dmp_endpoint_has_event(const struct dmp_endpoint *endpoint);

/* -ESTALE if nobody asked (any more). Answers after CUT was answered are void. */
int dmp_endpoint_answer(struct dmp_endpoint *endpoint, __u64 now_ns,
			const struct dmp_endpoint_answer *answer);
int dmp_endpoint_sent(struct dmp_endpoint *endpoint, __u64 now_ns, __u64 tag);

/*
 * Accepted: 0 and the tag. Not accepted, no completion follows: -EINVAL; -EOVERFLOW
 * the message can never fit the peer's window; -EAGAIN no slot now, or NOWAIT and no
 * credit now, or the handshake is not over; -ESTALE draining; -ECONNRESET ended.
 */
int dmp_endpoint_submit(struct dmp_endpoint *endpoint, __u64 now_ns,
			const struct dmp_endpoint_submission *submission, __u64 *tag);

/* A fence: see the laws. -ENOENT if it is not in flight. */
int dmp_endpoint_cancel(struct dmp_endpoint *endpoint, __u64 now_ns, __u64 tag);

/* Let time pass: deadlines, liveness, grants that waited for company. */
void dmp_endpoint_tick(struct dmp_endpoint *endpoint, __u64 now_ns);

/* When the next tick is needed at the latest; ~0 for never. */
__u64 dmp_endpoint_next_wakeup(const struct dmp_endpoint *endpoint);

/*
 * drain: accept nothing more, finish what is in flight, say goodbye when the peer has
 * drained too or the deadline (0: none) comes. goodbye: end now. abort: the fabric is
 * lost and touches nothing any more; in flight completes with ECONNRESET.
 */
int dmp_endpoint_drain(struct dmp_endpoint *endpoint, __u64 now_ns, __u64 deadline_ns);
int dmp_endpoint_goodbye(struct dmp_endpoint *endpoint, __u64 now_ns);
int dmp_endpoint_abort(struct dmp_endpoint *endpoint, __s32 reason);

/* Costs no more with large tables. */
void dmp_endpoint_query(const struct dmp_endpoint *endpoint,
			struct dmp_endpoint_status *status);

/* DMP_ENDPOINT_*, without the rest. */
__u32 dmp_endpoint_state(const struct dmp_endpoint *endpoint);

/* 0, or -EPROTO if the machine contradicts itself. Costs a walk over its tables. */
int dmp_endpoint_check(const struct dmp_endpoint *endpoint);

/* The table of legal edges, for tests and documents. */
bool dmp_endpoint_may_move(__u32 from, __u32 to);

#endif /* DMP_CORE_ENDPOINT_H */
