// SPDX-License-Identifier: MIT
/*
 * test_region.c - who may touch a registered range, and until when
 *
 * One law a function. What peers in shared memory touch is in test_region_shm.c.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include "endpoint_embedded.h"
#include "region_session.h"
#include "wait.h"

#define BYTES 65536u
#define LARGE_BYTES (64u << 20)
#define HALF_BYTES (64u << 10)	/* what each of two writers fills */
#define PAGE ((size_t)sysconf(_SC_PAGESIZE))

static struct dmp_plane *plane_open(void)
{
	struct dmp_plane *plane;

	CHECK(!dmp_open(&plane));
	return plane;
}

/* ---- keys */

static void test_a_key_says_what_was_registered(void)
{
	struct dmp_plane *plane = plane_open();
	uint32_t buffer = buffer_make(plane, BYTES, NULL);
	struct grant first = region_make(plane, buffer, 100, 200, READ);
	struct grant second = region_make(plane, buffer, 100, 200, READ | WRITE | LAND);
	struct dmp_region_query query = region_ask(plane, second.create.region_id);

	CHECK(first.key.incarnation == plane->incarnation);
	CHECK(first.key.length == 200 && first.key.access == READ);
	CHECK(first.key.generation == first.create.generation);
	CHECK(second.key.access == (READ | WRITE | LAND));
	CHECK(first.key.generation != second.key.generation);
	CHECK(first.key.slot != second.key.slot && first.key.secret != second.key.secret);
	for (__u32 index = first.create.key_bytes; index < DMP_KEY_BYTES; index++)
		CHECK(first.create.key[index] == 0);
	CHECK(query.state == DMP_STATE_LIVE && query.buffer_id == buffer &&
	      query.endpoint_id == 0 && query.access == second.key.access &&
	      query.generation == second.key.generation && query.offset == 100 &&
	      query.length_bytes == 200 && query.operations == 0);
	CHECK(!dmp_close(plane));
}

static void test_L12_a_key_with_any_bit_changed_opens_nothing(void)
{
	struct dmp_plane *plane = plane_open(), *other = plane_open();
	uint32_t buffer = buffer_make(plane, BYTES, NULL);
	struct grant grant = region_make(plane, buffer, 0, BYTES, READ | WRITE);
	struct dmp_region_key key;

	/* Other regions, older and newer, for a changed slot or generation to hit. */
	for (int count = 0; count < 100; count++)
		region_make(plane, buffer, 0, BYTES, READ | WRITE);
	CHECK(!admits(plane, &grant, 0, 1, READ));
	for (__u32 bit = 0; bit < 8 * grant.create.key_bytes; bit++) {
		struct grant changed = grant;
		int error;

		changed.create.key[bit / 8] ^= (__u8)(1u << bit % 8);
		error = admits(plane, &changed, 0, 1, READ);
		/* An older generation, or the slot of another region. */
		CHECK(error == -EACCES || (error == -ESTALE && bit >= 256 && bit < 320));
	}
	for (__u32 count = 0; count <= DMP_KEY_BYTES; count++) {
		bool whole = count == grant.create.key_bytes;
		struct grant cut = grant;

		cut.create.key_bytes = count;
		CHECK(admits(plane, &cut, 0, 1, READ) == (whole ? 0 : -EACCES));
		CHECK(dmp_region_key_decode(grant.create.key, count, &key) ==
		      (whole ? 0 : -EINVAL));
	}
	/* L7: another incarnation, even with the same slots and generations in use. */
	region_make(other, buffer_make(other, BYTES, NULL), 0, BYTES, READ | WRITE);
	CHECK(admits(other, &grant, 0, 1, READ) == -EACCES);
	CHECK(!dmp_close(other));
	CHECK(!dmp_close(plane));
}

static void test_L12_only_granted_rights(void)
{
	struct dmp_plane *plane = plane_open();
	uint32_t buffer = buffer_make(plane, BYTES, NULL);

	for (uint32_t granted = 1; granted < 8; granted++) {
		struct grant grant = region_make(plane, buffer, 0, BYTES, granted);

		for (uint32_t wanted = 0; wanted < 16; wanted++)
			CHECK(admits(plane, &grant, 0, 1, wanted) ==
			      (wanted & ~granted ? -EACCES : 0));
	}
	CHECK(!dmp_close(plane));
}

