// SPDX-License-Identifier: GPL-2.0
/*
 * command.c - one row per command: who serves it, and who takes it back
 *
 * Copy in, refuse what must be refused (core/command.h), call the handler on our copy,
 * copy out. No lock is held while the caller's memory is touched.
 *
 * If the answer cannot be copied out, what the command made is taken back: an object by
 * its id, which nobody else can have been given since ids are never reused; a file before
 * it is installed.
 */
#include "command.h"

#include <linux/file.h>
#include <linux/nodemask.h>
#include <linux/uaccess.h>

#include "buffer.h"
#include "endpoint_kernel.h"
#include "listener.h"
#include "plane.h"
#include "rdma_device.h"

#define SERVED_EVERYWHERE                                                             \
	(DMP_CAP_HUGE | DMP_CAP_COHERENT | DMP_CAP_USER | DMP_CAP_PEER | DMP_CAP_EXPORT | \
	 DMP_CAP_EXPORT_DMABUF | DMP_CAP_IMPORT_DMABUF | DMP_CAP_EXPORT_TRACKED |         \
	 DMP_CAP_PLACEMENT | DMP_CAP_BIND | DMP_CAP_CHECKSUM | DMP_CAP_REVOKE)

struct service {
	int (*serve)(struct dmp_plane *plane, void *argument);
	int (*undo)(struct dmp_plane *plane, void *argument);	/* a *_DESTROY */
	u32 id_offset;		/* of the id that @undo takes */
	bool away;		/* about connections */
};

static int serve_query(struct dmp_plane *plane, void *argument)
{
	struct dmp_query *query = argument;

	query->abi_major = DMP_ABI_MAJOR;
	query->abi_minor = DMP_ABI_MINOR;
	query->capabilities = SERVED_EVERYWHERE;
	if (IS_ENABLED(CONFIG_X86))
		query->capabilities |= DMP_CAP_WRITE_COMBINE;
	query->fabrics = 1U << DMP_PATH_LOCAL | 1U << DMP_PATH_PEER;
	if (DMP_KERNEL_RDMA)
		query->capabilities |= DMP_CAP_REGION;
	if (dmp_rdma_is_there() && dmp_proof_is_possible()) {
		query->capabilities |= DMP_CAP_ENDPOINT;
		query->fabrics |= 1U << DMP_PATH_VERBS;
	}
	query->nodes = num_node_state(N_MEMORY);
	query->page_bytes = PAGE_SIZE;
	query->huge_page_bytes = PMD_SIZE;
	query->buffer_bytes_max = DMP_BUFFER_BYTES_MAX;
	query->buffers_max = DMP_BUFFERS_MAX;
	query->channels_max = DMP_CHANNELS_MAX;
	query->slots_max = DMP_SLOTS_MAX;
	query->endpoints_max = DMP_KERNEL_RDMA ? DMP_ENDPOINTS_MAX : 0;
	query->regions_max = DMP_KERNEL_RDMA ? DMP_REGIONS_MAX : 0;
	query->incarnation = plane->incarnation;
	memset(query->version, 0, sizeof(query->version));
	strscpy((char *)query->version, "kernel " DMP_VERSION, sizeof(query->version));
	return 0;
}

#define ROW(command) [_IOC_NR(command)]

