// SPDX-License-Identifier: MIT
/*
 * test_placement.c - pages are where they were asked for, and no count is a guess
 *
 * One law a function. A container that refuses the calls is made up in a child by a
 * filter on system calls; where that cannot be done the test says so on one line.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <linux/filter.h>
#include <linux/mempolicy.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "child.h"
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

int main(void)
{
	page = (size_t)sysconf(_SC_PAGESIZE);
	setvbuf(stdout, NULL, _IOLBF, 0);
	test_contradicting_policies_are_refused();
	test_every_policy_places_every_page();
	test_the_mapping_carries_the_policy();
	test_pages_elsewhere_count_as_misplaced();
	test_pages_that_are_not_there_are_not_claimed();
	test_ranges_are_widened_to_pages();
	test_populate_answers_instead_of_a_signal();
	test_populate_makes_resident_and_changes_no_byte();
	test_refused_calls_lead_to_less_knowledge_not_to_guesses();
	return 0;
}
