// SPDX-License-Identifier: MIT
/*
 * test_memory.c - memory is what it says it is, or it is refused
 *
 * One law a function. Limits of a process are set in a child process.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
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

static unsigned int open_descriptors(void)
{
	unsigned int count = 0;

	for (int fd = 0; fd < 256; fd++)
		count += fcntl(fd, F_GETFD) >= 0;
	return count;
}

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

/* ---- the user's memory */

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

int main(void)
{
	page = (size_t)sysconf(_SC_PAGESIZE);
	setvbuf(stdout, NULL, _IOLBF, 0);
	test_allocated_memory_is_zero_resident_and_whole_pages();
	test_nobody_can_resize_or_unseal();
	test_impossible_lengths_are_refused_without_harm();
	test_the_file_size_limit_is_an_error_not_a_signal();
	test_the_soft_descriptor_limit_gives_way_to_the_hard_one();
	test_huge_memory_is_huge_or_says_what_it_is();
	test_user_memory_is_taken_only_with_the_rights_it_needs();
	return 0;
}
