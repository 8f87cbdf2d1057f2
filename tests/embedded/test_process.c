// SPDX-License-Identifier: MIT
/* A process has one number; its children have others; what is a parent's is refused to them. */
#include <errno.h>
#include <stdint.h>
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/check.h"
#include "libdmaplane.h"
#include "process.h"
#include "shm_segment.h"

static void *ask(void *number)
{
	*(uint64_t *)number = dmp_process_number();
	return NULL;
}

static void test_all_threads_of_a_process_have_one_number(void)
{
	uint64_t numbers[8] = { 0 };
	pthread_t threads[8];
	int i;

	for (i = 0; i < 8; i++)
		CHECK(!pthread_create(&threads[i], NULL, ask, &numbers[i]));
	for (i = 0; i < 8; i++)
		CHECK(!pthread_join(threads[i], NULL));
	for (i = 0; i < 8; i++)
		CHECK(numbers[i] != 0 && numbers[i] == dmp_process_number());
}

/* Runs @body in a child with what it is given; it must be true there. */
static void in_child(int (*body)(uint64_t), uint64_t given)
{
	pid_t child = fork();
	int status;

	CHECK(child >= 0);
	if (!child)
		_exit(!body(given));
	CHECK(waitpid(child, &status, 0) == child);
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static int differs(uint64_t parent)
{
	return dmp_process_number() != parent && dmp_process_number() == dmp_process_number();
}

static int differs_from_parent_and_child(uint64_t grandparent)
{
	uint64_t mine = dmp_process_number();

	in_child(differs, mine);
	in_child(differs, grandparent);
	return mine != grandparent;
}

static void test_no_descendant_has_the_number_of_an_ancestor(void)
{
	uint64_t mine = dmp_process_number();

	in_child(differs, mine);
	in_child(differs_from_parent_and_child, mine);
	CHECK(dmp_process_number() == mine);
}

static struct dmp_plane *plane;

static int is_refused(uint64_t unused)
{
	struct dmp_query query = { .size = sizeof(query) };
	struct dmp_plane *own;
	void *address;

	(void)unused;
	return dmp_ioctl(plane, DMP_QUERY, &query) == -EPERM && dmp_poll(plane, 1) == -EPERM &&
	       dmp_mmap(plane, 4096, 1, 0, &address) == -EPERM &&
	       dmp_munmap(plane, &query) == -EPERM && dmp_close(plane) == -EPERM &&
	       !dmp_open(&own) && !dmp_ioctl(own, DMP_QUERY, &query) &&
	       dmp_ioctl(plane, DMP_QUERY, &query) == -EPERM && !dmp_close(own);
}

static void test_a_forked_child_is_refused_the_plane_and_may_have_its_own(void)
{
	struct dmp_query query = { .size = sizeof(query) };

	CHECK(!dmp_open(&plane));
	in_child(is_refused, 0);
	CHECK(!dmp_ioctl(plane, DMP_QUERY, &query));
	CHECK(!dmp_close(plane));
}

static uint32_t forked;

/* Has the lock of the segments that were left most of the time. */
static void *keep_busy(void *unused)
{
	(void)unused;
	while (!__atomic_load_n(&forked, __ATOMIC_ACQUIRE))
		CHECK(!dmp_shm_may_join());
	return NULL;
}

static int may_join(uint64_t unused)
{
	(void)unused;
	alarm(60);	/* only a lock that nobody gives back gets there */
	return !dmp_shm_may_join();
}

static void test_a_lock_of_another_thread_is_free_in_a_child(void)
{
	pthread_t busy;
	int child;

	CHECK(!pthread_create(&busy, NULL, keep_busy, NULL));
	for (child = 0; child < 300; child++)
		in_child(may_join, 0);
	__atomic_store_n(&forked, 1, __ATOMIC_RELEASE);
	CHECK(!pthread_join(busy, NULL));
}

int main(void)
{
	test_all_threads_of_a_process_have_one_number();
	test_no_descendant_has_the_number_of_an_ancestor();
	test_a_forked_child_is_refused_the_plane_and_may_have_its_own();
	test_a_lock_of_another_thread_is_free_in_a_child();
	return 0;
}
