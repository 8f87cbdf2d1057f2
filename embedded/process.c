// SPDX-License-Identifier: MIT
/*
 * process.c - see process.h
 *
 * Invariants
 *  - `word` is 0 in a child until it is asked there, as its page is wiped by fork.
 *  - `taken` is not wiped: a child counts on from where its parent was, so that along a line
 *    of descent every number is another. Siblings may have the same one, which does no harm:
 *    neither has anything of the other's.
 *  - Where a page cannot be wiped (before Linux 4.14) or had, the process id is the number.
 */
#define _GNU_SOURCE
#include "process.h"

#include <stdbool.h>
#include <stddef.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif

#define GUARDED_MAX 8u

/* More than any process id, so that the two kinds of number do not meet. */
#define FIRST_NUMBER (1ull << 32)

static uint64_t *word;		/* atomic; set once, never unmapped */
static uint64_t taken;		/* atomic: numbers given out so far */

static uint64_t *page_of_word(void)
{
	uint64_t *seen = __atomic_load_n(&word, __ATOMIC_ACQUIRE), *made;

	if (seen)
		return seen;
	made = mmap(NULL, sizeof(*made), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (made == MAP_FAILED)
		return NULL;
	if (madvise(made, sizeof(*made), MADV_WIPEONFORK) != 0) {
		munmap(made, sizeof(*made));
		return NULL;
	}
	/* Pairs with the load above: who finds it finds it wiped on fork. */
	if (__atomic_compare_exchange_n(&word, &seen, made, false, __ATOMIC_ACQ_REL,
					__ATOMIC_ACQUIRE))
		return made;
	munmap(made, sizeof(*made));
	return seen;
}

uint64_t dmp_process_number(void)
{
	uint64_t *at = page_of_word(), number, wanted;

	if (!at)
		return (uint64_t)getpid();
	number = __atomic_load_n(at, __ATOMIC_RELAXED);
	if (number != 0)
		return number;
	wanted = FIRST_NUMBER + __atomic_fetch_add(&taken, 1, __ATOMIC_RELAXED);
	/* If another thread was first, its number is ours too. */
	if (__atomic_compare_exchange_n(at, &number, wanted, false, __ATOMIC_RELAXED,
					__ATOMIC_RELAXED))
		return wanted;
	return number;
}

/* ---- locks and fork */

/* Filled by constructors, one after the other, before anybody forks. */
static pthread_mutex_t *guarded[GUARDED_MAX];
static unsigned int guarded_count;

static void lock_all(void)
{
	unsigned int number;

	for (number = 0; number < guarded_count; number++)
		pthread_mutex_lock(guarded[number]);
}

static void unlock_all(void)
{
	unsigned int number;

	for (number = guarded_count; number-- != 0;)
		pthread_mutex_unlock(guarded[number]);
}

void dmp_process_guard(pthread_mutex_t *lock)
{
	if (guarded_count == GUARDED_MAX)
		return;
	if (guarded_count == 0 && pthread_atfork(lock_all, unlock_all, unlock_all) != 0)
		return;
	guarded[guarded_count++] = lock;
}
