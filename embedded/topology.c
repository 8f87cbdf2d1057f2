// SPDX-License-Identifier: MIT
/*
 * topology.c - what the machine has: nodes, RDMA devices, accelerators, memory
 *
 * Rows of a kind are in the order of their numbers or names, so an index means the
 * same row as long as no device comes or goes. A file that is missing is not an
 * error: its field keeps the value that means "unknown".
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "topology.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NODES		"/sys/devices/system/node"
#define INFINIBAND	"/sys/class/infiniband"
#define PCI		"/sys/bus/pci/devices"

#define DEVICES_MAX	256
#define ENTRY_BYTES	64
#define PATH_BYTES	512
#define FILE_BYTES	8192	/* the largest file read whole is meminfo or memory.stat */

#define CLASS_VGA	0x0300
#define CLASS_3D	0x0302
#define CLASS_ACCELERATOR 0x1200
#define VENDOR_NVIDIA	0x10de
#define VENDOR_AMD	0x1002

#define FORMATTED(n, m) __attribute__((format(printf, n, m)))

static bool read_path(char *text, size_t capacity, const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t length = 0;
	ssize_t got = 0;

	if (fd < 0)
		return false;
	while (length < capacity - 1) {
		got = read(fd, text + length, capacity - 1 - length);
		if (got <= 0)
			break;
		length += (size_t)got;
	}
	close(fd);
	text[length] = '\0';
	return got >= 0 && length;
}

FORMATTED(3, 4)
static bool read_text(char *text, size_t capacity, const char *format, ...)
{
	char path[PATH_BYTES];
	va_list arguments;
	int length;

	va_start(arguments, format);
	length = vsnprintf(path, sizeof(path), format, arguments);
	va_end(arguments);
	return length > 0 && (size_t)length < sizeof(path) && read_path(text, capacity, path);
}

/* The number after a whole word, as in "MemFree: 12" and "inactive_file 12". */
static bool find_number(const char *text, const char *word, __u64 *value)
{
	const char *found = text;
	size_t length = strlen(word);

	while ((found = strstr(found, word))) {
		bool starts = found == text || found[-1] == '\n' || found[-1] == ' ';

		found += length;
		if (starts && (*found == ':' || *found == ' ')) {
			*value = strtoull(found + 1, NULL, 10);
			return true;
		}
	}
	return false;
}

static __u64 number_or_zero(const char *text, const char *word)
{
	__u64 value = 0;

	return find_number(text, word, &value) ? value : 0;
}

/* "0-3,8": the next range of a list; NULL at its end. */
static const char *next_range(const char *list, unsigned long *first, unsigned long *last)
{
	char *end;

	if (*list == ',')
		list++;
	*first = *last = strtoul(list, &end, 10);
	if (end == list)
		return NULL;
	if (*end == '-')
		*last = strtoul(end + 1, &end, 10);
	return end;
}

static void parse_list(const char *list, __u64 *words, unsigned long bits)
{
	unsigned long first, last;

	while ((list = next_range(list, &first, &last)))
		for (unsigned long bit = first; bit <= last && bit < bits; bit++)
			words[bit / 64] |= 1ULL << (bit % 64);
}

/* ---- nodes */

static __u64 node_mask;

static void read_node_mask(void)
{
	char text[FILE_BYTES];
	__u64 mask = 0;

	if (read_text(text, sizeof(text), NODES "/has_memory"))
		parse_list(text, &mask, DMP_NODES_MAX);
	node_mask = mask ? mask : 1;
}

__u64 dmp_topology_node_mask(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, read_node_mask);
	return node_mask;
}

/* Without NUMA in sysfs the machine is one node with every CPU. */
static bool read_node_cpus(int node, __u64 *words)
{
	char text[FILE_BYTES];

	if (!read_text(text, sizeof(text), NODES "/node%d/cpulist", node)) {
		if (node || !access(NODES, F_OK) ||
		    !read_text(text, sizeof(text), "/sys/devices/system/cpu/online"))
			return false;
	}
	parse_list(text, words, DMP_CPUS_MAX);
	return true;
}

