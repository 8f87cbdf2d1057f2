// SPDX-License-Identifier: MIT
/*
 * test_memory.c - memory is what it says, where it says, and known to whom it went
 *
 * One law a function. What needs a machine set up in a certain way (a pool of huge
 * pages, a refused system call, a full control group) is set up in a child process
 * where that can be done; where it cannot, the test says so on one line.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/memfd.h>
#include <linux/mempolicy.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/check.h"
#include "memory.h"
#include "topology.h"

#define MIB	(1ULL << 20)

static const struct dmp_policy any = { DMP_POLICY_ANY, -1, 0 };
static size_t page;

static struct dmp_memory allocated(__u64 length)
{
	struct dmp_memory memory;

	CHECK(!dmp_memory_allocate(&memory, DMP_KIND_PAGES, length, 0, &any));
	return memory;
}

/* Runs @body in a child; the child's checks count here. */
static void in_child(void (*body)(void))
{
	pid_t child = fork();
	int status;

	CHECK(child >= 0);
	if (!child) {
		body();
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child);
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static unsigned int open_descriptors(void)
{
	unsigned int count = 0;

	for (int fd = 0; fd < 256; fd++)
		count += fcntl(fd, F_GETFD) >= 0;
	return count;
}

/* ---- topology */

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
	__u64 physical = (__u64)sysconf(_SC_PHYS_PAGES) * page;
	__u64 available = dmp_topology_memory_available(0);

	CHECK(available > 0 && available <= physical);
	CHECK(dmp_topology_memory_available(dmp_topology_node_mask()) <= physical);
}

/* ---- placement */

static void test_contradicting_policies_are_refused(void)
{
	__u64 nodes = dmp_topology_node_mask();
	__s32 node = __builtin_ctzll(nodes);
	__s32 absent = nodes == ~0ULL ? DMP_NODES_MAX : __builtin_ctzll(~nodes);
	struct {
		struct dmp_policy policy;
		int result;
	} cases[] = {
		{ { DMP_POLICY_ANY, -1, 0 }, 0 },
		{ { DMP_POLICY_ANY, node, 0 }, -EINVAL },
		{ { DMP_POLICY_ANY, -1, nodes }, -EINVAL },
		{ { DMP_POLICY_PREFER, node, 0 }, 0 },
		{ { DMP_POLICY_PREFER, -1, 0 }, -EINVAL },
		{ { DMP_POLICY_PREFER, absent, 0 }, -EINVAL },
		{ { DMP_POLICY_PREFER, DMP_NODES_MAX, 0 }, -EINVAL },
		{ { DMP_POLICY_PREFER, node, nodes }, -EINVAL },
		{ { DMP_POLICY_BIND, -1, nodes }, 0 },
		{ { DMP_POLICY_BIND, -1, 0 }, -EINVAL },
		{ { DMP_POLICY_BIND, node, nodes }, -EINVAL },
		{ { DMP_POLICY_INTERLEAVE, -1, nodes }, 0 },
		{ { DMP_POLICY_INTERLEAVE, -1, 0 }, -EINVAL },
		{ { DMP_POLICY_INTERLEAVE, -1, ~nodes }, nodes == ~0ULL ? 0 : -EINVAL },
		{ { DMP_POLICY_INTERLEAVE + 1, -1, 0 }, -EINVAL },
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++)
		CHECK(dmp_placement_check(&cases[i].policy) == cases[i].result);
}

static void test_every_policy_places_every_page(void)
{
	__u64 nodes = dmp_topology_node_mask();
	struct dmp_policy policies[] = {
		{ DMP_POLICY_PREFER, __builtin_ctzll(nodes), 0 },
		{ DMP_POLICY_BIND, -1, nodes & -nodes },
		{ DMP_POLICY_INTERLEAVE, -1, nodes },
	};

	for (size_t i = 0; i < sizeof(policies) / sizeof(*policies); i++) {
		struct dmp_memory memory;
		struct dmp_placement placement;
		__u64 sum = 0;

		CHECK(!dmp_memory_allocate(&memory, DMP_KIND_PAGES, 20 * MIB, DMP_BUFFER_STRICT,
					   &policies[i]));
		CHECK(!dmp_placement_count(&policies[i], memory.address, memory.length,
					   memory.page_bytes, true, &placement));
		if (placement.how != DMP_PLACEMENT_UNKNOWN) {
			CHECK(placement.how == DMP_PLACEMENT_COUNTED);
			for (int node = 0; node < DMP_NODES_MAX; node++)
				sum += placement.node_pages[node];
			CHECK(sum == placement.pages && placement.pages == 20 * MIB / page);
			CHECK(placement.pages_misplaced == 0);
		}
		dmp_memory_free(&memory);
	}
}

