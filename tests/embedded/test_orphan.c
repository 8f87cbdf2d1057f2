// SPDX-License-Identifier: MIT
/*
 * test_orphan.c - what a channel and an endpoint leave behind
 *
 * CHANNEL_DESTROY ends the connections of its endpoints and leaves their names. Whoever looks at
 * such a name, before the channel is gone or after it, finds neither the channel's memory nor an
 * endpoint that the worker has still in hand. And nothing is imported on an endpoint that goes.
 * Run it under ASan and TSan: freed memory that is read mostly says nothing by itself.
 */
#define _GNU_SOURCE
#include <pthread.h>

#include "door_session.h"
#include "endpoint_embedded.h"
#include "region_session.h"

#define SLOTS		64u
#define SECOND		1000000000ull
#define ROUNDS		60
#define LARGE		(256ull << 20)	/* takes long enough to import that something comes between */

struct pair {
	struct session near, far;
	uint32_t near_endpoint, far_endpoint;
	uint32_t path;
	struct dmp_listen listen;
};

static void *let_in(void *argument)
{
	struct pair *pair = argument;
	struct dmp_accept accept = { .size = sizeof(accept),
				     .listener_id = pair->listen.listener_id,
				     .channel_id = pair->far.channel.channel_id,
				     .window_slots = 8, .window_bytes = 1 << 20,
				     .deadline_ns = dmp_now_ns() + PATIENCE_NS };

	CHECK(!dmp_ioctl(pair->far.plane, DMP_ACCEPT, &accept));
	pair->far_endpoint = accept.endpoint_id;
	return NULL;
}

static void connect_pair(struct pair *pair)
{
	struct dmp_connect connect = { .size = sizeof(connect), .flags = DMP_REQUIRE_PATH,
				       .path = pair->path,
				       .channel_id = pair->near.channel.channel_id,
				       .window_slots = 8, .window_bytes = 1 << 20,
				       .deadline_ns = dmp_now_ns() + PATIENCE_NS };
	pthread_t acceptor;

	pair->listen = listening(&pair->far, "127.0.0.1:0", pair->path);
	CHECK(!pthread_create(&acceptor, NULL, let_in, pair));
	memcpy(connect.address, pair->listen.bound_address, sizeof(connect.address));
	CHECK(!dmp_ioctl(pair->near.plane, DMP_CONNECT, &connect));
	CHECK(!pthread_join(acceptor, NULL));
	pair->near_endpoint = connect.endpoint_id;
	CHECK(!unlisten(&pair->far, pair->listen.listener_id));
}

static void pair_open(struct pair *pair, uint32_t path)
{
	memset(pair, 0, sizeof(*pair));
	pair->path = path;
	session_open(&pair->near, SLOTS);
	session_open(&pair->far, SLOTS);
	connect_pair(pair);
}

static void pair_close(struct pair *pair)
{
	session_close(&pair->near);
	session_close(&pair->far);
}

static int destroy(struct dmp_plane *plane, unsigned int command, uint32_t id)
{
	struct dmp_destroy request = { .size = sizeof(request), .id = id };

	return dmp_ioctl(plane, command, &request);
}

static int import(struct dmp_plane *plane, uint32_t endpoint, const struct grant *grant,
		  uint32_t *region_id)
{
	struct dmp_region_import request = { .size = sizeof(request), .endpoint_id = endpoint,
					     .key_bytes = grant->create.key_bytes };
	int error;

	memcpy(request.key, grant->create.key, sizeof(request.key));
	error = dmp_ioctl(plane, DMP_REGION_IMPORT, &request);
	*region_id = request.region_id;
	return error;
}

/* ---- the channel has gone */

static struct dmp_embedded_endpoint *named(struct dmp_plane *plane, uint32_t id)
{
	return (struct dmp_embedded_endpoint *)dmp_table_find(&plane->table, id);
}

static void test_region_goes_after_the_channel(void)
{
	struct grant grant;
	struct pair pair;
	uint32_t buffer, region;

	pair_open(&pair, DMP_PATH_SHM);
	buffer = buffer_make(pair.far.plane, 1 << 16, NULL);
	grant = region_make(pair.far.plane, buffer, 0, 1 << 16, READ | WRITE);
	CHECK(!import(pair.near.plane, pair.near_endpoint, &grant, &region));
	CHECK(!destroy(pair.far.plane, DMP_CHANNEL_DESTROY, pair.far.channel.channel_id));
	CHECK(!named(pair.far.plane, pair.far_endpoint)->channel);
	/* It was shared, so each endpoint is looked at, the orphan too. */
	CHECK(!region_end(pair.far.plane, grant.create.region_id, DMP_DESTROY_DRAIN,
			  dmp_now_ns() + PATIENCE_NS));
	CHECK(!buffer_end(pair.far.plane, buffer, 0, 0));
	CHECK(!destroy(pair.far.plane, DMP_ENDPOINT_DESTROY, pair.far_endpoint));
	pair_close(&pair);
}

