// SPDX-License-Identifier: MIT
/*
 * dial.c - the connector's side of the door, see listener.h
 *
 * An address of this machine is tried through its shm door first: the door of that very
 * address, then the one that stands for all addresses. No door, or somebody else's behind
 * it: verbs where a device leads there and the peer listens on one, else tcp.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "door.h"
#include "listener.h"
#include "process.h"
#include "shm.h"
#include "tcp.h"
#include "verbs.h"

#define DIAL_NS		10000000000ull	/* where the caller gave no time */
#define KNOCK_NS	1000000u	/* the door's queue is full: knock again */
#define CALL_NS		2000000000ull	/* a peer without RDMA does not answer: tcp is next */
#define SILENT_NS	60000000000ull	/* and is not asked again for so long */
#define SILENT_MAX	16u

static int connect_error(int error)
{
	switch (error) {
	case EACCES:
		return -EPERM;
	case ENETUNREACH:
	case ENETDOWN:
	case EHOSTDOWN:
	case EAFNOSUPPORT:
		return -EHOSTUNREACH;
	case EADDRNOTAVAIL:	/* no port of our own is left, now */
		return -EAGAIN;
	case ENOENT:		/* no such path, or nobody behind it: the same to who connects */
	case ENOTDIR:
	case EPROTOTYPE:
		return -ECONNREFUSED;
	case ELOOP:
		return -EINVAL;
	default:
		return -error;
	}
}

static struct timespec span_of(__u64 ns)
{
	return (struct timespec){ .tv_sec = (time_t)(ns / 1000000000u),
				  .tv_nsec = (long)(ns % 1000000000u) };
}

/* A unix socket connected to @name, waiting while its queue is full. */
static int knock(const struct sockaddr_un *name, socklen_t length, __u64 deadline_ns)
{
	int fd = dmp_door_knock(name, length);

	while (fd == -EAGAIN) {
		struct timespec pause = span_of(KNOCK_NS);

		if (dmp_now_ns() >= deadline_ns)
			return -ETIMEDOUT;
		if (nanosleep(&pause, NULL) != 0)
			return -EINTR;
		fd = dmp_door_knock(name, length);
	}
	return fd < 0 ? connect_error(-fd) : fd;
}

static int offer(struct dmp_plane *plane, int socket, struct dmp_fabric **fabric)
{
	int error = dmp_shm_offer(plane, socket, fabric);

	if (error)
		close(socket);
	return error;
}

static int dial_path(struct dmp_plane *plane, const struct dmp_address *address,
		     __u64 deadline_ns, struct dmp_fabric **fabric)
{
	int fd = knock((const struct sockaddr_un *)&address->socket, address->length, deadline_ns);

	if (fd < 0)
		return fd;
	if (!dmp_door_is_ours(fd)) {
		close(fd);
		return -EPERM;
	}
	return offer(plane, fd, fabric);
}

/* A socket behind one door of the address, if it is our user's. -ENODEV: there is none. */
static int try_door(const struct dmp_address *address, __u64 deadline_ns)
{
	struct sockaddr_un name;
	socklen_t length;
	int fd;

	dmp_address_door(address, &name, &length);
	fd = knock(&name, length, deadline_ns);
	if (fd == -ECONNREFUSED || fd == -EPERM)
		return -ENODEV;
	if (fd >= 0 && !dmp_door_is_ours(fd)) {
		close(fd);
		return -ENODEV;
	}
	return fd;
}

static int dial_door(struct dmp_plane *plane, const struct dmp_address *address,
		     __u64 deadline_ns, struct dmp_fabric **fabric)
{
	struct dmp_address any = *address;
	int fd;

	if (!dmp_address_is_local(address))
		return -ENODEV;
	fd = try_door(address, deadline_ns);
	if (fd == -ENODEV) {
		dmp_address_make_any(&any);
		fd = try_door(&any, deadline_ns);
	}
	return fd < 0 ? fd : offer(plane, fd, fabric);
}

/*
 * A port of this machine that nobody listens on may be given to the very socket that calls
 * it, which then talks to itself.
 */
static bool is_itself(int fd)
{
	struct dmp_address mine = { .length = sizeof(mine.socket) };
	struct dmp_address peer = { .length = sizeof(peer.socket) };

	return getsockname(fd, (struct sockaddr *)&mine.socket, &mine.length) == 0 &&
	       getpeername(fd, (struct sockaddr *)&peer.socket, &peer.length) == 0 &&
	       mine.length == peer.length && memcmp(&mine.socket, &peer.socket, mine.length) == 0;
}

/* What became of a connect() in progress: 0 or -errno. */
static int outcome_of(int fd)
{
	int error = 0;
	socklen_t length = sizeof(error);

	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) != 0)
		return -errno;
	return error ? connect_error(error) : 0;
}

static int wait_connected(int fd, __u64 deadline_ns)
{
	struct pollfd one = { .fd = fd, .events = POLLOUT };
	int ready;

	do {
		__u64 now_ns = dmp_now_ns();
		struct timespec left = span_of(deadline_ns > now_ns ? deadline_ns - now_ns : 0);

		ready = ppoll(&one, 1, &left, NULL);
		if (ready < 0)
			return -errno;
		if (ready == 0 && deadline_ns <= dmp_now_ns())
			return -ETIMEDOUT;
	} while (ready == 0);
	return outcome_of(fd);
}

