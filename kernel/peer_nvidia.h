/* SPDX-License-Identifier: GPL-2.0 */
/*
 * peer_nvidia.h - what NVIDIA's driver exports to others' modules, as far as it is used here
 *
 * Facts of a foreign binary interface (names, layouts, numbers); the driver need not be
 * there, neither to build nor to load. None of these functions is linked: they are looked
 * up at run time.
 */
#ifndef DMP_KERNEL_PEER_NVIDIA_H
#define DMP_KERNEL_PEER_NVIDIA_H

#include <linux/build_bug.h>
#include <linux/types.h>

/* Driver whose devices have this sort of memory. */
#define NVIDIA_P2P_DRIVER	"nvidia"

/* Ranges are made of such pieces of GPU address space. */
#define NVIDIA_P2P_RANGE_ALIGN	65536ULL

/* Upper half of a version: layouts differ. Lower half: fields were added at the end. */
#define NVIDIA_P2P_PAGE_TABLE_MAJOR	1U

/* Of nvidia_p2p_page_table.page_size. */
#define NVIDIA_P2P_PAGE_4K	0U
#define NVIDIA_P2P_PAGE_64K	1U
#define NVIDIA_P2P_PAGE_128K	2U

struct nvidia_p2p_page {
	u64 physical_address;		/* in a BAR of the GPU */
	u32 registers[6];
};

struct nvidia_p2p_page_table {
	u32 version;
	u32 page_size;
	struct nvidia_p2p_page **pages;
	u32 entries;
	u8 *gpu_uuid;
};

static_assert(sizeof(struct nvidia_p2p_page) == 32);
static_assert(sizeof(struct nvidia_p2p_page_table) == 32);

/*
 * Pins [address, address + length) of the calling process's GPU address space. @callback
 * comes at most once, when the memory goes while it is pinned, with locks of the driver
 * held; the table is freed by the driver when it returns.
 */
int nvidia_p2p_get_pages(u64 token, u32 va_space, u64 address, u64 length,
			 struct nvidia_p2p_page_table **table, void (*callback)(void *data),
			 void *data);
/* Not after the callback; takes locks of the driver, so never from inside it. */
int nvidia_p2p_put_pages(u64 token, u32 va_space, u64 address,
			 struct nvidia_p2p_page_table *table);
/* Inside the callback; only older drivers do something there. */
int nvidia_p2p_free_page_table(struct nvidia_p2p_page_table *table);

#endif /* DMP_KERNEL_PEER_NVIDIA_H */
