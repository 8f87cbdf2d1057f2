// SPDX-License-Identifier: GPL-2.0
/*
 * memory.c - what all memories have in common: references, the limit, revocation
 *
 * Who touches bytes is inside a section of `readers`, one for all memories: revocation is
 * rare and may wait for strangers. `charged` and `alive` are given back after the memory
 * itself, so that whoever sees them fall can have the pages.
 */
#include <linux/mm.h>
#include <linux/srcu.h>
#include <linux/workqueue.h>

#include "buffer.h"
#include "memory.h"
#include "plane.h"
#include "trace.h"

/* Whatever the limit, one part in so many of the machine's memory stays for others. */
#define RESERVE_SHARE 16

DEFINE_STATIC_SRCU(readers);
static atomic64_t charged = ATOMIC64_INIT(0);
static atomic64_t serials = ATOMIC64_INIT(0);
static atomic_t alive = ATOMIC_INIT(0);

static void tell_revoked(struct work_struct *work)
{
	dmp_buffer_tell_revoked();
}

static DECLARE_WORK(revocation_work, tell_revoked);

void dmp_memory_init(struct dmp_memory *memory, const struct dmp_memory_operations *operations,
		     u32 kind, u64 length)
{
	kref_init(&memory->references);
	memory->operations = operations;
	memory->serial = atomic64_inc_return(&serials);
	memory->kind = kind;
	memory->page_bytes = PAGE_SIZE;
	memory->length = length;
	atomic_set(&memory->exports, 0);
	INIT_LIST_HEAD(&memory->exported);
	atomic_inc(&alive);
}

void dmp_memory_get(struct dmp_memory *memory)
{
	kref_get(&memory->references);
}

static void free_memory(struct kref *references)
{
	struct dmp_memory *memory = container_of(references, struct dmp_memory, references);
	u64 bytes = memory->charged_bytes;

	trace_dmp_memory_free(memory);
	memory->operations->free(memory);
	dmp_uncharge(bytes);
	atomic_dec(&alive);
}

/* Context: may sleep. Neither plane->lock nor mmap_lock is held: user memory takes the latter. */
void dmp_memory_put(struct dmp_memory *memory)
{
	might_sleep();
	kref_put(&memory->references, free_memory);
}

bool dmp_pages_fit(u64 pages)
{
	long available = si_mem_available() - (long)(totalram_pages() / RESERVE_SHARE);

	return available > 0 && pages <= (u64)available;
}

/* Only what fits is ever added: a request that is far too large makes no other one fail. */
static int charge_limit(u64 bytes)
{
	u64 max = READ_ONCE(dmp_bytes_max);
	s64 before = atomic64_read(&charged);

	do {
		if (bytes > max || (u64)before > max - bytes)
			return -ENOSPC;
	} while (!atomic64_try_cmpxchg(&charged, &before, before + bytes));
	return 0;
}

int dmp_charge(u64 bytes)
{
	int error = charge_limit(bytes);

	if (error || dmp_pages_fit(bytes >> PAGE_SHIFT))
		return error;
	dmp_uncharge(bytes);
	return -ENOMEM;
}

void dmp_uncharge(u64 bytes)
{
	atomic64_sub(bytes, &charged);
}

int dmp_memory_charge(struct dmp_memory *memory, u64 bytes)
{
	int error = dmp_charge(bytes);

	if (!error)
		memory->charged_bytes += bytes;
	return error;
}

int dmp_memory_charge_resident(struct dmp_memory *memory, u64 bytes)
{
	int error = charge_limit(bytes);

	if (!error)
		memory->charged_bytes += bytes;
	return error;
}

u64 dmp_memory_charged_bytes(void)
{
	return atomic64_read(&charged);
}

u32 dmp_memory_count(void)
{
	return atomic_read(&alive);
}

int dmp_memory_enter(void)
	__acquires(&readers)
{
	return srcu_read_lock(&readers);
}

void dmp_memory_leave(int section)
	__releases(&readers)
{
	srcu_read_unlock(&readers, section);
}

bool dmp_memory_alive(const struct dmp_memory *memory)
{
	return !READ_ONCE(memory->revoked) &&
	       !(memory->origin && READ_ONCE(memory->origin->revoked));
}

/*
 * Every step is done again if somebody is already at it: each caller may then rely on all
 * of them when it returns.
 */
void dmp_memory_revoke(struct dmp_memory *memory)
{
	WRITE_ONCE(memory->revoked, true);
	/* Sections that found it alive end; those that begin from now on find it revoked. */
	synchronize_srcu(&readers);
	dmp_mapping_zap(memory);
	dmp_export_revoke(memory);
	trace_dmp_revoke(memory);
	schedule_work(&revocation_work);
}

void dmp_memory_exit(void)
{
	flush_work(&revocation_work);
}
