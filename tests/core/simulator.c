// SPDX-License-Identifier: MIT
/* simulator.c - the world, the owners and the laws; see simulator.h */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dmaplane.h"
#include "endpoint.h"
#include "simulator.h"

#define NODES		3
#define LINKS		3
#define BLOCK		64	/* bytes of a local buffer, a message, a region cell */
#define CELLS		8
#define HISTORY		1024	/* own operations remembered per life of a side */
#define PACKETS		64
#define PENDING		16
#define SLOTS_MAX	4
#define STEP_NS_MAX	800000ULL
#define DETECT_NS	30000000ULL
#define HANDSHAKE_NS	25000000ULL
#define SETTLE_STEPS	4000
#define MEMORY_BYTES	16384

enum phase { BUSY, QUIET, DRAIN };

/* One own operation, as its user remembers it. */
struct memory {
	__u64 tag, deadline_ns;
	__u32 length, placed, connection;
	__u16 operation;
	__s32 result;
	bool accepted, completed, announced;
	__u8 bytes[BLOCK];
};

/* A frame on the wire with its payload, and who wrote it. */
struct packet {
	__u64 arrival_ns;
	__u32 life, connection, frame_bytes, payload_bytes, writer;
	bool corrupt;
	__u8 bytes[DMP_WIRE_FRAME_BYTES_MAX];
	__u8 payload[BLOCK];
};

struct wire {
	struct packet packets[PACKETS];
	__u32 count;
};

/* A request the owner has taken and not answered. */
struct pending {
	struct dmp_endpoint_request request;
	struct packet packet;	/* PLACE: where the bytes come from */
};

struct side {
	struct dmp_endpoint *machine;
	_Alignas(8) __u8 block[MEMORY_BYTES];
	struct dmp_endpoint_config config;
	__u64 incarnation;
	__u32 life;		/* counts restarts */
	__u32 connection;	/* counts attempts, over all lives */
	__u32 peer_connection;	/* the attempt of the peer this one talks to, 0 unknown */
	__u32 last_message;	/* newest message a RECV got on this connection, + 1 */
	__u64 honoured;
	bool bad_secret, alive;
	struct memory history[HISTORY];
	__u32 history_count, first_open;
	struct packet last_packet;
	struct pending pending[PENDING];
	__u32 pending_count;
	bool sending, sending_bounced;
	__u64 sending_tag;
	__u32 sending_index;
	struct packet sending_packet;
	__u8 region[CELLS][BLOCK];
	__u8 stages[SLOTS_MAX][BLOCK];
	__u32 stage_length[SLOTS_MAX], stage_writer[SLOTS_MAX];
};

struct link {
	struct side side[2];
	struct wire wire[2];	/* wire[i] leads to side[i] */
	__u32 node[2];
	bool direct;
};

struct world {
	struct simulation *out;
	struct link links[LINKS];
	__u64 random, now_ns, incarnations;
	__u32 step, epochs, connections;
	enum phase phase;
	/* this seed's temper, in 1/1024 */
	__u32 drop, repeat, swap, corrupt, cut, restart, cancel, lazy, impatient;
};

static __u32 pick(struct world *world, __u32 below)
{
	world->random ^= world->random << 13;
	world->random ^= world->random >> 7;
	world->random ^= world->random << 17;
	return (__u32)((world->random * 0x2545f4914f6cdd1dULL >> 33) % below);
}

static bool chance(struct world *world, __u32 per_1024)
{
	return per_1024 && pick(world, 1024) < per_1024;
}

/* Every event goes into the hash, and to the screen if asked for. */
static void note(struct world *world, const char *what, const struct side *side,
		 __u64 a, __s64 b)
{
	const __u8 *at = (const __u8 *)what;
	__u64 hash = world->out->trace_hash ^ world->step;
	__u32 link = 0, end = 0;

	for (; *at; at++)
		hash = (hash ^ *at) * 0x100000001b3ULL;
	hash = (hash ^ a) * 0x100000001b3ULL;
	hash = (hash ^ (__u64)b) * 0x100000001b3ULL;
	if (side)
		for (link = 0; link < LINKS; link++)
			for (end = 0; end < 2; end++)
				if (&world->links[link].side[end] == side)
					goto found;
found:
	hash = (hash ^ (link * 2 + end)) * 0x100000001b3ULL;
	world->out->trace_hash = hash ^ world->now_ns;
	if (world->out->trace)
		printf("%5u %12llu %u%c %-12s %llx %lld\n", world->step,
		       (unsigned long long)world->now_ns, link, end ? 'b' : 'a', what,
		       (unsigned long long)a, (long long)b);
}

