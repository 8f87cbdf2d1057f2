// SPDX-License-Identifier: GPL-2.0
/*
 * coherent.c - kind COHERENT: memory of the DMA allocator, and the devices it is for
 *
 * There is one device of our own for each node with memory. It has no hardware; it says
 * on which node the DMA allocator shall look, and it can reach all memory. The devices
 * outlive every memory: an export, which may be the last to hold one, holds the module.
 */
#include <linux/dma-mapping.h>
#include <linux/mm.h>
#include <linux/nodemask.h>
#include <linux/platform_device.h>
#include <linux/slab.h>

#include "compat.h"
#include "pages.h"

static struct platform_device *devices[DMP_NODES_MAX];

struct dmp_coherent {
	struct dmp_memory memory;
	struct device *device;
	void *address;			/* NULL: nothing allocated */
	dma_addr_t bus_address;
	struct dmp_page_array array;	/* the pages behind it, for others to map */
};

/* ---- devices */

struct device *dmp_device(int node)
{
	int i;

	if (node >= 0 && node < DMP_NODES_MAX && devices[node])
		return &devices[node]->dev;
	for (i = 0; i < DMP_NODES_MAX; i++)
		if (devices[i])
			return &devices[i]->dev;
	return NULL;
}

int dmp_device_init(void)
{
	struct platform_device_info info = {
		.name = "dmaplane",
		.dma_mask = DMA_BIT_MASK(64),
	};
	struct platform_device *device;
	int node;

	for_each_node_state(node, N_MEMORY) {
		if (node >= DMP_NODES_MAX)
			continue;
		info.id = node;
		device = platform_device_register_full(&info);
		if (IS_ERR(device)) {
			dmp_device_exit();
			return PTR_ERR(device);
		}
		set_dev_node(&device->dev, node);
		dma_set_max_seg_size(&device->dev, UINT_MAX);
		devices[node] = device;
	}
	return 0;
}

void dmp_device_exit(void)
{
	int node;

	for (node = 0; node < DMP_NODES_MAX; node++) {
		platform_device_unregister(devices[node]);
		devices[node] = NULL;
	}
}

/* ---- the operations of a memory */

static struct dmp_coherent *coherent_of(struct dmp_memory *memory)
{
	return container_of(memory, struct dmp_coherent, memory);
}

static int coherent_span(struct dmp_memory *memory, u64 offset, struct dmp_span *span)
{
	span->address = coherent_of(memory)->address + offset;
	span->bytes = memory->length - offset;
	span->io = false;
	span->write_combined = false;
	return 0;
}

static int table_is_there(pte_t *entry, unsigned long address, void *data)
{
	return 0;
}

static int coherent_map(struct dmp_memory *memory, struct vm_area_struct *vma)
{
	struct dmp_coherent *coherent = coherent_of(memory);
	int error;

	/* Page tables first: if they run out half-way through a remap, x86's PAT code warns. */
	error = apply_to_page_range(vma->vm_mm, vma->vm_start, vma->vm_end - vma->vm_start,
				    table_is_there, NULL);
	if (error)
		return error;
	/* The DMA allocator takes vm_pgoff for a place in the memory, and so it is. */
	return dma_mmap_coherent(coherent->device, vma, coherent->address,
				 coherent->bus_address, memory->length);
}

static int coherent_node(struct dmp_memory *memory, u64 offset)
{
	return page_to_nid(coherent_of(memory)->array.pages[offset >> PAGE_SHIFT]);
}

static struct sg_table *coherent_attach(struct dmp_memory *memory, struct device *device,
					enum dma_data_direction direction, bool peer)
{
	return dmp_page_array_attach(&coherent_of(memory)->array, device, direction);
}

static void coherent_detach(struct dmp_memory *memory, struct device *device,
			    struct sg_table *table, enum dma_data_direction direction)
{
	dmp_page_array_detach(device, table, direction);
}

