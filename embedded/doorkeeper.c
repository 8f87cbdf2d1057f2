// SPDX-License-Identifier: MIT
/* doorkeeper.c - the thread of a listener: accepts, waits, lets through; see doorkeeper.h */
#define _GNU_SOURCE
#include "doorkeeper.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "channel_embedded.h"
#include "verbs.h"
#include "wait.h"

#define STACK_BYTES	(256u << 10)
#define EVENTS		64
#define ACCEPTS		16		/* at one go, before others are looked at */
#define PAUSE_NS	50000000ull	/* out of descriptors or memory: how long we leave it */
#define ANNOUNCE_NS	4000000ull	/* the channel had no slot */

/* What an epoll event is about: slot << 32 | serial, or one of these. */
#define TAG_TCP		((__u64)DMP_VISITOR_NONE << 32 | 0)
#define TAG_LOCAL	((__u64)DMP_VISITOR_NONE << 32 | 1)
#define TAG_POKE	((__u64)DMP_VISITOR_NONE << 32 | 2)
#define TAG_VERBS	((__u64)DMP_VISITOR_NONE << 32 | 3)

#define HANGUP		(EPOLLRDHUP | EPOLLHUP | EPOLLERR)

static bool queue_is_full(struct dmp_listener *listener)
{
	bool full;

	pthread_mutex_lock(&listener->lock);
	full = listener->queue.count >= listener->backlog;
	pthread_mutex_unlock(&listener->lock);
	return full;
}

static void accept_some(struct dmp_listener *listener, bool local, __u64 now_ns)
{
	int door = local ? listener->doors.local : listener->doors.tcp, turn;
	struct sockaddr_storage peer;
	struct dmp_visitor *silent;

	for (turn = 0; turn < ACCEPTS && !queue_is_full(listener); turn++) {
		socklen_t length = sizeof(peer);
		int fd = accept4(door, (struct sockaddr *)&peer, &length,
				 SOCK_NONBLOCK | SOCK_CLOEXEC);

		if (fd >= 0) {
			dmp_visitor_receive(listener, fd, NULL, local, &peer, length, now_ns);
			continue;
		}
		if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
			/* Who says nothing gives his place; the others wait in the kernel. */
			silent = dmp_visitor_first(listener, &listener->silent);
			if (silent)
				dmp_visitor_dismiss(listener, silent);
			listener->pause_ns = now_ns + PAUSE_NS;
			return;
		}
		if (errno == EAGAIN)
			return;
		/* Else that one connection is gone already. */
	}
}

static void accept_verbs(struct dmp_listener *listener, __u64 now_ns)
{
	struct sockaddr_storage peer;
	struct dmp_fabric *fabric;
	socklen_t length;
	int turn, error;

	for (turn = 0; turn < ACCEPTS && !queue_is_full(listener); turn++) {
		error = dmp_verbs_door_take(listener->plane, listener->doors.verbs, &peer, &length,
					    &fabric);
		if (error == -EAGAIN)
			return;
		if (!error)
			dmp_visitor_receive(listener, fabric->fd, fabric, false, &peer, length,
					    now_ns);
	}
}

/* ---- what time brings */

static void let_through(struct dmp_listener *listener, __u64 now_ns)
{
	struct dmp_visitor *visitor = dmp_visitor_first(listener, &listener->boxed), *next;

	for (; visitor; visitor = next) {
		next = dmp_visitor_next(listener, visitor);
		pthread_mutex_lock(&listener->lock);
		if (visitor->due_ns <= now_ns ||
		    dmp_origin_is_clean(&listener->origins, visitor->arrival.origin))
			dmp_visitor_enqueue_locked(listener, visitor);
		pthread_mutex_unlock(&listener->lock);
	}
}

static void lose_patience(struct dmp_listener *listener, __u64 now_ns)
{
	struct dmp_visitor *visitor = dmp_visitor_first(listener, &listener->silent);

	while (visitor && visitor->due_ns <= now_ns) {
		dmp_visitor_dismiss(listener, visitor);
		visitor = dmp_visitor_first(listener, &listener->silent);
	}
}

/* One event for each QUEUED visitor, oldest first; the lock is not held while we tell. */
static void announce(struct dmp_listener *listener, __u64 now_ns)
{
	struct dmp_completion event = { .operation = DMP_EVENT_CONNECTION,
					.flags = DMP_COMPLETE_EVENT };
	struct dmp_visitor *visitor;
	__u32 serial = 0;
	int error;

	listener->announce_ns = 0;
	while (!listener->channel_gone) {
		pthread_mutex_lock(&listener->lock);
		visitor = dmp_visitor_first(listener, &listener->queue);
		while (visitor && visitor->announced)
			visitor = dmp_visitor_next(listener, visitor);
		if (visitor) {
			visitor->announced = true;
			serial = visitor->serial;
		}
		pthread_mutex_unlock(&listener->lock);
		if (!visitor)
			return;
		/* Visitors come after the listener has its id, see `open`. */
		event.user_data = listener->object.id;
		error = dmp_channel_announce(listener->plane, listener->channel_id, &event);
		if (error == -EAGAIN) {
			pthread_mutex_lock(&listener->lock);
			if (visitor->serial == serial)
				visitor->announced = false;
			pthread_mutex_unlock(&listener->lock);
			listener->announce_ns = now_ns + ANNOUNCE_NS;
			return;
		}
		listener->channel_gone = error != 0;
	}
}

