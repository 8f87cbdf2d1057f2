// SPDX-License-Identifier: GPL-2.0
/*
 * pages.c - kinds PAGES and HUGE: pages of ours, placed as asked
 *
 * PAGES come in blocks as large as can be had, and are split at once: each base page has
 * a reference of its own, so that whoever holds one (a mapping, O_DIRECT, a device) keeps
 * that page and no more. HUGE pages stay compound.
 *
 * Nobody else pays for a request that is too large: it is refused against what is free
 * before the first page, and again as it grows, and no allocation here wakes the OOM
 * killer, the machine's or the cgroup's.
 */
#include <linux/gfp.h>
#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/overflow.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/topology.h>
#include <linux/vmalloc.h>
#ifdef CONFIG_X86
#include <asm/set_memory.h>
#endif

#include "compat.h"
#include "pages.h"

#define ORDER_MAX	9U			/* of a block: 2 MiB with 4 KiB pages */
#define ORDER_HUGE	(PMD_SHIFT - PAGE_SHIFT)
#define FORECAST_PAGES	(SZ_16M >> PAGE_SHIFT)	/* taken between two looks at what is free */
#define BATCH_PAGES	4096UL			/* between two chances for others to run */
#define SPAN_PAGES_MAX	16UL			/* looked at for one span: most copies are short */

/* User memory: within the caller's cpuset, charged to his cgroup, zeroed. */
#define PAGES_GFP	(GFP_USER | __GFP_ACCOUNT | __GFP_ZERO | __GFP_NOWARN)

struct dmp_pages {
	struct dmp_memory memory;
	struct dmp_page_array array;
	unsigned int order;		/* of a page: 0, or ORDER_HUGE */
	unsigned long taken;		/* the first so many of the array are ours */
	unsigned long combined;		/* of these, the first so many are write-combined */
};

/* Where the next pages come from while an array is filled. */
struct intake {
	const struct dmp_policy *policy;
	u64 nodes_left;		/* BIND: to be tried after @node */
	int node;		/* NUMA_NO_NODE: wherever the caller's own policy says */
	bool exact;		/* from @node or not at all */
	bool strict;
	bool hasty;		/* the caller has a second choice */
	unsigned int order_min;
	unsigned int order_max;
};

/* ---- arrays of pages */

int dmp_page_array_alloc(struct dmp_page_array *array, unsigned long count)
{
	gfp_t gfp = GFP_KERNEL_ACCOUNT | __GFP_RETRY_MAYFAIL | __GFP_NOWARN;

	if (count > totalram_pages())
		return -ENOMEM;
	if (count <= INT_MAX / sizeof(*array->pages))
		array->pages = kvmalloc_array(count, sizeof(*array->pages), gfp);
	else
		array->pages = __vmalloc_array(count, sizeof(*array->pages), gfp);
	if (!array->pages)
		return -ENOMEM;
	array->count = count;
	return 0;
}

void dmp_page_array_free(struct dmp_page_array *array)
{
	kvfree(array->pages);
	array->pages = NULL;
	array->count = 0;
}

void dmp_page_array_span(const struct dmp_page_array *array, u64 offset, u64 end,
			 struct dmp_span *span)
{
	unsigned long first = offset >> PAGE_SHIFT;
	unsigned long last = min(first + SPAN_PAGES_MAX, array->count) - 1;
	unsigned long pfn = page_to_pfn(array->pages[first]);
	unsigned long index = first;
	u64 until;

	while (index < last && page_to_pfn(array->pages[index + 1]) == pfn + 1) {
		index++;
		pfn++;
	}
	until = min_t(u64, (u64)(index + 1) << PAGE_SHIFT, end);
	span->address = page_address(array->pages[first]) + offset_in_page(offset);
	span->bytes = until - offset;
	span->io = false;
	span->write_combined = false;
}

struct sg_table *dmp_page_array_scatter(const struct dmp_page_array *array,
					unsigned int segment_bytes)
{
	struct sg_table *table;
	int error;

	if (segment_bytes < PAGE_SIZE || array->count > UINT_MAX)
		return ERR_PTR(-EOPNOTSUPP);
	table = kzalloc(sizeof(*table), GFP_KERNEL);
	if (!table)
		return ERR_PTR(-ENOMEM);
	error = sg_alloc_table_from_pages_segment(table, array->pages, array->count, 0,
						  array->count << PAGE_SHIFT, segment_bytes,
						  GFP_KERNEL);
	if (error) {
		kfree(table);
		return ERR_PTR(error);
	}
	return table;
}

