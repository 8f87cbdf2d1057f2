// SPDX-License-Identifier: GPL-2.0
/*
 * topology.c - what the machine has: nodes, RDMA devices, accelerators
 *
 * Rows and their order are those of the embedded plane, which reads the same facts from
 * sysfs: nodes with memory by number, devices by name. So an index means the same row as
 * long as no device comes or goes.
 *
 * Not known here, and 0: the pool of huge pages (hugetlb's counters are not for modules,
 * and our huge pages come from the page allocator, not from that pool). Not listed here:
 * RDMA devices that are not behind a PCI function, and products' names, which only the
 * drivers know.
 */
#include <linux/cpumask.h>
#include <linux/device.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/nodemask.h>
#include <linux/pci.h>
#include <linux/pci_ids.h>
#include <linux/string.h>
#include <linux/topology.h>
#include <linux/vmstat.h>

#include "plane.h"

#define CLASS_ACCELERATOR 0x1200

static void fill_cpus(struct dmp_topology *row, const struct cpumask *mask)
{
	unsigned int cpu;

	for_each_cpu_and(cpu, mask, cpu_online_mask)
		if (cpu < DMP_CPUS_MAX)
			row->cpu_mask[cpu / 64] |= 1ULL << (cpu % 64);
}

/* ---- nodes */

/*
 * The only node has what the machine has: its own numbers lag behind while the kernel is
 * still initialising memory.
 */
static void fill_node_memory(struct dmp_topology *row)
{
	u64 pages = 0, free = 0;
	struct zone *zone;
	int index;

	if (num_node_state(N_MEMORY) == 1) {
		struct sysinfo machine;

		si_meminfo(&machine);
		pages = machine.totalram;
		free = machine.freeram;
	} else {
		for (index = 0; index < MAX_NR_ZONES; index++) {
			zone = &NODE_DATA(row->node)->node_zones[index];
			pages += zone_managed_pages(zone);
			free += zone_page_state(zone, NR_FREE_PAGES);
		}
	}
	row->memory_bytes = pages << PAGE_SHIFT;
	row->memory_free_bytes = free << PAGE_SHIFT;
}

static int fill_node(struct dmp_topology *row)
{
	u32 skip = row->index;
	int node, other;

	for_each_node_state(node, N_MEMORY) {
		if (node >= DMP_NODES_MAX)
			break;
		if (row->count++ == skip)
			row->node = node;
	}
	if (skip >= row->count)
		return -ENOENT;
	node = row->node;
	fill_node_memory(row);
	fill_cpus(row, cpumask_of_node(node));
	for_each_online_node(other)
		if (other < DMP_NODES_MAX)
			row->distance[other] = min(node_distance(node, other), U8_MAX);
	snprintf(row->name, sizeof(row->name), "node%d", node);
	return 0;
}

/* ---- devices */

/* One pass over the PCI functions: the wanted one with the smallest name after `after`. */
struct search {
	const char *after;
	char name[DMP_NAME_BYTES];
	struct pci_dev *found;		/* a reference */
	struct pci_dev *here;		/* where the pass is */
	u32 count;			/* of all that are wanted */
};

static void consider(struct search *search, const char *name)
{
	search->count++;
	if (strcmp(name, search->after) <= 0 ||
	    (search->found && strcmp(name, search->name) >= 0))
		return;
	pci_dev_put(search->found);
	search->found = pci_dev_get(search->here);
	strscpy(search->name, name, sizeof(search->name));
}

static void consider_gpu(struct search *search)
{
	u32 class = search->here->class >> 8;
	u32 vendor = search->here->vendor;

	if (class == PCI_CLASS_DISPLAY_3D || class == CLASS_ACCELERATOR ||
	    (class == PCI_CLASS_DISPLAY_VGA &&
	     (vendor == PCI_VENDOR_ID_NVIDIA || vendor == PCI_VENDOR_ID_ATI)))
		consider(search, pci_name(search->here));
}

static int consider_child(struct device *child, void *search)
{
	if (child->class && strcmp(child->class->name, "infiniband") == 0)
		consider(search, dev_name(child));
	return 0;
}

static void consider_nics(struct search *search)
{
	/* A driver that is unbound takes its children away, and then their classes may go. */
	device_lock(&search->here->dev);
	device_for_each_child(&search->here->dev, search, consider_child);
	device_unlock(&search->here->dev);
}

static void fill_pci(struct dmp_topology *row, struct pci_dev *device)
{
	int node = dev_to_node(&device->dev);

	row->node = node;
	fill_cpus(row, node == NUMA_NO_NODE ? cpu_online_mask : cpumask_of_node(node));
	row->pci_vendor = (u32)device->vendor << 16 | device->device;
	row->pci_address = (u32)pci_domain_nr(device->bus) << 16 |
			   (u32)device->bus->number << 8 | device->devfn;
}

/* On success the caller holds a reference to the function, and row->name is its name. */
static struct pci_dev *find_device(struct dmp_topology *row,
				   void (*consider_here)(struct search *search))
{
	char after[DMP_NAME_BYTES] = "";
	struct search search;
	u32 number = 0;

	for (;;) {
		memset(&search, 0, sizeof(search));
		search.after = after;
		for_each_pci_dev(search.here)
			consider_here(&search);
		row->count = search.count;
		if (!search.found || number++ == row->index)
			break;
		pci_dev_put(search.found);
		strscpy(after, search.name, sizeof(after));
	}
	strscpy(row->name, search.name, sizeof(row->name));
	return search.found;
}

static int fill_nic(struct dmp_topology *row)
{
	struct pci_dev *device;

	/* Without ib_core there are none; with it, it must stay while we look at its class. */
	if (!__symbol_get("ib_wq"))
		return -ENOENT;
	device = find_device(row, consider_nics);
	__symbol_put("ib_wq");
	if (!device)
		return -ENOENT;
	fill_pci(row, device);
	pci_dev_put(device);
	return 0;
}

static int fill_gpu(struct dmp_topology *row)
{
	struct pci_dev *device = find_device(row, consider_gpu);
	const char *maker = "";

	if (!device)
		return -ENOENT;
	fill_pci(row, device);
	if (device->vendor == PCI_VENDOR_ID_NVIDIA)
		maker = "NVIDIA ";
	else if (device->vendor == PCI_VENDOR_ID_ATI)
		maker = "AMD ";
	snprintf(row->name, sizeof(row->name), "%s%04x:%04x", maker, device->vendor,
		 device->device);
	pci_dev_put(device);
	return 0;
}

/* Context: may sleep. Holds no lock of ours. */
int dmp_topology_fill(struct dmp_plane *plane, void *argument)
{
	struct dmp_topology *row = argument;
	struct dmp_topology filled = {
		.size = row->size,
		.flags = row->flags,
		.kind = row->kind,
		.index = row->index,
	};
	int error = -EINVAL;

	if (row->kind == DMP_TOPOLOGY_NODE)
		error = fill_node(&filled);
	else if (row->kind == DMP_TOPOLOGY_NIC)
		error = fill_nic(&filled);
	else if (row->kind == DMP_TOPOLOGY_GPU)
		error = fill_gpu(&filled);
	if (!error)
		*row = filled;
	return error;
}
