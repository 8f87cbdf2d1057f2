// SPDX-License-Identifier: GPL-2.0 OR MIT
/* command.c - see command.h */
#include "command.h"

#include "dmaplane.h"

#define RESERVED(type, field) \
	__builtin_offsetof(struct type, field), sizeof(((struct type *)0)->field)
#define NO_RESERVED 0, 0
#define ROW(command) [_IOC_NR(command)]

static const struct dmp_command_shape shapes[] = {
	ROW(DMP_QUERY) = { sizeof(struct dmp_query), 0, RESERVED(dmp_query, __reserved) },
	ROW(DMP_TOPOLOGY) = { sizeof(struct dmp_topology), 0, NO_RESERVED },
	ROW(DMP_STATISTICS) = { sizeof(struct dmp_statistics), 0, NO_RESERVED },
	ROW(DMP_HISTOGRAM) = { sizeof(struct dmp_histogram), 0, NO_RESERVED },
	ROW(DMP_BUFFER_CREATE) = { sizeof(struct dmp_buffer_create),
	  DMP_BUFFER_STRICT | DMP_BUFFER_HUGE_PREFER | DMP_BUFFER_WRITE_COMBINE |
		  DMP_BUFFER_READ_ONLY,
	  RESERVED(dmp_buffer_create, __reserved) },
	ROW(DMP_BUFFER_QUERY) = { sizeof(struct dmp_buffer_query), DMP_BUFFER_RECHECK,
	  RESERVED(dmp_buffer_query, __reserved) },
	ROW(DMP_BUFFER_DESTROY) = { sizeof(struct dmp_destroy), DMP_DESTROY_DRAIN,
	  RESERVED(dmp_destroy, __reserved) },
	ROW(DMP_BUFFER_SYNC) = { sizeof(struct dmp_buffer_sync),
	  DMP_SYNC_FOR_READ | DMP_SYNC_FOR_WRITE | DMP_SYNC_END,
	  RESERVED(dmp_buffer_sync, __reserved) },
	ROW(DMP_BUFFER_EXPORT) = { sizeof(struct dmp_buffer_export),
	  DMP_EXPORT_READ_ONLY | DMP_EXPORT_DMABUF, NO_RESERVED },
	ROW(DMP_BUFFER_IMPORT) = { sizeof(struct dmp_buffer_import), DMP_IMPORT_READ_ONLY,
	  RESERVED(dmp_buffer_import, __reserved) },
	ROW(DMP_REGION_CREATE) = { sizeof(struct dmp_region_create), 0,
	  RESERVED(dmp_region_create, __reserved) },
	ROW(DMP_REGION_QUERY) = { sizeof(struct dmp_region_query), 0,
	  RESERVED(dmp_region_query, __reserved) },
	ROW(DMP_REGION_DESTROY) = { sizeof(struct dmp_destroy), DMP_DESTROY_DRAIN,
	  RESERVED(dmp_destroy, __reserved) },
	ROW(DMP_REGION_IMPORT) = { sizeof(struct dmp_region_import), 0, NO_RESERVED },
	ROW(DMP_CHANNEL_CREATE) = { sizeof(struct dmp_channel_create),
	  DMP_CHANNEL_BIND_CPU | DMP_CHANNEL_BIND_NODE | DMP_CHANNEL_SPIN | DMP_CHANNEL_EVENTFD,
	  NO_RESERVED },
	ROW(DMP_CHANNEL_QUERY) = { sizeof(struct dmp_channel_query), 0, NO_RESERVED },
	ROW(DMP_CHANNEL_DESTROY) = { sizeof(struct dmp_destroy), DMP_DESTROY_DRAIN,
	  RESERVED(dmp_destroy, __reserved) },
	ROW(DMP_ENTER) = { sizeof(struct dmp_enter), 0, RESERVED(dmp_enter, __reserved) },
	ROW(DMP_CANCEL) = { sizeof(struct dmp_cancel), DMP_CANCEL_ALL, NO_RESERVED },
	ROW(DMP_LISTEN) = { sizeof(struct dmp_listen), DMP_REQUIRE_PATH | DMP_ENCRYPT,
	  RESERVED(dmp_listen, __reserved) },
	ROW(DMP_LISTENER_DESTROY) = { sizeof(struct dmp_destroy), DMP_DESTROY_DRAIN,
	  RESERVED(dmp_destroy, __reserved) },
	ROW(DMP_CONNECT) = { sizeof(struct dmp_connect), DMP_REQUIRE_PATH | DMP_ENCRYPT, NO_RESERVED },
	ROW(DMP_ACCEPT) = { sizeof(struct dmp_accept), 0, RESERVED(dmp_accept, __reserved) },
	ROW(DMP_ENDPOINT_QUERY) = { sizeof(struct dmp_endpoint_query), 0, NO_RESERVED },
	ROW(DMP_ENDPOINT_DESTROY) = { sizeof(struct dmp_destroy), DMP_DESTROY_DRAIN,
	  RESERVED(dmp_destroy, __reserved) },
};

#define ROWS (sizeof(shapes) / sizeof(shapes[0]))

_Static_assert(ROWS <= DMP_COMMAND_ROWS, "a plane's table has a row for each");

int dmp_command_find(__u32 number)
{
	__u32 row = _IOC_NR(number);

	if (number != _IO(DMP_IOCTL_TYPE, row) || row >= ROWS || shapes[row].size == 0)
		return -ENOTTY;
	return (int)row;
}

const struct dmp_command_shape *dmp_command_shape(int row)
{
	return &shapes[row];
}

int dmp_command_check_size(const struct dmp_command_shape *shape, __u32 size)
{
	if (size < shape->size)
		return -EINVAL;
	return size > DMP_COMMAND_SIZE_MAX ? -E2BIG : 0;
}

int dmp_command_check(const struct dmp_command_shape *shape, const void *argument)
{
	const __u8 *bytes = argument;
	__u32 flags, index;

	__builtin_memcpy(&flags, bytes + sizeof(__u32), sizeof(flags));
	if (flags & ~shape->flags)
		return -EINVAL;
	for (index = 0; index < shape->reserved_bytes; index++)
		if (bytes[shape->reserved_offset + index] != 0)
			return -EINVAL;
	return 0;
}

bool dmp_command_answers(int row)
{
	switch (row) {
	case _IOC_NR(DMP_BUFFER_DESTROY):
	case _IOC_NR(DMP_BUFFER_SYNC):
	case _IOC_NR(DMP_REGION_DESTROY):
	case _IOC_NR(DMP_CHANNEL_DESTROY):
	case _IOC_NR(DMP_LISTENER_DESTROY):
	case _IOC_NR(DMP_ENDPOINT_DESTROY):
		return false;
	default:
		return true;
	}
}
