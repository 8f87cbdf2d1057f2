// SPDX-License-Identifier: GPL-2.0
/*
 * user.c - kind USER: memory the caller already has, pinned where it is
 *
 * Pinned for long, so that pages in movable places are moved away first, and charged to
 * the memlock limit of the address space it is in. That is held (not its pages) until the
 * charge is given back. We own the pins, the process its memory: the pages outlive its
 * mapping, but then nobody else sees what is written to them.
 */
#include <linux/mm.h>
#include <linux/overflow.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "compat.h"
#include "pages.h"

#define BATCH_PAGES	1024UL	/* pinned between two looks at signals */

struct dmp_user {
	struct dmp_memory memory;
	struct dmp_page_array array;
	struct mm_struct *mm;		/* a reference to the struct; NULL: nothing charged */
	unsigned long locked;		/* pages charged to it */
	unsigned long pinned;		/* the first so many of the array */
};

static struct dmp_user *user_of(struct dmp_memory *memory)
{
	return container_of(memory, struct dmp_user, memory);
}

static int user_span(struct dmp_memory *memory, u64 offset, struct dmp_span *span)
{
	dmp_page_array_span(&user_of(memory)->array, memory->page_offset + offset,
			    memory->page_offset + memory->length, span);
	return 0;
}

static int user_node(struct dmp_memory *memory, u64 offset)
{
	u64 index = (memory->page_offset + offset) >> PAGE_SHIFT;

	return page_to_nid(user_of(memory)->array.pages[index]);
}

static struct sg_table *user_scatter(struct dmp_memory *memory, unsigned int segment_bytes)
{
	return dmp_page_array_scatter(&user_of(memory)->array, segment_bytes);
}

/* Context: may sleep; mmap_lock is not held. */
static void user_free(struct dmp_memory *memory)
{
	struct dmp_user *user = user_of(memory);
	unsigned long done;

	for (done = 0; done < user->pinned; done += BATCH_PAGES) {
		unpin_user_pages_dirty_lock(user->array.pages + done,
					    min(user->pinned - done, BATCH_PAGES),
					    !memory->read_only);
		cond_resched();
	}
	dmp_page_array_free(&user->array);
	if (user->mm) {
		account_locked_vm(user->mm, user->locked, false);
		mmdrop(user->mm);
	}
	kfree(user);
}

static const struct dmp_memory_operations user_operations = {
	.span = user_span,
	.node = user_node,
	.scatter = user_scatter,
	.free = user_free,
};

/* What the memory manager answers, in the words of the contract. */
static int pin_error(long answer)
{
	switch (answer) {
	case -ENOMEM:
	case -EOPNOTSUPP:
		return answer;
	case -EINTR:
	case -ERESTARTSYS:
		return -EINTR;
	default:
		return -EFAULT;
	}
}

static int pin(struct dmp_user *user, unsigned long start)
{
	struct dmp_page_array *array = &user->array;
	unsigned int flags = FOLL_LONGTERM;

	flags |= user->memory.read_only ? DMP_PIN_TO_READ : FOLL_WRITE;
	while (user->pinned < array->count) {
		unsigned long count = min(array->count - user->pinned, BATCH_PAGES);
		long answer;

		if (fatal_signal_pending(current))
			return -EINTR;
		answer = pin_user_pages_fast(start + (user->pinned << PAGE_SHIFT), count, flags,
					     array->pages + user->pinned);
		if (answer > 0)
			user->pinned += answer;
		else if (user->memory.read_only && flags != FOLL_LONGTERM)
			flags = FOLL_LONGTERM;	/* a mapping that nobody may write */
		else
			return pin_error(answer);
		cond_resched();
	}
	return 0;
}

static int charge(struct dmp_user *user, unsigned long pages)
{
	int error;

	if (!current->mm)
		return -EFAULT;
	error = account_locked_vm(current->mm, pages, true);
	if (error)
		return -EPERM;
	mmgrab(current->mm);
	user->mm = current->mm;
	user->locked = pages;
	return 0;
}

struct dmp_memory *dmp_user_create(const struct dmp_buffer_create *create)
{
	u64 start = create->user_addr & PAGE_MASK;
	struct dmp_user *user;
	unsigned long pages;
	u64 end;
	int error;

	if (check_add_overflow(create->user_addr, create->length_bytes, &end) ||
	    check_add_overflow(end, (u64)PAGE_SIZE - 1, &end))
		return ERR_PTR(-EOVERFLOW);
	if (!access_ok((void __user *)(uintptr_t)create->user_addr, create->length_bytes))
		return ERR_PTR(-EFAULT);
	pages = ((end & PAGE_MASK) - start) >> PAGE_SHIFT;
	user = kzalloc(sizeof(*user), GFP_KERNEL_ACCOUNT);
	if (!user)
		return ERR_PTR(-ENOMEM);
	dmp_memory_init(&user->memory, &user_operations, DMP_KIND_USER, create->length_bytes);
	user->memory.read_only = create->flags & DMP_BUFFER_READ_ONLY;
	user->memory.page_offset = offset_in_page(create->user_addr);
	error = charge(user, pages);
	/* A memlock limit ends with its process; what is pinned may be there longer. */
	if (!error)
		error = dmp_memory_charge_resident(&user->memory, (u64)pages << PAGE_SHIFT);
	if (!error)
		error = dmp_page_array_alloc(&user->array, pages);
	if (!error)
		error = pin(user, start);
	if (error) {
		dmp_memory_put(&user->memory);
		return ERR_PTR(error);
	}
	return &user->memory;
}
