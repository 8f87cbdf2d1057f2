/* SPDX-License-Identifier: MIT */
/* region_session.h - a plane, buffers and regions for the tests of regions */
#ifndef DMP_TESTS_REGION_SESSION_H
#define DMP_TESTS_REGION_SESSION_H

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "core/check.h"
#include "region.h"

#define READ DMP_ACCESS_REMOTE_READ
#define WRITE DMP_ACCESS_REMOTE_WRITE
#define LAND DMP_ACCESS_LOCAL_WRITE

#define SOON_NS 20000000u	/* a deadline that is meant to pass */

/* A buffer of the plane's own memory, mapped. */
static inline uint32_t buffer_make(struct dmp_plane *plane, uint64_t length, char **bytes)
{
	struct dmp_buffer_create create = { .size = sizeof(create), .length_bytes = length,
					    .node = -1 };
	void *address;

	CHECK(!dmp_ioctl(plane, DMP_BUFFER_CREATE, &create));
	if (bytes) {
		CHECK(!dmp_mmap(plane, length, PROT_READ | PROT_WRITE, create.map_offset,
				&address));
		*bytes = address;
	}
	return create.buffer_id;
}

static inline uint32_t buffer_of_user(struct dmp_plane *plane, void *address, uint64_t length,
				      uint32_t flags)
{
	struct dmp_buffer_create create = { .size = sizeof(create), .length_bytes = length,
					    .kind = DMP_KIND_USER, .flags = flags, .node = -1,
					    .user_addr = (uintptr_t)address };

	CHECK(!dmp_ioctl(plane, DMP_BUFFER_CREATE, &create));
	return create.buffer_id;
}

static inline struct dmp_buffer_query buffer_ask(struct dmp_plane *plane, uint32_t id)
{
	struct dmp_buffer_query query = { .size = sizeof(query), .buffer_id = id };

	CHECK(!dmp_ioctl(plane, DMP_BUFFER_QUERY, &query));
	return query;
}

static inline int buffer_end(struct dmp_plane *plane, uint32_t id, uint32_t flags,
			     uint64_t deadline_ns)
{
	struct dmp_destroy destroy = { .size = sizeof(destroy), .flags = flags, .id = id,
				       .deadline_ns = deadline_ns };

	return dmp_ioctl(plane, DMP_BUFFER_DESTROY, &destroy);
}

/* What REGION_CREATE answered. */
struct grant {
	struct dmp_region_create create;
	struct dmp_region_key key;
};

static inline int region_try(struct dmp_plane *plane, uint32_t buffer, uint64_t offset,
			     uint64_t length, uint32_t access)
{
	struct dmp_region_create create = { .size = sizeof(create), .buffer_id = buffer,
					    .access = access, .offset = offset,
					    .length_bytes = length };

	return dmp_ioctl(plane, DMP_REGION_CREATE, &create);
}

static inline struct grant region_make(struct dmp_plane *plane, uint32_t buffer, uint64_t offset,
				       uint64_t length, uint32_t access)
{
	struct grant grant = { .create = { .size = sizeof(grant.create), .buffer_id = buffer,
					   .access = access, .offset = offset,
					   .length_bytes = length } };

	CHECK(!dmp_ioctl(plane, DMP_REGION_CREATE, &grant.create));
	CHECK(!dmp_region_key_decode(grant.create.key, grant.create.key_bytes, &grant.key));
	return grant;
}

static inline int region_end(struct dmp_plane *plane, uint32_t id, uint32_t flags,
			     uint64_t deadline_ns)
{
	struct dmp_destroy destroy = { .size = sizeof(destroy), .flags = flags, .id = id,
				       .deadline_ns = deadline_ns };

	return dmp_ioctl(plane, DMP_REGION_DESTROY, &destroy);
}

static inline struct dmp_region_query region_ask(struct dmp_plane *plane, uint32_t id)
{
	struct dmp_region_query query = { .size = sizeof(query), .region_id = id };

	CHECK(!dmp_ioctl(plane, DMP_REGION_QUERY, &query));
	return query;
}

static inline uint64_t regions_counted(struct dmp_plane *plane)
{
	struct dmp_statistics statistics = { .size = sizeof(statistics),
					     .scope = DMP_SCOPE_PLANE };

	CHECK(!dmp_ioctl(plane, DMP_STATISTICS, &statistics));
	return statistics.regions;
}

/* May a peer who shows this key? The region is let go at once. */
static inline int admits(struct dmp_plane *plane, const struct grant *grant, uint64_t offset,
			 uint64_t length, uint32_t access)
{
	struct dmp_region *region;
	char *address;
	int error = dmp_region_admit(plane, grant->create.key, grant->create.key_bytes, offset,
				     length, access, &region, &address);

	if (!error)
		dmp_region_release(plane, region);
	return error;
}

#endif /* DMP_TESTS_REGION_SESSION_H */
