// SPDX-License-Identifier: MIT
/*
 * copy_x86.c - the loops of x86-64
 *
 * CRC inside a copy: the bytes are loaded once into registers, stored from there, and
 * folded there. A fold multiplies an accumulator without carries by x to the power
 * of the distance (in bits) between it and the next block, modulo the polynomial;
 * what remains at the end is 16 bytes that have the same CRC as everything before,
 * and the crc32 instruction finishes those. Constants: fold by D bits has
 * x^(D+32) mod P for the low half and x^(D-32) mod P for the high one, reflected and
 * shifted left by one (V. Gopal et al., Fast CRC Computation Using PCLMULQDQ, 2009).
 */
#include "copy_loops.h"

#ifdef __x86_64__

#include <immintrin.h>
#include <stdbool.h>
#include <string.h>

#define TARGET_AVX2	__attribute__((target("avx2")))
#define TARGET_CRC	__attribute__((target("sse4.2")))
#define TARGET_NARROW	__attribute__((target("sse4.2,pclmul")))
#define TARGET_WIDE	__attribute__((target("sse4.2,pclmul,avx2,vpclmulqdq")))

#define FOLD_128	0xf20c0dfeULL, 0x14cd00bd6ULL
#define FOLD_256	0x1384aa63aULL, 0xba4fc28eULL
#define FOLD_512	0x740eef02ULL, 0x9e4addf8ULL
#define FOLD_1024	0x6992cea2ULL, 0xd3b6092ULL
#define FOLD_PAGE	0xc2a5b65eULL, 0x18714ea86ULL

/*
 * How far ahead of the loads lines are fetched; beyond the end nothing is. In short
 * copies the processor's own guess is better (4 KiB: 13.7 GB/s without, 11.5 with).
 */
#define AHEAD_BYTES		2048
#define AHEAD_LENGTH_MIN	8192

/*
 * A line of each of four pages in turns: the processor follows every page by itself, so
 * it has four times as many lines on their way.
 */
#define PAGE_BYTES		4096
#define PAGES			4
#define PAGES_BYTES		((size_t)PAGES * PAGE_BYTES)

unsigned int dmp_loop_features(void)
{
	unsigned int features = DMP_LOOP_STREAM;

	__builtin_cpu_init();
	if (__builtin_cpu_supports("avx2"))
		features |= DMP_LOOP_STREAM_WIDE;
	if (__builtin_cpu_supports("sse4.2"))
		features |= DMP_LOOP_CRC;
	if ((features & DMP_LOOP_CRC) && __builtin_cpu_supports("pclmul"))
		features |= DMP_LOOP_COPY_CRC;
	if ((features & DMP_LOOP_COPY_CRC) && (features & DMP_LOOP_STREAM_WIDE) &&
	    __builtin_cpu_supports("vpclmulqdq"))
		features |= DMP_LOOP_COPY_CRC_WIDE;
	if (features & DMP_LOOP_STREAM_WIDE)
		features |= DMP_LOOP_PAGES;
	/* What each gains and loses by it: copy.c. */
	if (!__builtin_cpu_is("intel"))
		features |= DMP_LOOP_AHEAD;
	return features;
}

static bool takes_pages(unsigned int features, unsigned int wide)
{
	return (features & wide) && (features & DMP_LOOP_PAGES) && !(features & DMP_LOOP_AHEAD);
}

const char *dmp_loop_describe(unsigned int features)
{
	if (takes_pages(features, DMP_LOOP_COPY_CRC_WIDE))
		return "streaming stores, vpclmulqdq, four pages in turns";
	if (features & DMP_LOOP_COPY_CRC_WIDE)
		return "streaming stores, vpclmulqdq";
	if (features & DMP_LOOP_COPY_CRC)
		return "streaming stores, pclmulqdq";
	if (features & DMP_LOOP_CRC)
		return "streaming stores, crc32";
	return features & DMP_LOOP_STREAM ? "streaming stores" : "portable";
}

/* ---- copy around the caches */

static inline void stream_line(char *target, const char *source)
{
	__m128i a = _mm_loadu_si128((const __m128i *)source);
	__m128i b = _mm_loadu_si128((const __m128i *)(source + 16));
	__m128i c = _mm_loadu_si128((const __m128i *)(source + 32));
	__m128i d = _mm_loadu_si128((const __m128i *)(source + 48));

	_mm_stream_si128((__m128i *)target, a);
	_mm_stream_si128((__m128i *)(target + 16), b);
	_mm_stream_si128((__m128i *)(target + 32), c);
	_mm_stream_si128((__m128i *)(target + 48), d);
}

