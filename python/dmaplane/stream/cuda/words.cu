// SPDX-License-Identifier: MIT
/*
 * What a lane of a warp can do: load and store one word, hand a value to the others.
 *
 * The only file of the kernels that names machine instructions; copy.cu is plain C++ above
 * it, so that a test can run copy.cu on a processor with other words below it.
 *
 * Loads and stores are asm volatile: they stay in the order they are written in, which is
 * what keeps all loads of a unit in flight before its first store.
 */
typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

enum { LANES = 32 };

/* How a load or store treats caches. */
enum { PLAIN = 0, STREAMING = 1, UNCACHED = 2 };

template <int BYTES> struct Word;
template <> struct Word<16> { u32 a, b, c, d; };
template <> struct Word<8> { u64 a; };
template <> struct Word<4> { u32 a; };
template <> struct Word<1> { u32 a; };

#define DEFINE_WORD_16(HINT, LOAD_HOW, STORE_HOW)                                              \
	template <> __device__ __forceinline__ void load<HINT>(Word<16> &w, u64 at)            \
	{                                                                                      \
		asm volatile("ld.global" LOAD_HOW ".v4.u32 {%0, %1, %2, %3}, [%4];"            \
			     : "=r"(w.a), "=r"(w.b), "=r"(w.c), "=r"(w.d)                      \
			     : "l"(at));                                                       \
	}                                                                                      \
	template <> __device__ __forceinline__ void store<HINT>(const Word<16> &w, u64 at)     \
	{                                                                                      \
		asm volatile("st.global" STORE_HOW ".v4.u32 [%0], {%1, %2, %3, %4};"           \
			     :                                                                 \
			     : "l"(at), "r"(w.a), "r"(w.b), "r"(w.c), "r"(w.d)                 \
			     : "memory");                                                      \
	}

#define DEFINE_WORD(HINT, BYTES, TYPE, LETTER, LOAD_HOW, STORE_HOW)                            \
	template <> __device__ __forceinline__ void load<HINT>(Word<BYTES> &w, u64 at)         \
	{                                                                                      \
		asm volatile("ld.global" LOAD_HOW "." TYPE " %0, [%1];"                        \
			     : "=" LETTER(w.a)                                                 \
			     : "l"(at));                                                       \
	}                                                                                      \
	template <> __device__ __forceinline__ void store<HINT>(const Word<BYTES> &w, u64 at)  \
	{                                                                                      \
		asm volatile("st.global" STORE_HOW "." TYPE " [%0], %1;"                       \
			     :                                                                 \
			     : "l"(at), LETTER(w.a)                                            \
			     : "memory");                                                      \
	}

template <int HINT, int BYTES> __device__ __forceinline__ void load(Word<BYTES> &w, u64 at);
template <int HINT, int BYTES> __device__ __forceinline__ void store(const Word<BYTES> &w, u64 at);

#define DEFINE_HINT(HINT, LOAD_HOW, STORE_HOW)                                                 \
	DEFINE_WORD_16(HINT, LOAD_HOW, STORE_HOW)                                              \
	DEFINE_WORD(HINT, 8, "u64", "l", LOAD_HOW, STORE_HOW)                                  \
	DEFINE_WORD(HINT, 4, "u32", "r", LOAD_HOW, STORE_HOW)                                  \
	DEFINE_WORD(HINT, 1, "u8", "r", LOAD_HOW, STORE_HOW)

DEFINE_HINT(PLAIN, "", "")
DEFINE_HINT(STREAMING, ".cs", ".cs")
DEFINE_HINT(UNCACHED, ".L1::no_allocate", ".L1::no_allocate")

__device__ __forceinline__ u32 handed(u32 value, u32 lane)
{
	return __shfl_sync(0xffffffffu, value, lane);
}

__device__ __forceinline__ u64 handed(u64 value, u32 lane)
{
	return __shfl_sync(0xffffffffu, value, lane);
}
