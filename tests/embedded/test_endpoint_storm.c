// SPDX-License-Identifier: MIT
/*
 * test_endpoint_storm.c - endpoints under everything at once
 *
 * Two planes, several endpoints over tcp and shm on two channels each. On every channel
 * one thread submits what it likes, one takes completions; others cancel, ask, import,
 * revoke, connect and destroy while that goes on. L1: each submission that was accepted
 * gives exactly one completion, with a result that is allowed. L4: at the end everything
 * can be destroyed. Run it under TSan and ASan: that is what it is for.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/check.h"
#include "libdmaplane.h"

#define SLOTS		64u
#define SEATS		2u	/* channels of a plane */
#define LINKS		3u	/* endpoints of a seat */
#define BUFFER_BYTES	(3u << 20)
#define SECOND		1000000000ull

static uint64_t storm_ns = 2 * SECOND;
static uint32_t running = 1;
static uint32_t quiet;

struct seat {
	struct dmp_plane *plane;
	struct dmp_client client;
	uint32_t endpoints[LINKS];	/* atomic; 0: none now */
	uint32_t remotes[LINKS];	/* atomic */
	uint32_t paths[LINKS];
	uint32_t buffer;
	uint64_t submitted;		/* atomic; user_data of the next one */
	uint64_t completed;		/* atomic */
	uint64_t events;
	uint64_t good;
	uint8_t *seen;			/* one byte for each user_data */
	unsigned int seed;
};

struct side {
	struct dmp_plane *plane;
	struct seat seats[SEATS];
	struct dmp_region_create region;
	uint32_t region_id;		/* atomic */
};

static struct side sides[2];

#define MANY (1u << 22)

/* Operations overlap in memory on purpose: the bytes are nobody's business here. */
__attribute__((visibility("default"))) /* or TSan does not find it */
const char *__tsan_default_suppressions(void);
const char *__tsan_default_suppressions(void)
{
	return "race:tcp_receive\nrace:tcp_send\nrace:dmp_copy_\nrace:dmp_loop_\nrace:dmp_crc32c\n"
	       "race:dmp_errand_run\nrace:run_slice\nrace:dmp_shm_\nrace:dmp_landing_\n"
	       "race:dmp_stream_stop_locked\nrace:crc_words\nrace:_mm256_loadu_si256\n";
}

static uint32_t below(struct seat *seat, uint32_t bound)
{
	return (uint32_t)rand_r(&seat->seed) % bound;
}

static void open_seat(struct seat *seat, struct dmp_plane *plane, unsigned int seed)
{
	struct dmp_channel_create create = { .size = sizeof(create), .slots = SLOTS };
	struct dmp_buffer_create buffer = { .size = sizeof(buffer), .length_bytes = BUFFER_BYTES,
					    .node = -1 };
	void *rings;

	CHECK(!dmp_ioctl(plane, DMP_CHANNEL_CREATE, &create));
	CHECK(!dmp_mmap(plane, create.map_bytes, PROT_READ | PROT_WRITE, create.map_offset, &rings));
	CHECK(!dmp_ioctl(plane, DMP_BUFFER_CREATE, &buffer));
	seat->plane = plane;
	seat->buffer = buffer.buffer_id;
	seat->seed = seed;
	seat->seen = calloc(MANY, 1);
	seat->client = (struct dmp_client){
		.control = rings,
		.submissions = (void *)((char *)rings + create.submissions_offset),
		.completions = (void *)((char *)rings + create.completions_offset),
		.slots = SLOTS,
		.completion_slots = 2 * SLOTS,
		.channel_id = create.channel_id,
		.plane = plane,
	};
}

static void make_region(struct side *side)
{
	side->region = (struct dmp_region_create){
		.size = sizeof(side->region),
		.buffer_id = side->seats[0].buffer,
		.access = DMP_ACCESS_REMOTE_READ | DMP_ACCESS_REMOTE_WRITE,
		.length_bytes = BUFFER_BYTES,
	};
	CHECK(!dmp_ioctl(side->plane, DMP_REGION_CREATE, &side->region));
	__atomic_store_n(&side->region_id, side->region.region_id, __ATOMIC_RELEASE);
}

struct door {
	struct seat *seat;
	uint32_t listener;
	uint32_t endpoint;
};

static void *let_in(void *argument)
{
	struct door *door = argument;
	struct dmp_accept accept = { .size = sizeof(accept), .listener_id = door->listener,
				     .channel_id = door->seat->client.channel_id,
				     .window_slots = 8, .window_bytes = 1 << 20,
				     .deadline_ns = dmp_now_ns() + 20 * SECOND };

	CHECK(!dmp_ioctl(door->seat->plane, DMP_ACCEPT, &accept));
	door->endpoint = accept.endpoint_id;
	return NULL;
}

