// SPDX-License-Identifier: MIT
/* wait.c - see wait.h */
#define _GNU_SOURCE
#include "wait.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "libdmaplane.h"

#define SPIN_STEP_NS 4000u	/* what a caught event adds */
#define SPIN_YIELD_NS 8000u	/* longer than any answer of a partner that runs */
#define SPIN_FLOOR_NS 1000u	/* below this it is not worth the clock */
#define SPIN_STRIKES 16u		/* so often in a row even the longest budget was in vain, */
#define SPIN_ABSTAIN 256u	/* and so many sleeps are not learned from */

uint64_t dmp_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static bool several_cpus(void)
{
	cpu_set_t cpus;

	return sched_getaffinity(0, sizeof(cpus), &cpus) != 0 || CPU_COUNT(&cpus) > 1;
}

void dmp_spin_init(struct dmp_spin *spin, const struct dmp_spin *partner, bool fixed,
		   uint32_t fixed_ns)
{
	spin->partner = partner;
	spin->cpu = -1;
	spin->fixed = fixed;
	spin->budget_ns = fixed ? fixed_ns : SPIN_STEP_NS;
	if (!several_cpus()) {
		spin->fixed = true;
		spin->budget_ns = 0;
	}
}

/* Notes where we are. Is the partner there too? */
static bool same_cpu(struct dmp_spin *spin)
{
	int cpu = sched_getcpu();

	__atomic_store_n(&spin->cpu, cpu, __ATOMIC_RELAXED);
	return cpu == __atomic_load_n(&spin->partner->cpu, __ATOMIC_RELAXED);
}

bool dmp_spin_is_here(const struct dmp_spin *spin)
{
	return __atomic_load_n(&spin->cpu, __ATOMIC_RELAXED) == sched_getcpu();
}

void dmp_spin_learn(struct dmp_spin *spin, bool caught)
{
	uint32_t budget = __atomic_load_n(&spin->budget_ns, __ATOMIC_RELAXED);

	if (spin->fixed || (caught && same_cpu(spin)))
		return;
	if (caught)
		budget = budget + SPIN_STEP_NS < DMP_SPIN_MAX_NS ? budget + SPIN_STEP_NS :
								   DMP_SPIN_MAX_NS;
	else
		budget = budget / 2 < SPIN_FLOOR_NS ? 0 : budget / 2;
	__atomic_store_n(&spin->budget_ns, budget, __ATOMIC_RELAXED);
}

void dmp_spin_slept(struct dmp_spin *spin, uint64_t slept_ns)
{
	uint32_t budget = spin->budget_ns;

	if (spin->fixed)
		return;
	if (spin->abstain != 0) {
		spin->abstain--;
	} else if (slept_ns >= 2 * DMP_SPIN_MAX_NS) {	/* half of it may be the waking */
		spin->budget_ns = budget / 2 < SPIN_FLOOR_NS ? 0 : budget / 2;
	} else if (budget < DMP_SPIN_MAX_NS) {
		budget = budget < SPIN_STEP_NS ? SPIN_STEP_NS : 2 * budget;
		spin->budget_ns = budget < DMP_SPIN_MAX_NS ? budget : DMP_SPIN_MAX_NS;
	} else if (++spin->strikes == SPIN_STRIKES) {
		spin->strikes = 0;
		spin->abstain = SPIN_ABSTAIN;
		spin->budget_ns = 0;
	}
}

void dmp_spin_caught(struct dmp_spin *spin)
{
	spin->strikes = 0;
	if (!spin->fixed)
		spin->budget_ns = spin->budget_ns + SPIN_STEP_NS < DMP_SPIN_MAX_NS ?
				  spin->budget_ns + SPIN_STEP_NS : DMP_SPIN_MAX_NS;
}

static void pause_cpu(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ __volatile__("yield" ::: "memory");
#endif
}

bool dmp_spin_briefly(struct dmp_spin *spin, bool (*met)(const void *), const void *context,
		      uint64_t deadline_ns)
{
	uint32_t budget = __atomic_load_n(&spin->budget_ns, __ATOMIC_RELAXED);
	uint64_t end, now, yield_at;
	bool same;
	int turn;

	if (met(context))
		return true;
	same = same_cpu(spin);
	if (budget == 0 || (same && !spin->fixed))
		return false;
	now = dmp_now_ns();
	yield_at = now + SPIN_YIELD_NS;
	end = now + budget;
	if (deadline_ns != 0 && deadline_ns < end)
		end = deadline_ns;
	do {
		for (turn = same ? 31 : 0; turn < 32; turn++) {
			if (met(context))
				return true;
			pause_cpu();
		}
		now = dmp_now_ns();
		if (same || now >= yield_at) {
			sched_yield();
			yield_at = now + SPIN_YIELD_NS;
			same = same_cpu(spin);
		}
	} while (now < end);
	return false;
}

bool dmp_spin_until(struct dmp_spin *spin, bool (*met)(const void *), const void *context,
		    uint64_t deadline_ns)
{
	bool caught;

	if (met(context))
		return true;
	caught = dmp_spin_briefly(spin, met, context, deadline_ns);
	dmp_spin_learn(spin, caught);
	return caught;
}

int dmp_futex_wait(uint32_t *word, uint32_t seen, uint64_t deadline_ns)
{
	struct timespec until = { .tv_sec = (time_t)(deadline_ns / 1000000000u),
				  .tv_nsec = (long)(deadline_ns % 1000000000u) };

	/* The bitset form takes an absolute time, so a restart does not wait longer. */
	if (syscall(SYS_futex, word, FUTEX_WAIT_BITSET_PRIVATE, seen,
		    deadline_ns != 0 ? &until : NULL, NULL, FUTEX_BITSET_MATCH_ANY) == 0)
		return 0;
	return -errno;
}

void dmp_futex_wake_all(uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}