__attribute__((format(printf, 2, 3)))
static void broken(struct world *world, const char *format, ...)
{
	va_list arguments;

	if (world->out->failed)
		return;
	va_start(arguments, format);
	vsnprintf(world->out->message, sizeof(world->out->message), format, arguments);
	va_end(arguments);
	world->out->failed = true;
	world->out->failed_step = world->step;
}

#define LAW(condition, ...)					\
	do {							\
		if (!(condition))				\
			broken(world, __VA_ARGS__);		\
	} while (0)

static struct side *peer_of(struct link *link, const struct side *side)
{
	return side == &link->side[0] ? &link->side[1] : &link->side[0];
}

static __u8 pattern(__u64 seed, __u32 i)
{
	return (__u8)((seed * 0x9e3779b97f4a7c15ULL >> 40) + i * 31);
}

/* --- the life of a side --------------------------------------------------------- */

static void born(struct world *world, struct link *link, struct side *side)
{
	struct dmp_endpoint_config *config = &side->config;
	__u32 i;

	side->life += 1;
	side->incarnation = ++world->incarnations;
	config->incarnation = side->incarnation;
	config->features = 3;
	config->features_required = 1;
	config->detect_ns = DETECT_NS;
	config->operations_max = 1 + pick(world, SLOTS_MAX);
	config->receives_max = 1 + pick(world, 3);
	config->incoming_max = 1 + pick(world, SLOTS_MAX);
	config->window_slots = 1 + pick(world, SLOTS_MAX);
	config->window_bytes = 32 + pick(world, 3 * BLOCK);
	config->direct = link->direct;
	LAW(dmp_endpoint_bytes(config) <= sizeof(side->block), "machine too large");
	if (dmp_endpoint_init(&side->machine, side->block, sizeof(side->block), config))
		broken(world, "init failed");
	side->alive = true;
	side->history_count = side->first_open = 0;
	side->pending_count = 0;
	side->sending = false;
	side->honoured = 0;
	side->connection = ++world->connections;
	side->peer_connection = 0;
	for (i = 0; i < BLOCK; i++)
		side->region[0][i] = pattern(side->incarnation, i);
	note(world, "born", side, side->incarnation, 0);
}

static struct dmp_endpoint_status status_of(const struct side *side)
{
	struct dmp_endpoint_status status;

	dmp_endpoint_query(side->machine, &status);
	return status;
}

static bool is_up(const struct side *side)
{
	__u32 state = status_of(side).state;

	return state >= DMP_ENDPOINT_OPEN && state <= DMP_ENDPOINT_DRAINED;
}

/* Dead and read: forget the connection and try again. */
static void reconnect(struct world *world, struct link *link, struct side *side)
{
	__u8 nonce[DMP_WIRE_NONCE_BYTES] = { 0 };
	__u32 state = status_of(side).state;
	__u32 i;

	if (state == DMP_ENDPOINT_DEAD && dmp_endpoint_reset(side->machine))
		return;
	if (state != DMP_ENDPOINT_DEAD && state != DMP_ENDPOINT_IDLE)
		return;
	for (i = side->first_open; i < side->history_count; i++)
		LAW(!side->history[i].accepted || side->history[i].completed,
		    "reset while operation %u is not completed", i);
	side->connection = ++world->connections;
	side->peer_connection = 0;
	side->last_message = 0;
	side->honoured = status_of(side).frames_honoured;
	side->bad_secret = world->phase == BUSY && chance(world, 40);
	memcpy(nonce, &side->connection, sizeof(side->connection));
	if (side == &link->side[0])
		dmp_endpoint_connect(side->machine, world->now_ns,
				     world->now_ns + HANDSHAKE_NS, nonce);
	else
		dmp_endpoint_accept(side->machine, world->now_ns,
				    world->now_ns + 2 * HANDSHAKE_NS, ++world->epochs,
				    nonce);
	note(world, "connect", side, side->connection, 0);
}

