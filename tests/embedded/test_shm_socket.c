// SPDX-License-Identifier: MIT
/*
 * test_shm_socket.c - what comes over the socket of a shm connection is not believed
 *
 * The test plays a peer that has the socket and sends what it likes: each thing is refused
 * with -EPROTO, and no descriptor stays behind. One law a function.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <sys/resource.h>

#include "shm_pair.h"

enum { OFFER = 1, ANSWER, ASK, REPLY };

/* As on the wire. */
struct message {
	__u32 magic;
	__u16 version;
	__u16 type;
	__u32 serial;
	__s32 result;
	__u64 offset;
	__u64 length;
	__u32 key_bytes;
	__u32 reserved;
	__u8 key[DMP_KEY_BYTES];
};

static struct message message_of(__u16 type)
{
	return (struct message){ .magic = DMP_SHM_MAGIC, .version = DMP_SHM_VERSION, .type = type };
}

static void post(int socket, const void *bytes, size_t length, const int *fds, int count)
{
	struct iovec piece = { (void *)(uintptr_t)bytes, length };
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(8 * sizeof(int))];
	} control = { 0 };
	struct msghdr header = { .msg_iov = &piece, .msg_iovlen = 1 };

	if (count) {
		header.msg_control = control.room;
		header.msg_controllen = CMSG_SPACE((size_t)count * sizeof(int));
		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		control.header.cmsg_len = CMSG_LEN((size_t)count * sizeof(int));
		memcpy(CMSG_DATA(&control.header), fds, (size_t)count * sizeof(int));
	}
	CHECK(sendmsg(socket, &header, MSG_NOSIGNAL) == (ssize_t)length);
}

static int memfd_of(size_t bytes, int seals)
{
	int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	CHECK(fd >= 0 && !ftruncate(fd, (off_t)bytes) && !fcntl(fd, F_ADD_SEALS, seals));
	return fd;
}

/* ---- the handshake */

#define RING 4096u
#define SEGMENT (DMP_SHM_HEADER_BYTES + 2 * RING)

/* Everything an offer is made of, right; each case spoils one thing. */
struct offer {
	struct message message;
	struct dmp_shm_header header;
	size_t message_bytes;
	size_t segment_bytes;
	size_t board_bytes;
	int segment_seals;
	int board_seals;
	int fd_count;
};

static const struct offer right = {
	.message = { .magic = DMP_SHM_MAGIC, .version = DMP_SHM_VERSION, .type = OFFER,
		     .length = RING },
	.header = { .magic = DMP_SHM_MAGIC, .version = DMP_SHM_VERSION, .ring_bytes = RING },
	.message_bytes = sizeof(struct message),
	.segment_bytes = SEGMENT,
	.board_bytes = DMP_SHM_BOARD_BYTES,
	.segment_seals = F_SEAL_SHRINK,
	.board_seals = F_SEAL_SHRINK,
	.fd_count = 2,
};

/* What an acceptor answers to @offer. */
static int answered(struct dmp_plane *plane, const struct offer *offer)
{
	struct { struct message message; char more[8]; } bytes = { .message = offer->message };
	struct dmp_fabric *fabric;
	int sockets[2], fds[3], ret;

	make_sockets(sockets);
	fds[0] = memfd_of(offer->segment_bytes, offer->segment_seals);
	CHECK(pwrite(fds[0], &offer->header, sizeof(offer->header), 0) == sizeof(offer->header));
	fds[1] = memfd_of(offer->board_bytes, offer->board_seals);
	fds[2] = fds[1];
	post(sockets[0], &bytes, offer->message_bytes, fds, offer->fd_count);
	ret = dmp_shm_answer(plane, sockets[1], &fabric);
	if (!ret)
		fabric->type->close(fabric);
	else
		CHECK(fcntl(sockets[1], F_GETFD) >= 0 && !close(sockets[1]));
	close(sockets[0]), close(fds[0]), close(fds[1]);
	return ret;
}

#define SPOILT(what) do {							\
		struct offer offer = right;					\
		what;								\
		CHECK(answered(plane, &offer) == -EPROTO);			\
	} while (0)