static void import(struct seat *seat, uint32_t link, const struct dmp_region_create *region)
{
	struct dmp_region_import request = { .size = sizeof(request),
					     .endpoint_id = seat->endpoints[link],
					     .key_bytes = region->key_bytes };
	int error;

	memcpy(request.key, region->key, region->key_bytes);
	error = dmp_ioctl(seat->plane, DMP_REGION_IMPORT, &request);
	CHECK(!error || error == -ECONNRESET || error == -ESTALE || error == -EACCES ||
	      error == -ETIMEDOUT);
	__atomic_store_n(&seat->remotes[link], error ? 0 : request.region_id, __ATOMIC_RELEASE);
}

/* A new connection between the two planes, at @link of @number. */
static void join(uint32_t number, uint32_t link, uint32_t path)
{
	struct seat *near = &sides[0].seats[number], *far = &sides[1].seats[number];
	struct dmp_listen listen = { .size = sizeof(listen), .flags = DMP_REQUIRE_PATH,
				     .path = path, .channel_id = far->client.channel_id,
				     .address = "127.0.0.1:0" };
	struct dmp_connect connect = { .size = sizeof(connect), .flags = DMP_REQUIRE_PATH,
				       .path = path, .channel_id = near->client.channel_id,
				       .window_slots = 8, .window_bytes = 1 << 20,
				       .deadline_ns = dmp_now_ns() + 20 * SECOND };
	struct dmp_destroy end = { .size = sizeof(end) };
	struct door door = { .seat = far };
	pthread_t thread;

	CHECK(!dmp_ioctl(far->plane, DMP_LISTEN, &listen));
	door.listener = listen.listener_id;
	memcpy(connect.address, listen.bound_address, sizeof(connect.address));
	CHECK(!pthread_create(&thread, NULL, let_in, &door));
	CHECK(!dmp_ioctl(near->plane, DMP_CONNECT, &connect));
	pthread_join(thread, NULL);
	CHECK(connect.path_taken == path);
	near->paths[link] = far->paths[link] = path;
	__atomic_store_n(&near->endpoints[link], connect.endpoint_id, __ATOMIC_RELEASE);
	__atomic_store_n(&far->endpoints[link], door.endpoint, __ATOMIC_RELEASE);
	end.id = listen.listener_id;
	CHECK(!dmp_ioctl(far->plane, DMP_LISTENER_DESTROY, &end));
	import(near, link, &sides[1].region);
	import(far, link, &sides[0].region);
}

static void fill(struct seat *seat, struct dmp_submission *row)
{
	static const uint16_t operations[] = { DMP_OP_SEND, DMP_OP_RECV, DMP_OP_WRITE,
					       DMP_OP_WRITE_IMM, DMP_OP_READ, DMP_OP_NOP,
					       DMP_OP_FILL };
	uint32_t link = below(seat, LINKS), length = 1 + below(seat, 8192);
	uint32_t endpoint = __atomic_load_n(&seat->endpoints[link], __ATOMIC_ACQUIRE);
	uint32_t remote = __atomic_load_n(&seat->remotes[link], __ATOMIC_ACQUIRE);

	memset(row, 0, sizeof(*row));
	row->operation = operations[below(seat, 7)];
	if (below(seat, 64) == 0)
		length = (1u << 20) + below(seat, 1u << 20);
	if (below(seat, 4) == 0)
		row->deadline_ns = dmp_now_ns() + below(seat, 3000000);
	if (row->operation == DMP_OP_NOP)
		return;
	if (row->operation == DMP_OP_FILL) {
		row->target_id = seat->buffer;
		row->length_bytes = 4096;
		return;
	}
	row->endpoint_id = endpoint ? endpoint : 1;
	row->length_bytes = length;
	if (below(seat, 8) == 0)
		row->flags |= DMP_SUBMIT_CHECKSUM;
	if (below(seat, 16) == 0)
		row->flags |= DMP_SUBMIT_LINK;
	if (below(seat, 16) == 0)
		row->flags |= DMP_SUBMIT_NOWAIT;
	if (row->operation == DMP_OP_WRITE || row->operation == DMP_OP_WRITE_IMM)
		row->target_id = remote ? remote : 1;
	if (row->operation == DMP_OP_READ)
		row->source_id = remote ? remote : 1;
	if (row->operation == DMP_OP_RECV || row->operation == DMP_OP_READ)
		row->target_id = seat->buffer;
	else
		row->source_id = seat->buffer;
	if (row->operation == DMP_OP_WRITE_IMM)
		row->immediate = link;
}

