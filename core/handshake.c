// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * handshake.c - from the first HELLO to the first GRANT
 *
 *	connector                                   acceptor
 *	CALLING     -- HELLO (nonce) ------------>  AWAITING
 *	                                            PROVING     owner makes a proof
 *	CHECKING    <-- WELCOME (epoch, nonce, proof)  WELCOMED
 *	  owner checks it and makes its own
 *	CONFIRMING  -- CONFIRM (proof) ---------->  VERIFYING   owner checks it
 *	OPEN        <-- GRANT ---------------------  OPEN
 *
 * Both proofs cover both nonces, both incarnations, the epoch, versions, features and
 * limits (dmp_endpoint_transcript), so nothing of it can be changed on the way and none
 * of it can be used again. The acceptor's answer to VERIFYING is the moment a peer is
 * let in: before it gives it, the owner ends any older connection of that peer.
 */
#include "endpoint_layout.h"

#define VERSION_MIN	1
#define VERSION_MAX	1

static bool same_bytes(const __u8 *a, const __u8 *b, __u32 count)
{
	return !__builtin_memcmp(a, b, count);
}

static void set_limits(const struct dmp_endpoint *endpoint, struct dmp_wire_limits *limits)
{
	limits->operations = endpoint->config.incoming_max;
	limits->window_slots = endpoint->config.window_slots;
	limits->window_bytes = endpoint->config.window_bytes;
}

static int begin(struct dmp_endpoint *endpoint, __u64 now_ns, __u64 deadline_ns, __u32 state)
{
	if (!deadline_ns)
		return -EINVAL;
	if (endpoint->state != DMP_ENDPOINT_IDLE)
		return -EBUSY;
	endpoint->deadline_ns = deadline_ns;
	endpoint->heard_ns = now_ns;
	endpoint->connector = state == DMP_ENDPOINT_CALLING;
	return dmp_endpoint_move(endpoint, state);
}

int dmp_endpoint_connect(struct dmp_endpoint *endpoint, __u64 now_ns, __u64 deadline_ns,
			 const __u8 nonce[DMP_WIRE_NONCE_BYTES])
{
	struct dmp_wire_hello *hello = &endpoint->hello;
	int error = begin(endpoint, now_ns, deadline_ns, DMP_ENDPOINT_CALLING);

	if (error)
		return error;
	hello->version_min = VERSION_MIN;
	hello->version_max = VERSION_MAX;
	hello->features = endpoint->config.features;
	set_limits(endpoint, &hello->limits);
	__builtin_memcpy(hello->nonce, nonce, DMP_WIRE_NONCE_BYTES);
	return 0;
}

int dmp_endpoint_accept(struct dmp_endpoint *endpoint, __u64 now_ns, __u64 deadline_ns,
			__u32 epoch, const __u8 nonce[DMP_WIRE_NONCE_BYTES])
{
	int error;

	if (!epoch)
		return -EINVAL;
	error = begin(endpoint, now_ns, deadline_ns, DMP_ENDPOINT_AWAITING);
	if (error)
		return error;
	endpoint->epoch = epoch;
	__builtin_memcpy(endpoint->welcome.nonce, nonce, DMP_WIRE_NONCE_BYTES);
	return 0;
}

static int refuse(struct dmp_endpoint *endpoint, __u64 now_ns, __s32 reason)
{
	dmp_endpoint_close(endpoint, now_ns, reason, true);
	return reason;
}

static int accept_hello(struct dmp_endpoint *endpoint, __u64 now_ns,
			const struct dmp_frame *frame)
{
	const struct dmp_wire_hello *hello = &frame->hello;
	struct dmp_wire_welcome *welcome = &endpoint->welcome;

	if (frame->epoch || frame->destination || frame->sequence != 1 ||
	    !frame->incarnation)
		return dmp_endpoint_break(endpoint, -EPROTO);
	endpoint->hello = *hello;
	endpoint->peer = hello->limits;
	endpoint->peer_incarnation = frame->incarnation;
	endpoint->sequence_in = 1;
	endpoint->honoured += 1;
	endpoint->heard_ns = now_ns;
	if (hello->version_min > VERSION_MAX || hello->version_max < VERSION_MIN)
		return refuse(endpoint, now_ns, -EOPNOTSUPP);
	endpoint->features = hello->features & endpoint->config.features;
	if (endpoint->config.features_required & ~endpoint->features)
		return refuse(endpoint, now_ns, -EOPNOTSUPP);
	welcome->version = hello->version_max < VERSION_MAX ? hello->version_max : VERSION_MAX;
	welcome->features = endpoint->features;
	set_limits(endpoint, &welcome->limits);
	welcome->hello_incarnation = frame->incarnation;
	__builtin_memcpy(welcome->hello_nonce, hello->nonce, DMP_WIRE_NONCE_BYTES);
	endpoint->authenticate = true;
	return dmp_endpoint_move(endpoint, DMP_ENDPOINT_PROVING);
}

