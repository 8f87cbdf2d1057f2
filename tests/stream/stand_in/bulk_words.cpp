// SPDX-License-Identifier: MIT
/* One group at a time uses it: its shared memory, gates and stores are these. */
#include <deque>
#include <map>
#include <random>

#include "bulk_words.h"

enum { SHARED = 228 << 10 };

struct Load {
	u32 room, bytes;
	u64 from;
};

struct Gate {
	u32 opened = 0;
	std::deque<Load> loads;
};

struct Store {
	u64 to;
	u32 room, bytes;
};

static u8 shared[SHARED];
static std::map<u32, Gate> gates;
static std::deque<Store> stores;
static std::mt19937 lots(7);

static void check(u64 at, u32 room, u32 bytes)
{
	if (at % 16 || room % 16 || bytes % 16 || room + bytes > SHARED)
		abort();
}

static void open_gate(Gate &gate)
{
	const Load load = gate.loads.front();

	gate.loads.pop_front();
	memcpy(shared + load.room, (const void *)load.from, load.bytes);
	gate.opened++;
}

u32 shared_room(void)
{
	return 0;
}

void gate_make(u32 gate)
{
	gates[gate] = Gate();
}

void gates_made(void)
{
}

void gate_wait(u32 gate, u32 parity)
{
	Gate &ours = gates.at(gate);

	if (!ours.loads.empty())
		open_gate(ours);
	if (!ours.opened || (ours.opened - 1) % 2 != parity) {
		fprintf(stderr, "gate %u would not open\n", gate);
		abort();
	}
}

void bulk_load(u32 room, u64 from, u32 bytes, u32 gate)
{
	Gate &ours = gates.at(gate);

	check(from, room, bytes);
	if (!ours.loads.empty())
		abort(); /* more arrivals than the phase has */
	ours.loads.push_back({ room, bytes, from });
	if (lots() % 2)
		open_gate(ours);
}

void bulk_store(u64 to, u32 room, u32 bytes)
{
	check(to, room, bytes);
	stores.push_back({ to, room, bytes });
}

void stores_left(u32 left)
{
	while (stores.size() > left) {
		memcpy((void *)stores.front().to, shared + stores.front().room,
		       stores.front().bytes);
		stores.pop_front();
	}
}
