// SPDX-License-Identifier: GPL-2.0
/*
 * peer.c - memory of kind PEER: a PCI BAR, or an accelerator's memory seen through one
 *
 * Invariants
 *  - Every run lies inside a memory BAR of the peer's device, whatever its provider says.
 *  - The CPU reaches a run only inside dmp_memory_enter(), after dmp_memory_alive(): by the
 *    kernel's own mapping (span) or by putting a page into a user's mapping (fault). So once
 *    dmp_memory_revoke() has returned nothing touches the device, and it may be unplugged.
 *  - A device that goes is noticed however creation races with it: a peer is put on the list
 *    first, and then the device must still be on its bus; the notifier comes again after
 *    it has left it.
 *
 * dmp_peers_lock is inside every other lock of ours and is not held while a memory is
 * revoked or a reference dropped. Revoking does not take it.
 */
#include <linux/dma-mapping.h>
#include <linux/io.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/pci-p2pdma.h>
#include <linux/pci.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/wait.h>

#include "compat.h"
#include "peer.h"

/* Pages put into a user's mapping by one fault, if they are in the same run. */
#define DMP_PEER_FAULT_PAGES	16U

static DEFINE_MUTEX(dmp_peers_lock);
static LIST_HEAD(dmp_peers);		/* protected by dmp_peers_lock */
static atomic64_t dmp_peer_bytes = ATOMIC64_INIT(0);
static atomic_t dmp_peer_count = ATOMIC_INIT(0);
static DECLARE_WAIT_QUEUE_HEAD(dmp_peer_freed);

static const struct dmp_peer_provider *const dmp_peer_providers[] = {
	&dmp_peer_nvidia,
};

/* The run that holds @offset, which is inside the memory. */
static const struct dmp_peer_run *dmp_peer_run_at(const struct dmp_peer *peer, u64 offset)
{
	u32 first = 0, end = peer->run_count;

	while (end - first > 1) {
		u32 middle = first + (end - first) / 2;

		if (peer->runs[middle].offset <= offset)
			first = middle;
		else
			end = middle;
	}
	return &peer->runs[first];
}

static int dmp_peer_span(struct dmp_memory *memory, u64 offset, struct dmp_span *span)
{
	const struct dmp_peer_run *run = dmp_peer_run_at(dmp_peer_of(memory), offset);
	u64 inside = offset - run->offset;

	span->address = (void __force *)run->address + inside;
	span->bytes = run->bytes - inside;
	span->io = true;
	span->write_combined = memory->write_combined;
	return 0;
}

static int dmp_peer_map(struct dmp_memory *memory, struct vm_area_struct *vma)
{
	/*
	 * A private copy of device memory makes no sense, and PFN mappings cannot be one. A
	 * mapping of a read-only file, such as an export's, is shared but not VM_SHARED.
	 */
	if (!(vma->vm_flags & VM_MAYSHARE))
		return -EINVAL;
	vm_flags_set(vma, VM_PFNMAP | VM_IO | VM_DONTEXPAND | VM_DONTDUMP);
	if (memory->write_combined)
		vma->vm_page_prot = pgprot_writecombine(vma->vm_page_prot);
	else
		vma->vm_page_prot = pgprot_noncached(vma->vm_page_prot);
	return 0;
}

/* The page that is needed, and those that follow it: a BAR is mostly read in order. */
static vm_fault_t dmp_peer_fault(struct dmp_memory *memory, struct vm_fault *fault)
{
	struct vm_area_struct *vma = fault->vma;
	u64 offset = (u64)(fault->pgoff - memory->map_pgoff) << PAGE_SHIFT;
	const struct dmp_peer_run *run = dmp_peer_run_at(dmp_peer_of(memory), offset);
	u64 inside = offset - run->offset;
	unsigned long pfn = PHYS_PFN(run->start + inside);
	unsigned long address = fault->address & PAGE_MASK;
	unsigned long pages;
	vm_fault_t result;

	pages = min_t(u64, run->bytes - inside, vma->vm_end - address) >> PAGE_SHIFT;
	pages = min_t(unsigned long, pages, DMP_PEER_FAULT_PAGES);
	result = vmf_insert_pfn(vma, address, pfn);
	/* What is there already, or does not work, is left for its own fault. */
	while (result == VM_FAULT_NOPAGE && --pages > 0) {
		address += PAGE_SIZE;
		if (vmf_insert_pfn(vma, address, ++pfn) != VM_FAULT_NOPAGE)
			break;
	}
	return result;
}