/* --- the wire ------------------------------------------------------------------- */

static void put(struct world *world, struct wire *wire, const struct packet *packet,
		__u32 place)
{
	if (wire->count == PACKETS)
		return;		/* as good as dropped; a gap will show */
	memmove(&wire->packets[place + 1], &wire->packets[place],
		(wire->count - place) * sizeof(*packet));
	wire->packets[place] = *packet;
	wire->count += 1;
	note(world, "packet", NULL, packet->frame_bytes, wire->count);
}

/* The network does its worst to one packet. */
static void transmit(struct world *world, struct link *link, struct side *from,
		     struct packet *packet)
{
	struct wire *wire = &link->wire[from == &link->side[0] ? 1 : 0];
	struct simulation *out = world->out;
	bool faulty = world->phase == BUSY;

	packet->life = from->life;
	packet->connection = from->connection;
	packet->arrival_ns = world->now_ns + pick(world, 300000);
	out->frames += 1;
	if (faulty && chance(world, world->drop)) {
		out->dropped += 1;
		return;
	}
	if (faulty && chance(world, world->corrupt)) {
		out->corrupted += 1;
		packet->corrupt = true;
		packet->bytes[pick(world, packet->frame_bytes)] ^= (__u8)(1 + pick(world, 255));
	}
	if (faulty && wire->count && chance(world, world->swap)) {
		out->swapped += 1;
		put(world, wire, packet, pick(world, wire->count));
	} else {
		put(world, wire, packet, wire->count);
	}
	if (faulty && chance(world, world->repeat)) {
		out->repeated += 1;
		put(world, wire, packet, wire->count);
	}
}

/* --- moving bytes --------------------------------------------------------------- */

static struct memory *recall(struct world *world, struct side *side, __u64 index)
{
	if (index >= side->history_count) {
		broken(world, "a request names operation %llu, which never was",
		       (unsigned long long)index);
		return &side->history[0];
	}
	return &side->history[index];
}

/* The buffer of an own operation is read or written by the fabric. */
static struct memory *touch(struct world *world, struct side *side, __u64 index)
{
	struct memory *memory = recall(world, side, index);

	LAW(memory->accepted && !memory->completed,
	    "L5: buffer of operation %llu touched after its completion",
	    (unsigned long long)index);
	return memory;
}

/* The bytes of operation @index of @writer reach memory at its peer. */
static void placed(struct world *world, struct side *writer, __u32 life, __u32 index)
{
	struct memory *memory;

	if (life != writer->life)
		return;		/* the writer has restarted and remembers nothing */
	memory = recall(world, writer, index);
	memory->placed += 1;
	LAW(memory->placed == 1, "operation %u placed twice", index);
	LAW(!memory->completed || memory->result == -ETIMEDOUT ||
	    memory->result == -ECONNRESET,
	    "L5: operation %u placed after it completed with %d", index, memory->result);
}

/* Keys: kind of right, then the incarnation that gave it. */
static __s32 admit(const struct side *side, const struct dmp_endpoint_request *request)
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
static __s32 move(struct world *world, struct link *link, struct side *side,
		  const struct dmp_endpoint_request *request)
{
	struct side *peer = peer_of(link, side);
	struct memory *memory = touch(world, side, request->local);
	__s32 result = admit(peer, request);

	world->out->moves += 1;
	if (result)
		return result;
	if (request->operation == DMP_OP_READ) {
		fill_pattern(peer, memory->bytes, memory->length);
	} else {
		memcpy(peer->region[1 + request->offset / BLOCK % (CELLS - 1)],
		       memory->bytes, memory->length);
		placed(world, side, side->life, (__u32)request->local);
	}
	return 0;
}