int dmp_topology_node_cpus(int node, cpu_set_t *cpus)
{
	__u64 words[DMP_CPUS_MAX / 64] = { 0 };

	if (node < 0 || node >= DMP_NODES_MAX || !read_node_cpus(node, words))
		return -EINVAL;
	CPU_ZERO(cpus);
	for (int cpu = 0; cpu < DMP_CPUS_MAX && cpu < CPU_SETSIZE; cpu++)
		if (words[cpu / 64] >> (cpu % 64) & 1)
			CPU_SET(cpu, cpus);
	return 0;
}

__u32 dmp_topology_huge_page_bytes(void)
{
	char text[FILE_BYTES];
	__u64 kilobytes;

	if (!read_path(text, sizeof(text), "/proc/meminfo"))
		return 0;
	kilobytes = number_or_zero(text, "Hugepagesize");
	return kilobytes <= UINT32_MAX / 1024 ? (__u32)kilobytes * 1024 : 0;
}

/*
 * Text with the MemTotal, MemFree, ... of a node. If it is the only one, what the
 * kernel says of the machine is better: a node whose memory is still being
 * initialised says less than it has.
 */
static bool read_node_memory(char *text, size_t capacity, int node)
{
	if (dmp_topology_node_mask() == 1ULL << node)
		return read_path(text, capacity, "/proc/meminfo");
	return read_text(text, capacity, NODES "/node%d/meminfo", node);
}

/* A node's distance file has one number for every online node, in their order. */
static void read_distances(int node, __u8 *distance)
{
	char online[FILE_BYTES], text[FILE_BYTES];
	__u64 nodes = 0;
	char *next = text;

	if (!read_text(online, sizeof(online), NODES "/online") ||
	    !read_text(text, sizeof(text), NODES "/node%d/distance", node))
		return;
	parse_list(online, &nodes, DMP_NODES_MAX);
	for (int i = 0; i < DMP_NODES_MAX; i++) {
		if (nodes >> i & 1) {
			unsigned long value = strtoul(next, &next, 10);

			distance[i] = value > UINT8_MAX ? UINT8_MAX : (__u8)value;
		}
	}
}

static int fill_node(struct dmp_topology *row)
{
	__u64 nodes = dmp_topology_node_mask();
	char text[FILE_BYTES];
	int node;

	row->count = (__u32)__builtin_popcountll(nodes);
	if (row->index >= row->count)
		return -ENOENT;
	for (__u32 i = 0; i < row->index; i++)
		nodes &= nodes - 1;
	node = __builtin_ctzll(nodes);
	row->node = node;
	if (read_node_memory(text, sizeof(text), node)) {
		row->memory_bytes = number_or_zero(text, "MemTotal") * 1024;
		row->memory_free_bytes = number_or_zero(text, "MemFree") * 1024;
		row->huge_pages = (__u32)number_or_zero(text, "HugePages_Total");
		row->huge_pages_free = (__u32)number_or_zero(text, "HugePages_Free");
	}
	read_node_cpus(node, row->cpu_mask);
	read_distances(node, row->distance);
	snprintf((char *)row->name, sizeof(row->name), "node%d", node);
	return 0;
}

/* ---- devices */

struct directory {
	unsigned int count;
	char entries[DEVICES_MAX][ENTRY_BYTES];
};

static int compare_entries(const void *left, const void *right)
{
	return strcmp(left, right);
}

/* Entries of a directory that @wanted accepts, in order of their names. */
static void list_directory(struct directory *directory, const char *path,
			   bool (*wanted)(const char *entry))
{
	DIR *stream = opendir(path);
	struct dirent *entry;

	directory->count = 0;
	if (!stream)
		return;
	while (directory->count < DEVICES_MAX && (entry = readdir(stream))) {
		if (entry->d_name[0] == '.' || strlen(entry->d_name) >= ENTRY_BYTES)
			continue;
		if (wanted(entry->d_name))
			strcpy(directory->entries[directory->count++], entry->d_name);
	}
	closedir(stream);
	qsort(directory->entries, directory->count, ENTRY_BYTES, compare_entries);
}

static unsigned long read_hex(const char *device, const char *file)
{
	char text[ENTRY_BYTES];

	return read_text(text, sizeof(text), "%s/%s", device, file) ? strtoul(text, NULL, 16) : 0;
}