static int dmp_peer_sync(struct dmp_memory *memory, u32 flags)
{
	if (flags & DMP_SYNC_FOR_WRITE)
		wmb();	/* combined stores leave this CPU before whatever tells of them */
	if (flags & DMP_SYNC_FOR_READ)
		rmb();	/* loads that follow come after the one that told of the data */
	return 0;
}

/*
 * Can @device reach the BARs of @peer? Another PCI device: if the kernel says that what is
 * between them passes it on. A kernel without PCI_P2PDMA cannot say: no.
 */
static bool dmp_peer_reachable(struct dmp_peer *peer, struct device *device)
{
	struct device *parent;

	for (parent = device; parent; parent = parent->parent)
		if (dev_is_pci(parent))
			return pci_p2pdma_distance(peer->device, device, false) >= 0;
	return false;
}

/* Can @device put such addresses on its bus? Asked before the DMA API, which warns of a No. */
static bool dmp_peer_addressable(const struct dmp_peer *peer, struct device *device)
{
	u64 most = min_not_zero(dma_get_mask(device), device->bus_dma_limit);
	u32 run;

	for (run = 0; run < peer->run_count; run++)
		if (peer->runs[run].start + peer->runs[run].bytes - 1 > most)
			return false;
	return true;
}

static void dmp_peer_unmap_segments(struct device *device, struct sg_table *table,
				    unsigned int count, enum dma_data_direction direction)
{
	struct scatterlist *entry;
	unsigned int i;

	for_each_sg(table->sgl, entry, count, i)
		dma_unmap_resource(device, sg_dma_address(entry), sg_dma_len(entry), direction,
				   DMA_ATTR_SKIP_CPU_SYNC);
}

/* There are no struct pages: the table has DMA addresses and nothing else. */
static struct sg_table *dmp_peer_attach(struct dmp_memory *memory, struct device *device,
					enum dma_data_direction direction, bool peer_access)
{
	struct dmp_peer *peer = dmp_peer_of(memory);
	u64 most = round_down(dma_get_max_seg_size(device), PAGE_SIZE) ? : PAGE_SIZE;
	struct sg_table *table;
	struct scatterlist *entry;
	u64 count = 0, inside = 0;
	u32 run = 0;
	int error;

	if (!peer_access || !dmp_peer_reachable(peer, device) ||
	    !dmp_peer_addressable(peer, device))
		return ERR_PTR(-EOPNOTSUPP);
	for (run = 0; run < peer->run_count; run++)
		count += DIV_ROUND_UP_ULL(peer->runs[run].bytes, most);
	if (count > UINT_MAX)
		return ERR_PTR(-EOVERFLOW);
	table = kzalloc(sizeof(*table), GFP_KERNEL_ACCOUNT);
	if (!table)
		return ERR_PTR(-ENOMEM);
	error = sg_alloc_table(table, count, GFP_KERNEL_ACCOUNT);
	if (error)
		goto err_table;
	count = 0;
	run = 0;
	for (entry = table->sgl; entry; entry = sg_next(entry)) {
		u64 bytes = min(most, peer->runs[run].bytes - inside);
		dma_addr_t address = dma_map_resource(device, peer->runs[run].start + inside, bytes,
						      direction, DMA_ATTR_SKIP_CPU_SYNC);

		error = -EOPNOTSUPP;
		if (dma_mapping_error(device, address))
			goto err_segments;
		sg_set_page(entry, NULL, bytes, 0);
		sg_dma_address(entry) = address;
		sg_dma_len(entry) = bytes;
		count++;
		inside += bytes;
		if (inside == peer->runs[run].bytes) {
			inside = 0;
			run++;
		}
	}
	return table;

err_segments:
	dmp_peer_unmap_segments(device, table, count, direction);
	sg_free_table(table);
err_table:
	kfree(table);
	return ERR_PTR(error);
}

