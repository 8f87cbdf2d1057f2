// SPDX-License-Identifier: MIT
/*
 * test_dial.c - LISTEN and its refusals, the doors of an address, and who is connected how
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <sys/stat.h>
#include <sys/un.h>

#include "child.h"
#include "door.h"
#include "door_session.h"
#include "shm.h"

static char directory[] = P_tmpdir "/door-test-XXXXXX";
static char path_text[DMP_ADDRESS_BYTES];	/* "unix:" and an absolute path in `directory` */
static const char *path;			/* the path in it */

/* A connection of @required path becomes one of path @taken, and HELLO gets across. */
static void connects(struct session *session, const struct dmp_listen *listen, __u32 required,
		     __u32 taken)
{
	struct dmp_fabric *fabric = dial_and_speak(session, listen, required);

	CHECK(fabric->type->path == taken);
	take_and_judge(session, listen, true);
	hang_up(fabric);
}

static int dial_text(struct session *session, const char *text, __u32 required)
{
	__u8 bytes[DMP_ADDRESS_BYTES] = { 0 };
	struct dmp_fabric *fabric = NULL;
	struct dmp_address address;
	int error;

	memcpy(bytes, text, strlen(text));
	CHECK(dmp_address_parse(bytes, false, &address) == 0);
	error = dmp_dial(session->plane, &address, required, dmp_now_ns() + PATIENCE_NS, &fabric);
	CHECK(error != 0);
	CHECK(!fabric);
	return error;
}

/* Some containers have none, not even for loopback. */
static bool has_ipv6(void)
{
	struct sockaddr_in6 name = { .sin6_family = AF_INET6, .sin6_addr = in6addr_loopback };
	int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
	bool has = fd >= 0 && bind(fd, (struct sockaddr *)&name, sizeof(name)) == 0;

	if (fd >= 0)
		close(fd);
	return has;
}

static void test_the_same_user_on_the_same_machine_gets_shm(void)
{
	static const char *const rows[] = { "127.0.0.1:0", "localhost:0", "127.0.0.9:0", "[::1]:0" };
	unsigned int row, count = has_ipv6() ? 4 : 3;
	struct session session;
	struct dmp_listen listen;

	session_open(&session, 8);
	for (row = 0; row < count; row++) {
		listen = listening(&session, rows[row], 0);
		connects(&session, &listen, 0, DMP_PATH_SHM);
		connects(&session, &listen, DMP_PATH_SHM, DMP_PATH_SHM);
		connects(&session, &listen, DMP_PATH_TCP, DMP_PATH_TCP);
		CHECK(unlisten(&session, listen.listener_id) == 0);
	}
	session_close(&session);
}

static void test_a_required_path_is_the_only_one(void)
{
	struct session session;
	struct dmp_listen listen;
	struct dmp_fabric *fabric;

	session_open(&session, 8);
	listen = listening(&session, "127.0.0.1:0", DMP_PATH_SHM);
	connects(&session, &listen, 0, DMP_PATH_SHM);
	CHECK(dial(&session, &listen, DMP_PATH_TCP, &fabric) == -ECONNREFUSED);
	CHECK(unlisten(&session, listen.listener_id) == 0);
	listen = listening(&session, "127.0.0.1:0", DMP_PATH_TCP);
	connects(&session, &listen, 0, DMP_PATH_TCP);
	CHECK(dial(&session, &listen, DMP_PATH_SHM, &fabric) == -ENODEV);
	CHECK(dial(&session, &listen, DMP_PATH_VERBS, &fabric) == -ENODEV);
	CHECK(dial(&session, &listen, DMP_PATH_PEER, &fabric) == -ENODEV);
	session_close(&session);
}

static void test_nobody_there_is_refused_on_every_path(void)
{
	char text[DMP_ADDRESS_BYTES];
	struct session session;
	struct dmp_listen listen;

	session_open(&session, 8);
	listen = listening(&session, "127.0.0.1:0", 0);
	memcpy(text, listen.bound_address, sizeof(text));
	CHECK(unlisten(&session, listen.listener_id) == 0);
	CHECK(dial_text(&session, text, 0) == -ECONNREFUSED);
	CHECK(dial_text(&session, text, DMP_PATH_TCP) == -ECONNREFUSED);
	CHECK(dial_text(&session, text, DMP_PATH_SHM) == -ECONNREFUSED);
	CHECK(dial_text(&session, path_text, 0) == -ECONNREFUSED);
	CHECK(dial_text(&session, path_text, DMP_PATH_SHM) == -ECONNREFUSED);
	CHECK(dial_text(&session, path_text, DMP_PATH_TCP) == -ENODEV);
	CHECK(dial_text(&session, "192.0.2.1:9", DMP_PATH_SHM) == -ENODEV);
	session_close(&session);
}

