// SPDX-License-Identifier: GPL-2.0
/*
 * export.c - dma-bufs of our memories, for other planes, processes and drivers
 *
 * Every export is a dma-buf of its own. It holds the memory, and whoever holds the dma-buf
 * (an fd, a mapping, an importer) holds the export: its release is the last anybody hears
 * of it. `exports` of the memory counts the dma-bufs alive. The export of an import of our
 * own export is one more export of the same origin, and counts with the import as well.
 *
 * Memory that can be revoked has a dynamic dma-buf: it goes only to importers that can be
 * told (they have a move_notify), and the kernel gets no address of it, since nobody could
 * take that back. Other memory never moves.
 *
 * A read-only export is read-only for devices and for the kernel too: it is not mapped for
 * a device that may write, and has no kernel address.
 *
 * Locks, outermost first: exports_lock, the dma-buf's reservation, export->lock.
 */
#include <linux/dma-buf.h>
#include <linux/dma-mapping.h>
#include <linux/dma-resv.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>

#include "compat.h"
#include "memory.h"
#include "plane.h"
#include "trace.h"

/* The list memory->exported of every memory. */
static DEFINE_MUTEX(exports_lock);

struct dmp_export {
	/* immutable after create */
	struct dmp_memory *memory;	/* a reference: whose bytes they are */
	struct dmp_memory *import;	/* a reference: what was exported, if not @memory itself */
	struct dma_buf *dmabuf;		/* it owns us */
	bool read_only;
	/* protected by exports_lock */
	struct list_head exported;
	/* protects the list of what importers have mapped */
	struct mutex lock;
	struct list_head mappings;
};

/* One importer's, for one direction. */
struct dmp_export_mapping {
	struct list_head mappings;
	struct device *device;
	struct sg_table *table;
	enum dma_data_direction direction;
};

static int check_alive(const struct dmp_memory *memory)
{
	int section = dmp_memory_enter();
	bool alive = dmp_memory_alive(memory);

	dmp_memory_leave(section);
	return alive ? 0 : -ESTALE;
}

static int export_attach(struct dma_buf *dmabuf, struct dma_buf_attachment *attachment)
{
	struct dmp_export *export = dmabuf->priv;

	/* It would not hear of a revocation, or cannot reach another device's memory. */
	if (export->memory->revocable && !attachment->importer_ops)
		return -EOPNOTSUPP;
	if (export->memory->kind == DMP_KIND_PEER && !attachment->peer2peer)
		return -EOPNOTSUPP;
	return check_alive(export->memory);
}

/*
 * Where the kernel has no CONFIG_DMABUF_MOVE_NOTIFY, every mapping is pinned by the
 * framework, and dynamic importers are told of a move all the same: they may. Where it
 * has, a pin is the wish never to be told, which nobody can promise. So is an importer's
 * own pin: the framework's is followed by its map before the reservation is given up, and
 * one that was not is still there (in `priv`, protected by the reservation) when the
 * framework pins to map.
 */
static int export_pin(struct dma_buf_attachment *attachment)
{
	if (!attachment->importer_ops || IS_ENABLED(CONFIG_DMABUF_MOVE_NOTIFY) ||
	    attachment->priv)
		return -EOPNOTSUPP;
	attachment->priv = attachment->dmabuf->priv;
	return 0;
}

static void export_unpin(struct dma_buf_attachment *attachment)
{
	/* Nothing was done to keep it where it is: it never moves, it only goes. */
	attachment->priv = NULL;
}

/*
 * Under the reservation lock if the memory can be revoked, so that this importer is either
 * refused or told by dmp_export_revoke().
 */
static struct sg_table *export_map(struct dma_buf_attachment *attachment,
				   enum dma_data_direction direction)
{
	struct dmp_export *export = attachment->dmabuf->priv;
	struct dmp_memory *memory = export->memory;
	struct dmp_export_mapping *mapping;
	struct sg_table *table;
	int error;

	if (memory->revocable)
		attachment->priv = NULL;	/* the pin was for this (see export_pin) */
	if (export->read_only && direction != DMA_TO_DEVICE)
		return ERR_PTR(-EPERM);
	error = check_alive(memory);
	if (error)
		return ERR_PTR(error);
	mapping = kzalloc(sizeof(*mapping), GFP_KERNEL);
	if (!mapping)
		return ERR_PTR(-ENOMEM);
	table = memory->operations->attach(memory, attachment->dev, direction,
					   attachment->peer2peer);
	if (IS_ERR(table)) {
		kfree(mapping);
		return table;
	}
	mapping->device = attachment->dev;
	mapping->table = table;
	mapping->direction = direction;
	mutex_lock(&export->lock);
	list_add_tail(&mapping->mappings, &export->mappings);
	mutex_unlock(&export->lock);
	return table;
}

static void export_unmap(struct dma_buf_attachment *attachment, struct sg_table *table,
			 enum dma_data_direction direction)
{
	struct dmp_export *export = attachment->dmabuf->priv;
	struct dmp_export_mapping *mapping, *found = NULL;

