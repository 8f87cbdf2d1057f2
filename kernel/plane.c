// SPDX-License-Identifier: GPL-2.0
/* plane.c - opening, closing, mapping and waiting on a plane; its table of objects */
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/random.h>
#include <linux/sched.h>
#include <linux/slab.h>

#include "buffer.h"
#include "endpoint_kernel.h"
#include "lifetime.h"
#include "listener.h"
#include "memory.h"
#include "network.h"
#include "plane.h"
#include "trace.h"

LIST_HEAD(dmp_planes);
DEFINE_MUTEX(dmp_planes_lock);
DECLARE_WAIT_QUEUE_HEAD(dmp_released_wait);

void dmp_released(void)
{
	/* Full barrier: either we see who drains, or who drains sees that this holder went. */
	if (wq_has_sleeper(&dmp_released_wait))
		wake_up_all(&dmp_released_wait);
}

static int plane_open(struct inode *inode, struct file *file)
{
	struct dmp_plane *plane = kzalloc(sizeof(*plane), GFP_KERNEL_ACCOUNT);

	if (!plane)
		return -ENOMEM;
	get_random_bytes(&plane->incarnation, sizeof(plane->incarnation));
	plane->owner = task_tgid_nr(current);
	init_rwsem(&plane->lock);
	xa_init_flags(&plane->objects, XA_FLAGS_ACCOUNT);
	plane->id_next = 1;
	dmp_region_open(plane);
	init_waitqueue_head(&plane->poll_wait);
	file->private_data = plane;
	/* One space for all nodes of the device, so that revoked memory is zapped in one go. */
	file->f_mapping = dmp_mapping_space();
	mutex_lock(&dmp_planes_lock);
	list_add_tail(&plane->planes, &dmp_planes);
	mutex_unlock(&dmp_planes_lock);
	trace_dmp_plane_open(plane);
	return nonseekable_open(inode, file);
}

static void free_object(struct dmp_plane *plane, struct dmp_object *object)
{
	switch (object->type) {
	case DMP_OBJECT_BUFFER:
		dmp_buffer_free(plane, container_of(object, struct dmp_buffer, object));
		break;
	case DMP_OBJECT_REGION:
		dmp_region_free(plane, container_of(object, struct dmp_region, object));
		break;
	case DMP_OBJECT_REMOTE:
		dmp_remote_free(container_of(object, struct dmp_remote, object));
		break;
	case DMP_OBJECT_ENDPOINT:
		dmp_endpoint_free(dmp_endpoint_of(object));
		break;
	}
}

/* Buffers after all that names them. */
static void free_objects(struct dmp_plane *plane, bool buffers)
{
	struct dmp_object *object;
	unsigned long id;

	xa_for_each(&plane->objects, id, object) {
		if ((object->type == DMP_OBJECT_BUFFER) != buffers)
			continue;
		down_write(&plane->lock);
		dmp_plane_remove_locked(plane, object);
		up_write(&plane->lock);
		free_object(plane, object);
		cond_resched();
	}
}

/* Nobody is inside and nothing is mapped: every call and mapping held the file. */
static int plane_release(struct inode *inode, struct file *file)
{
	struct dmp_plane *plane = file->private_data;
	struct dmp_object *object;
	unsigned long id;

	mutex_lock(&dmp_planes_lock);
	list_del(&plane->planes);
	mutex_unlock(&dmp_planes_lock);
	/* Nobody comes in any more. */
	xa_for_each(&plane->objects, id, object)
		if (object->type == DMP_OBJECT_LISTENER)
			dmp_listener_close(plane, object);
	/*
	 * Channels next: their operations hold buffers. All are told to stop before the first
	 * one is waited for, or each would wait for its turn among all the others that copy.
	 */
	xa_for_each_marked(&plane->objects, id, object, DMP_MARK_CHANNEL) {
		dmp_network_end((struct dmp_kernel_channel *)object);
		dmp_channel_cancel_begin((struct dmp_kernel_channel *)object);
	}
	xa_for_each(&plane->objects, id, object) {
		if (object->type != DMP_OBJECT_CHANNEL)
			continue;
		down_write(&plane->lock);
		dmp_plane_remove_locked(plane, object);
		up_write(&plane->lock);
		dmp_channel_free(plane, (struct dmp_kernel_channel *)object);
	}
	/* Connections have gone with their channels: regions and endpoints are only names. */
	free_objects(plane, false);
	free_objects(plane, true);
	dmp_region_close(plane);
	xa_destroy(&plane->objects);
	trace_dmp_plane_close(plane);
	kfree(plane);
	return 0;
}