/* Doors are watched while there is room behind them. */
static void watch_doors(struct dmp_listener *listener, __u64 now_ns)
{
	struct epoll_event event;
	bool watched;

	if (listener->pause_ns != 0 && listener->pause_ns <= now_ns)
		listener->pause_ns = 0;
	pthread_mutex_lock(&listener->lock);
	watched = listener->open && listener->queue.count < listener->backlog &&
		  listener->pause_ns == 0;
	pthread_mutex_unlock(&listener->lock);
	if (watched == listener->doors_watched)
		return;
	listener->doors_watched = watched;
	event.events = watched ? EPOLLIN : 0;
	event.data.u64 = TAG_TCP;
	if (listener->doors.tcp_listens)
		epoll_ctl(listener->epoll, EPOLL_CTL_MOD, listener->doors.tcp, &event);
	event.data.u64 = TAG_LOCAL;
	if (listener->doors.local >= 0)
		epoll_ctl(listener->epoll, EPOLL_CTL_MOD, listener->doors.local, &event);
	event.data.u64 = TAG_VERBS;
	if (listener->doors.verbs)
		epoll_ctl(listener->epoll, EPOLL_CTL_MOD,
			  dmp_verbs_door_fd(listener->doors.verbs), &event);
}

/* Milliseconds until something is due; -1: nothing is. */
static int patience_ms(struct dmp_listener *listener, __u64 now_ns)
{
	const struct dmp_visitor *visitor = dmp_visitor_first(listener, &listener->silent);
	__u64 due_ns = visitor ? visitor->due_ns : ~0ull;

	for (visitor = dmp_visitor_first(listener, &listener->boxed); visitor;
	     visitor = dmp_visitor_next(listener, visitor))
		if (visitor->due_ns < due_ns)
			due_ns = visitor->due_ns;
	if (listener->pause_ns != 0 && listener->pause_ns < due_ns)
		due_ns = listener->pause_ns;
	if (listener->announce_ns != 0 && listener->announce_ns < due_ns)
		due_ns = listener->announce_ns;
	if (due_ns == ~0ull)
		return -1;
	return due_ns <= now_ns ? 0 : (int)((due_ns - now_ns + 999999) / 1000000);
}

/* ---- the thread */

static void serve_visitor(struct dmp_listener *listener, const struct epoll_event *event,
			  __u64 now_ns)
{
	struct dmp_visitor *visitor = &listener->visitors[event->data.u64 >> 32];
	bool gone = false, silent;

	/* Left, or taken, since: the event is about somebody who is not here any more. */
	pthread_mutex_lock(&listener->lock);
	silent = visitor->state == DMP_VISITOR_SILENT;
	if (visitor->serial != (__u32)event->data.u64 || visitor->state == DMP_VISITOR_FREE) {
		pthread_mutex_unlock(&listener->lock);
		return;
	}
	gone = event->events & HANGUP;
	if (gone && visitor->state == DMP_VISITOR_QUEUED) {
		struct dmp_fabric *fabric = visitor->arrival.fabric;

		dmp_visitor_vacate_locked(listener, visitor);
		pthread_mutex_unlock(&listener->lock);
		fabric->type->close(fabric);
		return;
	}
	pthread_mutex_unlock(&listener->lock);
	if (gone)
		dmp_visitor_dismiss(listener, visitor);
	else if (silent)
		dmp_visitor_look(listener, visitor, now_ns);
}

static bool is_stopped(struct dmp_listener *listener)
{
	bool stopped;

	pthread_mutex_lock(&listener->lock);
	stopped = listener->stop;
	pthread_mutex_unlock(&listener->lock);
	return stopped;
}

static void *keep_door(void *argument)
{
	struct dmp_listener *listener = argument;
	struct epoll_event events[EVENTS];
	__u64 now_ns = dmp_now_ns(), drained;
	int count, i;

	while (!is_stopped(listener)) {
		lose_patience(listener, now_ns);
		dmp_visitor_sift(listener, now_ns);
		let_through(listener, now_ns);
		announce(listener, now_ns);
		watch_doors(listener, now_ns);
		count = epoll_wait(listener->epoll, events, EVENTS,
				   patience_ms(listener, now_ns));
		now_ns = dmp_now_ns();
		for (i = 0; i < count; i++) {
			if (events[i].data.u64 == TAG_TCP || events[i].data.u64 == TAG_LOCAL)
				accept_some(listener, events[i].data.u64 == TAG_LOCAL, now_ns);
			else if (events[i].data.u64 == TAG_VERBS)
				accept_verbs(listener, now_ns);
			else if (events[i].data.u64 != TAG_POKE)
				serve_visitor(listener, &events[i], now_ns);
			else if (read(listener->poke, &drained, sizeof(drained)) < 0)
				continue;	/* somebody poked and it was seen already */
		}
	}
	return NULL;
}

