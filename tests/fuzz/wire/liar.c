// SPDX-License-Identifier: MIT
/*
 * liar.c - who has the secret: a valid handshake, and then anything
 *
 * The handshake is core's own machine. After it frames are made by hand: most with the
 * right epoch, sequence and CRC, so that what they say is believed as far as it can be;
 * the rest damaged. Some are good, so that those behind them are met in every state.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <time.h>

#include "assault.h"
#include "wire.h"

#define GREETING_NS	(5 * SECOND_NS)
#define LET_IN_NS	300000
#define PAYLOAD_ROOM	16384u
#define FRAMES_MAX	24u

struct liar {
	struct assault *assault;
	struct dmp_fabric *fabric;
	struct dmp_endpoint *machine;
	void *memory;
	bool checked;			/* frames carry a CRC */
	__u8 in[DMP_WIRE_FRAME_BYTES_MAX];
	uint32_t have;
	uint32_t generation;
};

/* ---- an honest handshake */

static bool send_all(struct liar *liar, const void *bytes, size_t length)
{
	const struct dmp_fabric_type *type = liar->fabric->type;
	uint64_t limit = dmp_now_ns() + GREETING_NS;
	const char *at = bytes;

	while (length) {
		struct iovec piece = { (void *)at, length };
		ssize_t sent = type->send(liar->fabric, &piece, 1);

		if (sent < 0 || dmp_now_ns() > limit)
			return false;
		at += sent;
		length -= (size_t)sent;
		if (!sent) {
			struct pollfd one = { .fd = liar->fabric->fd, .events = POLLOUT };

			poll(&one, 1, 1);
			if (type->drain && type->drain(liar->fabric) < 0 &&
			    type->drain(liar->fabric) != -EAGAIN)
				return false;
		}
	}
	return true;
}

static void answer(struct liar *liar, const struct dmp_endpoint_request *request)
{
	struct dmp_endpoint_answer reply = { .kind = request->kind, .tag = request->tag };
	__u8 transcript[2 * DMP_WIRE_FRAME_BYTES_MAX];
	int length;

	if (request->kind == DMP_REQUEST_AUTHENTICATE) {
		length = dmp_endpoint_transcript(liar->machine, transcript, sizeof(transcript));
		if (length < 0 ||
		    !dmp_proof_check(&liar->assault->secret, false, transcript, (size_t)length,
				     request->proof, request->proof_bytes))
			FAIL("the victim does not know its secret");
		dmp_proof_make(&liar->assault->secret, true, transcript, (size_t)length,
			       reply.proof);
		reply.proof_bytes = DMP_PROOF_BYTES;
	}
	dmp_endpoint_answer(liar->machine, dmp_now_ns(), &reply);
}

/* What has come, up to the end of one frame. False: the connection is gone. */
static bool take(struct liar *liar)
{
	const struct dmp_fabric_type *type = liar->fabric->type;
	__u32 wanted = DMP_WIRE_HEADER_BYTES;
	struct iovec piece;
	ssize_t got;

	if (type->drain)
		type->drain(liar->fabric);
	if (liar->have >= wanted && dmp_wire_peek(liar->in, DMP_WIRE_HEADER_BYTES, &wanted))
		FAIL("the victim broke the protocol");
	if (liar->have == wanted) {
		dmp_endpoint_receive(liar->machine, dmp_now_ns(), liar->in, liar->have);
		liar->have = 0;
		return true;
	}
	piece = (struct iovec){ liar->in + liar->have, wanted - liar->have };
	got = type->receive(liar->fabric, &piece, 1);
	if (got < 0)
		return false;
	liar->have += (uint32_t)got;
	if (!got) {
		struct pollfd one = { .fd = liar->fabric->fd, .events = POLLIN };
		bool rests = !type->rest || type->rest(liar->fabric);

		if (rests)
			poll(&one, 1, 5);
		if (type->wake)
			type->wake(liar->fabric);
	}
	return true;
}

