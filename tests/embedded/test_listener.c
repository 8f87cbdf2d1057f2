// SPDX-License-Identifier: MIT
/*
 * test_listener.c - the doorkeeper: who is let in, who is sent away, and what it costs others
 *
 * Real sockets. Who says HELLO by hand comes over tcp, so that it can be said in halves.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>

#include "child.h"
#include "door_session.h"
#include "doorkeeper.h"

static void test_L12_a_hundred_who_say_nothing_do_not_stop_one_who_speaks(void)
{
	struct session session;
	struct dmp_listen listen;
	int silent[100], fd, i;

	session_open(&session, 8);
	listen = listening(&session, "127.0.0.1:0", DMP_PATH_TCP);
	for (i = 0; i < 100; i++)
		silent[i] = come(&listen);
	fd = come_and_speak(&listen);
	take_and_judge(&session, &listen, true);
	/* And they are not kept. */
	for (i = 0; i < 100; i++)
		wait_sent_away(silent[i]);
	CHECK(nobody_is_there(&session, &listen));
	close(fd);
	session_close(&session);
}

static void test_half_a_hello_is_not_handed_out(void)
{
	static const size_t halves[] = { 1, DMP_WIRE_HEADER_BYTES - 1, DMP_WIRE_HEADER_BYTES,
					 HELLO_BYTES - 1 };
	struct session session;
	struct dmp_listen listen;
	int fds[4], i;

	session_open(&session, 8);
	listen = listening(&session, "127.0.0.1:0", DMP_PATH_TCP);
	for (i = 0; i < 4; i++) {
		fds[i] = come(&listen);
		say_bytes(fds[i], 0, halves[i]);
	}
	for (i = 0; i < 4; i++)
		wait_sent_away(fds[i]);
	CHECK(nobody_is_there(&session, &listen));
	session_close(&session);
}

static void test_a_hello_may_come_byte_by_byte(void)
{
	struct session session;
	struct dmp_listen listen;
	size_t at;
	int fd;

	session_open(&session, 8);
	listen = listening(&session, "127.0.0.1:0", DMP_PATH_TCP);
	fd = come(&listen);
	for (at = 0; at < HELLO_BYTES; at++)
		say_bytes(fd, at, at + 1);
	take_and_judge(&session, &listen, true);
	close(fd);
	session_close(&session);
}

/* Each byte of the HELLO wrong in turn: none is handed out, and an honest one still is. */
static void test_L12_what_is_no_hello_is_sent_away(void)
{
	struct session session;
	struct dmp_listen listen;
	__u8 hello[HELLO_BYTES];
	int fds[HELLO_BYTES], fd, i, length;
	struct dmp_frame ping;

	memset(&ping, 0, sizeof(ping));
	ping.type = DMP_FRAME_PING;
	ping.epoch = 1;
	ping.sequence = 1;
	ping.incarnation = 7;
	ping.destination = 8;
	session_open(&session, 8);
	listen = listening(&session, "127.0.0.1:0", DMP_PATH_TCP);
	for (i = 0; i < HELLO_BYTES; i++) {
		make_hello(hello);
		hello[i] ^= 0x81;
		fds[i] = come(&listen);
		CHECK(send(fds[i], hello, sizeof(hello), MSG_NOSIGNAL) > 0);
	}
	for (i = 0; i < HELLO_BYTES; i++)
		wait_sent_away(fds[i]);
	fd = come(&listen);
	memset(hello, 'G', sizeof(hello));
	CHECK(send(fd, hello, sizeof(hello), MSG_NOSIGNAL) > 0);
	wait_sent_away(fd);
	fd = come(&listen);
	length = dmp_wire_encode(&ping, true, hello, sizeof(hello));
	CHECK(length > 0 && send(fd, hello, (size_t)length, MSG_NOSIGNAL) == length);
	wait_sent_away(fd);
	CHECK(nobody_is_there(&session, &listen));
	fd = come_and_speak(&listen);
	take_and_judge(&session, &listen, true);
	close(fd);
	session_close(&session);
}

static void test_who_hangs_up_in_the_queue_is_not_handed_out(void)
{
	static const __u32 paths[] = { DMP_PATH_TCP, DMP_PATH_SHM };
	struct dmp_fabric *stays, *goes;
	struct dmp_listen listen;
	struct session session;
	unsigned int i;

	session_open(&session, 8);
	for (i = 0; i < 2; i++) {
		listen = listening(&session, "127.0.0.1:0", 0);
		goes = dial_and_speak(&session, &listen, paths[i]);
		wait_event(&session, listen.listener_id);	/* he is in the queue */
		hang_up(goes);
		/* The doorkeeper looks at one before the other: this one came later. */
		stays = dial_and_speak(&session, &listen, paths[i]);
		wait_event(&session, listen.listener_id);
		take_and_judge(&session, &listen, true);
		CHECK(nobody_is_there(&session, &listen));
		hang_up(stays);
		CHECK(unlisten(&session, listen.listener_id) == 0);
	}
	session_close(&session);
}

