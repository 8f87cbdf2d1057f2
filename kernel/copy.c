// SPDX-License-Identifier: GPL-2.0
/*
 * copy.c - moving bytes with the CPU, between any two memories
 *
 * A memory is walked span by span inside one read section, so what is revoked meanwhile
 * stays there until we are out. A checksum covers the bytes as they were stored: they are
 * taken from the target while it is hot, or from a bounce of ours where the target is a
 * device's.
 */
#include <linux/crc32c.h>
#include <linux/io.h>
#include <linux/minmax.h>
#include <linux/sched.h>
#include <linux/string.h>

#include "channel_kernel.h"

#define BOUNCE_BYTES	512U
#define ROW_BYTES	256U

/* Where we are in one of the memories. */
struct walk {
	struct dmp_memory *memory;
	u64 offset;
	struct dmp_span span;	/* what is left of the one we are in; none at first */
};

/* Goes on to the next span when this one is used up. */
static int walk_on(struct walk *walk)
{
	if (walk->span.bytes != 0)
		return 0;
	return walk->memory->operations->span(walk->memory, walk->offset, &walk->span);
}

static void walk_past(struct walk *walk, u64 bytes)
{
	walk->offset += bytes;
	walk->span.address += bytes;
	walk->span.bytes -= bytes;
}

static void __iomem *io_address(const struct dmp_span *span)
{
	return (void __force __iomem *)span->address;
}

/* The contract's CRC32C is inverted at its end, the kernel's is not. */
static u32 checksum_on(u32 checksum, const void *bytes, size_t length)
{
	return ~crc32c(~checksum, bytes, length);
}

static void read_span(void *target, const struct dmp_span *source, size_t length)
{
	if (!source->io)
		memcpy(target, source->address, length);
	else if (source->write_combined)
		dmp_copy_stream(target, io_address(source), length);
	else
		memcpy_fromio(target, io_address(source), length);
}

/* At most a page; both spans have that much. */
static void copy_piece(const struct dmp_span *target, const struct dmp_span *source,
		       size_t length, u32 *checksum)
{
	u8 bounce[BOUNCE_BYTES];
	size_t done, part;

	if (!target->io) {
		read_span(target->address, source, length);
		if (checksum)
			*checksum = checksum_on(*checksum, target->address, length);
		return;
	}
	if (!source->io && !checksum) {
		memcpy_toio(io_address(target), source->address, length);
		return;
	}
	for (done = 0; done < length; done += part) {
		struct dmp_span from = *source;

		part = min_t(size_t, length - done, sizeof(bounce));
		from.address += done;
		read_span(bounce, &from, part);
		if (checksum)
			*checksum = checksum_on(*checksum, bounce, part);
		memcpy_toio(io_address(target) + done, bounce, part);
	}
}

static int copy_inside(struct walk *target, struct walk *source, u64 length, u32 *checksum)
{
	while (length != 0) {
		u64 piece;
		int error = walk_on(target);

		if (!error)
			error = walk_on(source);
		if (error)
			return error;
		piece = min3(target->span.bytes, source->span.bytes, length);
		/* Checked while it is in the first cache. */
		if (checksum)
			piece = min_t(u64, piece, PAGE_SIZE);
		copy_piece(&target->span, &source->span, piece, checksum);
		walk_past(target, piece);
		walk_past(source, piece);
		length -= piece;
	}
	return 0;
}

/* Context: may sleep. -ESTALE if one of them was revoked. */
int dmp_copy_slice(struct dmp_memory *target, u64 target_offset, struct dmp_memory *source,
		   u64 source_offset, u64 length, u32 *checksum)
{
	struct walk to = { .memory = target, .offset = target_offset };
	struct walk from = { .memory = source, .offset = source_offset };
	int section = dmp_memory_enter();
	int error = -ESTALE;

	if (dmp_memory_alive(target) && dmp_memory_alive(source))
		error = copy_inside(&to, &from, length, checksum);
	dmp_memory_leave(section);
	return error;
}

/* @bytes are ours, @memory is anybody's; towards it if @into. -ESTALE if it was revoked. */
static int copy_bytes(struct dmp_memory *memory, u64 offset, void *bytes, u64 length, bool into,
		      u32 *checksum)
{
	struct walk there = { .memory = memory, .offset = offset };
	struct walk here = { .span = { .address = bytes, .bytes = length } };
	int section = dmp_memory_enter();
	int error = -ESTALE;

	if (dmp_memory_alive(memory))
		error = into ? copy_inside(&there, &here, length, checksum) :
			       copy_inside(&here, &there, length, checksum);
	dmp_memory_leave(section);
	return error;
}