static const struct service services[DMP_COMMAND_ROWS] = {
	ROW(DMP_QUERY) = { serve_query },
	ROW(DMP_TOPOLOGY) = { dmp_topology_fill },
	ROW(DMP_STATISTICS) = { dmp_statistics_read },
	ROW(DMP_HISTOGRAM) = { dmp_histogram_read },
	ROW(DMP_BUFFER_CREATE) = { dmp_buffer_create, dmp_buffer_destroy,
				   offsetof(struct dmp_buffer_create, buffer_id) },
	ROW(DMP_BUFFER_QUERY) = { dmp_buffer_query },
	ROW(DMP_BUFFER_DESTROY) = { dmp_buffer_destroy },
	ROW(DMP_BUFFER_SYNC) = { dmp_buffer_sync },
	ROW(DMP_BUFFER_EXPORT) = { dmp_buffer_export },
	ROW(DMP_BUFFER_IMPORT) = { dmp_buffer_import, dmp_buffer_destroy,
				   offsetof(struct dmp_buffer_import, buffer_id) },
	ROW(DMP_CHANNEL_CREATE) = { dmp_channel_create, dmp_channel_destroy,
				    offsetof(struct dmp_channel_create, channel_id) },
	ROW(DMP_CHANNEL_QUERY) = { dmp_channel_query },
	ROW(DMP_CHANNEL_DESTROY) = { dmp_channel_destroy },
	ROW(DMP_ENTER) = { dmp_channel_enter },
	ROW(DMP_CANCEL) = { dmp_channel_cancel_command },
#if DMP_KERNEL_RDMA
	ROW(DMP_REGION_CREATE) = { dmp_region_create, dmp_region_destroy,
				   offsetof(struct dmp_region_create, region_id) },
	ROW(DMP_REGION_QUERY) = { dmp_region_query },
	ROW(DMP_REGION_DESTROY) = { dmp_region_destroy },
	ROW(DMP_REGION_IMPORT) = { dmp_region_import_command, dmp_region_destroy,
				   offsetof(struct dmp_region_import, region_id), true },
	ROW(DMP_LISTEN) = { dmp_listener_create, dmp_listener_destroy,
			    offsetof(struct dmp_listen, listener_id), true },
	ROW(DMP_LISTENER_DESTROY) = { dmp_listener_destroy, .away = true },
	ROW(DMP_CONNECT) = { dmp_endpoint_connect_command, dmp_endpoint_destroy_command,
			     offsetof(struct dmp_connect, endpoint_id), true },
	ROW(DMP_ACCEPT) = { dmp_endpoint_accept_command, dmp_endpoint_destroy_command,
			    offsetof(struct dmp_accept, endpoint_id), true },
	ROW(DMP_ENDPOINT_QUERY) = { dmp_endpoint_query_command, .away = true },
	ROW(DMP_ENDPOINT_DESTROY) = { dmp_endpoint_destroy_command, .away = true },
#endif
};

/* Takes back what a command made whose answer nobody has read. */
static void undo(struct dmp_plane *plane, const struct service *service,
		 struct dmp_call *call)
{
	struct dmp_destroy destroy = { .size = sizeof(destroy) };

	if (call->file) {
		fput(call->file);
		put_unused_fd(call->fd);
	}
	if (service->undo) {
		destroy.id = *(u32 *)((char *)call->argument + service->id_offset);
		service->undo(plane, &destroy);
	}
}

/* What is not claimed is not served; but who had a connection can still ask, and destroy it. */
static bool is_served(const struct dmp_plane *plane, const struct service *service)
{
	if (!service->serve)
		return false;
	return !service->away || READ_ONCE(plane->endpoints) != 0 ||
	       READ_ONCE(plane->listeners) != 0 ||
	       (dmp_rdma_is_there() && dmp_proof_is_possible());
}

long dmp_command(struct dmp_plane *plane, unsigned int number, void __user *argument)
{
	const struct dmp_command_shape *shape;
	const struct service *service;
	struct dmp_call call;
	int row, error;
	u32 size;

	row = dmp_command_find(number);
	if (row < 0)
		return row;
	shape = dmp_command_shape(row);
	service = &services[row];
	if (get_user(size, (u32 __user *)argument))
		return -EFAULT;
	error = dmp_command_check_size(shape, size);
	if (error)
		return error;
	error = copy_struct_from_user(call.argument, shape->size, argument, size);
	if (error)
		return error;
	error = dmp_command_check(shape, call.argument);
	if (error)
		return error;
	if (!is_served(plane, service))
		return -EOPNOTSUPP;
	call.file = NULL;
	*(u32 *)call.argument = shape->size;	/* size as we know it */
	error = service->serve(plane, call.argument);
	if (error)
		return error;
	/* Everything but the caller's size and flags, which are his. */
	if (dmp_command_answers(row) &&
	    copy_to_user(argument + 8, (char *)call.argument + 8, shape->size - 8)) {
		undo(plane, service, &call);
		return -EFAULT;
	}
	if (call.file)
		fd_install(call.fd, call.file);	/* owned by the caller from here */
	return 0;
}
