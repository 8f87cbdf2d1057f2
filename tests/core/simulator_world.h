/* SPDX-License-Identifier: MIT */
/*
 * simulator_world.h - what the simulated world is made of, for its own files only
 *
 *	simulator.c		chance, the wire, faults, the laws, the run
 *	simulator_owner.c	what plays the fabric: frames, requests, bytes
 *	simulator_user.c	what plays the user: submissions and completions
 */
#ifndef DMP_TESTS_SIMULATOR_WORLD_H
#define DMP_TESTS_SIMULATOR_WORLD_H

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
#define GHOSTS		8	/* old frames a wire remembers */
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
	struct packet ghosts[GHOSTS];
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
	__u64 heard_ns;		/* when a frame was last honoured */
	__u32 epochs;		/* counts from 1 in each life, as after a restart */
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
	__u32 step, connections;
	enum phase phase;
	/* this seed's temper, in 1/1024 */
	__u32 drop, repeat, swap, corrupt, cut, restart, ghost, cancel, lazy, impatient;
};

/* A law, or something this simulator itself relies on; the first breach is kept. */
#define LAW(condition, ...)					\
	do {							\
		if (!(condition))				\
			simulator_broken(world, __VA_ARGS__);		\
	} while (0)

/* simulator.c */
__u32 simulator_pick(struct world *world, __u32 below);
bool simulator_chance(struct world *world, __u32 per_1024);
bool simulator_is_lazy(struct world *world);
void simulator_note(struct world *world, const char *what, const struct side *side,
		    __u64 a, __s64 b);
__attribute__((format(printf, 2, 3)))
void simulator_broken(struct world *world, const char *format, ...);
struct side *simulator_peer(struct link *link, const struct side *side);
__u8 simulator_pattern(__u64 seed, __u32 i);
struct dmp_endpoint_status simulator_status(const struct side *side);
bool simulator_is_up(const struct side *side);
void simulator_transmit(struct world *world, struct link *link, struct side *from,
			struct packet *packet);

/* simulator_owner.c */
struct memory *simulator_recall(struct world *world, struct side *side, __u64 index);
void owner_forget(struct side *side);
void owner_take_requests(struct world *world, struct link *link, struct side *side);
void owner_take_frames(struct world *world, struct link *link, struct side *side);
void owner_answer(struct world *world, struct link *link, struct side *side, __u32 index);
void owner_finish_sending(struct world *world, struct link *link, struct side *side);
void owner_deliver(struct world *world, struct link *link, struct side *side);

/* simulator_user.c */
void user_submit(struct world *world, struct link *link, struct side *side,
		 __u16 operation);
void user_read(struct world *world, struct link *link, struct side *side);
void user_act(struct world *world, struct link *link, struct side *side);

#endif /* DMP_TESTS_SIMULATOR_WORLD_H */
