/* SPDX-License-Identifier: GPL-2.0 */
/*
 * rdma_device.h - is there a device that could carry a connection?
 *
 * The ib core tells of devices as they come and go. Nothing is kept of one, so nothing of it
 * is held: a connection finds its device by its address.
 */
#ifndef DMP_KERNEL_RDMA_DEVICE_H
#define DMP_KERNEL_RDMA_DEVICE_H

#include <linux/types.h>

int dmp_rdma_init(void);
void dmp_rdma_exit(void);

/* Right now; one that registers memory fast, as a pair does. Any context. */
bool dmp_rdma_is_there(void);

#endif /* DMP_KERNEL_RDMA_DEVICE_H */
