// SPDX-License-Identifier: GPL-2.0
/*
 * import.c - buffers made of somebody's dma-buf
 *
 * Our own export is resolved straight to the memory behind it, the origin: everything is
 * answered by the origin's operations. The import holds the dma-buf and so the origin;
 * being revoked is the origin's (see dmp_memory_alive()).
 *
 * A foreign one is attached as a dynamic importer, pinned if its exporter can, and mapped
 * for a device of ours as long as the buffer lives. The CPU reaches it at the exporter's
 * kernel address, which some exporters do not give: COPY then answers EOPNOTSUPP, while
 * mappings and sharing work. As with any dma-buf, BUFFER_SYNC brackets what the CPU does,
 * a COPY included. The exporter's move_notify is the end: the buffer is revoked, and its
 * pages are not touched again even if the exporter would have others.
 *
 * The mapping of a foreign buffer is its exporter's: the exporter's file, operations and
 * private data are in the vma, so that it can take it back. Only open and close pass here.
 *
 * Who owns what: an import owns its attachment, device mapping, pin and kernel address;
 * all go when its last reference does, but the device mapping goes when it is revoked.
 */
#include <linux/dma-buf.h>
#include <linux/dma-mapping.h>
#include <linux/dma-resv.h>
#include <linux/file.h>
#include <linux/mm.h>
#include <linux/slab.h>

#include "buffer.h"
#include "compat.h"
#include "memory.h"
#include "trace.h"

struct dmp_import {
	struct dmp_memory memory;
	/* immutable after create */
	struct dma_buf *dmabuf;		/* a reference */
	/* of a foreign one only */
	struct dma_buf_attachment *attachment;
	enum dma_data_direction direction;
	bool pinned;
	struct iosys_map address;	/* null if the exporter gives none */
	/* protected by the dma-buf's reservation */
	struct sg_table *table;		/* NULL once revoked */
};

/* One mapping of a foreign buffer, and what was split or forked from it. */
struct dmp_import_mapping {
	const struct vm_operations_struct operations;	/* theirs, but for open and close */
	const struct vm_operations_struct *theirs;
	struct file *plane_file;			/* a reference: the plane, the buffer */
	struct dmp_buffer *buffer;
	refcount_t areas;				/* each vma that has @operations */
};

static struct dmp_import *import_of(struct dmp_memory *memory)
{
	return container_of(memory, struct dmp_import, memory);
}

/* ---- our own */

static int own_span(struct dmp_memory *memory, u64 offset, struct dmp_span *span)
{
	return memory->origin->operations->span(memory->origin, offset, span);
}

static int own_map(struct dmp_memory *memory, struct vm_area_struct *vma)
{
	if (!memory->origin->operations->map)
		return -EOPNOTSUPP;
	return memory->origin->operations->map(memory->origin, vma);
}

static vm_fault_t own_fault(struct dmp_memory *memory, struct vm_fault *fault)
{
	if (!memory->origin->operations->fault)
		return VM_FAULT_SIGBUS;
	return memory->origin->operations->fault(memory->origin, fault);
}

static int own_node(struct dmp_memory *memory, u64 offset)
{
	if (!memory->origin->operations->node)
		return -1;
	return memory->origin->operations->node(memory->origin, offset);
}

static struct sg_table *own_scatter(struct dmp_memory *memory, unsigned int segment_bytes)
{
	if (!memory->origin->operations->scatter)
		return ERR_PTR(-EOPNOTSUPP);
	return memory->origin->operations->scatter(memory->origin, segment_bytes);
}

static int own_sync(struct dmp_memory *memory, u32 flags)
{
	if (!memory->origin->operations->sync)
		return 0;
	return memory->origin->operations->sync(memory->origin, flags);
}

static void own_free(struct dmp_memory *memory)
{
	struct dmp_import *import = import_of(memory);

	dma_buf_put(import->dmabuf);
	kfree(import);
}

static const struct dmp_memory_operations own_operations = {
	.span = own_span,
	.map = own_map,
	.fault = own_fault,
	.node = own_node,
	.scatter = own_scatter,
	.sync = own_sync,
	.free = own_free,
};

static void own_create(struct dmp_import *import, struct dmp_memory *origin)
{
	struct dmp_memory *memory = &import->memory;

	dmp_memory_init(memory, &own_operations, DMP_KIND_IMPORTED, origin->length);
	memory->origin = origin;
	memory->page_bytes = origin->page_bytes;
	memory->map_bytes = origin->map_bytes;
	memory->map_pgoff = origin->map_pgoff;
	memory->write_combined = origin->write_combined;
	memory->revocable = origin->revocable;
}

/* ---- foreign */