TARGET_AVX2 static inline void stream_line_wide(char *target, const char *source)
{
	__m256i a = _mm256_loadu_si256((const __m256i *)source);
	__m256i b = _mm256_loadu_si256((const __m256i *)(source + 32));

	_mm256_stream_si256((__m256i *)target, a);
	_mm256_stream_si256((__m256i *)(target + 32), b);
}

static inline size_t ahead_of(unsigned int features, size_t length)
{
	return (features & DMP_LOOP_AHEAD) && length >= AHEAD_LENGTH_MIN ? length - AHEAD_BYTES : 0;
}

/* Whole lines to an aligned target; returns how many bytes that was. */
#define STREAM_LINES(line)							\
	size_t end = length & ~(size_t)63;					\
	size_t at = 0;								\
										\
	for (; at + 256 <= ahead; at += 256) {					\
		const char *next = source + at + AHEAD_BYTES;			\
										\
		_mm_prefetch(next, _MM_HINT_NTA);				\
		_mm_prefetch(next + 64, _MM_HINT_NTA);				\
		_mm_prefetch(next + 128, _MM_HINT_NTA);				\
		_mm_prefetch(next + 192, _MM_HINT_NTA);				\
		line(target + at, source + at);					\
		line(target + at + 64, source + at + 64);			\
		line(target + at + 128, source + at + 128);			\
		line(target + at + 192, source + at + 192);			\
	}									\
	for (; at + 256 <= end; at += 256) {					\
		line(target + at, source + at);					\
		line(target + at + 64, source + at + 64);			\
		line(target + at + 128, source + at + 128);			\
		line(target + at + 192, source + at + 192);			\
	}									\
	for (; at < end; at += 64)						\
		line(target + at, source + at);					\
	return end

static size_t stream_lines(char *target, const char *source, size_t length, size_t ahead)
{
	STREAM_LINES(stream_line);
}

TARGET_AVX2 static size_t stream_lines_wide(char *target, const char *source, size_t length,
					    size_t ahead)
{
	STREAM_LINES(stream_line_wide);
}

/* As many pages as make whole turns to an aligned target; returns how many bytes that was. */
TARGET_AVX2 static size_t stream_pages(char *target, const char *source, size_t length)
{
	size_t end = length - length % PAGES_BYTES;
	size_t first, at, page;

	for (first = 0; first < end; first += PAGES_BYTES)
		for (at = first; at < first + PAGE_BYTES; at += 64)
			for (page = 0; page < PAGES_BYTES; page += PAGE_BYTES)
				stream_line_wide(target + page + at, source + page + at);
	return end;
}

void dmp_loop_stream(unsigned int features, void *target, const void *source, size_t length)
{
	const char *from = source;
	char *to = target;
	size_t head = -(uintptr_t)to & 63;
	size_t body;

	if (head > length)
		head = length;
	memcpy(to, from, head);
	to += head, from += head, length -= head;
	if (takes_pages(features, DMP_LOOP_STREAM_WIDE)) {
		body = stream_pages(to, from, length);
		to += body, from += body, length -= body;
	}
	if (features & DMP_LOOP_STREAM_WIDE)
		body = stream_lines_wide(to, from, length, ahead_of(features, length));
	else
		body = stream_lines(to, from, length, ahead_of(features, length));
	memcpy(to + body, from + body, length - body);
	/* Orders the streaming stores before the release that publishes them. */
	_mm_sfence();
}

/* ---- CRC32C. "crc" below is the bare register, not inverted. */

/* Up to the end, 8 bytes and then 1 at a time; copies if there is a target. */
TARGET_CRC static uint32_t crc_words(uint32_t crc, char *target, const char *source,
				     size_t length)
{
	uint64_t wide = crc;

	for (; length >= 8; length -= 8, source += 8) {
		uint64_t word;

		memcpy(&word, source, 8);
		__asm__ volatile("" : "+r"(word));	/* one load: summed is stored */
		wide = _mm_crc32_u64(wide, word);
		if (target) {
			memcpy(target, &word, 8);
			target += 8;
		}
	}
	crc = (uint32_t)wide;
	for (; length > 0; length--, source++) {
		unsigned char byte = (unsigned char)*source;

		__asm__ volatile("" : "+r"(byte));
		crc = _mm_crc32_u8(crc, byte);
		if (target)
			*target++ = (char)byte;
	}
	return crc;
}

TARGET_NARROW static inline __m128i fold(__m128i sum, uint64_t low, uint64_t high)
{
	__m128i by = _mm_set_epi64x((long long)high, (long long)low);

	return _mm_xor_si128(_mm_clmulepi64_si128(sum, by, 0x00),
			     _mm_clmulepi64_si128(sum, by, 0x11));
}