static void test_the_mapping_carries_the_policy(void)
{
	__u64 nodes = dmp_topology_node_mask();
	struct dmp_policy policy = { DMP_POLICY_BIND, -1, nodes & -nodes };
	struct dmp_memory memory;
	__u64 mask = 0;
	int mode = -1;

	CHECK(!dmp_memory_allocate(&memory, DMP_KIND_PAGES, 4 * page, 0, &policy));
	if (syscall(SYS_get_mempolicy, &mode, &mask, DMP_NODES_MAX + 1, memory.address,
		    MPOL_F_ADDR))
		printf("not checked: this kernel does not tell the policy of a mapping\n");
	else
		CHECK(mode == MPOL_BIND && mask == policy.node_mask);
	dmp_memory_free(&memory);
}

static void test_pages_elsewhere_count_as_misplaced(void)
{
	__u64 nodes = dmp_topology_node_mask();
	struct dmp_policy elsewhere = { DMP_POLICY_BIND, -1, ~nodes };
	struct dmp_memory memory = allocated(10 * page);
	struct dmp_placement placement;

	for (int recheck = 0; recheck < 2; recheck++) {
		CHECK(!dmp_placement_count(&elsewhere, memory.address, memory.length, page, recheck,
					   &placement));
		CHECK(placement.pages == 10);
		if (placement.how != DMP_PLACEMENT_UNKNOWN)
			CHECK(placement.pages_misplaced == 10);
	}
	dmp_memory_free(&memory);
}

static void test_pages_that_are_not_there_are_not_claimed(void)
{
	struct dmp_policy policy = { DMP_POLICY_BIND, -1, dmp_topology_node_mask() };
	char *address = mmap(NULL, 8 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			     -1, 0);
	struct dmp_placement placement;

	CHECK(address != MAP_FAILED);
	address[0] = 1;
	address[5 * page] = 1;
	CHECK(!dmp_placement_count(&policy, address, 8 * page, page, true, &placement));
	if (placement.how == DMP_PLACEMENT_COUNTED)
		CHECK(placement.pages_misplaced == 6);
	munmap(address, 8 * page);
}

/* A range that starts inside a page touches one page more. */
static void test_ranges_are_widened_to_pages(void)
{
	struct dmp_memory memory = allocated(4 * page);
	struct dmp_placement placement;

	CHECK(!dmp_placement_count(&any, (char *)memory.address + 1, page, page, true, &placement));
	CHECK(placement.pages == 2);
	CHECK(dmp_placement_count(&any, memory.address, page, 3, true, &placement) == -EINVAL);
	CHECK(dmp_placement_count(&any, memory.address, SIZE_MAX, page, true, &placement) ==
	      -EINVAL);
	dmp_memory_free(&memory);
}

static int populate_by(bool kernel, void *address, size_t length, bool writable)
{
	return kernel ? dmp_placement_populate(address, length, page, writable)
		      : dmp_placement_touch(address, length, page, writable);
}

