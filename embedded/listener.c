// SPDX-License-Identifier: MIT
/* listener.c - the life of a listener: made, asked for arrivals, destroyed; see listener.h */
#define _GNU_SOURCE
#include "listener.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "doorkeeper.h"
#include "lifetime.h"
#include "tls.h"
#include "wait.h"

#define LISTENERS_MAX	256u
#define BACKLOG_DEFAULT	16u
#define BACKLOG_MAX	1024u

static int check(const struct dmp_listen *listen, const struct dmp_address *address)
{
	bool wire = !address->is_unix && listen->path != DMP_PATH_SHM;
	bool encrypt = listen->flags & DMP_ENCRYPT;

	if (listen->secret_bytes > DMP_SECRET_BYTES || listen->backlog > BACKLOG_MAX)
		return -EINVAL;
	if (listen->flags & DMP_REQUIRE_PATH ?
		    listen->path == DMP_PATH_NONE || listen->path > DMP_PATH_PEER :
		    listen->path != 0)
		return -EINVAL;
	/* Whoever reaches the port would be let in; and keys are made of the secret. */
	if (listen->secret_bytes == 0 && (encrypt || !address->is_loopback))
		return -EPERM;
	return encrypt && wire ? dmp_tls_probe() : 0;
}

static int check_channel(struct dmp_plane *plane, __u32 channel_id)
{
	int error;

	pthread_mutex_lock(&plane->lock);
	dmp_plane_find_locked(plane, channel_id, DMP_OBJECT_CHANNEL, &error);
	pthread_mutex_unlock(&plane->lock);
	return error;
}

/* Findable from here on. */
static int publish(struct dmp_plane *plane, struct dmp_listener *listener)
{
	int error = 0;

	listener->object.type = DMP_OBJECT_LISTENER;
	pthread_mutex_lock(&plane->lock);
	dmp_plane_find_locked(plane, listener->channel_id, DMP_OBJECT_CHANNEL, &error);
	if (!error && plane->listeners >= LISTENERS_MAX)
		error = -ENOSPC;
	if (!error)
		error = dmp_table_insert(&plane->table, &listener->object);
	if (!error) {
		dmp_lifetime_move(&listener->object.state, DMP_STATE_LIVE);
		plane->listeners++;
	}
	pthread_mutex_unlock(&plane->lock);
	return error;
}

void dmp_listener_put(struct dmp_plane *plane, struct dmp_listener *listener)
{
	(void)plane;
	if (__atomic_sub_fetch(&listener->references, 1, __ATOMIC_ACQ_REL) != 0)
		return;
	close(listener->epoll);
	close(listener->poke);
	pthread_mutex_destroy(&listener->lock);
	dmp_secret_forget(&listener->secret);
	free(listener->visitors);
	free(listener);
}

static void open_up(struct dmp_listener *listener)
{
	pthread_mutex_lock(&listener->lock);
	listener->open = true;
	pthread_mutex_unlock(&listener->lock);
	dmp_doorkeeper_poke(listener);
}

int dmp_listener_create(struct dmp_plane *plane, void *argument)
{
	struct dmp_listen *listen = argument;
	struct dmp_listener *listener;
	struct dmp_address address;
	int error = dmp_address_parse(listen->address, true, &address);

	if (!error)
		error = check(listen, &address);
	if (!error)
		error = check_channel(plane, listen->channel_id);
	if (error)
		return error;
	listener = calloc(1, sizeof(*listener));
	if (!listener)
		return -ENOMEM;
	listener->plane = plane;
	listener->references = 2;	/* one is ours, as long as we are in here */
	listener->channel_id = listen->channel_id;
	listener->encrypt = listen->flags & DMP_ENCRYPT;
	listener->backlog = listen->backlog ? listen->backlog : BACKLOG_DEFAULT;
	listener->half_open_max = listener->backlog * DMP_HALF_OPEN_FACTOR;
	listener->secret.count = listen->secret_bytes;
	memcpy(listener->secret.bytes, listen->secret, listen->secret_bytes);
	pthread_mutex_init(&listener->lock, NULL);
	error = dmp_doors_open(&listener->doors, &address, listen->path, listener->encrypt,
			       listener->backlog);
	if (error)
		goto err_free;
	error = dmp_doorkeeper_start(listener);
	if (error)
		goto err_doors;
	error = publish(plane, listener);
	if (error) {
		dmp_doorkeeper_stop(listener);
		dmp_listener_put(plane, listener);
		dmp_listener_put(plane, listener);
		return error;
	}
	/* Others can find it now, and destroy it. */
	dmp_address_print(&listener->doors.address.socket, listener->doors.address.length,
			  listen->bound_address);
	listen->listener_id = listener->object.id;
	open_up(listener);
	dmp_listener_put(plane, listener);
	return 0;

err_doors:
	dmp_doors_close(&listener->doors);
err_free:
	pthread_mutex_destroy(&listener->lock);
	dmp_secret_forget(&listener->secret);
	free(listener);
	return error;
}

