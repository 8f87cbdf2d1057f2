// SPDX-License-Identifier: MIT
/* test_origin.c - who is slowed down after failures, by how much, and who is not */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <string.h>

#include "core/check.h"
#include "address.h"
#include "origin.h"

#define MS 1000000ull
#define START (1000 * MS)

static struct dmp_origins origins;

static void fail(__u64 name, unsigned int times, __u64 now_ns)
{
	while (times-- != 0)
		dmp_origin_judge(&origins, name, false, now_ns);
}

/* How long one who comes now has to wait; he has been let through when this returns. */
static __u64 wait_of(__u64 name, __u64 now_ns)
{
	__u64 until_ns;

	CHECK(dmp_origin_arrive(&origins, name, now_ns, &until_ns) == 0);
	if (until_ns == 0)
		return 0;
	dmp_origin_unbox(&origins, name);
	return until_ns - now_ns;
}

static void test_two_failures_are_free_and_the_third_is_not(void)
{
	memset(&origins, 0, sizeof(origins));
	CHECK(wait_of(1, START) == 0);
	fail(1, 2, START);
	CHECK(wait_of(1, START) == 0 && dmp_origin_is_clean(&origins, 1));
	fail(1, 1, START);
	CHECK(wait_of(1, START) == 100 * MS && !dmp_origin_is_clean(&origins, 1));
	CHECK(wait_of(2, START) == 0 && dmp_origin_is_clean(&origins, 2));
}

static void test_the_penalty_doubles_up_to_its_bound(void)
{
	static const __u64 waits[] = { 100, 200, 400, 800, 1600, 2000, 2000, 2000, 2000,
				       2000, 2000, 2000, 2000, 2000, 2000, 2000, 2000 };
	__u64 now_ns = START;
	unsigned int row;

	memset(&origins, 0, sizeof(origins));
	fail(1, 2, now_ns);
	for (row = 0; row < sizeof(waits) / sizeof(waits[0]); row++) {
		fail(1, 1, now_ns);
		CHECK(wait_of(1, now_ns) == waits[row] * MS);
		now_ns += waits[row] * MS;
	}
	fail(1, 1000, now_ns);
	CHECK(wait_of(1, now_ns) == 2000 * MS);
}

/* Several who come at once are let through a penalty apart, and only so many may wait. */
static void test_tries_are_a_penalty_apart_and_the_box_is_small(void)
{
	__u64 until_ns;
	unsigned int i;

	memset(&origins, 0, sizeof(origins));
	fail(1, 3, START);
	for (i = 1; i <= DMP_BOXED_MAX; i++) {
		CHECK(dmp_origin_arrive(&origins, 1, START, &until_ns) == 0);
		CHECK(until_ns == START + i * 100 * MS);
	}
	CHECK(dmp_origin_arrive(&origins, 1, START, &until_ns) == -EAGAIN);
	dmp_origin_unbox(&origins, 1);
	CHECK(dmp_origin_arrive(&origins, 1, START + 100 * MS, &until_ns) == 0);
	CHECK(until_ns == START + 500 * MS);
}

/* The bound that is promised to who knows the secret. */
static void test_who_waits_is_let_through_within_eight_seconds(void)
{
	__u64 until_ns = 0;
	unsigned int i;

	memset(&origins, 0, sizeof(origins));
	fail(1, 1000, START);
	for (i = 0; i < DMP_BOXED_MAX; i++)
		CHECK(dmp_origin_arrive(&origins, 1, START, &until_ns) == 0);
	CHECK(until_ns == START + 8000 * MS);
	fail(1, 1000, START + MS);
	CHECK(dmp_origin_arrive(&origins, 1, START + MS, &until_ns) == -EAGAIN);
}

static void test_a_proof_clears_the_count(void)
{
	memset(&origins, 0, sizeof(origins));
	fail(1, 50, START);
	dmp_origin_judge(&origins, 1, true, START);
	CHECK(dmp_origin_is_clean(&origins, 1) && wait_of(1, START) == 0);
	fail(1, 2, START);
	CHECK(wait_of(1, START) == 0);
	fail(1, 1, START);
	CHECK(wait_of(1, START) == 100 * MS);
	dmp_origin_judge(&origins, 99, true, START);
}

static void test_failures_are_forgotten_after_ten_seconds(void)
{
	memset(&origins, 0, sizeof(origins));
	fail(1, 5, START);
	CHECK(wait_of(1, START + DMP_FAILURE_FORGET_NS - 1) != 0);
	CHECK(wait_of(1, START + DMP_FAILURE_FORGET_NS) == 0);
	fail(1, 2, START + DMP_FAILURE_FORGET_NS);
	CHECK(wait_of(1, START + DMP_FAILURE_FORGET_NS) == 0);
}

/* However many fail, memory is bounded and those who wait keep their row. */
static void test_a_full_table_forgets_the_oldest(void)
{
	__u64 until_ns, name;

	memset(&origins, 0, sizeof(origins));
	fail(1, 3, START);
	CHECK(dmp_origin_arrive(&origins, 1, START, &until_ns) == 0 && until_ns != 0);
	for (name = 2; name < 2 + 2 * DMP_ORIGINS; name++)
		fail(name, 3, START + name);
	CHECK(!dmp_origin_is_clean(&origins, 1));
	CHECK(dmp_origin_is_clean(&origins, 2));
	CHECK(!dmp_origin_is_clean(&origins, 1 + 2 * DMP_ORIGINS));
	/* Everybody waits: one more is not noted, and nobody is forgotten. */
	for (name = 2; name < 2 + 2 * DMP_ORIGINS; name++)
		CHECK(dmp_origin_arrive(&origins, name, START, &until_ns) == 0);
	fail(9999, 3, START);
	CHECK(dmp_origin_is_clean(&origins, 9999) && !dmp_origin_is_clean(&origins, 1));
}

static __u64 origin(const char *text)
{
	struct sockaddr_storage socket;
	struct sockaddr_in *ipv4 = (struct sockaddr_in *)&socket;
	struct sockaddr_in6 *ipv6 = (struct sockaddr_in6 *)&socket;

	memset(&socket, 0, sizeof(socket));
	socket.ss_family = strchr(text, ':') ? AF_INET6 : AF_INET;
	CHECK(inet_pton(socket.ss_family, text,
			socket.ss_family == AF_INET ? (void *)&ipv4->sin_addr :
						      (void *)&ipv6->sin6_addr) == 1);
	return dmp_address_origin(&socket);
}

static void test_an_origin_is_an_address_a_network_or_a_user(void)
{
	CHECK(origin("10.0.0.1") != origin("10.0.0.2"));
	CHECK(origin("10.0.0.1") == origin("::ffff:10.0.0.1"));
	CHECK(origin("2001:db8:0:1::1") == origin("2001:db8:0:1:ffff::9"));
	CHECK(origin("2001:db8:0:1::1") != origin("2001:db8:0:2::1"));
	CHECK(origin("::1") != origin("127.0.0.1"));
	CHECK(dmp_origin_of_user(0) != dmp_origin_of_user(1000));
	CHECK(dmp_origin_of_user(0x7f000001) != origin("127.0.0.1"));
}

int main(void)
{
	test_two_failures_are_free_and_the_third_is_not();
	test_the_penalty_doubles_up_to_its_bound();
	test_tries_are_a_penalty_apart_and_the_box_is_small();
	test_who_waits_is_let_through_within_eight_seconds();
	test_a_proof_clears_the_count();
	test_failures_are_forgotten_after_ten_seconds();
	test_a_full_table_forgets_the_oldest();
	test_an_origin_is_an_address_a_network_or_a_user();
	return 0;
}
