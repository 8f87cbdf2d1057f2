// SPDX-License-Identifier: MIT
/*
 * simulator_owner.c - the owner of one machine: a fabric that is slow and late
 *
 * It takes every request at once and answers whenever chance says, except STOP and CUT.
 * Each time it touches a buffer it asserts that the operation is still in flight.
 */
#include <string.h>

#include "simulator_world.h"

/* --- moving bytes --------------------------------------------------------------- */

struct memory *simulator_recall(struct world *world, struct side *side, __u64 index)
{
	if (index >= side->history_count) {
		simulator_broken(world, "a request names operation %llu, which never was",
		       (unsigned long long)index);
		return &side->history[0];
	}
	return &side->history[index];
}

/* The buffer of an own operation is read or written by the fabric. */
static struct memory *touch(struct world *world, struct side *side, __u64 index)
{
	struct memory *memory = simulator_recall(world, side, index);

	LAW(memory->accepted && !memory->completed,
	    "L5: buffer of operation %llu touched after its completion",
	    (unsigned long long)index);
	return memory;
}

/* The bytes of operation @index of @writer reach memory at its peer. */
static void owner_placed(struct world *world, struct side *writer, __u32 life, __u32 index)
{
	struct memory *memory;

	if (life != writer->life)
		return;		/* the writer has restarted and remembers nothing */
	memory = simulator_recall(world, writer, index);
	memory->placed += 1;
	LAW(memory->placed == 1, "operation %u placed twice", index);
	LAW(!memory->completed || memory->result == -ETIMEDOUT ||
	    memory->result == -ECONNRESET,
	    "L5: operation %u placed after it completed with %d", index, memory->result);
}

/* Keys: kind of right, then the incarnation that gave it. */
static __s32 owner_admit(const struct side *side, const struct dmp_endpoint_request *request)
{
	__u64 incarnation;

	memcpy(&incarnation, request->key + 8, sizeof(incarnation));
	if (request->key_bytes != 16)
		return -EACCES;
	if (incarnation != side->incarnation)
		return -ESTALE;
	if (request->key[0] != (request->operation == DMP_OP_READ ? 'R' : 'W'))
		return -EACCES;
	if (request->length_bytes > BLOCK || request->offset % BLOCK ||
	    request->offset / BLOCK >= CELLS)
		return -EACCES;
	return 0;
}

static void fill_pattern(const struct side *owner, __u8 *bytes, __u64 length)
{
	memcpy(bytes, owner->region[0], length);
}

/* A direct fabric moves the bytes of an own operation itself. */
static __s32 owner_move(struct world *world, struct link *link, struct side *side,
		  const struct dmp_endpoint_request *request)
{
	struct side *peer = simulator_peer(link, side);
	struct memory *memory = touch(world, side, request->local);
	__s32 result = owner_admit(peer, request);

	world->out->moves += 1;
	if (result)
		return result;
	if (request->operation == DMP_OP_READ) {
		fill_pattern(peer, memory->bytes, memory->length);
	} else {
		memcpy(peer->region[1 + request->offset / BLOCK % (CELLS - 1)],
		       memory->bytes, memory->length);
		owner_placed(world, side, side->life, (__u32)request->local);
	}
	return 0;
}

/* Put the payload of the last frame where the machine said. */
static __s32 owner_place(struct world *world, struct link *link, struct side *side,
		   const struct pending *pending)
{
	const struct dmp_endpoint_request *request = &pending->request;
	const struct packet *packet = &pending->packet;
	struct memory *memory;
	__s32 result;

	LAW(packet->payload_bytes == request->length_bytes, "payload of another length");
	if (simulator_chance(world, 10)) {
		world->out->faults += 1;
		return -EFAULT;
	}
	switch (request->target) {
	case DMP_TARGET_LOCAL:
		memory = touch(world, side, request->local);
		LAW(request->length_bytes <= memory->length, "message longer than its RECV");
		memcpy(memory->bytes, packet->payload, packet->payload_bytes);
		if (request->operation == DMP_OP_SEND) {
			memory->placed = packet->writer + 1;	/* who it is from */
			memory->connection = (__u32)request->length_bytes;
			owner_placed(world, simulator_peer(link, side), packet->life, packet->writer);
		}
		return 0;
	case DMP_TARGET_STAGE:
		LAW(request->stage < side->config.window_slots, "stage out of range");
		LAW(side->stage_length[request->stage] == 0, "stage used twice");
		memcpy(side->stages[request->stage], packet->payload, packet->payload_bytes);
		side->stage_length[request->stage] = packet->payload_bytes + 1;
		side->stage_writer[request->stage] = packet->writer;
		world->out->staged += 1;
		owner_placed(world, simulator_peer(link, side), packet->life, packet->writer);
		return 0;
	case DMP_TARGET_REGION:
		result = owner_admit(side, request);
		if (result)
			return result;
		memcpy(side->region[1 + request->offset / BLOCK % (CELLS - 1)],
		       packet->payload, packet->payload_bytes);
		owner_placed(world, simulator_peer(link, side), packet->life, packet->writer);
		return 0;
	default:
		return 0;
	}
}

