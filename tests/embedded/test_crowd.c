// SPDX-License-Identifier: MIT
/*
 * test_crowd.c - a worker leaves its sender's processor, and nothing else of it changes
 *
 * This thread is the worker; the fabric says what processor the peer sends from.
 */
#define _GNU_SOURCE
#include <sched.h>

#include "core/check.h"
#include "crowd.h"

#define MUCH	(1u << 20)
#define LATER	1000000000u
#define TRIES	50

static struct dmp_embedded_channel channel = { .lock = PTHREAD_MUTEX_INITIALIZER };
static struct dmp_embedded_endpoint endpoint;
static int looks;
static bool is_here;

static int processor(struct dmp_fabric *fabric)
{
	(void)fabric;
	looks++;
	return is_here ? sched_getcpu() : -1;
}

static const struct dmp_fabric_type within_a_host = { .processor = processor };
static const struct dmp_fabric_type elsewhere;

/* A payload of @bytes comes in, and the worker was idle before. */
static void begin(const struct dmp_fabric_type *type, bool here, __u64 bytes)
{
	static struct dmp_fabric fabric;

	fabric.type = type;
	endpoint.channel = &channel;
	endpoint.fabric = &fabric;
	endpoint.stream.placing = true;
	endpoint.stream.payload_done = bytes / 2;
	endpoint.stream.payload_left = bytes - bytes / 2;
	endpoint.now_ns += LATER;
	is_here = here;
	looks = 0;
	pthread_mutex_lock(&channel.lock);
	dmp_crowd_begin_locked(&channel);
}

static void end(void)
{
	pthread_mutex_unlock(&channel.lock);
}

static void test_only_much_from_here_is_worth_it(void)
{
	begin(&within_a_host, true, MUCH);
	CHECK(dmp_crowd_look_locked(&endpoint));
	end();
	begin(&within_a_host, false, MUCH);
	CHECK(!dmp_crowd_look_locked(&endpoint) && looks == 1);
	end();
	begin(&within_a_host, true, 4096);
	CHECK(!dmp_crowd_look_locked(&endpoint) && looks == 0);
	end();
	begin(&elsewhere, true, MUCH);
	CHECK(!dmp_crowd_look_locked(&endpoint));
	end();
	begin(&within_a_host, true, MUCH);
	endpoint.stream.placing = false;
	CHECK(!dmp_crowd_look_locked(&endpoint) && looks == 0);
	end();
}

static void test_it_is_asked_once_and_not_soon_again(void)
{
	begin(&within_a_host, true, MUCH);
	CHECK(dmp_crowd_look_locked(&endpoint));
	endpoint.now_ns += LATER;
	CHECK(!dmp_crowd_look_locked(&endpoint) && looks == 1);
	end();
	begin(&within_a_host, true, MUCH);
	CHECK(dmp_crowd_look_locked(&endpoint));
	end();
	begin(&within_a_host, true, MUCH);
	endpoint.now_ns -= LATER - 1;
	CHECK(!dmp_crowd_look_locked(&endpoint) && looks == 0);
	end();
	endpoint.now_ns += LATER;
}

/* What a caller saw in the worker's place was his processor. */
static void test_who_begins_knows_nothing(void)
{
	begin(&within_a_host, true, MUCH);
	CHECK(dmp_crowd_look_locked(&endpoint) && channel.crowded);
	dmp_crowd_begin_locked(&channel);
	CHECK(!channel.crowded);
	end();
}

/* Whoever else is busy may push us back: so most of many times. */
static void test_it_leaves_and_may_run_where_it_might_before(void)
{
	cpu_set_t before, after;
	int number, left = 0;

	CHECK(!sched_getaffinity(0, sizeof(before), &before));
	for (number = 0; number < TRIES; number++) {
		int cpu;

		begin(&within_a_host, true, MUCH);
		CHECK(dmp_crowd_look_locked(&endpoint));
		cpu = sched_getcpu();
		dmp_crowd_heed_locked(&channel);
		left += sched_getcpu() != cpu;
		CHECK(!channel.crowded && !channel.makes_way);
		end();
		CHECK(!sched_getaffinity(0, sizeof(after), &after) && CPU_EQUAL(&before, &after));
	}
	CHECK(left > TRIES / 2 || CPU_COUNT(&before) == 1);
}

static void test_who_may_run_nowhere_else_stays(void)
{
	cpu_set_t before, only, after;
	int cpu = sched_getcpu();

	CHECK(!sched_getaffinity(0, sizeof(before), &before));
	CPU_ZERO(&only);
	CPU_SET(cpu, &only);
	CHECK(!sched_setaffinity(0, sizeof(only), &only));
	begin(&within_a_host, true, MUCH);
	CHECK(dmp_crowd_look_locked(&endpoint));
	dmp_crowd_heed_locked(&channel);
	end();
	CHECK(sched_getcpu() == cpu);
	CHECK(!sched_getaffinity(0, sizeof(after), &after) && CPU_EQUAL(&only, &after));
	CHECK(!sched_setaffinity(0, sizeof(before), &before));
}

int main(void)
{
	test_only_much_from_here_is_worth_it();
	test_it_is_asked_once_and_not_soon_again();
	test_who_begins_knows_nothing();
	test_it_leaves_and_may_run_where_it_might_before();
	test_who_may_run_nowhere_else_stays();
	return 0;
}