TARGET_NARROW static inline uint32_t finish(__m128i sum)
{
	uint64_t crc = _mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(sum));

	return (uint32_t)_mm_crc32_u64(crc, (uint64_t)_mm_extract_epi64(sum, 1));
}

TARGET_NARROW static inline __m128i take(char *target, const char *source, int stream)
{
	__m128i bytes = _mm_loadu_si128((const __m128i *)source);

	/* One load only: what is stored is what is folded. */
	__asm__ volatile("" : "+x"(bytes));
	if (target && stream)
		_mm_stream_si128((__m128i *)target, bytes);
	else if (target)
		_mm_storeu_si128((__m128i *)target, bytes);
	return bytes;
}

/* @length is a multiple of 64 and not 0; @target is aligned to 16 if streaming. */
TARGET_NARROW static inline __attribute__((always_inline)) uint32_t
narrow_loop(uint32_t crc, char *target, const char *source, size_t length, size_t ahead, int stream)
{
	__m128i sum[4];
	size_t at;
	int lane;

#define AT(offset) (target ? target + (offset) : NULL), source + (offset), stream
	for (lane = 0; lane < 4; lane++)
		sum[lane] = take(AT(16 * lane));
	sum[0] = _mm_xor_si128(sum[0], _mm_cvtsi32_si128((int)crc));
	for (at = 64; at < length; at += 64) {
		if (at < ahead)
			_mm_prefetch(source + at + AHEAD_BYTES, _MM_HINT_NTA);
		for (lane = 0; lane < 4; lane++)
			sum[lane] = _mm_xor_si128(fold(sum[lane], FOLD_512),
						  take(AT(at + 16 * lane)));
	}
	for (lane = 1; lane < 4; lane++)
		sum[lane] = _mm_xor_si128(sum[lane], fold(sum[lane - 1], FOLD_128));
	return finish(sum[3]);
}

TARGET_WIDE static inline __m256i fold_wide(__m256i sum, uint64_t low, uint64_t high)
{
	__m256i by = _mm256_set_epi64x((long long)high, (long long)low, (long long)high,
				       (long long)low);

	return _mm256_xor_si256(_mm256_clmulepi64_epi128(sum, by, 0x00),
				_mm256_clmulepi64_epi128(sum, by, 0x11));
}

TARGET_WIDE static inline __m128i halves(__m256i sum)
{
	return _mm_xor_si128(_mm256_extracti128_si256(sum, 1),
			     fold(_mm256_castsi256_si128(sum), FOLD_128));
}

TARGET_WIDE static inline __m256i take_wide(char *target, const char *source, int stream)
{
	__m256i bytes = _mm256_loadu_si256((const __m256i *)source);

	__asm__ volatile("" : "+x"(bytes));
	if (target && stream)
		_mm256_stream_si256((__m256i *)target, bytes);
	else if (target)
		_mm256_storeu_si256((__m256i *)target, bytes);
	return bytes;
}

/* @length is a multiple of 128 and not 0; @target is aligned to 32 if streaming. */
TARGET_WIDE static inline __attribute__((always_inline)) uint32_t
wide_loop(uint32_t crc, char *target, const char *source, size_t length, size_t ahead, int stream)
{
	__m256i sum[4];
	size_t at;
	int lane;

	for (lane = 0; lane < 4; lane++)
		sum[lane] = take_wide(AT(32 * lane));
	sum[0] = _mm256_xor_si256(sum[0], _mm256_zextsi128_si256(_mm_cvtsi32_si128((int)crc)));
	for (at = 128; at < length; at += 128) {
		if (at < ahead) {
			_mm_prefetch(source + at + AHEAD_BYTES, _MM_HINT_NTA);
			_mm_prefetch(source + at + AHEAD_BYTES + 64, _MM_HINT_NTA);
		}
		for (lane = 0; lane < 4; lane++)
			sum[lane] = _mm256_xor_si256(fold_wide(sum[lane], FOLD_1024),
						     take_wide(AT(at + 32 * lane)));
	}
	for (lane = 1; lane < 4; lane++)
		sum[lane] = _mm256_xor_si256(sum[lane], fold_wide(sum[lane - 1], FOLD_256));
	return finish(halves(sum[3]));
}

/*
 * @length is a multiple of PAGES_BYTES and not 0; @target is aligned to 32 if streaming.
 * Every page has a sum of its own in two lanes; what came before a page lies a page's
 * length before its end.
 */