/* Put the payload of the last frame where the machine said. */
static __s32 place(struct world *world, struct link *link, struct side *side,
		   const struct pending *pending)
{
	const struct dmp_endpoint_request *request = &pending->request;
	const struct packet *packet = &pending->packet;
	struct memory *memory;
	__s32 result;

	LAW(packet->payload_bytes == request->length_bytes, "payload of another length");
	switch (request->target) {
	case DMP_TARGET_LOCAL:
		memory = touch(world, side, request->local);
		LAW(request->length_bytes <= memory->length, "message longer than its RECV");
		memcpy(memory->bytes, packet->payload, packet->payload_bytes);
		if (request->operation == DMP_OP_SEND) {
			memory->placed = packet->writer + 1;	/* who it is from */
			memory->connection = (__u32)request->length_bytes;
			placed(world, peer_of(link, side), packet->life, packet->writer);
		}
		return 0;
	case DMP_TARGET_STAGE:
		LAW(request->stage < side->config.window_slots, "stage out of range");
		LAW(side->stage_length[request->stage] == 0, "stage used twice");
		memcpy(side->stages[request->stage], packet->payload, packet->payload_bytes);
		side->stage_length[request->stage] = packet->payload_bytes + 1;
		side->stage_writer[request->stage] = packet->writer;
		world->out->staged += 1;
		placed(world, peer_of(link, side), packet->life, packet->writer);
		return 0;
	case DMP_TARGET_REGION:
		result = admit(side, request);
		if (result)
			return result;
		memcpy(side->region[1 + request->offset / BLOCK % (CELLS - 1)],
		       packet->payload, packet->payload_bytes);
		placed(world, peer_of(link, side), packet->life, packet->writer);
		return 0;
	default:
		return 0;
	}
}

static void copy_message(struct world *world, struct side *side,
			 const struct dmp_endpoint_request *request)
{
	struct memory *memory = touch(world, side, request->local);
	__u32 length = side->stage_length[request->stage];

	LAW(length == request->length_bytes + 1, "stage %u lost its message", request->stage);
	LAW(request->length_bytes <= memory->length, "message longer than its RECV");
	memcpy(memory->bytes, side->stages[request->stage], request->length_bytes);
	memory->placed = side->stage_writer[request->stage] + 1;
	memory->connection = (__u32)request->length_bytes;
	side->stage_length[request->stage] = 0;
}

/* --- the owner of one machine --------------------------------------------------- */

static void forget_work(struct side *side)
{
	side->pending_count = 0;
	side->sending = false;
	memset(side->stage_length, 0, sizeof(side->stage_length));
}

static void authenticate(struct side *side, const struct dmp_endpoint_request *request,
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

static void answer_one(struct world *world, struct link *link, struct side *side,
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
		authenticate(side, &pending.request, &answer);
		world->out->refused_proof += answer.result == -EACCES;
		break;
	case DMP_REQUEST_ADMIT:
		answer.result = admit(side, &pending.request);
		break;
	case DMP_REQUEST_PLACE:
		answer.result = place(world, link, side, &pending);
		break;
	case DMP_REQUEST_MOVE:
		answer.result = move(world, link, side, &pending.request);
		break;
	case DMP_REQUEST_COPY:
		copy_message(world, side, &pending.request);
		break;
	default:
		break;
	}
	error = dmp_endpoint_answer(side->machine, world->now_ns, &answer);
	note(world, "answer", side, pending.request.kind, error);
	LAW(!error || (error == -ESTALE && !is_up(side)), "answer to request %u refused with %d",
	    pending.request.kind, error);
}

/* STOP: let go at once. The rest of a payload goes on without the buffer. */
static void stop(struct world *world, struct side *side,
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
			side->pending_count -= 1;
			memmove(&side->pending[i], &side->pending[i + 1],
				(side->pending_count - i) * sizeof(side->pending[0]));
			break;
		}
	}
	i = (__u32)dmp_endpoint_answer(side->machine, world->now_ns, &answer);
	LAW(!i, "answer to STOP refused with %d", (int)i);
}

static void take_requests(struct world *world, struct side *side)
{
	struct dmp_endpoint_answer cut = { .kind = DMP_REQUEST_CUT };
	struct dmp_endpoint_request request;

	while (!dmp_endpoint_next_request(side->machine, &request)) {
		note(world, "request", side, request.kind, (__s64)request.tag);
		if (request.kind == DMP_REQUEST_CUT) {
			forget_work(side);
			LAW(!dmp_endpoint_answer(side->machine, world->now_ns, &cut),
			    "answer to CUT refused");
			world->out->cuts += 1;
		} else if (request.kind == DMP_REQUEST_STOP) {
			stop(world, side, &request);
		} else if (side->pending_count == PENDING) {
			broken(world, "more requests than operations");
			return;
		} else {
			side->pending[side->pending_count].request = request;
			side->pending[side->pending_count].packet = side->last_packet;
			side->pending_count += 1;
		}
	}
}