static void test_populate_answers_instead_of_a_signal(void)
{
	for (int kernel = 0; kernel < 2; kernel++) {
		char *address = mmap(NULL, 4 * page, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		int fd = memfd_create("short", MFD_CLOEXEC);
		char *beyond;

		CHECK(address != MAP_FAILED && fd >= 0 && !ftruncate(fd, (off_t)page));
		CHECK(!populate_by(kernel, address, 4 * page, true));
		CHECK(!mprotect(address + page, page, PROT_READ));
		CHECK(!populate_by(kernel, address, 4 * page, false));
		CHECK(populate_by(kernel, address, 4 * page, true) == -EFAULT);
		CHECK(!mprotect(address + page, page, PROT_NONE));
		CHECK(populate_by(kernel, address, 4 * page, false) == -EFAULT);
		CHECK(!munmap(address + 2 * page, page));
		CHECK(populate_by(kernel, address + 2 * page, 2 * page, true) == -EFAULT);
		CHECK(populate_by(kernel, (void *)(UINTPTR_MAX - 2 * page), page, false) == -EFAULT);
		CHECK(populate_by(kernel, address, SIZE_MAX, false) == -EFAULT);
		beyond = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		CHECK(beyond != MAP_FAILED);
		CHECK(populate_by(kernel, beyond, 2 * page, true) == -EFAULT);
		munmap(beyond, 2 * page);
		munmap(address, 4 * page);
		close(fd);
	}
}

static void test_populate_makes_resident_and_changes_no_byte(void)
{
	for (int kernel = 0; kernel < 2; kernel++) {
		unsigned char resident[4] = { 0 };
		char *address = mmap(NULL, 4 * page, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		CHECK(address != MAP_FAILED);
		memset(address, 0xc3, page);
		CHECK(!populate_by(kernel, address + 1, 3 * page, true));
		CHECK(!mincore(address, 4 * page, resident));
		for (int i = 0; i < 4; i++)
			CHECK(resident[i] & 1);
		for (size_t i = 0; i < 4 * page; i++)
			CHECK((unsigned char)address[i] == (i < page ? 0xc3 : 0));
		munmap(address, 4 * page);
	}
}

/* Makes the calls that place and count pages answer EPERM, as containers do. */
static bool refuse_placement_calls(void)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mbind, 1, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_move_pages, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof(filter) / sizeof(*filter), filter };

	return !prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) &&
	       !prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

static void refused_calls(void)
{
	__u64 nodes = dmp_topology_node_mask();
	struct dmp_policy policy = { DMP_POLICY_BIND, -1, nodes };
	struct dmp_memory memory;
	struct dmp_placement placement;

	if (!refuse_placement_calls()) {
		printf("not checked: system calls cannot be filtered here\n");
		return;
	}
	CHECK(!dmp_memory_allocate(&memory, DMP_KIND_PAGES, MIB, 0, &policy));
	CHECK(dmp_placement_apply(&policy, memory.address, memory.length, true) ==
	      (nodes & (nodes - 1) ? -EOPNOTSUPP : 0));
	CHECK(!dmp_placement_count(&policy, memory.address, memory.length, page, true, &placement));
	CHECK(placement.pages == MIB / page && placement.pages_misplaced == 0);
	if (placement.how == DMP_PLACEMENT_COUNTED) {
		__u64 sum = 0;

		for (int node = 0; node < DMP_NODES_MAX; node++)
			sum += placement.node_pages[node];
		CHECK(sum == placement.pages);
	} else {
		CHECK(placement.how == DMP_PLACEMENT_UNKNOWN);
	}
	/* Half of a mapping cannot be counted by mapping, so nothing is claimed. */
	CHECK(!dmp_placement_count(&policy, (char *)memory.address + 4 * page, 8 * page, page, true,
				   &placement));
	CHECK(placement.how == DMP_PLACEMENT_UNKNOWN && placement.pages_misplaced == 0);
	dmp_memory_free(&memory);
}

static void test_refused_calls_lead_to_less_knowledge_not_to_guesses(void)
{
	in_child(refused_calls);
}

/* ---- memory: allocation */

static void test_allocated_memory_is_zero_resident_and_whole_pages(void)
{
	struct dmp_memory memory = allocated(3 * page + 1);
	unsigned char resident[4] = { 0 };
	const unsigned char *bytes = memory.address;

	CHECK(memory.length == 4 * page && memory.map_bytes == 4 * page);
	CHECK(memory.page_bytes == page && memory.kind == DMP_KIND_PAGES);
	CHECK(!memory.read_only && !memory.dmabuf);
	CHECK(fcntl(memory.fd, F_GETFD) & FD_CLOEXEC);
	CHECK(!mincore(memory.address, memory.length, resident));
	for (size_t i = 0; i < memory.length; i++)
		CHECK(bytes[i] == 0 && resident[i / page] & 1);
	dmp_memory_free(&memory);
}

