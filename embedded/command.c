// SPDX-License-Identifier: MIT
/*
 * command.c - one row per command: what its struct may hold, who serves it
 *
 * Copy in, refuse what must be refused, call the handler on our copy, copy out. The
 * handler therefore never sees a short struct, an unknown flag or a reserved byte.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "placement.h"
#include "plane.h"
#include "topology.h"

#define ARGUMENT_BYTES_MAX 1024u
#define SIZE_MAX_ACCEPTED 65536u	/* a caller from the far future; beyond is a mistake */

struct row {
	uint32_t command;
	uint32_t size;			/* of this release; also the smallest so far */
	uint32_t flags;
	uint32_t reserved_offset;
	uint32_t reserved_bytes;
	int (*serve)(struct dmp_plane *plane, void *argument);	/* NULL: EOPNOTSUPP */
};

static int serve_query(struct dmp_plane *plane, void *argument)
{
	struct dmp_query *query = argument;

	query->abi_major = DMP_ABI_MAJOR;
	query->abi_minor = DMP_ABI_MINOR;
	query->capabilities = DMP_CAP_USER | DMP_CAP_EXPORT | DMP_CAP_IMPORT |
			      DMP_CAP_IMPORT_DMABUF | DMP_CAP_PLACEMENT | DMP_CAP_BIND |
			      DMP_CAP_CHECKSUM;
	query->huge_page_bytes = dmp_topology_huge_page_bytes();
	if (query->huge_page_bytes != 0)
		query->capabilities |= DMP_CAP_HUGE;
	if (dmp_memory_tracks_exports())
		query->capabilities |= DMP_CAP_EXPORT_TRACKED;
	if (access("/dev/udmabuf", R_OK | W_OK) == 0)
		query->capabilities |= DMP_CAP_EXPORT_DMABUF;
	query->fabrics = 1u << DMP_PATH_LOCAL;
	query->nodes = (uint32_t)__builtin_popcountll(dmp_topology_node_mask());
	query->page_bytes = (uint32_t)sysconf(_SC_PAGESIZE);
	query->buffer_bytes_max = DMP_BUFFER_BYTES_MAX;
	query->buffers_max = DMP_BUFFERS_MAX;
	query->channels_max = DMP_CHANNELS_MAX;
	query->slots_max = DMP_SLOTS_MAX;
	query->endpoints_max = 0;
	query->regions_max = 0;
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

#define RESERVED(type, field) offsetof(struct type, field), sizeof(((struct type *)0)->field)
#define NO_RESERVED 0, 0

static const struct row rows[] = {
	{ DMP_QUERY, sizeof(struct dmp_query), 0, RESERVED(dmp_query, __reserved), serve_query },
	{ DMP_TOPOLOGY, sizeof(struct dmp_topology), 0, NO_RESERVED, serve_topology },
	{ DMP_STATISTICS, sizeof(struct dmp_statistics), 0, NO_RESERVED, dmp_statistics_read },
	{ DMP_HISTOGRAM, sizeof(struct dmp_histogram), 0, NO_RESERVED, dmp_histogram_read },
	{ DMP_BUFFER_CREATE, sizeof(struct dmp_buffer_create),
	  DMP_BUFFER_STRICT | DMP_BUFFER_HUGE_PREFER | DMP_BUFFER_WRITE_COMBINE |
		  DMP_BUFFER_READ_ONLY,
	  RESERVED(dmp_buffer_create, __reserved), dmp_buffer_create },
	{ DMP_BUFFER_QUERY, sizeof(struct dmp_buffer_query), DMP_BUFFER_RECHECK,
	  RESERVED(dmp_buffer_query, __reserved), dmp_buffer_query },
	{ DMP_BUFFER_DESTROY, sizeof(struct dmp_destroy), DMP_DESTROY_DRAIN,
	  RESERVED(dmp_destroy, __reserved), dmp_buffer_destroy },
	{ DMP_BUFFER_SYNC, sizeof(struct dmp_buffer_sync),
	  DMP_SYNC_FOR_READ | DMP_SYNC_FOR_WRITE | DMP_SYNC_END,
	  RESERVED(dmp_buffer_sync, __reserved), dmp_buffer_sync },
	{ DMP_BUFFER_EXPORT, sizeof(struct dmp_buffer_export),
	  DMP_EXPORT_READ_ONLY | DMP_EXPORT_DMABUF, NO_RESERVED, dmp_buffer_export },
	{ DMP_BUFFER_IMPORT, sizeof(struct dmp_buffer_import), DMP_IMPORT_READ_ONLY,
	  RESERVED(dmp_buffer_import, __reserved), dmp_buffer_import },
	{ DMP_REGION_CREATE, sizeof(struct dmp_region_create), 0,
	  RESERVED(dmp_region_create, __reserved), NULL },
	{ DMP_REGION_QUERY, sizeof(struct dmp_region_query), 0,
	  RESERVED(dmp_region_query, __reserved), NULL },
	{ DMP_REGION_DESTROY, sizeof(struct dmp_destroy), DMP_DESTROY_DRAIN,
	  RESERVED(dmp_destroy, __reserved), NULL },
	{ DMP_REGION_IMPORT, sizeof(struct dmp_region_import), 0, NO_RESERVED, NULL },
	{ DMP_CHANNEL_CREATE, sizeof(struct dmp_channel_create),
	  DMP_CHANNEL_BIND_CPU | DMP_CHANNEL_BIND_NODE | DMP_CHANNEL_SPIN | DMP_CHANNEL_EVENTFD,
	  NO_RESERVED, dmp_channel_create },
	{ DMP_CHANNEL_QUERY, sizeof(struct dmp_channel_query), 0, NO_RESERVED,
	  dmp_channel_query },
	{ DMP_CHANNEL_DESTROY, sizeof(struct dmp_destroy), DMP_DESTROY_DRAIN,
	  RESERVED(dmp_destroy, __reserved), dmp_channel_destroy },
	{ DMP_ENTER, sizeof(struct dmp_enter), 0, RESERVED(dmp_enter, __reserved),
	  dmp_channel_enter },
	{ DMP_CANCEL, sizeof(struct dmp_cancel), DMP_CANCEL_ALL, NO_RESERVED,
	  dmp_channel_cancel_command },
	{ DMP_LISTEN, sizeof(struct dmp_listen), DMP_REQUIRE_PATH | DMP_ENCRYPT,
	  RESERVED(dmp_listen, __reserved), NULL },
	{ DMP_LISTENER_DESTROY, sizeof(struct dmp_destroy), DMP_DESTROY_DRAIN,
	  RESERVED(dmp_destroy, __reserved), NULL },
	{ DMP_CONNECT, sizeof(struct dmp_connect), DMP_REQUIRE_PATH | DMP_ENCRYPT, NO_RESERVED,
	  NULL },
	{ DMP_ACCEPT, sizeof(struct dmp_accept), 0, RESERVED(dmp_accept, __reserved), NULL },
	{ DMP_ENDPOINT_QUERY, sizeof(struct dmp_endpoint_query), 0, NO_RESERVED, NULL },
	{ DMP_ENDPOINT_DESTROY, sizeof(struct dmp_destroy), DMP_DESTROY_DRAIN,
	  RESERVED(dmp_destroy, __reserved), NULL },
};

static const struct row *find_row(uint32_t command)
{
	size_t index;

	for (index = 0; index < sizeof(rows) / sizeof(rows[0]); index++)
		if (rows[index].command == command)
			return &rows[index];
	return NULL;
}

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
	uint64_t copy[ARGUMENT_BYTES_MAX / 8];
	const struct row *row = find_row(command);
	uint32_t size, flags;
	int error;

	if (plane->owner != getpid())
		return -EPERM;
	if (!row)
		return -ENOTTY;
	if (!argument)
		return -EFAULT;
	memcpy(&size, argument, sizeof(size));
	if (size < row->size)
		return -EINVAL;
	if (size > SIZE_MAX_ACCEPTED)
		return -E2BIG;
	memcpy(copy, argument, row->size);
	if (!all_zero((const unsigned char *)argument + row->size, size - row->size))
		return -E2BIG;
	memcpy(&flags, (const char *)copy + 4, sizeof(flags));
	if (flags & ~row->flags)
		return -EINVAL;
	if (!all_zero((const unsigned char *)copy + row->reserved_offset, row->reserved_bytes))
		return -EINVAL;
	if (!row->serve)
		return -EOPNOTSUPP;
	memcpy(copy, &row->size, sizeof(row->size));	/* size as we know it */
	error = row->serve(plane, copy);
	if (error)
		return error;
	/* Everything but the caller's size and flags, which are his. */
	memcpy((char *)argument + 8, (const char *)copy + 8, row->size - 8);
	return 0;
}