static void test_a_wrong_offer_is_refused(void)
{
	struct dmp_plane *plane;
	unsigned int descriptors;
	struct offer empty = right;

	CHECK(!dmp_open(&plane));
	CHECK(!answered(plane, &right));
	descriptors = count_descriptors();
	SPOILT(offer.message.magic++);
	SPOILT(offer.message.version++);
	SPOILT(offer.message.type = ANSWER);
	SPOILT(offer.message.type = 0);
	SPOILT(offer.message.type = 99);
	SPOILT(offer.message.reserved = 1);
	SPOILT(offer.message.length = 0);
	SPOILT(offer.message.length = RING + 1);
	SPOILT(offer.message.length = RING / 2);
	SPOILT(offer.message.length = 2 * RING);
	SPOILT(offer.message.length = 1ull << 32 | RING);
	SPOILT(offer.message.length = DMP_SHM_RING_BYTES_MAX * 2ull);
	SPOILT(offer.message_bytes = 1);
	SPOILT(offer.message_bytes--);
	SPOILT(offer.message_bytes++);
	SPOILT(offer.segment_bytes--);
	SPOILT(offer.segment_bytes++);
	SPOILT(offer.segment_seals = F_SEAL_GROW);
	SPOILT(offer.board_bytes--);
	SPOILT(offer.board_seals = F_SEAL_GROW);
	SPOILT(offer.header.magic = 0);
	SPOILT(offer.header.version = 0);
	SPOILT(offer.header.ring_bytes = 2 * RING);
	SPOILT(offer.fd_count = 0);
	SPOILT(offer.fd_count = 1);
	SPOILT(offer.fd_count = 3);
	empty.message_bytes = 0;
	CHECK(answered(plane, &empty) == -ECONNRESET);
	CHECK(count_descriptors() == descriptors && !count_segments_mapped());
	CHECK(!dmp_close(plane));
}

static void test_no_offer_yet_is_not_the_end(void)
{
	struct dmp_fabric *fabric;
	struct dmp_plane *plane;
	int sockets[2];

	CHECK(!dmp_open(&plane));
	make_sockets(sockets);
	CHECK(dmp_shm_answer(plane, sockets[1], &fabric) == -EAGAIN);
	close(sockets[0]);
	CHECK(dmp_shm_answer(plane, sockets[1], &fabric) == -ECONNRESET);
	close(sockets[1]);
	CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets));
	CHECK(dmp_shm_offer(plane, sockets[0], &fabric) == -EINVAL);
	CHECK(dmp_shm_answer(plane, sockets[1], &fabric) == -EINVAL);
	close(sockets[0]), close(sockets[1]);
	CHECK(!dmp_close(plane));
}

static void test_another_user_is_refused(void)
{
	struct dmp_fabric *fabric;
	struct dmp_plane *plane;
	int sockets[2];

	if (geteuid() != 0) {
		printf("not checked: only root can be another user\n");
		return;
	}
	CHECK(!dmp_open(&plane));
	make_sockets(sockets);
	CHECK(!seteuid(65534));
	CHECK(dmp_shm_offer(plane, sockets[0], &fabric) == -EPERM);
	CHECK(dmp_shm_answer(plane, sockets[1], &fabric) == -EPERM);
	CHECK(!seteuid(0));
	CHECK(dmp_shm_answer(plane, sockets[1], &fabric) == -EAGAIN);
	close(sockets[0]), close(sockets[1]);
	CHECK(!dmp_close(plane));
}

/* ---- afterwards */

/* What drain() of an acceptor says to @bytes; the loss is for good. */
static int drained(const void *bytes, size_t length, const int *fds, int count)
{
	struct pair pair = pair_open();
	struct dmp_fabric *victim = pair.acceptor.fabric;
	char byte;
	int ret;

	post(pair.connector.fabric->fd, bytes, length, fds, count);
	CHECK(end_send(&pair.connector, "x", 1) == 1);
	ret = victim->type->drain(victim);
	if (ret) {
		CHECK(victim->type->drain(victim) == ret);
		CHECK(end_receive(&pair.acceptor, &byte, 1) == 1 && byte == 'x');
		CHECK(end_receive(&pair.acceptor, &byte, 1) == ret);
	}
	pair_close(&pair);
	return ret;
}