/* What every PCI function says of itself. */
static void fill_pci(struct dmp_topology *row, const char *device)
{
	char text[FILE_BYTES], target[PATH_MAX];
	unsigned int domain, bus, slot, function;
	const char *name;

	row->node = -1;
	if (read_text(text, sizeof(text), "%s/numa_node", device))
		row->node = (__s32)strtol(text, NULL, 10);
	if (read_text(text, sizeof(text), "%s/local_cpulist", device))
		parse_list(text, row->cpu_mask, DMP_CPUS_MAX);
	row->pci_vendor = (__u32)(read_hex(device, "vendor") << 16 | read_hex(device, "device"));
	if (!realpath(device, target))
		return;
	name = strrchr(target, '/') + 1;
	if (sscanf(name, "%x:%x:%x.%x", &domain, &bus, &slot, &function) == 4)
		row->pci_address = domain << 16 | bus << 8 | slot << 3 | function;
}

static bool any_entry(const char *entry)
{
	return *entry != '\0';
}

static bool is_accelerator(const char *entry)
{
	char device[PATH_BYTES];
	unsigned long class, vendor;

	snprintf(device, sizeof(device), PCI "/%s", entry);
	class = read_hex(device, "class") >> 8;
	vendor = read_hex(device, "vendor");
	return class == CLASS_3D || class == CLASS_ACCELERATOR ||
	       (class == CLASS_VGA && (vendor == VENDOR_NVIDIA || vendor == VENDOR_AMD));
}

static int fill_nic(struct dmp_topology *row)
{
	struct directory directory;
	char device[PATH_BYTES];

	list_directory(&directory, INFINIBAND, any_entry);
	row->count = directory.count;
	if (row->index >= row->count)
		return -ENOENT;
	snprintf(device, sizeof(device), INFINIBAND "/%s/device", directory.entries[row->index]);
	fill_pci(row, device);
	snprintf((char *)row->name, sizeof(row->name), "%s", directory.entries[row->index]);
	return 0;
}

/* The driver's name for the product, else the maker and the numbers. */
static void name_gpu(struct dmp_topology *row, const char *address)
{
	unsigned int vendor = row->pci_vendor >> 16;
	const char *maker = vendor == VENDOR_NVIDIA ? "NVIDIA " : vendor == VENDOR_AMD ? "AMD " : "";
	char text[FILE_BYTES];
	char *start = NULL;

	if (read_text(text, sizeof(text), "/proc/driver/nvidia/gpus/%s/information", address)) {
		start = strstr(text, "Model:");
		if (start)
			start += strlen("Model:");
	} else if (read_text(text, sizeof(text), PCI "/%s/product_name", address)) {
		start = text;
	}
	if (start) {
		start += strspn(start, " \t");
		start[strcspn(start, "\n")] = '\0';
	}
	if (start && *start)
		snprintf((char *)row->name, sizeof(row->name), "%.*s", DMP_NAME_BYTES - 1, start);
	else
		snprintf((char *)row->name, sizeof(row->name), "%s%04x:%04x", maker, vendor,
			 row->pci_vendor & 0xffff);
}

static int fill_gpu(struct dmp_topology *row)
{
	struct directory directory;
	char device[PATH_BYTES];

	list_directory(&directory, PCI, is_accelerator);
	row->count = directory.count;
	if (row->index >= row->count)
		return -ENOENT;
	snprintf(device, sizeof(device), PCI "/%s", directory.entries[row->index]);
	fill_pci(row, device);
	name_gpu(row, directory.entries[row->index]);
	return 0;
}

int dmp_topology_fill(struct dmp_topology *row)
{
	struct dmp_topology filled = {
		.size = row->size,
		.flags = row->flags,
		.kind = row->kind,
		.index = row->index,
	};
	int ret = -EINVAL;

	if (row->kind == DMP_TOPOLOGY_NODE)
		ret = fill_node(&filled);
	else if (row->kind == DMP_TOPOLOGY_NIC)
		ret = fill_nic(&filled);
	else if (row->kind == DMP_TOPOLOGY_GPU)
		ret = fill_gpu(&filled);
	if (!ret)
		*row = filled;
	return ret;
}

/* ---- memory that can be had */

static __u64 smaller(__u64 left, __u64 right)
{
	return left < right ? left : right;
}

