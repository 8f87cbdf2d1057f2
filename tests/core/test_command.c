// SPDX-License-Identifier: MIT
/* test_command.c - exactly the commands of the contract exist, and each refuses what it does not know */
#include "check.h"
#include "command.h"
#include "dmaplane.h"

#include <string.h>

/* Every command of this release, and every size a shorter caller could claim. */
static void check_row(int row)
{
	const struct dmp_command_shape *shape = dmp_command_shape(row);
	unsigned char argument[DMP_COMMAND_BYTES_MAX];
	__u32 bit, byte, size;

	CHECK(shape->size >= 8 && shape->size % 8 == 0 && shape->size <= sizeof(argument));
	for (size = 0; size < shape->size; size++)
		CHECK(dmp_command_check_size(shape, size) == -EINVAL);
	CHECK(dmp_command_check_size(shape, shape->size) == 0);
	CHECK(dmp_command_check_size(shape, shape->size + 8) == 0);
	CHECK(dmp_command_check_size(shape, DMP_COMMAND_SIZE_MAX + 1) == -E2BIG);

	memset(argument, 0, sizeof(argument));
	CHECK(dmp_command_check(shape, argument) == 0);
	for (bit = 0; bit < 32; bit++) {
		__u32 flags = 1u << bit;

		memcpy(argument + 4, &flags, sizeof(flags));
		CHECK(dmp_command_check(shape, argument) == (shape->flags & flags ? 0 : -EINVAL));
	}
	memset(argument, 0, sizeof(argument));
	CHECK(shape->reserved_offset + shape->reserved_bytes <= shape->size);
	for (byte = 8; byte < shape->size; byte++) {
		int reserved = byte >= shape->reserved_offset &&
			       byte < shape->reserved_offset + shape->reserved_bytes;

		argument[byte] = 1;
		CHECK(dmp_command_check(shape, argument) == (reserved ? -EINVAL : 0));
		argument[byte] = 0;
	}
}

int main(void)
{
	__u32 number, found = 0, silent = 0;

	for (number = 0; number < 0x100; number++) {
		int row = dmp_command_find(_IO(DMP_IOCTL_TYPE, number));

		CHECK(row == (int)number || row == -ENOTTY);
		if (row < 0)
			continue;
		check_row(row);
		found++;
		silent += !dmp_command_answers(row);
		/* The same number with a direction or a size in it is another command. */
		CHECK(dmp_command_find(_IOR(DMP_IOCTL_TYPE, number, __u32)) == -ENOTTY);
		CHECK(dmp_command_find(_IO(DMP_IOCTL_TYPE + 1, number)) == -ENOTTY);
	}
	CHECK(found == 25);
	/* Five ways to destroy, and SYNC: no output field. */
	CHECK(silent == 6 && !dmp_command_answers(_IOC_NR(DMP_BUFFER_SYNC)));
	CHECK(dmp_command_find(0) == -ENOTTY);
	CHECK(dmp_command_find(0xffffffffu) == -ENOTTY);
	return 0;
}
