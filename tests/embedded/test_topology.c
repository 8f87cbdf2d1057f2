// SPDX-License-Identifier: MIT
/*
 * test_topology.c - what sysfs says of a machine is what the topology says
 *
 * The machines are made up: a child process mounts an empty tree over the part of
 * sysfs that is read, in a mount namespace of its own, and writes the files there.
 * The set of nodes is read once in a process, so every machine gets its own child
 * and the parent asks nothing.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/check.h"
#include "placement.h"
#include "topology.h"

#define NODES	"/sys/devices/system/node"
#define MIB	(1ULL << 20)

/* Writes a file and the directories above it. */
static void put(const char *text, const char *format, ...)
{
	char path[512];
	va_list arguments;
	size_t length = strlen(text);
	int fd;

	va_start(arguments, format);
	vsnprintf(path, sizeof(path), format, arguments);
	va_end(arguments);
	for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
		*slash = '\0';
		CHECK(!mkdir(path, 0755) || errno == EEXIST || errno == EROFS);
		*slash = '/';
	}
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	CHECK(fd >= 0 && write(fd, text, length) == (ssize_t)length);
	close(fd);
}

static bool write_map(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool written = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return written;
}

/* A mount namespace of our own, with or without the right to one. */
static bool enter_namespace(void)
{
	char uid_map[32], gid_map[32];

	snprintf(uid_map, sizeof(uid_map), "0 %u 1", geteuid());
	snprintf(gid_map, sizeof(gid_map), "0 %u 1", getegid());
	if (unshare(CLONE_NEWNS) &&
	    (unshare(CLONE_NEWUSER | CLONE_NEWNS) || !write_map("/proc/self/setgroups", "deny") ||
	     !write_map("/proc/self/uid_map", uid_map) || !write_map("/proc/self/gid_map", gid_map)))
		return false;
	return !mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
}

static void cover(const char *path)
{
	CHECK(!mount("none", path, "tmpfs", 0, NULL));
}