static __s32 copy_message(struct world *world, struct side *side,
			  const struct dmp_endpoint_request *request)
{
	struct memory *memory = touch(world, side, request->local);
	__u32 length = side->stage_length[request->stage];

	LAW(length == request->length_bytes + 1, "stage %u lost its message", request->stage);
	LAW(request->length_bytes <= memory->length, "message longer than its RECV");
	if (simulator_chance(world, 30)) {
		world->out->faults += 1;
		return -EFAULT;
	}
	memcpy(memory->bytes, side->stages[request->stage], request->length_bytes);
	memory->placed = side->stage_writer[request->stage] + 1;
	memory->connection = (__u32)request->length_bytes;
	side->stage_length[request->stage] = 0;
	return 0;
}

/* --- the owner of one machine --------------------------------------------------- */

void owner_forget(struct side *side)
{
	side->pending_count = 0;
	side->sending = false;
	memset(side->stage_length, 0, sizeof(side->stage_length));
}

static void owner_authenticate(struct side *side, const struct dmp_endpoint_request *request,
			 struct dmp_endpoint_answer *answer)
{
	__u8 transcript[512];
	int length = dmp_endpoint_transcript(side->machine, transcript, sizeof(transcript));
	__u64 hash = side->bad_secret ? 1 : 14695981039346656037ULL;
	int i;

	for (i = 0; i < length; i++)
		hash = (hash ^ transcript[i]) * 0x100000001b3ULL;
	if (request->proof_bytes && memcmp(request->proof, &hash, sizeof(hash)))
		answer->result = -EACCES;
	memcpy(answer->proof, &hash, sizeof(hash));
	answer->proof_bytes = sizeof(hash);
}

void owner_answer(struct world *world, struct link *link, struct side *side,
		       __u32 index)
{
	struct pending pending = side->pending[index];
	struct dmp_endpoint_answer answer = { .kind = pending.request.kind };
	int error;

	side->pending_count -= 1;
	memmove(&side->pending[index], &side->pending[index + 1],
		(side->pending_count - index) * sizeof(pending));
	answer.tag = pending.request.tag;
	answer.length_bytes = pending.request.length_bytes;
	switch (pending.request.kind) {
	case DMP_REQUEST_AUTHENTICATE:
		owner_authenticate(side, &pending.request, &answer);
		world->out->refused_proof += answer.result == -EACCES;
		break;
	case DMP_REQUEST_ADMIT:
		answer.result = owner_admit(side, &pending.request);
		break;
	case DMP_REQUEST_PLACE:
		answer.result = owner_place(world, link, side, &pending);
		break;
	case DMP_REQUEST_MOVE:
		answer.result = owner_move(world, link, side, &pending.request);
		break;
	case DMP_REQUEST_COPY:
		answer.result = copy_message(world, side, &pending.request);
		break;
	default:
		break;
	}
	error = dmp_endpoint_answer(side->machine, world->now_ns, &answer);
	simulator_note(world, "answer", side, pending.request.kind, error);
	/* after the end, an answer that frees no buffer of ours has no one to go to */
	LAW(!error || (error == -ESTALE && !simulator_is_up(side) &&
		       pending.request.kind != DMP_REQUEST_MOVE &&
		       pending.request.kind != DMP_REQUEST_COPY),
	    "answer to request %u refused with %d", pending.request.kind, error);
}

/* STOP: let go at once. The rest of a payload goes on without the buffer. */
static void owner_stop(struct world *world, struct link *link, struct side *side,
		       const struct dmp_endpoint_request *request)
{
	struct dmp_endpoint_answer answer = { .kind = DMP_REQUEST_STOP, .tag = request->tag };
	struct memory *memory;
	__u32 i;

	world->out->stops += 1;
	if (side->sending && side->sending_tag == request->tag && !side->sending_bounced) {
		memory = touch(world, side, side->sending_index);
		memcpy(side->sending_packet.payload, memory->bytes, memory->length);
		side->sending_bounced = true;
	}
	for (i = 0; i < side->pending_count; i++) {
		struct dmp_endpoint_request *held = &side->pending[i].request;

		if (held->kind == DMP_REQUEST_PLACE && held->target == DMP_TARGET_LOCAL &&
		    held->local == request->local) {
			held->target = request->target ? request->target : DMP_TARGET_DISCARD;
			held->stage = request->stage;
		} else if ((held->kind == DMP_REQUEST_MOVE || held->kind == DMP_REQUEST_COPY) &&
			   held->tag == request->tag) {
			if (simulator_chance(world, 512)) {
				owner_answer(world, link, side, i);	/* just done */
				return;
			}
			side->pending_count -= 1;
			memmove(&side->pending[i], &side->pending[i + 1],
				(side->pending_count - i) * sizeof(side->pending[0]));
			break;
		}
	}
	i = (__u32)dmp_endpoint_answer(side->machine, world->now_ns, &answer);
	LAW(!i, "answer to STOP refused with %d", (int)i);
}

