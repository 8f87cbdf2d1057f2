// SPDX-License-Identifier: MIT
/*
 * victim.c - the plane that is attacked, and two connections that must not notice
 *
 * One thread does what a server does: accepts whoever proves the secret, posts RECVs,
 * takes completions and events, destroys what is lost. The two connections are of a plane
 * of their own, one over tcp and one over shared memory, to the same channel as all of
 * the attackers': each proof writes into a region and reads it back.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>

#include "assault.h"

#define ATTACKERS_MAX	256u
#define SLOTS		256u
#define RECV_BYTES	8192u
#define WINDOW_SLOTS	8u
#define WINDOW_BYTES	65536u
#define ACCEPT_NS	2000000u
#define PATIENCE_NS	(60 * SECOND_NS)
#define CANARY		0x5a
#define FRIENDS		2u

static const __u8 secret[] = "the attackers know it too";

/* A plane with a channel and its rings. */
struct user {
	struct dmp_plane *plane;
	struct dmp_client client;
	void *rings;
};

struct memory {
	__u32 id;
	__u8 *bytes;
	__u64 length;
};

struct victim {
	struct assault *assault;
	struct user server, guest;
	struct memory granted, canary, own, inbox, mine;
	__u32 listener_id;
	__u32 attackers[ATTACKERS_MAX];	/* endpoints */
	uint32_t count;
	uint64_t accepted;		/* atomic */
	uint32_t alive;			/* atomic: count, for others */
	uint32_t passes;		/* atomic: of the thread */
	bool stop;			/* atomic */
	pthread_t thread;
	__u32 friends[FRIENDS];		/* endpoints of the guest */
	__u32 regions[FRIENDS];		/* imported */
};

static int call(struct user *user, unsigned int command, void *request)
{
	return dmp_ioctl(user->plane, command, request);
}

static void must(struct user *user, unsigned int command, void *request)
{
	int status = call(user, command, request);

	if (status)
		FAIL("command %#x answered %d", command, status);
}

static void open_user(struct user *user)
{
	struct dmp_channel_create channel = { .size = sizeof(channel), .slots = SLOTS };

	if (dmp_open(&user->plane))
		FAIL("no plane");
	must(user, DMP_CHANNEL_CREATE, &channel);
	if (dmp_mmap(user->plane, channel.map_bytes, PROT_READ | PROT_WRITE, channel.map_offset,
		     &user->rings))
		FAIL("no rings");
	user->client = (struct dmp_client){
		.control = user->rings,
		.submissions = (void *)((char *)user->rings + channel.submissions_offset),
		.completions = (void *)((char *)user->rings + channel.completions_offset),
		.slots = SLOTS,
		.completion_slots = 2 * SLOTS,
		.channel_id = channel.channel_id,
		.plane = user->plane,
		.fd = -1,
	};
}

static struct memory make_memory(struct user *user, __u64 length, int fill)
{
	struct dmp_buffer_create create = { .size = sizeof(create), .length_bytes = length,
					    .node = -1 };
	struct memory memory = { .length = length };
	void *address;

	must(user, DMP_BUFFER_CREATE, &create);
	if (dmp_mmap(user->plane, length, PROT_READ | PROT_WRITE, create.map_offset, &address))
		FAIL("no mapping");
	memory.id = create.buffer_id;
	memory.bytes = address;
	memset(memory.bytes, fill, length);
	return memory;
}

static struct dmp_region_create grant(struct user *user, const struct memory *memory)
{
	struct dmp_region_create region = {
		.size = sizeof(region),
		.buffer_id = memory->id,
		.access = DMP_ACCESS_REMOTE_READ | DMP_ACCESS_REMOTE_WRITE,
		.length_bytes = memory->length,
	};

	must(user, DMP_REGION_CREATE, &region);
	return region;
}

/* ---- the server's thread */

/* RECVs for a new one; completions and events of all are taken. */
static void exchange(struct victim *victim, __u32 endpoint_id)
{
	struct dmp_completion done[64];
	struct dmp_submission receive[2];
	uint32_t pushed;

	memset(receive, 0, sizeof(receive));
	for (int i = 0; i < 2; i++) {
		receive[i].operation = DMP_OP_RECV;
		receive[i].endpoint_id = endpoint_id;
		receive[i].target_id = victim->inbox.id;
		receive[i].target_offset = (__u64)i * RECV_BYTES;
		receive[i].length_bytes = RECV_BYTES;
	}
	dmp_client_exchange(&victim->server.client, receive, endpoint_id ? 2 : 0, &pushed, done,
			    64, 0, 1);
}

