// SPDX-License-Identifier: MIT
/* visitor.c - those at the door, from accept to the queue; see doorkeeper.h */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "doorkeeper.h"
#include "shm.h"
#include "tcp.h"
#include "wait.h"
#include "wire.h"

#define SIFTED 64u	/* sent away between two looks at the queue */

/* ---- chains of slots */

static __u32 index_of(const struct dmp_listener *listener, const struct dmp_visitor *visitor)
{
	return (__u32)(visitor - listener->visitors);
}

static void append(struct dmp_listener *listener, struct dmp_visitors *chain,
		   struct dmp_visitor *visitor)
{
	__u32 index = index_of(listener, visitor);

	visitor->next = DMP_VISITOR_NONE;
	visitor->previous = chain->last;
	if (chain->count++ == 0)
		chain->first = index;
	else
		listener->visitors[chain->last].next = index;
	chain->last = index;
}

static void unchain(struct dmp_listener *listener, struct dmp_visitors *chain,
		    struct dmp_visitor *visitor)
{
	if (visitor->previous == DMP_VISITOR_NONE)
		chain->first = visitor->next;
	else
		listener->visitors[visitor->previous].next = visitor->next;
	if (visitor->next == DMP_VISITOR_NONE)
		chain->last = visitor->previous;
	else
		listener->visitors[visitor->next].previous = visitor->previous;
	chain->count--;
}

struct dmp_visitor *dmp_visitor_first(struct dmp_listener *listener,
				      const struct dmp_visitors *chain)
{
	return chain->count ? &listener->visitors[chain->first] : NULL;
}

struct dmp_visitor *dmp_visitor_next(struct dmp_listener *listener,
				     const struct dmp_visitor *visitor)
{
	return visitor->next == DMP_VISITOR_NONE ? NULL : &listener->visitors[visitor->next];
}

static struct dmp_visitors *chain_of(struct dmp_listener *listener, __u32 state)
{
	return state == DMP_VISITOR_SILENT ? &listener->silent :
	       state == DMP_VISITOR_BOXED ? &listener->boxed : &listener->queue;
}

void dmp_visitor_vacate_locked(struct dmp_listener *listener, struct dmp_visitor *visitor)
{
	unchain(listener, chain_of(listener, visitor->state), visitor);
	if (visitor->state == DMP_VISITOR_BOXED)
		dmp_origin_unbox(&listener->origins, visitor->arrival.origin);
	visitor->state = DMP_VISITOR_FREE;
	append(listener, &listener->unused, visitor);
}

void dmp_visitor_init(struct dmp_listener *listener, __u32 slots)
{
	__u32 slot;

	listener->silent.last = listener->boxed.last = DMP_VISITOR_NONE;
	listener->queue.last = listener->unused.last = DMP_VISITOR_NONE;
	for (slot = 0; slot < slots; slot++)
		append(listener, &listener->unused, &listener->visitors[slot]);
}

/* ---- coming and going */

static int watch(struct dmp_listener *listener, const struct dmp_visitor *visitor, int how, int fd,
		 __u32 events)
{
	struct epoll_event event = {
		.events = events | EPOLLET,
		.data.u64 = (__u64)index_of(listener, visitor) << 32 | visitor->serial,
	};

	return epoll_ctl(listener->epoll, how, fd, &event) == 0 ? 0 : -errno;
}

void dmp_visitor_dismiss(struct dmp_listener *listener, struct dmp_visitor *visitor)
{
	struct dmp_fabric *fabric = visitor->arrival.fabric;
	int socket = visitor->socket;

	/* Nobody but us frees a slot that is not QUEUED; those we were given under the lock. */
	pthread_mutex_lock(&listener->lock);
	dmp_visitor_vacate_locked(listener, visitor);
	pthread_mutex_unlock(&listener->lock);
	if (fabric)
		fabric->type->close(fabric);
	else
		close(socket);
}

void dmp_visitor_enqueue_locked(struct dmp_listener *listener, struct dmp_visitor *visitor)
{
	unchain(listener, chain_of(listener, visitor->state), visitor);
	if (visitor->state == DMP_VISITOR_BOXED)
		dmp_origin_unbox(&listener->origins, visitor->arrival.origin);
	visitor->state = DMP_VISITOR_QUEUED;
	append(listener, &listener->queue, visitor);
	__atomic_add_fetch(&listener->sequence, 1, __ATOMIC_RELEASE);
	dmp_futex_wake_all(&listener->sequence);
}