static void test_orphan_is_a_name(void)
{
	struct dmp_endpoint_query query = { .size = sizeof(query) };
	struct dmp_statistics statistics = { .size = sizeof(statistics),
					     .scope = DMP_SCOPE_ENDPOINT };
	struct pair pair;

	pair_open(&pair, DMP_PATH_TCP);
	CHECK(!destroy(pair.far.plane, DMP_CHANNEL_DESTROY, pair.far.channel.channel_id));
	query.endpoint_id = statistics.id = pair.far_endpoint;
	CHECK(!dmp_ioctl(pair.far.plane, DMP_ENDPOINT_QUERY, &query));
	CHECK(query.state == DMP_STATE_DEAD);
	CHECK(!dmp_ioctl(pair.far.plane, DMP_STATISTICS, &statistics));
	CHECK(!destroy(pair.far.plane, DMP_ENDPOINT_DESTROY, pair.far_endpoint));
	CHECK(dmp_ioctl(pair.far.plane, DMP_ENDPOINT_QUERY, &query) == -ENOENT);
	pair_close(&pair);
}

/* ---- at the same time */

struct race {
	struct pair *pair;
	pthread_barrier_t start;
};

static void *end_channel(void *argument)
{
	struct race *race = argument;

	pthread_barrier_wait(&race->start);
	CHECK(!destroy(race->pair->far.plane, DMP_CHANNEL_DESTROY,
		       race->pair->far.channel.channel_id));
	return NULL;
}

static void *ask_about_it(void *argument)
{
	struct race *race = argument;
	struct dmp_endpoint_query query = { .size = sizeof(query),
					    .endpoint_id = race->pair->far_endpoint };
	struct dmp_statistics statistics = { .size = sizeof(statistics),
					     .scope = DMP_SCOPE_ENDPOINT,
					     .id = race->pair->far_endpoint };
	int error;

	pthread_barrier_wait(&race->start);
	do {
		error = dmp_ioctl(race->pair->far.plane, DMP_ENDPOINT_QUERY, &query);
		CHECK(!error || error == -ENOENT);
		if (!error)
			error = dmp_ioctl(race->pair->far.plane, DMP_STATISTICS, &statistics);
		CHECK(!error || error == -ENOENT);
	} while (!error);
	return NULL;
}

static void test_endpoint_goes_beside_the_channel(void)
{
	pthread_t channel_ends, asks;
	struct race race;
	struct pair pair;
	int round;

	for (round = 0; round < ROUNDS; round++) {
		pair_open(&pair, round % 2 ? DMP_PATH_TCP : DMP_PATH_SHM);
		race.pair = &pair;
		CHECK(!pthread_barrier_init(&race.start, NULL, 3));
		CHECK(!pthread_create(&channel_ends, NULL, end_channel, &race));
		CHECK(!pthread_create(&asks, NULL, ask_about_it, &race));
		pthread_barrier_wait(&race.start);
		usleep((useconds_t)round * 5);
		CHECK(!destroy(pair.far.plane, DMP_ENDPOINT_DESTROY, pair.far_endpoint));
		CHECK(!pthread_join(channel_ends, NULL));
		CHECK(!pthread_join(asks, NULL));
		pthread_barrier_destroy(&race.start);
		pair_close(&pair);
	}
}

struct importing {
	struct pair *pair;
	const struct grant *grant;
	uint32_t region;
	int result;
};

static void *import_it(void *argument)
{
	struct importing *importing = argument;

	importing->result = import(importing->pair->near.plane, importing->pair->near_endpoint,
				   importing->grant, &importing->region);
	return NULL;
}

/* One of the two wins: no region may name an endpoint that has gone. */
static void test_import_beside_the_end(void)
{
	struct importing importing;
	struct grant grant;
	struct pair pair;
	pthread_t thread;
	uint32_t buffer;
	int round, error;

	pair_open(&pair, DMP_PATH_SHM);
	for (round = 0; round < 6; round++) {
		/* New memory each time: what nobody has touched takes longest to map. */
		buffer = buffer_make(pair.far.plane, LARGE, NULL);
		grant = region_make(pair.far.plane, buffer, 0, LARGE, READ | WRITE);
		importing = (struct importing){ .pair = &pair, .grant = &grant };
		CHECK(!pthread_create(&thread, NULL, import_it, &importing));
		usleep(2000u << (round % 3));
		error = destroy(pair.near.plane, DMP_ENDPOINT_DESTROY, pair.near_endpoint);
		CHECK(!pthread_join(thread, NULL));
		if (importing.result) {
			CHECK(importing.result == -ESTALE || importing.result == -ENOENT ||
			      importing.result == -ECONNRESET);
			CHECK(!error);
		} else {
			CHECK(error == -EBUSY);
			CHECK(region_ask(pair.near.plane, importing.region).endpoint_id ==
			      pair.near_endpoint);
			CHECK(!region_end(pair.near.plane, importing.region, 0, 0));
			CHECK(!destroy(pair.near.plane, DMP_ENDPOINT_DESTROY, pair.near_endpoint));
		}
		CHECK(!destroy(pair.far.plane, DMP_ENDPOINT_DESTROY, pair.far_endpoint));
		CHECK(!region_end(pair.far.plane, grant.create.region_id, DMP_DESTROY_DRAIN,
				  dmp_now_ns() + PATIENCE_NS));
		CHECK(!buffer_end(pair.far.plane, buffer, DMP_DESTROY_DRAIN,
				  dmp_now_ns() + PATIENCE_NS));
		connect_pair(&pair);
	}
	pair_close(&pair);
}

int main(void)
{
	test_region_goes_after_the_channel();
	test_orphan_is_a_name();
	test_endpoint_goes_beside_the_channel();
	test_import_beside_the_end();
	return 0;
}
