// SPDX-License-Identifier: GPL-2.0
/*
 * rdma_absent.c - the functions of rdma_pair.h where the kernel was built without RDMA
 *
 * No pair and no door is ever made, so what is asked of one is asked of nobody.
 */
#include <linux/errno.h>

#include "rdma_device.h"
#include "rdma_pair.h"

int dmp_pair_dial(const struct sockaddr_storage *to, u64 deadline_ns, struct dmp_pair **pair)
{
	return -ENODEV;
}

void dmp_pair_watch(struct dmp_pair *pair, struct dmp_pair_ringer *ringer)
{
}

void dmp_pair_give_up(struct dmp_pair *pair)
{
}

void dmp_pair_close(struct dmp_pair *pair)
{
}

int dmp_pair_door_open(struct sockaddr_storage *here, u32 backlog, struct dmp_pair_door **door)
{
	return -ENODEV;
}

int dmp_pair_door_take(struct dmp_pair_door *door, u64 deadline_ns, struct sockaddr_storage *from,
		       struct dmp_pair **pair)
{
	return -ESTALE;
}

void dmp_pair_door_shut(struct dmp_pair_door *door)
{
}

void dmp_pair_door_close(struct dmp_pair_door *door)
{
}

ssize_t dmp_pair_put(struct dmp_pair *pair, const struct dmp_run *run)
{
	return -ENODEV;
}

int dmp_pair_flush(struct dmp_pair *pair)
{
	return -ENODEV;
}

ssize_t dmp_pair_get(struct dmp_pair *pair, const struct dmp_run *run)
{
	return -ENODEV;
}

int dmp_pair_serve(struct dmp_pair *pair)
{
	return -ENODEV;
}

bool dmp_pair_is_ready(struct dmp_pair *pair)
{
	return false;
}

bool dmp_pair_rest(struct dmp_pair *pair)
{
	return true;
}

int dmp_pair_post(struct dmp_pair *pair, struct dmp_pair_move *move, u64 tag)
{
	return -EOPNOTSUPP;
}

bool dmp_pair_reap(struct dmp_pair *pair, u64 *tag, u64 *length)
{
	return false;
}

void dmp_pair_forget(struct dmp_pair *pair, const struct dmp_memory *memory)
{
}

void dmp_pair_trust(struct dmp_pair *pair, struct dmp_pair_admission *admission)
{
}

int dmp_pair_ask(struct dmp_pair *pair, const u8 *key, u32 key_bytes)
{
	return -EOPNOTSUPP;
}

int dmp_pair_granted(struct dmp_pair *pair, struct dmp_pair_remote *remote)
{
	return -EOPNOTSUPP;
}

void dmp_pair_remote_free(struct dmp_pair_remote *remote)
{
}

bool dmp_pair_revoke(struct dmp_pair *pair, u32 slot)
{
	return false;
}

bool dmp_pair_is_registered(struct dmp_pair *pair, u32 slot)
{
	return false;
}

void dmp_pair_count(const struct dmp_pair *pair, struct dmp_pair_counters *counters)
{
	*counters = (struct dmp_pair_counters){ 0 };
}

int dmp_rdma_init(void)
{
	return 0;
}

void dmp_rdma_exit(void)
{
}

bool dmp_rdma_is_there(void)
{
	return false;
}
