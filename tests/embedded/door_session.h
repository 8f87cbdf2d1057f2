/* SPDX-License-Identifier: MIT */
/* door_session.h - a plane with a channel, listeners on it, and people who come to the door */
#ifndef DMP_TESTS_DOOR_SESSION_H
#define DMP_TESTS_DOOR_SESSION_H

#include <dirent.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "core/check.h"
#include "listener.h"
#include "wire.h"

#define PATIENCE_NS 30000000000ull	/* far more than anything here takes: only a hang gets there */
#define HELLO_BYTES (DMP_WIRE_HEADER_BYTES + 64)
#define NOW 1ull			/* a time that has passed */

struct session {
	struct dmp_plane *plane;
	struct dmp_channel_create channel;
	struct dmp_client client;
};

static inline void session_open(struct session *session, __u32 slots)
{
	void *rings;

	memset(session, 0, sizeof(*session));
	CHECK(dmp_open(&session->plane) == 0);
	session->channel.size = sizeof(session->channel);
	session->channel.slots = slots;
	CHECK(dmp_ioctl(session->plane, DMP_CHANNEL_CREATE, &session->channel) == 0);
	CHECK(dmp_mmap(session->plane, session->channel.map_bytes, 3, session->channel.map_offset,
		       &rings) == 0);
	session->client = (struct dmp_client){
		.control = rings,
		.submissions = (void *)((char *)rings + session->channel.submissions_offset),
		.completions = (void *)((char *)rings + session->channel.completions_offset),
		.slots = slots,
		.completion_slots = 2 * slots,
		.channel_id = session->channel.channel_id,
		.plane = session->plane,
	};
}

static inline void session_close(struct session *session)
{
	CHECK(dmp_close(session->plane) == 0);
}

static inline struct dmp_listen listen_on(const struct session *session, const char *address)
{
	struct dmp_listen listen = { .size = sizeof(listen),
				     .channel_id = session->channel.channel_id };

	CHECK(strlen(address) < sizeof(listen.address));
	memcpy(listen.address, address, strlen(address));
	return listen;
}

/* Listens, by @path if it is not 0. */
static inline struct dmp_listen listening(struct session *session, const char *address, __u32 path)
{
	struct dmp_listen listen = listen_on(session, address);

	listen.flags = path ? DMP_REQUIRE_PATH : 0;
	listen.path = path;
	CHECK(dmp_ioctl(session->plane, DMP_LISTEN, &listen) == 0);
	CHECK(listen.listener_id != 0);
	return listen;
}

static inline int unlisten(struct session *session, __u32 listener_id)
{
	struct dmp_destroy destroy = { .size = sizeof(destroy), .id = listener_id };

	return dmp_ioctl(session->plane, DMP_LISTENER_DESTROY, &destroy);
}

static inline struct dmp_address bound(const struct dmp_listen *listen)
{
	struct dmp_address address;

	CHECK(dmp_address_parse(listen->bound_address, false, &address) == 0);
	return address;
}

/* ---- who comes */

static inline void make_hello(__u8 bytes[HELLO_BYTES])
{
	struct dmp_frame frame;
	__u8 all[DMP_WIRE_FRAME_BYTES_MAX];

	memset(&frame, 0, sizeof(frame));
	frame.type = DMP_FRAME_HELLO;
	frame.sequence = 1;
	frame.incarnation = 7;
	frame.hello.version_min = 1;
	frame.hello.version_max = 1;
	frame.hello.limits = (struct dmp_wire_limits){ 1, 1, 1 };
	CHECK(dmp_wire_encode(&frame, true, all, sizeof(all)) == HELLO_BYTES);
	memcpy(bytes, all, HELLO_BYTES);
}

