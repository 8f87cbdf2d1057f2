// SPDX-License-Identifier: MIT
/*
 * dmabuf_importer.c - stands in for drivers that take dma-bufs, each way there is
 *
 * A test machine has vgem, which takes what it gets for good and for both directions. NICs
 * and GPUs do otherwise: for one direction, and with an ear for the exporter's move_notify.
 *
 * /dev/dmabuf_importer, one attachment per open file:
 *  ATTACH	   imports somebody's dma-buf, as one that hears of moves
 *  ATTACH_STATIC  as one that does not
 *  ATTACH_SLOW	   as one whose device needs a while to stop, and leaves a fence until then
 *  MAP		   maps it for the device, for a direction
 *  DETACH	   lets go of all that; so does closing
 *  LOOK	   what it was told, and whether its devices have stopped
 */
#include <linux/delay.h>
#include <linux/dma-buf.h>
#include <linux/dma-fence.h>
#include <linux/dma-mapping.h>
#include <linux/dma-resv.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/platform_device.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/version.h>
#include <linux/workqueue.h>

#define IMPORTER_STOP_MS	300

struct importer_look {
	u32 notified;		/* moves this attachment was told of */
	u32 stopping;		/* devices that have not stopped yet, of all attachments */
};

#define IMPORTER_LOOK		_IOR('S', 2, struct importer_look)
#define IMPORTER_ATTACH		_IO('S', 3)	/* argument: an fd */
#define IMPORTER_MAP		_IO('S', 4)	/* argument: enum dma_data_direction */
#define IMPORTER_DETACH		_IO('S', 5)
#define IMPORTER_ATTACH_STATIC	_IO('S', 6)	/* argument: an fd */
#define IMPORTER_ATTACH_SLOW	_IO('S', 7)	/* argument: an fd */

struct importer_file {
	struct mutex lock;			/* of calls */
	struct dma_buf *dmabuf;
	struct dma_buf_attachment *attachment;
	bool slow;
	atomic_t notified;
	/* protected by the dma-buf's reservation */
	struct sg_table *table;
	enum dma_data_direction direction;
};

/* The time a device needs to stop. */
struct importer_fence {
	struct dma_fence fence;
	spinlock_t lock;			/* of the fence */
	struct delayed_work stopped;
};

static struct platform_device *importer_device;
static struct workqueue_struct *importer_queue;
static atomic_t importer_stopping = ATOMIC_INIT(0);

static const char *fence_name(struct dma_fence *fence)
{
	return "dmabuf_importer";
}

static const struct dma_fence_ops fence_operations = {
	.get_driver_name = fence_name,
	.get_timeline_name = fence_name,
};

static void device_stopped(struct work_struct *work)
{
	struct importer_fence *stop = container_of(to_delayed_work(work), struct importer_fence,
						  stopped);

	atomic_dec(&importer_stopping);
	dma_fence_signal(&stop->fence);
	dma_fence_put(&stop->fence);
}

static void device_stop(struct dma_resv *reservation)
{
	struct importer_fence *stop = kzalloc(sizeof(*stop), GFP_KERNEL);

	if (!stop || dma_resv_reserve_fences(reservation, 1)) {
		kfree(stop);
		return;
	}
	spin_lock_init(&stop->lock);
	dma_fence_init(&stop->fence, &fence_operations, &stop->lock, dma_fence_context_alloc(1),
		       1);
	INIT_DELAYED_WORK(&stop->stopped, device_stopped);
	dma_resv_add_fence(reservation, &stop->fence, DMA_RESV_USAGE_BOOKKEEP);
	atomic_inc(&importer_stopping);
	/* The work has our reference. */
	queue_delayed_work(importer_queue, &stop->stopped, msecs_to_jiffies(IMPORTER_STOP_MS));
}

static void importer_move_notify(struct dma_buf_attachment *attachment)
{
	struct importer_file *file = attachment->importer_priv;

	atomic_inc(&file->notified);
	if (file->slow)
		device_stop(attachment->dmabuf->resv);
	if (file->table)
		dma_buf_unmap_attachment(attachment, file->table, file->direction);
	file->table = NULL;
}

static const struct dma_buf_attach_ops importer_operations = {
	.allow_peer2peer = true,
	.move_notify = importer_move_notify,
};

static int attach(struct importer_file *file, int fd, const struct dma_buf_attach_ops *importer)
{
	struct dma_buf_attachment *attachment;
	struct dma_buf *dmabuf;

	if (file->attachment)
		return -EBUSY;
	dmabuf = dma_buf_get(fd);
	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf);
	attachment = dma_buf_dynamic_attach(dmabuf, &importer_device->dev, importer, file);
	if (IS_ERR(attachment)) {
		dma_buf_put(dmabuf);
		return PTR_ERR(attachment);
	}
	file->dmabuf = dmabuf;
	file->attachment = attachment;
	return 0;
}

