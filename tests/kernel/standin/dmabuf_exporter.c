// SPDX-License-Identifier: MIT
/*
 * dmabuf_exporter.c - stands in for a driver that moves its dma-bufs
 *
 * A test machine has vgem, udmabuf and the system heap, whose buffers stay where they are.
 * GPU drivers do otherwise, and tell their importers (move_notify). This is the smallest of
 * these.
 *
 * /dev/dmabuf_exporter, one buffer per open file:
 *  CREATE  an fd of a dma-buf, of pages
 *  MOVE    gives it other pages, and when all importers have been told fills the old ones
 *	    with a pattern: who still writes there gives himself away
 *  LOOK    how often it is attached, mapped, pinned, and what the old pages look like
 *
 * The buffer is held by its dma-buf and by the file. Its pages are protected by the
 * dma-buf's reservation.
 */
#include <linux/dma-buf.h>
#include <linux/dma-mapping.h>
#include <linux/dma-resv.h>
#include <linux/kref.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/version.h>
#include <linux/vmalloc.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 3, 0)
#define vm_flags_set(vma, flags) ((vma)->vm_flags |= (flags))
#endif

#define EXPORTER_BARE		BIT(0)	/* neither a kernel address nor mappings */
#define EXPORTER_RELUCTANT	BIT(1)	/* the first wish to pin is refused */

#define EXPORTER_PATTERN	0x5a
#define EXPORTER_PAGES_MAX	4096U

struct exporter_create {
	u64 length_bytes;
	u32 flags;
	s32 fd;
};

struct exporter_look {
	u32 attached;
	u32 mapped;
	u32 pinned;
	u32 addressed;
	u64 changed_bytes;	/* of the old pages, since they were given the pattern */
};

#define EXPORTER_CREATE	_IOWR('S', 0, struct exporter_create)
#define EXPORTER_MOVE	_IO('S', 1)
#define EXPORTER_LOOK	_IOR('S', 2, struct exporter_look)

struct exporter_buffer {
	struct kref references;
	struct dma_buf *dmabuf;
	unsigned int count;
	struct page **pages;
	struct page **old;	/* NULL: never moved */
	bool reluctant;
	atomic_t attached, mapped, pinned, addressed;
};

struct exporter_file {
	struct mutex lock;			/* of calls */
	struct exporter_buffer *buffer;
};

static void pages_free(struct page **pages, unsigned int count)
{
	unsigned int i;

	for (i = 0; pages && i < count; i++)
		if (pages[i])
			__free_page(pages[i]);
	kvfree(pages);
}

static struct page **pages_alloc(unsigned int count)
{
	struct page **pages = kvcalloc(count, sizeof(*pages), GFP_KERNEL);
	unsigned int i;

	for (i = 0; pages && i < count; i++) {
		pages[i] = alloc_page(GFP_KERNEL | __GFP_ZERO);
		if (!pages[i]) {
			pages_free(pages, count);
			return NULL;
		}
	}
	return pages;
}

static void buffer_free(struct kref *references)
{
	struct exporter_buffer *buffer =
		container_of(references, struct exporter_buffer, references);

	pages_free(buffer->pages, buffer->count);
	pages_free(buffer->old, buffer->count);
	kfree(buffer);
}

static int export_attach(struct dma_buf *dmabuf, struct dma_buf_attachment *attachment)
{
	struct exporter_buffer *buffer = dmabuf->priv;

	atomic_inc(&buffer->attached);
	return 0;
}

static void export_detach(struct dma_buf *dmabuf, struct dma_buf_attachment *attachment)
{
	struct exporter_buffer *buffer = dmabuf->priv;

	atomic_dec(&buffer->attached);
}

static int export_pin(struct dma_buf_attachment *attachment)
{
	struct exporter_buffer *buffer = attachment->dmabuf->priv;

	dma_resv_assert_held(attachment->dmabuf->resv);
	if (buffer->reluctant) {
		buffer->reluctant = false;
		return -EBUSY;
	}
	atomic_inc(&buffer->pinned);
	return 0;
}

static void export_unpin(struct dma_buf_attachment *attachment)
{
	struct exporter_buffer *buffer = attachment->dmabuf->priv;

	dma_resv_assert_held(attachment->dmabuf->resv);
	atomic_dec(&buffer->pinned);
}

static struct sg_table *export_map(struct dma_buf_attachment *attachment,
				   enum dma_data_direction direction)
{
	struct exporter_buffer *buffer = attachment->dmabuf->priv;
	struct sg_table *table;
	int error = -ENOMEM;