/* A bare tcp connection. */
static inline int come(const struct dmp_listen *listen)
{
	struct dmp_address address = bound(listen);
	int fd = socket(address.socket.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	CHECK(fd >= 0);
	CHECK(connect(fd, (struct sockaddr *)&address.socket, address.length) == 0);
	return fd;
}

static inline void say_bytes(int fd, size_t first, size_t end)
{
	__u8 hello[HELLO_BYTES];

	make_hello(hello);
	CHECK(send(fd, hello + first, end - first, MSG_NOSIGNAL) == (ssize_t)(end - first));
}

static inline int come_and_speak(const struct dmp_listen *listen)
{
	int fd = come(listen);

	say_bytes(fd, 0, HELLO_BYTES);
	return fd;
}

static inline int dial(struct session *session, const struct dmp_listen *listen, __u32 path,
		       struct dmp_fabric **fabric)
{
	struct dmp_address address = bound(listen);

	return dmp_dial(session->plane, &address, path, dmp_now_ns() + PATIENCE_NS, fabric);
}

/* How much of it went is the answer. */
static inline ssize_t say_hello(struct dmp_fabric *fabric)
{
	__u8 hello[HELLO_BYTES];
	struct iovec piece = { .iov_base = hello, .iov_len = sizeof(hello) };

	make_hello(hello);
	return fabric->type->send(fabric, &piece, 1);
}

static inline struct dmp_fabric *dial_and_speak(struct session *session,
						const struct dmp_listen *listen, __u32 path)
{
	struct dmp_fabric *fabric;

	CHECK(dial(session, listen, path, &fabric) == 0);
	CHECK(say_hello(fabric) == HELLO_BYTES);
	return fabric;
}

static inline void hang_up(struct dmp_fabric *fabric)
{
	fabric->type->close(fabric);
}

/* ---- what became of them */

static inline int take(struct session *session, __u32 listener_id, __u64 deadline_ns,
		       struct dmp_listener **listener, struct dmp_arrival *arrival)
{
	return dmp_listener_take(session->plane, listener_id, deadline_ns, listener, arrival);
}

/* Takes the next one, who has said exactly HELLO, and hangs up; not judged yet. */
static inline __u64 take_one(struct session *session, const struct dmp_listen *listen,
			     struct dmp_listener **listener)
{
	__u8 hello[HELLO_BYTES], heard[HELLO_BYTES + 1];
	struct iovec piece = { .iov_base = heard, .iov_len = sizeof(heard) };
	struct dmp_arrival arrival;

	CHECK(take(session, listen->listener_id, dmp_now_ns() + PATIENCE_NS, listener,
		   &arrival) == 0);
	make_hello(hello);
	CHECK(arrival.fabric->type->receive(arrival.fabric, &piece, 1) == HELLO_BYTES);
	CHECK(memcmp(hello, heard, HELLO_BYTES) == 0);
	hang_up(arrival.fabric);
	return arrival.origin;
}

static inline void take_and_judge(struct session *session, const struct dmp_listen *listen,
				  bool proved)
{
	struct dmp_listener *listener;
	__u64 origin = take_one(session, listen, &listener);

	dmp_listener_judge(listener, origin, proved);
	dmp_listener_put(session->plane, listener);
}

/* Somebody comes over tcp, is taken, and fails to prove the secret @times over. */
static inline void fail(struct session *session, const struct dmp_listen *listen, unsigned int times)
{
	struct dmp_listener *listener;
	struct dmp_arrival arrival;
	int fd = come_and_speak(listen);

	CHECK(take(session, listen->listener_id, dmp_now_ns() + PATIENCE_NS, &listener,
		   &arrival) == 0);
	while (times-- != 0)
		dmp_listener_judge(listener, arrival.origin, false);
	hang_up(arrival.fabric);
	dmp_listener_put(session->plane, listener);
	close(fd);
}

/* Waits until the next event of the channel; it must be of @listener_id. */
static inline void wait_event(struct session *session, __u32 listener_id)
{
	struct dmp_completion event;
	__u32 pushed;

	CHECK(dmp_client_exchange(&session->client, NULL, 0, &pushed, &event, 1, 1,
				  dmp_now_ns() + PATIENCE_NS) == 1);
	CHECK(event.operation == DMP_EVENT_CONNECTION && event.flags == DMP_COMPLETE_EVENT);
	CHECK(event.user_data == listener_id && event.result == 0);
}

static inline bool nobody_is_there(struct session *session, const struct dmp_listen *listen)
{
	struct dmp_listener *listener;
	struct dmp_arrival arrival;

	return take(session, listen->listener_id, NOW, &listener, &arrival) == -EAGAIN;
}

/* The doorkeeper has closed the connection. */
static inline void wait_sent_away(int fd)
{
	struct pollfd one = { .fd = fd, .events = POLLIN | POLLRDHUP };
	char byte;

	CHECK(poll(&one, 1, PATIENCE_NS / 1000000) == 1);
	CHECK(recv(fd, &byte, 1, MSG_DONTWAIT) <= 0);
	close(fd);
}

static inline unsigned int descriptors(void)
{
	unsigned int count = 0;
	DIR *all = opendir("/proc/self/fd");

	CHECK(all);
	while (readdir(all))
		count++;
	closedir(all);
	return count;
}

#endif /* DMP_TESTS_DOOR_SESSION_H */
