// SPDX-License-Identifier: MIT
/* test_penalty.c - a door and those who do not know the secret: who waits, and who does not */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "door_session.h"
#include "origin.h"

static void test_L12_who_fails_often_waits_and_others_do_not(void)
{
	struct dmp_listener *listener;
	struct dmp_fabric *fabric;
	struct dmp_arrival arrival;
	struct session session;
	struct dmp_listen listen;
	__u64 came_ns;
	int fd, i;

	session_open(&session, 8);
	listen = listening(&session, "127.0.0.1:0", 0);
	fail(&session, &listen, 6);	/* the fourth penalty */
	came_ns = dmp_now_ns();
	fd = come_and_speak(&listen);
	/* He is in the box. Who comes after him, from elsewhere, does not wait for him. */
	fabric = dial_and_speak(&session, &listen, DMP_PATH_SHM);
	CHECK(take(&session, listen.listener_id, dmp_now_ns() + PATIENCE_NS, &listener,
		   &arrival) == 0);
	CHECK(arrival.fabric->type->path == DMP_PATH_SHM ||
	      dmp_now_ns() - came_ns >= 8 * DMP_PENALTY_MIN_NS);
	hang_up(arrival.fabric);
	dmp_listener_put(session.plane, listener);
	hang_up(fabric);
	/* He knows it after all: he gets his turn. */
	take_and_judge(&session, &listen, true);
	CHECK(dmp_now_ns() - came_ns >= 8 * DMP_PENALTY_MIN_NS);
	close(fd);
	for (i = 0; i < 8; i++) {
		fd = come_and_speak(&listen);
		take_and_judge(&session, &listen, true);
		close(fd);
	}
	session_close(&session);
}

/* The box holds few of one origin; those beyond are sent away, those in it get their turn. */
static void test_who_waits_in_the_box_gets_his_turn(void)
{
	struct dmp_listener *listener;
	struct dmp_arrival arrival;
	struct dmp_listen listen;
	struct session session;
	int fds[DMP_BOXED_MAX + 3];
	unsigned int i;

	session_open(&session, 8);
	listen = listening(&session, "127.0.0.1:0", 0);
	fail(&session, &listen, 3);
	for (i = 0; i < DMP_BOXED_MAX + 3; i++)
		fds[i] = come_and_speak(&listen);
	for (i = DMP_BOXED_MAX; i < DMP_BOXED_MAX + 3; i++)
		wait_sent_away(fds[i]);
	CHECK(take(&session, listen.listener_id, dmp_now_ns() + PATIENCE_NS, &listener,
		   &arrival) == 0);
	/* One proof, and the others are let through at once. */
	dmp_listener_judge(listener, arrival.origin, true);
	hang_up(arrival.fabric);
	dmp_listener_put(session.plane, listener);
	for (i = 1; i < DMP_BOXED_MAX; i++)
		take_and_judge(&session, &listen, false);
	for (i = 0; i < DMP_BOXED_MAX; i++)
		close(fds[i]);
	session_close(&session);
}

/* Whoever came first: origins take turns, and each keeps its order. */
static void test_L12_many_of_one_origin_do_not_keep_another_waiting(void)
{
	static const __u32 order[] = { DMP_PATH_TCP, DMP_PATH_SHM, DMP_PATH_TCP, DMP_PATH_SHM,
				       DMP_PATH_TCP, DMP_PATH_TCP, DMP_PATH_TCP, DMP_PATH_TCP };
	struct dmp_listener *listener;
	struct dmp_fabric *fabrics[2];
	struct dmp_arrival arrival;
	struct dmp_listen listen;
	struct session session;
	unsigned int i;
	int fds[6];

	session_open(&session, 8);
	listen = listening(&session, "127.0.0.1:0", 0);
	for (i = 0; i < 6; i++) {
		fds[i] = come_and_speak(&listen);
		wait_event(&session, listen.listener_id);
	}
	for (i = 0; i < 2; i++) {
		fabrics[i] = dial_and_speak(&session, &listen, DMP_PATH_SHM);
		wait_event(&session, listen.listener_id);
	}
	for (i = 0; i < 8; i++) {
		CHECK(take(&session, listen.listener_id, NOW, &listener, &arrival) == 0);
		CHECK(arrival.fabric->type->path == order[i]);
		hang_up(arrival.fabric);
		dmp_listener_put(session.plane, listener);
	}
	for (i = 0; i < 6; i++)
		close(fds[i]);
	for (i = 0; i < 2; i++)
		hang_up(fabrics[i]);
	session_close(&session);
}

/* Guesses that were queued before the first of them failed are no way around the box. */
static void test_L12_a_burst_of_guesses_is_sifted(void)
{
	struct dmp_listener *listener;
	struct dmp_fabric *fabric;
	struct dmp_arrival arrival;
	struct dmp_listen listen;
	struct session session;
	unsigned int i;
	__u64 since_ns;
	int fds[16];

	session_open(&session, 64);
	listen = listening(&session, "127.0.0.1:0", 0);
	for (i = 0; i < 15; i++)
		fds[i] = come_and_speak(&listen);
	fabric = dial_and_speak(&session, &listen, DMP_PATH_SHM);
	for (i = 0; i < 16; i++)
		wait_event(&session, listen.listener_id);
	CHECK(take(&session, listen.listener_id, dmp_now_ns() + PATIENCE_NS, &listener,
		   &arrival) == 0);
	since_ns = dmp_now_ns();
	for (i = 0; i < 3; i++)
		dmp_listener_judge(listener, arrival.origin, false);
	hang_up(arrival.fabric);
	dmp_listener_put(session.plane, listener);
	/* Some wait in the box, the others are gone. */
	for (i = 1 + DMP_BOXED_MAX; i < 15; i++)
		wait_sent_away(fds[i]);
	CHECK(take(&session, listen.listener_id, dmp_now_ns() + PATIENCE_NS, &listener,
		   &arrival) == 0);
	CHECK(arrival.fabric->type->path == DMP_PATH_SHM);
	hang_up(arrival.fabric);
	dmp_listener_put(session.plane, listener);
	hang_up(fabric);
	/* Who has waited is announced anew. */
	for (i = 0; i < DMP_BOXED_MAX; i++) {
		wait_event(&session, listen.listener_id);
		take_and_judge(&session, &listen, false);
		CHECK(dmp_now_ns() - since_ns >= (i + 1) * DMP_PENALTY_MIN_NS);
	}
	for (i = 0; i < 1 + DMP_BOXED_MAX; i++)
		close(fds[i]);
	session_close(&session);
}

int main(void)
{
	test_L12_who_fails_often_waits_and_others_do_not();
	test_who_waits_in_the_box_gets_his_turn();
	test_L12_many_of_one_origin_do_not_keep_another_waiting();
	test_L12_a_burst_of_guesses_is_sifted();
	return 0;
}