static void test_each_arrival_is_announced_once(void)
{
	struct dmp_completion events[16];
	struct session session;
	struct dmp_listen first, second;
	int fds[8], i;
	__u32 pushed;

	session_open(&session, 16);
	first = listening(&session, "127.0.0.1:0", DMP_PATH_TCP);
	second = listening(&session, "127.0.0.2:0", DMP_PATH_TCP);
	for (i = 0; i < 8; i++) {
		fds[i] = come_and_speak(i % 2 ? &first : &second);
		wait_event(&session, i % 2 ? first.listener_id : second.listener_id);
	}
	for (i = 0; i < 8; i++) {
		take_and_judge(&session, i % 2 ? &first : &second, true);
		close(fds[i]);
	}
	CHECK(dmp_client_exchange(&session.client, NULL, 0, &pushed, events, 16, 0, 0) == 0);
	session_close(&session);
}

/* The channel has slots for few: the others are told when those have been read. */
static void test_an_event_without_a_slot_is_told_later(void)
{
	struct session session;
	struct dmp_listen listen;
	int fds[12], i;

	session_open(&session, 1);
	listen = listening(&session, "127.0.0.1:0", DMP_PATH_TCP);
	for (i = 0; i < 12; i++)
		fds[i] = come_and_speak(&listen);
	for (i = 0; i < 12; i++)
		wait_event(&session, listen.listener_id);
	for (i = 0; i < 12; i++) {
		take_and_judge(&session, &listen, true);
		close(fds[i]);
	}
	session_close(&session);
}

static void test_a_listener_outlives_its_channel(void)
{
	struct dmp_destroy destroy = { .size = sizeof(destroy) };
	struct session session;
	struct dmp_listen listen;
	int fd;

	session_open(&session, 8);
	listen = listening(&session, "127.0.0.1:0", DMP_PATH_TCP);
	destroy.id = session.channel.channel_id;
	CHECK(dmp_ioctl(session.plane, DMP_CHANNEL_DESTROY, &destroy) == 0);
	fd = come_and_speak(&listen);
	take_and_judge(&session, &listen, true);
	close(fd);
	session_close(&session);
}

/* Many more than the backlog and the half-open may be: every one of them gets in. */
static void test_those_beyond_the_backlog_wait_outside(void)
{
	struct dmp_listener *listener;
	struct dmp_listen listen;
	struct session session;
	int fds[60], i;

	session_open(&session, 8);
	listen = listen_on(&session, "127.0.0.1:0");
	listen.backlog = 2;
	CHECK(dmp_ioctl(session.plane, DMP_LISTEN, &listen) == 0);
	for (i = 0; i < 60; i++)
		fds[i] = come_and_speak(&listen);
	for (i = 0; i < 60; i++) {
		take_one(&session, &listen, &listener);
		dmp_listener_put(session.plane, listener);
	}
	CHECK(nobody_is_there(&session, &listen));
	for (i = 0; i < 60; i++)
		close(fds[i]);
	session_close(&session);
}

/* ---- no descriptors: in a process of its own */

static __u64 cpu_ns(void)
{
	struct timespec used;

	CHECK(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used) == 0);
	return (__u64)used.tv_sec * 1000000000u + (__u64)used.tv_nsec;
}

static void without_descriptors(void)
{
	struct rlimit limit, tight;
	struct dmp_listener *listener;
	struct dmp_arrival arrival;
	struct dmp_address address;
	struct dmp_listen listen;
	struct session session;
	__u64 used_ns;
	int fd, filler;

	session_open(&session, 8);
	listen = listening(&session, "127.0.0.1:0", DMP_PATH_TCP);
	address = bound(&listen);
	fd = come_and_speak(&listen);
	take_and_judge(&session, &listen, true);
	close(fd);
	fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
	tight = limit;
	tight.rlim_cur = 64;
	CHECK(setrlimit(RLIMIT_NOFILE, &tight) == 0);
	do {
		filler = dup(fd);
	} while (filler >= 0);
	CHECK(errno == EMFILE);
	used_ns = cpu_ns();
	CHECK(connect(fd, (struct sockaddr *)&address.socket, address.length) == 0);
	say_bytes(fd, 0, HELLO_BYTES);
	/* Nobody can be let in, and nobody runs in circles meanwhile. */
	CHECK(take(&session, listen.listener_id, dmp_now_ns() + 400000000u, &listener,
		   &arrival) == -ETIMEDOUT);
	CHECK(cpu_ns() - used_ns < 200000000u);
	CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
	take_and_judge(&session, &listen, true);
	session_close(&session);
}