/* The files of one version of control groups. */
struct cgroup_files {
	const char *limit;
	const char *usage;
	const char *inactive_file;
	const char *active_file;
};

static const struct cgroup_files cgroup_v2 = {
	"memory.max", "memory.current", "inactive_file", "active_file",
};

static const struct cgroup_files cgroup_v1 = {
	"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file",
	"total_active_file",
};

/* Limit minus usage, with the page cache counted as room. */
static __u64 group_room(const char *directory, const struct cgroup_files *files)
{
	char text[FILE_BYTES];
	__u64 limit, usage, room;

	/* "max" is no limit, and so is a group that has no such file. */
	if (!read_text(text, sizeof(text), "%s/%s", directory, files->limit) ||
	    *text < '0' || *text > '9')
		return UINT64_MAX;
	limit = strtoull(text, NULL, 10);
	if (!read_text(text, sizeof(text), "%s/%s", directory, files->usage))
		return UINT64_MAX;
	usage = strtoull(text, NULL, 10);
	room = limit > usage ? limit - usage : 0;
	if (read_text(text, sizeof(text), "%s/memory.stat", directory)) {
		room += number_or_zero(text, files->inactive_file);
		room += number_or_zero(text, files->active_file);
	}
	return smaller(room, limit);
}

/*
 * The least room from the group up to the root of the mount. In a container the path
 * may begin above what is mounted: the parts that are missing are skipped.
 */
static __u64 hierarchy_room(const char *mount, const char *path, const struct cgroup_files *files)
{
	char directory[PATH_BYTES];
	size_t root = strlen(mount);
	__u64 room = UINT64_MAX;
	int length = snprintf(directory, sizeof(directory), "%s%s", mount, path);

	if (length < 0 || (size_t)length >= sizeof(directory))
		return room;
	for (;;) {
		char *slash;

		room = smaller(room, group_room(directory, files));
		slash = strrchr(directory, '/');
		if (!slash || (size_t)(slash - directory) < root)
			return room;
		*slash = '\0';
	}
}

static __u64 cgroup_room(void)
{
	char text[FILE_BYTES];
	char *rest = text;
	__u64 room = UINT64_MAX;

	if (!read_path(text, sizeof(text), "/proc/self/cgroup"))
		return room;
	/* Lines are "number:controllers:path"; v2 is number 0 without controllers. */
	for (char *line = strsep(&rest, "\n"); line; line = strsep(&rest, "\n")) {
		char *controllers = strchr(line, ':');
		char *path = controllers ? strchr(controllers + 1, ':') : NULL;

		if (!path)
			continue;
		*path++ = '\0';
		if (!strcmp(controllers, ":")) {
			room = smaller(room, hierarchy_room("/sys/fs/cgroup", path, &cgroup_v2));
			room = smaller(room, hierarchy_room("/sys/fs/cgroup/unified", path,
							    &cgroup_v2));
		} else if (strstr(controllers, "memory")) {
			room = smaller(room, hierarchy_room("/sys/fs/cgroup/memory", path,
							    &cgroup_v1));
		}
	}
	return room;
}

/* Of all nodes together MemAvailable knows better. */
static __u64 nodes_room(__u64 nodes)
{
	char text[FILE_BYTES];
	__u64 room = 0;

	if (!(dmp_topology_node_mask() & ~nodes))
		return UINT64_MAX;
	for (; nodes; nodes &= nodes - 1) {
		if (!read_node_memory(text, sizeof(text), __builtin_ctzll(nodes)))
			return UINT64_MAX;
		room += (number_or_zero(text, "MemFree") + number_or_zero(text, "Inactive(file)") +
			 number_or_zero(text, "Active(file)") +
			 number_or_zero(text, "SReclaimable")) * 1024;
	}
	return room;
}

__u64 dmp_topology_memory_available(__u64 nodes)
{
	char text[FILE_BYTES];
	__u64 room = UINT64_MAX;
	__u64 kilobytes;

	if (read_path(text, sizeof(text), "/proc/meminfo") &&
	    find_number(text, "MemAvailable", &kilobytes))
		room = kilobytes * 1024;
	room = smaller(room, cgroup_room());
	if (nodes)
		room = smaller(room, nodes_room(nodes));
	return room;
}
