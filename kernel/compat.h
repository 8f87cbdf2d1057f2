/* SPDX-License-Identifier: GPL-2.0 */
/*
 * compat.h - what differs between the kernels this module builds on, and nothing else
 *
 * Oldest: 6.1. The rest of the module is written for the newest; what is missing in older
 * ones is supplied here under its new name.
 */
#ifndef DMP_KERNEL_COMPAT_H
#define DMP_KERNEL_COMPAT_H

#include <linux/dma-buf.h>
#include <linux/eventfd.h>
#include <linux/mm.h>
#include <linux/version.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 3, 0)
static inline void vm_flags_set(struct vm_area_struct *vma, vm_flags_t flags)
{
	vma->vm_flags |= flags;
}

static inline void vm_flags_clear(struct vm_area_struct *vma, vm_flags_t flags)
{
	vma->vm_flags &= ~flags;
}
#endif

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 13, 0)
#define DMP_IMPORT_DMA_BUF MODULE_IMPORT_NS(DMA_BUF)
#define DMP_EXPORT_TO_TESTS(symbol) EXPORT_SYMBOL_NS_GPL(symbol, DMAPLANE_TESTS)
#else
#define DMP_EXPORT_TO_TESTS(symbol) EXPORT_SYMBOL_NS_GPL(symbol, "DMAPLANE_TESTS")
#define DMP_IMPORT_DMA_BUF MODULE_IMPORT_NS("DMA_BUF")
#endif

/* Before 6.2 these took a lock of the dma-buf themselves, and never the reservation. */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 2, 0)
static inline int dma_buf_vmap_unlocked(struct dma_buf *dmabuf, struct iosys_map *map)
{
	return dma_buf_vmap(dmabuf, map);
}

static inline void dma_buf_vunmap_unlocked(struct dma_buf *dmabuf, struct iosys_map *map)
{
	dma_buf_vunmap(dmabuf, map);
}
#endif

/*
 * Pinning for reading. Before 6.2 a page that was never written (the zero page, a private
 * file's) was pinned as it is, and the first write of its owner parted the two.
 */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 2, 0)
#define DMP_PIN_TO_READ (FOLL_WRITE | FOLL_FORCE)
#else
#define DMP_PIN_TO_READ 0U
#endif

static inline void dmp_eventfd_signal(struct eventfd_ctx *context)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 8, 0)
	eventfd_signal(context, 1);
#else
	eventfd_signal(context);
#endif
}

#endif /* DMP_KERNEL_COMPAT_H */