static long plane_ioctl(struct file *file, unsigned int number, unsigned long argument)
{
	return dmp_command(file->private_data, number, (void __user *)argument);
}

static int plane_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct dmp_plane *plane = file->private_data;
	u64 offset = (u64)vma->vm_pgoff << PAGE_SHIFT;
	struct dmp_object *object;
	int error;

	if (offset & (DMP_MAP_UNIT - 1) || offset / DMP_MAP_UNIT > U32_MAX)
		return -EINVAL;
	down_read(&plane->lock);
	object = xa_load(&plane->objects, offset / DMP_MAP_UNIT);
	error = object ? dmp_lifetime_use(object->state) : -ENOENT;
	if (!error && object->type == DMP_OBJECT_BUFFER)
		error = dmp_buffer_map(plane, (struct dmp_buffer *)object, vma);
	else if (!error && object->type == DMP_OBJECT_CHANNEL)
		error = dmp_channel_map(plane, (struct dmp_kernel_channel *)object, vma);
	else if (!error)
		error = -ENOENT;
	up_read(&plane->lock);
	return error;
}

static __poll_t plane_poll(struct file *file, poll_table *wait)
{
	struct dmp_plane *plane = file->private_data;
	struct dmp_object *object;
	__poll_t ready = 0;
	unsigned long id;

	poll_wait(file, &plane->poll_wait, wait);
	down_read(&plane->lock);
	xa_for_each_marked(&plane->objects, id, object, DMP_MARK_CHANNEL)
		if (dmp_channel_has_unread((struct dmp_kernel_channel *)object)) {
			ready = EPOLLIN | EPOLLRDNORM;
			break;
		}
	up_read(&plane->lock);
	return ready;
}

const struct file_operations dmp_plane_fops = {
	.owner = THIS_MODULE,
	.open = plane_open,
	.release = plane_release,
	.unlocked_ioctl = plane_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.mmap = plane_mmap,
	.poll = plane_poll,
	.llseek = noop_llseek,
};

int dmp_plane_insert_locked(struct dmp_plane *plane, struct dmp_object *object)
{
	int error;

	lockdep_assert_held_write(&plane->lock);
	if (plane->id_next == 0)
		return -ENOSPC;	/* every id of this fd has been used: none is used twice */
	error = xa_insert(&plane->objects, plane->id_next, object, GFP_KERNEL_ACCOUNT);
	if (error)
		return error;
	if (object->type == DMP_OBJECT_CHANNEL)
		xa_set_mark(&plane->objects, plane->id_next, DMP_MARK_CHANNEL);
	if (object->type == DMP_OBJECT_ENDPOINT)
		xa_set_mark(&plane->objects, plane->id_next, DMP_MARK_ENDPOINT);
	object->id = plane->id_next++;
	return 0;
}

void dmp_plane_remove_locked(struct dmp_plane *plane, struct dmp_object *object)
{
	lockdep_assert_held_write(&plane->lock);
	xa_erase(&plane->objects, object->id);
}

struct dmp_object *dmp_plane_find_locked(struct dmp_plane *plane, u32 id, u32 type)
{
	struct dmp_object *object;

	lockdep_assert_held(&plane->lock);
	object = xa_load(&plane->objects, id);
	return object && object->type == type ? object : NULL;
}

struct dmp_object *dmp_plane_use_locked(struct dmp_plane *plane, u32 id, u32 type, int *error)
{
	struct dmp_object *object;

	lockdep_assert_held(&plane->lock);
	object = dmp_plane_find_locked(plane, id, type);
	*error = object ? dmp_lifetime_use(object->state) : -ENOENT;
	return *error ? NULL : object;
}

ktime_t dmp_deadline_time(u64 deadline_ns)
{
	if (deadline_ns == 0 || deadline_ns > KTIME_MAX)
		return KTIME_MAX;
	return ns_to_ktime(deadline_ns);
}

int dmp_sleep_until(struct wait_queue_entry *wait, ktime_t deadline)
{
	ktime_t now = ktime_get();
	long timeout = MAX_SCHEDULE_TIMEOUT;

	if (signal_pending(current))
		return -EINTR;
	if (ktime_compare(now, deadline) >= 0)
		return -ETIMEDOUT;
	if (deadline != KTIME_MAX)
		timeout = nsecs_to_jiffies(ktime_to_ns(ktime_sub(deadline, now))) + 1;
	wait_woken(wait, TASK_INTERRUPTIBLE, timeout);
	return 0;
}
