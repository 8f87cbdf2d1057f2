// SPDX-License-Identifier: MIT
/* copy.cu, once a width of word, bulk.cu and ceiling.cu: as they are, by the names a device has them by. */
#include "bulk_words.h"
#include "lanes.h"

#include "kernels.h"

#define HOST_HINT STREAMING

namespace wide16 {
#define WORD_BYTES 16
#include "copy.cu"
#define __CUDA_ARCH__ 900
#include "bulk.cu"
#undef WORD_BYTES
#undef COPY_KERNEL
#undef INLINE_KERNEL
#undef KERNELS_OF_WORD
}

namespace wide8 {
#define WORD_BYTES 8
#include "copy.cu"
#undef WORD_BYTES
#undef COPY_KERNEL
#undef INLINE_KERNEL
#undef KERNELS_OF_WORD
}

namespace wide4 {
#define WORD_BYTES 4
#include "copy.cu"
#undef WORD_BYTES
#undef COPY_KERNEL
#undef INLINE_KERNEL
#undef KERNELS_OF_WORD
}

namespace wide1 {
#define WORD_BYTES 1
#include "copy.cu"
#undef WORD_BYTES
}

#include "ceiling.cu"

#define SWEEP_ROW(NAME)                                                                        \
	{ #NAME, [](const void *a) { NAME(*(const Sweep *)a); }, sizeof(Sweep) },

#define SWEEP_ROWS(HINT)                                                                       \
	SWEEP_ROW(read_2_##HINT)                                                               \
	SWEEP_ROW(read_4_##HINT)                                                               \
	SWEEP_ROW(read_8_##HINT)                                                               \
	SWEEP_ROW(write_2_##HINT)                                                              \
	SWEEP_ROW(write_4_##HINT)                                                              \
	SWEEP_ROW(write_8_##HINT)

#define ROW(SPACE, NAME, WIDTH)                                                                \
	{ #NAME "_" #WIDTH,                                                                    \
	  [](const void *a) { SPACE::NAME##_##WIDTH(*(const SPACE::Copy *)a); },               \
	  sizeof(SPACE::Copy) },                                                               \
	{ #NAME "_inline_" #WIDTH,                                                             \
	  [](const void *a) { SPACE::NAME##_inline_##WIDTH(*(const SPACE::InlineCopy *)a); },  \
	  sizeof(SPACE::InlineCopy) },

#define ROWS(SPACE, WIDTH)                                                                     \
	ROW(SPACE, grid_h2d, WIDTH)                                                            \
	ROW(SPACE, grid_d2h, WIDTH)                                                            \
	ROW(SPACE, grid_d2d, WIDTH)                                                            \
	ROW(SPACE, list_h2d, WIDTH)                                                            \
	ROW(SPACE, list_d2h, WIDTH)                                                            \
	ROW(SPACE, list_d2d, WIDTH)

#define BULK_ROW(NAME)                                                                         \
	{ #NAME, [](const void *a) { wide16::NAME(*(const wide16::Copy *)a); },                \
	  sizeof(wide16::Copy) },

#define BULK_ROWS(SLOTS)                                                                       \
	BULK_ROW(bulk_grid_##SLOTS)                                                            \
	BULK_ROW(bulk_list_##SLOTS)

static const Kernel kernels[] = {
	ROWS(wide16, 16)
	ROWS(wide8, 8)
	ROWS(wide4, 4)
	ROWS(wide1, 1)
	BULK_ROWS(4)
	BULK_ROWS(8)
	BULK_ROWS(16)
	BULK_ROWS(32)
	SWEEP_ROWS(plain)
	SWEEP_ROWS(streaming)
	SWEEP_ROWS(uncached)
	SWEEP_ROW(burn)
};

const Kernel *find_kernel(const char *name)
{
	for (const Kernel &kernel : kernels)
		if (!strcmp(kernel.name, name))
			return &kernel;
	return 0;
}