static void test_L12_only_inside_the_region(void)
{
	static const struct {
		uint64_t offset, length;
		int error;
	} cases[] = {
		{ 0, 0, 0 }, { 0, 1, 0 }, { 0, 200, 0 }, { 199, 1, 0 }, { 200, 0, 0 },
		{ 0, 201, -EINVAL }, { 200, 1, -EINVAL }, { 201, 0, -EINVAL },
		{ 1, 200, -EINVAL }, { 199, 2, -EINVAL },
		{ ~0ull, 0, -EINVAL }, { ~0ull, 1, -EINVAL }, { ~0ull, 2, -EINVAL },
		{ 0, ~0ull, -EINVAL }, { 1, ~0ull, -EINVAL }, { 200, ~0ull, -EINVAL },
		{ ~0ull, ~0ull, -EINVAL }, { 1ull << 63, 1ull << 63, -EINVAL },
		{ 100, -100ull, -EINVAL }, { -100ull, 100, -EINVAL }, { -100ull, 200, -EINVAL },
	};
	struct dmp_plane *plane = plane_open();
	char *bytes, *address;
	uint32_t buffer = buffer_make(plane, BYTES, &bytes);
	struct grant grant = region_make(plane, buffer, 4000, 200, READ | WRITE);
	struct dmp_region *region;

	for (size_t row = 0; row < sizeof(cases) / sizeof(*cases); row++)
		CHECK(admits(plane, &grant, cases[row].offset, cases[row].length, READ) ==
		      cases[row].error);
	CHECK(!dmp_region_admit(plane, grant.create.key, grant.create.key_bytes, 150, 50, WRITE,
				&region, &address));
	CHECK(region_ask(plane, grant.create.region_id).operations == 1);
	memcpy(address, "here", 4);
	CHECK(!memcmp(bytes + 4150, "here", 4));
	dmp_region_release(plane, region);
	CHECK(region_ask(plane, grant.create.region_id).operations == 0);
	CHECK(!dmp_close(plane));
}

static void test_L7_a_generation_never_comes_back(void)
{
	struct dmp_plane *plane = plane_open();
	uint32_t buffer = buffer_make(plane, BYTES, NULL);
	struct grant first = region_make(plane, buffer, 0, BYTES, READ), last = first, next;

	for (int turn = 0; turn < 1000; turn++) {
		CHECK(!region_end(plane, last.create.region_id, turn % 2 ? DMP_DESTROY_DRAIN : 0,
				  0));
		CHECK(admits(plane, &last, 0, 1, READ) == -ESTALE);
		next = region_make(plane, buffer, 0, BYTES, READ);
		/* The slot is used again: an index that grows for ever would be no table. */
		CHECK(next.key.slot == first.key.slot);
		CHECK(next.key.generation > last.key.generation);
		CHECK(next.create.region_id != last.create.region_id);
		CHECK(admits(plane, &last, 0, 1, READ) == -ESTALE);
		CHECK(admits(plane, &first, 0, 1, READ) == -ESTALE);
		CHECK(!admits(plane, &next, 0, 1, READ));
		last = next;
	}
	CHECK(region_end(plane, first.create.region_id, 0, 0) == -ENOENT);
	CHECK(!dmp_close(plane));
}

/* ---- registration */

