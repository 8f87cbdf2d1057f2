// SPDX-License-Identifier: GPL-2.0
/*
 * listener.c - the life of a listener, and its doorkeeper; see listener.h
 *
 * Locks: listener->lock is a leaf, except that dmp_pair_is_ready() is asked under it. The
 * doorkeeper takes plane->lock to announce, without it.
 */
#include "listener.h"

#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/list.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/wait.h>

#include "channel_kernel.h"
#include "lifetime.h"
#include "trace.h"

#define BACKLOG_DEFAULT		16U
#define BACKLOG_MAX		1024U
#define HALF_OPEN_FACTOR	4U
#define SILENCE_NS		NSEC_PER_SEC	/* who says nothing for so long is sent away */
#define LOOK_NS			(2 * NSEC_PER_MSEC)	/* while somebody is silent, or boxed */
#define HANGUP_NS		(100 * NSEC_PER_MSEC)	/* who has gone is noticed */
#define ANNOUNCE_NS		(4 * NSEC_PER_MSEC)	/* the channel had no slot */

enum visitor_state { SILENT, BOXED, QUEUED, VISITOR_STATES };

struct visitor {
	struct list_head list;
	struct dmp_arrival arrival;
	u64 due_ns;		/* SILENT: patience ends; BOXED: he may pass */
	bool announced;
};

struct dmp_listener {
	struct dmp_object object;
	/* immutable after create */
	struct dmp_plane *plane;
	struct dmp_pair_door *door;
	struct dmp_secret secret;
	struct task_struct *keeper;
	u32 channel_id;
	u32 backlog;
	/* atomic: one of the table, one of each call inside; the last one frees */
	refcount_t references;

	struct mutex lock;
	/* protected by lock */
	struct list_head visitors[VISITOR_STATES];
	u32 counts[VISITOR_STATES];
	struct dmp_origins origins;
	bool stop;

	wait_queue_head_t takers;
	wait_queue_head_t keeper_wait;	/* the doorkeeper, while there is no room */
};

static atomic_t listeners_total = ATOMIC_INIT(0);

/* ---- those at the door */

static void add_locked(struct dmp_listener *listener, struct visitor *visitor,
		       enum visitor_state state)
{
	lockdep_assert_held(&listener->lock);
	list_add_tail(&visitor->list, &listener->visitors[state]);
	listener->counts[state]++;
}

static void remove_locked(struct dmp_listener *listener, struct visitor *visitor,
			  enum visitor_state state)
{
	lockdep_assert_held(&listener->lock);
	list_del(&visitor->list);
	listener->counts[state]--;
	if (state == BOXED)
		dmp_origin_unbox(&listener->origins, visitor->arrival.origin);
}

static void enqueue_locked(struct dmp_listener *listener, struct visitor *visitor)
{
	lockdep_assert_held(&listener->lock);
	add_locked(listener, visitor, QUEUED);
	wake_up_all(&listener->takers);
}

/* He has spoken: to the queue, into the box, or (false) sent away. */
static bool sort_locked(struct dmp_listener *listener, struct visitor *visitor, u64 now_ns)
{
	u32 boxed_max = listener->backlog * HALF_OPEN_FACTOR / 2;
	u64 until_ns;

	lockdep_assert_held(&listener->lock);
	if (dmp_origin_arrive(&listener->origins, visitor->arrival.origin, now_ns, &until_ns))
		return false;
	if (until_ns == 0) {
		enqueue_locked(listener, visitor);
		return true;
	}
	visitor->due_ns = until_ns;
	add_locked(listener, visitor, BOXED);
	if (listener->counts[BOXED] <= boxed_max)
		return true;
	remove_locked(listener, visitor, BOXED);
	return false;
}

static void dismiss(struct list_head *gone)
{
	struct visitor *visitor, *next;

	list_for_each_entry_safe(visitor, next, gone, list) {
		dmp_pair_close(visitor->arrival.pair);
		kfree(visitor);
	}
}

/* Who has spoken goes on, who is silent for too long is sent away, who has waited may pass. */
static void look_after(struct dmp_listener *listener)
{
	struct visitor *visitor, *next;
	u64 now_ns = ktime_get_ns();
	LIST_HEAD(gone);

	mutex_lock(&listener->lock);
	list_for_each_entry_safe(visitor, next, &listener->visitors[SILENT], list) {
		bool spoke = dmp_pair_is_ready(visitor->arrival.pair);

		if (!spoke && visitor->due_ns > now_ns)
			continue;
		remove_locked(listener, visitor, SILENT);
		if (!spoke || !sort_locked(listener, visitor, now_ns))
			list_add_tail(&visitor->list, &gone);
	}
	list_for_each_entry_safe(visitor, next, &listener->visitors[QUEUED], list) {
		if (!dmp_pair_serve(visitor->arrival.pair))
			continue;
		remove_locked(listener, visitor, QUEUED);
		list_add_tail(&visitor->list, &gone);
	}
	list_for_each_entry_safe(visitor, next, &listener->visitors[BOXED], list) {
		if (visitor->due_ns > now_ns &&
		    !dmp_origin_is_clean(&listener->origins, visitor->arrival.origin))
			continue;
		remove_locked(listener, visitor, BOXED);
		enqueue_locked(listener, visitor);
	}
	mutex_unlock(&listener->lock);
	dismiss(&gone);
}