static void *submit(void *argument)
{
	struct seat *seat = argument;
	struct dmp_submission rows[16];
	struct dmp_completion none;

	while (__atomic_load_n(&running, __ATOMIC_ACQUIRE)) {
		uint32_t count = 1 + below(seat, 16), pushed = 0, number;
		uint64_t first = __atomic_load_n(&seat->submitted, __ATOMIC_RELAXED);

		if (first + 64 > MANY)
			break;
		for (number = 0; number < count; number++) {
			fill(seat, &rows[number]);
			rows[number].user_data = first + number;
		}
		dmp_client_exchange(&seat->client, rows, count, &pushed, &none, 0, 0, 0);
		__atomic_store_n(&seat->submitted, first + pushed, __ATOMIC_RELEASE);
		if (pushed == 0)
			usleep(100);
	}
	return NULL;
}

static bool is_allowed(int32_t result)
{
	switch (-result) {
	case 0: case ECANCELED: case ETIMEDOUT: case ECONNRESET: case ESTALE: case ENOENT:
	case EAGAIN: case EOVERFLOW: case EACCES: case EINVAL:
		return true;
	default:
		return false;
	}
}

static void *take(void *argument)
{
	struct seat *seat = argument;
	struct dmp_completion completions[2 * SLOTS];

	while (!__atomic_load_n(&quiet, __ATOMIC_ACQUIRE)) {
		uint32_t pushed;
		int count = dmp_client_exchange(&seat->client, NULL, 0, &pushed, completions,
						2 * SLOTS, 1, dmp_now_ns() + SECOND / 20);

		for (int number = 0; number < count; number++) {
			const struct dmp_completion *completion = &completions[number];

			if (completion->flags & DMP_COMPLETE_EVENT) {
				seat->events++;
				continue;
			}
			CHECK(completion->user_data < MANY);
			CHECK(seat->seen[completion->user_data] == 0);
			if (!is_allowed(completion->result))
				fprintf(stderr, "operation %u: %d\n", completion->operation,
					completion->result);
			CHECK(is_allowed(completion->result));
			seat->seen[completion->user_data] = 1;
			seat->good += completion->result == 0;
			__atomic_add_fetch(&seat->completed, 1, __ATOMIC_RELEASE);
		}
	}
	return NULL;
}

static void *cancel(void *argument)
{
	unsigned int seed = 77;
	(void)argument;

	/* To the very end: a SEND without credit, and all that is linked to it, ends by nothing else. */
	while (!__atomic_load_n(&quiet, __ATOMIC_ACQUIRE)) {
		struct seat *seat = &sides[rand_r(&seed) % 2].seats[(unsigned int)rand_r(&seed) % SEATS];
		uint64_t submitted = __atomic_load_n(&seat->submitted, __ATOMIC_ACQUIRE);
		struct dmp_cancel request = { .size = sizeof(request),
					      .channel_id = seat->client.channel_id,
					      .deadline_ns = dmp_now_ns() + 5 * SECOND };
		int error;

		if (rand_r(&seed) % 20 == 0)
			request.flags = DMP_CANCEL_ALL;
		else
			request.user_data = submitted - (submitted ? (unsigned int)rand_r(&seed) % (submitted < 64 ? submitted : 64) + 1 : 0);
		error = dmp_ioctl(seat->plane, DMP_CANCEL, &request);
		CHECK(!error || error == -ENOENT || error == -ETIMEDOUT);
		usleep(500);
	}
	return NULL;
}

static void *ask(void *argument)
{
	unsigned int seed = 78;
	(void)argument;

	while (__atomic_load_n(&running, __ATOMIC_ACQUIRE)) {
		struct seat *seat = &sides[rand_r(&seed) % 2].seats[(unsigned int)rand_r(&seed) % SEATS];
		uint32_t id = __atomic_load_n(&seat->endpoints[(unsigned int)rand_r(&seed) % LINKS], __ATOMIC_ACQUIRE);
		struct dmp_endpoint_query query = { .size = sizeof(query), .endpoint_id = id };
		struct dmp_statistics statistics = { .size = sizeof(statistics),
						     .scope = DMP_SCOPE_ENDPOINT, .id = id };
		int error = dmp_ioctl(seat->plane, DMP_ENDPOINT_QUERY, &query);

		CHECK(!error || error == -ENOENT);
		error = dmp_ioctl(seat->plane, DMP_STATISTICS, &statistics);
		CHECK(!error || error == -ENOENT);
		usleep(300);
	}
	return NULL;
}

static void destroy(struct dmp_plane *plane, unsigned int command, uint32_t id)
{
	struct dmp_destroy request = { .size = sizeof(request), .flags = DMP_DESTROY_DRAIN,
				       .id = id, .deadline_ns = dmp_now_ns() + 20 * SECOND };
	int error = dmp_ioctl(plane, command, &request);

	if (error)
		fprintf(stderr, "destroy, command %x: %d\n", command, error);
	CHECK(!error);
}