static void finish_sending(struct world *world, struct link *link, struct side *side)
{
	struct memory *memory;
	int error;

	if (!side->sending_bounced) {
		memory = touch(world, side, side->sending_index);
		memcpy(side->sending_packet.payload, memory->bytes, memory->length);
	}
	side->sending = false;
	transmit(world, link, side, &side->sending_packet);
	error = dmp_endpoint_sent(side->machine, world->now_ns, side->sending_tag);
	LAW(side->sending_bounced ? error == -ESTALE : !error, "sent answered %d", error);
}

static void take_frames(struct world *world, struct link *link, struct side *side)
{
	struct dmp_endpoint_frame frame;
	struct packet packet;

	while (!side->sending && !dmp_endpoint_next_frame(side->machine, world->now_ns, &frame)) {
		memset(&packet, 0, sizeof(packet));
		packet.frame_bytes = frame.frame_bytes;
		packet.payload_bytes = (__u32)frame.payload_bytes;
		memcpy(packet.bytes, frame.bytes, frame.frame_bytes);
		packet.writer = (__u32)frame.local;
		note(world, "frame", side, frame.bytes[5], (__s64)frame.tag);
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
		transmit(world, link, side, &packet);
	}
}

static void deliver(struct world *world, struct link *link, struct side *side)
{
	struct wire *wire = &link->wire[side == &link->side[0] ? 0 : 1];
	struct packet packet;
	__u64 honoured;
	int error;

	if (!wire->count || wire->packets[0].arrival_ns > world->now_ns)
		return;
	packet = wire->packets[0];
	side->last_packet = packet;
	error = dmp_endpoint_receive(side->machine, world->now_ns, packet.bytes,
				     packet.frame_bytes);
	note(world, "receive", side, packet.bytes[5], error);
	if (error == -EBUSY && side->pending_count)
		return;		/* it waits for an answer of ours */
	wire->count -= 1;
	memmove(&wire->packets[0], &wire->packets[1], wire->count * sizeof(packet));
	honoured = status_of(side).frames_honoured;
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
	}
	take_requests(world, side);
}

/* --- the user of one machine ---------------------------------------------------- */

static void submit(struct world *world, struct link *link, struct side *side, __u16 operation)
{
	struct dmp_endpoint_submission submission = { .operation = operation };
	struct memory *memory = &side->history[side->history_count];
	__u64 owner = peer_of(link, side)->incarnation;
	__u32 i, index = side->history_count;
	int error;

	if (index == HISTORY)
		return;
	memset(memory, 0, sizeof(*memory));
	memory->operation = operation;
	memory->length = 1 + pick(world, BLOCK);
	if (operation == DMP_OP_SEND && chance(world, 100))
		memory->length = 0;
	for (i = 0; i < memory->length; i++)
		memory->bytes[i] = pattern(side->incarnation << 20 | index, i);
	submission.user_data = index;
	submission.local = index;
	submission.length_bytes = memory->length;
	if (chance(world, world->impatient))
		submission.deadline_ns = world->now_ns + pick(world, 8000000);
	if (chance(world, 200))
		submission.flags = DMP_SUBMIT_NOWAIT;
	if (operation == DMP_OP_WRITE || operation == DMP_OP_WRITE_IMM ||
	    operation == DMP_OP_READ) {
		submission.offset = pick(world, CELLS) * BLOCK;
		submission.key_bytes = 16;
		submission.key[0] = operation == DMP_OP_READ ? 'R' : 'W';
		if (chance(world, 30))
			owner -= 1;
		if (chance(world, 30))
			submission.key[0] = 'X';
		memcpy(submission.key + 8, &owner, sizeof(owner));
	}
	if (operation == DMP_OP_WRITE_IMM)
		submission.immediate = index + 1;
	error = dmp_endpoint_submit(side->machine, world->now_ns, &submission, &memory->tag);
	note(world, "submit", side, operation, error);
	world->out->no_credit += error == -EAGAIN && submission.flags;
	if (error)
		return;
	memory->accepted = true;
	memory->deadline_ns = submission.deadline_ns;
	memory->connection = side->connection;
	side->history_count += 1;
	world->out->submitted += 1;
}