static void test_without_descriptors_arrivals_wait_until_there_are_some(void)
{
	in_child(without_descriptors);
}

/* ---- those who wait inside */

struct taker {
	struct session *session;
	__u32 listener_id;
	int result;
	uint32_t waits;
	pthread_t thread;
};

static void *take_in_thread(void *argument)
{
	struct taker *taker = argument;
	struct dmp_listener *listener;
	struct dmp_arrival arrival;

	__atomic_store_n(&taker->waits, 1, __ATOMIC_RELEASE);
	taker->result = take(taker->session, taker->listener_id, dmp_now_ns() + PATIENCE_NS,
			     &listener, &arrival);
	return NULL;
}

static void start_taker(struct taker *taker)
{
	taker->waits = 0;
	CHECK(pthread_create(&taker->thread, NULL, take_in_thread, taker) == 0);
	while (!__atomic_load_n(&taker->waits, __ATOMIC_ACQUIRE))
		usleep(100);
	usleep(5000);
}

static void test_destroy_sends_home_who_waits(void)
{
	struct session session;
	struct dmp_listen listen;
	struct taker takers[4];
	int fd, i;

	session_open(&session, 8);
	listen = listening(&session, "127.0.0.1:0", DMP_PATH_TCP);
	for (i = 0; i < 4; i++) {
		takers[i].session = &session;
		takers[i].listener_id = listen.listener_id;
		start_taker(&takers[i]);
	}
	fd = come(&listen);
	CHECK(unlisten(&session, listen.listener_id) == 0);
	for (i = 0; i < 4; i++) {
		CHECK(pthread_join(takers[i].thread, NULL) == 0);
		/* ENOENT: it had not got in when the listener went. */
		CHECK(takers[i].result == -ESTALE || takers[i].result == -ENOENT);
	}
	CHECK(takers[0].result == -ESTALE);
	wait_sent_away(fd);
	CHECK(unlisten(&session, listen.listener_id) == -ENOENT);
	CHECK(take(&session, listen.listener_id, NOW, NULL, NULL) == -ENOENT);
	session_close(&session);
}

static void test_who_was_taken_keeps_the_listener(void)
{
	struct dmp_listener *listener;
	struct dmp_arrival arrival;
	struct dmp_listen listen;
	struct session session;
	int fd;

	session_open(&session, 8);
	listen = listen_on(&session, "127.0.0.1:0");
	listen.secret_bytes = 3;
	memcpy(listen.secret, "key", 3);
	CHECK(dmp_ioctl(session.plane, DMP_LISTEN, &listen) == 0);
	fd = come_and_speak(&listen);
	CHECK(take(&session, listen.listener_id, dmp_now_ns() + PATIENCE_NS, &listener,
		   &arrival) == 0);
	CHECK(strncmp((char *)arrival.peer_address, "127.0.0.1:", 10) == 0);
	CHECK(unlisten(&session, listen.listener_id) == 0);
	CHECK(dmp_listener_secret(listener)->count == 3);
	CHECK(memcmp(dmp_listener_secret(listener)->bytes, "key", 3) == 0);
	CHECK(dmp_listener_channel(listener) == session.channel.channel_id);
	dmp_listener_judge(listener, arrival.origin, true);
	dmp_listener_put(session.plane, listener);
	hang_up(arrival.fabric);
	close(fd);
	session_close(&session);
}

static void ignore(int number)
{
	(void)number;
}

static void test_a_signal_ends_the_wait(void)
{
	struct sigaction action = { .sa_handler = ignore };
	struct session session;
	struct dmp_listen listen;
	struct taker taker;

	session_open(&session, 8);
	listen = listening(&session, "127.0.0.1:0", DMP_PATH_TCP);
	CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
	taker.session = &session;
	taker.listener_id = listen.listener_id;
	taker.result = 1;
	start_taker(&taker);
	CHECK(pthread_kill(taker.thread, SIGUSR1) == 0);
	CHECK(pthread_join(taker.thread, NULL) == 0);
	CHECK(taker.result == -EINTR);
	session_close(&session);
}