static bool greet(struct liar *liar)
{
	uint64_t limit = dmp_now_ns() + GREETING_NS;
	struct dmp_endpoint_request request;
	struct dmp_endpoint_frame frame;
	__u8 nonce[DMP_WIRE_NONCE_BYTES];

	for (unsigned int i = 0; i < sizeof(nonce); i++)
		nonce[i] = (__u8)assault_random(liar->assault);
	if (dmp_endpoint_connect(liar->machine, dmp_now_ns(), limit, nonce))
		FAIL("the liar's own machine does not call");
	while (liar->machine->state != DMP_ENDPOINT_OPEN) {
		dmp_endpoint_tick(liar->machine, dmp_now_ns());
		while (!dmp_endpoint_next_request(liar->machine, &request))
			answer(liar, &request);
		while (!dmp_endpoint_next_frame(liar->machine, dmp_now_ns(), &frame))
			if (!send_all(liar, frame.bytes, frame.frame_bytes))
				return false;
		if (liar->machine->state == DMP_ENDPOINT_DEAD || !take(liar))
			return false;
	}
	return true;
}

/* ---- lies */

static void make_operation(struct liar *liar, struct dmp_wire_operation *operation)
{
	static const __u16 kinds[] = { DMP_OP_SEND, DMP_OP_WRITE, DMP_OP_WRITE_IMM, DMP_OP_READ };
	struct assault *assault = liar->assault;
	bool honest = assault_below(assault, 2);

	operation->operation = kinds[assault_below(assault, 4)];
	operation->tag = (__u64)++liar->generation << 32 | assault_below(assault, 8);
	operation->length_bytes = 1 + assault_below(assault, 4096);
	operation->offset = operation->operation == DMP_OP_SEND ? 0 :
			    assault_below(assault, GRANTED_BYTES - 8192);
	if (operation->operation != DMP_OP_SEND) {
		operation->key_bytes = assault->key_bytes;
		memcpy(operation->key, assault->key, assault->key_bytes);
	}
	if (honest)
		return;
	switch (assault_below(assault, 8)) {
	case 0:
		operation->tag = assault_random(assault);
		break;
	case 1:
		operation->length_bytes = assault_odd_value(assault);
		break;
	case 2:
		operation->offset = assault_odd_value(assault);
		break;
	case 3:
		assault_garble(assault, operation->key, DMP_WIRE_KEY_BYTES);
		break;
	case 4:
		operation->key_bytes = assault_below(assault, 70);
		break;
	case 5:
		operation->flags = (__u16)assault_below(assault, 4);
		operation->checksum = (__u32)assault_random(assault);
		break;
	case 6:
		operation->operation = (__u16)assault_below(assault, 24);
		break;
	default:
		operation->immediate = (__u32)assault_random(assault);
		break;
	}
}

static void make_body(struct liar *liar, struct dmp_frame *frame)
{
	struct assault *assault = liar->assault;

	switch (frame->type) {
	case DMP_FRAME_OPERATION:
		make_operation(liar, &frame->operation);
		if (frame->operation.operation != DMP_OP_READ &&
		    !(frame->operation.flags & DMP_WIRE_PLACED))
			frame->payload_bytes = frame->operation.length_bytes;
		break;
	case DMP_FRAME_GRANT:
		frame->grant.sequence = assault_odd_value(assault);
		frame->grant.slots = assault_odd_value(assault);
		frame->grant.bytes = assault_odd_value(assault);
		break;
	case DMP_FRAME_RESPONSE:
		frame->response.tag = assault_odd_value(assault);
		frame->response.length_bytes = assault_odd_value(assault);
		frame->payload_bytes = frame->response.length_bytes;
		break;
	case DMP_FRAME_COMPLETE:
	case DMP_FRAME_CANCELLED:
		frame->result.tag = assault_odd_value(assault);
		frame->result.length_bytes = assault_odd_value(assault);
		frame->result.result = -(__s32)assault_below(assault, 200);
		break;
	case DMP_FRAME_GOODBYE:
		frame->reason = -(__s32)assault_below(assault, 200);
		break;
	default:
		frame->tag = (__u64)liar->generation << 32 | assault_below(assault, 8);
		break;
	}
	if (!assault_below(assault, 16))
		frame->payload_bytes = assault_odd_value(assault);
}

