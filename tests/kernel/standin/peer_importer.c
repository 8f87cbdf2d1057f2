// SPDX-License-Identifier: MIT
/*
 * peer_importer.c - stands in for the driver of a device that reaches other devices' memory
 *
 * A dynamic importer of dma-bufs that says it can do peer-to-peer, on behalf of QEMU's
 * ivshmem device itself: a device can always reach its own BARs, which is more than can be
 * said of any two devices of a virtual machine. It does no DMA, and reaches addresses of as
 * many bits as it is told.
 *
 * debugfs peer_importer/import: write an fd: attaches to that dma-buf and maps it; "-1": lets go.
 * debugfs peer_importer/state: how many moves it was told of, then what it has mapped: a line
 * each, DMA address and length.
 */
#include <linux/debugfs.h>
#include <linux/dma-buf.h>
#include <linux/dma-mapping.h>
#include <linux/dma-resv.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/seq_file.h>
#include <linux/uaccess.h>
#include <linux/version.h>

/* Namespaces of symbols became strings. */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 13, 0)
MODULE_IMPORT_NS(DMA_BUF);
#else
MODULE_IMPORT_NS("DMA_BUF");
#endif

static uint address_bits = 64;
module_param(address_bits, uint, 0444);
MODULE_PARM_DESC(address_bits, "of the addresses the device can reach");

static DEFINE_MUTEX(importer_lock);
/* protected by importer_lock */
static struct pci_dev *device;
static struct dma_buf_attachment *attachment;
/* protected by the dma-buf's reservation */
static struct sg_table *table;
static unsigned int moves;

static struct dentry *folder;

static void unmap_locked(struct dma_buf_attachment *from)
{
	dma_resv_assert_held(from->dmabuf->resv);
	if (table)
		dma_buf_unmap_attachment(from, table, DMA_BIDIRECTIONAL);
	table = NULL;
}

static void importer_move_notify(struct dma_buf_attachment *moved)
{
	moves++;
	unmap_locked(moved);
}

static const struct dma_buf_attach_ops importer_operations = {
	.allow_peer2peer = true,
	.move_notify = importer_move_notify,
};

static void let_go(void)
{
	struct dma_buf *dmabuf;

	if (!attachment)
		return;
	dmabuf = attachment->dmabuf;
	dma_resv_lock(dmabuf->resv, NULL);
	unmap_locked(attachment);
	dma_resv_unlock(dmabuf->resv);
	dma_buf_detach(dmabuf, attachment);
	dma_buf_put(dmabuf);
	attachment = NULL;
}

static int import(int fd)
{
	struct dma_buf *dmabuf = dma_buf_get(fd);
	struct sg_table *mapped;

	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf);
	attachment = dma_buf_dynamic_attach(dmabuf, &device->dev, &importer_operations, NULL);
	if (IS_ERR(attachment)) {
		int error = PTR_ERR(attachment);

		attachment = NULL;
		dma_buf_put(dmabuf);
		return error;
	}
	dma_resv_lock(dmabuf->resv, NULL);
	mapped = dma_buf_map_attachment(attachment, DMA_BIDIRECTIONAL);
	if (!IS_ERR(mapped))
		table = mapped;
	dma_resv_unlock(dmabuf->resv);
	if (IS_ERR(mapped)) {
		let_go();
		return PTR_ERR(mapped);
	}
	return 0;
}

static ssize_t import_write(struct file *file, const char __user *text, size_t length, loff_t *at)
{
	int fd;
	int error = kstrtoint_from_user(text, length, 0, &fd);

	if (error)
		return error;
	mutex_lock(&importer_lock);
	let_go();
	if (fd >= 0)
		error = import(fd);
	mutex_unlock(&importer_lock);
	return error ? error : length;
}

static const struct file_operations import_operations = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.write = import_write,
};

static int state_show(struct seq_file *file, void *unused)
{
	struct scatterlist *entry;
	int i;

	mutex_lock(&importer_lock);
	seq_printf(file, "%u\n", moves);
	if (attachment) {
		dma_resv_lock(attachment->dmabuf->resv, NULL);
		if (table)
			for_each_sgtable_dma_sg(table, entry, i)
				seq_printf(file, "%llu %u\n", (u64)sg_dma_address(entry),
					   sg_dma_len(entry));
		dma_resv_unlock(attachment->dmabuf->resv);
	}
	mutex_unlock(&importer_lock);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(state);

static int __init importer_init(void)
{
	int error;

	device = pci_get_device(0x1af4, 0x1110, NULL);
	if (!device)
		return -ENODEV;
	error = dma_set_mask(&device->dev, DMA_BIT_MASK(address_bits));
	if (error) {
		pci_dev_put(device);
		return error;
	}
	folder = debugfs_create_dir("peer_importer", NULL);
	debugfs_create_file("import", 0200, folder, NULL, &import_operations);
	debugfs_create_file("state", 0400, folder, NULL, &state_fops);
	return 0;
}

static void __exit importer_exit(void)
{
	debugfs_remove(folder);
	let_go();
	pci_dev_put(device);
}

module_init(importer_init);
module_exit(importer_exit);

MODULE_DESCRIPTION("stands in for an importer of device memory in dmaplane's tests");
MODULE_AUTHOR("the dmaplane authors");
MODULE_LICENSE("Dual MIT/GPL");
