// SPDX-License-Identifier: MIT
/*
 * loops.c - the timed loops behind `dmaplane bench`
 *
 * Ours and its peer are timed by the same clock, in the same process, over the same
 * memory; Python only says what to do and does the arithmetic. A loop is handed
 * the plane's dmp_client_exchange as a pointer, so that two builds of the plane can be
 * measured side by side. Every function returns 0 or a negative errno and writes how
 * long the timed part took, in nanoseconds, on success only.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "loops.h"

uint64_t dmp_bench_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int dmp_bench_memcpy(char *target, const char *source, const struct dmp_submission *rows,
		     uint64_t count, uint64_t *elapsed_ns)
{
	uint64_t begin = dmp_bench_now_ns();
	uint64_t index;

	for (index = 0; index < count; index++)
		memcpy(target + rows[index].target_offset, source + rows[index].source_offset,
		       rows[index].length_bytes);
	/* The copies have happened as far as the compiler can know. */
	__asm__ volatile("" : : "r"(target) : "memory");
	*elapsed_ns = dmp_bench_now_ns() - begin;
	return 0;
}

/* The first completion that failed, as its errno. */
static int failure(const struct dmp_completion *completions, int count)
{
	int index;

	for (index = 0; index < count; index++)
		if (completions[index].result)
			return completions[index].result;
	return 0;
}

int dmp_bench_stream(dmp_bench_exchange exchange, struct dmp_client *client,
		     const struct dmp_submission *rows, uint64_t count, uint32_t batch,
		     uint32_t window, struct dmp_completion *completions, uint32_t room,
		     uint64_t *elapsed_ns)
{
	uint64_t begin = dmp_bench_now_ns();
	uint64_t pushed = 0, taken = 0;

	while (taken < count) {
		uint64_t in_flight = pushed - taken;
		uint64_t push = count - pushed < batch ? count - pushed : batch;
		uint64_t wait = 0;
		uint32_t accepted = 0;
		int got;

		if (push > window - in_flight)
			push = window - in_flight;
		/* Full, or nothing more to push: wait for a batch of what is in flight. */
		if (in_flight + push >= window || pushed + push == count)
			wait = in_flight + push < batch ? in_flight + push : batch;
		got = exchange(client, rows + pushed, (uint32_t)push, &accepted, completions, room,
			       (uint32_t)wait, 0);
		if (got == -EINTR || got == -EAGAIN)
			continue;
		if (got < 0)
			return got;
		pushed += accepted;
		taken += (uint32_t)got;
		got = failure(completions, got);
		if (got)
			return got;
	}
	*elapsed_ns = dmp_bench_now_ns() - begin;
	return 0;
}

int dmp_bench_round_robin(dmp_bench_exchange exchange, struct dmp_client *const *clients,
			  uint32_t client_count, const struct dmp_submission *rows,
			  uint32_t batch, uint64_t turns, struct dmp_completion *completions,
			  uint32_t room, uint64_t *elapsed_ns)
{
	uint64_t begin = dmp_bench_now_ns();
	uint64_t turn;

	for (turn = 0; turn < turns; turn++) {
		uint32_t accepted = 0;
		int got;

		got = exchange(clients[turn % client_count], rows, batch, &accepted, completions,
			       room, batch, 0);
		if (got >= 0 && ((uint32_t)got != batch || accepted != batch))
			got = -EPROTO;
		if (got >= 0)
			got = failure(completions, got);
		if (got)
			return got;
	}
	*elapsed_ns = dmp_bench_now_ns() - begin;
	return 0;
}

int dmp_bench_commands(dmp_bench_ioctl ioctl, void *plane, unsigned int command,
		       const void *argument, uint64_t argument_bytes, uint64_t count,
		       uint64_t *elapsed_ns)
{
	uint64_t scratch[512];
	uint64_t begin = dmp_bench_now_ns();
	uint64_t index;

	if (argument_bytes > sizeof(scratch))
		return -E2BIG;
	for (index = 0; index < count; index++) {
		int answer;

		memcpy(scratch, argument, argument_bytes);
		answer = ioctl(plane, command, scratch);
		if (answer < 0)
			return answer;
	}
	*elapsed_ns = dmp_bench_now_ns() - begin;
	return 0;
}

/* ---- what two threads can do at best: one word, or one eventfd, each way */

struct partner {
	int fds[2];
	uint64_t count;
	uint64_t ask, answer;
	int failed;
};

static void *event_partner(void *argument)
{
	struct partner *partner = argument;
	uint64_t index, value;

	for (index = 0; index < partner->count; index++) {
		if (read(partner->fds[0], &value, 8) != 8)
			partner->failed = 1;
		value = 1;
		if (write(partner->fds[1], &value, 8) != 8)
			partner->failed = 1;
	}
	return NULL;
}

static void *spin_partner(void *argument)
{
	struct partner *partner = argument;
	uint64_t index;

	for (index = 1; index <= partner->count; index++) {
		while (__atomic_load_n(&partner->ask, __ATOMIC_ACQUIRE) != index)
			;
		__atomic_store_n(&partner->answer, index, __ATOMIC_RELEASE);
	}
	return NULL;
}

static void event_rounds(struct partner *partner, uint64_t *each_ns)
{
	uint64_t index, value;

	for (index = 0; index < partner->count; index++) {
		uint64_t begin = dmp_bench_now_ns();

		value = 1;
		if (write(partner->fds[0], &value, 8) != 8 || read(partner->fds[1], &value, 8) != 8)
			partner->failed = 1;
		each_ns[index] = dmp_bench_now_ns() - begin;
	}
}

static void spin_rounds(struct partner *partner, uint64_t *each_ns)
{
	uint64_t index;

	for (index = 1; index <= partner->count; index++) {
		uint64_t begin = dmp_bench_now_ns();

		__atomic_store_n(&partner->ask, index, __ATOMIC_RELEASE);
		while (__atomic_load_n(&partner->answer, __ATOMIC_ACQUIRE) != index)
			;
		each_ns[index - 1] = dmp_bench_now_ns() - begin;
	}
}

int dmp_bench_wakeups(int spin, uint64_t count, uint64_t *each_ns)
{
	struct partner partner = { .fds = { -1, -1 }, .count = count };
	pthread_t thread;
	int answer = 0;

	partner.fds[0] = eventfd(0, EFD_CLOEXEC);
	partner.fds[1] = eventfd(0, EFD_CLOEXEC);
	if (partner.fds[0] < 0 || partner.fds[1] < 0)
		answer = -errno;
	else
		answer = -pthread_create(&thread, NULL, spin ? spin_partner : event_partner,
					 &partner);
	if (!answer) {
		if (spin)
			spin_rounds(&partner, each_ns);
		else
			event_rounds(&partner, each_ns);
		pthread_join(thread, NULL);
		answer = partner.failed ? -EIO : 0;
	}
	if (partner.fds[0] >= 0)
		close(partner.fds[0]);
	if (partner.fds[1] >= 0)
		close(partner.fds[1]);
	return answer;
}
