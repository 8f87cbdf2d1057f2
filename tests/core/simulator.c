// SPDX-License-Identifier: MIT
/* simulator.c - chance, the wire, faults, the laws and the run; see simulator.h */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "simulator_world.h"

__u32 simulator_pick(struct world *world, __u32 below)
{
	world->random ^= world->random << 13;
	world->random ^= world->random >> 7;
	world->random ^= world->random << 17;
	return (__u32)((world->random * 0x2545f4914f6cdd1dULL >> 33) % below);
}

bool simulator_chance(struct world *world, __u32 per_1024)
{
	return per_1024 && simulator_pick(world, 1024) < per_1024;
}

/* This seed's owners put off what they may, until the faults are over. */
bool simulator_is_lazy(struct world *world)
{
	return world->phase == BUSY && simulator_chance(world, world->lazy);
}

/* Every event goes into the hash, and to the screen if asked for. */
void simulator_note(struct world *world, const char *what, const struct side *side,
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

void simulator_broken(struct world *world, const char *format, ...)
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

struct side *simulator_peer(struct link *link, const struct side *side)
{
	return side == &link->side[0] ? &link->side[1] : &link->side[0];
}

__u8 simulator_pattern(__u64 seed, __u32 i)
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
	config->features = simulator_chance(world, 20) ? 2 : 3;
	config->features_required = config->features & 1 ? 1 : 0;
	config->detect_ns = DETECT_NS;
	config->operations_max = 1 + simulator_pick(world, SLOTS_MAX);
	config->receives_max = 1 + simulator_pick(world, 3);
	config->incoming_max = 1 + simulator_pick(world, SLOTS_MAX);
	config->window_slots = 1 + simulator_pick(world, SLOTS_MAX);
	config->window_bytes = 32 + simulator_pick(world, 3 * BLOCK);
	config->direct = link->direct;
	LAW(dmp_endpoint_bytes(config) <= sizeof(side->block), "machine too large");
	if (dmp_endpoint_init(&side->machine, side->block, sizeof(side->block), config))
		simulator_broken(world, "init failed");
	side->alive = true;
	side->history_count = side->first_open = 0;
	side->pending_count = 0;
	side->sending = false;
	side->honoured = 0;
	side->epochs = 0;
	side->connection = ++world->connections;
	side->peer_connection = 0;
	for (i = 0; i < BLOCK; i++)
		side->region[0][i] = simulator_pattern(side->incarnation, i);
	simulator_note(world, "born", side, side->incarnation, 0);
}

struct dmp_endpoint_status simulator_status(const struct side *side)
{
	struct dmp_endpoint_status status;

	dmp_endpoint_query(side->machine, &status);
	return status;
}

bool simulator_is_up(const struct side *side)
{
	__u32 state = simulator_status(side).state;

	return state >= DMP_ENDPOINT_OPEN && state <= DMP_ENDPOINT_DRAINED;
}

/* Dead and read: forget the connection and try again. */
static void reconnect(struct world *world, struct link *link, struct side *side)
{
	__u8 nonce[DMP_WIRE_NONCE_BYTES] = { 0 };
	__u32 state = simulator_status(side).state;
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
	side->honoured = simulator_status(side).frames_honoured;
	side->bad_secret = world->phase == BUSY && simulator_chance(world, 40);
	memcpy(nonce, &side->connection, sizeof(side->connection));
	if (side == &link->side[0])
		dmp_endpoint_connect(side->machine, world->now_ns,
				     world->now_ns + HANDSHAKE_NS, nonce);
	else
		dmp_endpoint_accept(side->machine, world->now_ns,
				    world->now_ns + 2 * HANDSHAKE_NS, ++side->epochs,
				    nonce);
	simulator_note(world, "connect", side, side->connection, 0);
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
	simulator_note(world, "packet", NULL, packet->frame_bytes, wire->count);
}

/* The network does its worst to one packet. */
void simulator_transmit(struct world *world, struct link *link, struct side *from,
		     struct packet *packet)
{
	struct wire *wire = &link->wire[from == &link->side[0] ? 1 : 0];
	struct simulation *out = world->out;
	bool faulty = world->phase == BUSY;

