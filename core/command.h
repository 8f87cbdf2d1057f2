/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * command.h - the shape of every command: what its struct may hold
 *
 * One table for both planes, so that both refuse the same. A plane copies the struct
 * in, checks it here, and only then looks at what the command means: a handler never
 * sees a short struct, an unknown flag or a reserved byte.
 */
#ifndef DMP_CORE_COMMAND_H
#define DMP_CORE_COMMAND_H

#include "types.h"

#define DMP_COMMAND_BYTES_MAX	1024u	/* no struct of this release is larger */
#define DMP_COMMAND_SIZE_MAX	65536u	/* a caller from the far future; beyond is a mistake */

#define DMP_COMMAND_ROWS	0x46u	/* rows are numbered as commands are; some are empty */

struct dmp_command_shape {
	__u32 size;		/* of this release; also the smallest so far */
	__u32 flags;		/* all that are known */
	__u32 reserved_offset;
	__u32 reserved_bytes;
};

/* The row of a command, its _IOC_NR; -ENOTTY if the contract has no such command. */
int dmp_command_find(__u32 number);

/* @row is of dmp_command_find(). */
const struct dmp_command_shape *dmp_command_shape(int row);

/* Is the caller's size one we take? 0, -EINVAL (too short), -E2BIG (absurd). */
int dmp_command_check_size(const struct dmp_command_shape *shape, __u32 size);

/* Flags and reserved bytes of @argument, shape->size bytes of our own: 0 or -EINVAL. */
int dmp_command_check(const struct dmp_command_shape *shape, const void *argument);

/*
 * Does anything come back? If not, the struct is only read: it may lie where nobody can
 * write, and what was destroyed is not reported as a failure because of that.
 */
bool dmp_command_answers(int row);

#endif /* DMP_CORE_COMMAND_H */