	mutex_lock(&export->lock);
	list_for_each_entry(mapping, &export->mappings, mappings)
		if (mapping->table == table) {
			found = mapping;
			list_del(&mapping->mappings);
			break;
		}
	mutex_unlock(&export->lock);
	if (WARN_ON_ONCE(!found))
		return;
	export->memory->operations->detach(export->memory, found->device, table,
					   found->direction);
	kfree(found);
}

/* Each mapping in its own direction, as the DMA API wants it. */
static void sync_mappings(struct dmp_export *export, bool end)
{
	struct dmp_export_mapping *mapping;

	if (export->memory->kind == DMP_KIND_PEER)
		return;	/* device memory: there is no cache of the CPU in between */
	mutex_lock(&export->lock);
	list_for_each_entry(mapping, &export->mappings, mappings) {
		if (end)
			dma_sync_sgtable_for_device(mapping->device, mapping->table,
						    mapping->direction);
		else
			dma_sync_sgtable_for_cpu(mapping->device, mapping->table,
						 mapping->direction);
	}
	mutex_unlock(&export->lock);
}

/* What BUFFER_SYNC does for the memory itself. */
static int sync_memory(struct dmp_memory *memory, enum dma_data_direction direction, u32 flags)
{
	if (!memory->operations->sync)
		return 0;
	if (direction != DMA_TO_DEVICE)
		flags |= DMP_SYNC_FOR_READ;
	if (direction != DMA_FROM_DEVICE)
		flags |= DMP_SYNC_FOR_WRITE;
	return memory->operations->sync(memory, flags);
}

static int export_begin_cpu_access(struct dma_buf *dmabuf, enum dma_data_direction direction)
{
	struct dmp_export *export = dmabuf->priv;
	int error = check_alive(export->memory);

	if (error)
		return error;
	sync_mappings(export, false);
	return sync_memory(export->memory, direction, 0);
}

static int export_end_cpu_access(struct dma_buf *dmabuf, enum dma_data_direction direction)
{
	struct dmp_export *export = dmabuf->priv;
	int error = sync_memory(export->memory, direction, DMP_SYNC_END);

	sync_mappings(export, true);
	return error;
}

static vm_fault_t export_fault(struct vm_fault *fault)
{
	struct dmp_export *export = fault->vma->vm_private_data;
	struct dmp_memory *memory = export->memory;
	int section = dmp_memory_enter();
	vm_fault_t result = VM_FAULT_SIGBUS;

	if (dmp_memory_alive(memory))
		result = memory->operations->fault(memory, fault);
	dmp_memory_leave(section);
	return result;
}

/* The vma holds the dma-buf's file, and so the export: there is nothing to count. */
static const struct vm_operations_struct export_vm_operations = {
	.fault = export_fault,
};

static int export_mmap(struct dma_buf *dmabuf, struct vm_area_struct *vma)
{
	struct dmp_export *export = dmabuf->priv;
	struct dmp_memory *memory = export->memory;
	int error;

	if (!memory->operations->map || memory->map_bytes < dmabuf->size)
		return -EOPNOTSUPP;
	if (!(vma->vm_flags & VM_MAYSHARE))
		return -EINVAL;
	/* The file's mode says so too, unless another driver maps it into a vma of its own. */
	if (export->read_only) {
		if (vma->vm_flags & VM_WRITE)
			return -EPERM;
		vm_flags_clear(vma, VM_MAYWRITE);
	}
	error = check_alive(memory);
	if (error)
		return error;
	vm_flags_set(vma, VM_DONTEXPAND | VM_DONTDUMP);
	vma->vm_pgoff += memory->map_pgoff;
	vma->vm_private_data = export;
	if (memory->operations->fault)
		vma->vm_ops = &export_vm_operations;
	return memory->operations->map(memory, vma);
}

static int export_vmap(struct dma_buf *dmabuf, struct iosys_map *map)
{
	struct dmp_export *export = dmabuf->priv;
	struct dmp_span whole;
	int error;

	error = export->memory->operations->vmap(export->memory, &whole);
	if (error)
		return error;
	if (whole.io)
		iosys_map_set_vaddr_iomem(map, (void __iomem *)whole.address);
	else
		iosys_map_set_vaddr(map, whole.address);
	return 0;
}

static void export_vunmap(struct dma_buf *dmabuf, struct iosys_map *map)
{
	struct dmp_export *export = dmabuf->priv;
	struct dmp_span whole = {
		.address = map->is_iomem ? (__force void *)map->vaddr_iomem : map->vaddr,
		.bytes = export->memory->length,
		.io = map->is_iomem,
	};

	export->memory->operations->vunmap(export->memory, &whole);
}

/* One dma-buf fewer. Its reference goes with it. */
static void uncount(struct dmp_memory *memory)
{
	/* Release: what was done through the dma-buf happens before destroy sees 0. */
	smp_mb__before_atomic();
	atomic_dec(&memory->exports);
	trace_dmp_export_release(memory);
	dmp_released();
	dmp_memory_put(memory);
}

