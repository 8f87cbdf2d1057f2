/* SPDX-License-Identifier: MIT */
/*
 * topology.h - what the machine has: nodes, RDMA devices, accelerators, memory
 *
 * Everything is read from sysfs and procfs when it is asked for; only the set of
 * nodes with memory is read once. Nothing is allocated.
 */
#ifndef DMP_EMBEDDED_TOPOLOGY_H
#define DMP_EMBEDDED_TOPOLOGY_H

#include <sched.h>

#include "dmaplane.h"

/*
 * Serves DMP_TOPOLOGY: kind and index in, the rest out, written on success only.
 * -EINVAL for an unknown kind, -ENOENT for an index beyond the last row.
 */
int dmp_topology_fill(struct dmp_topology *row);

/* Nodes that have memory; bit 0 alone where sysfs does not say. */
__u64 dmp_topology_node_mask(void);

/* CPUs of a node. -EINVAL if there is no such node. */
int dmp_topology_node_cpus(int node, cpu_set_t *cpus);

/* Default hugetlb page, 0 if the kernel has none. */
__u32 dmp_topology_huge_page_bytes(void);

/*
 * Bytes that can be had without waking the OOM killer: the least of MemAvailable,
 * the room of every cgroup above this process (v2 and v1) and, where @node_mask is
 * not 0, what is free or reclaimable on these nodes.
 */
__u64 dmp_topology_memory_available(__u64 node_mask);

#endif /* DMP_EMBEDDED_TOPOLOGY_H */