/*
 * He is complete: 0 with *until_ns 0 if he may be queued, 0 if he has been boxed, -EAGAIN if
 * too many wait in the box already. Lock held.
 */
static int sort_locked(struct dmp_listener *listener, struct dmp_visitor *visitor, __u64 now_ns,
		       __u64 *until_ns)
{
	int error = dmp_origin_arrive(&listener->origins, visitor->arrival.origin, now_ns, until_ns);

	if (error || *until_ns == 0)
		return error;
	unchain(listener, chain_of(listener, visitor->state), visitor);
	visitor->state = DMP_VISITOR_BOXED;
	visitor->waited = true;
	visitor->announced = false;
	visitor->due_ns = *until_ns;
	append(listener, &listener->boxed, visitor);
	/* Origins that are punished share half of the room. */
	return listener->boxed.count > listener->half_open_max / 2 ? -EAGAIN : 0;
}

/*
 * He has said HELLO, or something: ACCEPT reads it. To the queue, or into the box. From here on
 * only hanging up matters.
 */
static void admit(struct dmp_listener *listener, struct dmp_visitor *visitor, __u64 now_ns)
{
	__u64 until_ns = 0;
	int error;

	error = watch(listener, visitor, EPOLL_CTL_MOD, visitor->arrival.fabric->fd, EPOLLRDHUP);
	pthread_mutex_lock(&listener->lock);
	if (!error)
		error = sort_locked(listener, visitor, now_ns, &until_ns);
	if (!error && until_ns == 0)
		dmp_visitor_enqueue_locked(listener, visitor);
	pthread_mutex_unlock(&listener->lock);
	if (error)
		dmp_visitor_dismiss(listener, visitor);
}

/* As many as fit into @fabrics are taken out of the queue, for the caller to close. */
static unsigned int sift_some(struct dmp_listener *listener, __u64 now_ns,
			      struct dmp_fabric *fabrics[SIFTED])
{
	struct dmp_visitor *visitor, *next;
	unsigned int count = 0;
	__u64 until_ns;

	pthread_mutex_lock(&listener->lock);
	visitor = listener->suspicion ? dmp_visitor_first(listener, &listener->queue) : NULL;
	for (; visitor && count < SIFTED; visitor = next) {
		next = dmp_visitor_next(listener, visitor);
		if (visitor->waited || sort_locked(listener, visitor, now_ns, &until_ns) == 0)
			continue;
		fabrics[count++] = visitor->arrival.fabric;
		dmp_visitor_vacate_locked(listener, visitor);
	}
	if (!visitor)
		listener->suspicion = false;
	pthread_mutex_unlock(&listener->lock);
	return count;
}

void dmp_visitor_sift(struct dmp_listener *listener, __u64 now_ns)
{
	struct dmp_fabric *fabrics[SIFTED];
	unsigned int count, i;

	do {
		count = sift_some(listener, now_ns, fabrics);
		for (i = 0; i < count; i++)
			fabrics[i]->type->close(fabrics[i]);
	} while (count == SIFTED);
}

/* Is there a whole HELLO on the socket? 0, -EAGAIN not yet, else: send him away. */
static int peek_hello(int socket)
{
	__u8 bytes[DMP_WIRE_FRAME_BYTES_MAX];
	struct dmp_frame frame;
	__u32 frame_bytes;
	ssize_t have = recv(socket, bytes, sizeof(bytes), MSG_PEEK | MSG_DONTWAIT);
	int error;

	if (have < 0)
		return errno == EAGAIN || errno == EINTR ? -EAGAIN : -errno;
	if (have == 0)
		return -ECONNRESET;
	if (have < DMP_WIRE_HEADER_BYTES)
		return -EAGAIN;
	error = dmp_wire_peek(bytes, DMP_WIRE_HEADER_BYTES, &frame_bytes);
	if (error)
		return error;
	if ((size_t)have < frame_bytes)
		return -EAGAIN;
	error = dmp_wire_decode(bytes, frame_bytes, true, &frame);
	if (error)
		return error;
	return frame.type == DMP_FRAME_HELLO ? 0 : -EPROTO;
}

static int look_tcp(struct dmp_visitor *visitor)
{
	int error = peek_hello(visitor->socket);

	if (!error)
		error = dmp_tcp_fabric(visitor->socket, &visitor->arrival.fabric);
	return error;
}