static void sweep(struct victim *victim)
{
	uint32_t i;

	for (i = 0; i < victim->count; i++) {
		struct dmp_endpoint_query query = { .size = sizeof(query),
						    .endpoint_id = victim->attackers[i] };
		struct dmp_destroy destroy = { .size = sizeof(destroy),
					       .id = victim->attackers[i] };

		must(&victim->server, DMP_ENDPOINT_QUERY, &query);
		if (query.state != DMP_STATE_DEAD)
			continue;
		if (call(&victim->server, DMP_ENDPOINT_DESTROY, &destroy) == -EBUSY)
			continue;	/* its RECVs have not completed yet */
		victim->attackers[i--] = victim->attackers[--victim->count];
	}
	__atomic_store_n(&victim->alive, victim->count, __ATOMIC_RELEASE);
}

static void *serve(void *argument)
{
	struct victim *victim = argument;

	while (!__atomic_load_n(&victim->stop, __ATOMIC_ACQUIRE)) {
		struct dmp_accept accept = {
			.size = sizeof(accept),
			.listener_id = victim->listener_id,
			.channel_id = victim->server.client.channel_id,
			.window_slots = WINDOW_SLOTS,
			.window_bytes = WINDOW_BYTES,
			.detect_ms = 1000,
			.deadline_ns = dmp_now_ns() + ACCEPT_NS,
		};
		int status = -EAGAIN;

		if (victim->count < ATTACKERS_MAX)
			status = call(&victim->server, DMP_ACCEPT, &accept);
		if (status && status != -EAGAIN && status != -ETIMEDOUT)
			FAIL("ACCEPT answered %d", status);
		if (!status) {
			victim->attackers[victim->count++] = accept.endpoint_id;
			__atomic_add_fetch(&victim->accepted, 1, __ATOMIC_RELAXED);
		}
		exchange(victim, status ? 0 : accept.endpoint_id);
		sweep(victim);
		__atomic_add_fetch(&victim->passes, 1, __ATOMIC_RELEASE);
	}
	return NULL;
}

/* ---- those who must not notice */

struct dialling {
	struct victim *victim;
	struct dmp_connect connect;
	int status;
};

static void *dial(void *argument)
{
	struct dialling *dialling = argument;

	dialling->status = call(&dialling->victim->guest, DMP_CONNECT, &dialling->connect);
	return NULL;
}

static void befriend(struct victim *victim, uint32_t number, const __u8 *address, __u32 path,
		     const struct dmp_region_create *region)
{
	struct dialling dialling = { .victim = victim };
	struct dmp_connect *connect = &dialling.connect;
	struct dmp_accept accept = {
		.size = sizeof(accept),
		.listener_id = victim->listener_id,
		.channel_id = victim->server.client.channel_id,
		.window_slots = WINDOW_SLOTS,
		.window_bytes = WINDOW_BYTES,
		.deadline_ns = dmp_now_ns() + PATIENCE_NS,
	};
	struct dmp_region_import import = { .size = sizeof(import),
					    .key_bytes = region->key_bytes };
	pthread_t thread;

	connect->size = sizeof(*connect);
	connect->flags = DMP_REQUIRE_PATH;
	connect->path = path;
	connect->channel_id = victim->guest.client.channel_id;
	connect->window_slots = WINDOW_SLOTS;
	connect->window_bytes = WINDOW_BYTES;
	connect->secret_bytes = sizeof(secret);
	connect->deadline_ns = accept.deadline_ns;
	memcpy(connect->secret, secret, sizeof(secret));
	memcpy(connect->address, address, DMP_ADDRESS_BYTES);
	if (pthread_create(&thread, NULL, dial, &dialling))
		FAIL("no thread");
	must(&victim->server, DMP_ACCEPT, &accept);
	pthread_join(thread, NULL);
	if (dialling.status)
		FAIL("CONNECT answered %d", dialling.status);
	import.endpoint_id = connect->endpoint_id;
	memcpy(import.key, region->key, region->key_bytes);
	must(&victim->guest, DMP_REGION_IMPORT, &import);
	victim->friends[number] = connect->endpoint_id;
	victim->regions[number] = import.region_id;
}

struct victim *victim_start(struct assault *assault)
{
	struct victim *victim = calloc(1, sizeof(*victim));
	struct dmp_listen listen = { .size = sizeof(listen), .secret_bytes = sizeof(secret),
				     .address = "127.0.0.1:0", .backlog = 64 };
	struct dmp_region_create region;