static void dmp_peer_detach(struct dmp_memory *memory, struct device *device,
			    struct sg_table *table, enum dma_data_direction direction)
{
	dmp_peer_unmap_segments(device, table, table->orig_nents, direction);
	sg_free_table(table);
	kfree(table);
}

/* Out of the kernel's address space: nobody is inside, or it has been revoked. */
static void dmp_peer_unmap_runs(struct dmp_peer *peer)
{
	u32 run;

	for (run = 0; run < peer->run_count; run++) {
		if (peer->runs[run].address)
			iounmap(peer->runs[run].address);
		peer->runs[run].address = NULL;
	}
}

void dmp_peer_revoke(struct dmp_peer *peer)
{
	dmp_memory_revoke(&peer->memory);
	/*
	 * Now, not when its last holder goes: who gets the range next maps it his own way. Full
	 * barrier, pairs with that in dmp_peer_map_runs().
	 */
	if (atomic_xchg(&peer->mapped, 0)) {
		dmp_peer_unmap_runs(peer);
		/* Release: who finds it unclaimed finds it unmapped, in dmp_peer_claim(). */
		smp_store_release(&peer->claimed, false);
	}
}

/*
 * Without reclaim: it may come to a driver that is just calling one of us back, and that call
 * may end in dmp_peer_free(), which wants the lock.
 */
static void dmp_peer_let_go_locked(struct dmp_peer *peer)
{
	unsigned int flags = memalloc_noreclaim_save();

	lockdep_assert_held(&dmp_peers_lock);
	if (peer->provider->let_go)
		peer->provider->let_go(peer);
	memalloc_noreclaim_restore(flags);
}

/* Also of a peer that was never finished. */
static void dmp_peer_free(struct dmp_memory *memory)
{
	struct dmp_peer *peer = dmp_peer_of(memory);

	dmp_peer_unmap_runs(peer);
	/* Under the lock: the notifier then lets a device go only when all have let go of it. */
	mutex_lock(&dmp_peers_lock);
	if (!peer->device_gone)
		dmp_peer_let_go_locked(peer);
	list_del(&peer->peers);
	mutex_unlock(&dmp_peers_lock);
	if (peer->provider->give_back)
		peer->provider->give_back(peer);
	kvfree(peer->runs);
	atomic64_sub(peer->counted_bytes, &dmp_peer_bytes);
	pci_dev_put(peer->device);
	kfree_rcu(peer, rcu);
	/* The last thing: dmp_peer_exit() may be waiting for it. */
	if (atomic_dec_and_test(&dmp_peer_count))
		wake_up_all(&dmp_peer_freed);
}

static const struct dmp_memory_operations dmp_peer_operations = {
	.span = dmp_peer_span,
	.map = dmp_peer_map,
	.fault = dmp_peer_fault,
	.attach = dmp_peer_attach,
	.detach = dmp_peer_detach,
	.sync = dmp_peer_sync,
	.free = dmp_peer_free,
};

/* Is [start, start + bytes) inside one of the device's memory BARs? */
static bool dmp_peer_inside_bar(struct pci_dev *device, phys_addr_t start, u64 bytes)
{
	unsigned int bar;

	for (bar = 0; bar < PCI_STD_NUM_BARS; bar++) {
		u64 length = pci_resource_len(device, bar);
		u64 inside = (u64)start - pci_resource_start(device, bar);

		if ((pci_resource_flags(device, bar) & IORESOURCE_MEM) &&
		    start >= pci_resource_start(device, bar) &&
		    inside < length && bytes <= length - inside)
			return true;
	}
	return false;
}

/*
 * x86 gives a physical page one caching at a time: the second mapping silently gets that of
 * the first. So that a buffer is what it says, the two tiers never overlap. Asked of what
 * is one run; a driver that hands out pieces has already mapped them its own way.
 */