static int foreign_span(struct dmp_memory *memory, u64 offset, struct dmp_span *span)
{
	struct dmp_import *import = import_of(memory);

	if (iosys_map_is_null(&import->address))
		return -EOPNOTSUPP;
	span->io = import->address.is_iomem;
	span->address = span->io ? (__force void *)import->address.vaddr_iomem :
				   import->address.vaddr;
	span->address += offset;
	span->bytes = memory->length - offset;
	span->write_combined = false;
	return 0;
}

static int foreign_sync(struct dmp_memory *memory, u32 flags)
{
	struct dma_buf *dmabuf = import_of(memory)->dmabuf;
	enum dma_data_direction direction = DMA_BIDIRECTIONAL;

	if (!(flags & DMP_SYNC_FOR_WRITE))
		direction = DMA_FROM_DEVICE;
	else if (!(flags & DMP_SYNC_FOR_READ))
		direction = DMA_TO_DEVICE;
	if (flags & DMP_SYNC_END)
		return dma_buf_end_cpu_access(dmabuf, direction);
	return dma_buf_begin_cpu_access(dmabuf, direction);
}

static struct dmp_import_mapping *mapping_of(const struct vm_area_struct *vma)
{
	return container_of(vma->vm_ops, struct dmp_import_mapping, operations);
}

static void foreign_open(struct vm_area_struct *vma)
{
	struct dmp_import_mapping *mapping = mapping_of(vma);

	refcount_inc(&mapping->areas);
	dmp_buffer_mapped(mapping->buffer, vma->vm_end - vma->vm_start);
	if (mapping->theirs->open)
		mapping->theirs->open(vma);
}

static void foreign_close(struct vm_area_struct *vma)
{
	struct dmp_import_mapping *mapping = mapping_of(vma);

	if (mapping->theirs->close)
		mapping->theirs->close(vma);
	dmp_buffer_unmapped(mapping->buffer, vma->vm_end - vma->vm_start);
	if (refcount_dec_and_test(&mapping->areas)) {
		fput(mapping->plane_file);
		kfree(mapping);
	}
}

/* Puts our open and close around what the exporter left in @vma, which then owns @mapping. */
static void interpose(struct dmp_import_mapping *mapping, struct vm_area_struct *vma)
{
	const struct vm_operations_struct *theirs = vma->vm_ops;
	const struct vm_operations_struct operations = {
		.open = foreign_open,
		.close = foreign_close,
		.may_split = theirs->may_split,
		.mremap = theirs->mremap,
		.mprotect = theirs->mprotect,
		.fault = theirs->fault,
		.huge_fault = theirs->huge_fault,
		.map_pages = theirs->map_pages,
		.pagesize = theirs->pagesize,
		.page_mkwrite = theirs->page_mkwrite,
		.pfn_mkwrite = theirs->pfn_mkwrite,
		.access = theirs->access,
		.name = theirs->name,
	};

	mapping->theirs = theirs;
	memcpy((void *)&mapping->operations, &operations, sizeof(operations));
	vma->vm_ops = &mapping->operations;
}

static int foreign_map(struct dmp_memory *memory, struct vm_area_struct *vma)
{
	static const struct vm_operations_struct none;
	struct dma_buf *dmabuf = import_of(memory)->dmabuf;
	struct dmp_import_mapping *mapping;
	int error;

	if (!dmabuf->ops->mmap)
		return -EOPNOTSUPP;
	mapping = kzalloc(sizeof(*mapping), GFP_KERNEL_ACCOUNT);
	if (!mapping)
		return -ENOMEM;
	mapping->buffer = vma->vm_private_data;
	mapping->plane_file = get_file(vma->vm_file);
	refcount_set(&mapping->areas, 1);
	vma->vm_private_data = NULL;
	vma->vm_ops = &none;
	error = dma_buf_mmap(dmabuf, vma, 0);
	if (error) {
		fput(mapping->plane_file);
		kfree(mapping);
		return error;
	}
	interpose(mapping, vma);
	vm_flags_set(vma, VM_DONTEXPAND);
	dmp_buffer_mapped(mapping->buffer, vma->vm_end - vma->vm_start);
	return 0;
}

/*
 * The exporter holds the reservation. When we return, the CPU and our device are off the
 * pages: dmp_memory_revoke() waits for copies, and the device mapping goes here. A move
 * before there is one (pinning can cause it) does not concern us. Copies never take a
 * reservation lock, so waiting for them under it is safe; and as we pinned it, an exporter
 * that evicts under memory pressure does not come here from there.
 */
static void foreign_move_notify(struct dma_buf_attachment *attachment)
{
	struct dmp_import *import = attachment->importer_priv;

	dma_resv_assert_held(attachment->dmabuf->resv);
	if (!import->table)
		return;
	dmp_memory_revoke(&import->memory);
	dma_buf_unmap_attachment(attachment, import->table, import->direction);
	import->table = NULL;
}