static void test_nonsense_ends_the_connection(void)
{
	unsigned int descriptors = count_descriptors();
	int fds[4] = { 0, 1, 2, 0 };
	struct message message;
	char big[4096] = { 0 };

	CHECK(drained("b", 1, NULL, 0) == 0);
	CHECK(drained("b", 1, fds, 1) == -EPROTO);
	CHECK(drained("bb", 2, NULL, 0) == -EPROTO);
	CHECK(drained(big, sizeof(big), fds, 4) == -EPROTO);
	CHECK(drained(big, 0, NULL, 0) == -ECONNRESET);
	message = message_of(OFFER);
	CHECK(drained(&message, sizeof(message), fds, 2) == -EPROTO);
	message = message_of(ANSWER);
	CHECK(drained(&message, sizeof(message), fds, 1) == -EPROTO);
	message = message_of(REPLY);
	message.result = -EACCES;
	CHECK(drained(&message, sizeof(message), NULL, 0) == -EPROTO);
	message.serial = 7;
	CHECK(drained(&message, sizeof(message), NULL, 0) == -EPROTO);
	message = message_of(ASK);
	CHECK(drained(&message, sizeof(message), NULL, 0) == 0);
	CHECK(drained(&message, sizeof(message), fds, 1) == -EPROTO);
	message.key_bytes = DMP_KEY_BYTES + 1;
	CHECK(drained(&message, sizeof(message), NULL, 0) == -EPROTO);
	CHECK(count_descriptors() == descriptors);
}

static void test_random_messages_do_no_harm(void)
{
	unsigned int descriptors = count_descriptors();
	uint64_t seed = 0xfeed;

	for (int round = 0; round < 500; round++) {
		struct message message = message_of((__u16)(1 + next_random(&seed) % 4));
		unsigned char *bytes = (unsigned char *)&message;
		int fds[4] = { 0, 1, 2, 0 }, spoil = (int)(next_random(&seed) % 4);

		while (spoil--)
			bytes[next_random(&seed) % sizeof(message)] = (unsigned char)next_random(&seed);
		drained(&message, 1 + next_random(&seed) % sizeof(message), fds,
			(int)(next_random(&seed) % 5));
		drained(&message, sizeof(message), fds, (int)(next_random(&seed) % 3));
	}
	CHECK(count_descriptors() == descriptors);
}

/*
 * The connector asks with a key of two pages, the test replies in the acceptor's place: what
 * granted() says.
 */
static int granted(struct message message, const int *fds, int count, __u32 access)
{
	struct pair pair = pair_open();
	struct dmp_fabric *asker = pair.connector.fabric;
	struct dmp_remote remote = { .access = access,
				     .length = 2 * (__u64)sysconf(_SC_PAGESIZE) };
	const __u8 key[DMP_KEY_BYTES] = { 0 };
	int ret;

	CHECK(!dmp_shm_ask(asker, key, sizeof(key)));
	message.serial += pair.connector.shm->question.serial;
	post(pair.acceptor.fabric->fd, &message, sizeof(message), fds, count);
	ret = asker->type->drain(asker);
	if (!ret)
		ret = dmp_shm_granted(asker, &remote);
	if (!ret) {
		ret = dmp_shm_prove(&remote);
		CHECK(!munmap(remote.mapping, remote.mapping_bytes));
	}
	pair_close(&pair);
	return ret;
}