int dmp_doorkeeper_pop_locked(struct dmp_listener *listener, struct dmp_arrival *arrival)
{
	struct dmp_visitor *oldest = dmp_visitor_first(listener, &listener->queue);
	struct dmp_visitor *visitor = oldest;

	if (!visitor)
		return -EAGAIN;
	while (visitor && !dmp_origin_is_next(&listener->origins, visitor->arrival.origin))
		visitor = dmp_visitor_next(listener, visitor);
	if (!visitor)
		visitor = oldest;
	dmp_origin_serve(&listener->origins, visitor->arrival.origin);
	*arrival = visitor->arrival;
	epoll_ctl(listener->epoll, EPOLL_CTL_DEL, arrival->fabric->fd, NULL);
	dmp_visitor_vacate_locked(listener, visitor);
	if (listener->queue.count + 1 == listener->backlog)
		dmp_doorkeeper_poke(listener);
	return 0;
}

void dmp_doorkeeper_poke(struct dmp_listener *listener)
{
	__u64 one = 1;

	/* It cannot fill up: the doorkeeper empties it. */
	if (write(listener->poke, &one, sizeof(one)) != sizeof(one))
		return;
}

static int watch_poke_and_doors(struct dmp_listener *listener)
{
	struct epoll_event event = { .events = EPOLLIN, .data.u64 = TAG_POKE };

	if (epoll_ctl(listener->epoll, EPOLL_CTL_ADD, listener->poke, &event) != 0)
		return -errno;
	event.events = 0;	/* see watch_doors */
	event.data.u64 = TAG_TCP;
	if (listener->doors.tcp_listens &&
	    epoll_ctl(listener->epoll, EPOLL_CTL_ADD, listener->doors.tcp, &event) != 0)
		return -errno;
	event.data.u64 = TAG_LOCAL;
	if (listener->doors.local >= 0 &&
	    epoll_ctl(listener->epoll, EPOLL_CTL_ADD, listener->doors.local, &event) != 0)
		return -errno;
	event.data.u64 = TAG_VERBS;
	if (listener->doors.verbs &&
	    epoll_ctl(listener->epoll, EPOLL_CTL_ADD, dmp_verbs_door_fd(listener->doors.verbs),
		      &event) != 0)
		return -errno;
	return 0;
}

static int start_thread(struct dmp_listener *listener)
{
	pthread_attr_t attributes;
	sigset_t all, before;
	int error;

	/* Signals are for the threads of the program. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, STACK_BYTES);
	error = pthread_create(&listener->thread, &attributes, keep_door, listener);
	pthread_attr_destroy(&attributes);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return -error;
}

int dmp_doorkeeper_start(struct dmp_listener *listener)
{
	__u32 slots = listener->backlog + listener->half_open_max + 1;
	int error = -ENOMEM;

	listener->visitors = calloc(slots, sizeof(*listener->visitors));
	if (!listener->visitors)
		return -ENOMEM;
	dmp_visitor_init(listener, slots);
	listener->poke = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (listener->poke < 0) {
		error = -errno;
		goto err_visitors;
	}
	listener->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (listener->epoll < 0) {
		error = -errno;
		goto err_poke;
	}
	error = watch_poke_and_doors(listener);
	if (!error)
		error = start_thread(listener);
	if (!error)
		return 0;
	close(listener->epoll);
err_poke:
	close(listener->poke);
err_visitors:
	free(listener->visitors);
	return error;
}

void dmp_doorkeeper_stop(struct dmp_listener *listener)
{
	struct dmp_visitors *chains[] = { &listener->silent, &listener->boxed, &listener->queue };
	struct dmp_visitor *visitor;
	unsigned int i;

	pthread_mutex_lock(&listener->lock);
	listener->stop = true;
	__atomic_add_fetch(&listener->sequence, 1, __ATOMIC_RELEASE);
	pthread_mutex_unlock(&listener->lock);
	dmp_futex_wake_all(&listener->sequence);
	dmp_doorkeeper_poke(listener);
	pthread_join(listener->thread, NULL);
	/* Takers see `stop` before they look at the queue: it is ours now. */
	for (i = 0; i < 3; i++)
		while ((visitor = dmp_visitor_first(listener, chains[i])))
			dmp_visitor_dismiss(listener, visitor);
	dmp_doors_close(&listener->doors);
}