	if (!victim)
		FAIL("no memory for the fuzzer itself");
	victim->assault = assault;
	open_user(&victim->server);
	open_user(&victim->guest);
	victim->granted = make_memory(&victim->server, GRANTED_BYTES, 0);
	victim->canary = make_memory(&victim->server, GRANTED_BYTES, CANARY);
	victim->own = make_memory(&victim->server, GRANTED_BYTES, 0);
	victim->inbox = make_memory(&victim->server, 2 * RECV_BYTES, 0);
	victim->mine = make_memory(&victim->guest, 2 * GRANTED_BYTES, 0);
	region = grant(&victim->server, &victim->granted);
	assault->key_bytes = region.key_bytes;
	memcpy(assault->key, region.key, region.key_bytes);
	assault->secret.count = sizeof(secret);
	memcpy(assault->secret.bytes, secret, sizeof(secret));
	listen.channel_id = victim->server.client.channel_id;
	memcpy(listen.secret, secret, sizeof(secret));
	must(&victim->server, DMP_LISTEN, &listen);
	victim->listener_id = listen.listener_id;
	if (dmp_address_parse(listen.bound_address, false, &assault->address))
		FAIL("the bound address is none");
	region = grant(&victim->server, &victim->own);
	befriend(victim, 0, listen.bound_address, DMP_PATH_TCP, &region);
	befriend(victim, 1, listen.bound_address, DMP_PATH_SHM, &region);
	if (pthread_create(&victim->thread, NULL, serve, victim))
		FAIL("no thread");
	return victim;
}

static void run_one(struct victim *victim, struct dmp_submission *submission)
{
	struct dmp_completion done;
	uint32_t pushed;
	int count = dmp_client_exchange(&victim->guest.client, submission, 1, &pushed, &done, 1, 1,
					dmp_now_ns() + PATIENCE_NS);

	if (count != 1 || done.result || done.flags & DMP_COMPLETE_EVENT)
		FAIL("a friend is not served: %d, result %d, operation %u", count,
		     count == 1 ? done.result : 0, count == 1 ? done.operation : 0);
}

void victim_prove_service(struct victim *victim, uint64_t seed)
{
	uint64_t *words = (uint64_t *)victim->mine.bytes;
	uint32_t i, number;

	for (number = 0; number < FRIENDS; number++) {
		struct dmp_submission submission = {
			.operation = DMP_OP_WRITE,
			.endpoint_id = victim->friends[number],
			.source_id = victim->mine.id,
			.target_id = victim->regions[number],
			.length_bytes = GRANTED_BYTES,
		};

		for (i = 0; i < GRANTED_BYTES / 8; i++)
			words[i] = seed + i + number;
		run_one(victim, &submission);
		submission.operation = DMP_OP_READ;
		submission.source_id = victim->regions[number];
		submission.target_id = victim->mine.id;
		submission.target_offset = GRANTED_BYTES;
		run_one(victim, &submission);
		if (memcmp(victim->mine.bytes, victim->mine.bytes + GRANTED_BYTES, GRANTED_BYTES) ||
		    memcmp(victim->mine.bytes, victim->own.bytes, GRANTED_BYTES))
			FAIL("a friend's bytes are not what he wrote");
	}
	for (i = 0; i < victim->canary.length; i++)
		if (victim->canary.bytes[i] != CANARY)
			FAIL("byte %u of memory that was not granted was written", i);
}

void victim_settle(struct victim *victim)
{
	uint64_t limit = dmp_now_ns() + PATIENCE_NS;
	uint32_t passes = __atomic_load_n(&victim->passes, __ATOMIC_ACQUIRE);

	/* Two passes: who is at the door is let in or sent away, and then swept up. */
	while (__atomic_load_n(&victim->passes, __ATOMIC_ACQUIRE) - passes < 20 ||
	       __atomic_load_n(&victim->alive, __ATOMIC_ACQUIRE)) {
		struct timespec pause = { .tv_nsec = 2000000 };

		if (dmp_now_ns() > limit)
			FAIL("%u endpoints of attackers do not end",
			     __atomic_load_n(&victim->alive, __ATOMIC_ACQUIRE));
		nanosleep(&pause, NULL);
	}
}

uint64_t victim_accepted(struct victim *victim)
{
	return __atomic_load_n(&victim->accepted, __ATOMIC_RELAXED);
}

void victim_end(struct victim *victim)
{
	struct dmp_statistics now = { .size = sizeof(now) };

	__atomic_store_n(&victim->stop, true, __ATOMIC_RELEASE);
	pthread_join(victim->thread, NULL);
	must(&victim->server, DMP_STATISTICS, &now);
	if (now.endpoints != FRIENDS)
		FAIL("%llu endpoints are left", (unsigned long long)now.endpoints);
	if (dmp_close(victim->server.plane) || dmp_close(victim->guest.plane))
		FAIL("close failed");
	free(victim);
}