static int connect_tcp(const struct dmp_address *address, __u64 deadline_ns)
{
	int fd = socket(address->socket.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	int error = 0;

	if (fd < 0)
		return connect_error(errno);
	if (connect(fd, (const struct sockaddr *)&address->socket, address->length) != 0)
		error = errno == EINPROGRESS ? wait_connected(fd, deadline_ns) :
					       connect_error(errno);
	if (!error && is_itself(fd))
		error = -ECONNREFUSED;
	if (!error)
		return fd;
	close(fd);
	return error;
}

static int dial_tcp(const struct dmp_address *address, __u64 deadline_ns,
		    struct dmp_fabric **fabric)
{
	int fd = connect_tcp(address, deadline_ns), error;

	if (fd < 0)
		return fd;
	error = dmp_tcp_fabric(fd, fabric);
	if (error)
		close(fd);
	return error;
}

/*
 * Addresses whose verbs door did not answer, each until it may be asked again: so a peer without
 * RDMA costs a process CALL_NS once in SILENT_NS. The oldest gives way.
 */
static struct {
	pthread_mutex_t lock;		/* a leaf */
	struct {
		struct sockaddr_storage socket;
		__u64 until_ns;
	} entries[SILENT_MAX];
	unsigned int next;
} silent = { .lock = PTHREAD_MUTEX_INITIALIZER };

__attribute__((constructor)) static void guard_silent(void)
{
	dmp_process_guard(&silent.lock);
}

static bool is_silent(const struct dmp_address *address)
{
	__u64 now_ns = dmp_now_ns();
	bool found = false;
	unsigned int number;

	pthread_mutex_lock(&silent.lock);
	for (number = 0; number < SILENT_MAX; number++)
		found |= silent.entries[number].until_ns > now_ns &&
			 memcmp(&silent.entries[number].socket, &address->socket,
				address->length) == 0;
	pthread_mutex_unlock(&silent.lock);
	return found;
}

static void note_silence(const struct dmp_address *address)
{
	pthread_mutex_lock(&silent.lock);
	silent.entries[silent.next].socket = address->socket;
	silent.entries[silent.next].until_ns = dmp_now_ns() + SILENT_NS;
	silent.next = (silent.next + 1) % SILENT_MAX;
	pthread_mutex_unlock(&silent.lock);
}

/*
 * -ENODEV: no RDMA from here to there, -EINTR: a signal came. Where there is no rdma_cm this costs
 * a system call.
 */
static int try_verbs(struct dmp_plane *plane, const struct dmp_address *address,
		     __u64 deadline_ns, struct dmp_fabric **fabric)
{
	__u64 until_ns = dmp_now_ns() + CALL_NS;
	int error;

	if (address->is_loopback || access(DMP_VERBS_MANAGER, R_OK | W_OK) != 0 ||
	    is_silent(address))
		return -ENODEV;
	error = dmp_verbs_dial(plane, address, deadline_ns < until_ns ? deadline_ns : until_ns,
			       fabric);
	if (error == -ETIMEDOUT || error == -EHOSTUNREACH)
		note_silence(address);
	return error && error != -EINTR ? -ENODEV : error;
}

/* There is no door. Is there a listener at all? Who waits for one to start asks us that. */
static int explain_no_door(const struct dmp_address *address, __u64 deadline_ns)
{
	int fd;

	if (!dmp_address_is_local(address))
		return -ENODEV;
	fd = connect_tcp(address, deadline_ns);
	if (fd < 0)
		return fd;
	close(fd);
	return -ENODEV;
}

int dmp_dial(struct dmp_plane *plane, const struct dmp_address *address, __u32 require,
	     __u64 deadline_ns, struct dmp_fabric **fabric)
{
	__u64 now_ns = dmp_now_ns();
	int error;

	if (deadline_ns == 0)
		deadline_ns = now_ns + DIAL_NS;
	if (deadline_ns <= now_ns)
		return -ETIMEDOUT;
	if (require != 0 && require != DMP_PATH_SHM && require != DMP_PATH_TCP &&
	    require != DMP_PATH_VERBS)
		return -ENODEV;
	if (address->is_unix)
		return require != 0 && require != DMP_PATH_SHM ?
			       -ENODEV : dial_path(plane, address, deadline_ns, fabric);
	if (require == DMP_PATH_VERBS)
		return dmp_verbs_dial(plane, address, deadline_ns, fabric);
	if (require == DMP_PATH_TCP)
		return dial_tcp(address, deadline_ns, fabric);
	error = dial_door(plane, address, deadline_ns, fabric);
	if (error != -ENODEV)
		return error;
	return require == DMP_PATH_SHM ? explain_no_door(address, deadline_ns) :
					 dial_tcp(address, deadline_ns, fabric);
}

int dmp_dial_best(struct dmp_plane *plane, const struct dmp_address *address, __u64 deadline_ns,
		  struct dmp_fabric **fabric)
{
	int error = -ENODEV;

	if (deadline_ns == 0)
		deadline_ns = dmp_now_ns() + DIAL_NS;
	if (address->is_unix || deadline_ns <= dmp_now_ns())
		return dmp_dial(plane, address, 0, deadline_ns, fabric);
	error = dial_door(plane, address, deadline_ns, fabric);
	if (error == -ENODEV)
		error = try_verbs(plane, address, deadline_ns, fabric);
	return error == -ENODEV ? dial_tcp(address, deadline_ns, fabric) : error;
}
