// SPDX-License-Identifier: MIT
/*
 * sweep.c - the n-th allocation or user copy fails, n = 1, 2, 3 ... until none is left
 *
 *	sweep [SEQUENCE ...]
 *
 * Three ways to fail (injector.h), each over every sequence of sequences.c, each time tidied
 * up once by destroying what was made and once by closing the plane.
 * Every step answers success, ENOMEM, or EFAULT for a copy; what the plane counts is what
 * the caller was told; afterwards the module holds no byte and no reference, and the
 * machine has its pages back. Needs CONFIG_FAULT_INJECTION: exit code 3 says it is not there.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "injector.h"
#include "sweep.h"

#define RUNS_END			4000u	/* no sequence allocates so often */
#define RETURN_WITHIN_NS	SECOND_NS
#define LOST_KIB_MAX		(12 << 10)	/* the kernel's own debug records grow a little */
#define NO_INJECTION		3

static int64_t charged_before, memories_before, references_before;

/* ---- one run */

int sweep_step(struct sweep *sweep, const char *step, int status)
{
	if (status < 0 && !sweep->failed) {
		sweep->failed = step;
		sweep->status = status;
	}
	return status;
}

static void judge(const struct sweep *sweep, const char *where, uint64_t injected)
{
	struct dmp_statistics now;
	uint32_t mappings = 0, i;

	if (sweep->failed && !injected)
		FAIL("%s: %s answered %d though nothing was injected", where, sweep->failed,
		     sweep->status);
	if (sweep->failed && sweep->status != -ENOMEM && sweep->status != -EFAULT)
		FAIL("%s: %s answered %d", where, sweep->failed, sweep->status);
	if (!sweep->plane)
		return;
	for (i = 0; i < sweep->mapping_count; i++)
		mappings += sweep->mappings[i].of_plane;
	if (device_statistics(sweep->plane, &now))
		FAIL("%s: no statistics", where);
	if (now.buffers != sweep->buffer_count || now.channels != sweep->channel_count ||
	    now.mappings != mappings)
		FAIL("%s: after %s the plane counts %llu buffers, %llu channels, %llu mappings; "
		     "the caller has %u, %u, %u", where, sweep->failed ? sweep->failed : "all",
		     (unsigned long long)now.buffers, (unsigned long long)now.channels,
		     (unsigned long long)now.mappings, sweep->buffer_count, sweep->channel_count,
		     mappings);
}

static void destroy_all(struct sweep *sweep, const char *where)
{
	int status = 0;

	while (sweep->mapping_count) {
		struct ledger_mapping *mapping = &sweep->mappings[--sweep->mapping_count];

		status |= munmap(mapping->address, mapping->length_bytes);
	}
	while (sweep->fd_count)
		status |= close(sweep->fds[--sweep->fd_count]);
	/* A driver that imported ours and could not say so still has it. */
	if (sweep->foreign >= 0)
		close(sweep->foreign);
	sweep->foreign = -1;
	while (sweep->channel_count)
		status |= device_destroy(sweep->plane, DMP_CHANNEL_DESTROY,
					 sweep->channels[--sweep->channel_count]);
	while (sweep->buffer_count)
		status |= device_destroy(sweep->plane, DMP_BUFFER_DESTROY,
					 sweep->buffers[--sweep->buffer_count]);
	if (status)
		FAIL("%s: something made before the failure cannot be freed", where);
}

static void wait_until_gone(const char *where)
{
	uint64_t deadline = dmp_now_ns() + RETURN_WITHIN_NS;

	while (device_charged_bytes() != charged_before || device_memories() != memories_before ||
	       device_references() != references_before) {
		if (dmp_now_ns() > deadline)
			FAIL("%s: %lld memories, %lld bytes and %lld references left", where,
			     (long long)device_memories(), (long long)device_charged_bytes(),
			     (long long)device_references());
		sleep_us(5000);
	}
}

static void close_all(struct sweep *sweep)
{
	if (sweep->plane)
		dmp_close(sweep->plane);
	while (sweep->mapping_count) {
		struct ledger_mapping *mapping = &sweep->mappings[--sweep->mapping_count];

		munmap(mapping->address, mapping->length_bytes);
	}
	while (sweep->fd_count)
		close(sweep->fds[--sweep->fd_count]);
	if (sweep->foreign >= 0)
		close(sweep->foreign);
}

