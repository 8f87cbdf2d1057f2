// SPDX-License-Identifier: MIT
/*
 * The same copies by the bulk copy unit of sm_90 and later: one thread a group issues, and
 * no register holds a byte.
 *
 * A group is one warp and a ring of SLOTS pieces of 4 KiB in shared memory. Half of the ring
 * is being filled while the other half is being emptied: piece k + HALF may be loaded when
 * the store of piece k - HALF, its predecessor in the slot, has read its bytes. Every lane
 * holds the descriptor of one piece of this batch of 32 and one of the next.
 *
 * Shared memory of a launch: the ring, then 8 bytes a slot for the gates.
 *
 * Bounds (kept by _launch.py): as in copy.cu, and every address, stride and length is a
 * multiple of 16.
 */
#if __CUDA_ARCH__ >= 900

enum { PIECE = 4096 };

template <int SLOTS, bool LIST> __device__ __forceinline__ void copy_pieces(const Copy &copy)
{
	enum { HALF = SLOTS / 2 };
	const void *sources = (const void *)copy.sources;
	const void *destinations = (const void *)copy.destinations;
	const u32 lane = threadIdx.x, group = blockIdx.x, groups = gridDim.x;
	const u32 pieces = copy.rows * copy.count;
	const u32 mine = group < pieces ? (pieces - group + groups - 1) / groups : 0;
	const u32 room = shared_room(), gate = room + SLOTS * PIECE;
	Span now = locate<LIST, PIECE>(copy, sources, destinations, group + lane * groups);
	Span next = locate<LIST, PIECE>(copy, sources, destinations,
					group + (LANES + lane) * groups);
	u32 k, j;

	if (!lane) {
		for (k = 0; k < SLOTS; k++)
			gate_make(gate + k * 8);
		gates_made();
	}
	__syncwarp();
	for (j = 0; j < HALF && j < mine; j++) {
		const u64 from = handed(now.source, j);
		const u32 bytes = handed(now.bytes, j);

		if (!lane)
			bulk_load(room + j * PIECE, from, bytes, gate + j * 8);
	}
	for (k = 0; k < mine; k++) {
		const u64 to = handed(now.destination, k % LANES);
		const u32 bytes = handed(now.bytes, k % LANES), slot = k % SLOTS;

		if (!lane) {
			gate_wait(gate + slot * 8, k / SLOTS % 2);
			bulk_store(to, room + slot * PIECE, bytes);
		}
		j = k + HALF;
		if (j < mine) {
			const Span &of = j / LANES == k / LANES ? now : next;
			const u64 from = handed(of.source, j % LANES);
			const u32 more = handed(of.bytes, j % LANES);

			if (!lane) {
				stores_have_read<HALF>();
				bulk_load(room + j % SLOTS * PIECE, from, more,
					  gate + j % SLOTS * 8);
			}
		}
		if (k % LANES == LANES - 1) {
			now = next;
			next = locate<LIST, PIECE>(copy, sources, destinations,
						   group + (k + 1 + LANES + lane) * groups);
		}
	}
	stores_done(); /* before the kernel ends */
}

#define BULK_KERNELS(SLOTS)                                                                    \
	extern "C" __global__ void __launch_bounds__(32)                                       \
		bulk_grid_##SLOTS(const __grid_constant__ Copy copy)                           \
	{                                                                                      \
		copy_pieces<SLOTS, false>(copy);                                               \
	}                                                                                      \
	extern "C" __global__ void __launch_bounds__(32)                                       \
		bulk_list_##SLOTS(const __grid_constant__ Copy copy)                           \
	{                                                                                      \
		copy_pieces<SLOTS, true>(copy);                                                \
	}

BULK_KERNELS(4)
BULK_KERNELS(8)
BULK_KERNELS(16)
BULK_KERNELS(32)

#endif
