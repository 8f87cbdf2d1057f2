// SPDX-License-Identifier: MIT
/*
 * What the processors of the device reach at most over the link: contiguous reads that go
 * nowhere, contiguous writes that come from nowhere; and work that keeps them busy, to see
 * what a copy beside it costs.
 *
 * A warp takes WORDS * 512 bytes at a time: the number of words a lane has in flight.
 */
struct Sweep {
	u64 base;  /* a multiple of 16 */
	u64 bytes; /* a multiple of WORDS * 512 */
	u64 sink;  /* 16 bytes of device memory */
	u64 turns; /* of `burn` */
};

template <int WORDS, int HINT, bool READS> __device__ __forceinline__ void sweep(const Sweep &call)
{
	const u32 lane = threadIdx.x % LANES, warps = blockDim.x / LANES;
	const u64 warp = blockIdx.x * warps + threadIdx.x / LANES;
	const u64 unit = WORDS * LANES * 16, step = gridDim.x * warps * unit;
	u32 seen = 0;
	u64 at;

	for (at = warp * unit; at < call.bytes; at += step) {
		Word<16> words[WORDS];
		u32 k;

#pragma unroll
		for (k = 0; k < WORDS; k++) {
			const u64 where = call.base + at + (k * LANES + lane) * 16;

			if (READS) {
				load<HINT>(words[k], where);
			} else {
				words[k].a = words[k].b = words[k].c = words[k].d = lane + k;
				store<HINT>(words[k], where);
			}
		}
		if (READS) {
#pragma unroll
			for (k = 0; k < WORDS; k++)
				seen ^= words[k].a ^ words[k].b ^ words[k].c ^ words[k].d;
		}
	}
	/* Loads are volatile and stay; this only keeps what was seen from being unused. */
	if (READS && seen == 0x9e3779b9u && !call.bytes)
		*(u32 *)call.sink = seen;
}

#define SWEEPS(WORDS, HINT, NAME)                                                              \
	extern "C" __global__ void __launch_bounds__(512)                                      \
		read_##WORDS##_##NAME(const __grid_constant__ Sweep call)                      \
	{                                                                                      \
		sweep<WORDS, HINT, true>(call);                                                \
	}                                                                                      \
	extern "C" __global__ void __launch_bounds__(512)                                      \
		write_##WORDS##_##NAME(const __grid_constant__ Sweep call)                     \
	{                                                                                      \
		sweep<WORDS, HINT, false>(call);                                               \
	}

#define SWEEPS_OF_HINT(HINT, NAME)                                                             \
	SWEEPS(2, HINT, NAME)                                                                  \
	SWEEPS(4, HINT, NAME)                                                                  \
	SWEEPS(8, HINT, NAME)

SWEEPS_OF_HINT(PLAIN, plain)
SWEEPS_OF_HINT(STREAMING, streaming)
SWEEPS_OF_HINT(UNCACHED, uncached)

/* Multiplies and adds, 4 chains a lane, `turns` times 64; touches no memory. */
extern "C" __global__ void __launch_bounds__(512) burn(const __grid_constant__ Sweep call)
{
	float a = threadIdx.x, b = a + 1, c = a + 2, d = a + 3;
	u64 turn;

	for (turn = 0; turn < call.turns; turn++) {
#pragma unroll
		for (u32 k = 0; k < 64; k++) {
			a = a * 0.999f + 0.5f;
			b = b * 0.999f + 0.5f;
			c = c * 0.999f + 0.5f;
			d = d * 0.999f + 0.5f;
		}
	}
	if (a + b + c + d == -1.0f)
		*(float *)call.sink = a;
}
