// SPDX-License-Identifier: GPL-2.0
/*
 * module.c - loading, unloading, the device node and the parameters
 *
 * The module cannot be unloaded while a plane is open, while something of one is mapped
 * (a mapping holds its file), or while an exported dma-buf is alive (it holds the module).
 */
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>

#include "buffer.h"
#include "channel_kernel.h"
#include "compat.h"
#include "debugfs.h"
#include "memory.h"
#include "plane.h"
#include "rdma_device.h"

ulong dmp_bytes_max;
module_param_named(bytes_max, dmp_bytes_max, ulong, 0644);
MODULE_PARM_DESC(bytes_max,
		 "bytes all planes together may allocate for buffers and rings (default: half of memory)");

uint dmp_buffers_total_max = 262144;
module_param_named(buffers_max, dmp_buffers_total_max, uint, 0644);
MODULE_PARM_DESC(buffers_max, "buffers of all planes together");

uint dmp_channels_total_max = 4096;
module_param_named(channels_max, dmp_channels_total_max, uint, 0644);
MODULE_PARM_DESC(channels_max, "channels, each with a thread, of all planes together");

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "dmaplane",
	.fops = &dmp_plane_fops,
	.mode = 0660,
};

static int __init dmp_module_init(void)
{
	int error;

	if (dmp_bytes_max == 0)
		dmp_bytes_max = (totalram_pages() / 2) << PAGE_SHIFT;
	error = dmp_mapping_init();
	if (error)
		return error;
	error = dmp_device_init();
	if (error)
		goto err_mapping;
	error = dmp_peer_init();
	if (error)
		goto err_device;
	error = dmp_worker_init();
	if (error)
		goto err_peer;
	error = dmp_rdma_init();
	if (error)
		goto err_worker;
	dmp_debugfs_init();
	error = misc_register(&device);
	if (error)
		goto err_rdma;
	return 0;

err_rdma:
	dmp_debugfs_exit();
	dmp_rdma_exit();
err_worker:
	dmp_worker_exit();
err_peer:
	dmp_peer_exit();
err_device:
	dmp_device_exit();
err_mapping:
	dmp_mapping_exit();
	return error;
}

static void __exit dmp_module_exit(void)
{
	misc_deregister(&device);
	dmp_debugfs_exit();
	dmp_rdma_exit();
	dmp_worker_exit();
	dmp_peer_exit();
	dmp_memory_exit();
	dmp_device_exit();
	dmp_mapping_exit();
}

module_init(dmp_module_init);
module_exit(dmp_module_exit);

MODULE_DESCRIPTION("dmaplane: buffers for AI transports, placed, shared, registered and safe");
MODULE_AUTHOR("the dmaplane authors");
MODULE_LICENSE("Dual MIT/GPL");
MODULE_VERSION(DMP_VERSION);
MODULE_SOFTDEP("pre: libcrc32c");
DMP_IMPORT_DMA_BUF;
