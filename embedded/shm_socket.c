// SPDX-License-Identifier: MIT
/*
 * shm_socket.c - what memory cannot carry: descriptors, questions, the bell, the end
 *
 * Messages on the SOCK_SEQPACKET socket are the bell, one byte without a meaning, or a
 * struct dmp_shm_message with the descriptors its type calls for; anything else is
 * -EPROTO. A message and its descriptors are taken together, and a descriptor that is not
 * handed on is closed.
 *
 *	OFFER	connector: its segment and its region board; length: bytes of a ring
 *	ANSWER	acceptor: its region board
 *	ASK	what memory is behind this key?
 *	REPLY	a descriptor and where the region lies in it, or an errno
 *
 * Whatever we map of the peer's cannot be shrunk (it is sealed), so no access to it raises
 * SIGBUS.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "placement.h"
#include "plane.h"
#include "shm_segment.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL		0x0008U
#endif

#define HUGETLBFS_MAGIC		0x958458f6

#define MESSAGE_OFFER		1
#define MESSAGE_ANSWER		2
#define MESSAGE_ASK		3
#define MESSAGE_REPLY		4

#define DESCRIPTORS_MAX		2
/* In one drain(): more than a socket holds, so only who floods us gets there. */
#define MESSAGES_MAX		4096

