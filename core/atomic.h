/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * atomic.h - every access to a word that another side writes or reads
 *
 * The only ordered accesses of core/. Each function says what it orders; a caller
 * names its pair.
 */
#ifndef DMP_CORE_ATOMIC_H
#define DMP_CORE_ATOMIC_H

#include "types.h"

#ifdef __KERNEL__
#include <asm/barrier.h>
#include <linux/compiler.h>

static inline __u32 dmp_load_acquire(const __u32 *word)
{
	return smp_load_acquire(word);
}

static inline void dmp_store_release(__u32 *word, __u32 value)
{
	smp_store_release(word, value);
}

static inline void dmp_copied(void)
{
	barrier();
}
#else
/* Nothing after it moves before it: entries are read after the index that covers them. */
static inline __u32 dmp_load_acquire(const __u32 *word)
{
	return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

/* Nothing before it moves after it: entries are complete before the index covers them. */
static inline void dmp_store_release(__u32 *word, __u32 value)
{
	__atomic_store_n(word, value, __ATOMIC_RELEASE);
}

/*
 * What was just copied out of shared memory is what everything after this sees: the
 * compiler may not read the original again in its place. Nothing for the processor.
 */
static inline void dmp_copied(void)
{
	__asm__ __volatile__("" : : : "memory");
}
#endif

#endif /* DMP_CORE_ATOMIC_H */