/* Bound to all addresses, it is found under each of them. */
static void test_a_listener_on_any_address_is_found_by_its_door(void)
{
	char text[DMP_ADDRESS_BYTES] = { 0 };
	struct session session;
	struct dmp_listen listen;

	session_open(&session, 8);
	listen = listen_on(&session, "0.0.0.0:0");
	listen.secret_bytes = 1;
	CHECK(dmp_ioctl(session.plane, DMP_LISTEN, &listen) == 0);
	CHECK(strncmp((char *)listen.bound_address, "0.0.0.0:", 8) == 0);
	connects(&session, &listen, 0, DMP_PATH_SHM);
	connects(&session, &listen, DMP_PATH_TCP, DMP_PATH_TCP);
	snprintf(text, sizeof(text), "127.7.7.7%.8s", (char *)listen.bound_address + 7);
	memcpy(listen.bound_address, text, sizeof(text));
	connects(&session, &listen, DMP_PATH_SHM, DMP_PATH_SHM);
	session_close(&session);
}

static void test_two_addresses_of_one_port_do_not_meet(void)
{
	struct session session;
	struct dmp_listen first, second;
	char text[DMP_ADDRESS_BYTES];

	session_open(&session, 8);
	first = listening(&session, "127.0.0.1:0", 0);
	snprintf(text, sizeof(text), "127.0.0.2%.8s", (char *)first.bound_address + 9);
	second = listening(&session, text, 0);
	CHECK(strcmp((char *)second.bound_address, text) == 0);
	connects(&session, &first, 0, DMP_PATH_SHM);
	connects(&session, &second, 0, DMP_PATH_SHM);
	session_close(&session);
}

static int listen_again(struct session *session, const struct dmp_listen *taken, __u32 require)
{
	struct dmp_listen again = *taken;

	memcpy(again.address, taken->bound_address, sizeof(again.address));
	memset(again.bound_address, 0, sizeof(again.bound_address));
	again.listener_id = 0;
	again.path = require;
	again.flags = require ? DMP_REQUIRE_PATH : 0;
	return dmp_ioctl(session->plane, DMP_LISTEN, &again);
}

static void test_an_address_is_listened_on_once_and_free_at_once(void)
{
	static const __u32 requires[] = { 0, DMP_PATH_SHM, DMP_PATH_TCP };
	struct session session;
	struct dmp_listen listen;
	struct dmp_fabric *fabric;
	unsigned int row;

	session_open(&session, 8);
	listen = listening(&session, "127.0.0.1:0", 0);
	for (row = 0; row < 3; row++)
		CHECK(listen_again(&session, &listen, requires[row]) == -EADDRINUSE);
	/* The listener's side closes first, so that its port lingers. */
	fabric = dial_and_speak(&session, &listen, DMP_PATH_TCP);
	take_and_judge(&session, &listen, true);
	hang_up(fabric);
	for (row = 0; row < 3; row++) {
		CHECK(unlisten(&session, listen.listener_id) == 0);
		memcpy(listen.address, listen.bound_address, sizeof(listen.address));
		CHECK(dmp_ioctl(session.plane, DMP_LISTEN, &listen) == 0);
		connects(&session, &listen, DMP_PATH_TCP, DMP_PATH_TCP);
	}
	session_close(&session);
}