static int dmp_peer_claim(struct dmp_peer *peer)
{
	const struct dmp_peer *other;
	int error = 0;

	mutex_lock(&dmp_peers_lock);
	list_for_each_entry(other, &dmp_peers, peers) {
		/* Acquire: pairs with the release in dmp_peer_revoke(). */
		if (!smp_load_acquire(&other->claimed))
			continue;
		if (other->run_count != 1 || peer->run_count != 1 ||
		    other->memory.write_combined == peer->memory.write_combined)
			continue;
		if (other->runs->start < peer->runs->start + peer->runs->bytes &&
		    peer->runs->start < other->runs->start + other->runs->bytes)
			error = -EBUSY;
	}
	if (!error)
		peer->claimed = true;
	mutex_unlock(&dmp_peers_lock);
	return error;
}

static int dmp_peer_count_bytes(struct dmp_peer *peer, u64 bytes)
{
	if (atomic64_add_return(bytes, &dmp_peer_bytes) > DMP_PEER_BYTES_MAX) {
		atomic64_sub(bytes, &dmp_peer_bytes);
		return -ENOSPC;
	}
	peer->counted_bytes = bytes;
	return 0;
}

/* Into the kernel's address space, run by run; what is mapped is undone by free. */
static int dmp_peer_map_runs(struct dmp_peer *peer)
{
	u32 run;

	for (run = 0; run < peer->run_count; run++) {
		struct dmp_peer_run *this = &peer->runs[run];

		if (!dmp_peer_inside_bar(peer->device, this->start, this->bytes))
			return -EINVAL;
		if (peer->memory.write_combined)
			this->address = ioremap_wc(this->start, this->bytes);
		else
			this->address = ioremap(this->start, this->bytes);
		if (!this->address)
			return -ENOMEM;
	}
	/* Either who revokes it sees that it is mapped, or we see that it is revoked. */
	atomic_xchg(&peer->mapped, 1);
	return dmp_memory_alive(&peer->memory) ? 0 : -ENODEV;
}

/* Is it still on its bus? If so its removal is yet to be announced, or announced again. */
static bool dmp_peer_device_present(struct pci_dev *device)
{
	struct pci_dev *found = pci_get_domain_bus_and_slot(pci_domain_nr(device->bus),
							    device->bus->number, device->devfn);

	pci_dev_put(found);
	return found == device;
}

/* From a peer that is on the list to one that works; what a failure leaves, free undoes. */
static int dmp_peer_set_up(struct dmp_peer *peer, const struct dmp_buffer_create *create)
{
	int error;

	error = dmp_peer_count_bytes(peer, peer->memory.length);
	if (error)
		return error;
	peer->memory.map_pgoff = dmp_mapping_reserve(peer->memory.length);
	error = peer->provider->take(peer, create->peer_bar, create->peer_address,
				     peer->memory.length);
	if (error)
		return error;
	error = dmp_peer_claim(peer);
	if (error)
		return error;
	error = dmp_peer_map_runs(peer);
	if (error)
		return error;
	return dmp_peer_device_present(peer->device) ? 0 : -ENODEV;
}

static const struct dmp_peer_provider *dmp_peer_provider_find(struct pci_dev *device, u32 bar)
{
	size_t i;

	if (bar != DMP_PEER_DEVICE_MEMORY)
		return &dmp_peer_bar;
	for (i = 0; i < ARRAY_SIZE(dmp_peer_providers); i++)
		if (dmp_peer_providers[i]->speaks_for(device))
			return dmp_peer_providers[i];
	return NULL;
}

/**
 * dmp_peer_create() - memory of a device
 * @create: peer_device, peer_bar, peer_address, length_bytes, flags
 *
 * Context: may sleep; takes the device's lock.
 * Return: a memory with one reference, or ERR_PTR: -ENODEV no such device or BAR, -EINVAL
 * outside of it or not at a page, -EPERM not for this caller, -EBUSY mapped with the other
 * caching, -EOPNOTSUPP nobody here speaks for the memory of that device, -ENOSPC, -ENOMEM.
 */
struct dmp_memory *dmp_peer_create(const struct dmp_buffer_create *create)
{
	const struct dmp_peer_provider *provider;
	struct pci_dev *device;
	struct dmp_peer *peer;
	u64 length;
	int error;

