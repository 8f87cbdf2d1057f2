/* SPDX-License-Identifier: MIT */
/* child.h - a test body in a process of its own, whose limits and filters end with it */
#ifndef DMP_TESTS_CHILD_H
#define DMP_TESTS_CHILD_H

#include <sys/wait.h>
#include <unistd.h>

#include "core/check.h"

/* Runs @body in a child; the child's checks count here. */
static inline void in_child(void (*body)(void))
{
	pid_t child = fork();
	int status;

	CHECK(child >= 0);
	if (!child) {
		body();
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child);
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

#endif /* DMP_TESTS_CHILD_H */
