/* SPDX-License-Identifier: GPL-2.0 */
/*
 * pages.h - an array of base pages, and what can be done with one wherever it came from
 *
 * It owns the array, not the pages. Offsets count from the start of the first page.
 */
#ifndef DMP_KERNEL_PAGES_H
#define DMP_KERNEL_PAGES_H

#include "memory.h"

struct dmp_page_array {
	struct page **pages;
	unsigned long count;
};

/* -ENOMEM; nothing is owned then. */
int dmp_page_array_alloc(struct dmp_page_array *array, unsigned long count);
void dmp_page_array_free(struct dmp_page_array *array);

/* The longest run in the direct map from @offset on, up to @end and to a bound of ours. */
void dmp_page_array_span(const struct dmp_page_array *array, u64 offset, u64 end,
			 struct dmp_span *span);

/* All of it in segments of at most so many bytes, mapped for nobody; or ERR_PTR. */
struct sg_table *dmp_page_array_scatter(const struct dmp_page_array *array,
					unsigned int segment_bytes);
/* All of it for @device, in segments the device can take; or ERR_PTR. */
struct sg_table *dmp_page_array_attach(const struct dmp_page_array *array, struct device *device,
				       enum dma_data_direction direction);
void dmp_page_array_detach(struct device *device, struct sg_table *table,
			   enum dma_data_direction direction);

/* One kernel address for all of it. */
int dmp_page_array_vmap(const struct dmp_page_array *array, bool write_combined,
			struct dmp_span *whole);

#endif /* DMP_KERNEL_PAGES_H */