struct tally {
	uint32_t runs, refused;
};

/* Returns how many failures were injected, or -1 if the machine lacks what it needs. */
static int64_t run_once(const struct sequence *sequence, enum injector_manner manner, uint64_t number,
			bool destroys, uint8_t *arena, struct tally *tally)
{
	struct sweep sweep = { .foreign = -1, .arena = arena };
	uint64_t injected;
	char where[96];

	snprintf(where, sizeof(where), "%s, %s %llu", sequence->name, injector_manners[manner],
		 (unsigned long long)number);
	if (sequence->prepare && sequence->prepare(&sweep) < 0) {
		close_all(&sweep);
		return -1;
	}
	injector_arm(manner, number);
	sequence->run(&sweep);
	injected = injector_disarm(manner);
	judge(&sweep, where, injected);
	if (destroys && sweep.plane)
		destroy_all(&sweep, where);
	close_all(&sweep);
	wait_until_gone(where);
	tally->runs++;
	tally->refused += sweep.failed != NULL;
	return (int64_t)injected;
}

/* Larger steps where more was let through: what comes next fails in the same places. */
static uint64_t next_number(enum injector_manner manner, uint64_t number)
{
	if (manner == INJECT_NTH)
		return number + 1;
	return manner == INJECT_PAGES ? number + 1 + number / 8 : number + 64 + number / 6;
}

static bool sweep_sequence(const struct sequence *sequence, enum injector_manner manner, uint8_t *arena)
{
	struct tally tally = { 0 };
	uint64_t number, rounds;
	int64_t injected = 1;

	for (number = manner == INJECT_NTH, rounds = 0; injected > 0; rounds++) {
		if (rounds == RUNS_END)
			FAIL("%s, %s: no end after %u", sequence->name, injector_manners[manner], RUNS_END);
		injected = run_once(sequence, manner, number, true, arena, &tally);
		if (injected > 0)
			run_once(sequence, manner, number, false, arena, &tally);
		if (injected < 0) {
			printf("sweep: %s: not here\n", sequence->name);
			return false;
		}
		number = next_number(manner, number);
	}
	printf("sweep: %s: %s: %u runs, %u refused\n", sequence->name, injector_manners[manner],
	       tally.runs, tally.refused);
	fflush(stdout);
	return true;
}

static bool wanted(const char *name, int count, char **words)
{
	int i;

	for (i = 1; i < count; i++)
		if (!strcmp(words[i], name))
			return true;
	return count == 1;
}

int main(int count, char **words)
{
	uint8_t *arena = mmap(NULL, ARENA_BYTES, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	struct dmp_plane *plane;
	int64_t before, lost, pinned;
	uint32_t i, manner;

	charged_before = device_charged_bytes();
	memories_before = device_memories();
	references_before = device_references();
	if (dmp_open(&plane) || dmp_close(plane))
		FAIL("no plane");
	/*
	 * A page fault of our own under injection would be the kernel's problem, not the
	 * plane's: what was touched so far, the heap included, stays.
	 */
	if (arena == MAP_FAILED || mlockall(MCL_CURRENT))
		FAIL("no resident memory: %s", strerror(errno));
	if (!injector_open()) {
		printf("sweep: this kernel has no fault injection\n");
		return NO_INJECTION;
	}
	pinned = device_pinned_pages();
	before = device_reusable_kib();
	for (i = 0; i < sequence_count; i++)
		for (manner = 0; manner < INJECT_MANNERS && wanted(sequences[i].name, count, words); manner++)
			if (!sweep_sequence(&sequences[i], manner, arena))
				break;
	lost = before - device_reusable_kib();
	printf("sweep: %lld KiB of memory fewer than before\n", (long long)lost);
	if (lost > LOST_KIB_MAX)
		FAIL("pages are lost");
	if (device_pinned_pages() != pinned)
		FAIL("%lld pages stay pinned", (long long)(device_pinned_pages() - pinned));
	return 0;
}