	dma_resv_assert_held(attachment->dmabuf->resv);
	table = kzalloc(sizeof(*table), GFP_KERNEL);
	if (!table)
		return ERR_PTR(-ENOMEM);
	error = sg_alloc_table_from_pages_segment(table, buffer->pages, buffer->count, 0,
						  (size_t)buffer->count << PAGE_SHIFT,
						  dma_get_max_seg_size(attachment->dev),
						  GFP_KERNEL);
	if (error)
		goto err_free;
	error = dma_map_sgtable(attachment->dev, table, direction, DMA_ATTR_SKIP_CPU_SYNC);
	if (error)
		goto err_table;
	atomic_inc(&buffer->mapped);
	return table;

err_table:
	sg_free_table(table);
err_free:
	kfree(table);
	return ERR_PTR(error);
}

static void export_unmap(struct dma_buf_attachment *attachment, struct sg_table *table,
			 enum dma_data_direction direction)
{
	struct exporter_buffer *buffer = attachment->dmabuf->priv;

	dma_resv_assert_held(attachment->dmabuf->resv);
	dma_unmap_sgtable(attachment->dev, table, direction, DMA_ATTR_SKIP_CPU_SYNC);
	sg_free_table(table);
	kfree(table);
	atomic_dec(&buffer->mapped);
}

static int export_vmap(struct dma_buf *dmabuf, struct iosys_map *map)
{
	struct exporter_buffer *buffer = dmabuf->priv;
	void *address = vmap(buffer->pages, buffer->count, VM_MAP, PAGE_KERNEL);

	if (!address)
		return -ENOMEM;
	iosys_map_set_vaddr(map, address);
	atomic_inc(&buffer->addressed);
	return 0;
}

static void export_vunmap(struct dma_buf *dmabuf, struct iosys_map *map)
{
	struct exporter_buffer *buffer = dmabuf->priv;

	vunmap(map->vaddr);
	atomic_dec(&buffer->addressed);
}

static vm_fault_t export_fault(struct vm_fault *fault)
{
	struct dma_buf *dmabuf = fault->vma->vm_private_data;
	struct exporter_buffer *buffer = dmabuf->priv;
	vm_fault_t result = VM_FAULT_SIGBUS;

	dma_resv_lock(dmabuf->resv, NULL);
	if (fault->pgoff < buffer->count)
		result = vmf_insert_pfn(fault->vma, fault->address,
					page_to_pfn(buffer->pages[fault->pgoff]));
	dma_resv_unlock(dmabuf->resv);
	return result;
}

static const struct vm_operations_struct export_vm_operations = {
	.fault = export_fault,
};

static int export_mmap(struct dma_buf *dmabuf, struct vm_area_struct *vma)
{
	vm_flags_t flags = VM_PFNMAP | VM_DONTEXPAND;

	vm_flags_set(vma, flags);
	vma->vm_private_data = dmabuf;
	vma->vm_ops = &export_vm_operations;
	return 0;
}

static void export_release(struct dma_buf *dmabuf)
{
	struct exporter_buffer *buffer = dmabuf->priv;

	kref_put(&buffer->references, buffer_free);
}

static const struct dma_buf_ops operations = {
	.attach = export_attach,
	.detach = export_detach,
	.pin = export_pin,
	.unpin = export_unpin,
	.map_dma_buf = export_map,
	.unmap_dma_buf = export_unmap,
	.vmap = export_vmap,
	.vunmap = export_vunmap,
	.mmap = export_mmap,
	.release = export_release,
};

static const struct dma_buf_ops bare_operations = {
	.attach = export_attach,
	.detach = export_detach,
	.pin = export_pin,
	.unpin = export_unpin,
	.map_dma_buf = export_map,
	.unmap_dma_buf = export_unmap,
	.release = export_release,
};

static int create(struct exporter_file *file, struct exporter_create *create)
{
	DEFINE_DMA_BUF_EXPORT_INFO(info);
	struct exporter_buffer *buffer;
	u64 count = PAGE_ALIGN(create->length_bytes) >> PAGE_SHIFT;
	int fd;

	if (file->buffer || !count || count > EXPORTER_PAGES_MAX)
		return -EINVAL;
	buffer = kzalloc(sizeof(*buffer), GFP_KERNEL);
	if (!buffer)
		return -ENOMEM;
	kref_init(&buffer->references);
	buffer->count = count;
	buffer->reluctant = create->flags & EXPORTER_RELUCTANT;
	buffer->pages = pages_alloc(count);
	if (!buffer->pages) {
		kref_put(&buffer->references, buffer_free);
		return -ENOMEM;
	}
	info.ops = create->flags & EXPORTER_BARE ? &bare_operations : &operations;
	info.size = count << PAGE_SHIFT;
	info.flags = O_RDWR;
	info.priv = buffer;
	buffer->dmabuf = dma_buf_export(&info);
	if (IS_ERR(buffer->dmabuf)) {
		fd = PTR_ERR(buffer->dmabuf);
		kref_put(&buffer->references, buffer_free);
		return fd;
	}
	kref_get(&buffer->references);
	/* The file holds the dma-buf as well, so that it can be moved whoever has closed it. */
	get_dma_buf(buffer->dmabuf);
	file->buffer = buffer;
	fd = dma_buf_fd(buffer->dmabuf, O_CLOEXEC);
	if (fd < 0)
		dma_buf_put(buffer->dmabuf);
	create->fd = fd;
	return fd < 0 ? fd : 0;
}