/*
 * A HELLO on a connection that has a peer: the same one again is a repeat; another one
 * means that the peer has started anew, so this connection is dead. The new peer is not
 * let in here: it has to come again when the old connection is gone.
 */
static int handle_hello(struct dmp_endpoint *endpoint, __u64 now_ns,
			const struct dmp_frame *frame)
{
	if (endpoint->state == DMP_ENDPOINT_AWAITING)
		return accept_hello(endpoint, now_ns, frame);
	if (endpoint->connector)
		return -ESTALE;
	if (frame->incarnation == endpoint->peer_incarnation &&
	    same_bytes(frame->hello.nonce, endpoint->hello.nonce, DMP_WIRE_NONCE_BYTES)) {
		endpoint->repeated += 1;
		return 0;
	}
	dmp_endpoint_break(endpoint, -ECONNRESET);
	return -EBUSY;
}

static int handle_welcome(struct dmp_endpoint *endpoint, __u64 now_ns,
			  const struct dmp_frame *frame)
{
	const struct dmp_wire_welcome *welcome = &frame->welcome;

	if (endpoint->state != DMP_ENDPOINT_CALLING ||
	    frame->destination != endpoint->config.incarnation ||
	    welcome->hello_incarnation != endpoint->config.incarnation ||
	    !same_bytes(welcome->hello_nonce, endpoint->hello.nonce, DMP_WIRE_NONCE_BYTES))
		return -ESTALE;
	if (!frame->epoch || frame->sequence != 1 || !frame->incarnation)
		return dmp_endpoint_break(endpoint, -EPROTO);
	if (welcome->version < VERSION_MIN || welcome->version > VERSION_MAX ||
	    welcome->features & ~endpoint->config.features)
		return dmp_endpoint_break(endpoint, -EPROTO);
	endpoint->welcome = *welcome;
	endpoint->peer = welcome->limits;
	endpoint->features = welcome->features;
	endpoint->epoch = frame->epoch;
	endpoint->peer_incarnation = frame->incarnation;
	endpoint->sequence_in = 1;
	endpoint->honoured += 1;
	endpoint->heard_ns = now_ns;
	if (endpoint->config.features_required & ~endpoint->features)
		return refuse(endpoint, now_ns, -EOPNOTSUPP);
	endpoint->authenticate = true;
	return dmp_endpoint_move(endpoint, DMP_ENDPOINT_CHECKING);
}

/* HELLO, WELCOME, and the REFUSE that answers a HELLO: they come before an epoch. */
int dmp_handshake_frame(struct dmp_endpoint *endpoint, __u64 now_ns,
			const struct dmp_frame *frame)
{
	if (frame->type == DMP_FRAME_HELLO)
		return handle_hello(endpoint, now_ns, frame);
	if (frame->type == DMP_FRAME_WELCOME)
		return handle_welcome(endpoint, now_ns, frame);
	if (frame->destination != endpoint->config.incarnation ||
	    !same_bytes(frame->refuse.hello_nonce, endpoint->hello.nonce,
			DMP_WIRE_NONCE_BYTES))
		return -ESTALE;
	endpoint->honoured += 1;
	dmp_endpoint_break(endpoint, frame->refuse.reason);
	return 0;
}

int dmp_endpoint_transcript(const struct dmp_endpoint *endpoint, void *bytes, size_t room)
{
	struct dmp_frame frame;
	int hello_bytes, welcome_bytes;

	if (!endpoint->welcome.version)
		return -EINVAL;
	__builtin_memset(&frame, 0, sizeof(frame));
	frame.type = DMP_FRAME_HELLO;
	frame.sequence = 1;
	frame.incarnation = endpoint->welcome.hello_incarnation;
	frame.hello = endpoint->hello;
	hello_bytes = dmp_wire_encode(&frame, true, bytes, room);
	if (hello_bytes < 0)
		return hello_bytes;
	frame.type = DMP_FRAME_WELCOME;
	frame.epoch = endpoint->epoch;
	frame.destination = endpoint->welcome.hello_incarnation;
	frame.incarnation = endpoint->connector ? endpoint->peer_incarnation :
						  endpoint->config.incarnation;
	frame.welcome = endpoint->welcome;
	frame.welcome.proof_bytes = 0;
	__builtin_memset(frame.welcome.proof, 0, DMP_WIRE_PROOF_BYTES);
	welcome_bytes = dmp_wire_encode(&frame, true, (__u8 *)bytes + hello_bytes,
					room - (size_t)hello_bytes);
	return welcome_bytes < 0 ? welcome_bytes : hello_bytes + welcome_bytes;
}

