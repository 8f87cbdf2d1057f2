// SPDX-License-Identifier: GPL-2.0
/*
 * rdma_door.c - listening, and callers until they are taken; see rdma_pair.h
 *
 * A caller is an identifier that rdma_cm made for a request nobody has answered. It is on the
 * list `waiting` until take() has it, or on `gone` when its peer or its device has left; a work
 * item destroys those, and the door's own identifier when its device is removed: rdma_cm waits
 * for that, and its handler may not do it. So the handler never destroys but the call that
 * it turns away at once.
 *
 * lock, a spinlock, is a leaf; the lists, `id`, `shut` and `caller->gone` are under it. Between
 * leaving the list and becoming a pair, a caller is the taker's alone, and the handler may only
 * say that it is gone.
 */
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ktime.h>
#include <linux/nsproxy.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <rdma/ib_cm.h>

#include "rdma_layout.h"

struct dmp_pair_door {
	struct dmp_pair_ear ear;
	u32 backlog;			/* immutable */
	spinlock_t lock;
	/* protected by lock */
	struct rdma_cm_id *id;		/* NULL: closed, or its device is gone */
	struct list_head waiting;
	struct list_head gone;
	u32 count;			/* waiting */
	bool shut;

	wait_queue_head_t called;
	struct work_struct sweep;
};

struct dmp_pair_caller {
	struct dmp_pair_ear ear;
	struct dmp_pair_door *door;	/* as long as it is on a list of it */
	struct list_head callers;
	struct rdma_cm_id *id;
	struct sockaddr_storage from;
	struct dmp_rdma_hello hello;
	u8 reads;			/* what it will have under way, */
	u8 depth;			/* and can answer */
	bool listed;
	bool left;
};

/* ---- rdma_cm's events, in its threads */

static int caller_hear(struct dmp_pair_ear *ear, struct rdma_cm_id *id,
		       struct rdma_cm_event *event)
{
	struct dmp_pair_caller *caller = container_of(ear, struct dmp_pair_caller, ear);
	struct dmp_pair_door *door = caller->door;

	switch (event->event) {
	case RDMA_CM_EVENT_REJECTED:
	case RDMA_CM_EVENT_UNREACHABLE:
	case RDMA_CM_EVENT_CONNECT_ERROR:
	case RDMA_CM_EVENT_DISCONNECTED:
	case RDMA_CM_EVENT_DEVICE_REMOVAL:
		spin_lock(&door->lock);
		caller->left = true;
		if (caller->listed) {
			list_move_tail(&caller->callers, &door->gone);
			caller->listed = false;
			door->count--;
			queue_work(system_unbound_wq, &door->sweep);
		}
		spin_unlock(&door->lock);
		break;
	default:
		break;
	}
	return 0;
}

static struct dmp_pair_caller *make_caller(struct dmp_pair_door *door, struct rdma_cm_id *id,
					   const struct rdma_cm_event *event)
{
	struct dmp_pair_caller *caller = kzalloc(sizeof(*caller), GFP_KERNEL);

	if (!caller)
		return NULL;
	caller->ear.hear = caller_hear;
	caller->door = door;
	caller->id = id;
	caller->from = id->route.addr.dst_addr;
	caller->reads = event->param.conn.responder_resources;
	caller->depth = event->param.conn.initiator_depth;
	return caller;
}

/* Nonzero: rdma_cm destroys what stands for the call. */
static int turn_away(struct rdma_cm_id *id)
{
	u8 bytes[DMP_RDMA_HELLO_BYTES];

	dmp_pair_put_hello(id->device, bytes);
	rdma_reject(id, bytes, sizeof(bytes), IB_CM_REJ_CONSUMER_DEFINED);
	return -ECONNREFUSED;
}