static void test_what_cannot_be_granted_is_refused_and_holds_nothing(void)
{
	struct dmp_plane *plane = plane_open();
	uint32_t buffer = buffer_make(plane, BYTES, NULL), read_only;
	char *own = mmap(NULL, BYTES, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(own != MAP_FAILED);
	read_only = buffer_of_user(plane, own, BYTES, DMP_BUFFER_READ_ONLY);
	CHECK(region_try(plane, buffer, 0, BYTES, 0) == -EINVAL);
	CHECK(region_try(plane, buffer, 0, BYTES, 8) == -EINVAL);
	CHECK(region_try(plane, buffer, 0, BYTES, 1u << 31 | READ) == -EINVAL);
	CHECK(region_try(plane, buffer, 0, 0, READ) == -EINVAL);
	CHECK(region_try(plane, buffer, 0, BYTES + 1, READ) == -EINVAL);
	CHECK(region_try(plane, buffer, 1, BYTES, READ) == -EINVAL);
	CHECK(region_try(plane, buffer, BYTES, 1, READ) == -EINVAL);
	CHECK(region_try(plane, buffer, BYTES - 1, 2, READ) == -EINVAL);
	CHECK(region_try(plane, buffer, 1, ~0ull, READ) == -EOVERFLOW);
	CHECK(region_try(plane, buffer, ~0ull, ~0ull, READ) == -EOVERFLOW);
	CHECK(region_try(plane, buffer + 1000, 0, 1, READ) == -ENOENT);
	CHECK(region_try(plane, 0, 0, 1, READ) == -ENOENT);
	CHECK(region_try(plane, read_only, 0, BYTES, WRITE) == -EPERM);
	CHECK(region_try(plane, read_only, 0, BYTES, LAND) == -EPERM);
	CHECK(region_try(plane, read_only, 0, BYTES, READ | WRITE) == -EPERM);
	CHECK(buffer_ask(plane, buffer).regions == 0 && buffer_ask(plane, read_only).regions == 0);
	CHECK(!region_try(plane, read_only, 0, BYTES, READ));
	CHECK(!region_try(plane, buffer, BYTES - 1, 1, READ | WRITE | LAND));
	CHECK(buffer_ask(plane, buffer).regions == 1 && buffer_ask(plane, read_only).regions == 1);
	CHECK(regions_counted(plane) == 2);
	CHECK(!dmp_close(plane));
	munmap(own, BYTES);
}

static void test_L9_the_canary_finds_memory_that_is_gone(void)
{
	struct dmp_plane *plane = plane_open();
	char *own = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint32_t buffer;

	CHECK(own != MAP_FAILED);
	memset(own, 0x5a, 4 * PAGE);
	buffer = buffer_of_user(plane, own, 4 * PAGE, 0);
	CHECK(!munmap(own + 2 * PAGE, PAGE));
	CHECK(region_try(plane, buffer, 0, 4 * PAGE, READ) == -EFAULT);
	CHECK(region_try(plane, buffer, 0, 4 * PAGE, WRITE) == -EFAULT);
	CHECK(region_try(plane, buffer, 2 * PAGE, 1, READ) == -EFAULT);
	CHECK(region_try(plane, buffer, 3 * PAGE - 1, 1, READ) == -EFAULT);
	CHECK(region_try(plane, buffer, 2 * PAGE - 1, 2, READ) == -EFAULT);
	CHECK(region_try(plane, buffer, 3 * PAGE - 1, 2, LAND) == -EFAULT);
	CHECK(buffer_ask(plane, buffer).regions == 0);
	CHECK(!region_try(plane, buffer, 0, 2 * PAGE, READ | WRITE));
	CHECK(!region_try(plane, buffer, 3 * PAGE, PAGE, READ | WRITE));
	for (size_t byte = 0; byte < 4 * PAGE; byte++)
		CHECK(byte / PAGE == 2 || own[byte] == 0x5a);
	CHECK(!dmp_close(plane));
	munmap(own, 4 * PAGE);
}

static void test_L9_the_canary_finds_rights_that_are_missing(void)
{
	struct dmp_plane *plane = plane_open();
	char *own = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint32_t buffer;

	CHECK(own != MAP_FAILED);
	buffer = buffer_of_user(plane, own, 2 * PAGE, 0);
	CHECK(!mprotect(own + PAGE, PAGE, PROT_READ));
	CHECK(region_try(plane, buffer, 0, 2 * PAGE, WRITE) == -EFAULT);
	CHECK(region_try(plane, buffer, 0, 2 * PAGE, READ | LAND) == -EFAULT);
	CHECK(!region_try(plane, buffer, 0, 2 * PAGE, READ));
	CHECK(!mprotect(own + PAGE, PAGE, PROT_NONE));
	CHECK(region_try(plane, buffer, 0, 2 * PAGE, READ) == -EFAULT);
	CHECK(!region_try(plane, buffer, 0, PAGE, WRITE));
	CHECK(!dmp_close(plane));
	munmap(own, 2 * PAGE);
}

static void test_L9_the_canary_raises_no_signal_behind_the_end_of_a_file(void)
{
	struct dmp_plane *plane = plane_open();
	int fd = memfd_create("short", MFD_CLOEXEC);
	uint32_t buffer;
	char *own;

	CHECK(fd >= 0 && !ftruncate(fd, (off_t)(2 * PAGE)));
	own = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(own != MAP_FAILED);
	buffer = buffer_of_user(plane, own, 2 * PAGE, 0);
	CHECK(!ftruncate(fd, (off_t)PAGE));
	CHECK(region_try(plane, buffer, 0, 2 * PAGE, READ) == -EFAULT);
	CHECK(region_try(plane, buffer, 0, 2 * PAGE, WRITE) == -EFAULT);
	CHECK(!region_try(plane, buffer, 0, PAGE, WRITE));
	CHECK(!dmp_close(plane));
	munmap(own, 2 * PAGE);
	close(fd);
}

static void test_limit_of_regions_is_an_error_and_all_come_back(void)
{
	struct dmp_plane *plane = plane_open();
	uint32_t buffer = buffer_make(plane, PAGE, NULL);
	static uint32_t ids[DMP_REGIONS_MAX];

	for (int turn = 0; turn < 2; turn++) {
		for (uint32_t count = 0; count < DMP_REGIONS_MAX; count++)
			ids[count] = region_make(plane, buffer, 0, PAGE, READ).create.region_id;
		CHECK(region_try(plane, buffer, 0, PAGE, READ) == -ENOSPC);
		CHECK(regions_counted(plane) == DMP_REGIONS_MAX);
		CHECK(buffer_ask(plane, buffer).regions == DMP_REGIONS_MAX);
		for (uint32_t count = 0; count < DMP_REGIONS_MAX; count++)
			CHECK(!region_end(plane, ids[count], 0, 0));
		CHECK(regions_counted(plane) == 0 && buffer_ask(plane, buffer).regions == 0);
	}
	CHECK(!dmp_close(plane));
}

/* ---- holders */

struct ending {
	pthread_t thread;
	struct dmp_plane *plane;
	int (*end)(struct dmp_plane *plane, uint32_t id, uint32_t flags, uint64_t deadline_ns);
	uint32_t id;
	int error;
};

static void *ending_run(void *argument)
{
	struct ending *ending = argument;

	ending->error = ending->end(ending->plane, ending->id, DMP_DESTROY_DRAIN, 0);
	return NULL;
}

static void ending_start(struct ending *ending)
{
	CHECK(!pthread_create(&ending->thread, NULL, ending_run, ending));
}

static void wait_until_drained_by_others(struct dmp_plane *plane)
{
	while (!__atomic_load_n(&plane->drainers, __ATOMIC_SEQ_CST))
		sched_yield();
}

/* Begins to drain a buffer as soon as a region holds it. */
static void *drain_begin(void *argument)
{
	struct ending *ending = argument;

	while (buffer_ask(ending->plane, ending->id).regions == 0)
		sched_yield();
	ending->error = buffer_end(ending->plane, ending->id, DMP_DESTROY_DRAIN, 1);
	return NULL;
}

static void test_a_buffer_that_drains_during_the_canary_gets_no_region(void)
{
	struct dmp_plane *plane = plane_open();
	char *own = mmap(NULL, LARGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			 -1, 0);
	int error = 0;

	CHECK(own != MAP_FAILED);
	/* The other thread nearly always comes before the canary has brought the pages back. */
	for (int turn = 0; turn < 100 && !error; turn++) {
		uint32_t id = buffer_of_user(plane, own, LARGE_BYTES, 0);
		struct ending ending = { .plane = plane, .id = id };

		CHECK(!madvise(own, LARGE_BYTES, MADV_DONTNEED));
		CHECK(!pthread_create(&ending.thread, NULL, drain_begin, &ending));
		error = region_try(plane, id, 0, LARGE_BYTES, WRITE);
		pthread_join(ending.thread, NULL);
		CHECK(ending.error == -ETIMEDOUT || (error && !ending.error));
		CHECK(error == -ESTALE || (!error && buffer_ask(plane, id).regions == 1));
		if (error && ending.error)
			CHECK(!buffer_end(plane, id, 0, 0));
	}
	CHECK(error == -ESTALE);
	CHECK(!dmp_close(plane));
	munmap(own, LARGE_BYTES);
}

static void test_L3_a_region_holds_its_buffer(void)
{
	struct dmp_plane *plane = plane_open();
	uint32_t buffer = buffer_make(plane, BYTES, NULL);
	struct grant first = region_make(plane, buffer, 0, 1, READ);
	struct grant second = region_make(plane, buffer, 0, 1, READ);
	struct ending ending = { .plane = plane, .end = buffer_end, .id = buffer };

	CHECK(buffer_ask(plane, buffer).regions == 2);
	CHECK(buffer_end(plane, buffer, 0, 0) == -EBUSY);
	CHECK(buffer_end(plane, buffer, DMP_DESTROY_DRAIN, dmp_now_ns() + SOON_NS) == -ETIMEDOUT);
	CHECK(buffer_ask(plane, buffer).state == DMP_STATE_DRAINING);
	/* A draining buffer takes no more regions; those it has work on. */
	CHECK(region_try(plane, buffer, 0, 1, READ) == -ESTALE);
	CHECK(!admits(plane, &first, 0, 1, READ));
	ending_start(&ending);
	wait_until_drained_by_others(plane);
	CHECK(!region_end(plane, first.create.region_id, 0, 0));
	CHECK(buffer_ask(plane, buffer).regions == 1);
	CHECK(!region_end(plane, second.create.region_id, DMP_DESTROY_DRAIN, 0));
	pthread_join(ending.thread, NULL);
	CHECK(ending.error == 0);
	CHECK(buffer_end(plane, buffer, 0, 0) == -ENOENT);
	CHECK(!dmp_close(plane));
}

static void test_L3_a_region_in_use_is_busy_and_unchanged(void)
{
	struct dmp_plane *plane = plane_open();
	uint32_t buffer = buffer_make(plane, BYTES, NULL);
	struct grant grant = region_make(plane, buffer, 0, BYTES, READ);
	struct dmp_region *region;
	const uint32_t *words;
	char *address;
	int fd;

	CHECK(!dmp_region_board(plane, &words, &fd));
	CHECK(!dmp_region_admit(plane, grant.create.key, grant.create.key_bytes, 0, 0, READ,
				&region, &address));
	CHECK(region_end(plane, grant.create.region_id, 0, 0) == -EBUSY);
	CHECK(region_end(plane, grant.create.region_id, 0, 1) == -EINVAL);
	CHECK(region_ask(plane, grant.create.region_id).state == DMP_STATE_LIVE);
	CHECK(words[grant.key.slot] == grant.key.generation);
	CHECK(!admits(plane, &grant, 0, 1, READ));
	dmp_region_release(plane, region);
	CHECK(!region_end(plane, grant.create.region_id, 0, 0));
	CHECK(!dmp_close(plane));
}

static void test_L3_drain_refuses_at_once_and_waits_for_the_admitted(void)
{
	struct dmp_plane *plane = plane_open();
	uint32_t buffer = buffer_make(plane, BYTES, NULL);
	struct grant grant = region_make(plane, buffer, 0, BYTES, READ);
	struct ending ending = { .plane = plane, .end = region_end,
				 .id = grant.create.region_id };
	struct dmp_region *region;
	const uint32_t *words;
	char *address;
	int fd;

	CHECK(!dmp_region_board(plane, &words, &fd));
	CHECK(!dmp_region_admit(plane, grant.create.key, grant.create.key_bytes, 0, 1, READ,
				&region, &address));
	CHECK(region_end(plane, grant.create.region_id, DMP_DESTROY_DRAIN, 1) == -ETIMEDOUT);
	CHECK(region_end(plane, grant.create.region_id, DMP_DESTROY_DRAIN,
			 dmp_now_ns() + SOON_NS) == -ETIMEDOUT);
	CHECK(region_ask(plane, grant.create.region_id).state == DMP_STATE_DRAINING);
	CHECK(region_ask(plane, grant.create.region_id).operations == 1);
	CHECK(__atomic_load_n(&words[grant.key.slot], __ATOMIC_SEQ_CST) == 0);
	CHECK(admits(plane, &grant, 0, 1, READ) == -ESTALE);
	CHECK(region_end(plane, grant.create.region_id, 0, 0) == -EBUSY);
	CHECK(buffer_end(plane, buffer, 0, 0) == -EBUSY);
	ending_start(&ending);
	wait_until_drained_by_others(plane);
	CHECK(admits(plane, &grant, 0, 1, READ) == -ESTALE);
	CHECK(*address == 0);	/* still there */
	dmp_region_release(plane, region);
	pthread_join(ending.thread, NULL);
	CHECK(ending.error == 0);
	CHECK(region_end(plane, grant.create.region_id, 0, 0) == -ENOENT);
	CHECK(!buffer_end(plane, buffer, 0, 0));
	CHECK(!dmp_close(plane));
}

struct writer {
	pthread_t thread;
	struct dmp_plane *plane;
	uint64_t offset;		/* of its half of the buffer */
	struct grant grant;		/* changed only while the writer stands */
	uint32_t turn;			/* atomic */
	uint32_t begun;			/* atomic: the turn in which it got in */
	uint32_t refused;		/* atomic: the turn in which it was refused */
	bool stop;			/* atomic */
};

/* Writes all the time, with the latest key it has, until that is refused. */
static void *writer_run(void *argument)
{
	struct writer *writer = argument;
	uint32_t done = 0;

	while (!__atomic_load_n(&writer->stop, __ATOMIC_ACQUIRE)) {
		struct dmp_region *region;
		uint32_t turn = __atomic_load_n(&writer->turn, __ATOMIC_ACQUIRE);
		char *address;
		int error;

		if (turn == done) {
			sched_yield();
			continue;
		}
		error = dmp_region_admit(writer->plane, writer->grant.create.key,
					 writer->grant.create.key_bytes, writer->offset, HALF_BYTES,
					 WRITE, &region, &address);
		if (error) {
			CHECK(error == -ESTALE);
			done = turn;
			__atomic_store_n(&writer->refused, turn, __ATOMIC_RELEASE);
			continue;
		}
		memset(address, (int)(turn & 63) + 1, HALF_BYTES);
		dmp_region_release(writer->plane, region);
		__atomic_store_n(&writer->begun, turn, __ATOMIC_RELEASE);
	}
	return NULL;
}

static void test_L7_nothing_is_written_once_a_region_is_destroyed(void)
{
	struct dmp_plane *plane = plane_open();
	char *bytes;
	uint32_t buffer = buffer_make(plane, 2 * HALF_BYTES, &bytes);
	struct writer writers[2] = { { .plane = plane },
				     { .plane = plane, .offset = HALF_BYTES } };

	for (int index = 0; index < 2; index++)
		CHECK(!pthread_create(&writers[index].thread, NULL, writer_run, &writers[index]));
	for (uint32_t turn = 1; turn <= 200; turn++) {
		struct grant grant = region_make(plane, buffer, 0, 2 * HALF_BYTES, WRITE);
		uint32_t flags = turn % 4 / 2 ? DMP_DESTROY_DRAIN : 0;
		/* Two of them would hardly ever be idle both at once. */
		int error, count = flags ? 2 : 1;
		uint32_t tries = 0;

		for (int index = 0; index < count; index++) {
			writers[index].grant = grant;
			__atomic_store_n(&writers[index].turn, turn, __ATOMIC_RELEASE);
		}
		while (__atomic_load_n(&writers[0].begun, __ATOMIC_ACQUIRE) != turn)
			sched_yield();
		do {
			error = region_end(plane, grant.create.region_id, flags, 0);
			if (++tries % 256 == 0)
				sched_yield();
		} while (error == -EBUSY && !flags);
		CHECK(!error);
		memset(bytes, 0x7f, 2 * HALF_BYTES);
		for (int index = 0; index < count; index++)
			while (__atomic_load_n(&writers[index].refused, __ATOMIC_ACQUIRE) != turn)
				sched_yield();
		for (uint32_t byte = 0; byte < 2 * HALF_BYTES; byte++)
			CHECK(bytes[byte] == 0x7f);
	}
	for (int index = 0; index < 2; index++) {
		__atomic_store_n(&writers[index].stop, true, __ATOMIC_RELEASE);
		pthread_join(writers[index].thread, NULL);
	}
	CHECK(!dmp_close(plane));
}

static void test_L4_a_plane_closes_with_regions_in_every_state(void)
{
	struct dmp_plane *plane = plane_open();
	uint32_t buffer = buffer_make(plane, BYTES, NULL);
	struct grant draining = region_make(plane, buffer, 0, 1, READ);
	struct dmp_region *region;
	char *address;

	region_make(plane, buffer, 0, 1, READ);
	CHECK(!dmp_region_admit(plane, draining.create.key, draining.create.key_bytes, 0, 1, READ,
				&region, &address));
	CHECK(region_end(plane, draining.create.region_id, DMP_DESTROY_DRAIN, 1) == -ETIMEDOUT);
	dmp_region_release(plane, region);
	CHECK(buffer_end(plane, buffer, DMP_DESTROY_DRAIN, 1) == -ETIMEDOUT);
	CHECK(!dmp_close(plane));
}

/* ---- a peer's region */

static void test_L3_a_peers_region_is_held_by_operations(void)
{
	struct dmp_plane *plane = plane_open();
	struct dmp_embedded_endpoint endpoint = { .object.id = 77, .remotes = 1 };
	struct dmp_remote *remote = calloc(1, sizeof(*remote));
	struct dmp_region_query query;
	uint32_t id;
	char *pages;

	CHECK(remote);
	pages = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(pages != MAP_FAILED);
	*remote = (struct dmp_remote){ .object.type = DMP_OBJECT_REMOTE,
				       .object.state = DMP_STATE_LIVE, .endpoint = &endpoint,
				       .length = 10, .access = READ, .generation = 5,
				       .mapping = pages, .mapping_bytes = PAGE,
				       .operations = 1 };
	pthread_mutex_lock(&plane->lock);
	CHECK(!dmp_table_insert(&plane->table, &remote->object));
	plane->regions++;
	dmp_board_add(&plane->board->statistics.regions, 1);
	pthread_mutex_unlock(&plane->lock);
	id = remote->object.id;
	query = region_ask(plane, id);
	CHECK(query.state == DMP_STATE_LIVE && query.buffer_id == 0 && query.endpoint_id == 77 &&
	      query.access == READ && query.generation == 5 && query.offset == 0 &&
	      query.length_bytes == 10 && query.operations == 1);
	CHECK(region_end(plane, id, 0, 0) == -EBUSY);
	CHECK(region_ask(plane, id).state == DMP_STATE_LIVE);
	CHECK(region_end(plane, id, DMP_DESTROY_DRAIN, 1) == -ETIMEDOUT);
	CHECK(region_ask(plane, id).state == DMP_STATE_DRAINING);
	__atomic_store_n(&remote->operations, 0, __ATOMIC_SEQ_CST);
	CHECK(!region_end(plane, id, 0, 0));
	CHECK(endpoint.remotes == 0 && plane->regions == 0 && regions_counted(plane) == 0);
	CHECK(mprotect(pages, PAGE, PROT_NONE) == -1 && errno == ENOMEM);
	CHECK(region_end(plane, id, 0, 0) == -ENOENT);
	CHECK(!dmp_close(plane));
}

int main(void)
{
	test_a_key_says_what_was_registered();
	test_L12_a_key_with_any_bit_changed_opens_nothing();
	test_L12_only_granted_rights();
	test_L12_only_inside_the_region();
	test_L7_a_generation_never_comes_back();
	test_what_cannot_be_granted_is_refused_and_holds_nothing();
	test_L9_the_canary_finds_memory_that_is_gone();
	test_L9_the_canary_finds_rights_that_are_missing();
	test_L9_the_canary_raises_no_signal_behind_the_end_of_a_file();
	test_limit_of_regions_is_an_error_and_all_come_back();
	test_a_buffer_that_drains_during_the_canary_gets_no_region();
	test_L3_a_region_holds_its_buffer();
	test_L3_a_region_in_use_is_busy_and_unchanged();
	test_L3_drain_refuses_at_once_and_waits_for_the_admitted();
	test_L7_nothing_is_written_once_a_region_is_destroyed();
	test_L4_a_plane_closes_with_regions_in_every_state();
	test_L3_a_peers_region_is_held_by_operations();
	return 0;
}
