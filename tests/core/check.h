/* SPDX-License-Identifier: MIT */
/*
 * check.h - the one assertion of the core tests
 *
 * CHECK prints the place and the expression that failed and ends the program with
 * status 1. It stays on in every build, unlike assert().
 */
#ifndef DMP_TESTS_CHECK_H
#define DMP_TESTS_CHECK_H

#include <stdio.h>
#include <stdlib.h>

#define CHECK(expression)							\
	do {									\
		if (!(expression)) {						\
			fprintf(stderr, "%s:%d: %s: not true: %s\n", __FILE__,	\
				__LINE__, __func__, #expression);		\
			exit(1);						\
		}								\
	} while (0)

#endif /* DMP_TESTS_CHECK_H */