static void test_what_LISTEN_refuses(void)
{
	static const struct {
		const char *address;
		__u32 flags, path, backlog, secret_bytes;
		int error;
	} rows[] = {
		{ "nonsense", 0, 0, 0, 0, -EINVAL },
		{ "127.0.0.1:0", 0, DMP_PATH_SHM, 0, 0, -EINVAL },
		{ "127.0.0.1:0", DMP_REQUIRE_PATH, DMP_PATH_NONE, 0, 0, -EINVAL },
		{ "127.0.0.1:0", DMP_REQUIRE_PATH, DMP_PATH_PEER + 1, 0, 0, -EINVAL },
		{ "127.0.0.1:0", DMP_REQUIRE_PATH, DMP_PATH_LOCAL, 0, 0, -ENODEV },
		{ "127.0.0.1:0", DMP_REQUIRE_PATH, DMP_PATH_VERBS, 0, 0, -ENODEV },
		{ "unix:/run/x", DMP_REQUIRE_PATH, DMP_PATH_TCP, 0, 0, -ENODEV },
		{ "127.0.0.1:0", 0, 0, 1025, 0, -EINVAL },
		{ "127.0.0.1:0", 0, 0, 0, DMP_SECRET_BYTES + 1, -EINVAL },
		{ "127.0.0.1:0", DMP_ENCRYPT, 0, 0, 0, -EPERM },
		{ "0.0.0.0:0", 0, 0, 0, 0, -EPERM },
		{ "[::]:0", 0, 0, 0, 0, -EPERM },
		{ "0.0.0.0:0", DMP_REQUIRE_PATH, DMP_PATH_SHM, 0, 0, -EPERM },
		{ "192.0.2.1:0", 0, 0, 0, 1, -EHOSTUNREACH },
		{ "unix:/no/such/directory/door", 0, 0, 0, 0, -EINVAL },
	};
	unsigned int before, row;
	struct session session;
	struct dmp_listen listen;

	session_open(&session, 8);
	before = descriptors();
	for (row = 0; row < sizeof(rows) / sizeof(rows[0]); row++) {
		listen = listen_on(&session, rows[row].address);
		listen.flags = rows[row].flags;
		listen.path = rows[row].path;
		listen.backlog = rows[row].backlog;
		listen.secret_bytes = rows[row].secret_bytes;
		CHECK(dmp_ioctl(session.plane, DMP_LISTEN, &listen) == rows[row].error);
		CHECK(listen.listener_id == 0);
	}
	listen = listen_on(&session, "127.0.0.1:0");
	listen.channel_id++;
	CHECK(dmp_ioctl(session.plane, DMP_LISTEN, &listen) == -ENOENT);
	CHECK(descriptors() == before);
	CHECK(session.plane->listeners == 0);
	session_close(&session);
}

static void test_listeners_are_bounded(void)
{
	struct session session;
	struct dmp_listen listen;
	unsigned int i;

	session_open(&session, 8);
	for (i = 0; i < 256; i++)
		listen = listening(&session, "127.0.0.1:0", DMP_PATH_TCP);
	listen = listen_on(&session, "127.0.0.1:0");
	CHECK(dmp_ioctl(session.plane, DMP_LISTEN, &listen) == -ENOSPC);
	session_close(&session);
}

/* ---- paths */

static void test_a_path_is_a_socket_of_ours_alone_and_goes_with_the_listener(void)
{
	struct session session;
	struct dmp_listen listen;
	struct stat file;

	session_open(&session, 8);
	listen = listening(&session, path_text, 0);
	CHECK(strcmp((char *)listen.bound_address, path_text) == 0);
	CHECK(lstat(path, &file) == 0);
	CHECK(S_ISSOCK(file.st_mode) && (file.st_mode & 07777) == 0600);
	connects(&session, &listen, 0, DMP_PATH_SHM);
	CHECK(listen_again(&session, &listen, 0) == -EADDRINUSE);
	connects(&session, &listen, DMP_PATH_SHM, DMP_PATH_SHM);
	CHECK(unlisten(&session, listen.listener_id) == 0);
	CHECK(lstat(path, &file) != 0 && errno == ENOENT);
	session_close(&session);
}

static void leave_stale(void)
{
	struct sockaddr_un name = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	CHECK(fd >= 0);
	memcpy(name.sun_path, path, strlen(path));
	CHECK(bind(fd, (struct sockaddr *)&name, sizeof(name)) == 0);
	CHECK(listen(fd, 1) == 0);
	close(fd);
}

static void test_a_dead_listeners_socket_makes_room(void)
{
	struct session session;
	struct dmp_listen listen;

	session_open(&session, 8);
	leave_stale();
	CHECK(dial_text(&session, path_text, 0) == -ECONNREFUSED);
	listen = listening(&session, path_text, 0);
	connects(&session, &listen, 0, DMP_PATH_SHM);
	session_close(&session);
}