/* A frame that decodes, whatever it says; its length. */
static uint32_t make_frame(struct liar *liar, struct dmp_frame *frame, __u8 *bytes)
{
	static const __u32 likely[] = { DMP_FRAME_OPERATION, DMP_FRAME_OPERATION,
					DMP_FRAME_OPERATION, DMP_FRAME_CANCEL, DMP_FRAME_PING };
	struct assault *assault = liar->assault;
	struct dmp_endpoint *machine = liar->machine;
	int length;

	memset(frame, 0, sizeof(*frame));
	frame->type = assault_below(assault, 4) ? likely[assault_below(assault, 5)] :
						   1 + assault_below(assault, DMP_FRAME_TYPES);
	frame->epoch = machine->epoch;
	frame->sequence = ++machine->sequence_out;
	frame->incarnation = machine->config.incarnation;
	frame->destination = machine->peer_incarnation;
	if (!assault_below(assault, 24))
		frame->epoch = (__u32)assault_odd_value(assault);
	if (!assault_below(assault, 24))
		frame->sequence = assault_odd_value(assault);
	if (!assault_below(assault, 24))
		frame->destination = assault_odd_value(assault);
	make_body(liar, frame);
	length = dmp_wire_encode(frame, liar->checked, bytes, DMP_WIRE_FRAME_BYTES_MAX);
	if (length > 0)
		return (uint32_t)length;
	/* What our encoder does not let out is made by damage. */
	frame->type = DMP_FRAME_PING;
	frame->payload_bytes = 0;
	frame->sequence = machine->sequence_out;
	length = dmp_wire_encode(frame, liar->checked, bytes, DMP_WIRE_FRAME_BYTES_MAX);
	if (length <= 0)
		FAIL("a PING does not encode: %d", length);
	assault_garble(assault, bytes + 4, (uint32_t)length - 4);
	assault_seal(bytes, (uint32_t)length);
	return (uint32_t)length;
}

static bool lie(struct liar *liar)
{
	static const __u8 payload[PAYLOAD_ROOM];
	struct assault *assault = liar->assault;
	__u8 bytes[DMP_WIRE_FRAME_BYTES_MAX];
	struct dmp_frame frame;
	uint32_t length = make_frame(liar, &frame, bytes);
	uint64_t follows = frame.payload_bytes;

	if (!assault_below(assault, 16)) {
		assault_garble(assault, bytes, length);
		if (assault_below(assault, 2))
			assault_seal(bytes, length);
	}
	if (!assault_below(assault, 64))
		length = assault_below(assault, length);
	assault->frames++;
	assault->lies++;
	if (!send_all(liar, bytes, length))
		return false;
	if (!assault_below(assault, 16))
		follows = assault_below(assault, PAYLOAD_ROOM);
	return send_all(liar, payload, follows < PAYLOAD_ROOM ? follows : PAYLOAD_ROOM);
}

/* Throws away what the victim says, so that it does not wait for us. */
static bool listen_idly(struct liar *liar)
{
	static __u8 room[PAYLOAD_ROOM];
	const struct dmp_fabric_type *type = liar->fabric->type;
	struct iovec piece = { room, sizeof(room) };
	ssize_t got;

	if (type->drain)
		type->drain(liar->fabric);
	do
		got = type->receive(liar->fabric, &piece, 1);
	while (got > 0);
	return got == 0;
}

void liar_visit(struct assault *assault)
{
	struct dmp_endpoint_config config = {
		.incarnation = assault_random(assault) | 1,
		.window_bytes = 65536,
		.detect_ns = GREETING_NS,
		.window_slots = 16,
		.operations_max = 16,
		.receives_max = 4,
		.incoming_max = 16,
	};
	bool local = assault_below(assault, 2);
	struct liar liar = { .assault = assault, .checked = !local };
	uint32_t turns = 1 + assault_below(assault, FRAMES_MAX);
	size_t bytes;

	liar.fabric = assault_dial(assault, local);
	if (!liar.fabric)
		return;
	config.direct = local;
	config.unchecked = local;
	bytes = dmp_endpoint_bytes(&config);
	liar.memory = malloc(bytes);
	if (!liar.memory || dmp_endpoint_init(&liar.machine, liar.memory, bytes, &config))
		FAIL("no memory for the fuzzer itself");
	if (greet(&liar)) {
		assault->let_in++;
		/* A lie before ACCEPT has returned would count as a failed handshake. */
		nanosleep(&(struct timespec){ .tv_nsec = LET_IN_NS }, NULL);
		if (local)
			assault->failures = 0;
		while (turns-- && lie(&liar) && listen_idly(&liar))
			if (local && !assault_below(assault, 16))
				assault_scribble(assault, liar.fabric, 1);
	}
	assault_leave(liar.fabric);
	free(liar.memory);
}