struct sg_table *dmp_page_array_attach(const struct dmp_page_array *array, struct device *device,
				       enum dma_data_direction direction)
{
	struct sg_table *table = dmp_page_array_scatter(array, dma_get_max_seg_size(device));
	int error;

	if (IS_ERR(table))
		return table;
	/* Several devices may have it at once: what is in caches is not the mapping's to sync. */
	error = dma_map_sgtable(device, table, direction, DMA_ATTR_SKIP_CPU_SYNC);
	if (error) {
		sg_free_table(table);
		kfree(table);
		return ERR_PTR(error);
	}
	dma_sync_sgtable_for_device(device, table, direction);
	return table;
}

void dmp_page_array_detach(struct device *device, struct sg_table *table,
			   enum dma_data_direction direction)
{
	dma_sync_sgtable_for_cpu(device, table, direction);
	dma_unmap_sgtable(device, table, direction, DMA_ATTR_SKIP_CPU_SYNC);
	sg_free_table(table);
	kfree(table);
}

int dmp_page_array_vmap(const struct dmp_page_array *array, bool write_combined,
			struct dmp_span *whole)
{
	pgprot_t protection = write_combined ? pgprot_writecombine(PAGE_KERNEL) : PAGE_KERNEL;
	void *address;

	if (array->count > UINT_MAX)
		return -EOPNOTSUPP;
	address = vmap(array->pages, array->count, VM_MAP, protection);
	if (!address)
		return -ENOMEM;
	whole->address = address;
	whole->bytes = (u64)array->count << PAGE_SHIFT;
	whole->io = false;
	whole->write_combined = write_combined;
	return 0;
}

/* ---- taking pages */

static int node_of_mask(u64 mask)
{
	int near = numa_mem_id();

	return near < DMP_NODES_MAX && mask >> near & 1 ? near : __ffs64(mask);
}

static int node_after(u64 mask, int node)
{
	u64 above = node + 1 < DMP_NODES_MAX ? mask >> (node + 1) << (node + 1) : 0;

	return __ffs64(above ? above : mask);
}

static void intake_begin(struct intake *intake)
{
	const struct dmp_policy *policy = intake->policy;

	intake->node = NUMA_NO_NODE;
	intake->exact = false;
	switch (policy->policy) {
	case DMP_POLICY_PREFER:
		intake->node = policy->node;
		intake->exact = true;
		break;
	case DMP_POLICY_BIND:
		intake->node = node_of_mask(policy->node_mask);
		intake->nodes_left = policy->node_mask & ~(1ULL << intake->node);
		intake->exact = true;
		break;
	case DMP_POLICY_INTERLEAVE:
		intake->node = __ffs64(policy->node_mask);
		intake->exact = intake->strict;
		intake->order_max = intake->order_min;
		break;
	}
}

/* The place there was is full: is there another one? */
static bool intake_move(struct intake *intake)
{
	switch (intake->policy->policy) {
	case DMP_POLICY_PREFER:
		if (intake->strict || !intake->exact)
			return false;
		intake->exact = false;
		return true;
	case DMP_POLICY_BIND:
		if (!intake->nodes_left)
			return false;
		intake->node = node_of_mask(intake->nodes_left);
		intake->nodes_left &= ~(1ULL << intake->node);
		return true;
	default:
		return false;
	}
}

/* Is there somewhere else to go, so that it is not worth trying hard here? */
static bool has_second_choice(const struct intake *intake)
{
	if (intake->policy->policy == DMP_POLICY_PREFER && intake->exact && !intake->strict)
		return true;
	return intake->hasty || intake->nodes_left;
}

/* Larger blocks only if they are there; for the smallest, memory is reclaimed. */
static struct page *intake_take(const struct intake *intake, unsigned int order)
{
	gfp_t gfp = PAGES_GFP;

	if (order > intake->order_min)
		gfp = (gfp & ~__GFP_DIRECT_RECLAIM) | __GFP_NORETRY;
	else
		gfp |= has_second_choice(intake) ? __GFP_NORETRY : __GFP_RETRY_MAYFAIL;
	if (intake->order_min)
		gfp |= __GFP_COMP;
	if (intake->node == NUMA_NO_NODE)
		return alloc_pages(gfp, order);
	if (intake->exact)
		gfp |= __GFP_THISNODE;
	return alloc_pages_node(intake->node, gfp, order);
}

