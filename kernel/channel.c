// SPDX-License-Identifier: GPL-2.0
/*
 * channel.c - the life of a channel: created, mapped, asked, destroyed
 *
 * The rings are ordinary pages with one kernel address. A mapping has its own reference on
 * each page, and one on the count of mappings, so it can outlive the channel.
 */
#include <linux/cpumask.h>
#include <linux/eventfd.h>
#include <linux/mm.h>
#include <linux/nodemask.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "compat.h"
#include "endpoint_kernel.h"
#include "lifetime.h"
#include "network.h"
#include "trace.h"

#define SPIN_US_MAX 1000000U

/* Channels of all planes, against dmp_channels_total_max: each has a thread. */
static atomic_t channels_total = ATOMIC_INIT(0);

static bool cpu_is_allowed(s32 cpu)
{
	return cpu >= 0 && (u32)cpu < nr_cpu_ids && cpu_online(cpu) &&
	       cpumask_test_cpu(cpu, current->cpus_ptr);
}

static bool node_is_allowed(s32 node)
{
	return node >= 0 && node < MAX_NUMNODES && node_online(node) &&
	       cpumask_intersects(cpumask_of_node(node), current->cpus_ptr);
}

static int check_create(const struct dmp_channel_create *create)
{
	u32 completion_slots = create->completion_slots;

	if (!is_power_of_2(create->slots) || create->slots > DMP_SLOTS_MAX)
		return -EINVAL;
	if (completion_slots != 0 &&
	    (!is_power_of_2(completion_slots) || completion_slots < create->slots ||
	     completion_slots > DMP_SLOTS_MAX))
		return -EINVAL;
	if (create->workers > DMP_WORKERS_MAX)
		return -EINVAL;
	if (create->flags & DMP_CHANNEL_SPIN ? create->spin_us > SPIN_US_MAX :
					       create->spin_us != 0)
		return -EINVAL;
	if (!(create->flags & DMP_CHANNEL_EVENTFD) && create->eventfd != 0)
		return -EINVAL;
	switch (create->flags & (DMP_CHANNEL_BIND_CPU | DMP_CHANNEL_BIND_NODE)) {
	case DMP_CHANNEL_BIND_CPU:
		return create->node == 0 && cpu_is_allowed(create->cpu) ? 0 : -EINVAL;
	case DMP_CHANNEL_BIND_NODE:
		return create->cpu == 0 && node_is_allowed(create->node) ? 0 : -EINVAL;
	case 0:
		return create->cpu == 0 && create->node == 0 ? 0 : -EINVAL;
	default:
		return -EINVAL;
	}
}

static void free_mappings(struct kref *references)
{
	kfree(container_of(references, struct dmp_ring_mappings, references));
}

static void ring_mapping_open(struct vm_area_struct *vma)
{
	struct dmp_ring_mappings *mappings = vma->vm_private_data;
	struct dmp_plane *plane = vma->vm_file->private_data;

	kref_get(&mappings->references);
	atomic_inc(&mappings->alive);
	atomic_inc(&plane->mappings);
	trace_dmp_map(plane, &mappings->object, vma->vm_end - vma->vm_start);
}

static void ring_mapping_close(struct vm_area_struct *vma)
{
	struct dmp_ring_mappings *mappings = vma->vm_private_data;
	struct dmp_plane *plane = vma->vm_file->private_data;

	trace_dmp_unmap(plane, &mappings->object, vma->vm_end - vma->vm_start);
	atomic_dec(&plane->mappings);
	atomic_dec(&mappings->alive);
	kref_put(&mappings->references, free_mappings);
}

static const struct vm_operations_struct ring_mapping_operations = {
	.open = ring_mapping_open,
	.close = ring_mapping_close,
};

int dmp_channel_map(struct dmp_plane *plane, struct dmp_kernel_channel *channel,
		    struct vm_area_struct *vma)
{
	size_t bytes = vma->vm_end - vma->vm_start;
	size_t done;
	int error;

	lockdep_assert_held(&plane->lock);
	if (bytes > channel->rings_bytes || !(vma->vm_flags & VM_SHARED) ||
	    !(vma->vm_flags & VM_WRITE))
		return -EINVAL;
	vm_flags_set(vma, VM_DONTEXPAND | VM_DONTDUMP);
	for (done = 0; done < bytes; done += PAGE_SIZE) {
		error = vm_insert_page(vma, vma->vm_start + done,
				       vmalloc_to_page((char *)channel->rings + done));
		if (error)
			return error;	/* mmap takes away what it has got */
	}
	vma->vm_private_data = channel->mappings;
	vma->vm_ops = &ring_mapping_operations;
	ring_mapping_open(vma);
	return 0;
}

/* As much as is charged. The largest channel has some 15 MiB, so it counts. */
static u64 bytes_of(const struct dmp_channel_create *create, u32 completion_slots)
{
	return create->map_bytes + dmp_channel_bytes(completion_slots) +
	       completion_slots * sizeof(struct dmp_holds);
}

