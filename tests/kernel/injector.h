/* SPDX-License-Identifier: MIT */
/*
 * injector.h - the kernel's fault injection, for this thread
 *
 *  - nth: one slab allocation, page allocation or user copy fails, the n-th from now,
 *  - pages: every page allocation fails after the first n pages,
 *  - slab: every slab allocation fails after the first n bytes.
 */
#ifndef DMP_TESTS_INJECTOR_H
#define DMP_TESTS_INJECTOR_H

#include <stdbool.h>
#include <stdint.h>

enum injector_manner { INJECT_NTH, INJECT_PAGES, INJECT_SLAB, INJECT_MANNERS };

extern const char *const injector_manners[INJECT_MANNERS];

/* False if this kernel cannot (CONFIG_FAULT_INJECTION). */
bool injector_open(void);
/* From here on only what a function of the kernel, or what it calls, allocates can fail. */
void injector_only_below(const char *function);
void injector_arm(enum injector_manner manner, uint64_t number);
/* How many failures were injected since. */
uint64_t injector_disarm(enum injector_manner manner);

#endif /* DMP_TESTS_INJECTOR_H */
