// SPDX-License-Identifier: MIT
/*
 * Copies many blocks by the processors of the device; one side may be mapped host memory.
 *
 * A block is cut into rows of one word a lane (512 bytes at 16 byte words). A warp takes
 * SLOTS rows at a time: all loads first, then all stores, so that SLOTS words a lane, 4 KiB
 * a warp, are in flight whatever the size of a block is. While they are, the lanes
 * already read the descriptors of the rows that come next.
 *
 * Bounds (kept by _launch.py): rows * count < 2^31, a block is at most 2^30 bytes, and every
 * address and stride is a multiple of WORD. A length need not be one: what is left of
 * a row is copied byte by byte, one a lane.
 */
struct Copy {
	u64 source;             /* of block 0, where `sources` is 0 or has numbers */
	u64 destination;
	u64 source_stride;      /* from block to block, or from number to number */
	u64 destination_stride;
	u64 sources;            /* u32 numbers (grid), u64 addresses (list), 0: by the stride */
	u64 destinations;
	u64 lengths;            /* list: u32, each at most `length`; 0: all have `length` */
	u32 length;
	u32 rows;               /* a block */
	u32 count;              /* of blocks */
	u32 ragged;             /* some length is not a multiple of WORD */
};

enum { INLINE_BYTES = 3840 };

/* A short call carries its descriptors itself: nothing has to be fetched over the link. */
struct InlineCopy {
	Copy copy;
	u64 inlined[INLINE_BYTES / 8];
};

struct Span {
	u64 source;
	u64 destination;
	u32 bytes;
};

/* Where the block of a number or of a list is. */
template <bool LIST>
__device__ __forceinline__ u64 place(u64 base, u64 stride, const void *array, u32 block)
{
	if (LIST && array)
		return ((const u64 *)array)[block];
	return base + stride * (array ? ((const u32 *)array)[block] : block);
}

/* Row @row of ROW bytes; empty past the end. */
template <bool LIST, u32 ROW>
__device__ __forceinline__ Span locate(const Copy &copy, const void *sources,
				       const void *destinations, u32 row)
{
	Span span = { 0, 0, 0 };
	u32 block, offset, length;

	if (row >= copy.rows * copy.count)
		return span;
	block = row / copy.rows;
	offset = (row - block * copy.rows) * ROW;
	length = LIST && copy.lengths ? ((const u32 *)copy.lengths)[block] : copy.length;
	if (offset >= length)
		return span;
	span.bytes = length - offset < ROW ? length - offset : ROW;
	span.source = offset + place<LIST>(copy.source, copy.source_stride, sources, block);
	span.destination =
		offset + place<LIST>(copy.destination, copy.destination_stride, destinations, block);
	return span;
}

template <int WORD, bool LIST, int LOAD, int STORE>
__device__ __forceinline__ void copy_rows(const Copy &copy, const void *sources,
					  const void *destinations)
{
	enum { SLOTS = WORD == 16 ? 8 : 16, ROW = LANES * WORD };
	const u32 lane = threadIdx.x % LANES, warps = blockDim.x / LANES;
	const u32 warp = blockIdx.x * warps + threadIdx.x / LANES;
	const u32 rows = copy.rows * copy.count, step = gridDim.x * warps * SLOTS;
	const bool asks = lane < SLOTS; /* the others ask for a row past the end */
	u32 first = warp * SLOTS;
	Span next = locate<LIST, ROW>(copy, sources, destinations, asks ? first + lane : rows);

	for (; first < rows; first += step) {
		const Span now = next;
		Word<WORD> words[SLOTS];
		u64 from, to;
		u32 bytes, slot;

		next = locate<LIST, ROW>(copy, sources, destinations,
					 asks ? first + step + lane : rows);
#pragma unroll
		for (slot = 0; slot < SLOTS; slot++) {
			from = handed(now.source, slot);
			bytes = handed(now.bytes, slot);
			if ((lane + 1) * WORD <= bytes)
				load<LOAD>(words[slot], from + lane * WORD);
		}
#pragma unroll
		for (slot = 0; slot < SLOTS; slot++) {
			to = handed(now.destination, slot);
			bytes = handed(now.bytes, slot);
			if ((lane + 1) * WORD <= bytes)
				store<STORE>(words[slot], to + lane * WORD);
		}
		if (!copy.ragged)
			continue;
#pragma unroll 1
		for (slot = 0; slot < SLOTS; slot++) {
			from = handed(now.source, slot);
			to = handed(now.destination, slot);
			bytes = handed(now.bytes, slot);
			if (lane < bytes % WORD) {
				const u32 at = bytes - bytes % WORD + lane;
				Word<1> rest;

				load<LOAD>(rest, from + at);
				store<STORE>(rest, to + at);
			}
		}
	}
}

#ifndef HOST_HINT
#define HOST_HINT STREAMING
#endif

/* One program a width of word: the compiler is given WORD_BYTES. */
#define COPY_KERNEL(NAME, WIDTH, LIST, LOAD, STORE)                                            \
	extern "C" __global__ void __launch_bounds__(512)                                      \
		NAME##_##WIDTH(const __grid_constant__ Copy copy)                              \
	{                                                                                      \
		copy_rows<WIDTH, LIST, LOAD, STORE>(copy, (const void *)copy.sources,          \
						   (const void *)copy.destinations);           \
	}

/* The inlined descriptors: `sources` and `destinations` are then 0, or 1 + where they begin. */
#define INLINE_KERNEL(NAME, WIDTH, LIST, LOAD, STORE)                                          \
	extern "C" __global__ void __launch_bounds__(512)                                      \
		NAME##_inline_##WIDTH(const __grid_constant__ InlineCopy call)                 \
	{                                                                                      \
		const u8 *room = (const u8 *)call.inlined - 1;                                 \
		const Copy &copy = call.copy;                                                  \
		copy_rows<WIDTH, LIST, LOAD, STORE>(                                           \
			copy, copy.sources ? room + copy.sources : (const u8 *)0,              \
			copy.destinations ? room + copy.destinations : (const u8 *)0);         \
	}

#define KERNELS_OF_WORD(WIDTH)                                                                 \
	COPY_KERNEL(grid_h2d, WIDTH, false, HOST_HINT, PLAIN)                                  \
	COPY_KERNEL(grid_d2h, WIDTH, false, PLAIN, HOST_HINT)                                  \
	COPY_KERNEL(grid_d2d, WIDTH, false, PLAIN, PLAIN)                                      \
	COPY_KERNEL(list_h2d, WIDTH, true, HOST_HINT, PLAIN)                                   \
	COPY_KERNEL(list_d2h, WIDTH, true, PLAIN, HOST_HINT)                                   \
	COPY_KERNEL(list_d2d, WIDTH, true, PLAIN, PLAIN)                                       \
	INLINE_KERNEL(grid_h2d, WIDTH, false, HOST_HINT, PLAIN)                                \
	INLINE_KERNEL(grid_d2h, WIDTH, false, PLAIN, HOST_HINT)                                \
	INLINE_KERNEL(grid_d2d, WIDTH, false, PLAIN, PLAIN)                                    \
	INLINE_KERNEL(list_h2d, WIDTH, true, HOST_HINT, PLAIN)                                 \
	INLINE_KERNEL(list_d2h, WIDTH, true, PLAIN, HOST_HINT)                                 \
	INLINE_KERNEL(list_d2d, WIDTH, true, PLAIN, PLAIN)

#ifdef WORD_BYTES
KERNELS_OF_WORD(WORD_BYTES)
#endif