static void receive(struct dmp_listener *listener, struct dmp_pair *pair,
		    const struct sockaddr_storage *from)
{
	struct visitor *visitor = kzalloc(sizeof(*visitor), GFP_KERNEL_ACCOUNT);

	if (!visitor) {
		dmp_pair_close(pair);
		return;
	}
	visitor->arrival.pair = pair;
	visitor->arrival.origin = dmp_address_origin(from);
	dmp_address_print(from, visitor->arrival.peer_address);
	visitor->due_ns = ktime_get_ns() + SILENCE_NS;
	mutex_lock(&listener->lock);
	add_locked(listener, visitor, SILENT);
	mutex_unlock(&listener->lock);
}

/* One event for each QUEUED visitor, oldest first. True: one of them waits for a slot. */
static bool announce(struct dmp_listener *listener)
{
	struct dmp_completion event = { .operation = DMP_EVENT_CONNECTION };
	struct visitor *visitor;
	u32 count = 0;
	int error = 0;

	mutex_lock(&listener->lock);
	event.user_data = listener->object.id;
	list_for_each_entry(visitor, &listener->visitors[QUEUED], list)
		count += !visitor->announced;
	mutex_unlock(&listener->lock);
	for (; count != 0; count--) {
		error = dmp_channel_announce(listener->plane, listener->channel_id, &event);
		if (error)
			break;
		mutex_lock(&listener->lock);
		list_for_each_entry(visitor, &listener->visitors[QUEUED], list)
			if (!visitor->announced) {
				visitor->announced = true;
				break;
			}
		mutex_unlock(&listener->lock);
	}
	return error == -EAGAIN;
}

/* ---- the doorkeeper */

static bool has_room(struct dmp_listener *listener)
{
	bool room;

	mutex_lock(&listener->lock);
	room = listener->stop ||
	       (listener->counts[QUEUED] < listener->backlog &&
		listener->counts[SILENT] + listener->counts[BOXED] <
			listener->backlog * HALF_OPEN_FACTOR);
	mutex_unlock(&listener->lock);
	return room;
}

/* When to look again although nobody has come; 0: never. */
static u64 look_again_ns(struct dmp_listener *listener, bool unannounced)
{
	u64 wait_ns = unannounced ? ANNOUNCE_NS : 0;

	mutex_lock(&listener->lock);
	if (listener->counts[QUEUED] != 0 && wait_ns == 0)
		wait_ns = HANGUP_NS;
	if (listener->counts[SILENT] + listener->counts[BOXED] != 0)
		wait_ns = LOOK_NS;
	mutex_unlock(&listener->lock);
	return wait_ns == 0 ? 0 : ktime_get_ns() + wait_ns;
}

/* Takers see `stop` before they look at the queue, and go home. */
static void send_all_away(struct dmp_listener *listener)
{
	struct visitor *visitor, *next;
	u32 state;
	LIST_HEAD(gone);

	mutex_lock(&listener->lock);
	WRITE_ONCE(listener->stop, true);
	for (state = 0; state < VISITOR_STATES; state++)
		list_for_each_entry_safe(visitor, next, &listener->visitors[state], list) {
			remove_locked(listener, visitor, state);
			list_add_tail(&visitor->list, &gone);
		}
	mutex_unlock(&listener->lock);
	wake_up_all(&listener->takers);
	dismiss(&gone);
}

static int keep_door(void *argument)
{
	struct dmp_listener *listener = argument;
	struct sockaddr_storage from;
	struct dmp_pair *pair;
	bool unannounced;
	int error;

	while (!READ_ONCE(listener->stop)) {
		look_after(listener);
		unannounced = announce(listener);
		if (!has_room(listener)) {
			wait_event_idle_timeout(listener->keeper_wait, has_room(listener),
						nsecs_to_jiffies(LOOK_NS) + 1);
			continue;
		}
		error = dmp_pair_door_take(listener->door, look_again_ns(listener, unannounced),
					   &from, &pair);
		if (!error)
			receive(listener, pair, &from);
		else if (error == -ESTALE)
			break;
		else if (error != -ETIMEDOUT)
			schedule_timeout_idle(1);	/* out of memory, mostly */
	}
	/* A device that goes waits for this. Whoever destroys the listener stops us. */
	send_all_away(listener);
	wait_event_idle(listener->keeper_wait, kthread_should_stop());
	return 0;
}