	packet->life = from->life;
	packet->connection = from->connection;
	packet->arrival_ns = world->now_ns + simulator_pick(world, 300000);
	out->frames += 1;
	if (simulator_chance(world, 128))
		wire->ghosts[simulator_pick(world, GHOSTS)] = *packet;
	if (faulty && simulator_chance(world, world->drop)) {
		out->dropped += 1;
		return;
	}
	if (faulty && simulator_chance(world, world->corrupt)) {
		out->corrupted += 1;
		packet->corrupt = true;
		packet->bytes[simulator_pick(world, packet->frame_bytes)] ^= (__u8)(1 + simulator_pick(world, 255));
	}
	if (faulty && wire->count && simulator_chance(world, world->swap)) {
		out->swapped += 1;
		put(world, wire, packet, simulator_pick(world, wire->count));
	} else {
		put(world, wire, packet, wire->count);
	}
	if (faulty && simulator_chance(world, world->repeat)) {
		out->repeated += 1;
		put(world, wire, packet, wire->count);
	}
}

/* --- the laws, looked at after every step --------------------------------------- */

static void check_side(struct world *world, struct side *side)
{
	struct dmp_endpoint_status status = simulator_status(side);
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
	LAW(status.reason != -EPROTO || world->corrupt,
	    "an honest peer was accused of breaking the protocol");
	if (simulator_is_up(side)) {
		LAW(world->now_ns < side->heard_ns + DETECT_NS, "a silent peer was not noticed");
	}
	LAW(status.unread <= side->config.operations_max + side->config.receives_max +
				     side->config.window_slots + 1,
	    "L2: completions overflow");
	world->out->zombies += status.zombies;
}