static void withdraw_locked(struct dmp_plane *plane, struct dmp_listener *listener)
{
	dmp_lifetime_move(&listener->object.state, DMP_STATE_DEAD);
	dmp_table_remove(&plane->table, &listener->object);
	plane->listeners--;
}

int dmp_listener_destroy(struct dmp_plane *plane, void *argument)
{
	const struct dmp_destroy *destroy = argument;
	struct dmp_object *object;
	int error = 0;

	if (!(destroy->flags & DMP_DESTROY_DRAIN) && destroy->deadline_ns != 0)
		return -EINVAL;
	pthread_mutex_lock(&plane->lock);
	object = dmp_plane_find_locked(plane, destroy->id, DMP_OBJECT_LISTENER, &error);
	if (object)
		withdraw_locked(plane, (struct dmp_listener *)object);
	pthread_mutex_unlock(&plane->lock);
	if (!object)
		return error;
	/* Nothing holds a listener: who is inside is sent home, or keeps it until he leaves. */
	dmp_doorkeeper_stop((struct dmp_listener *)object);
	dmp_listener_put(plane, (struct dmp_listener *)object);
	return 0;
}

void dmp_listener_free(struct dmp_plane *plane, struct dmp_listener *listener)
{
	pthread_mutex_lock(&plane->lock);
	withdraw_locked(plane, listener);
	pthread_mutex_unlock(&plane->lock);
	dmp_doorkeeper_stop(listener);
	dmp_listener_put(plane, listener);
}

static int enter(struct dmp_plane *plane, __u32 listener_id, struct dmp_listener **listener)
{
	struct dmp_object *object;
	int error = 0;

	pthread_mutex_lock(&plane->lock);
	object = dmp_plane_find_locked(plane, listener_id, DMP_OBJECT_LISTENER, &error);
	if (object) {
		*listener = (struct dmp_listener *)object;
		__atomic_add_fetch(&(*listener)->references, 1, __ATOMIC_RELAXED);
	}
	pthread_mutex_unlock(&plane->lock);
	return error;
}

/* One look: 0, -EAGAIN, -ESTALE. *seen is what the futex has to differ from. */
static int look(struct dmp_listener *listener, struct dmp_arrival *arrival, __u32 *seen)
{
	int error;

	pthread_mutex_lock(&listener->lock);
	*seen = listener->sequence;
	error = listener->stop ? -ESTALE : dmp_doorkeeper_pop_locked(listener, arrival);
	pthread_mutex_unlock(&listener->lock);
	return error;
}

int dmp_listener_take(struct dmp_plane *plane, __u32 listener_id, __u64 deadline_ns,
		      struct dmp_listener **found, struct dmp_arrival *arrival)
{
	bool past = deadline_ns != 0 && deadline_ns <= dmp_now_ns();
	struct dmp_listener *listener = NULL;
	int error = enter(plane, listener_id, &listener), waited = 0;
	__u32 seen;

	if (error)
		return error;
	for (;;) {
		error = look(listener, arrival, &seen);
		if (error != -EAGAIN || past)
			break;
		if (waited == -ETIMEDOUT || waited == -EINTR) {
			error = waited;
			break;
		}
		waited = dmp_futex_wait(&listener->sequence, seen, deadline_ns);
	}
	if (error)
		dmp_listener_put(plane, listener);
	else
		*found = listener;
	return error;
}

const struct dmp_secret *dmp_listener_secret(const struct dmp_listener *listener)
{
	return &listener->secret;
}

bool dmp_listener_encrypts(const struct dmp_listener *listener)
{
	return listener->encrypt;
}

__u32 dmp_listener_channel(const struct dmp_listener *listener)
{
	return listener->channel_id;
}

void dmp_listener_judge(struct dmp_listener *listener, __u64 origin, bool proved)
{
	bool suspicion;

	pthread_mutex_lock(&listener->lock);
	dmp_origin_judge(&listener->origins, origin, proved, dmp_now_ns());
	suspicion = !dmp_origin_is_clean(&listener->origins, origin);
	if (suspicion)
		listener->suspicion = true;
	pthread_mutex_unlock(&listener->lock);
	/* Others of that origin need not wait any longer, or have to. */
	if (proved || suspicion)
		dmp_doorkeeper_poke(listener);
}