static void test_what_is_no_socket_of_ours_is_left_alone(void)
{
	struct session session;
	struct dmp_listen listen;
	struct stat file;
	FILE *plain;

	session_open(&session, 8);
	plain = fopen(path, "w");
	CHECK(plain && fputs("precious", plain) >= 0 && fclose(plain) == 0);
	listen = listen_on(&session, path_text);
	CHECK(dmp_ioctl(session.plane, DMP_LISTEN, &listen) == -EADDRINUSE);
	CHECK(lstat(path, &file) == 0 && file.st_size == 8);
	CHECK(unlink(path) == 0);
	/* Nor is what took our place. */
	listen = listening(&session, path_text, 0);
	CHECK(unlink(path) == 0);
	leave_stale();
	CHECK(unlisten(&session, listen.listener_id) == 0);
	CHECK(lstat(path, &file) == 0);
	CHECK(unlink(path) == 0);
	session_close(&session);
}

/* ---- somebody else's user: only where we may become one */

static int told[2], heard[2];	/* pipes to the stranger and back */

/* He is born before there are threads, and waits to be told where to go. */
static pid_t start_stranger(void (*body)(const struct dmp_listen *listen))
{
	struct dmp_listen listen;
	pid_t child;

	CHECK(pipe(told) == 0 && pipe(heard) == 0);
	child = fork();
	CHECK(child >= 0);
	if (child)
		return child;
	CHECK(setgid(65534) == 0 && setuid(65534) == 0);
	CHECK(read(told[0], &listen, sizeof(listen)) == sizeof(listen));
	body(&listen);
	_exit(0);
}

static void send_stranger(const struct dmp_listen *listen)
{
	CHECK(write(told[1], listen, sizeof(*listen)) == sizeof(*listen));
}

static void wait_stranger(pid_t child)
{
	int status, i;

	CHECK(waitpid(child, &status, 0) == child && status == 0);
	for (i = 0; i < 2; i++) {
		close(told[i]);
		close(heard[i]);
	}
}

/* Holds the door's name, and a path, and answers there. */
static void squat(const struct dmp_listen *listen_at)
{
	struct dmp_address address = bound(listen_at);
	struct sockaddr_un name;
	socklen_t length;
	char byte;
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	dmp_address_door(&address, &name, &length);
	CHECK(bind(fd, (struct sockaddr *)&name, length) == 0 && listen(fd, 8) == 0);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	memset(&name, 0, sizeof(name));
	name.sun_family = AF_UNIX;
	memcpy(name.sun_path, path, strlen(path));
	CHECK(bind(fd, (struct sockaddr *)&name, sizeof(name)) == 0 && listen(fd, 8) == 0);
	CHECK(write(heard[1], "s", 1) == 1);
	CHECK(read(told[0], &byte, 1) == 1);
}

static void test_a_stranger_at_our_door_is_passed_by(void)
{
	pid_t child = start_stranger(squat);
	struct dmp_fabric *fabric;
	struct session session;
	struct dmp_listen listen;
	char byte;

	CHECK(chmod(directory, 0777) == 0);
	session_open(&session, 8);
	listen = listening(&session, "127.0.0.1:0", DMP_PATH_TCP);
	CHECK(unlisten(&session, listen.listener_id) == 0);
	send_stranger(&listen);
	CHECK(read(heard[0], &byte, 1) == 1);
	CHECK(listen_again(&session, &listen, DMP_PATH_SHM) == -EADDRINUSE);
	memcpy(listen.address, listen.bound_address, sizeof(listen.address));
	listen.flags = 0;
	listen.path = 0;
	CHECK(dmp_ioctl(session.plane, DMP_LISTEN, &listen) == 0);
	connects(&session, &listen, 0, DMP_PATH_TCP);
	CHECK(dial(&session, &listen, DMP_PATH_SHM, &fabric) == -ENODEV);
	CHECK(dial_text(&session, path_text, 0) == -EPERM);
	listen = listen_on(&session, path_text);
	CHECK(dmp_ioctl(session.plane, DMP_LISTEN, &listen) == -EADDRINUSE);
	CHECK(unlink(path) == 0 && chmod(directory, 0755) == 0);
	CHECK(write(told[1], "x", 1) == 1);
	wait_stranger(child);
	session_close(&session);
}

