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

/* As for pages: nobody's OOM killer is woken. */
#define COHERENT_GFP	(GFP_USER | __GFP_ACCOUNT | __GFP_RETRY_MAYFAIL | __GFP_NOWARN)

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

static struct sg_table *coherent_scatter(struct dmp_memory *memory, unsigned int segment_bytes)
{
	return dmp_page_array_scatter(&coherent_of(memory)->array, segment_bytes);
}

static int coherent_vmap(struct dmp_memory *memory, struct dmp_span *whole)
{
	return coherent_span(memory, 0, whole);
}

static void coherent_vunmap(struct dmp_memory *memory, const struct dmp_span *whole)
{
}

static void give_back(struct dmp_coherent *coherent)
{
	if (coherent->address)
		dma_free_coherent(coherent->device, coherent->memory.length, coherent->address,
				  coherent->bus_address);
	coherent->address = NULL;
}

static void coherent_free(struct dmp_memory *memory)
{
	struct dmp_coherent *coherent = coherent_of(memory);

	give_back(coherent);
	dmp_page_array_free(&coherent->array);
	kfree(coherent);
}

static const struct dmp_memory_operations coherent_operations = {
	.span = coherent_span,
	.map = coherent_map,
	.node = coherent_node,
	.attach = coherent_attach,
	.detach = coherent_detach,
	.scatter = coherent_scatter,
	.vmap = coherent_vmap,
	.vunmap = coherent_vunmap,
	.free = coherent_free,
};

/* ---- making one */

/* The allocator has its own ways; it says itself which pages are behind an address. */
static int find_pages(struct dmp_coherent *coherent)
{
	struct dmp_page_array *array = &coherent->array;
	struct sg_page_iter page;
	unsigned long found = 0;
	struct sg_table table;
	int error;

	error = dma_get_sgtable(coherent->device, &table, coherent->address,
				coherent->bus_address, coherent->memory.length);
	if (error)
		return error == -ENOMEM ? -ENOMEM : -EOPNOTSUPP;
	for_each_sgtable_page(&table, &page, 0)
		if (found < array->count)
			array->pages[found++] = sg_page_iter_page(&page);
	sg_free_table(&table);
	return found == array->count ? 0 : -EOPNOTSUPP;
}

static int take(struct dmp_coherent *coherent, int node, gfp_t gfp)
{
	int error;

	coherent->device = dmp_device(node);
	coherent->address = dma_alloc_coherent(coherent->device, coherent->memory.length,
					       &coherent->bus_address, gfp);
	if (!coherent->address)
		return -ENOMEM;
	error = find_pages(coherent);
	if (error)
		give_back(coherent);
	return error;
}

/*
 * From @node or not at all. A kernel may keep memory apart for large pieces (CMA), whose
 * node nobody can choose; it is only for those who may sleep.
 */
static int take_exactly(struct dmp_coherent *coherent, int node)
{
	gfp_t gfp = COHERENT_GFP | __GFP_THISNODE;
	int error = take(coherent, node, gfp);

	if (error || coherent_node(&coherent->memory, 0) == node)
		return error;
	give_back(coherent);
	error = take(coherent, node, gfp & ~__GFP_DIRECT_RECLAIM);
	if (error || coherent_node(&coherent->memory, 0) == node)
		return error;
	give_back(coherent);
	return -ENOMEM;
}

static int allocate(struct dmp_coherent *coherent, const struct dmp_policy *policy, bool strict)
{
	int node, error = -ENOMEM;

	switch (policy->policy) {
	case DMP_POLICY_ANY:
		return take(coherent, numa_mem_id(), COHERENT_GFP);
	case DMP_POLICY_PREFER:
		error = take_exactly(coherent, policy->node);
		if (error == -ENOMEM && !strict)
			error = take(coherent, policy->node, COHERENT_GFP);
		return error;
	case DMP_POLICY_BIND:
		for (node = 0; node < DMP_NODES_MAX && error == -ENOMEM; node++)
			if (policy->node_mask >> node & 1)
				error = take_exactly(coherent, node);
		return error;
	default:
		return -EOPNOTSUPP;	/* it is one piece: no page by page */
	}
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
		error = dmp_page_array_alloc(&coherent->array, length >> PAGE_SHIFT);
	if (!error)
		error = allocate(coherent, policy, create->flags & DMP_BUFFER_STRICT);
	if (error) {
		dmp_memory_put(&coherent->memory);
		return ERR_PTR(error);
	}
	return &coherent->memory;
}