static void stop(struct dmp_listener *listener)
{
	dmp_pair_door_shut(listener->door);
	kthread_stop(listener->keeper);
	send_all_away(listener);	/* one who never ran did not */
	dmp_pair_door_close(listener->door);
}

/* ---- made and destroyed */

static int check(const struct dmp_listen *listen, const struct sockaddr_storage *address)
{
	if (listen->secret_bytes > DMP_SECRET_BYTES || listen->backlog > BACKLOG_MAX)
		return -EINVAL;
	if (listen->flags & DMP_REQUIRE_PATH ?
		    listen->path == DMP_PATH_NONE || listen->path > DMP_PATH_PEER :
		    listen->path != 0)
		return -EINVAL;
	/* Whoever reaches the port would be let in. */
	if (listen->secret_bytes == 0 &&
	    (listen->flags & DMP_ENCRYPT || !dmp_address_is_loopback(address)))
		return -EPERM;
	if (listen->flags & DMP_ENCRYPT)
		return -EOPNOTSUPP;
	if (listen->path != DMP_PATH_NONE && listen->path != DMP_PATH_VERBS)
		return -ENODEV;
	return 0;
}

static int check_channel(struct dmp_plane *plane, u32 id)
{
	int error;

	down_read(&plane->lock);
	dmp_plane_use_locked(plane, id, DMP_OBJECT_CHANNEL, &error);
	up_read(&plane->lock);
	return error;
}

/* Findable from here on. */
static int publish(struct dmp_plane *plane, struct dmp_listener *listener, u32 *id)
{
	int error;

	listener->object.type = DMP_OBJECT_LISTENER;
	down_write(&plane->lock);
	dmp_plane_use_locked(plane, listener->channel_id, DMP_OBJECT_CHANNEL, &error);
	if (!error && plane->listeners >= DMP_LISTENERS_MAX)
		error = -ENOSPC;
	if (!error)
		error = dmp_plane_insert_locked(plane, &listener->object);
	if (!error) {
		dmp_lifetime_move(&listener->object.state, DMP_STATE_LIVE);
		plane->listeners++;
		*id = listener->object.id;
		/* Not earlier: events name its id. Not later: it may be destroyed at once. */
		wake_up_process(listener->keeper);
	}
	up_write(&plane->lock);
	return error;
}

static struct dmp_listener *new_listener(struct dmp_plane *plane, const struct dmp_listen *listen)
{
	struct dmp_listener *listener = ERR_PTR(-ENOSPC);
	u32 state;

	if ((u32)atomic_inc_return(&listeners_total) <= DMP_LISTENERS_TOTAL) {
		listener = kvzalloc(sizeof(*listener), GFP_KERNEL_ACCOUNT);
		if (!listener)
			listener = ERR_PTR(-ENOMEM);
	}
	if (IS_ERR(listener)) {
		atomic_dec(&listeners_total);
		return listener;
	}
	listener->plane = plane;
	listener->channel_id = listen->channel_id;
	listener->backlog = listen->backlog ?: BACKLOG_DEFAULT;
	listener->secret.count = listen->secret_bytes;
	memcpy(listener->secret.bytes, listen->secret, listen->secret_bytes);
	refcount_set(&listener->references, 1);
	mutex_init(&listener->lock);
	init_waitqueue_head(&listener->takers);
	init_waitqueue_head(&listener->keeper_wait);
	for (state = 0; state < VISITOR_STATES; state++)
		INIT_LIST_HEAD(&listener->visitors[state]);
	return listener;
}

void dmp_listener_put(struct dmp_listener *listener)
{
	if (!refcount_dec_and_test(&listener->references))
		return;
	mutex_destroy(&listener->lock);
	kvfree_sensitive(listener, sizeof(*listener));
	atomic_dec(&listeners_total);
}

int dmp_listener_create(struct dmp_plane *plane, void *argument)
{
	struct dmp_listen *listen = argument;
	struct sockaddr_storage address;
	struct dmp_listener *listener;
	int error = dmp_address_parse(listen->address, true, &address);

	if (!error)
		error = check(listen, &address);
	if (!error)
		error = check_channel(plane, listen->channel_id);
	if (error)
		return error;
	listener = new_listener(plane, listen);
	if (IS_ERR(listener))
		return PTR_ERR(listener);
	error = dmp_pair_door_open(&address, listener->backlog, &listener->door);
	if (error)
		goto err_put;
	listener->keeper = kthread_create(keep_door, listener, "dmaplane-door:%d", plane->owner);
	if (IS_ERR(listener->keeper)) {
		error = PTR_ERR(listener->keeper);
		goto err_door;
	}
	error = publish(plane, listener, &listen->listener_id);
	if (error)
		goto err_keeper;
	dmp_address_print(&address, listen->bound_address);
	return 0;

err_keeper:
	kthread_stop(listener->keeper);
err_door:
	dmp_pair_door_shut(listener->door);
	dmp_pair_door_close(listener->door);
err_put:
	dmp_listener_put(listener);
	return error;
}

