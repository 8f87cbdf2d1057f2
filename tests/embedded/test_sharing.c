// SPDX-License-Identifier: MIT
/*
 * test_sharing.c - an export is the same memory, with the rights given, and is known of
 *
 * One law a function.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/check.h"
#include "memory.h"
#include "topology.h"

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

/* ---- who else has it */

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