static int fill(struct dmp_pages *pages, struct intake *intake)
{
	struct dmp_page_array *array = &pages->array;
	unsigned long forecast = 0;
	unsigned int order;

	intake_begin(intake);
	order = intake->order_max;
	while (pages->taken < array->count) {
		unsigned long left = array->count - pages->taken;
		struct page *page;
		unsigned long i;

		if (fatal_signal_pending(current))
			return -EINTR;
		if (pages->taken >= forecast) {
			if (!dmp_pages_fit(left))
				return -ENOMEM;
			forecast = pages->taken + FORECAST_PAGES;
		}
		order = min_t(unsigned int, order, ilog2(left));
		page = intake_take(intake, order);
		if (!page && order > intake->order_min) {
			order--;
			continue;
		}
		if (!page) {
			if (!intake_move(intake))
				return -ENOMEM;
			order = intake->order_max;
			continue;
		}
		if (order && !intake->order_min)
			split_page(page, order);
		for (i = 0; i < 1UL << order; i++)
			array->pages[pages->taken++] = page + i;
		if (intake->policy->policy == DMP_POLICY_INTERLEAVE)
			intake->node = node_after(intake->policy->node_mask, intake->node);
		cond_resched();
	}
	return 0;
}

/* ---- write-combining: of the direct map too, so that no two mappings disagree */

#ifdef CONFIG_X86
static int combine(struct dmp_pages *pages)
{
	while (pages->combined < pages->taken) {
		unsigned long count = min(pages->taken - pages->combined, BATCH_PAGES);
		struct page **batch = pages->array.pages + pages->combined;
		int error;

		if (fatal_signal_pending(current))
			return -EINTR;
		/* A batch that fails may have been changed in part: it is restored as well. */
		pages->combined += count;
		error = set_pages_array_wc(batch, count);
		if (error)
			return error == -ENOMEM ? -ENOMEM : -EOPNOTSUPP;
		cond_resched();
	}
	return 0;
}

/* A page whose attribute cannot be restored must not go to somebody else: it is lost. */
static void uncombine(struct dmp_pages *pages)
{
	unsigned long first, i;

	for (first = 0; first < pages->combined; first += BATCH_PAGES) {
		struct page **batch = pages->array.pages + first;
		unsigned long count = min(pages->combined - first, BATCH_PAGES);

		if (WARN_ON_ONCE(set_pages_array_wb(batch, count)))
			for (i = 0; i < count; i++)
				get_page(batch[i]);
		cond_resched();
	}
}
#else
static int combine(struct dmp_pages *pages)
{
	return -EOPNOTSUPP;
}

static void uncombine(struct dmp_pages *pages)
{
}
#endif

/* ---- the operations of a memory */

static struct dmp_pages *pages_of(struct dmp_memory *memory)
{
	return container_of(memory, struct dmp_pages, memory);
}

static int pages_span(struct dmp_memory *memory, u64 offset, struct dmp_span *span)
{
	dmp_page_array_span(&pages_of(memory)->array, offset, memory->length, span);
	span->write_combined = memory->write_combined;
	return 0;
}

/*
 * Whole, and with ordinary page references: so O_DIRECT, RDMA and whoever else takes
 * pages of a process can take these.
 */
static int pages_map(struct dmp_memory *memory, struct vm_area_struct *vma)
{
	struct dmp_page_array *array = &pages_of(memory)->array;
	struct page **pages = array->pages + (vma->vm_pgoff - memory->map_pgoff);
	unsigned long total = vma_pages(vma), done = 0;

	vm_flags_set(vma, VM_MIXEDMAP);
	if (memory->write_combined)
		vma->vm_page_prot = pgprot_writecombine(vma->vm_page_prot);
	while (done < total) {
		unsigned long count = min(total - done, BATCH_PAGES);
		unsigned long left = count;
		int error;

		if (fatal_signal_pending(current))
			return -EINTR;
		error = vm_insert_pages(vma, vma->vm_start + (done << PAGE_SHIFT),
					pages + done, &left);
		if (error)
			return error;
		done += count;
		cond_resched();
	}
	return 0;
}