static int move(struct exporter_buffer *buffer)
{
	struct page **pages;
	unsigned int i;
	int error = 0;

	if (!buffer)
		return -EINVAL;
	pages = pages_alloc(buffer->count);
	if (!pages)
		return -ENOMEM;
	dma_resv_lock(buffer->dmabuf->resv, NULL);
	if (buffer->old) {
		error = -EBUSY;
	} else {
		buffer->old = buffer->pages;
		buffer->pages = pages;
		pages = NULL;
		unmap_mapping_range(buffer->dmabuf->file->f_mapping, 0, 0, 1);
		dma_buf_move_notify(buffer->dmabuf);
		for (i = 0; i < buffer->count; i++)
			memset(page_address(buffer->old[i]), EXPORTER_PATTERN, PAGE_SIZE);
	}
	dma_resv_unlock(buffer->dmabuf->resv);
	pages_free(pages, buffer->count);
	return error;
}

static u64 changed(const struct exporter_buffer *buffer)
{
	u64 found = 0;
	unsigned int i, at;

	for (i = 0; buffer->old && i < buffer->count; i++) {
		const u8 *bytes = page_address(buffer->old[i]);

		for (at = 0; at < PAGE_SIZE; at++)
			found += READ_ONCE(bytes[at]) != EXPORTER_PATTERN;
	}
	return found;
}

static void look(const struct exporter_buffer *buffer, struct exporter_look *look)
{
	memset(look, 0, sizeof(*look));
	if (!buffer)
		return;
	look->attached = atomic_read(&buffer->attached);
	look->mapped = atomic_read(&buffer->mapped);
	look->pinned = atomic_read(&buffer->pinned);
	look->addressed = atomic_read(&buffer->addressed);
	look->changed_bytes = changed(buffer);
}

/* ---- the device */

static long exporter_ioctl(struct file *opened, unsigned int number, unsigned long argument)
{
	struct exporter_file *file = opened->private_data;
	void __user *user = (void __user *)argument;
	union {
		struct exporter_create create;
		struct exporter_look look;
	} copy;
	long answer;

	if (number == EXPORTER_CREATE && copy_from_user(&copy.create, user, sizeof(copy.create)))
		return -EFAULT;
	mutex_lock(&file->lock);
	switch (number) {
	case EXPORTER_CREATE:
		answer = create(file, &copy.create);
		break;
	case EXPORTER_MOVE:
		answer = move(file->buffer);
		break;
	case EXPORTER_LOOK:
		look(file->buffer, &copy.look);
		answer = 0;
		break;
	default:
		answer = -ENOTTY;
	}
	mutex_unlock(&file->lock);
	if (!answer && number == EXPORTER_CREATE &&
	    copy_to_user(user, &copy.create, sizeof(copy.create)))
		return -EFAULT;
	if (!answer && number == EXPORTER_LOOK &&
	    copy_to_user(user, &copy.look, sizeof(copy.look)))
		return -EFAULT;
	return answer;
}

static int exporter_open(struct inode *inode, struct file *opened)
{
	struct exporter_file *file = kzalloc(sizeof(*file), GFP_KERNEL);

	if (!file)
		return -ENOMEM;
	mutex_init(&file->lock);
	opened->private_data = file;
	return 0;
}

static int exporter_release(struct inode *inode, struct file *opened)
{
	struct exporter_file *file = opened->private_data;

	if (file->buffer) {
		dma_buf_put(file->buffer->dmabuf);
		kref_put(&file->buffer->references, buffer_free);
	}
	mutex_destroy(&file->lock);
	kfree(file);
	return 0;
}

static const struct file_operations exporter_fops = {
	.owner = THIS_MODULE,
	.open = exporter_open,
	.release = exporter_release,
	.unlocked_ioctl = exporter_ioctl,
};

static struct miscdevice exporter_misc = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "dmabuf_exporter",
	.fops = &exporter_fops,
};

module_misc_device(exporter_misc);

MODULE_DESCRIPTION("stands in for a driver that moves its dma-bufs, in dmaplane's tests");
MODULE_LICENSE("Dual MIT/GPL");
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 13, 0)
MODULE_IMPORT_NS(DMA_BUF);
#else
MODULE_IMPORT_NS("DMA_BUF");
#endif
