// SPDX-License-Identifier: MIT
/*
 * command.c - one row per command: who serves it
 *
 * Copy in, refuse what must be refused (core/command.h), call the handler on our copy,
 * copy out.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "command.h"
#include "endpoint_embedded.h"
#include "listener.h"
#include "placement.h"
#include "process.h"
#include "topology.h"
#include "verbs_library.h"

static int serve_query(struct dmp_plane *plane, void *argument)
{
	struct dmp_query *query = argument;

	query->abi_major = DMP_ABI_MAJOR;
	query->abi_minor = DMP_ABI_MINOR;
	query->capabilities = DMP_CAP_USER | DMP_CAP_EXPORT | DMP_CAP_IMPORT |
			      DMP_CAP_IMPORT_DMABUF | DMP_CAP_PLACEMENT | DMP_CAP_BIND |
			      DMP_CAP_CHECKSUM | DMP_CAP_REGION | DMP_CAP_ENDPOINT;
	query->huge_page_bytes = dmp_topology_huge_page_bytes();
	if (query->huge_page_bytes != 0)
		query->capabilities |= DMP_CAP_HUGE;
	if (dmp_memory_tracks_exports())
		query->capabilities |= DMP_CAP_EXPORT_TRACKED;
	if (access("/dev/udmabuf", R_OK | W_OK) == 0)
		query->capabilities |= DMP_CAP_EXPORT_DMABUF;
	query->fabrics = 1u << DMP_PATH_LOCAL | 1u << DMP_PATH_SHM | 1u << DMP_PATH_TCP;
	if (access("/dev/infiniband/rdma_cm", R_OK | W_OK) == 0 &&
	    dmp_verbs_probe() == DMP_VERBS_READY)
		query->fabrics |= 1u << DMP_PATH_VERBS;
	query->nodes = (uint32_t)__builtin_popcountll(dmp_topology_node_mask());
	query->page_bytes = (uint32_t)sysconf(_SC_PAGESIZE);
	query->buffer_bytes_max = DMP_BUFFER_BYTES_MAX;
	query->buffers_max = DMP_BUFFERS_MAX;
	query->channels_max = DMP_CHANNELS_MAX;
	query->slots_max = DMP_SLOTS_MAX;
	query->endpoints_max = DMP_ENDPOINTS_MAX;
	query->regions_max = DMP_REGIONS_MAX;
	query->incarnation = plane->incarnation;
	memset(query->version, 0, sizeof(query->version));
	strncpy((char *)query->version, "embedded " DMP_VERSION, sizeof(query->version) - 1);
	return 0;
}

static int serve_topology(struct dmp_plane *plane, void *argument)
{
	(void)plane;
	return dmp_topology_fill(argument);
}

/* Who serves a command; what is not here is EOPNOTSUPP. */
#define ROW(command) [_IOC_NR(command)]

static int (*const serve[DMP_COMMAND_ROWS])(struct dmp_plane *plane, void *argument) = {
	ROW(DMP_QUERY) = serve_query,
	ROW(DMP_TOPOLOGY) = serve_topology,
	ROW(DMP_STATISTICS) = dmp_statistics_read,
	ROW(DMP_HISTOGRAM) = dmp_histogram_read,
	ROW(DMP_BUFFER_CREATE) = dmp_buffer_create,
	ROW(DMP_BUFFER_QUERY) = dmp_buffer_query,
	ROW(DMP_BUFFER_DESTROY) = dmp_buffer_destroy,
	ROW(DMP_BUFFER_SYNC) = dmp_buffer_sync,
	ROW(DMP_BUFFER_EXPORT) = dmp_buffer_export,
	ROW(DMP_BUFFER_IMPORT) = dmp_buffer_import,
	ROW(DMP_CHANNEL_CREATE) = dmp_channel_create,
	ROW(DMP_CHANNEL_QUERY) = dmp_channel_query,
	ROW(DMP_CHANNEL_DESTROY) = dmp_channel_destroy,
	ROW(DMP_ENTER) = dmp_channel_enter,
	ROW(DMP_CANCEL) = dmp_channel_cancel_command,
	ROW(DMP_REGION_CREATE) = dmp_region_create,
	ROW(DMP_REGION_QUERY) = dmp_region_query,
	ROW(DMP_REGION_DESTROY) = dmp_region_destroy,
	ROW(DMP_REGION_IMPORT) = dmp_region_import_command,
	ROW(DMP_LISTEN) = dmp_listener_create,
	ROW(DMP_LISTENER_DESTROY) = dmp_listener_destroy,
	ROW(DMP_CONNECT) = dmp_endpoint_connect_command,
	ROW(DMP_ACCEPT) = dmp_endpoint_accept_command,
	ROW(DMP_ENDPOINT_QUERY) = dmp_endpoint_query_command,
	ROW(DMP_ENDPOINT_DESTROY) = dmp_endpoint_destroy_command,
};

static bool all_zero(const unsigned char *bytes, size_t length)
{
	while (length != 0 && *bytes == 0) {
		bytes++;
		length--;
	}
	return length == 0;
}

int dmp_ioctl(struct dmp_plane *plane, unsigned int command, void *argument)
{
	int row = dmp_command_find(command), error;
	uint64_t copy[DMP_COMMAND_BYTES_MAX / 8];
	const struct dmp_command_shape *shape;
	uint32_t size;

	if (plane->owner != dmp_process_number())
		return -EPERM;
	if (row < 0)
		return row;
	if (!argument)
		return -EFAULT;
	shape = dmp_command_shape(row);
	memcpy(&size, argument, sizeof(size));
	error = dmp_command_check_size(shape, size);
	if (error)
		return error;
	memcpy(copy, argument, shape->size);
	if (!all_zero((const unsigned char *)argument + shape->size, size - shape->size))
		return -E2BIG;
	error = dmp_command_check(shape, copy);
	if (error)
		return error;
	if (!serve[row])
		return -EOPNOTSUPP;
	memcpy(copy, &shape->size, sizeof(shape->size));	/* size as we know it */
	error = serve[row](plane, copy);
	if (error)
		return error;
	/* Everything but the caller's size and flags, which are his. */
	if (dmp_command_answers(row))
		memcpy((char *)argument + 8, (const char *)copy + 8, shape->size - 8);
	return 0;
}