static int coherent_vmap(struct dmp_memory *memory, struct dmp_span *whole)
{
	return coherent_span(memory, 0, whole);
}

static void coherent_vunmap(struct dmp_memory *memory, const struct dmp_span *whole)
{
}

static void coherent_free(struct dmp_memory *memory)
{
	struct dmp_coherent *coherent = coherent_of(memory);

	if (coherent->address)
		dma_free_coherent(coherent->device, memory->length, coherent->address,
				  coherent->bus_address);
	dmp_page_array_free(&coherent->array);
	kfree(coherent);
}

static const struct dmp_memory_operations coherent_operations = {
	.span = coherent_span,
	.map = coherent_map,
	.node = coherent_node,
	.attach = coherent_attach,
	.detach = coherent_detach,
	.vmap = coherent_vmap,
	.vunmap = coherent_vunmap,
	.free = coherent_free,
};

/* ---- making one */

static bool allocate_on(struct dmp_coherent *coherent, int node, bool exact)
{
	gfp_t gfp = GFP_USER | __GFP_ACCOUNT | __GFP_RETRY_MAYFAIL | __GFP_NOWARN;

	if (exact)
		gfp |= __GFP_THISNODE;
	coherent->device = dmp_device(node);
	coherent->address = dma_alloc_coherent(coherent->device, coherent->memory.length,
					       &coherent->bus_address, gfp);
	return coherent->address;
}

static int allocate(struct dmp_coherent *coherent, const struct dmp_policy *policy, bool strict)
{
	int node;

	switch (policy->policy) {
	case DMP_POLICY_ANY:
		return allocate_on(coherent, numa_mem_id(), false) ? 0 : -ENOMEM;
	case DMP_POLICY_PREFER:
		return allocate_on(coherent, policy->node, strict) ? 0 : -ENOMEM;
	case DMP_POLICY_BIND:
		for (node = 0; node < DMP_NODES_MAX; node++)
			if (policy->node_mask >> node & 1 && allocate_on(coherent, node, true))
				return 0;
		return -ENOMEM;
	default:
		return -EOPNOTSUPP;	/* it is one piece: no page by page */
	}
}

/* The allocator has its own ways; it says itself which pages are behind an address. */
static int find_pages(struct dmp_coherent *coherent)
{
	unsigned long count = coherent->memory.length >> PAGE_SHIFT, found = 0;
	struct sg_page_iter page;
	struct sg_table table;
	int error;

	error = dmp_page_array_alloc(&coherent->array, count);
	if (error)
		return error;
	error = dma_get_sgtable(coherent->device, &table, coherent->address,
				coherent->bus_address, coherent->memory.length);
	if (error)
		return error == -ENOMEM ? -ENOMEM : -EOPNOTSUPP;
	for_each_sgtable_page(&table, &page, 0)
		if (found < count)
			coherent->array.pages[found++] = sg_page_iter_page(&page);
	sg_free_table(&table);
	return found == count ? 0 : -EOPNOTSUPP;
}

struct dmp_memory *dmp_coherent_create(const struct dmp_buffer_create *create,
				       const struct dmp_policy *policy)
{
	struct dmp_coherent *coherent;
	u64 length = PAGE_ALIGN(create->length_bytes);
	int error;

	coherent = kzalloc(sizeof(*coherent), GFP_KERNEL_ACCOUNT);
	if (!coherent)
		return ERR_PTR(-ENOMEM);
	dmp_memory_init(&coherent->memory, &coherent_operations, DMP_KIND_COHERENT, length);
	coherent->memory.map_bytes = length;
	/* The allocator takes a power of two of pages. */
	error = dmp_memory_charge(&coherent->memory, (u64)PAGE_SIZE << get_order(length));
	if (!error)
		error = allocate(coherent, policy, create->flags & DMP_BUFFER_STRICT);
	if (!error)
		error = find_pages(coherent);
	if (error) {
		dmp_memory_put(&coherent->memory);
		return ERR_PTR(error);
	}
	return &coherent->memory;
}