/* A RECV has a message: whole, unaltered, from this peer, in order, wanted. */
static void check_message(struct world *world, struct side *peer, struct side *side,
			  const struct memory *memory, __u64 length)
{
	const struct memory *from;
	__u32 i;

	world->out->messages += 1;
	LAW(memory->placed, "RECV succeeded without a message");
	LAW(memory->connection == length, "RECV reports another length");
	LAW(memory->placed > side->last_message, "message %u came after %u",
	    memory->placed - 1, side->last_message - 1);
	side->last_message = memory->placed;
	if (side->peer_connection != peer->connection || !memory->placed)
		return;
	from = recall(world, peer, memory->placed - 1);
	LAW(from->operation == DMP_OP_SEND && from->length == length, "not that message");
	for (i = 0; i < length; i++)
		LAW(memory->bytes[i] == from->bytes[i], "message bytes differ");
}

static void check_success(struct world *world, struct link *link, struct side *side,
			  const struct memory *memory, __u64 length)
{
	struct side *peer = peer_of(link, side);
	__u32 i;

	world->out->succeeded += 1;
	switch (memory->operation) {
	case DMP_OP_RECV:
		check_message(world, peer, side, memory, length);
		return;
	case DMP_OP_READ:
		world->out->reads += 1;
		for (i = 0; i < length && peer->connection == side->peer_connection; i++)
			LAW(memory->bytes[i] == pattern(peer->incarnation, i),
			    "READ brought bytes of another incarnation");
		break;
	default:
		world->out->writes += 1;
		LAW(memory->placed == 1, "succeeded, but its bytes were placed %u times",
		    memory->placed);
	}
	LAW(length == memory->length, "succeeded with another length");
}

static void complete_event(struct world *world, struct link *link, struct side *side,
			   const struct dmp_endpoint_completion *completion)
{
	struct side *peer = peer_of(link, side);
	struct memory *memory;

	if (completion->operation != DMP_EVENT_WRITE_IMM)
		return;
	world->out->immediates += 1;
	if (side->peer_connection != peer->connection)
		return;
	memory = recall(world, peer, completion->immediate - 1);
	LAW(memory->operation == DMP_OP_WRITE_IMM && memory->placed == 1 &&
	    !memory->announced, "immediate %u is not one that was sent and placed once",
	    completion->immediate);
	memory->announced = true;
}

static void take_completion(struct world *world, struct link *link, struct side *side,
			    const struct dmp_endpoint_completion *completion)
{
	struct simulation *out = world->out;
	struct memory *memory;

	note(world, "complete", side, completion->user_data, completion->result);
	if (completion->flags & DMP_COMPLETE_EVENT) {
		complete_event(world, link, side, completion);
		return;
	}
	memory = recall(world, side, completion->user_data);
	LAW(memory->accepted && memory->tag == completion->tag, "L1: completion of nothing");
	LAW(!memory->completed, "L1: operation %llu completed twice",
	    (unsigned long long)completion->user_data);
	memory->completed = true;
	memory->result = completion->result;
	while (side->first_open < side->history_count &&
	       side->history[side->first_open].completed)
		side->first_open += 1;
	out->completed += 1;
	out->timed_out += completion->result == -ETIMEDOUT;
	out->cancelled += completion->result == -ECANCELED;
	out->reset += completion->result == -ECONNRESET;
	out->refused_access += completion->result == -EACCES;
	out->too_small += completion->result == -EOVERFLOW;
	LAW(completion->result != -ETIMEDOUT || memory->deadline_ns, "ETIMEDOUT without deadline");
	if (!completion->result)
		check_success(world, link, side, memory, completion->length_bytes);
}

static void read_completions(struct world *world, struct link *link, struct side *side)
{
	struct dmp_endpoint_completion completion;

	while (!dmp_endpoint_next_completion(side->machine, world->now_ns, &completion))
		take_completion(world, link, side, &completion);
}