void dmp_handshake_request(struct dmp_endpoint *endpoint,
			   struct dmp_endpoint_request *request)
{
	const __u8 *proof = NULL;

	endpoint->authenticate_taken = true;
	request->kind = DMP_REQUEST_AUTHENTICATE;
	request->tag = endpoint->state;
	if (endpoint->state == DMP_ENDPOINT_CHECKING) {
		request->proof_bytes = endpoint->welcome.proof_bytes;
		proof = endpoint->welcome.proof;
	} else if (endpoint->state == DMP_ENDPOINT_VERIFYING) {
		request->proof_bytes = endpoint->confirm.proof_bytes;
		proof = endpoint->confirm.proof;
	}
	if (proof)
		__builtin_memcpy(request->proof, proof, DMP_WIRE_PROOF_BYTES);
}

/* Both sides have proved themselves. */
void dmp_handshake_open(struct dmp_endpoint *endpoint, __u64 now_ns)
{
	struct dmp_credit_amount window = {
		.slots = endpoint->config.window_slots,
		.bytes = endpoint->config.window_bytes,
	};

	dmp_endpoint_move(endpoint, DMP_ENDPOINT_OPEN);
	dmp_credit_sender_init(&endpoint->sender, endpoint->epoch);
	dmp_credit_receiver_init(&endpoint->receiver, endpoint->epoch, window);
	dmp_inflight_open(endpoint);
	endpoint->deadline_ns = 0;
	endpoint->heard_ns = now_ns;
	endpoint->pinged_ns = now_ns;
	endpoint->opened = true;
}

int dmp_handshake_answer(struct dmp_endpoint *endpoint, __u64 now_ns,
			 const struct dmp_endpoint_answer *answer)
{
	if (!endpoint->authenticate || !endpoint->authenticate_taken ||
	    answer->tag != endpoint->state)
		return -ESTALE;
	if (answer->proof_bytes > DMP_WIRE_PROOF_BYTES || answer->result > 0)
		return -EINVAL;
	endpoint->authenticate = false;
	endpoint->authenticate_taken = false;
	if (answer->result) {
		refuse(endpoint, now_ns, answer->result);
		return 0;
	}
	switch (endpoint->state) {
	case DMP_ENDPOINT_PROVING:
		endpoint->welcome.proof_bytes = answer->proof_bytes;
		__builtin_memcpy(endpoint->welcome.proof, answer->proof,
				 DMP_WIRE_PROOF_BYTES);
		return dmp_endpoint_move(endpoint, DMP_ENDPOINT_WELCOMED);
	case DMP_ENDPOINT_CHECKING:
		endpoint->confirm.proof_bytes = answer->proof_bytes;
		__builtin_memcpy(endpoint->confirm.proof, answer->proof,
				 DMP_WIRE_PROOF_BYTES);
		return dmp_endpoint_move(endpoint, DMP_ENDPOINT_CONFIRMING);
	case DMP_ENDPOINT_VERIFYING:
		dmp_handshake_open(endpoint, now_ns);
		return 0;
	default:
		return -ESTALE;
	}
}

/* The one frame that the present handshake state sends, once. */
bool dmp_handshake_emit(struct dmp_endpoint *endpoint, struct dmp_frame *frame)
{
	if (endpoint->hello_done)
		return false;
	switch (endpoint->state) {
	case DMP_ENDPOINT_CALLING:
		frame->type = DMP_FRAME_HELLO;
		frame->hello = endpoint->hello;
		break;
	case DMP_ENDPOINT_WELCOMED:
		frame->type = DMP_FRAME_WELCOME;
		frame->welcome = endpoint->welcome;
		break;
	case DMP_ENDPOINT_CONFIRMING:
		frame->type = DMP_FRAME_CONFIRM;
		frame->confirm = endpoint->confirm;
		break;
	default:
		return false;
	}
	endpoint->hello_done = true;
	return true;
}