/* What the sender believes it may do never exceeds what the receiver gave. */
static void check_pair(struct world *world, const struct side *from, const struct side *to)
{
	struct dmp_endpoint_status sender = simulator_status(from);
	struct dmp_endpoint_status receiver = simulator_status(to);

	if (from->peer_connection != to->connection || to->peer_connection != from->connection)
		return;
	if (sender.state < DMP_ENDPOINT_OPEN || sender.state > DMP_ENDPOINT_DRAINED ||
	    receiver.state < DMP_ENDPOINT_OPEN || receiver.state > DMP_ENDPOINT_DRAINED)
		return;
	LAW(from->bad_secret == to->bad_secret, "let in with a wrong secret");
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

/* Nothing but RECVs that wait. */
static bool is_idle(const struct side *side, const struct dmp_endpoint_status *status)
{
	__u32 i;

	for (i = side->first_open; i < side->history_count; i++)
		if (!side->history[i].completed && side->history[i].operation != DMP_OP_RECV)
			return false;
	return status->state == DMP_ENDPOINT_OPEN && !status->zombies && !status->incoming &&
	       !status->staged && !status->unread;
}

/* When nothing is going on, no credit is out and the whole window can be used. */
static void check_home(struct world *world, struct link *link)
{
	__u32 end;

	for (end = 0; end < 2; end++) {
		struct side *from = &link->side[end], *to = &link->side[1 - end];
		struct dmp_endpoint_status sender = simulator_status(from);
		struct dmp_endpoint_status receiver = simulator_status(to);

		if (from->peer_connection != to->connection ||
		    to->peer_connection != from->connection || !is_idle(from, &sender) ||
		    !is_idle(to, &receiver) || link->wire[0].count || link->wire[1].count)
			continue;
		world->out->homecomings += 1;
		LAW(!sender.send.in_flight.slots && !sender.send.in_flight.bytes &&
		    !receiver.receive.in_flight.slots && !receiver.receive.in_flight.bytes,
		    "L2: credit is out though nothing is in flight");
		LAW(sender.send.available.slots == receiver.receive.available.slots &&
		    sender.send.available.bytes == receiver.receive.available.bytes,
		    "L2: the two ledgers differ though nothing is in flight");
	}
}

/* --- faults --------------------------------------------------------------------- */

static void cut(struct world *world, struct link *link)
{
	__u32 end;

	for (end = 0; end < 2; end++) {
		if (simulator_chance(world, 512))
			link->wire[end].count = 0;
		if (simulator_chance(world, 768)) {
			owner_forget(&link->side[end]);
			dmp_endpoint_abort(link->side[end].machine, -ECONNRESET);
		}
	}
	simulator_note(world, "cut", &link->side[0], 0, 0);
}

/* A frame from any time in the past comes once more, ahead of all others. */
static void haunt(struct world *world, struct wire *wire)
{
	const struct packet *ghost = &wire->ghosts[simulator_pick(world, GHOSTS)];

	if (!ghost->frame_bytes)
		return;
	world->out->ghosts += 1;
	put(world, wire, ghost, 0);
}

static void restart(struct world *world, __u32 node)
{
	__u32 link, end;

	world->out->restarts += 1;
	for (link = 0; link < LINKS; link++)
		for (end = 0; end < 2; end++)
			if (world->links[link].node[end] == node) {
				owner_forget(&world->links[link].side[end]);
				born(world, &world->links[link],
				     &world->links[link].side[end]);
			}
}

/* --- the run -------------------------------------------------------------------- */

static void run_side(struct world *world, struct link *link, struct side *side)
{
	__u32 state, turns;

	dmp_endpoint_tick(side->machine, world->now_ns);
	owner_take_requests(world, link, side);	/* STOP and CUT are never late */
	for (turns = 0; turns < 4; turns++) {
		owner_deliver(world, link, side);
		if (!simulator_is_lazy(world))
			owner_take_requests(world, link, side);
		if (side->pending_count && !simulator_is_lazy(world))
			owner_answer(world, link, side,
				     simulator_pick(world, side->pending_count));
		if (side->sending && !simulator_is_lazy(world))
			owner_finish_sending(world, link, side);
		owner_take_frames(world, link, side);
	}
	if (!simulator_is_lazy(world))
		user_read(world, link, side);
	state = simulator_status(side).state;
	if (state == DMP_ENDPOINT_OPEN && side->alive) {
		side->alive = false;
		side->heard_ns = world->now_ns;	/* the peer waited for our answer */
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
	struct link *link = &world->links[simulator_pick(world, LINKS)];
	struct side *side = &link->side[simulator_pick(world, 2)];

	world->step += 1;
	world->now_ns += simulator_pick(world, STEP_NS_MAX);
	if (world->phase == BUSY) {
		user_act(world, link, side);
		if (simulator_chance(world, world->cut))
			cut(world, link);
		if (simulator_chance(world, world->ghost))
			haunt(world, &link->wire[simulator_pick(world, 2)]);
		if (simulator_chance(world, world->restart))
			restart(world, simulator_pick(world, NODES));
	} else if (world->phase == QUIET && simulator_status(side).staged) {
		user_submit(world, link, side, DMP_OP_RECV);
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
			    simulator_status(side).state != DMP_ENDPOINT_DEAD)
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
	for (link = 0; link < LINKS && !world->out->failed; link++)
		check_home(world, &world->links[link]);
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

	world->drop = rates[simulator_pick(world, 6)];
	world->repeat = rates[simulator_pick(world, 6)] * 4;
	world->swap = rates[simulator_pick(world, 6)];
	world->corrupt = rates[simulator_pick(world, 6)];
	world->cut = rates[simulator_pick(world, 6)];
	world->restart = rates[simulator_pick(world, 6)];
	world->ghost = rates[simulator_pick(world, 6)] * 8;
	world->cancel = 20 + simulator_pick(world, 300);
	world->lazy = simulator_pick(world, 900);
	world->impatient = simulator_pick(world, 1024);
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
		simulator_pick(world, 2);
	temper(world);
	for (link = 0; link < LINKS; link++) {
		world->links[link].node[0] = link;
		world->links[link].node[1] = (link + 1) % NODES;
		world->links[link].direct = simulator_pick(world, 2);
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