/* Through our door, and at our path, he gets nothing; over tcp he is as good as any. */
static void visit(const struct dmp_listen *listen)
{
	struct dmp_address address = bound(listen);
	struct dmp_fabric *fabric;
	struct sockaddr_un name;
	struct session session;
	socklen_t length;
	int fd;

	session_open(&session, 8);
	dmp_address_door(&address, &name, &length);
	fd = dmp_door_knock(&name, length);
	CHECK(fd >= 0);
	CHECK(!dmp_door_is_ours(fd));
	/* As if he did not care; he may have been sent away by now. */
	if (dmp_shm_offer(session.plane, fd, &fabric) == 0)
		say_hello(fabric);
	CHECK(dial_text(&session, path_text, 0) == -EPERM);
	CHECK(dial_and_speak(&session, listen, 0)->type->path == DMP_PATH_TCP);
	CHECK(write(heard[1], "s", 1) == 1);
	CHECK(read(told[0], &fd, 1) == 1);	/* stays until he was let in */
}

static void test_a_stranger_comes_over_tcp_only(void)
{
	pid_t child = start_stranger(visit);
	struct session session;
	struct dmp_listen listen;
	char byte;

	session_open(&session, 8);
	listen = listening(&session, "127.0.0.1:0", 0);
	listening(&session, path_text, 0);
	send_stranger(&listen);
	CHECK(read(heard[0], &byte, 1) == 1);
	take_and_judge(&session, &listen, true);
	CHECK(nobody_is_there(&session, &listen));
	CHECK(write(told[1], "x", 1) == 1);
	wait_stranger(child);
	session_close(&session);
}

/* ---- time */

/* A queue that is full and never emptied: the caller gets back when he wanted to. */
static void test_dialling_has_an_end(void)
{
	struct sockaddr_in name = { .sin_family = AF_INET };
	socklen_t length = sizeof(name);
	struct dmp_fabric *fabrics[8];
	struct dmp_address address;
	struct session session;
	__u64 before_ns = 0;
	int fd, error = 0, full;

	session_open(&session, 8);
	fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	CHECK(bind(fd, (struct sockaddr *)&name, length) == 0 && listen(fd, 0) == 0);
	CHECK(getsockname(fd, (struct sockaddr *)&name, &length) == 0);
	memset(&address, 0, sizeof(address));
	memcpy(&address.socket, &name, length);
	address.length = length;
	address.is_loopback = true;
	for (full = 0; full < 8; full++) {
		before_ns = dmp_now_ns();
		error = dmp_dial(session.plane, &address, DMP_PATH_TCP, before_ns + 50000000,
				 &fabrics[full]);
		if (error)
			break;
	}
	CHECK(error == -ETIMEDOUT);
	CHECK(dmp_now_ns() - before_ns >= 50000000);
	CHECK(dmp_dial(session.plane, &address, DMP_PATH_TCP, NOW, fabrics) == -ETIMEDOUT);
	while (full-- != 0)
		hang_up(fabrics[full]);
	close(fd);
	session_close(&session);
}

int main(void)
{
	/* Strangers may look in: it is the socket's own mode that keeps them out. */
	CHECK(mkdtemp(directory) && chmod(directory, 0755) == 0);
	snprintf(path_text, sizeof(path_text), "unix:%s/door", directory);
	path = path_text + 5;
	test_the_same_user_on_the_same_machine_gets_shm();
	test_a_required_path_is_the_only_one();
	test_nobody_there_is_refused_on_every_path();
	test_a_listener_on_any_address_is_found_by_its_door();
	test_two_addresses_of_one_port_do_not_meet();
	test_an_address_is_listened_on_once_and_free_at_once();
	test_what_LISTEN_refuses();
	test_listeners_are_bounded();
	test_a_path_is_a_socket_of_ours_alone_and_goes_with_the_listener();
	test_a_dead_listeners_socket_makes_room();
	test_what_is_no_socket_of_ours_is_left_alone();
	if (geteuid() == 0) {
		test_a_stranger_at_our_door_is_passed_by();
		test_a_stranger_comes_over_tcp_only();
	}
	test_dialling_has_an_end();
	CHECK(rmdir(directory) == 0);
	return 0;
}
