// SPDX-License-Identifier: GPL-2.0
/*
 * peer_nvidia.c - memory of an NVIDIA GPU by its GPU virtual address
 *
 * Speaks for devices that the driver "nvidia" is bound to. The driver resolves an address in
 * the GPU address space of the calling process, so a caller gets at its own memory only and
 * needs no further right. It pins the memory into the GPU's BAR, and may take it away at
 * any moment by calling back: cudaFree(), or the end of the process.
 *
 * The callback comes with locks of the driver held, and the driver takes the same locks in
 * get_pages and put_pages. So it takes no lock that anybody holds while calling the driver,
 * and calls neither of them; nor one that anybody holds while memory is reclaimed, since that
 * may come to the driver. It is given a number, not a pointer: looking that up finds the peer
 * with a reference, or nothing if its last reference has gone.
 *
 * Who frees the page table is decided by one atomic exchange of `table`: who gets it gives
 * it to put_pages if nothing has happened, to free_page_table in the callback.
 *
 * The three functions are looked up when a buffer is made. Finding one holds the driver in
 * memory, until the buffer is gone. Kernels since 6.6 (and stable ones since then) find only
 * what is exported GPL-only, as NVIDIA's driver does since 550; docs/design/peer-buffers.md.
 */
#include <linux/device.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/xarray.h>

#include "peer.h"
#include "peer_nvidia.h"

struct dmp_nvidia_calls {
	typeof(nvidia_p2p_get_pages) *get_pages;
	typeof(nvidia_p2p_put_pages) *put_pages;
	typeof(nvidia_p2p_free_page_table) *free_page_table;
};

struct dmp_nvidia_peer {
	struct dmp_peer peer;
	/* immutable after take */
	struct dmp_nvidia_calls calls;		/* each holds the driver; NULL: none was found */
	u32 number;				/* in dmp_nvidia_peers; 0: not there */
	u64 address;				/* pinned, rounded outwards */
	/* atomic */
	struct nvidia_p2p_page_table *table;
};

/* Number -> peer. Numbers are not used again for a long time: a late callback finds nobody. */
static DEFINE_XARRAY_ALLOC1(dmp_nvidia_peers);
static u32 dmp_nvidia_number_next;	/* protected by the lock of dmp_nvidia_peers */

/*
 * A failed search may print a line (the kernel's, about a symbol that is not for us), so
 * nobody is to repeat it at will: after one there is none until a module has been loaded.
 */
static DEFINE_MUTEX(dmp_nvidia_search_lock);
static bool dmp_nvidia_search_worth = true;

static void dmp_nvidia_forget(struct dmp_nvidia_calls *calls)
{
	if (calls->get_pages)
		symbol_put(nvidia_p2p_get_pages);
	if (calls->put_pages)
		symbol_put(nvidia_p2p_put_pages);
	if (calls->free_page_table)
		symbol_put(nvidia_p2p_free_page_table);
	memset(calls, 0, sizeof(*calls));
}

static int dmp_nvidia_search(struct dmp_nvidia_calls *calls)
{
	int error = -EOPNOTSUPP;

	mutex_lock(&dmp_nvidia_search_lock);
	if (!READ_ONCE(dmp_nvidia_search_worth))
		goto out_unlock;
	/* Cleared before: a module that comes meanwhile makes it worth trying again. */
	WRITE_ONCE(dmp_nvidia_search_worth, false);
	calls->get_pages = symbol_get(nvidia_p2p_get_pages);
	if (calls->get_pages) {
		calls->put_pages = symbol_get(nvidia_p2p_put_pages);
		calls->free_page_table = symbol_get(nvidia_p2p_free_page_table);
	}
	if (calls->get_pages && calls->put_pages && calls->free_page_table) {
		WRITE_ONCE(dmp_nvidia_search_worth, true);
		error = 0;
	} else {
		dmp_nvidia_forget(calls);
	}
out_unlock:
	mutex_unlock(&dmp_nvidia_search_lock);
	return error;
}