/* The segment comes over the socket, the HELLO in the segment; or there is a fabric already. */
static int look_local(struct dmp_listener *listener, struct dmp_visitor *visitor)
{
	struct dmp_fabric *fabric = visitor->arrival.fabric;
	const struct dmp_fabric_type *type;
	int error, round;

	if (!fabric) {
		error = dmp_shm_answer(listener->plane, visitor->socket, &fabric);
		if (error)
			return error;
		visitor->arrival.fabric = fabric;
		if (fabric->fd != visitor->socket) {
			epoll_ctl(listener->epoll, EPOLL_CTL_DEL, visitor->socket, NULL);
			error = watch(listener, visitor, EPOLL_CTL_ADD, fabric->fd,
				      EPOLLIN | EPOLLRDHUP);
			if (error)
				return error;
		}
	} else {
		type = fabric->type;
		if (visitor->rests && type->wake)
			type->wake(fabric);
		visitor->rests = false;
		error = type->drain ? type->drain(fabric) : 0;
		if (error)
			return error;
	}
	/* Twice: it may come just while we go to rest. Who does that again and again is odd. */
	type = fabric->type;
	for (round = 0; round < 2; round++) {
		if (!type->ready || type->ready(fabric))
			return 0;
		if (!type->rest || type->rest(fabric)) {
			visitor->rests = true;
			return -EAGAIN;
		}
		if (type->wake)
			type->wake(fabric);
	}
	return type->ready(fabric) ? 0 : -EPROTO;
}

void dmp_visitor_look(struct dmp_listener *listener, struct dmp_visitor *visitor, __u64 now_ns)
{
	bool is_tcp = !visitor->local && !visitor->arrival.fabric;
	int error = is_tcp ? look_tcp(visitor) : look_local(listener, visitor);

	if (!error)
		admit(listener, visitor, now_ns);
	else if (error != -EAGAIN)
		dmp_visitor_dismiss(listener, visitor);
}

/* Who he is, as far as the kernel knows. False: not for us. */
static bool identify(struct dmp_visitor *visitor, const struct sockaddr_storage *peer,
		     socklen_t length)
{
	struct dmp_arrival *arrival = &visitor->arrival;
	struct ucred user;
	socklen_t user_bytes = sizeof(user);

	if (!visitor->local) {
		dmp_address_print(peer, length, arrival->peer_address);
		arrival->origin = dmp_address_origin(peer);
		return true;
	}
	if (!dmp_door_is_ours(visitor->socket) ||
	    getsockopt(visitor->socket, SOL_SOCKET, SO_PEERCRED, &user, &user_bytes) != 0)
		return false;
	memset(arrival->peer_address, 0, sizeof(arrival->peer_address));
	snprintf((char *)arrival->peer_address, sizeof(arrival->peer_address), "unix:pid=%d",
		 (int)user.pid);
	arrival->origin = dmp_origin_of_user(user.uid);
	return true;
}

void dmp_visitor_receive(struct dmp_listener *listener, int socket, struct dmp_fabric *fabric,
			 bool local, const struct sockaddr_storage *peer, socklen_t length,
			 __u64 now_ns)
{
	struct dmp_visitor *visitor, *silent = dmp_visitor_first(listener, &listener->silent);

	if (listener->silent.count + listener->boxed.count >= listener->half_open_max && silent)
		dmp_visitor_dismiss(listener, silent);
	pthread_mutex_lock(&listener->lock);
	visitor = dmp_visitor_first(listener, &listener->unused);
	if (visitor)
		unchain(listener, &listener->unused, visitor);
	pthread_mutex_unlock(&listener->lock);
	if (!visitor) {
		if (fabric)
			fabric->type->close(fabric);
		else
			close(socket);
		return;
	}
	visitor->state = DMP_VISITOR_SILENT;
	visitor->serial++;
	visitor->socket = socket;
	visitor->local = local;
	visitor->rests = false;
	visitor->announced = false;
	visitor->waited = false;
	visitor->due_ns = now_ns + DMP_SILENCE_NS;
	visitor->arrival.fabric = fabric;
	append(listener, &listener->silent, visitor);
	if (!identify(visitor, peer, length) ||
	    watch(listener, visitor, EPOLL_CTL_ADD, socket, EPOLLIN | EPOLLRDHUP) != 0)
		dmp_visitor_dismiss(listener, visitor);
	else
		dmp_visitor_look(listener, visitor, now_ns);
}