struct dmp_shm_message {
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

_Static_assert(sizeof(struct dmp_shm_message) == 104, "no holes: it goes out as it is");

struct parcel {
	struct dmp_shm_message message;
	ssize_t bytes;
	int fds[DESCRIPTORS_MAX];
	int fd_count;
};

union control {
	struct cmsghdr header;
	char room[CMSG_SPACE(DESCRIPTORS_MAX * sizeof(int))];
};

/* ---- parcels */

static int send_parcel(int socket, struct dmp_shm_message *message, const int *fds, int fd_count)
{
	struct iovec piece = { message, sizeof(*message) };
	union control control = { 0 };
	struct msghdr header = { .msg_iov = &piece, .msg_iovlen = 1 };

	message->magic = DMP_SHM_MAGIC;
	message->version = DMP_SHM_VERSION;
	if (fd_count) {
		header.msg_control = control.room;
		header.msg_controllen = CMSG_SPACE((size_t)fd_count * sizeof(int));
		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		control.header.cmsg_len = CMSG_LEN((size_t)fd_count * sizeof(int));
		memcpy(CMSG_DATA(&control.header), fds, (size_t)fd_count * sizeof(int));
	}
	if (sendmsg(socket, &header, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		return errno == EPIPE ? -ECONNRESET : -errno;
	return 0;
}

static void discard(struct parcel *parcel)
{
	while (parcel->fd_count)
		close(parcel->fds[--parcel->fd_count]);
}

/* The descriptor is the caller's from here on. */
static int take_fd(struct parcel *parcel)
{
	return parcel->fds[--parcel->fd_count];
}

static bool is_sound(const struct parcel *parcel)
{
	const struct dmp_shm_message *message = &parcel->message;
	bool granted = message->type == MESSAGE_REPLY && !message->result;
	int fds = message->type == MESSAGE_OFFER ? 2 : message->type == MESSAGE_ANSWER || granted;

	if (parcel->bytes == 1)
		return !parcel->fd_count;
	return parcel->bytes == sizeof(*message) && message->magic == DMP_SHM_MAGIC &&
	       message->version == DMP_SHM_VERSION && !message->reserved &&
	       message->type >= MESSAGE_OFFER && message->type <= MESSAGE_REPLY &&
	       message->key_bytes <= DMP_KEY_BYTES && parcel->fd_count == fds;
}

/* A REPLY becomes a refusal; nothing else can do without. */
static int without_descriptors(struct parcel *parcel)
{
	discard(parcel);
	parcel->message.result = -EMFILE;
	return is_sound(parcel) && parcel->message.type == MESSAGE_REPLY ? 0 : -EMFILE;
}

/* 0, or -EAGAIN nothing there, -ECONNRESET the end, -EPROTO not one of ours. */
static int receive_parcel(int socket, struct parcel *parcel)
{
	struct iovec piece = { &parcel->message, sizeof(parcel->message) };
	union control control;
	struct msghdr header = {
		.msg_iov = &piece,
		.msg_iovlen = 1,
		.msg_control = control.room,
		.msg_controllen = sizeof(control.room),
	};

	parcel->fd_count = 0;
	parcel->bytes = recvmsg(socket, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (parcel->bytes < 0)
		return errno == EPIPE ? -ECONNRESET : -errno;
	for (struct cmsghdr *part = CMSG_FIRSTHDR(&header); part; part = CMSG_NXTHDR(&header, part)) {
		if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
			continue;
		parcel->fd_count = (int)((part->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(parcel->fds, CMSG_DATA(part), (size_t)parcel->fd_count * sizeof(int));
	}
	/* Fewer descriptors than there is room for: the limit of this process was reached. */
	if (header.msg_flags & MSG_CTRUNC && parcel->fd_count < DESCRIPTORS_MAX)
		return without_descriptors(parcel);
	if (parcel->bytes && !(header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) && is_sound(parcel))
		return 0;
	discard(parcel);
	return parcel->bytes ? -EPROTO : -ECONNRESET;
}

/* ---- the segment and the board */

static int make_segment(size_t bytes)
{
	const unsigned int flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
	int fd = memfd_create("dmaplane-shm", flags | MFD_NOEXEC_SEAL);
	int ret;

	if (fd < 0 && errno == EINVAL) /* before Linux 6.3 */
		fd = memfd_create("dmaplane-shm", flags);
	if (fd < 0)
		return -errno;
	if (!ftruncate(fd, (off_t)bytes) &&
	    !fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
		return fd;
	ret = -errno;
	close(fd);
	return ret;
}

/* Maps exactly @bytes of a memfd of that size that cannot shrink; -EPROTO if it is none. */
static int map_sealed(int fd, size_t bytes, int protection, void **address)
{
	int seals = fcntl(fd, F_GET_SEALS);
	struct stat file;

	if (seals < 0 || !(seals & F_SEAL_SHRINK) || fstat(fd, &file) ||
	    file.st_size != (off_t)bytes)
		return -EPROTO;
	*address = mmap(NULL, bytes, protection, MAP_SHARED, fd, 0);
	if (*address == MAP_FAILED)
		return errno == ENOMEM ? -ENOMEM : -EPROTO;
	return 0;
}

static int map_board(struct dmp_shm *shm, int fd)
{
	void *address;
	int ret = map_sealed(fd, DMP_SHM_BOARD_BYTES, PROT_READ, &address);

	if (!ret)
		shm->board = address;
	return ret;
}

static struct dmp_shm *new_shm(struct dmp_plane *plane, int socket, uint32_t ring_bytes)
{
	struct dmp_shm *shm = calloc(1, sizeof(*shm));

	if (!shm)
		return NULL;
	shm->plane = plane;
	shm->ring_bytes = ring_bytes;
	shm->segment_bytes = DMP_SHM_HEADER_BYTES + 2 * (size_t)ring_bytes;
	shm->question.fd = -1;
	shm->reply.fd = -1;
	shm->fabric.fd = socket;
	return shm;
}

/* A handshake that failed: the socket stays the caller's. */
static void free_new(struct dmp_shm *shm)
{
	if (shm->segment)
		munmap(shm->segment, shm->segment_bytes);
	if (shm->board)
		munmap((void *)(uintptr_t)shm->board, DMP_SHM_BOARD_BYTES);
	free(shm);
}

static int our_board(struct dmp_plane *plane, int *fd)
{
	const uint32_t *words;

	return dmp_region_board(plane, &words, fd);
}

static int offer(struct dmp_shm *shm, int segment, int board)
{
	struct dmp_shm_message message = { .type = MESSAGE_OFFER, .length = shm->ring_bytes };
	int fds[2] = { segment, board };
	void *address;
	int ret = map_sealed(segment, shm->segment_bytes, PROT_READ | PROT_WRITE, &address);

	if (ret)
		return ret;
	shm->segment = address;
	shm->segment->magic = DMP_SHM_MAGIC;
	shm->segment->version = DMP_SHM_VERSION;
	shm->segment->ring_bytes = shm->ring_bytes;
	return send_parcel(shm->fabric.fd, &message, fds, 2);
}

int dmp_shm_offer(struct dmp_plane *plane, int socket, struct dmp_fabric **fabric)
{
	int ret = dmp_shm_peer_check(socket);
	struct dmp_shm *shm;
	int segment, board;

	if (!ret)
		ret = dmp_shm_may_join();
	if (!ret)
		ret = our_board(plane, &board);
	if (ret)
		return ret;
	shm = new_shm(plane, socket, DMP_SHM_RING_BYTES);
	if (!shm)
		return -ENOMEM;
	segment = make_segment(shm->segment_bytes);
	ret = segment < 0 ? segment : offer(shm, segment, board);
	if (segment >= 0)
		close(segment);
	if (ret) {
		free_new(shm);
		return ret;
	}
	shm->pidfd = dmp_shm_peer_pidfd(socket);
	dmp_shm_attach(shm, true);
	*fabric = &shm->fabric;
	return 0;
}

/* Maps what the connector offers and sends our board. */
static int answer(struct dmp_shm *shm, const struct parcel *parcel, int board)
{
	struct dmp_shm_message message = { .type = MESSAGE_ANSWER };
	void *address;
	int ret = map_sealed(parcel->fds[0], shm->segment_bytes, PROT_READ | PROT_WRITE, &address);

	if (ret)
		return ret;
	shm->segment = address;
	if (shm->segment->magic != DMP_SHM_MAGIC || shm->segment->version != DMP_SHM_VERSION ||
	    shm->segment->ring_bytes != shm->ring_bytes)
		return -EPROTO;
	ret = map_board(shm, parcel->fds[1]);
	if (ret)
		return ret;
	return send_parcel(shm->fabric.fd, &message, &board, 1);
}

int dmp_shm_answer(struct dmp_plane *plane, int socket, struct dmp_fabric **fabric)
{
	int ret = dmp_shm_peer_check(socket);
	struct dmp_shm *shm = NULL;
	struct parcel parcel;
	int board;

	if (!ret)
		ret = dmp_shm_may_join();
	if (!ret)
		ret = our_board(plane, &board);
	if (!ret)
		ret = receive_parcel(socket, &parcel);
	if (ret)
		return ret;
	if (parcel.bytes == 1 || parcel.message.type != MESSAGE_OFFER ||
	    parcel.message.length < DMP_SHM_RING_BYTES_MIN ||
	    parcel.message.length > DMP_SHM_RING_BYTES_MAX ||
	    parcel.message.length & (parcel.message.length - 1))
		ret = -EPROTO;
	if (!ret) {
		shm = new_shm(plane, socket, (uint32_t)parcel.message.length);
		ret = shm ? answer(shm, &parcel, board) : -ENOMEM;
	}
	discard(&parcel);
	if (ret) {
		if (shm)
			free_new(shm);
		/* The offer is used up: there is nothing to come back for. */
		return ret == -EAGAIN ? -ECONNRESET : ret;
	}
	shm->pidfd = dmp_shm_peer_pidfd(socket);
	dmp_shm_attach(shm, false);
	*fabric = &shm->fabric;
	return 0;
}

/* ---- questions */

static void quiet(struct dmp_shm_exchange *exchange)
{
	if (exchange->fd >= 0)
		close(exchange->fd);
	exchange->fd = -1;
	exchange->state = DMP_SHM_QUIET;
}

/* Sends what is to be sent; what finds no room stays. */
static int flush(struct dmp_shm *shm)
{
	struct dmp_shm_exchange *question = &shm->question, *reply = &shm->reply;
	struct dmp_shm_message message = { .type = MESSAGE_ASK, .serial = question->serial,
					   .key_bytes = question->key_bytes };
	int ret = 0;

	if (question->state == DMP_SHM_TO_SEND) {
		memcpy(message.key, question->key, sizeof(message.key));
		ret = send_parcel(shm->fabric.fd, &message, NULL, 0);
		if (!ret)
			question->state = DMP_SHM_ASKED;
	}
	if (!ret && reply->state == DMP_SHM_TO_SEND) {
		message = (struct dmp_shm_message){ .type = MESSAGE_REPLY, .serial = reply->serial,
						    .result = reply->result,
						    .offset = reply->offset,
						    .length = reply->length };
		ret = send_parcel(shm->fabric.fd, &message, &reply->fd, reply->fd >= 0);
		if (!ret)
			quiet(reply);
	}
	return ret == -EAGAIN ? 0 : ret;
}

int dmp_shm_ask(struct dmp_fabric *fabric, const __u8 *key, __u32 key_bytes)
{
	struct dmp_shm *shm = (struct dmp_shm *)fabric;
	struct dmp_shm_exchange *question = &shm->question;

	if (key_bytes > DMP_KEY_BYTES)
		return -EINVAL;
	if (shm->lost)
		return shm->lost;
	quiet(question);
	question->serial++;
	question->key_bytes = key_bytes;
	memset(question->key, 0, sizeof(question->key));
	memcpy(question->key, key, key_bytes);
	question->state = DMP_SHM_TO_SEND;
	return flush(shm);
}

/* The peer asks; its newer question makes an older one void. */
static int reply_to(struct dmp_shm *shm, const struct parcel *parcel)
{
	struct dmp_shm_exchange *reply = &shm->reply;
	__u64 offset = 0, length = 0;
	int fd = -1;

	quiet(reply);
	reply->serial = parcel->message.serial;
	reply->result = dmp_region_share(shm->plane, parcel->message.key,
					 parcel->message.key_bytes, &fd, &offset, &length);
	if (reply->result == -EAGAIN)	/* would say "not yet" to the one who asks */
		reply->result = -EBUSY;
	if (!reply->result) {
		reply->fd = fd;
		reply->offset = offset;
		reply->length = length;
	}
	reply->state = DMP_SHM_TO_SEND;
	return flush(shm);
}

static int reply_came(struct dmp_shm *shm, struct parcel *parcel)
{
	struct dmp_shm_exchange *question = &shm->question;
	const struct dmp_shm_message *message = &parcel->message;

	if (message->serial != question->serial)
		return (int32_t)(message->serial - question->serial) < 0 ? 0 : -EPROTO;
	if (question->state != DMP_SHM_ASKED || message->result > 0 || message->result < -4095 ||
	    message->result == -EAGAIN)
		return -EPROTO;
	question->result = message->result;
	question->offset = message->offset;
	question->length = message->length;
	if (!message->result)
		question->fd = take_fd(parcel);
	question->state = DMP_SHM_ANSWERED;
	return 0;
}

/* What @fd is: its bytes, and the size of its pages. */
static int measure(int fd, __u64 *bytes, __u64 *page_bytes)
{
	struct statfs filesystem;
	off_t end;
	int seals;

	if (fstatfs(fd, &filesystem))
		return -EPROTO;
	seals = fcntl(fd, F_GET_SEALS);
	if (seals < 0 || !(seals & F_SEAL_SHRINK))
		return -EPROTO;
	end = lseek(fd, 0, SEEK_END);
	if (end <= 0)
		return -EPROTO;
	*bytes = (__u64)end;
	*page_bytes = (__u64)sysconf(_SC_PAGESIZE);
	if ((__u64)filesystem.f_type == HUGETLBFS_MAGIC)
		*page_bytes = (__u64)filesystem.f_bsize;
	return 0;
}

static int map_grant(const struct dmp_shm_exchange *grant, struct dmp_remote *remote)
{
	int protection = PROT_READ | (remote->access & DMP_ACCESS_REMOTE_WRITE ? PROT_WRITE : 0);
	__u64 bytes, page_bytes, first, end;
	void *address;
	int ret = measure(grant->fd, &bytes, &page_bytes);

	if (ret)
		return ret;
	if (!grant->length || __builtin_add_overflow(grant->offset, grant->length, &end) ||
	    end > bytes)
		return -EPROTO;
	/* All of it is mapped, and made to be there: no more than the key names. */
	if (grant->length != remote->length)
		return -EACCES;
	first = grant->offset & ~(page_bytes - 1);
	end = (end + page_bytes - 1) & ~(page_bytes - 1);
	address = mmap(NULL, (size_t)(end - first), protection, MAP_SHARED, grant->fd,
		       (off_t)first);
	if (address == MAP_FAILED)
		return -errno;
	remote->mapping = address;
	remote->mapping_bytes = (size_t)(end - first);
	remote->address = (char *)address + (grant->offset - first);
	return 0;
}

int dmp_shm_granted(struct dmp_fabric *fabric, struct dmp_remote *remote)
{
	struct dmp_shm *shm = (struct dmp_shm *)fabric;
	struct dmp_shm_exchange *question = &shm->question;
	int ret;

	if (question->state == DMP_SHM_QUIET)
		return -EINVAL;
	if (question->state != DMP_SHM_ANSWERED)
		return shm->lost ? shm->lost : -EAGAIN;
	ret = question->result ? question->result : map_grant(question, remote);
	quiet(question);
	return ret;
}

int dmp_shm_prove(const struct dmp_remote *remote)
{
	/* A mapping of huge pages begins and ends with one, so that any page size serves. */
	return dmp_placement_populate(remote->mapping, remote->mapping_bytes,
				      (size_t)sysconf(_SC_PAGESIZE),
				      remote->access & DMP_ACCESS_REMOTE_WRITE);
}

/* ---- what the socket brings */

static int handle(struct dmp_shm *shm, struct parcel *parcel)
{
	if (parcel->bytes == 1)
		return 0;
	switch (parcel->message.type) {
	case MESSAGE_ANSWER:
		return shm->board ? -EPROTO : map_board(shm, parcel->fds[0]);
	case MESSAGE_ASK:
		return reply_to(shm, parcel);
	case MESSAGE_REPLY:
		return reply_came(shm, parcel);
	}
	return -EPROTO;
}

int dmp_shm_drain(struct dmp_fabric *fabric)
{
	struct dmp_shm *shm = (struct dmp_shm *)fabric;
	struct parcel parcel;
	int ret = shm->lost;

	for (int count = 0; !ret; count++) {
		ret = count < MESSAGES_MAX ? receive_parcel(fabric->fd, &parcel) : -EPROTO;
		if (!ret) {
			ret = handle(shm, &parcel);
			discard(&parcel);
		}
	}
	if (ret == -EAGAIN)
		ret = flush(shm);
	/* What the peer wrote before stays: receive() gives it, then says the same. */
	shm->lost = ret;
	return ret;
}

void dmp_shm_detach(struct dmp_shm *shm)
{
	quiet(&shm->question);
	quiet(&shm->reply);
	if (shm->board)
		munmap((void *)(uintptr_t)shm->board, DMP_SHM_BOARD_BYTES);
	dmp_shm_leave(shm);
}