	if (create->flags & ~DMP_BUFFER_WRITE_COMBINE)
		return ERR_PTR(-EINVAL);
	if (create->length_bytes == 0 || !IS_ALIGNED(create->peer_address, PAGE_SIZE))
		return ERR_PTR(-EINVAL);
	if (check_add_overflow(create->length_bytes, (u64)PAGE_SIZE - 1, &length))
		return ERR_PTR(-EOVERFLOW);
	length &= PAGE_MASK;
	device = pci_get_domain_bus_and_slot(create->peer_device >> 16,
					     (create->peer_device >> 8) & 0xff,
					     create->peer_device & 0xff);
	if (!device)
		return ERR_PTR(-ENODEV);
	error = -EOPNOTSUPP;
	provider = dmp_peer_provider_find(device, create->peer_bar);
	if (!provider)
		goto err_device;
	error = -ENOMEM;
	peer = kzalloc(provider->peer_bytes, GFP_KERNEL_ACCOUNT);
	if (!peer)
		goto err_device;
	peer->provider = provider;
	peer->device = device;	/* owned by the peer from here */
	dmp_memory_init(&peer->memory, &dmp_peer_operations, DMP_KIND_PEER, length);
	peer->memory.page_bytes = PAGE_SIZE;
	peer->memory.map_bytes = length;
	peer->memory.write_combined = create->flags & DMP_BUFFER_WRITE_COMBINE;
	peer->memory.revocable = true;
	atomic_inc(&dmp_peer_count);
	mutex_lock(&dmp_peers_lock);
	list_add_tail(&peer->peers, &dmp_peers);
	mutex_unlock(&dmp_peers_lock);
	error = dmp_peer_set_up(peer, create);
	if (error) {
		dmp_memory_put(&peer->memory);
		return ERR_PTR(error);
	}
	return &peer->memory;

err_device:
	pci_dev_put(device);
	return ERR_PTR(error);
}

/* A peer of @device whose revocation has not begun, with a reference; NULL: none is left. */
static struct dmp_peer *dmp_peer_next_of(struct pci_dev *device)
{
	struct dmp_peer *peer, *found = NULL;

	mutex_lock(&dmp_peers_lock);
	list_for_each_entry(peer, &dmp_peers, peers) {
		if (peer->device != device || peer->device_gone)
			continue;
		peer->device_gone = true;
		if (dmp_peer_get_alive(peer)) {
			found = peer;
			break;
		}
	}
	mutex_unlock(&dmp_peers_lock);
	return found;
}

/*
 * The device goes. Its driver has been unbound before; its BARs are given to others after.
 * DEL_DEVICE is the last call with everything in place. REMOVED_DEVICE comes when nobody
 * can find it on the bus any more, and is for who found it between the two.
 */
static int dmp_peer_bus_event(struct notifier_block *block, unsigned long event, void *data)
{
	struct pci_dev *device = to_pci_dev(data);
	struct dmp_peer *peer;

	if (event != BUS_NOTIFY_DEL_DEVICE && event != BUS_NOTIFY_REMOVED_DEVICE)
		return NOTIFY_DONE;
	while ((peer = dmp_peer_next_of(device)) != NULL) {
		dmp_peer_revoke(peer);
		dmp_memory_put(&peer->memory);
	}
	mutex_lock(&dmp_peers_lock);
	list_for_each_entry(peer, &dmp_peers, peers)
		if (peer->device == device)
			dmp_peer_let_go_locked(peer);
	mutex_unlock(&dmp_peers_lock);
	return NOTIFY_OK;
}

static struct notifier_block dmp_peer_bus_block = { .notifier_call = dmp_peer_bus_event };

int dmp_peer_init(void)
{
	int error = dmp_peer_nvidia_init();

	if (error)
		return error;
	error = bus_register_notifier(&pci_bus_type, &dmp_peer_bus_block);
	if (error)
		dmp_peer_nvidia_exit();
	return error;
}

/*
 * No plane is open and no dma-buf alive. A driver's callback may still hold the last reference
 * of a memory: wait for it, and then for its last instructions.
 */
void dmp_peer_exit(void)
{
	bus_unregister_notifier(&pci_bus_type, &dmp_peer_bus_block);
	wait_event(dmp_peer_freed, atomic_read(&dmp_peer_count) == 0);
	dmp_peer_nvidia_exit();
}
