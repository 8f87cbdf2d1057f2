// SPDX-License-Identifier: MIT
/*
 * stranger.c - who has no secret: handshakes and sockets full of nonsense
 *
 * A HELLO with a few bytes changed, with or without a CRC that fits; another frame in its
 * place; half of one; no frame at all. At the door for shared memory also descriptors of
 * the wrong kind, and a segment whose words are impossible.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "assault.h"
#include "door.h"
#include "shm_segment.h"
#include "wire.h"

#define NOISE_BYTES	512u

static uint32_t make_hello(struct assault *assault, __u8 *bytes, size_t room)
{
	struct dmp_frame frame = {
		.type = DMP_FRAME_HELLO,
		.sequence = 1,
		.incarnation = assault_random(assault) | 1,
		.hello = {
			.version_min = DMP_WIRE_VERSION,
			.version_max = DMP_WIRE_VERSION,
			.limits = { 16, 16, 65536 },
		},
	};
	int length;

	if (!assault_below(assault, 4))
		frame.hello.limits.operations = (__u32)assault_odd_value(assault);
	if (!assault_below(assault, 4))
		frame.hello.limits.window_slots = (__u32)assault_odd_value(assault);
	if (!assault_below(assault, 4))
		frame.hello.limits.window_bytes = assault_odd_value(assault);
	if (!assault_below(assault, 4))
		frame.hello.features = assault_odd_value(assault);
	if (!assault_below(assault, 8))
		frame.hello.version_max = (__u16)assault_odd_value(assault);
	if (!assault_below(assault, 8))
		frame.sequence = assault_odd_value(assault);
	length = dmp_wire_encode(&frame, true, bytes, room);
	if (length > 0)
		return (uint32_t)length;
	frame.hello = (struct dmp_wire_hello){ 1, 1, 0, { 1, 1, 1 }, { 0 } };
	frame.sequence = 1;
	length = dmp_wire_encode(&frame, true, bytes, room);
	if (length <= 0)
		FAIL("a plain HELLO does not encode: %d", length);
	return (uint32_t)length;
}

/* Something in the place of a handshake; how much there is of it. */
static uint32_t make_nonsense(struct assault *assault, __u8 *bytes, uint32_t room)
{
	uint32_t i, length = make_hello(assault, bytes, room);

	switch (assault_below(assault, 6)) {
	case 0:
		return length;
	case 1:
		assault_garble(assault, bytes, length);
		return length;
	case 2:
		assault_garble(assault, bytes, length);
		assault_seal(bytes, length);
		return length;
	case 3:
		return assault_below(assault, length);
	case 4:		/* another type, or another length, with a CRC that fits */
		bytes[5] = (__u8)assault_below(assault, 17);
		bytes[12] = (__u8)assault_random(assault);
		assault_seal(bytes, length);
		return length;
	default:
		for (i = 0; i < room; i++)
			bytes[i] = (__u8)assault_random(assault);
		return 1 + assault_below(assault, room);
	}
}

static void say(struct dmp_fabric *fabric, __u8 *bytes, uint32_t length)
{
	struct iovec piece = { bytes, length };

	if (length && fabric->type->send(fabric, &piece, 1) < 0)
		return;	/* sent away already */
}

/* A descriptor that is no segment, or a bad one. */
static int bad_descriptor(struct assault *assault)
{
	uint32_t seals = assault_below(assault, 16);
	int fd;

	if (!assault_below(assault, 3))
		return eventfd(0, EFD_CLOEXEC);
	fd = memfd_create("nonsense", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd >= 0 && ftruncate(fd, assault_below(assault, 1u << 20)))
		return fd;
	if (fd >= 0)
		fcntl(fd, F_ADD_SEALS, seals);
	return fd;
}

/* Messages at the door for shared memory, some with descriptors. */
static void knock(struct assault *assault)
{
	struct sockaddr_un name;
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(4 * sizeof(int))];
	} control;
	int fds[4], count = (int)assault_below(assault, 5), socket, i;
	__u8 bytes[NOISE_BYTES];
	struct iovec piece = { bytes, 1 + assault_below(assault, sizeof(bytes)) };
	struct msghdr message = { .msg_iov = &piece, .msg_iovlen = 1 };
	uint32_t magic = DMP_SHM_MAGIC, version = DMP_SHM_VERSION;
	socklen_t length;

	dmp_address_door(&assault->address, &name, &length);
	socket = dmp_door_knock(&name, length);
	if (socket < 0)
		return;	/* the queue is full */
	for (i = 0; i < (int)sizeof(bytes); i++)
		bytes[i] = (__u8)(assault_below(assault, 3) ? 0 : assault_random(assault));
	memcpy(bytes, &magic, sizeof(magic));
	memcpy(bytes + 4, &version, sizeof(version));
	bytes[8] = (__u8)assault_below(assault, 6);
	for (i = 0; i < count; i++)
		fds[i] = bad_descriptor(assault);
	if (count) {
		memset(&control, 0, sizeof(control));
		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		control.header.cmsg_len = CMSG_LEN((size_t)count * sizeof(int));
		memcpy(CMSG_DATA(&control.header), fds, (size_t)count * sizeof(int));
		message.msg_control = control.room;
		message.msg_controllen = CMSG_SPACE((size_t)count * sizeof(int));
	}
	if (!assault_below(assault, 2))
		piece.iov_len = 112 + assault_below(assault, 33);
	for (i = 0; i < 3; i++)
		if (sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
			break;
	for (i = 0; i < count; i++)
		if (fds[i] >= 0)
			close(fds[i]);
	close(socket);
	assault->frames++;
	assault->handshakes++;
}

void stranger_visit(struct assault *assault)
{
	bool local = assault_below(assault, 2);
	__u8 bytes[NOISE_BYTES];
	struct dmp_fabric *fabric;
	uint32_t turns = 1 + assault_below(assault, 3);

	if (!assault_may_fail(assault, local))
		return;

	if (local && !assault_below(assault, 2)) {
		knock(assault);
		return;
	}
	fabric = assault_dial(assault, local);
	if (!fabric)
		return;
	while (turns--) {
		say(fabric, bytes, make_nonsense(assault, bytes, sizeof(bytes)));
		if (local && !assault_below(assault, 2)) {
			assault_scribble(assault, fabric, 1 + assault_below(assault, 6));
			send(fabric->fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
		}
		assault->frames++;
		assault->handshakes++;
	}
	assault_leave(fabric);
}
