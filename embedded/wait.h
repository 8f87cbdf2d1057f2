/* SPDX-License-Identifier: MIT */
/*
 * wait.h - how threads of a plane wait for each other: spin a little, then sleep
 *
 * Spinning is bounded and pays for itself or stops: a budget that did not catch the
 * event is halved, one that did grows towards its maximum. A fixed budget stays as the
 * user set it. Where there is one CPU nobody spins, and nobody spins against a partner
 * who was last seen on the same CPU: that one could only run once we stop.
 *
 * Against a peer that is another process the budget goes by how long it slept after
 * spinning in vain (dmp_spin_slept): waking costs as much as all the rest of a round trip,
 * so a few tens of microseconds are worth spinning, if that catches it. If it does not,
 * even for as long as is allowed, it is left alone for a while.
 */
#ifndef DMP_WAIT_H
#define DMP_WAIT_H

#include <stdbool.h>
#include <stdint.h>

#define DMP_SPIN_MAX_NS 50000u

struct dmp_spin {
	const struct dmp_spin *partner;	/* whom we wait for */
	uint32_t budget_ns;		/* racy on purpose: a hint */
	int cpu;			/* where we waited last, -1 at first; a hint too */
	uint32_t abstain;		/* so many sleeps are not learned from */
	uint32_t strikes;
	bool fixed;
};

void dmp_spin_init(struct dmp_spin *spin, const struct dmp_spin *partner, bool fixed,
		   uint32_t fixed_ns);
void dmp_spin_learn(struct dmp_spin *spin, bool caught);

/* For dmp_spin_briefly: it came; or we spun in vain, and then slept for @slept_ns. */
void dmp_spin_caught(struct dmp_spin *spin);
void dmp_spin_slept(struct dmp_spin *spin, uint64_t slept_ns);

/* Was the owner of @spin last seen on the CPU of the calling thread? A hint. */
bool dmp_spin_is_here(const struct dmp_spin *spin);

/*
 * Spins until @met says so, for as long as the budget allows; false if it ran out. On a
 * crowded machine the one we wait for gets our time: every few microseconds we yield.
 */
bool dmp_spin_until(struct dmp_spin *spin, bool (*met)(const void *), const void *context,
		    uint64_t deadline_ns);

/* The same, but nothing is learned from it. */
bool dmp_spin_briefly(struct dmp_spin *spin, bool (*met)(const void *), const void *context,
		      uint64_t deadline_ns);

/* Sleeps while *@word == @seen; 0, -EAGAIN (it differs), -ETIMEDOUT or -EINTR. */
int dmp_futex_wait(uint32_t *word, uint32_t seen, uint64_t deadline_ns);
void dmp_futex_wake_all(uint32_t *word);

#endif /* DMP_WAIT_H */