/* Rings, machine and what goes with each operation. What it made is freed by free_memory(). */
static int allocate(struct dmp_kernel_channel *channel, struct dmp_channel_create *create)
{
	u32 completion_slots = create->completion_slots ?:
			       min(create->slots * 2, DMP_SLOTS_MAX);
	gfp_t gfp = GFP_KERNEL_ACCOUNT | __GFP_ZERO | __GFP_RETRY_MAYFAIL | __GFP_NOWARN;
	char *rings;
	int error;

	create->submissions_offset = PAGE_ALIGN(sizeof(struct dmp_ring_control));
	create->completions_offset = create->submissions_offset +
		PAGE_ALIGN(create->slots * sizeof(struct dmp_submission));
	create->map_bytes = create->completions_offset +
		PAGE_ALIGN(completion_slots * sizeof(struct dmp_completion));
	error = dmp_charge(bytes_of(create, completion_slots));
	if (error)
		return error;
	channel->charged_bytes = bytes_of(create, completion_slots);
	channel->rings_bytes = create->map_bytes;
	rings = __vmalloc(channel->rings_bytes, gfp);
	channel->rings = rings;
	channel->mappings = kzalloc(sizeof(*channel->mappings), GFP_KERNEL_ACCOUNT);
	channel->machine_memory = kvmalloc(dmp_channel_bytes(completion_slots), gfp);
	channel->holds = kvmalloc_array(completion_slots, sizeof(*channel->holds), gfp);
	channel->latency = kvmalloc(sizeof(*channel->latency), gfp);
	if (channel->mappings)
		kref_init(&channel->mappings->references);
	if (!rings || !channel->mappings || !channel->machine_memory || !channel->holds ||
	    !channel->latency)
		return -ENOMEM;
	channel->control = channel->rings;
	return dmp_channel_init(&channel->machine, channel->machine_memory, channel->control,
				(void *)(rings + create->submissions_offset), create->slots,
				(void *)(rings + create->completions_offset),
				completion_slots, channel->latency);
}

static void free_memory(struct dmp_kernel_channel *channel)
{
	if (channel->eventfd)
		eventfd_ctx_put(channel->eventfd);
	if (channel->mappings)
		kref_put(&channel->mappings->references, free_mappings);
	kvfree(channel->latency);
	kvfree(channel->holds);
	kvfree(channel->machine_memory);
	vfree(channel->rings);
	dmp_uncharge(channel->charged_bytes);
	mutex_destroy(&channel->lock);
	kfree(channel);
	atomic_dec(&channels_total);
}

static int take_eventfd(struct dmp_kernel_channel *channel, int fd)
{
	struct eventfd_ctx *context = eventfd_ctx_fdget(fd);

	if (IS_ERR(context))
		return PTR_ERR(context) == -EBADF ? -EINVAL : PTR_ERR(context);
	channel->eventfd = context;
	return 0;
}

static int publish(struct dmp_plane *plane, struct dmp_kernel_channel *channel,
		   struct dmp_channel_create *create)
{
	int error = -ENOSPC;

	channel->object.type = DMP_OBJECT_CHANNEL;
	down_write(&plane->lock);
	/* Before it can be found; nobody is told of what was revoked before he was there. */
	channel->revocations_told = plane->revocations;
	dmp_lifetime_move(&channel->object.state, DMP_STATE_LIVE);
	if (plane->channels < DMP_CHANNELS_MAX)
		error = dmp_plane_insert_locked(plane, &channel->object);
	if (!error) {
		channel->mappings->object = channel->object;
		create->channel_id = channel->object.id;
		create->map_offset = channel->object.id * DMP_MAP_UNIT;
		plane->channels++;
		trace_dmp_channel_create(channel);
	}
	up_write(&plane->lock);		/* from here on another thread may destroy it */
	return error;
}

static struct dmp_kernel_channel *new_channel(struct dmp_plane *plane,
					      const struct dmp_channel_create *create)
{
	struct dmp_kernel_channel *channel;

	if (atomic_inc_return(&channels_total) > READ_ONCE(dmp_channels_total_max)) {
		atomic_dec(&channels_total);
		return ERR_PTR(-ENOSPC);
	}
	channel = kzalloc(sizeof(*channel), GFP_KERNEL_ACCOUNT);
	if (!channel) {
		atomic_dec(&channels_total);
		return ERR_PTR(-ENOMEM);
	}
	channel->plane = plane;
	channel->cpu = create->flags & DMP_CHANNEL_BIND_CPU ? create->cpu : -1;
	channel->node = create->flags & DMP_CHANNEL_BIND_NODE ? create->node : -1;
	channel->workers = create->workers ?: 1;
	channel->spin_us = create->spin_us;
	mutex_init(&channel->lock);
	init_llist_head(&channel->stirring);
	init_waitqueue_head(&channel->done_wait);
	return channel;
}