static void export_release(struct dma_buf *dmabuf)
{
	struct dmp_export *export = dmabuf->priv;

	mutex_lock(&exports_lock);
	list_del(&export->exported);
	mutex_unlock(&exports_lock);
	WARN_ON_ONCE(!list_empty(&export->mappings));
	if (export->import)
		uncount(export->import);
	uncount(export->memory);
	mutex_destroy(&export->lock);
	kfree(export);
}

#define EXPORT_OPERATIONS				\
	.attach = export_attach,			\
	.map_dma_buf = export_map,			\
	.unmap_dma_buf = export_unmap,			\
	.begin_cpu_access = export_begin_cpu_access,	\
	.end_cpu_access = export_end_cpu_access,	\
	.mmap = export_mmap,				\
	.release = export_release

static const struct dma_buf_ops export_operations = {
	EXPORT_OPERATIONS,
	.vmap = export_vmap,
	.vunmap = export_vunmap,
};

static const struct dma_buf_ops export_operations_no_address = {
	EXPORT_OPERATIONS,
};

static const struct dma_buf_ops export_operations_dynamic = {
	EXPORT_OPERATIONS,
	.pin = export_pin,
	.unpin = export_unpin,
};

static const struct dma_buf_ops *operations_for(const struct dmp_memory *memory, bool read_only)
{
	if (memory->revocable)
		return &export_operations_dynamic;
	if (read_only || !memory->operations->vmap)
		return &export_operations_no_address;
	return &export_operations;
}

struct dmp_memory *dmp_export_memory(const struct dma_buf *dmabuf)
{
	const struct dmp_export *export = dmabuf->priv;

	return dmabuf->ops->release == export_release ? export->memory : NULL;
}

struct file *dmp_export_create(struct dmp_memory *memory, bool read_only)
{
	struct dmp_memory *origin = memory->origin ? memory->origin : memory;
	DEFINE_DMA_BUF_EXPORT_INFO(info);
	struct dmp_export *export;
	struct dma_buf *dmabuf;

	if (memory->read_only && !read_only)
		return ERR_PTR(-EPERM);
	if (memory->kind == DMP_KIND_IMPORTED && !memory->origin)
		return dmp_import_file(memory, read_only);
	/* Importers see whole pages: all of them must be the buffer's. */
	if (!origin->operations->attach || !PAGE_ALIGNED(origin->length))
		return ERR_PTR(-EOPNOTSUPP);
	export = kzalloc(sizeof(*export), GFP_KERNEL_ACCOUNT);
	if (!export)
		return ERR_PTR(-ENOMEM);
	export->memory = origin;
	export->import = memory == origin ? NULL : memory;
	export->read_only = read_only;
	mutex_init(&export->lock);
	INIT_LIST_HEAD(&export->mappings);
	info.ops = operations_for(origin, read_only);
	info.size = origin->length;
	info.flags = read_only ? O_RDONLY : O_RDWR;
	info.priv = export;
	dmabuf = dma_buf_export(&info);
	if (IS_ERR(dmabuf)) {
		kfree(export);
		return ERR_CAST(dmabuf);
	}
	/* Owned by the dma-buf from here. Nobody else has it before its file is installed. */
	export->dmabuf = dmabuf;
	if (origin->map_pgoff)
		dmabuf->file->f_mapping = dmp_mapping_space();
	dmp_memory_get(origin);
	atomic_inc(&origin->exports);
	if (export->import) {
		dmp_memory_get(memory);
		atomic_inc(&memory->exports);
	}
	mutex_lock(&exports_lock);
	list_add_tail(&export->exported, &origin->exported);
	mutex_unlock(&exports_lock);
	trace_dmp_export(memory);
	return dmabuf->file;
}

/*
 * An export that is made now and not seen here is not attached yet, and will not be: its
 * attach looks at `revoked` after it was listed, and we look at the list after the fence.
 * One that is being released waits for us in export_release(), so its dma-buf is whole.
 *
 * An importer that cannot stop its device at once leaves a fence, which is waited for: when
 * we return no device touches the memory either. Fences end in finite time.
 */
void dmp_export_revoke(struct dmp_memory *memory)
{
	struct dmp_export *export;

	if (list_empty_careful(&memory->exported))
		return;
	mutex_lock(&exports_lock);
	list_for_each_entry(export, &memory->exported, exported) {
		struct dma_resv *reservation = export->dmabuf->resv;

		dma_resv_lock(reservation, NULL);
		dma_buf_move_notify(export->dmabuf);
		dma_resv_wait_timeout(reservation, DMA_RESV_USAGE_BOOKKEEP, false,
				      MAX_SCHEDULE_TIMEOUT);
		dma_resv_unlock(reservation);
	}
	mutex_unlock(&exports_lock);
}

void dmp_export_sync(struct dmp_memory *memory, u32 flags)
{
	struct dmp_memory *origin = memory->origin ? memory->origin : memory;
	struct dmp_export *export;

	if (list_empty_careful(&origin->exported))
		return;
	mutex_lock(&exports_lock);
	list_for_each_entry(export, &origin->exported, exported)
		sync_mappings(export, flags & DMP_SYNC_END);
	mutex_unlock(&exports_lock);
}
