/* SPDX-License-Identifier: MIT */
/*
 * The words below copy.cu for a processor: what words.cu is on a device.
 *
 * A warp is 32 coroutines that take turns. handed() is where they meet: each leaves its value
 * and lets the others leave theirs. A kernel whose lanes do not all come by there equally
 * often would hang or be wrong on a device; here it is an abort.
 */
#ifndef STAND_IN_LANES_H
#define STAND_IN_LANES_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

enum { LANES = 32 };
enum { PLAIN = 0, STREAMING = 1, UNCACHED = 2 };

struct Index {
	u32 x;
};

extern Index threadIdx, blockIdx, blockDim, gridDim;

#define __device__
#define __forceinline__ inline
#define __global__
#define __grid_constant__
#define __launch_bounds__(threads)

template <int BYTES> struct Word {
	u8 a[BYTES];
};

template <> struct Word<16> {
	u32 a, b, c, d;
};

template <int HINT, int BYTES> inline void load(Word<BYTES> &word, u64 at)
{
	if (at % BYTES)
		abort();
	memcpy(&word, (const void *)at, BYTES);
}

template <int HINT, int BYTES> inline void store(const Word<BYTES> &word, u64 at)
{
	if (at % BYTES)
		abort();
	memcpy((void *)at, &word, BYTES);
}

inline void __syncwarp(void)
{
}

u64 met(u64 value, u32 lane);

inline u32 handed(u32 value, u32 lane)
{
	return (u32)met(value, lane);
}

inline u64 handed(u64 value, u32 lane)
{
	return met(value, lane);
}

/* Runs @kernel, which takes @arguments, on every thread of a launch, warp after warp. */
void run_kernel(void (*kernel)(const void *), const void *arguments, u32 groups, u32 threads);

#endif
