// SPDX-License-Identifier: MIT
/*
 * verbs_absent.c - the verbs fabric of a library that was built without rdma-core's headers
 *
 * There is none: nothing can be dialled or listened on, and dmp_verbs_probe() says why. So
 * nobody has a fabric to call the rest with.
 */
#include "libdmaplane.h"
#include "verbs.h"

#ifndef DMP_VERBS
#include <errno.h>
#include <stdlib.h>

int dmp_verbs_dial(struct dmp_plane *plane, const struct dmp_address *address, __u64 deadline_ns,
		   struct dmp_fabric **fabric)
{
	(void)plane;
	(void)address;
	(void)deadline_ns;
	(void)fabric;
	return -ENODEV;
}

int dmp_verbs_door_open(const struct dmp_address *address, __u32 backlog,
			struct dmp_verbs_door **door)
{
	(void)address;
	(void)backlog;
	(void)door;
	return -ENODEV;
}

int dmp_verbs_door_fd(const struct dmp_verbs_door *door)
{
	(void)door;
	abort();
}

void dmp_verbs_door_close(struct dmp_verbs_door *door)
{
	(void)door;
	abort();
}

int dmp_verbs_door_take(struct dmp_plane *plane, struct dmp_verbs_door *door,
			struct sockaddr_storage *peer, socklen_t *length,
			struct dmp_fabric **fabric)
{
	(void)plane;
	(void)door;
	(void)peer;
	(void)length;
	(void)fabric;
	abort();
}

void dmp_verbs_trust(struct dmp_fabric *fabric)
{
	(void)fabric;
	abort();
}

int dmp_verbs_ask(struct dmp_fabric *fabric, const __u8 *key, __u32 key_bytes)
{
	(void)fabric;
	(void)key;
	(void)key_bytes;
	abort();
}

int dmp_verbs_granted(struct dmp_fabric *fabric, struct dmp_remote *remote)
{
	(void)fabric;
	(void)remote;
	abort();
}

bool dmp_verbs_revoke(struct dmp_fabric *fabric, __u32 slot, __u64 now_ns)
{
	(void)fabric;
	(void)slot;
	(void)now_ns;
	abort();
}

bool dmp_verbs_is_registered(struct dmp_fabric *fabric, __u32 slot, __u64 now_ns)
{
	(void)fabric;
	(void)slot;
	(void)now_ns;
	abort();
}

void dmp_verbs_forget(struct dmp_fabric *fabric, __u32 buffer_id)
{
	(void)fabric;
	(void)buffer_id;
	abort();
}

const char *dmp_verbs_refused(int error)
{
	(void)error;
	return "";
}

void dmp_verbs_limit_parts(__u64 bytes)
{
	(void)bytes;
}

#endif /* not DMP_VERBS */