static const struct dma_buf_attach_ops importer_operations = {
	.allow_peer2peer = true,
	.move_notify = foreign_move_notify,
};

/* Of one that is half made too. Context: may sleep, takes the reservation lock. */
static void foreign_free(struct dmp_memory *memory)
{
	struct dmp_import *import = import_of(memory);
	struct dma_buf *dmabuf = import->dmabuf;

	if (!iosys_map_is_null(&import->address))
		dma_buf_vunmap_unlocked(dmabuf, &import->address);
	if (import->attachment) {
		dma_resv_lock(dmabuf->resv, NULL);
		if (import->table)
			dma_buf_unmap_attachment(import->attachment, import->table,
						 import->direction);
		import->table = NULL;
		if (import->pinned)
			dma_buf_unpin(import->attachment);
		dma_resv_unlock(dmabuf->resv);
		dma_buf_detach(dmabuf, import->attachment);
	}
	dma_buf_put(dmabuf);
	kfree(import);
}

static const struct dmp_memory_operations foreign_operations = {
	.span = foreign_span,
	.map = foreign_map,
	.sync = foreign_sync,
	.free = foreign_free,
};

static int foreign_attach(struct dmp_import *import)
{
	struct dma_buf *dmabuf = import->dmabuf;
	struct dma_buf_attachment *attachment;
	struct sg_table *table;

	attachment = dma_buf_dynamic_attach(dmabuf, dmp_device(-1), &importer_operations, import);
	if (IS_ERR(attachment))
		return PTR_ERR(attachment);
	import->attachment = attachment;
	dma_resv_lock(dmabuf->resv, NULL);
	/* Who cannot pin only ever takes it away for good. */
	import->pinned = dma_buf_is_dynamic(dmabuf) && dma_buf_pin(attachment) == 0;
	table = dma_buf_map_attachment(attachment, import->direction);
	if (!IS_ERR(table))
		import->table = table;
	dma_resv_unlock(dmabuf->resv);
	return PTR_ERR_OR_ZERO(table);
}

/* The kernel's address. Without memory it may work next time; else it is the exporter's No. */
static int foreign_reach(struct dmp_import *import)
{
	int error;

	if (!import->dmabuf->ops->vmap)
		return 0;
	error = dma_buf_vmap_unlocked(import->dmabuf, &import->address);
	if (!error)
		return 0;
	iosys_map_clear(&import->address);
	return error == -ENOMEM || error == -EINTR || error == -ERESTARTSYS ? error : 0;
}

static int foreign_create(struct dmp_import *import, bool read_only)
{
	struct dmp_memory *memory = &import->memory;
	int error;

	dmp_memory_init(memory, &foreign_operations, DMP_KIND_IMPORTED, import->dmabuf->size);
	memory->page_bytes = PAGE_SIZE;
	memory->map_bytes = PAGE_ALIGN(import->dmabuf->size);
	memory->revocable = dma_buf_is_dynamic(import->dmabuf);
	import->direction = read_only ? DMA_TO_DEVICE : DMA_BIDIRECTIONAL;
	error = foreign_attach(import);
	if (!error)
		error = foreign_reach(import);
	return error == -ERESTARTSYS ? -EINTR : error;
}

/* ---- both */

struct dmp_memory *dmp_import_create(int fd, bool read_only)
{
	struct dma_buf *dmabuf = dma_buf_get(fd);
	struct dmp_memory *origin;
	struct dmp_import *import;
	int error = 0;

	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf) == -EBADF ? ERR_PTR(-EINVAL) : ERR_CAST(dmabuf);
	if (dmabuf->size == 0)
		error = -EINVAL;
	else if (!read_only && !(dmabuf->file->f_mode & FMODE_WRITE))
		error = -EPERM;
	if (error)
		goto err_put;
	import = kzalloc(sizeof(*import), GFP_KERNEL_ACCOUNT);
	if (!import) {
		error = -ENOMEM;
		goto err_put;
	}
	import->dmabuf = dmabuf;	/* the import owns our reference from here */
	import->memory.read_only = read_only;
	origin = dmp_export_memory(dmabuf);
	if (origin)
		own_create(import, origin);
	else
		error = foreign_create(import, read_only);
	if (error) {
		dmp_memory_put(&import->memory);
		return ERR_PTR(error);
	}
	trace_dmp_import(&import->memory);
	return &import->memory;

err_put:
	dma_buf_put(dmabuf);
	return ERR_PTR(error);
}

/* Another file is not needed: the dma-buf is not ours, and lives without our buffer. */
struct file *dmp_import_file(struct dmp_memory *memory, bool read_only)
{
	struct file *file = import_of(memory)->dmabuf->file;

	if (read_only && file->f_mode & FMODE_WRITE)
		return ERR_PTR(-EOPNOTSUPP);
	return get_file(file);
}