static void test_a_grant_is_looked_at_before_it_is_mapped(void)
{
	const size_t page = (size_t)sysconf(_SC_PAGESIZE);
	const __u32 rights = DMP_ACCESS_REMOTE_READ | DMP_ACCESS_REMOTE_WRITE;
	unsigned int descriptors = count_descriptors();
	int sound = memfd_of(4 * page, F_SEAL_SHRINK), loose = memfd_of(4 * page, F_SEAL_GROW);
	int fixed = memfd_of(4 * page, F_SEAL_SHRINK | F_SEAL_WRITE);
	int wire[2], two[2] = { sound, sound };
	struct message message = message_of(REPLY);

	CHECK(!pipe2(wire, O_CLOEXEC));
	message.offset = page + 8;
	message.length = 2 * page;
	CHECK(granted(message, &sound, 1, rights) == 0);
	CHECK(granted(message, &sound, 1, DMP_ACCESS_REMOTE_READ) == 0);
	CHECK(granted(message, &fixed, 1, DMP_ACCESS_REMOTE_READ) == 0);
	CHECK(granted(message, &fixed, 1, rights) == -EPERM);
	CHECK(granted(message, &loose, 1, rights) == -EPROTO);
	CHECK(granted(message, &wire[0], 1, rights) == -EPROTO);
	CHECK(granted(message, two, 2, rights) == -EPROTO);
	CHECK(granted(message, NULL, 0, rights) == -EPROTO);
	message.length = page;		/* there, but not what the key names */
	CHECK(granted(message, &sound, 1, rights) == -EACCES);
	message.length = 2 * page + 8;
	CHECK(granted(message, &sound, 1, rights) == -EACCES);
	message.length = 3 * page;
	CHECK(granted(message, &sound, 1, rights) == -EPROTO);
	message.length = 0;
	CHECK(granted(message, &sound, 1, rights) == -EPROTO);
	message.length = -(__u64)page;
	CHECK(granted(message, &sound, 1, rights) == -EPROTO);
	message.offset = -(__u64)8;
	message.length = 16;
	CHECK(granted(message, &sound, 1, rights) == -EPROTO);
	message.result = -ESTALE;
	CHECK(granted(message, NULL, 0, rights) == -ESTALE);
	CHECK(granted(message, &sound, 1, rights) == -EPROTO);
	message.result = 1;
	CHECK(granted(message, NULL, 0, rights) == -EPROTO);
	message.result = -EAGAIN;
	CHECK(granted(message, NULL, 0, rights) == -EPROTO);
	message.result = -ESTALE;
	message.serial = 1;		/* to a question that was never asked */
	CHECK(granted(message, NULL, 0, rights) == -EPROTO);
	message.serial = (__u32)-1;	/* to an older one: thrown away */
	CHECK(granted(message, NULL, 0, rights) == -EAGAIN);
	close(sound), close(loose), close(fixed), close(wire[0]), close(wire[1]);
	CHECK(count_descriptors() == descriptors);
}

/* A socket full of bells delays an answer and loses none. */
static void test_a_full_socket_delays_an_answer(void)
{
	struct pair pair = pair_open();
	struct dmp_fabric *asker = pair.connector.fabric, *owner = pair.acceptor.fabric;
	const __u8 key[DMP_KEY_BYTES] = { 0 };
	struct dmp_remote remote = { 0 };

	CHECK(!dmp_shm_ask(asker, key, sizeof(key)));
	while (send(owner->fd, "b", 1, MSG_DONTWAIT) == 1)
		continue;
	CHECK(errno == EAGAIN);
	CHECK(!owner->type->drain(owner));
	CHECK(!asker->type->drain(asker));
	CHECK(dmp_shm_granted(asker, &remote) == -EAGAIN);
	CHECK(!owner->type->drain(owner));
	CHECK(!asker->type->drain(asker));
	CHECK(dmp_shm_granted(asker, &remote) == -EACCES);
	pair_close(&pair);
}

/* Our own limit refuses one import and ends nothing. */
static void test_no_descriptor_left_refuses_the_import(void)
{
	struct pair pair = pair_open();
	struct dmp_fabric *asker = pair.connector.fabric, *owner = pair.acceptor.fabric;
	const __u8 key[DMP_KEY_BYTES] = { 0 };
	struct message message = message_of(REPLY);
	int sound = memfd_of(4096, F_SEAL_SHRINK);
	struct dmp_remote remote = { 0 };
	struct rlimit limit, before;

	CHECK(!dmp_shm_ask(asker, key, sizeof(key)));
	message.serial = pair.connector.shm->question.serial;
	message.length = 4096;
	post(owner->fd, &message, sizeof(message), &sound, 1);
	CHECK(!getrlimit(RLIMIT_NOFILE, &before));
	limit = before;
	limit.rlim_cur = 3;	/* all below are taken */
	CHECK(!setrlimit(RLIMIT_NOFILE, &limit));
	CHECK(!asker->type->drain(asker));
	CHECK(!setrlimit(RLIMIT_NOFILE, &before));
	CHECK(dmp_shm_granted(asker, &remote) == -EMFILE);
	close(sound);
	pair_close(&pair);
}

int main(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	test_a_wrong_offer_is_refused();
	test_no_offer_yet_is_not_the_end();
	test_another_user_is_refused();
	test_nonsense_ends_the_connection();
	test_random_messages_do_no_harm();
	test_a_grant_is_looked_at_before_it_is_mapped();
	test_a_full_socket_delays_an_answer();
	test_no_descriptor_left_refuses_the_import();
	return 0;
}
