// SPDX-License-Identifier: GPL-2.0
/* rdma_device.c - see rdma_device.h */
#include "rdma_device.h"

#include <linux/atomic.h>
#include <rdma/ib_verbs.h>

static atomic_t devices = ATOMIC_INIT(0);

/* Could be used: rdma_connect.c looks closer when it is to carry a connection. */
static bool is_fit(struct ib_device *device)
{
	unsigned int port;

	if (!(device->attrs.device_cap_flags & IB_DEVICE_MEM_MGT_EXTENSIONS))
		return false;
	rdma_for_each_port(device, port)
		if (rdma_ib_or_roce(device, port))
			return true;
	return false;
}

static int add_device(struct ib_device *device)
{
	if (is_fit(device))
		atomic_inc(&devices);
	return 0;
}

static void remove_device(struct ib_device *device, void *data)
{
	if (is_fit(device))
		atomic_dec(&devices);
}

static struct ib_client client = {
	.name = "dmaplane",
	.add = add_device,
	.remove = remove_device,
};

int dmp_rdma_init(void)
{
	return ib_register_client(&client);
}

void dmp_rdma_exit(void)
{
	ib_unregister_client(&client);
}

bool dmp_rdma_is_there(void)
{
	return atomic_read(&devices) != 0;
}
