// SPDX-License-Identifier: MIT
/*
 * shm_peer.c - the process on the other side: whose it is, whether it lives, what it touches
 *
 * A peer that is gone touches nothing. The kernel tells by the pidfd, or by the end of the
 * socket, which comes after the end of the peer's memory: the first where a forked child
 * has a copy of the socket, the second where there are no pidfds.
 *
 * Left segments. A fabric can be closed while the peer is in the middle of a slice: a
 * process that was stopped there will finish it whenever it goes on. The segment is then
 * kept, in a list of this process under its own lock, until the peer has let go or is
 * gone. While LEFT_MAX of them are in the list no new segment is made or taken.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "process.h"
#include "shm_segment.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77		/* Linux 6.5 */
#endif

#define LEFT_MAX 256u

static pthread_mutex_t left_lock = PTHREAD_MUTEX_INITIALIZER;
/* protected by left_lock */
static struct dmp_shm *left_first;
static uint32_t left_count;

__attribute__((constructor)) static void guard_left(void)
{
	dmp_process_guard(&left_lock);
}

int dmp_shm_peer_check(int socket)
{
	struct ucred peer;
	socklen_t bytes = sizeof(peer);
	int type;

	if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &bytes))
		return -errno;
	if (peer.uid != geteuid())
		return -EPERM;
	bytes = sizeof(type);
	if (getsockopt(socket, SOL_SOCKET, SO_TYPE, &type, &bytes))
		return -errno;
	return type == SOCK_SEQPACKET ? 0 : -EINVAL;
}

int dmp_shm_peer_pidfd(int socket)
{
	struct ucred peer;
	socklen_t bytes = sizeof(int);
	int pidfd;

	/* This one cannot mean a process that took over the number. */
	if (!getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &bytes))
		return pidfd;
	bytes = sizeof(peer);
	if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) || peer.pid <= 0)
		return -1;
	pidfd = (int)syscall(SYS_pidfd_open, peer.pid, 0);
	return pidfd < 0 ? -1 : pidfd;
}

static bool is_gone(const struct dmp_shm *shm)
{
	struct pollfd events[2] = {
		{ .fd = shm->pidfd, .events = POLLIN },
		{ .fd = shm->fabric.fd, .events = POLLRDHUP },
	};

	/* One that closes lets go before it hangs up; an fd of -1 has no events. */
	return poll(events, 2, 0) > 0 && (events[0].revents || events[1].revents & POLLRDHUP);
}

static uint32_t touched_by(const struct dmp_shm *shm)
{
	/*
	 * Pairs with the fence in shm_move(): the peer saw the word we wrote, or we see its.
	 * And with the release in let_go(): zero means that its copies are done.
	 */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return __atomic_load_n(&shm->theirs->touching, __ATOMIC_ACQUIRE);
}

bool dmp_shm_is_touching(struct dmp_fabric *fabric, __u32 slot)
{
	struct dmp_shm *shm = (struct dmp_shm *)fabric;

	return touched_by(shm) == slot + 1 && !is_gone(shm);
}

int dmp_shm_pidfd(struct dmp_fabric *fabric)
{
	return ((struct dmp_shm *)fabric)->pidfd;
}

/* ---- those that were left */

static void drop(struct dmp_shm *shm)
{
	munmap(shm->segment, shm->segment_bytes);
	if (shm->pidfd >= 0)
		close(shm->pidfd);
	if (shm->fabric.fd >= 0)
		close(shm->fabric.fd);
	free(shm);
}

static bool has_let_go(const struct dmp_shm *shm)
{
	return !touched_by(shm) || is_gone(shm);
}

/* Drops those of @plane, or of any plane those that have let go. */
static void sweep_locked(const struct dmp_plane *plane)
{
	struct dmp_shm **link = &left_first, *shm;

	while ((shm = *link)) {
		if (plane ? shm->plane == plane : has_let_go(shm)) {
			*link = shm->next_left;
			left_count--;
			drop(shm);
		} else {
			link = &shm->next_left;
		}
	}
}

bool dmp_shm_left_touching(const struct dmp_plane *plane, __u32 slot)
{
	bool touching = false;

	pthread_mutex_lock(&left_lock);
	sweep_locked(NULL);
	for (struct dmp_shm *shm = left_first; shm; shm = shm->next_left)
		touching |= shm->plane == plane && touched_by(shm) == slot + 1;
	pthread_mutex_unlock(&left_lock);
	return touching;
}

void dmp_shm_forget_left(const struct dmp_plane *plane)
{
	pthread_mutex_lock(&left_lock);
	sweep_locked(plane);
	pthread_mutex_unlock(&left_lock);
}

int dmp_shm_may_join(void)
{
	int ret;

	pthread_mutex_lock(&left_lock);
	sweep_locked(NULL);
	ret = left_count >= LEFT_MAX ? -EBUSY : 0;
	pthread_mutex_unlock(&left_lock);
	return ret;
}

void dmp_shm_leave(struct dmp_shm *shm)
{
	/* The peer shall hear of it even if a forked child has a copy of our end. */
	shutdown(shm->fabric.fd, SHUT_WR);
	/* Pairs with the load in shm_move(): no slice begins that we do not see below. */
	__atomic_store_n(&shm->ours->closed, 1, __ATOMIC_RELAXED);
	if (shm->pidfd >= 0) {
		close(shm->fabric.fd);
		shm->fabric.fd = -1;
	}
	if (has_let_go(shm)) {
		drop(shm);
		return;
	}
	pthread_mutex_lock(&left_lock);
	shm->next_left = left_first;
	left_first = shm;
	left_count++;
	pthread_mutex_unlock(&left_lock);
}
