// SPDX-License-Identifier: MIT
/*
 * Coroutines as lanes of a warp. One thread at a time runs a kernel: the driver's lock is held.
 *
 * A lane's stack is made by makecontext(). From then on it is left and entered by jumps, which
 * ask the kernel for nothing: there are dozens of turns for every 4 KiB.
 */
#include <setjmp.h>

#include "lanes.h"

enum { STACK = 64 << 10 };

Index threadIdx, blockIdx, blockDim, gridDim;

static ucontext_t begun, lanes[LANES];
static jmp_buf back, inside[LANES];
static u8 stacks[LANES][STACK];
static u64 board[2][LANES];
static u32 met_times[LANES];
static bool ended[LANES];
static u32 now;
static void (*running)(const void *);
static const void *given;

u64 met(u64 value, u32 lane)
{
	const u32 mine = now, turn = met_times[mine]++ % 2;

	board[turn][mine] = value;
	if (!_setjmp(inside[mine]))
		_longjmp(back, 1);
	return board[turn][lane % LANES];
}

static void lane_begin(void)
{
	running(given);
	ended[now] = true;
	_longjmp(back, 1);
}

static void enter(u32 lane)
{
	if (_setjmp(back))
		return;
	if (met_times[lane])
		_longjmp(inside[lane], 1);
	swapcontext(&begun, &lanes[lane]);
}

static void run_warp(u32 first)
{
	u32 lane, over;

	for (lane = 0; lane < LANES; lane++) {
		getcontext(&lanes[lane]);
		lanes[lane].uc_stack.ss_sp = stacks[lane];
		lanes[lane].uc_stack.ss_size = STACK;
		makecontext(&lanes[lane], lane_begin, 0);
		met_times[lane] = 0;
		ended[lane] = false;
	}
	do {
		over = 0;
		for (lane = 0; lane < LANES; lane++) {
			now = lane;
			threadIdx.x = first + lane;
			enter(lane);
			over += ended[lane];
			if (met_times[lane] != met_times[0]) {
				fprintf(stderr, "lane %u went another way\n", lane);
				abort();
			}
		}
	} while (!over);
	if (over != LANES)
		abort();
}

void run_kernel(void (*kernel)(const void *), const void *arguments, u32 groups, u32 threads)
{
	running = kernel;
	given = arguments;
	gridDim.x = groups;
	blockDim.x = threads;
	for (blockIdx.x = 0; blockIdx.x < groups; blockIdx.x++)
		for (u32 first = 0; first < threads; first += LANES)
			run_warp(first);
}