TARGET_WIDE static inline __attribute__((always_inline)) uint32_t
pages_loop(uint32_t crc, char *target, const char *source, size_t length, int stream)
{
	__m128i before = _mm_setzero_si128();
	__m256i sum[2 * PAGES];
	size_t first, at;
	int page;

	for (first = 0; first < length; first += PAGES_BYTES) {
		for (page = 0; page < PAGES; page++) {
			at = first + (size_t)page * PAGE_BYTES;
			sum[2 * page] = take_wide(AT(at));
			sum[2 * page + 1] = take_wide(AT(at + 32));
		}
		if (first == 0)
			sum[0] = _mm256_xor_si256(sum[0],
						  _mm256_zextsi128_si256(_mm_cvtsi32_si128((int)crc)));
		for (at = first + 64; at < first + PAGE_BYTES; at += 64)
#pragma GCC unroll 4
			for (page = 0; page < PAGES; page++) {
				size_t line = at + (size_t)page * PAGE_BYTES;

				sum[2 * page] = _mm256_xor_si256(fold_wide(sum[2 * page], FOLD_512),
								 take_wide(AT(line)));
				sum[2 * page + 1] =
					_mm256_xor_si256(fold_wide(sum[2 * page + 1], FOLD_512),
							 take_wide(AT(line + 32)));
			}
		for (page = 0; page < PAGES; page++) {
			__m256i lanes = _mm256_xor_si256(sum[2 * page + 1],
							 fold_wide(sum[2 * page], FOLD_256));

			before = _mm_xor_si128(halves(lanes), fold(before, FOLD_PAGE));
		}
	}
#undef AT
	return finish(before);
}

/* The constants that steer each loop are known where it is called, so each is its own. */
#define EACH(loop, ...)							\
	(!target ? loop(crc, NULL, source, length, ##__VA_ARGS__, 0) :	\
	 stream ? loop(crc, target, source, length, ##__VA_ARGS__, 1) :	\
		  loop(crc, target, source, length, ##__VA_ARGS__, 0))

TARGET_NARROW static uint32_t narrow(uint32_t crc, char *target, const char *source,
				     size_t length, size_t ahead, int stream)
{
	return EACH(narrow_loop, ahead);
}

TARGET_WIDE static uint32_t wide(uint32_t crc, char *target, const char *source,
				 size_t length, size_t ahead, int stream)
{
	return EACH(wide_loop, ahead);
}

TARGET_WIDE static uint32_t pages(uint32_t crc, char *target, const char *source,
				  size_t length, int stream)
{
	return EACH(pages_loop);
}

/* Whole blocks of the loop that suits; returns how many bytes that was. */
static size_t crc_blocks(unsigned int features, uint32_t *crc, char *target, const char *source,
			 size_t length, int stream)
{
	size_t end;

	if (takes_pages(features, DMP_LOOP_COPY_CRC_WIDE) && length >= PAGES_BYTES) {
		end = length - length % PAGES_BYTES;
		*crc = pages(*crc, target, source, end, stream);
	} else if ((features & DMP_LOOP_COPY_CRC_WIDE) && length >= 128) {
		end = length & ~(size_t)127;
		*crc = wide(*crc, target, source, end, ahead_of(features, end), stream);
	} else if (length >= 64) {
		end = length & ~(size_t)63;
		*crc = narrow(*crc, target, source, end, ahead_of(features, end), stream);
	} else {
		end = 0;
	}
	return end;
}

static uint32_t crc_any(unsigned int features, uint32_t seed, char *target,
			const char *source, size_t length, int stream)
{
	size_t head = target ? -(uintptr_t)target & 63 : 0;
	uint32_t crc = ~seed;
	size_t done = head < length ? head : length;

	crc = crc_words(crc, target, source, done);
	do {
		source += done;
		target = target ? target + done : NULL;
		length -= done;
		done = crc_blocks(features, &crc, target, source, length, stream);
	} while (done);
	return ~crc_words(crc, target, source, length);
}

uint32_t dmp_loop_copy_crc32c(unsigned int features, uint32_t seed, void *target,
			      const void *source, size_t length, int stream)
{
	uint32_t crc = crc_any(features, seed, target, source, length, stream);

	if (stream)
		_mm_sfence();
	return crc;
}

uint32_t dmp_loop_crc32c(unsigned int features, uint32_t seed, const void *bytes, size_t length)
{
	if (features & DMP_LOOP_COPY_CRC)
		return crc_any(features, seed, NULL, bytes, length, 0);
	return ~crc_words(~seed, NULL, bytes, length);
}

#endif /* __x86_64__ */
