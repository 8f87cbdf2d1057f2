// SPDX-License-Identifier: MIT
/* test_import.c - REGION_IMPORT on a connection that has its hands full */
#define _GNU_SOURCE
#include <pthread.h>

#include "door_session.h"
#include "endpoint_embedded.h"
#include "region_session.h"

#define SLOTS	1024u
#define SENDS	(2 * DMP_OPERATIONS_MAX)	/* more than the machine takes: the rest is in a lane */

struct both {
	struct session near, far;
	uint32_t near_endpoint, far_endpoint;
	struct dmp_listen listen;
};

static void *let_in(void *argument)
{
	struct both *both = argument;
	struct dmp_accept accept = { .size = sizeof(accept),
				     .listener_id = both->listen.listener_id,
				     .channel_id = both->far.channel.channel_id,
				     .window_slots = 1, .window_bytes = 1 << 20,
				     .deadline_ns = dmp_now_ns() + PATIENCE_NS };

	CHECK(!dmp_ioctl(both->far.plane, DMP_ACCEPT, &accept));
	both->far_endpoint = accept.endpoint_id;
	return NULL;
}

static void both_open(struct both *both)
{
	struct dmp_connect connect = { .size = sizeof(connect), .flags = DMP_REQUIRE_PATH,
				       .path = DMP_PATH_TCP, .window_slots = 1,
				       .window_bytes = 1 << 20, .detect_ms = 10000,
				       .deadline_ns = dmp_now_ns() + PATIENCE_NS };
	pthread_t acceptor;

	memset(both, 0, sizeof(*both));
	session_open(&both->near, SLOTS);
	session_open(&both->far, SLOTS);
	both->listen = listening(&both->far, "127.0.0.1:0", DMP_PATH_TCP);
	CHECK(!pthread_create(&acceptor, NULL, let_in, both));
	connect.channel_id = both->near.channel.channel_id;
	memcpy(connect.address, both->listen.bound_address, sizeof(connect.address));
	CHECK(!dmp_ioctl(both->near.plane, DMP_CONNECT, &connect));
	CHECK(!pthread_join(acceptor, NULL));
	both->near_endpoint = connect.endpoint_id;
}

static void push_all(struct session *session, const struct dmp_submission *submission, uint32_t count)
{
	uint32_t number, pushed;

	for (number = 0; number < count; number++)
		CHECK(dmp_client_exchange(&session->client, submission, 1, &pushed, NULL, 0, 0,
					  NOW) >= 0 && pushed == 1);
}

static struct dmp_embedded_endpoint *named(struct session *session, uint32_t endpoint_id)
{
	return (struct dmp_embedded_endpoint *)dmp_table_find(&session->plane->table, endpoint_id);
}

/* Is every slot of the machine taken, and does something wait? */
static bool is_full(struct session *session, uint32_t endpoint_id)
{
	struct dmp_embedded_endpoint *endpoint = named(session, endpoint_id);
	struct dmp_endpoint_status status;
	bool full;

	pthread_mutex_lock(&endpoint->channel->lock);
	dmp_endpoint_query(endpoint->machine, &status);
	/* And stays taken: there is no credit, and what had some has been answered. */
	full = endpoint->lanes[0].count != 0 && status.operations == DMP_OPERATIONS_MAX &&
	       status.send.available.slots == 0 && status.send.in_flight.slots == 0;
	pthread_mutex_unlock(&endpoint->channel->lock);
	return full;
}

/* And an import? */
static bool waits(struct session *session, uint32_t endpoint_id)
{
	struct dmp_embedded_endpoint *endpoint = named(session, endpoint_id);
	bool waiting;

	pthread_mutex_lock(&endpoint->channel->lock);
	waiting = endpoint->probe_waits;
	pthread_mutex_unlock(&endpoint->channel->lock);
	return waiting;
}

struct importing {
	struct both *both;
	struct dmp_region_import request;
	int result;
};

static void *import_it(void *argument)
{
	struct importing *importing = argument;

	__atomic_store_n(&importing->result, dmp_ioctl(importing->both->near.plane,
						       DMP_REGION_IMPORT, &importing->request),
			 __ATOMIC_RELEASE);
	return NULL;
}

/* The probe waits until a slot is free, as the operations do that wait in the lane. */
static void test_import_waits_for_a_slot(void)
{
	struct dmp_submission send = { .operation = DMP_OP_SEND, .length_bytes = 8 };
	struct dmp_submission receive = { .operation = DMP_OP_RECV, .length_bytes = 8 };
	struct importing importing = { .request = { .size = sizeof(importing.request) } };
	struct dmp_completion done[64];
	struct grant grant;
	struct both both;
	pthread_t thread;
	uint32_t pushed, got = 0;

	both_open(&both);
	send.endpoint_id = both.near_endpoint;
	send.source_id = buffer_make(both.near.plane, 4096, NULL);
	receive.endpoint_id = both.far_endpoint;
	receive.target_id = buffer_make(both.far.plane, 4096, NULL);
	grant = region_make(both.far.plane, receive.target_id, 0, 4096, READ);
	push_all(&both.near, &send, SENDS);
	while (!is_full(&both.near, both.near_endpoint))
		usleep(1000);
	importing.both = &both;
	importing.request.endpoint_id = both.near_endpoint;
	importing.request.key_bytes = grant.create.key_bytes;
	memcpy(importing.request.key, grant.create.key, sizeof(importing.request.key));
	CHECK(!pthread_create(&thread, NULL, import_it, &importing));
	while (!waits(&both.near, both.near_endpoint)) {
		CHECK(!__atomic_load_n(&importing.result, __ATOMIC_ACQUIRE));
		usleep(1000);
	}
	push_all(&both.far, &receive, SENDS);
	CHECK(!pthread_join(thread, NULL));
	CHECK(!importing.result);
	while (got < SENDS) {
		int count = dmp_client_exchange(&both.near.client, NULL, 0, &pushed, done, 64, 1,
						dmp_now_ns() + PATIENCE_NS);

		CHECK(count > 0);
		for (int number = 0; number < count; number++)
			CHECK(done[number].result == 0);
		got += (uint32_t)count;
	}
	session_close(&both.near);
	session_close(&both.far);
}

int main(void)
{
	test_import_waits_for_a_slot();
	return 0;
}