static int called(struct dmp_pair_door *door, struct rdma_cm_id *id,
		  const struct rdma_cm_event *event)
{
	struct dmp_rdma_hello hello;
	struct dmp_pair_caller *caller;
	bool kept = false;

	if (dmp_rdma_get_hello(event->param.conn.private_data,
			       event->param.conn.private_data_len, &hello))
		return turn_away(id);
	caller = make_caller(door, id, event);
	if (!caller)
		return turn_away(id);
	caller->hello = hello;
	spin_lock(&door->lock);
	if (!door->shut && door->count < door->backlog) {
		id->context = &caller->ear;
		list_add_tail(&caller->callers, &door->waiting);
		caller->listed = true;
		door->count++;
		kept = true;
	}
	spin_unlock(&door->lock);
	if (!kept) {
		kfree(caller);
		return turn_away(id);
	}
	wake_up(&door->called);
	return 0;
}

static int door_hear(struct dmp_pair_ear *ear, struct rdma_cm_id *id, struct rdma_cm_event *event)
{
	struct dmp_pair_door *door = container_of(ear, struct dmp_pair_door, ear);

	if (event->event == RDMA_CM_EVENT_CONNECT_REQUEST)
		return called(door, id, event);
	if (event->event != RDMA_CM_EVENT_DEVICE_REMOVAL)
		return 0;
	spin_lock(&door->lock);
	door->shut = true;
	queue_work(system_unbound_wq, &door->sweep);
	spin_unlock(&door->lock);
	wake_up_all(&door->called);
	return 0;
}

/* ---- sweeping up */

static void free_caller(struct dmp_pair_caller *caller)
{
	/* Refuses the call, if it still waits for an answer. */
	rdma_destroy_id(caller->id);
	kfree(caller);
}

/* Whoever takes the identifier out destroys it; after that nobody calls here. */
static void close_identifier(struct dmp_pair_door *door)
{
	struct rdma_cm_id *id;

	spin_lock(&door->lock);
	id = door->id;
	door->id = NULL;
	spin_unlock(&door->lock);
	if (id)
		rdma_destroy_id(id);
}

static void sweep(struct work_struct *work)
{
	struct dmp_pair_door *door = container_of(work, struct dmp_pair_door, sweep);
	struct dmp_pair_caller *caller, *next;
	LIST_HEAD(gone);
	bool shut;

	spin_lock(&door->lock);
	list_splice_init(&door->gone, &gone);
	shut = door->shut;
	spin_unlock(&door->lock);
	list_for_each_entry_safe(caller, next, &gone, callers)
		free_caller(caller);
	if (shut)
		close_identifier(door);
}

/* ---- the door */

/* What rdma_cm says of an address, or (-EINVAL) of a device that went between two steps. */
static int listen_error(int error)
{
	switch (error) {
	case -EADDRNOTAVAIL:
		return -EHOSTUNREACH;
	case -EACCES:
		return -EPERM;
	case -EINVAL:
		return -ENODEV;
	default:
		return error;
	}
}

static int listen(struct dmp_pair_door *door, struct sockaddr_storage *here)
{
	struct rdma_cm_id *id;
	int error;

	id = rdma_create_id(current->nsproxy->net_ns, dmp_pair_hear, &door->ear, RDMA_PS_TCP,
			    IB_QPT_RC);
	if (IS_ERR(id))
		return PTR_ERR(id);
	error = rdma_bind_addr(id, (struct sockaddr *)here);
	if (!error)
		error = rdma_listen(id, door->backlog);
	if (!error)
		*here = id->route.addr.src_addr;
	/* Ours until here: the sweep would destroy it under us when the device goes. */
	spin_lock(&door->lock);
	if (door->shut)
		error = -ENODEV;
	if (!error)
		door->id = id;
	spin_unlock(&door->lock);
	if (error)
		rdma_destroy_id(id);
	return listen_error(error);
}

