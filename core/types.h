/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * types.h - the words core/ is written in, for the kernel and for userspace
 *
 * Fixed-width types are __u8 .. __u64 and __s32 of <linux/types.h>, which both
 * worlds have. bool, size_t and NULL come from the kernel's own headers there and
 * from the compiler's freestanding headers elsewhere. No libc header is needed.
 */
#ifndef DMP_CORE_TYPES_H
#define DMP_CORE_TYPES_H

#include <linux/errno.h>
#include <linux/types.h>

#ifndef __KERNEL__
#include <stdbool.h>
#include <stddef.h>
#endif

#endif /* DMP_CORE_TYPES_H */