int dmp_channel_create(struct dmp_plane *plane, void *argument)
{
	struct dmp_channel_create *create = argument;
	struct dmp_kernel_channel *channel;
	int error = check_create(create);

	if (error)
		return error;
	channel = new_channel(plane, create);
	if (IS_ERR(channel))
		return PTR_ERR(channel);
	error = allocate(channel, create);
	if (!error && create->flags & DMP_CHANNEL_EVENTFD)
		error = take_eventfd(channel, create->eventfd);
	if (error)
		goto err_memory;
	error = dmp_worker_start(channel);
	if (error)
		goto err_memory;
	error = publish(plane, channel, create);
	if (error)
		goto err_worker;
	return 0;

err_worker:
	dmp_worker_stop(channel);
err_memory:
	free_memory(channel);
	return error;
}

int dmp_channel_query(struct dmp_plane *plane, void *argument)
{
	struct dmp_channel_query *query = argument;
	struct dmp_kernel_channel *channel;
	int error;

	down_read(&plane->lock);
	channel = (struct dmp_kernel_channel *)
		dmp_plane_find_locked(plane, query->channel_id, DMP_OBJECT_CHANNEL);
	if (!channel) {
		up_read(&plane->lock);
		return -ENOENT;
	}
	query->state = channel->object.state;
	query->slots = channel->machine.slots;
	query->completion_slots = channel->machine.completion_slots;
	query->cpu = channel->cpu;
	query->node = channel->node;
	query->mappings = atomic_read(&channel->mappings->alive);
	query->workers = channel->workers;
	mutex_lock(&channel->lock);
	query->operations = channel->machine.in_flight;
	error = dmp_channel_unread(&channel->machine, &query->unread);
	mutex_unlock(&channel->lock);
	up_read(&plane->lock);
	return error;
}

static void send_waiters_home(struct dmp_kernel_channel *channel)
{
	mutex_lock(&channel->lock);
	channel->closing = true;
	mutex_unlock(&channel->lock);
	wake_up_all(&channel->done_wait);
}

/* What it counted stays in the plane's counters. Nothing is in flight any more. */
static void retire_locked(struct dmp_plane *plane, struct dmp_kernel_channel *channel)
{
	struct dmp_channel_counters *sum = &plane->retired;
	const struct dmp_channel_counters *counters = &channel->machine.counters;

	lockdep_assert_held_write(&plane->lock);
	mutex_lock(&channel->lock);
	sum->submissions += counters->submissions;
	sum->completions += counters->completions;
	sum->errors += counters->errors;
	sum->cancelled += counters->cancelled;
	sum->timeouts += counters->timeouts;
	sum->bytes += counters->bytes;
	sum->checksum_bytes += counters->checksum_bytes;
	sum->batches += counters->batches;
	sum->events += counters->events;
	plane->retired_wakeups += channel->wakeups;
	mutex_unlock(&channel->lock);
	plane->channels--;
}

/* The channel in any state, entered, and refusing new use from here on. */
static struct dmp_kernel_channel *close_for_use(struct dmp_plane *plane, u32 id)
{
	struct dmp_object *object;

	down_write(&plane->lock);
	object = dmp_plane_find_locked(plane, id, DMP_OBJECT_CHANNEL);
	if (object) {
		atomic_inc(&((struct dmp_kernel_channel *)object)->users);
		if (object->state == DMP_STATE_LIVE)
			dmp_lifetime_move(&object->state, DMP_STATE_DRAINING);
	}
	up_write(&plane->lock);
	return (struct dmp_kernel_channel *)object;
}

int dmp_channel_destroy(struct dmp_plane *plane, void *argument)
{
	struct dmp_destroy *destroy = argument;
	bool drain = destroy->flags & DMP_DESTROY_DRAIN;
	struct dmp_kernel_channel *channel;
	int error = 0;

	if (!drain && destroy->deadline_ns != 0)
		return -EINVAL;
	channel = close_for_use(plane, destroy->id);
	if (!channel)
		return -ENOENT;
	if (drain)
		error = dmp_channel_drain(channel, destroy->deadline_ns);
	else
		dmp_channel_cancel_everything(channel);
	if (error) {
		dmp_channel_put(channel);
		return error;
	}
	down_write(&plane->lock);
	if (channel->object.state == DMP_STATE_DEAD) {	/* another destroyer was first */
		up_write(&plane->lock);
		dmp_channel_put(channel);
		return -ENOENT;
	}
	dmp_lifetime_move(&channel->object.state, DMP_STATE_DEAD);
	retire_locked(plane, channel);
	dmp_plane_remove_locked(plane, &channel->object);
	dmp_endpoint_forget_channel_locked(plane, channel);
	up_write(&plane->lock);
	send_waiters_home(channel);
	dmp_network_end(channel);
	/* Only we are inside: nobody can come in, and those who waited have gone. */
	wait_event(dmp_released_wait, atomic_read_acquire(&channel->users) == 1);
	dmp_channel_free(plane, channel);
	return 0;
}

void dmp_channel_free(struct dmp_plane *plane, struct dmp_kernel_channel *channel)
{
	trace_dmp_channel_destroy(channel);
	/* Connections first: what is cancelled on one may have to wait for its peer. */
	dmp_network_end(channel);
	dmp_channel_cancel_everything(channel);
	dmp_worker_stop(channel);
	dmp_network_free(channel);
	free_memory(channel);
}