int dmp_copy_to(struct dmp_memory *memory, u64 offset, const void *bytes, u64 length)
{
	return copy_bytes(memory, offset, (void *)bytes, length, true, NULL);
}

int dmp_copy_to_checked(struct dmp_memory *memory, u64 offset, const void *bytes, u64 length,
			u32 *checksum)
{
	return copy_bytes(memory, offset, (void *)bytes, length, true, checksum);
}

int dmp_copy_from(struct dmp_memory *memory, u64 offset, void *bytes, u64 length)
{
	return copy_bytes(memory, offset, bytes, length, false, NULL);
}

static void checksum_span(const struct dmp_span *span, u64 length, u32 *checksum)
{
	u8 bounce[BOUNCE_BYTES];
	u64 done, part;

	if (!span->io) {
		*checksum = checksum_on(*checksum, span->address, length);
		return;
	}
	for (done = 0; done < length; done += part) {
		struct dmp_span from = *span;

		part = min_t(u64, length - done, sizeof(bounce));
		from.address += done;
		read_span(bounce, &from, part);
		*checksum = checksum_on(*checksum, bounce, part);
	}
}

static int checksum_slice(struct dmp_memory *memory, u64 offset, u64 length, u32 *checksum)
{
	struct walk walk = { .memory = memory, .offset = offset };
	int error = 0, section = dmp_memory_enter();

	if (!dmp_memory_alive(memory))
		error = -ESTALE;
	while (!error && length != 0) {
		u64 piece;

		error = walk_on(&walk);
		if (error)
			break;
		piece = min(walk.span.bytes, length);
		checksum_span(&walk.span, piece, checksum);
		walk_past(&walk, piece);
		length -= piece;
	}
	dmp_memory_leave(section);
	return error;
}

/*
 * Goes on with *@checksum over what is there; in slices, so that nobody waits long for a section.
 * Context: may sleep. -ESTALE, as above.
 */
int dmp_copy_checksum(struct dmp_memory *memory, u64 offset, u64 length, u32 *checksum)
{
	u64 done, part;
	int error = 0;

	for (done = 0; done < length && !error; done += part) {
		part = min_t(u64, length - done, DMP_BATCH_BYTES);
		error = checksum_slice(memory, offset + done, part, checksum);
		cond_resched();
	}
	return error;
}

/* @row repeats every 4 bytes, so any multiple of that can be written at a time. */
static void fill_span(const struct dmp_span *span, const u8 *row, u64 length)
{
	bool uniform = row[0] == row[1] && row[1] == row[2] && row[2] == row[3];
	u64 done, part;

	if (uniform && span->io) {
		memset_io(io_address(span), row[0], length);
		return;
	}
	if (uniform) {
		memset(span->address, row[0], length);
		return;
	}
	for (done = 0; done < length; done += part) {
		part = min_t(u64, length - done, ROW_BYTES);
		if (span->io)
			memcpy_toio(io_address(span) + done, row, part);
		else
			memcpy(span->address + done, row, part);
	}
}

/*
 * Repeats the four bytes of @pattern; the first one written is byte @phase % 4 of it.
 * Context: may sleep. -ESTALE if the memory was revoked.
 */
int dmp_copy_fill(struct dmp_memory *memory, u64 offset, u64 length, u32 pattern, u64 phase)
{
	struct walk walk = { .memory = memory, .offset = offset };
	u8 row[ROW_BYTES + 4];
	int error = 0, section = dmp_memory_enter();
	u32 index;

	for (index = 0; index < sizeof(row); index++)
		row[index] = ((const u8 *)&pattern)[(phase + index) % 4];
	if (!dmp_memory_alive(memory))
		error = -ESTALE;
	while (!error && length != 0) {
		u64 piece;

		error = walk_on(&walk);
		if (error)
			break;
		piece = min(walk.span.bytes, length);
		/* A span may end within a pattern: the next one starts where it stopped. */
		fill_span(&walk.span, row + (walk.offset - offset) % 4, piece);
		walk_past(&walk, piece);
		length -= piece;
	}
	dmp_memory_leave(section);
	return error;
}