static void act(struct world *world, struct link *link, struct side *side)
{
	static const __u16 operations[] = { DMP_OP_SEND, DMP_OP_SEND, DMP_OP_RECV, DMP_OP_RECV,
					    DMP_OP_WRITE, DMP_OP_WRITE_IMM,
					    DMP_OP_WRITE_IMM, DMP_OP_READ };
	__u32 open;

	submit(world, link, side, operations[pick(world, 8)]);
	open = side->history_count - side->first_open;
	if (open && chance(world, world->cancel)) {
		struct memory *memory = &side->history[side->first_open + pick(world, open)];
		int error = dmp_endpoint_cancel(side->machine, world->now_ns, memory->tag);

		note(world, "cancel", side, memory->tag, error);
		world->out->cancels += !error;
		LAW(!error || error == -ENOENT, "cancel answered %d", error);
	}
	if (chance(world, 2) && !dmp_endpoint_drain(side->machine, world->now_ns,
						     world->now_ns + 5 * DETECT_NS))
		world->out->drained += 1;
	if (chance(world, 1) && !dmp_endpoint_goodbye(side->machine, world->now_ns))
		world->out->goodbyes += 1;
}

/* --- the laws, looked at after every step --------------------------------------- */

static void check_side(struct world *world, struct side *side)
{
	struct dmp_endpoint_status status = status_of(side);
	__u32 i, late = 0, open = 0, done = 0;

	LAW(!dmp_endpoint_check(side->machine), "the machine contradicts itself");
	for (i = side->first_open; i < side->history_count; i++) {
		const struct memory *memory = &side->history[i];

		open += memory->accepted && !memory->completed;
		late += !memory->completed && memory->deadline_ns &&
			memory->deadline_ns <= world->now_ns;
	}
	done = open - status.operations;
	LAW(open >= status.operations, "L1: the machine has operations nobody submitted");
	/* what is late must be among the completions that were not read yet */
	LAW(done <= status.unread, "L1: %u operations vanished", done - status.unread);
	LAW(late <= done, "L1: an operation is not completed after its deadline");
	LAW(status.unread <= side->config.operations_max + side->config.receives_max +
				     side->config.window_slots + 1,
	    "L2: completions overflow");
	world->out->zombies += status.zombies;
}

/* What the sender believes it may do never exceeds what the receiver gave. */
static void check_pair(struct world *world, const struct side *from, const struct side *to)
{
	struct dmp_endpoint_status sender = status_of(from);
	struct dmp_endpoint_status receiver = status_of(to);

	if (from->peer_connection != to->connection || to->peer_connection != from->connection)
		return;
	if (sender.state < DMP_ENDPOINT_OPEN || sender.state > DMP_ENDPOINT_DRAINED ||
	    receiver.state < DMP_ENDPOINT_OPEN || receiver.state > DMP_ENDPOINT_DRAINED)
		return;
	LAW(sender.epoch == receiver.epoch, "L7: a connection with two epochs");
	LAW(sender.send.granted.slots <= receiver.receive.granted.slots &&
	    sender.send.granted.bytes <= receiver.receive.granted.bytes,
	    "L2: the sender has credit that was never granted");
	LAW(receiver.receive.granted.slots - receiver.receive.completed.slots <=
		    to->config.window_slots &&
	    receiver.receive.granted.bytes - receiver.receive.completed.bytes <=
		    to->config.window_bytes,
	    "L2: granted beyond the window");
}

/* --- faults --------------------------------------------------------------------- */

static void cut(struct world *world, struct link *link)
{
	__u32 end;

	for (end = 0; end < 2; end++) {
		if (chance(world, 512))
			link->wire[end].count = 0;
		if (chance(world, 768)) {
			forget_work(&link->side[end]);
			dmp_endpoint_abort(link->side[end].machine, -ECONNRESET);
		}
	}
	note(world, "cut", &link->side[0], 0, 0);
}

static void restart(struct world *world, __u32 node)
{
	__u32 link, end;

	world->out->restarts += 1;
	for (link = 0; link < LINKS; link++)
		for (end = 0; end < 2; end++)
			if (world->links[link].node[end] == node) {
				forget_work(&world->links[link].side[end]);
				born(world, &world->links[link],
				     &world->links[link].side[end]);
			}
}

/* --- the run -------------------------------------------------------------------- */

