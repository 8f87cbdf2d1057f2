// SPDX-License-Identifier: GPL-2.0
/*
 * copy_stream.c - reading write-combined device memory
 *
 * An ordinary load from such memory goes to the device alone and waits for it. Streaming
 * loads fetch a whole line at a time. They need vector registers, which the kernel lends
 * with preemption off: so little at a time.
 */
#include <linux/io.h>

#include "channel_kernel.h"

#ifdef CONFIG_X86
#include <asm/cpufeature.h>
#include <asm/fpu/api.h>

#define LINE_BYTES	64U
#define SECTION_BYTES	4096U	/* some microseconds, even from a slow device */

/* @source: at a multiple of 16. @length: a multiple of LINE_BYTES. */
static void stream_lines(void *target, const void __iomem *source, size_t length)
{
	const char *from = (const char __force *)source;
	char *to = target;

	for (; length != 0; length -= LINE_BYTES) {
		asm volatile("movntdqa   (%0), %%xmm0\n\t"
			     "movntdqa 16(%0), %%xmm1\n\t"
			     "movntdqa 32(%0), %%xmm2\n\t"
			     "movntdqa 48(%0), %%xmm3\n\t"
			     "movdqu %%xmm0,   (%1)\n\t"
			     "movdqu %%xmm1, 16(%1)\n\t"
			     "movdqu %%xmm2, 32(%1)\n\t"
			     "movdqu %%xmm3, 48(%1)"
			     : : "r" (from), "r" (to) : "memory");
		from += LINE_BYTES;
		to += LINE_BYTES;
	}
}

/* Context: process context, may be preempted between sections. */
void dmp_copy_stream(void *target, const void __iomem *source, size_t length)
{
	size_t head = -(unsigned long)source % LINE_BYTES;

	if (!static_cpu_has(X86_FEATURE_XMM4_1) || length < head + LINE_BYTES) {
		memcpy_fromio(target, source, length);
		return;
	}
	memcpy_fromio(target, source, head);
	target += head;
	source += head;
	length -= head;
	/* Loads of this kind are weakly ordered: none may come before what allowed us to read. */
	mb();
	while (length >= LINE_BYTES) {
		size_t part = min_t(size_t, length, SECTION_BYTES) / LINE_BYTES * LINE_BYTES;

		kernel_fpu_begin();
		stream_lines(target, source, part);
		kernel_fpu_end();
		target += part;
		source += part;
		length -= part;
	}
	memcpy_fromio(target, source, length);
}
#else
void dmp_copy_stream(void *target, const void __iomem *source, size_t length)
{
	memcpy_fromio(target, source, length);
}
#endif