/* Runs @body as a process on a machine it makes up. */
static void on_machine(const char *covered, void (*body)(void))
{
	pid_t child = fork();
	int status;

	CHECK(child >= 0);
	if (!child) {
		if (!enter_namespace()) {
			printf("not checked: no mount namespace allowed (%s)\n", covered);
			_exit(0);
		}
		cover(covered);
		body();
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child);
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* ---- nodes */

static void put_two_nodes(void)
{
	put("0,2\n", NODES "/has_memory");
	put("0-2\n", NODES "/online");
	for (int node = 0; node < 3; node += 2) {
		char text[512];

		snprintf(text, sizeof(text),
			 "Node %d MemTotal:       %d kB\nNode %d MemFree:         %d kB\n"
			 "Node %d Active(file):   100 kB\nNode %d Inactive(file): 20 kB\n"
			 "Node %d SReclaimable:   3 kB\n"
			 "Node %d HugePages_Total: 7\nNode %d HugePages_Free:  5\n",
			 node, 4096 + node, node, 1024 + node, node, node, node, node, node);
		put(text, NODES "/node%d/meminfo", node);
	}
	put("0-1,64\n", NODES "/node0/cpulist");
	put("2,1023\n", NODES "/node2/cpulist");
	put("10 15 20\n", NODES "/node0/distance");
	put("20 15 10\n", NODES "/node2/distance");
}

static void two_nodes(void)
{
	struct dmp_topology row = { .size = sizeof(row), .kind = DMP_TOPOLOGY_NODE, .index = 1 };
	cpu_set_t cpus;

	put_two_nodes();
	CHECK(dmp_topology_node_mask() == 5);
	CHECK(!dmp_topology_fill(&row));
	CHECK(row.count == 2 && row.node == 2);
	CHECK(row.memory_bytes == 4098 * 1024 && row.memory_free_bytes == 1026 * 1024);
	CHECK(row.huge_pages == 7 && row.huge_pages_free == 5);
	CHECK(row.distance[0] == 20 && row.distance[1] == 15 && row.distance[2] == 10);
	CHECK(row.distance[3] == 0);
	CHECK(row.cpu_mask[0] == 4 && row.cpu_mask[15] == 1ULL << 63 && row.cpu_mask[1] == 0);
	CHECK(!strcmp((char *)row.name, "node2"));
	row.index = 2;
	CHECK(dmp_topology_fill(&row) == -ENOENT);
	CHECK(!dmp_topology_node_cpus(0, &cpus));
	CHECK(CPU_COUNT(&cpus) == 3 && CPU_ISSET(64, &cpus));
	CHECK(dmp_topology_node_cpus(1, &cpus) == -EINVAL);
	CHECK(dmp_topology_memory_available(4) == (1026 + 123) * 1024);
	CHECK(dmp_topology_memory_available(1) == (1024 + 123) * 1024);
	CHECK(dmp_topology_memory_available(5) > dmp_topology_memory_available(1));
}

static void two_node_policies(void)
{
	struct dmp_policy absent = { DMP_POLICY_PREFER, 1, 0 };
	struct dmp_policy there = { DMP_POLICY_PREFER, 2, 0 };
	struct dmp_policy beyond = { DMP_POLICY_INTERLEAVE, -1, 7 };
	struct dmp_policy both = { DMP_POLICY_INTERLEAVE, -1, 5 };
	struct dmp_placement placement;
	char bytes[64] = { 0 };

	put_two_nodes();
	CHECK(dmp_placement_check(&absent) == -EINVAL && dmp_placement_check(&beyond) == -EINVAL);
	CHECK(!dmp_placement_check(&there) && !dmp_placement_check(&both));
	/* With several nodes nothing is true by construction. */
	CHECK(!dmp_placement_count(&there, bytes, sizeof(bytes), 4096, false, &placement));
	CHECK(placement.how != DMP_PLACEMENT_SINGLE);
}

static void no_nodes(void)
{
	struct dmp_topology row = { .size = sizeof(row), .kind = DMP_TOPOLOGY_NODE };

	CHECK(dmp_topology_node_mask() == 1);
	CHECK(!dmp_topology_fill(&row));
	CHECK(row.count == 1 && row.node == 0 && row.memory_bytes > 0);
}

static void test_two_nodes_are_told_apart(void)
{
	on_machine(NODES, two_nodes);
}

static void test_policies_follow_the_nodes_there_are(void)
{
	on_machine(NODES, two_node_policies);
}

static void test_a_machine_without_nodes_is_one_node(void)
{
	on_machine(NODES, no_nodes);
}

/* ---- devices */

static void put_function(const char *directory, const char *class, const char *vendor,
			 const char *device, const char *node, const char *cpus)
{
	put(class, "%s/class", directory);
	put(vendor, "%s/vendor", directory);
	put(device, "%s/device", directory);
	put(node, "%s/numa_node", directory);
	put(cpus, "%s/local_cpulist", directory);
}

static void accelerators(void)
{
	struct dmp_topology row = { .size = sizeof(row), .kind = DMP_TOPOLOGY_GPU };

	put_function("/sys/bus/pci/devices/0001:c1:02.3", "0x030200\n", "0x10de\n", "0x2330\n",
		     "1\n", "8-9\n");
	put_function("/sys/bus/pci/devices/0000:01:00.0", "0x030000\n", "0x1002\n", "0x740f\n",
		     "-1\n", "0\n");
	put("Instinct of a test\n", "/sys/bus/pci/devices/0000:01:00.0/product_name");
	put_function("/sys/bus/pci/devices/0000:02:00.0", "0x030000\n", "0x1234\n", "0x1111\n",
		     "0\n", "0\n");	/* a plain display */
	put_function("/sys/bus/pci/devices/0000:03:00.0", "0x120000\n", "0x1da3\n", "0x1020\n",
		     "0\n", "0\n");
	put_function("/sys/bus/pci/devices/0000:04:00.0", "0x020000\n", "0x15b3\n", "0x1021\n",
		     "0\n", "0\n");	/* a network card */
	CHECK(!dmp_topology_fill(&row));
	CHECK(row.count == 3 && row.node == -1 && row.pci_address == 0x0100);
	CHECK(row.pci_vendor == 0x1002740f && row.cpu_mask[0] == 1);
	CHECK(!strcmp((char *)row.name, "Instinct of a test"));
	row.index = 1;
	CHECK(!dmp_topology_fill(&row));
	CHECK(row.pci_vendor == 0x1da31020 && !strcmp((char *)row.name, "1da3:1020"));
	row.index = 2;
	CHECK(!dmp_topology_fill(&row));
	CHECK(row.node == 1 && row.pci_address == (1 << 16 | 0xc1 << 8 | 2 << 3 | 3));
	CHECK(row.cpu_mask[0] == 0x300 && !strcmp((char *)row.name, "NVIDIA 10de:2330"));
	row.index = 3;
	CHECK(dmp_topology_fill(&row) == -ENOENT);
}

static void nics(void)
{
	struct dmp_topology row = { .size = sizeof(row), .kind = DMP_TOPOLOGY_NIC };

	put_function("/sys/class/pci/0000:5e:00.1", "0x020000\n", "0x15b3\n", "0x1021\n", "0\n",
		     "3\n");
	put("1\n", "/sys/class/infiniband/mlx5_0/node_type");
	put("1\n", "/sys/class/infiniband/rxe0/node_type");
	CHECK(!symlink("/sys/class/pci/0000:5e:00.1", "/sys/class/infiniband/mlx5_0/device"));
	CHECK(!dmp_topology_fill(&row));
	CHECK(row.count == 2 && !strcmp((char *)row.name, "mlx5_0") && row.node == 0);
	CHECK(row.pci_address == (0x5e << 8 | 1) && row.pci_vendor == 0x15b31021);
	CHECK(row.cpu_mask[0] == 8);
	row.index = 1;
	CHECK(!dmp_topology_fill(&row));
	CHECK(!strcmp((char *)row.name, "rxe0") && row.node == -1 && row.pci_address == 0);
}

static void test_accelerators_are_found_by_class_and_maker(void)
{
	on_machine("/sys/bus", accelerators);
}

static void test_rdma_devices_are_found_with_or_without_a_card(void)
{
	on_machine("/sys/class", nics);
}

/* ---- control groups */

/* The path of this process in version 2 (or in version 1's memory hierarchy). */
static bool own_group(bool v2, char *path, size_t capacity)
{
	char line[512];
	FILE *file = fopen("/proc/self/cgroup", "re");
	bool found = false;

	CHECK(file);
	while (!found && fgets(line, sizeof(line), file)) {
		char *colon = strrchr(line, ':');

		line[strcspn(line, "\n")] = '\0';
		found = v2 ? !strncmp(line, "0::", 3) : strstr(line, ":memory:") != NULL;
		if (found)
			snprintf(path, capacity, "%s", colon + 1);
	}
	fclose(file);
	return found;
}

static void groups(void)
{
	char path[512];

	CHECK(dmp_topology_memory_available(0) > 64 * MIB);
	if (own_group(true, path, sizeof(path))) {
		put("max\n", "/sys/fs/cgroup%s/memory.max", path);
		CHECK(dmp_topology_memory_available(0) > 64 * MIB);
		put("20971520\n", "/sys/fs/cgroup%s/memory.max", path);
		put("8388608\n", "/sys/fs/cgroup%s/memory.current", path);
		CHECK(dmp_topology_memory_available(0) == 12 * MIB);
		put("anon 1\ninactive_file 1048576\nactive_file 2097152\n",
		    "/sys/fs/cgroup%s/memory.stat", path);
		CHECK(dmp_topology_memory_available(0) == 15 * MIB);
		put("31457280\n", "/sys/fs/cgroup%s/memory.current", path);
		CHECK(dmp_topology_memory_available(0) == 3 * MIB);
	}
	if (own_group(false, path, sizeof(path))) {
		/* A limit of a group above counts too; below, the group has none. */
		put("9223372036854771712\n", "/sys/fs/cgroup/memory%s/memory.limit_in_bytes", path);
		put("0\n", "/sys/fs/cgroup/memory%s/memory.usage_in_bytes", path);
		put("2097152\n", "/sys/fs/cgroup/memory/memory.limit_in_bytes");
		put("1048576\n", "/sys/fs/cgroup/memory/memory.usage_in_bytes");
		put("inactive_file 5\ntotal_inactive_file 1024\n",
		    "/sys/fs/cgroup/memory/memory.stat");
		CHECK(dmp_topology_memory_available(0) == MIB + 1024 || !strcmp(path, "/"));
		put("4096\n", "/sys/fs/cgroup/memory%s/memory.limit_in_bytes", path);
		CHECK(dmp_topology_memory_available(0) == 4096);
	}
}

static void test_every_group_above_the_process_limits_it(void)
{
	on_machine("/sys/fs/cgroup", groups);
}

/* ---- this machine */

static void test_node_rows_match_the_mask(void)
{
	__u64 mask = dmp_topology_node_mask();
	__u32 count = (__u32)__builtin_popcountll(mask);
	struct dmp_topology row = { .size = sizeof(row), .kind = DMP_TOPOLOGY_NODE };

	CHECK(mask);
	for (row.index = 0; row.index < count; row.index++) {
		CHECK(!dmp_topology_fill(&row));
		CHECK(row.size == sizeof(row) && row.kind == DMP_TOPOLOGY_NODE);
		CHECK(row.count == count);
		CHECK(row.node >= 0 && mask >> row.node & 1);
		CHECK(row.memory_bytes && row.memory_free_bytes <= row.memory_bytes);
		CHECK(row.distance[row.node] == 10 || access("/sys/devices/system/node", F_OK));
		CHECK(row.name[0] && !row.name[DMP_NAME_BYTES - 1]);
	}
}

static void test_rows_beyond_the_last_leave_the_struct_alone(void)
{
	for (__u32 kind = 0; kind <= DMP_TOPOLOGY_GPU + 1; kind++) {
		struct dmp_topology row, before;

		memset(&row, 0x5a, sizeof(row));
		row.kind = kind;
		row.index = 100000;
		before = row;
		CHECK(dmp_topology_fill(&row) == (kind > DMP_TOPOLOGY_GPU ? -EINVAL : -ENOENT));
		CHECK(!memcmp(&row, &before, sizeof(row)));
	}
}

static void test_every_device_row_can_be_read(void)
{
	for (__u32 kind = DMP_TOPOLOGY_NIC; kind <= DMP_TOPOLOGY_GPU; kind++) {
		struct dmp_topology row = { .size = sizeof(row), .kind = kind };
		__u32 count = 1;

		for (row.index = 0; row.index < count; row.index++) {
			int ret = dmp_topology_fill(&row);

			if (ret == -ENOENT && row.index == 0)
				break;
			CHECK(!ret);
			count = row.count;
			CHECK(row.node >= -1 && row.name[0]);
			printf("device: kind %u name %s node %d pci %x vendor %08x\n", kind, row.name,
			       row.node, row.pci_address, row.pci_vendor);
		}
	}
}

static void test_node_cpus_are_those_of_the_row(void)
{
	struct dmp_topology row = { .size = sizeof(row), .kind = DMP_TOPOLOGY_NODE };
	cpu_set_t cpus;

	CHECK(!dmp_topology_fill(&row));
	CHECK(!dmp_topology_node_cpus(row.node, &cpus));
	for (int cpu = 0; cpu < DMP_CPUS_MAX; cpu++)
		CHECK(!CPU_ISSET(cpu, &cpus) == !(row.cpu_mask[cpu / 64] >> (cpu % 64) & 1));
	CHECK(dmp_topology_node_cpus(-1, &cpus) == -EINVAL);
	CHECK(dmp_topology_node_cpus(DMP_NODES_MAX, &cpus) == -EINVAL);
	CHECK(dmp_topology_node_cpus(1 << 20, &cpus) == -EINVAL);
}

static void test_available_memory_is_within_the_machine(void)
{
	__u64 physical = (__u64)sysconf(_SC_PHYS_PAGES) * (__u64)sysconf(_SC_PAGESIZE);
	__u64 available = dmp_topology_memory_available(0);

	CHECK(available > 0 && available <= physical);
	CHECK(dmp_topology_memory_available(dmp_topology_node_mask()) <= physical);
}

int main(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	test_two_nodes_are_told_apart();
	test_policies_follow_the_nodes_there_are();
	test_a_machine_without_nodes_is_one_node();
	test_accelerators_are_found_by_class_and_maker();
	test_rdma_devices_are_found_with_or_without_a_card();
	test_every_group_above_the_process_limits_it();
	/* Only now may this process read the set of nodes. */
	test_node_rows_match_the_mask();
	test_rows_beyond_the_last_leave_the_struct_alone();
	test_every_device_row_can_be_read();
	test_node_cpus_are_those_of_the_row();
	test_available_memory_is_within_the_machine();
	return 0;
}