static void test_nobody_can_resize_or_unseal(void)
{
	struct dmp_memory memory = allocated(2 * page);
	int fd;

	CHECK(!dmp_memory_export(&memory, 0, &fd));
	CHECK(ftruncate(fd, (off_t)page) && errno == EPERM);
	CHECK(ftruncate(fd, (off_t)(3 * page)) && errno == EPERM);
	CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) && errno == EPERM);
	close(fd);
	dmp_memory_free(&memory);
}

static void test_impossible_lengths_are_refused_without_harm(void)
{
	unsigned int before = open_descriptors();
	struct dmp_memory memory;
	struct dmp_memory untouched;

	memset(&memory, 0x77, sizeof(memory));
	untouched = memory;
	CHECK(dmp_memory_allocate(&memory, DMP_KIND_PAGES, 0, 0, &any) == -EINVAL);
	CHECK(dmp_memory_allocate(&memory, DMP_KIND_PEER, 1, 0, &any) == -EINVAL);
	CHECK(dmp_memory_allocate(&memory, DMP_KIND_PAGES, UINT64_MAX, 0, &any) == -EOVERFLOW);
	CHECK(dmp_memory_allocate(&memory, DMP_KIND_PAGES, UINT64_MAX - page + 2, 0, &any) ==
	      -EOVERFLOW);
	CHECK(dmp_memory_allocate(&memory, DMP_KIND_PAGES, 1ULL << 50, 0, &any) == -ENOMEM);
	CHECK(dmp_memory_allocate(&memory, DMP_KIND_PAGES,
				  dmp_topology_memory_available(0) + 256 * MIB, 0, &any) == -ENOMEM);
	CHECK(!memcmp(&memory, &untouched, sizeof(memory)));
	CHECK(open_descriptors() == before);
}

static void file_size_limit(void)
{
	struct rlimit limit = { 16 * page, 16 * page };
	struct dmp_memory memory;

	CHECK(!setrlimit(RLIMIT_FSIZE, &limit));
	CHECK(dmp_memory_allocate(&memory, DMP_KIND_PAGES, 17 * page, 0, &any) == -EPERM);
	CHECK(!dmp_memory_allocate(&memory, DMP_KIND_PAGES, 16 * page, 0, &any));
	dmp_memory_free(&memory);
}

static void test_the_file_size_limit_is_an_error_not_a_signal(void)
{
	in_child(file_size_limit);
}

static void descriptor_limit(void)
{
	struct rlimit limit;
	struct dmp_memory memories[16];
	int fds[16];

	CHECK(!getrlimit(RLIMIT_NOFILE, &limit));
	if (limit.rlim_max < 128) {
		printf("not checked: the hard limit on descriptors is too low\n");
		return;
	}
	limit.rlim_cur = open_descriptors() + 1;
	CHECK(!setrlimit(RLIMIT_NOFILE, &limit));
	for (int i = 0; i < 16; i++) {
		CHECK(!dmp_memory_allocate(&memories[i], DMP_KIND_PAGES, page, 0, &any));
		CHECK(memories[i].tracked == dmp_memory_tracks_exports());
		CHECK(!dmp_memory_export(&memories[i], 0, &fds[i]));
	}
	CHECK(!getrlimit(RLIMIT_NOFILE, &limit));
	limit.rlim_max = limit.rlim_cur;
	CHECK(!setrlimit(RLIMIT_NOFILE, &limit));
	while (dup(0) >= 0)
		;
	CHECK(dmp_memory_export(&memories[0], 0, &fds[0]) == -EMFILE);
	CHECK(dmp_memory_import(&memories[1], fds[0], false) == -EMFILE);
	CHECK(dmp_memory_allocate(&memories[2], DMP_KIND_PAGES, page, 0, &any) == -EMFILE);
}

static void test_the_soft_descriptor_limit_gives_way_to_the_hard_one(void)
{
	in_child(descriptor_limit);
}

