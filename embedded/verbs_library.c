// SPDX-License-Identifier: MIT
/* verbs_library.c - see verbs_library.h */
#include "verbs_library.h"

#include "libdmaplane.h"

static const char *const reasons[DMP_VERBS_REASONS] = {
	[DMP_VERBS_READY] = "",
	[DMP_VERBS_NOT_BUILT] =
		"missing-feature: this libdmaplane was built without rdma-core's headers; "
		"install libibverbs-dev and librdmacm-dev, then build it again",
	[DMP_VERBS_NO_LIBRARY] =
		"missing-library: librdmacm.so.1 or libibverbs.so.1; install librdmacm1 and "
		"ibverbs-providers",
	[DMP_VERBS_NO_SYMBOL] =
		"missing-library: rdma-core is too old; version 28 or newer has what is needed",
	[DMP_VERBS_NO_MANAGER] =
		"missing-kernel-feature: /dev/infiniband/rdma_cm cannot be opened; as root: "
		"modprobe rdma_ucm",
	[DMP_VERBS_NO_DEVICE] =
		"missing-device: no RDMA device; a NIC that has none can have Soft-RoCE, as root: "
		"modprobe rdma_rxe; rdma link add rxe0 type rxe netdev NIC",
	[DMP_VERBS_FORKED] =
		"missing-feature: RDMA in a fork of a process that uses it; start a program anew "
		"(exec) instead",
};

const char *dmp_verbs_reason(int reason)
{
	return reason >= 0 && reason < DMP_VERBS_REASONS ? reasons[reason] : "";
}

const char *dmp_verbs_missing(void)
{
	return dmp_verbs_reason(dmp_verbs_probe());
}

#ifndef DMP_VERBS

int dmp_verbs_probe(void)
{
	return DMP_VERBS_NOT_BUILT;
}

#else

#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>
#include <string.h>

#include "process.h"

static struct dmp_verbs_library library;
static int opened = DMP_VERBS_NO_LIBRARY;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* Where each address goes, and what it is called. */
static const struct {
	size_t offset;
	const char *name;
	bool optional;
} symbols[] = {
#define SYMBOL(member, name) { offsetof(struct dmp_verbs_library, member), name, false }
	SYMBOL(get_device_list, "ibv_get_device_list"),
	SYMBOL(free_device_list, "ibv_free_device_list"),
	SYMBOL(query_device, "ibv_query_device"),
	SYMBOL(alloc_pd, "ibv_alloc_pd"),
	SYMBOL(dealloc_pd, "ibv_dealloc_pd"),
	SYMBOL(reg_mr, "ibv_reg_mr"),
	SYMBOL(reg_mr_iova, "ibv_reg_mr_iova"),
	{ offsetof(struct dmp_verbs_library, reg_dmabuf_mr), "ibv_reg_dmabuf_mr", true },
	SYMBOL(dereg_mr, "ibv_dereg_mr"),
	SYMBOL(create_comp_channel, "ibv_create_comp_channel"),
	SYMBOL(destroy_comp_channel, "ibv_destroy_comp_channel"),
	SYMBOL(create_cq, "ibv_create_cq"),
	SYMBOL(destroy_cq, "ibv_destroy_cq"),
	SYMBOL(get_cq_event, "ibv_get_cq_event"),
	SYMBOL(ack_cq_events, "ibv_ack_cq_events"),
	SYMBOL(create_event_channel, "rdma_create_event_channel"),
	SYMBOL(destroy_event_channel, "rdma_destroy_event_channel"),
	SYMBOL(create_id, "rdma_create_id"),
	SYMBOL(destroy_id, "rdma_destroy_id"),
	SYMBOL(bind_addr, "rdma_bind_addr"),
	SYMBOL(resolve_addr, "rdma_resolve_addr"),
	SYMBOL(resolve_route, "rdma_resolve_route"),
	SYMBOL(create_qp, "rdma_create_qp"),
	SYMBOL(destroy_qp, "rdma_destroy_qp"),
	SYMBOL(connect, "rdma_connect"),
	SYMBOL(listen, "rdma_listen"),
	SYMBOL(accept, "rdma_accept"),
	SYMBOL(reject, "rdma_reject"),
	SYMBOL(disconnect, "rdma_disconnect"),
	SYMBOL(get_event, "rdma_get_cm_event"),
	SYMBOL(ack_event, "rdma_ack_cm_event"),
	SYMBOL(set_option, "rdma_set_option"),
	SYMBOL(migrate_id, "rdma_migrate_id"),
#undef SYMBOL
};

static void open_library(void)
{
	void *verbs = dlopen("libibverbs.so.1", RTLD_NOW | RTLD_LOCAL);
	void *manager = verbs ? dlopen("librdmacm.so.1", RTLD_NOW | RTLD_LOCAL) : NULL;
	unsigned int number;

	if (!manager)
		return;		/* one of two: it stays, and harms nobody */
	for (number = 0; number < sizeof(symbols) / sizeof(symbols[0]); number++) {
		const char *name = symbols[number].name;
		void *address = dlsym(*name == 'i' ? verbs : manager, name);

		if (!address && !symbols[number].optional) {
			opened = DMP_VERBS_NO_SYMBOL;
			return;
		}
		memcpy((char *)&library + symbols[number].offset, &address, sizeof(address));
	}
	opened = DMP_VERBS_READY;
}

/* The process that uses it; dmp_process_number() is never 0. */
static uint64_t user;

static bool is_forked(void)
{
	uint64_t process = __atomic_load_n(&user, __ATOMIC_RELAXED);

	return process != 0 && process != dmp_process_number();
}

const struct dmp_verbs_library *dmp_verbs_library(void)
{
	pthread_once(&once, open_library);
	return opened == DMP_VERBS_READY && !is_forked() ? &library : NULL;
}

const struct dmp_verbs_library *dmp_verbs_use(void)
{
	const struct dmp_verbs_library *found = dmp_verbs_library();

	if (found)
		__atomic_store_n(&user, dmp_process_number(), __ATOMIC_RELAXED);
	return found;
}

int dmp_verbs_probe(void)
{
	struct rdma_event_channel *channel;
	struct ibv_device **devices;
	int count = 0;

	if (!dmp_verbs_library())
		return is_forked() ? DMP_VERBS_FORKED : opened;
	devices = library.get_device_list(&count);
	if (devices)
		library.free_device_list(devices);
	if (count == 0)
		return DMP_VERBS_NO_DEVICE;
	channel = library.create_event_channel();
	if (!channel)
		return DMP_VERBS_NO_MANAGER;
	library.destroy_event_channel(channel);
	return DMP_VERBS_READY;
}

#endif /* DMP_VERBS */