static void test_a_wait_has_an_end(void)
{
	struct dmp_listener *listener;
	struct dmp_arrival arrival;
	struct session session;
	struct dmp_listen listen;

	session_open(&session, 8);
	listen = listening(&session, "127.0.0.1:0", DMP_PATH_TCP);
	CHECK(take(&session, listen.listener_id, NOW, &listener, &arrival) == -EAGAIN);
	CHECK(take(&session, listen.listener_id, dmp_now_ns() + 1000000, &listener,
		   &arrival) == -ETIMEDOUT);
	session_close(&session);
}

/* ---- nothing is left behind */

static void *keep_coming(void *argument)
{
	struct dmp_listen *listen = argument;
	struct dmp_address address = bound(listen);
	__u8 hello[HELLO_BYTES];
	unsigned int i;

	make_hello(hello);
	for (i = 0; i < 100; i++) {
		int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

		CHECK(fd >= 0);
		if (connect(fd, (struct sockaddr *)&address.socket, address.length) == 0)
			(void)!send(fd, hello, i % 4 ? HELLO_BYTES : i % HELLO_BYTES,
				    MSG_NOSIGNAL);
		close(fd);
	}
	return NULL;
}

/* Comers, takers and destroyers at once; the sanitizers watch. */
static void test_L4_listeners_come_and_go_under_load(void)
{
	struct dmp_listener *listener;
	struct dmp_arrival arrival;
	struct session session;
	struct dmp_listen listen;
	pthread_t comers[2];
	unsigned int i, round;

	for (round = 0; round < 10; round++) {
		session_open(&session, 8);
		listen = listening(&session, "127.0.0.1:0", DMP_PATH_TCP);
		for (i = 0; i < 2; i++)
			CHECK(pthread_create(&comers[i], NULL, keep_coming, &listen) == 0);
		for (i = 0; i < 6 * round; i++) {
			if (take(&session, listen.listener_id, dmp_now_ns() + 2000000, &listener,
				 &arrival) != 0)
				continue;
			dmp_listener_judge(listener, arrival.origin, i % 4);
			hang_up(arrival.fabric);
			dmp_listener_put(session.plane, listener);
		}
		if (round % 2)
			CHECK(unlisten(&session, listen.listener_id) == 0);
		session_close(&session);
		for (i = 0; i < 2; i++)
			CHECK(pthread_join(comers[i], NULL) == 0);
	}
}

static void test_L4_closing_the_plane_returns_every_descriptor(void)
{
	unsigned int before = descriptors(), i;
	struct dmp_fabric *fabrics[2];
	struct session session;
	struct dmp_listen listen;
	int fds[6];

	session_open(&session, 8);
	listen = listening(&session, "127.0.0.1:0", 0);
	fail(&session, &listen, 3);
	/* Silent, half, boxed and queued ones, over both doors. */
	for (i = 0; i < 6; i++) {
		fds[i] = come(&listen);
		say_bytes(fds[i], 0, i < 2 ? 10 : HELLO_BYTES);
	}
	fabrics[0] = dial_and_speak(&session, &listen, DMP_PATH_SHM);
	CHECK(dial(&session, &listen, DMP_PATH_SHM, &fabrics[1]) == 0);
	for (i = 0; i < 2; i++)	/* the one who failed, the one over shm */
		wait_event(&session, listen.listener_id);
	for (i = 0; i < 2; i++)
		hang_up(fabrics[i]);
	session_close(&session);
	for (i = 0; i < 6; i++)
		close(fds[i]);
	CHECK(descriptors() == before);
}

int main(void)
{
	test_L12_a_hundred_who_say_nothing_do_not_stop_one_who_speaks();
	test_half_a_hello_is_not_handed_out();
	test_a_hello_may_come_byte_by_byte();
	test_L12_what_is_no_hello_is_sent_away();
	test_who_hangs_up_in_the_queue_is_not_handed_out();
	test_each_arrival_is_announced_once();
	test_an_event_without_a_slot_is_told_later();
	test_a_listener_outlives_its_channel();
	test_those_beyond_the_backlog_wait_outside();
	test_without_descriptors_arrivals_wait_until_there_are_some();
	test_destroy_sends_home_who_waits();
	test_who_was_taken_keeps_the_listener();
	test_a_signal_ends_the_wait();
	test_a_wait_has_an_end();
	test_L4_listeners_come_and_go_under_load();
	test_L4_closing_the_plane_returns_every_descriptor();
	return 0;
}