static void test_huge_memory_is_huge_or_says_what_it_is(void)
{
	__u32 huge = dmp_topology_huge_page_bytes();
	struct dmp_memory memory;
	int ret = dmp_memory_allocate(&memory, DMP_KIND_HUGE, 1, 0, &any);

	if (!ret) {
		CHECK(memory.page_bytes == huge && memory.length == huge);
		dmp_memory_free(&memory);
	} else {
		CHECK(ret == (huge ? -ENOMEM : -EOPNOTSUPP));
		CHECK(!dmp_memory_allocate(&memory, DMP_KIND_HUGE, 1, DMP_BUFFER_HUGE_PREFER, &any));
		CHECK(memory.page_bytes == page && memory.length == page);
		CHECK(memory.kind == DMP_KIND_HUGE);
		dmp_memory_free(&memory);
	}
}

/* ---- memory: the user's */

static void test_user_memory_is_taken_only_with_the_rights_it_needs(void)
{
	char *address = mmap(NULL, 3 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			     -1, 0);
	__u64 start = (uintptr_t)address;
	struct dmp_memory memory;
	void *read_only;
	int fd;

	CHECK(address != MAP_FAILED);
	address[7] = 42;
	CHECK(!dmp_memory_user(&memory, start + 7, 2 * page, false));
	CHECK(memory.address == address + 7 && memory.length == 2 * page && memory.fd == -1);
	CHECK(memory.map_bytes == memory.length && !dmp_memory_exported(&memory));
	CHECK(dmp_memory_export(&memory, 0, &fd) == -EOPNOTSUPP);
	CHECK(dmp_memory_map_read_only(&memory, &read_only) == -EOPNOTSUPP);
	dmp_memory_free(&memory);
	CHECK(address[7] == 42);

	CHECK(!mprotect(address + page, page, PROT_READ));
	CHECK(dmp_memory_user(&memory, start, 3 * page, false) == -EFAULT);
	CHECK(!dmp_memory_user(&memory, start, 3 * page, true));
	CHECK(memory.read_only);
	dmp_memory_free(&memory);
	CHECK(!munmap(address + page, page));
	CHECK(dmp_memory_user(&memory, start, 3 * page, true) == -EFAULT);
	CHECK(dmp_memory_user(&memory, start, 0, true) == -EINVAL);
	CHECK(dmp_memory_user(&memory, UINT64_MAX - 5, 10, true) == -EOVERFLOW);
	CHECK(dmp_memory_user(&memory, 1ULL << 63, page, true) == -EFAULT);
	munmap(address, page);
	munmap(address + 2 * page, page);
}

/* ---- memory: export and import */

static void test_an_export_is_the_same_memory(void)
{
	struct dmp_memory memory = allocated(2 * page), imported;
	char *ours = memory.address, *theirs;
	int fd;

	CHECK(!dmp_memory_export(&memory, 0, &fd));
	CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	CHECK(!dmp_memory_import(&imported, fd, false));
	close(fd);
	CHECK(imported.kind == DMP_KIND_IMPORTED && imported.length == 2 * page);
	CHECK(imported.page_bytes == page && !imported.dmabuf && !imported.read_only);
	theirs = imported.address;
	ours[page + 3] = 17;
	CHECK(theirs[page + 3] == 17);
	dmp_memory_free(&memory);
	CHECK(theirs[page + 3] == 17);
	dmp_memory_free(&imported);
}

static void test_a_read_only_export_cannot_be_written(void)
{
	struct dmp_memory memory = allocated(page), imported;
	struct stat file;
	int fd, again;

	CHECK(!dmp_memory_export(&memory, DMP_EXPORT_READ_ONLY, &fd));
	CHECK(mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED);
	CHECK(dmp_memory_import(&imported, fd, false) == -EPERM);
	CHECK(!fstat(fd, &file) && !(file.st_mode & 0077));
	CHECK(!dmp_memory_import(&imported, fd, true));
	CHECK(dmp_memory_export(&imported, 0, &again) == -EPERM);
	CHECK(!dmp_memory_export(&imported, DMP_EXPORT_READ_ONLY, &again));
	close(again);
	close(fd);
	dmp_memory_free(&imported);
	dmp_memory_free(&memory);
}