static int map(struct importer_file *file, unsigned long direction)
{
	struct sg_table *table;
	int error = -EINVAL;

	if (!file->attachment || direction > DMA_FROM_DEVICE)
		return -EINVAL;
	dma_resv_lock(file->dmabuf->resv, NULL);
	if (!file->table) {
		table = dma_buf_map_attachment(file->attachment, direction);
		error = PTR_ERR_OR_ZERO(table);
		if (!error) {
			file->table = table;
			file->direction = direction;
		}
	}
	dma_resv_unlock(file->dmabuf->resv);
	return error;
}

static int detach(struct importer_file *file)
{
	if (!file->attachment)
		return -EINVAL;
	dma_resv_lock(file->dmabuf->resv, NULL);
	if (file->table)
		dma_buf_unmap_attachment(file->attachment, file->table, file->direction);
	file->table = NULL;
	dma_resv_unlock(file->dmabuf->resv);
	dma_buf_detach(file->dmabuf, file->attachment);
	dma_buf_put(file->dmabuf);
	file->attachment = NULL;
	file->dmabuf = NULL;
	return 0;
}

/* ---- the device */

static long importer_ioctl(struct file *opened, unsigned int number, unsigned long argument)
{
	struct importer_file *file = opened->private_data;
	struct importer_look look;
	long answer = 0;

	mutex_lock(&file->lock);
	switch (number) {
	case IMPORTER_LOOK:
		look.notified = atomic_read(&file->notified);
		look.stopping = atomic_read(&importer_stopping);
		break;
	case IMPORTER_ATTACH:
		answer = attach(file, argument, &importer_operations);
		break;
	case IMPORTER_ATTACH_STATIC:
		answer = attach(file, argument, NULL);
		break;
	case IMPORTER_ATTACH_SLOW:
		answer = attach(file, argument, &importer_operations);
		file->slow = !answer;
		break;
	case IMPORTER_MAP:
		answer = map(file, argument);
		break;
	case IMPORTER_DETACH:
		answer = detach(file);
		break;
	default:
		answer = -ENOTTY;
	}
	mutex_unlock(&file->lock);
	if (number == IMPORTER_LOOK &&
	    copy_to_user((void __user *)argument, &look, sizeof(look)))
		return -EFAULT;
	return answer;
}

static int importer_open(struct inode *inode, struct file *opened)
{
	struct importer_file *file = kzalloc(sizeof(*file), GFP_KERNEL);

	if (!file)
		return -ENOMEM;
	mutex_init(&file->lock);
	opened->private_data = file;
	return 0;
}

static int importer_release(struct inode *inode, struct file *opened)
{
	struct importer_file *file = opened->private_data;

	detach(file);
	mutex_destroy(&file->lock);
	kfree(file);
	return 0;
}

static const struct file_operations importer_fops = {
	.owner = THIS_MODULE,
	.open = importer_open,
	.release = importer_release,
	.unlocked_ioctl = importer_ioctl,
};

static struct miscdevice importer_misc = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "dmabuf_importer",
	.fops = &importer_fops,
};

static int __init importer_init(void)
{
	struct platform_device_info info = {
		.name = "dmabuf_importer",
		.id = PLATFORM_DEVID_NONE,
		.dma_mask = DMA_BIT_MASK(64),
	};
	int error;

	importer_queue = alloc_workqueue("dmabuf_importer", WQ_UNBOUND, 0);
	if (!importer_queue)
		return -ENOMEM;
	importer_device = platform_device_register_full(&info);
	if (IS_ERR(importer_device)) {
		error = PTR_ERR(importer_device);
		goto err_queue;
	}
	error = misc_register(&importer_misc);
	if (error)
		goto err_device;
	return 0;

err_device:
	platform_device_unregister(importer_device);
err_queue:
	destroy_workqueue(importer_queue);
	return error;
}

static void __exit importer_exit(void)
{
	misc_deregister(&importer_misc);
	while (atomic_read(&importer_stopping))
		msleep(IMPORTER_STOP_MS);
	destroy_workqueue(importer_queue);
	platform_device_unregister(importer_device);
}

module_init(importer_init);
module_exit(importer_exit);

MODULE_DESCRIPTION("stands in for drivers that take dma-bufs, in dmaplane's tests");
MODULE_LICENSE("Dual MIT/GPL");
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 13, 0)
MODULE_IMPORT_NS(DMA_BUF);
#else
MODULE_IMPORT_NS("DMA_BUF");
#endif