static void withdraw_locked(struct dmp_plane *plane, struct dmp_object *object)
{
	lockdep_assert_held_write(&plane->lock);
	dmp_lifetime_move(&object->state, DMP_STATE_DEAD);
	dmp_plane_remove_locked(plane, object);
	plane->listeners--;
}

int dmp_listener_destroy(struct dmp_plane *plane, void *argument)
{
	const struct dmp_destroy *destroy = argument;
	struct dmp_object *object;
	int error = 0;

	if (!(destroy->flags & DMP_DESTROY_DRAIN) && destroy->deadline_ns != 0)
		return -EINVAL;
	down_write(&plane->lock);
	object = dmp_plane_use_locked(plane, destroy->id, DMP_OBJECT_LISTENER, &error);
	if (object)
		withdraw_locked(plane, object);
	up_write(&plane->lock);
	if (!object)
		return error;
	/* Nothing holds a listener: who is inside is sent home, or keeps it until he leaves. */
	stop(container_of(object, struct dmp_listener, object));
	dmp_listener_put(container_of(object, struct dmp_listener, object));
	return 0;
}

void dmp_listener_close(struct dmp_plane *plane, struct dmp_object *object)
{
	down_write(&plane->lock);
	withdraw_locked(plane, object);
	up_write(&plane->lock);
	stop(container_of(object, struct dmp_listener, object));
	dmp_listener_put(container_of(object, struct dmp_listener, object));
}

/* ---- ACCEPT */

static struct dmp_listener *enter(struct dmp_plane *plane, u32 id, int *error)
{
	struct dmp_listener *listener = NULL;
	struct dmp_object *object;

	down_read(&plane->lock);
	object = dmp_plane_use_locked(plane, id, DMP_OBJECT_LISTENER, error);
	if (object) {
		listener = container_of(object, struct dmp_listener, object);
		refcount_inc(&listener->references);
	}
	up_read(&plane->lock);
	return listener;
}

/* Oldest first, but not twice the same origin in a row while others wait: 0, -EAGAIN, -ESTALE. */
static int pop(struct dmp_listener *listener, struct dmp_arrival *arrival)
{
	struct visitor *visitor, *chosen = NULL;
	int error = -EAGAIN;

	mutex_lock(&listener->lock);
	list_for_each_entry(visitor, &listener->visitors[QUEUED], list) {
		if (!chosen)
			chosen = visitor;
		if (dmp_origin_is_next(&listener->origins, visitor->arrival.origin)) {
			chosen = visitor;
			break;
		}
	}
	if (listener->stop) {
		error = -ESTALE;
	} else if (chosen) {
		dmp_origin_serve(&listener->origins, chosen->arrival.origin);
		remove_locked(listener, chosen, QUEUED);
		*arrival = chosen->arrival;
		error = 0;
	}
	mutex_unlock(&listener->lock);
	if (error)
		return error;
	kfree(chosen);
	wake_up_all(&listener->keeper_wait);
	return 0;
}

int dmp_listener_take(struct dmp_plane *plane, u32 id, u64 deadline_ns,
		      struct dmp_listener **found, struct dmp_arrival *arrival)
{
	bool past = deadline_ns != 0 && deadline_ns <= ktime_get_ns();
	DEFINE_WAIT_FUNC(wait, woken_wake_function);
	struct dmp_listener *listener;
	int error, slept = 0;

	listener = enter(plane, id, &error);
	if (!listener)
		return error;
	add_wait_queue(&listener->takers, &wait);
	for (;;) {
		error = pop(listener, arrival);
		if (error != -EAGAIN || past)
			break;
		if (slept) {
			error = slept;
			break;
		}
		slept = dmp_sleep_until(&wait, dmp_deadline_time(deadline_ns));
	}
	remove_wait_queue(&listener->takers, &wait);
	if (error)
		dmp_listener_put(listener);
	else
		*found = listener;
	return error;
}

const struct dmp_secret *dmp_listener_secret(const struct dmp_listener *listener)
{
	return &listener->secret;
}

void dmp_listener_judge(struct dmp_listener *listener, u64 origin, bool proved)
{
	mutex_lock(&listener->lock);
	dmp_origin_judge(&listener->origins, origin, proved, ktime_get_ns());
	mutex_unlock(&listener->lock);
}