void owner_take_requests(struct world *world, struct link *link, struct side *side)
{
	struct dmp_endpoint_answer cut = { .kind = DMP_REQUEST_CUT };
	struct dmp_endpoint_request request;

	while (!dmp_endpoint_next_request(side->machine, &request)) {
		simulator_note(world, "request", side, request.kind, (__s64)request.tag);
		if (request.kind == DMP_REQUEST_CUT) {
			owner_forget(side);
			LAW(!dmp_endpoint_answer(side->machine, world->now_ns, &cut),
			    "answer to CUT refused");
			world->out->cuts += 1;
		} else if (request.kind == DMP_REQUEST_STOP) {
			owner_stop(world, link, side, &request);
		} else if (side->pending_count == PENDING) {
			simulator_broken(world, "more requests than operations");
			return;
		} else {
			side->pending[side->pending_count].request = request;
			side->pending[side->pending_count].packet = side->last_packet;
			side->pending_count += 1;
			/* what follows is no more urgent than this one */
			if (request.kind >= DMP_REQUEST_ADMIT && simulator_is_lazy(world))
				return;
		}
	}
}

void owner_finish_sending(struct world *world, struct link *link, struct side *side)
{
	struct memory *memory;
	int error;

	if (!side->sending_bounced) {
		memory = touch(world, side, side->sending_index);
		memcpy(side->sending_packet.payload, memory->bytes, memory->length);
	}
	side->sending = false;
	simulator_transmit(world, link, side, &side->sending_packet);
	error = dmp_endpoint_sent(side->machine, world->now_ns, side->sending_tag);
	LAW(side->sending_bounced ? error == -ESTALE : !error, "sent answered %d", error);
}

void owner_take_frames(struct world *world, struct link *link, struct side *side)
{
	struct dmp_endpoint_frame frame;
	struct packet packet;

	while (!side->sending && !dmp_endpoint_next_frame(side->machine, world->now_ns, &frame)) {
		memset(&packet, 0, sizeof(packet));
		packet.frame_bytes = frame.frame_bytes;
		packet.payload_bytes = (__u32)frame.payload_bytes;
		memcpy(packet.bytes, frame.bytes, frame.frame_bytes);
		packet.writer = (__u32)frame.local;
		simulator_note(world, "frame", side, frame.bytes[5], (__s64)frame.tag);
		if (frame.payload == DMP_PAYLOAD_LOCAL) {
			side->sending = true;
			side->sending_bounced = false;
			side->sending_tag = frame.tag;
			side->sending_index = (__u32)frame.local;
			side->sending_packet = packet;
			return;
		}
		if (frame.payload == DMP_PAYLOAD_REGION)
			fill_pattern(side, packet.payload, frame.payload_bytes);
		simulator_transmit(world, link, side, &packet);
	}
}

void owner_deliver(struct world *world, struct link *link, struct side *side)
{
	struct wire *wire = &link->wire[side == &link->side[0] ? 0 : 1];
	struct packet packet;
	__u64 honoured;
	int error;

	if (!wire->count || wire->packets[0].arrival_ns > world->now_ns)
		return;
	packet = wire->packets[0];
	error = dmp_endpoint_receive(side->machine, world->now_ns, packet.bytes,
				     packet.frame_bytes);
	simulator_note(world, "receive", side, packet.bytes[5], error);
	if (error == -EBUSY && simulator_status(side).state != DMP_ENDPOINT_CUTTING)
		return;		/* it waits for an answer of ours */
	side->last_packet = packet;
	wire->count -= 1;
	memmove(&wire->packets[0], &wire->packets[1], wire->count * sizeof(packet));
	honoured = simulator_status(side).frames_honoured;
	world->out->stale += error == -ESTALE;
	world->out->superseded += error == -EBUSY;
	if (honoured != side->honoured) {
		LAW(honoured == side->honoured + 1 && !packet.corrupt,
		    "a corrupt frame was honoured");
		if (!side->peer_connection)
			side->peer_connection = packet.connection;
		LAW(side->peer_connection == packet.connection,
		    "L7: a frame of connection %u was honoured on one with %u",
		    packet.connection, side->peer_connection);
		side->honoured = honoured;
		side->heard_ns = world->now_ns;
	}
}