/* Takes one connection down on both sides, in the midst of it all. */
static void part(uint32_t number, uint32_t link)
{
	for (int side = 0; side < 2; side++) {
		struct seat *seat = &sides[side].seats[number];
		uint32_t remote = __atomic_exchange_n(&seat->remotes[link], 0, __ATOMIC_ACQ_REL);
		uint32_t endpoint = __atomic_exchange_n(&seat->endpoints[link], 0,
							__ATOMIC_ACQ_REL);

		if (remote)
			destroy(seat->plane, DMP_REGION_DESTROY, remote);
		destroy(seat->plane, DMP_ENDPOINT_DESTROY, endpoint);
	}
}

static void *rebuild(void *argument)
{
	unsigned int seed = 79;
	(void)argument;

	while (__atomic_load_n(&running, __ATOMIC_ACQUIRE)) {
		uint32_t number = (unsigned int)rand_r(&seed) % SEATS, link = (unsigned int)rand_r(&seed) % LINKS;

		usleep(30000);
		if (rand_r(&seed) % 3 == 0) {
			struct side *side = &sides[rand_r(&seed) % 2];

			destroy(side->plane, DMP_REGION_DESTROY, side->region.region_id);
			make_region(side);
			continue;
		}
		part(number, link);
		join(number, link, rand_r(&seed) % 2 ? DMP_PATH_TCP : DMP_PATH_SHM);
	}
	return NULL;
}

static void settle(struct seat *seat)
{
	uint64_t until_ns = dmp_now_ns() + 60 * SECOND;
	struct dmp_cancel all = { .size = sizeof(all), .flags = DMP_CANCEL_ALL,
				  .channel_id = seat->client.channel_id };

	dmp_ioctl(seat->plane, DMP_CANCEL, &all);
	while (__atomic_load_n(&seat->completed, __ATOMIC_ACQUIRE) !=
		       __atomic_load_n(&seat->submitted, __ATOMIC_ACQUIRE) &&
	       dmp_now_ns() < until_ns)
		usleep(1000);
	CHECK(seat->completed == seat->submitted);
}

int main(int argc, char **argv)
{
	pthread_t threads[2 * SEATS * 2 + 3];
	int count = 0, first_other;

	if (argc > 1)
		storm_ns = strtoull(argv[1], NULL, 10) * SECOND;
	for (int side = 0; side < 2; side++) {
		CHECK(!dmp_open(&sides[side].plane));
		for (uint32_t number = 0; number < SEATS; number++)
			open_seat(&sides[side].seats[number], sides[side].plane,
				  (unsigned int)side * 10 + number + 1);
		make_region(&sides[side]);
	}
	for (uint32_t number = 0; number < SEATS; number++)
		for (uint32_t link = 0; link < LINKS; link++)
			join(number, link, link % 2 ? DMP_PATH_TCP : DMP_PATH_SHM);
	for (int side = 0; side < 2; side++)
		for (uint32_t number = 0; number < SEATS; number++) {
			pthread_create(&threads[count++], NULL, take, &sides[side].seats[number]);
			pthread_create(&threads[count++], NULL, submit, &sides[side].seats[number]);
		}
	first_other = count;
	pthread_create(&threads[count++], NULL, cancel, NULL);
	pthread_create(&threads[count++], NULL, ask, NULL);
	pthread_create(&threads[count++], NULL, rebuild, NULL);
	for (uint64_t end_ns = dmp_now_ns() + storm_ns; dmp_now_ns() < end_ns;)
		usleep(10000);
	__atomic_store_n(&running, 0, __ATOMIC_RELEASE);
	for (int thread = 0; thread < count; thread++)
		if (thread > first_other || (thread < first_other && thread % 2))
			pthread_join(threads[thread], NULL);
	for (int side = 0; side < 2; side++)
		for (uint32_t number = 0; number < SEATS; number++)
			settle(&sides[side].seats[number]);
	__atomic_store_n(&quiet, 1, __ATOMIC_RELEASE);
	pthread_join(threads[first_other], NULL);
	for (int thread = 0; thread < first_other; thread += 2)
		pthread_join(threads[thread], NULL);
	for (int side = 0; side < 2; side++) {
		uint64_t good = 0, all = 0, events = 0;

		for (uint32_t number = 0; number < SEATS; number++) {
			good += sides[side].seats[number].good;
			all += sides[side].seats[number].completed;
			events += sides[side].seats[number].events;
			free(sides[side].seats[number].seen);
		}
		printf("plane %d: %llu completions, %llu of them well, %llu events\n", side,
		       (unsigned long long)all, (unsigned long long)good,
		       (unsigned long long)events);
		CHECK(good != 0 && events != 0);
		CHECK(!dmp_close(sides[side].plane));
	}
	return 0;
}