static void run_side(struct world *world, struct link *link, struct side *side)
{
	bool lazy = world->phase == BUSY;
	__u32 state, turns;

	dmp_endpoint_tick(side->machine, world->now_ns);
	take_requests(world, side);
	for (turns = 0; turns < 4; turns++) {
		deliver(world, link, side);
		if (side->pending_count && !(lazy && chance(world, world->lazy)))
			answer_one(world, link, side, pick(world, side->pending_count));
		take_requests(world, side);
		if (side->sending && !(lazy && chance(world, world->lazy)))
			finish_sending(world, link, side);
		take_frames(world, link, side);
		take_requests(world, side);
	}
	if (!(lazy && chance(world, world->lazy)))
		read_completions(world, link, side);
	state = status_of(side).state;
	if (state == DMP_ENDPOINT_OPEN && side->alive) {
		side->alive = false;
		world->out->opened += 1;
	}
	if (state == DMP_ENDPOINT_IDLE || state == DMP_ENDPOINT_DEAD) {
		side->alive = true;
		if (world->phase != DRAIN)
			reconnect(world, link, side);
	}
}

static void step(struct world *world)
{
	struct link *link = &world->links[pick(world, LINKS)];
	struct side *side = &link->side[pick(world, 2)];

	world->step += 1;
	world->now_ns += pick(world, STEP_NS_MAX);
	if (world->phase == BUSY) {
		act(world, link, side);
		if (chance(world, world->cut))
			cut(world, link);
		if (chance(world, world->restart))
			restart(world, pick(world, NODES));
	} else if (world->phase == QUIET) {
		submit(world, link, side, DMP_OP_RECV);
	}
	run_side(world, link, &link->side[0]);
	run_side(world, link, &link->side[1]);
	check_side(world, &link->side[0]);
	check_side(world, &link->side[1]);
	check_pair(world, &link->side[0], &link->side[1]);
	check_pair(world, &link->side[1], &link->side[0]);
}

static bool settled(const struct world *world)
{
	__u32 link, end;

	for (link = 0; link < LINKS; link++)
		for (end = 0; end < 2; end++) {
			const struct side *side = &world->links[link].side[end];

			if (side->first_open != side->history_count ||
			    status_of(side).state != DMP_ENDPOINT_DEAD)
				return false;
		}
	return true;
}

/* No faults any more: what is in flight ends, and both sides part as friends. */
static void settle(struct world *world)
{
	__u32 turns, link, end;

	world->phase = QUIET;
	for (turns = 0; turns < SETTLE_STEPS / 8 && !world->out->failed; turns++)
		step(world);
	world->phase = DRAIN;
	for (link = 0; link < LINKS; link++)
		for (end = 0; end < 2; end++)
			dmp_endpoint_drain(world->links[link].side[end].machine,
					   world->now_ns, world->now_ns + DETECT_NS);
	for (turns = 0; turns < SETTLE_STEPS && !world->out->failed; turns++) {
		if (settled(world))
			return;
		step(world);
	}
	LAW(false, "L1: not everything completed after the faults ended");
}

static void temper(struct world *world)
{
	static const __u32 rates[] = { 0, 0, 0, 1, 4, 16 };

	world->drop = rates[pick(world, 6)];
	world->repeat = rates[pick(world, 6)] * 4;
	world->swap = rates[pick(world, 6)];
	world->corrupt = rates[pick(world, 6)];
	world->cut = rates[pick(world, 6)];
	world->restart = rates[pick(world, 6)];
	world->cancel = 20 + pick(world, 300);
	world->lazy = pick(world, 900);
	world->impatient = pick(world, 1024);
}

bool simulate(struct simulation *simulation)
{
	struct world *world = calloc(1, sizeof(*world));
	__u32 link, end;

	if (!world) {
		simulation->failed = true;
		return false;
	}
	world->out = simulation;
	world->random = simulation->seed * 0x9e3779b97f4a7c15ULL + 0x1234567;
	world->now_ns = 1000000000ULL;
	for (link = 0; link < 8; link++)
		pick(world, 2);
	temper(world);
	for (link = 0; link < LINKS; link++) {
		world->links[link].node[0] = link;
		world->links[link].node[1] = (link + 1) % NODES;
		world->links[link].direct = pick(world, 2);
		for (end = 0; end < 2; end++)
			born(world, &world->links[link], &world->links[link].side[end]);
	}
	while (world->step < simulation->steps && !simulation->failed)
		step(world);
	if (!simulation->failed)
		settle(world);
	free(world);
	return !simulation->failed;
}