static void test_only_what_cannot_shrink_is_imported(void)
{
	int memfd = memfd_create("loose", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int zero = open("/dev/zero", O_RDWR | O_CLOEXEC);
	struct dmp_memory memory;
	int pipes[2];

	CHECK(memfd >= 0 && zero >= 0 && !pipe2(pipes, O_CLOEXEC));
	CHECK(dmp_memory_import(&memory, -1, false) == -EINVAL);
	CHECK(dmp_memory_import(&memory, zero, false) == -EINVAL);
	CHECK(dmp_memory_import(&memory, pipes[0], true) == -EINVAL);
	CHECK(!ftruncate(memfd, (off_t)page));
	CHECK(dmp_memory_import(&memory, memfd, false) == -EPERM);
	CHECK(!fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK));
	CHECK(!dmp_memory_import(&memory, memfd, false));
	dmp_memory_free(&memory);
	CHECK(!fcntl(memfd, F_ADD_SEALS, F_SEAL_WRITE));
	CHECK(dmp_memory_import(&memory, memfd, false) == -EPERM);
	close(memfd);
	memfd = memfd_create("empty", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	CHECK(memfd >= 0 && !fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK));
	CHECK(dmp_memory_import(&memory, memfd, false) == -EINVAL);
	close(memfd), close(zero), close(pipes[0]), close(pipes[1]);
}

/* A memfd that claims more than the machine has must not cost the machine. */
static void test_a_hollow_memfd_is_refused_before_it_is_filled(void)
{
	int fd = memfd_create("hollow", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	struct dmp_memory memory;

	CHECK(fd >= 0 && !ftruncate(fd, 1LL << 42) && !fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK));
	CHECK(dmp_memory_import(&memory, fd, false) == -ENOMEM);
	CHECK(dmp_memory_import(&memory, fd, true) == -ENOMEM);
	close(fd);
}

static void test_imports_leave_odd_lengths_alone(void)
{
	int fd = memfd_create("odd", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	struct dmp_memory memory;

	CHECK(fd >= 0 && !ftruncate(fd, (off_t)(page + 5)) && !fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK));
	CHECK(!dmp_memory_import(&memory, fd, false));
	CHECK(memory.length == page + 5 && memory.map_bytes == 2 * page);
	dmp_memory_free(&memory);
	close(fd);
}

static void test_dmabuf_export_is_a_dmabuf_or_refused(void)
{
	struct dmp_memory memory = allocated(4 * page), imported;
	int fd, ret = dmp_memory_export(&memory, DMP_EXPORT_DMABUF, &fd);

	if (ret) {
		CHECK(ret == -EOPNOTSUPP);
		CHECK(access("/dev/udmabuf", R_OK | W_OK));
	} else {
		CHECK(!dmp_memory_import(&imported, fd, false));
		CHECK(imported.dmabuf && imported.length == memory.length);
		*(char *)memory.address = 9;
		CHECK(*(char *)imported.address == 9);
		dmp_memory_free(&imported);
		close(fd);
	}
	CHECK(dmp_memory_export(&memory, DMP_EXPORT_DMABUF | DMP_EXPORT_READ_ONLY, &fd) ==
	      -EOPNOTSUPP);
	dmp_memory_free(&memory);
}

/* ---- memory: who else has it */

static void test_an_export_is_known_until_its_last_holder_is_gone(void)
{
	__u32 flags[] = { 0, DMP_EXPORT_READ_ONLY };

	if (!dmp_memory_tracks_exports()) {
		printf("not checked: exports cannot be tracked here\n");
		return;
	}
	for (int i = 0; i < 2; i++) {
		struct dmp_memory memory = allocated(page);
		void *mapping;
		int fd, copy;

		CHECK(memory.tracked && !dmp_memory_exported(&memory));
		CHECK(!dmp_memory_export(&memory, flags[i], &fd));
		CHECK(dmp_memory_exported(&memory));
		copy = dup(fd);
		close(fd);
		CHECK(dmp_memory_exported(&memory));
		mapping = mmap(NULL, page, PROT_READ, MAP_SHARED, copy, 0);
		CHECK(mapping != MAP_FAILED);
		close(copy);
		CHECK(dmp_memory_exported(&memory));
		munmap(mapping, page);
		CHECK(!dmp_memory_exported(&memory));
		dmp_memory_free(&memory);
	}
}