/* Only for pages that madvise(MADV_DONTNEED) threw out of a mapping: they are still ours. */
static vm_fault_t pages_fault(struct dmp_memory *memory, struct vm_fault *fault)
{
	struct dmp_page_array *array = &pages_of(memory)->array;
	pgoff_t index = fault->pgoff - memory->map_pgoff;

	int error;

	if (index >= array->count)
		return VM_FAULT_SIGBUS;
	/*
	 * Put in here, as a base page: a huge one left to the core could become a huge entry
	 * where no page table is, and in this kind of mapping that never gives it back.
	 */
	error = vm_insert_page(fault->vma, fault->address & PAGE_MASK, array->pages[index]);
	return error && error != -EBUSY ? vmf_error(error) : VM_FAULT_NOPAGE;
}

static int pages_node(struct dmp_memory *memory, u64 offset)
{
	return page_to_nid(pages_of(memory)->array.pages[offset >> PAGE_SHIFT]);
}

static struct sg_table *pages_attach(struct dmp_memory *memory, struct device *device,
				     enum dma_data_direction direction, bool peer)
{
	return dmp_page_array_attach(&pages_of(memory)->array, device, direction);
}

static void pages_detach(struct dmp_memory *memory, struct device *device,
			 struct sg_table *table, enum dma_data_direction direction)
{
	dmp_page_array_detach(device, table, direction);
}

static struct sg_table *pages_scatter(struct dmp_memory *memory, unsigned int segment_bytes)
{
	return dmp_page_array_scatter(&pages_of(memory)->array, segment_bytes);
}

static int pages_vmap(struct dmp_memory *memory, struct dmp_span *whole)
{
	return dmp_page_array_vmap(&pages_of(memory)->array, memory->write_combined, whole);
}

static void pages_vunmap(struct dmp_memory *memory, const struct dmp_span *whole)
{
	vunmap(whole->address);
}

static void pages_free(struct dmp_memory *memory)
{
	struct dmp_pages *pages = pages_of(memory);
	unsigned long i;

	uncombine(pages);
	for (i = 0; i < pages->taken; i += 1UL << pages->order) {
		put_page(pages->array.pages[i]);
		if (i % BATCH_PAGES == 0)
			cond_resched();
	}
	dmp_page_array_free(&pages->array);
	kfree(pages);
}

static const struct dmp_memory_operations pages_operations = {
	.span = pages_span,
	.map = pages_map,
	.fault = pages_fault,
	.node = pages_node,
	.attach = pages_attach,
	.detach = pages_detach,
	.scatter = pages_scatter,
	.vmap = pages_vmap,
	.vunmap = pages_vunmap,
	.free = pages_free,
};

static struct dmp_memory *create_of_order(const struct dmp_buffer_create *create,
					  const struct dmp_policy *policy, unsigned int order,
					  bool hasty)
{
	u64 page_bytes = (u64)PAGE_SIZE << order;
	struct intake intake = {
		.policy = policy,
		.strict = create->flags & DMP_BUFFER_STRICT,
		.hasty = hasty,
		.order_min = order,
		.order_max = max(order, ORDER_MAX),
	};
	struct dmp_pages *pages;
	u64 length;
	int error;

	if (check_add_overflow(create->length_bytes, page_bytes - 1, &length))
		return ERR_PTR(-EOVERFLOW);
	length &= ~(page_bytes - 1);
	pages = kzalloc(sizeof(*pages), GFP_KERNEL_ACCOUNT);
	if (!pages)
		return ERR_PTR(-ENOMEM);
	dmp_memory_init(&pages->memory, &pages_operations, create->kind, length);
	pages->memory.page_bytes = page_bytes;
	pages->memory.map_bytes = length;
	pages->order = order;
	error = dmp_memory_charge(&pages->memory, length);
	if (!error)
		error = dmp_page_array_alloc(&pages->array, length >> PAGE_SHIFT);
	if (!error)
		error = fill(pages, &intake);
	if (!error && create->flags & DMP_BUFFER_WRITE_COMBINE) {
		pages->memory.write_combined = true;
		error = combine(pages);
	}
	if (error) {
		dmp_memory_put(&pages->memory);
		return ERR_PTR(error);
	}
	return &pages->memory;
}

struct dmp_memory *dmp_pages_create(const struct dmp_buffer_create *create,
				    const struct dmp_policy *policy)
{
	bool second_choice = create->flags & DMP_BUFFER_HUGE_PREFER;
	struct dmp_memory *memory;

	if (create->kind == DMP_KIND_PAGES)
		return create_of_order(create, policy, 0, false);
	memory = create_of_order(create, policy, ORDER_HUGE, second_choice);
	if (IS_ERR(memory) && PTR_ERR(memory) == -ENOMEM && second_choice)
		memory = create_of_order(create, policy, 0, false);
	return memory;
}