static int dmp_nvidia_module_event(struct notifier_block *block, unsigned long event, void *data)
{
	if (event == MODULE_STATE_LIVE)
		WRITE_ONCE(dmp_nvidia_search_worth, true);
	return NOTIFY_OK;
}

static struct notifier_block dmp_nvidia_module_block = {
	.notifier_call = dmp_nvidia_module_event,
};

static bool dmp_nvidia_speaks_for(struct pci_dev *device)
{
	bool bound;

	device_lock(&device->dev);
	bound = device->dev.driver && !strcmp(device->dev.driver->name, NVIDIA_P2P_DRIVER);
	device_unlock(&device->dev);
	return bound;
}

/*
 * The driver takes memory away. When this returns nothing reaches it any more.
 *
 * Context: of the driver, with locks of the driver held. May sleep. Nobody who is inside
 * dmp_memory_enter() calls the driver, so waiting for those sections ends.
 */
static void dmp_nvidia_gone(void *data)
{
	struct nvidia_p2p_page_table *table;
	struct dmp_nvidia_peer *this;

	rcu_read_lock();
	this = xa_load(&dmp_nvidia_peers, (uintptr_t)data);
	if (this && !dmp_peer_get_alive(&this->peer))
		this = NULL;
	rcu_read_unlock();
	if (!this)
		return;
	dmp_peer_revoke(&this->peer);
	/* After the fence: take() has stored it by now, or will find the memory dead. */
	table = xchg(&this->table, NULL);
	if (table)
		this->calls.free_page_table(table);
	dmp_memory_put(&this->peer.memory);
}

static u64 dmp_nvidia_page_bytes(const struct nvidia_p2p_page_table *table)
{
	switch (table->page_size) {
	case NVIDIA_P2P_PAGE_4K:
		return 4096;
	case NVIDIA_P2P_PAGE_64K:
		return 65536;
	case NVIDIA_P2P_PAGE_128K:
		return 131072;
	}
	return 0;
}

/*
 * Walks the runs of [@skip, @skip + @bytes) of @table: pages that follow one another are one
 * run. Fills @runs, or only counts if it is NULL.
 */
static u32 dmp_nvidia_runs(const struct nvidia_p2p_page_table *table, u64 skip, u64 bytes,
			   struct dmp_peer_run *runs)
{
	u64 page_bytes = dmp_nvidia_page_bytes(table);
	u64 offset = 0;
	phys_addr_t expected = 0;
	u32 count = 0;

	while (offset < bytes) {
		u64 index = (skip + offset) / page_bytes;
		u64 inside = (skip + offset) % page_bytes;
		u64 step = min(page_bytes - inside, bytes - offset);
		phys_addr_t start = table->pages[index]->physical_address + inside;

		if (count == 0 || start != expected) {
			count++;
			if (runs) {
				runs[count - 1].offset = offset;
				runs[count - 1].start = start;
				runs[count - 1].bytes = 0;
			}
		}
		if (runs)
			runs[count - 1].bytes += step;
		expected = start + step;
		offset += step;
	}
	return count;
}

/* Can we read @table, and does it hold all of it? Inside dmp_memory_enter(). */
static bool dmp_nvidia_readable(const struct nvidia_p2p_page_table *table, u64 skip, u64 bytes)
{
	u64 page_bytes = dmp_nvidia_page_bytes(table);

	return table->version >> 16 == NVIDIA_P2P_PAGE_TABLE_MAJOR && page_bytes >= PAGE_SIZE &&
	       table->entries >= DIV_ROUND_UP_ULL(skip + bytes, page_bytes);
}

/*
 * What @table says, into runs of our own. A callback that comes at any point waits for the
 * section it finds us in, and until it returns the table is there; so each section first asks
 * whether it has come. Memory is allocated between the two: who waits holds driver's locks.
 */
