// SPDX-License-Identifier: GPL-2.0
/*
 * mapping.c - buffers in a user's address space, and how they are taken away again
 *
 * All planes' files share the address space of one inode of ours (file->f_mapping). There
 * each memory that can be revoked has a range of its own, and all its mappings are in
 * that range: one call takes them away, whoever has them. Memory that cannot be revoked
 * stays below RANGE_FIRST, where nothing is ever taken away.
 *
 * Memory that can be revoked is mapped by faults, inside a read section. Were it mapped
 * at once, a mapping that is still being made would be missed.
 *
 * A mapping holds its plane's file, hence the plane, and is counted at its buffer, which
 * therefore stays too. Close and open come with mmap_lock held.
 */
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mount.h>
#include <linux/pseudo_fs.h>

#include "buffer.h"
#include "compat.h"
#include "trace.h"

#define MAPPING_MAGIC	0x646d6170	/* "dmap" */

/* In pages. Offsets that users give end at 2^32 ids of DMP_MAP_UNIT, 2^52 bytes. */
#define RANGE_FIRST	(1ULL << (53 - PAGE_SHIFT))
#define RANGE_END	(1ULL << (62 - PAGE_SHIFT))

static struct vfsmount *mount;
static struct inode *inode;
static atomic64_t range_next = ATOMIC64_INIT(0);

static int mapping_init_fs(struct fs_context *context)
{
	return init_pseudo(context, MAPPING_MAGIC) ? 0 : -ENOMEM;
}

/* No owner: the mount would hold the module, which then could never be unloaded. */
static struct file_system_type mapping_fs = {
	.name = "dmaplane",
	.init_fs_context = mapping_init_fs,
	.kill_sb = kill_anon_super,
};

int dmp_mapping_init(void)
{
	int error;

	mount = kern_mount(&mapping_fs);
	if (IS_ERR(mount))
		return PTR_ERR(mount);
	inode = alloc_anon_inode(mount->mnt_sb);
	if (IS_ERR(inode)) {
		error = PTR_ERR(inode);
		kern_unmount(mount);
		return error;
	}
	return 0;
}

void dmp_mapping_exit(void)
{
	iput(inode);
	kern_unmount(mount);
}

struct address_space *dmp_mapping_space(void)
{
	return inode->i_mapping;
}

/*
 * After 2^61 bytes it begins again. Two memories that then share a range lose mappings
 * when one of them is revoked; the other's come back with the next fault.
 */
pgoff_t dmp_mapping_reserve(u64 bytes)
{
	u64 pages = PAGE_ALIGN(bytes) >> PAGE_SHIFT;
	u64 before = atomic64_fetch_add(pages, &range_next);

	return RANGE_FIRST + before % (RANGE_END - RANGE_FIRST);
}

void dmp_mapping_zap(struct dmp_memory *memory)
{
	if (memory->map_pgoff)
		unmap_mapping_range(dmp_mapping_space(), (loff_t)memory->map_pgoff << PAGE_SHIFT,
				    memory->map_bytes, 1);
}

void dmp_buffer_mapped(struct dmp_buffer *buffer, u64 bytes)
{
	atomic_inc(&buffer->mappings);
	atomic_inc(&buffer->plane->mappings);
	trace_dmp_map(buffer->plane, &buffer->object, bytes);
}

void dmp_buffer_unmapped(struct dmp_buffer *buffer, u64 bytes)
{
	trace_dmp_unmap(buffer->plane, &buffer->object, bytes);
	atomic_dec(&buffer->plane->mappings);
	/* Pages were given back before destroy sees 0; from then on there may be no buffer. */
	smp_mb__before_atomic();
	atomic_dec(&buffer->mappings);
	dmp_released();
}

static void mapping_open(struct vm_area_struct *vma)
{
	dmp_buffer_mapped(vma->vm_private_data, vma->vm_end - vma->vm_start);
}

static void mapping_close(struct vm_area_struct *vma)
{
	dmp_buffer_unmapped(vma->vm_private_data, vma->vm_end - vma->vm_start);
}

static vm_fault_t mapping_fault(struct vm_fault *fault)
{
	struct dmp_buffer *buffer = fault->vma->vm_private_data;
	struct dmp_memory *memory = buffer->memory;
	vm_fault_t answer = VM_FAULT_SIGBUS;
	int section = dmp_memory_enter();

	if (memory->operations->fault && dmp_memory_alive(memory))
		answer = memory->operations->fault(memory, fault);
	dmp_memory_leave(section);
	return answer;
}

static const struct vm_operations_struct mapping_operations = {
	.open = mapping_open,
	.close = mapping_close,
	.fault = mapping_fault,
};

static int check_map(const struct dmp_memory *memory, const struct vm_area_struct *vma)
{
	if (!memory->operations->map || memory->map_bytes == 0)
		return -EOPNOTSUPP;
	if (vma->vm_end - vma->vm_start > memory->map_bytes || !(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	if (memory->read_only && vma->vm_flags & VM_WRITE)
		return -EPERM;
	return dmp_memory_alive(memory) ? 0 : -ESTALE;
}

/*
 * The lock is given up while pages are put in, which takes as long as there are many; the
 * buffer is held meanwhile by a mapping that is not there yet.
 */
int dmp_buffer_map(struct dmp_plane *plane, struct dmp_buffer *buffer, struct vm_area_struct *vma)
{
	const struct vm_operations_struct *before = vma->vm_ops;
	struct dmp_memory *memory = buffer->memory;
	int error;

	lockdep_assert_held_read(&plane->lock);
	error = check_map(memory, vma);
	if (error)
		return error;
	vm_flags_set(vma, VM_DONTEXPAND | VM_DONTDUMP);
	if (memory->read_only)
		vm_flags_clear(vma, VM_MAYWRITE);
	/* From here on a place in the memory: 0 where it cannot be revoked. */
	vma->vm_pgoff = memory->map_pgoff;
	vma->vm_private_data = buffer;
	atomic_inc(&buffer->mappings);
	up_read(&plane->lock);
	error = memory->operations->map(memory, vma);
	/* A foreign dma-buf's mapping is its exporter's by now, and has been counted. */
	if (!error && vma->vm_ops == before) {
		vma->vm_ops = &mapping_operations;
		mapping_open(vma);
	}
	down_read(&plane->lock);
	atomic_dec(&buffer->mappings);
	dmp_released();
	return error;
}