int dmp_pair_door_open(struct sockaddr_storage *here, u32 backlog, struct dmp_pair_door **opened)
{
	struct dmp_pair_door *door = kzalloc(sizeof(*door), GFP_KERNEL_ACCOUNT);
	int error;

	if (!door)
		return -ENOMEM;
	door->ear.hear = door_hear;
	door->backlog = backlog;
	spin_lock_init(&door->lock);
	INIT_LIST_HEAD(&door->waiting);
	INIT_LIST_HEAD(&door->gone);
	init_waitqueue_head(&door->called);
	INIT_WORK(&door->sweep, sweep);
	error = listen(door, here);
	if (error)
		dmp_pair_door_close(door);
	else
		*opened = door;
	return error;
}

void dmp_pair_door_shut(struct dmp_pair_door *door)
{
	spin_lock(&door->lock);
	door->shut = true;
	spin_unlock(&door->lock);
	wake_up_all(&door->called);
}

/* Context: may sleep. Nobody is in take(). */
void dmp_pair_door_close(struct dmp_pair_door *door)
{
	struct dmp_pair_caller *caller, *next;

	dmp_pair_door_shut(door);
	close_identifier(door);
	/* No new callers; those that wait may still leave, and the sweep be queued for them. */
	spin_lock(&door->lock);
	list_for_each_entry(caller, &door->waiting, callers)
		caller->listed = false;
	spin_unlock(&door->lock);
	list_for_each_entry_safe(caller, next, &door->waiting, callers)
		free_caller(caller);
	flush_work(&door->sweep);
	kfree(door);
}

/* ---- taking */

static int answer(struct dmp_pair *pair, const struct dmp_pair_caller *caller)
{
	u8 bytes[DMP_RDMA_HELLO_BYTES];
	struct rdma_conn_param param;
	int error = dmp_pair_make_queues(pair);

	if (error)
		return error;
	dmp_pair_set_peer(pair, &caller->hello);
	dmp_pair_fill_parameters(pair, &param, bytes);
	param.responder_resources = min(param.responder_resources, caller->reads);
	param.initiator_depth = min(param.initiator_depth, caller->depth);
	rdma_lock_handler(pair->id);
	error = rdma_accept(pair->id, &param);
	rdma_unlock_handler(pair->id);
	return error;
}

/* The caller becomes a pair, unless it has left. It is on no list. */
static int admit(struct dmp_pair_caller *caller, struct dmp_pair **taken)
{
	struct dmp_pair *pair = dmp_pair_make();
	int error;

	if (IS_ERR(pair)) {
		free_caller(caller);
		return PTR_ERR(pair);
	}
	rdma_lock_handler(caller->id);
	if (!caller->left) {
		pair->id = caller->id;
		caller->id->context = &pair->ear;
	}
	rdma_unlock_handler(caller->id);
	if (!pair->id) {
		dmp_pair_close(pair);
		free_caller(caller);
		return -ECONNRESET;
	}
	error = answer(pair, caller);
	kfree(caller);
	if (error)
		dmp_pair_close(pair);
	else
		*taken = pair;
	return error == -EINVAL ? -ECONNRESET : error;
}

static struct dmp_pair_caller *next_caller(struct dmp_pair_door *door)
{
	struct dmp_pair_caller *caller;

	spin_lock(&door->lock);
	caller = list_first_entry_or_null(&door->waiting, struct dmp_pair_caller, callers);
	if (caller) {
		list_del_init(&caller->callers);
		caller->listed = false;
		door->count--;
	}
	spin_unlock(&door->lock);
	return caller;
}

int dmp_pair_door_take(struct dmp_pair_door *door, u64 deadline_ns, struct sockaddr_storage *from,
		       struct dmp_pair **pair)
{
	struct dmp_pair_caller *caller;
	long left;

	for (;;) {
		left = wait_event_interruptible_timeout(door->called, READ_ONCE(door->shut) ||
							READ_ONCE(door->count),
							dmp_pair_ticks_until(deadline_ns));
		if (READ_ONCE(door->shut))
			return -ESTALE;
		caller = next_caller(door);
		if (caller) {
			*from = caller->from;
			return admit(caller, pair);
		}
		if (left <= 0)
			return dmp_pair_wait_error(left);
	}
}