static void test_a_killed_holder_holds_no_longer(void)
{
	struct dmp_memory memory = allocated(page);
	pid_t child;
	int fd, status;

	if (!dmp_memory_tracks_exports())
		return;
	CHECK(!dmp_memory_export(&memory, 0, &fd));
	child = fork();
	CHECK(child >= 0);
	if (!child)
		for (;;)
			pause();
	close(fd);
	CHECK(dmp_memory_exported(&memory));
	CHECK(!kill(child, SIGKILL) && waitpid(child, &status, 0) == child);
	CHECK(!dmp_memory_exported(&memory));
	dmp_memory_free(&memory);
}

static void test_our_own_mappings_are_no_exports(void)
{
	struct dmp_memory memory = allocated(page);
	void *first, *second;

	CHECK(!dmp_memory_map_read_only(&memory, &first));
	CHECK(!dmp_memory_map_read_only(&memory, &second));
	CHECK(first == second && first != memory.address);
	*(char *)memory.address = 5;
	CHECK(*(char *)first == 5);
	CHECK(dmp_placement_touch(first, page, page, true) == -EFAULT);
	CHECK(!dmp_memory_exported(&memory));
	dmp_memory_free(&memory);
	CHECK(dmp_placement_touch(first, page, page, false) == -EFAULT);
}

static void test_asking_leaves_no_lease_behind(void)
{
	struct dmp_memory memory = allocated(page);
	int fd;

	for (int i = 0; i < 1000; i++) {
		dmp_memory_exported(&memory);
		CHECK(fcntl(memory.fd, F_GETLEASE) == F_UNLCK);
	}
	CHECK(!dmp_memory_export(&memory, 0, &fd));
	close(fd);
	dmp_memory_free(&memory);
}

static void test_everything_is_given_back(void)
{
	unsigned int before = open_descriptors();

	for (int i = 0; i < 200; i++) {
		struct dmp_memory memory = allocated(2 * page), imported;
		void *address;
		int fd;

		CHECK(!dmp_memory_export(&memory, i & 1 ? DMP_EXPORT_READ_ONLY : 0, &fd));
		CHECK(!dmp_memory_import(&imported, fd, i & 1));
		CHECK(!dmp_memory_map_read_only(&imported, &address));
		close(fd);
		dmp_memory_free(&imported);
		dmp_memory_free(&memory);
		dmp_memory_free(&memory);
		CHECK(memory.fd == -1 && !memory.address);
	}
	CHECK(open_descriptors() == before);
}

int main(void)
{
	page = (size_t)sysconf(_SC_PAGESIZE);
	setvbuf(stdout, NULL, _IOLBF, 0);
	test_node_rows_match_the_mask();
	test_rows_beyond_the_last_leave_the_struct_alone();
	test_every_device_row_can_be_read();
	test_node_cpus_are_those_of_the_row();
	test_available_memory_is_within_the_machine();
	test_contradicting_policies_are_refused();
	test_every_policy_places_every_page();
	test_the_mapping_carries_the_policy();
	test_pages_elsewhere_count_as_misplaced();
	test_pages_that_are_not_there_are_not_claimed();
	test_ranges_are_widened_to_pages();
	test_populate_answers_instead_of_a_signal();
	test_populate_makes_resident_and_changes_no_byte();
	test_refused_calls_lead_to_less_knowledge_not_to_guesses();
	test_allocated_memory_is_zero_resident_and_whole_pages();
	test_nobody_can_resize_or_unseal();
	test_impossible_lengths_are_refused_without_harm();
	test_the_file_size_limit_is_an_error_not_a_signal();
	test_the_soft_descriptor_limit_gives_way_to_the_hard_one();
	test_huge_memory_is_huge_or_says_what_it_is();
	test_user_memory_is_taken_only_with_the_rights_it_needs();
	test_an_export_is_the_same_memory();
	test_a_read_only_export_cannot_be_written();
	test_only_what_cannot_shrink_is_imported();
	test_a_hollow_memfd_is_refused_before_it_is_filled();
	test_imports_leave_odd_lengths_alone();
	test_dmabuf_export_is_a_dmabuf_or_refused();
	test_an_export_is_known_until_its_last_holder_is_gone();
	test_a_killed_holder_holds_no_longer();
	test_our_own_mappings_are_no_exports();
	test_asking_leaves_no_lease_behind();
	test_everything_is_given_back();
	return 0;
}