static int dmp_nvidia_read(struct dmp_nvidia_peer *this, u64 skip, u64 bytes,
			   struct nvidia_p2p_page_table *table)
{
	struct dmp_peer *peer = &this->peer;
	int section = dmp_memory_enter();
	u32 count = 0;
	bool alive = dmp_memory_alive(&peer->memory);

	if (alive) {
		WRITE_ONCE(this->table, table);
		if (dmp_nvidia_readable(table, skip, bytes))
			count = dmp_nvidia_runs(table, skip, bytes, NULL);
	} else {
		this->calls.free_page_table(table);
	}
	dmp_memory_leave(section);
	if (!alive)
		return -ENODEV;
	if (count == 0)
		return -EOPNOTSUPP;
	peer->runs = kvcalloc(count, sizeof(*peer->runs), GFP_KERNEL_ACCOUNT);
	if (!peer->runs)
		return -ENOMEM;
	section = dmp_memory_enter();
	alive = dmp_memory_alive(&peer->memory);
	if (alive) {
		dmp_nvidia_runs(table, skip, bytes, peer->runs);
		peer->run_count = count;
	}
	dmp_memory_leave(section);
	return alive ? 0 : -ENODEV;
}

/* The driver's answer in the words of the contract. */
static int dmp_nvidia_error(int error)
{
	switch (error) {
	case -EINVAL:
	case -ENOMEM:
	case -EBUSY:
	case -EPERM:
		return error;
	case -ENOTSUPP:
	case -EOPNOTSUPP:
		return -EOPNOTSUPP;
	}
	return -ENODEV;
}

static int dmp_nvidia_take(struct dmp_peer *peer, u32 bar, u64 address, u64 bytes)
{
	struct dmp_nvidia_peer *this = container_of(peer, struct dmp_nvidia_peer, peer);
	struct nvidia_p2p_page_table *table = NULL;
	u64 skip = address % NVIDIA_P2P_RANGE_ALIGN;
	u64 end;
	int error;

	if (check_add_overflow(address, bytes, &end) ||
	    check_add_overflow(end, NVIDIA_P2P_RANGE_ALIGN - 1, &end))
		return -EOVERFLOW;
	end = round_down(end, NVIDIA_P2P_RANGE_ALIGN);
	this->address = address - skip;
	error = dmp_nvidia_search(&this->calls);
	if (error)
		return error;
	error = xa_alloc_cyclic(&dmp_nvidia_peers, &this->number, this, xa_limit_32b,
				&dmp_nvidia_number_next, GFP_KERNEL);
	if (error < 0)
		return error;
	error = this->calls.get_pages(0, 0, this->address, end - this->address, &table,
				      dmp_nvidia_gone, (void *)(uintptr_t)this->number);
	if (error || !table)
		return dmp_nvidia_error(error);
	return dmp_nvidia_read(this, skip, bytes, table);
}

static void dmp_nvidia_give_back(struct dmp_peer *peer)
{
	struct dmp_nvidia_peer *this = container_of(peer, struct dmp_nvidia_peer, peer);
	struct nvidia_p2p_page_table *table = xchg(&this->table, NULL);

	/* A callback that comes from here on finds nobody, and the driver forgets the table. */
	if (this->number)
		xa_erase(&dmp_nvidia_peers, this->number);
	if (table)
		this->calls.put_pages(0, 0, this->address, table);
	dmp_nvidia_forget(&this->calls);
}

const struct dmp_peer_provider dmp_peer_nvidia = {
	.peer_bytes = sizeof(struct dmp_nvidia_peer),
	.speaks_for = dmp_nvidia_speaks_for,
	.take = dmp_nvidia_take,
	.give_back = dmp_nvidia_give_back,
};

int dmp_peer_nvidia_init(void)
{
	return register_module_notifier(&dmp_nvidia_module_block);
}

/* All peers are freed. A callback may be at its last instructions: wait till it has left. */
void dmp_peer_nvidia_exit(void)
{
	unregister_module_notifier(&dmp_nvidia_module_block);
	synchronize_rcu_tasks();
	xa_destroy(&dmp_nvidia_peers);
}
