/* SPDX-License-Identifier: MIT */
/* Kernels by their names, as cuModuleGetFunction looks for them. */
#ifndef STAND_IN_KERNELS_H
#define STAND_IN_KERNELS_H

struct Kernel {
	const char *name;
	void (*run)(const void *arguments);
	unsigned long bytes; /* of its arguments */
};

const Kernel *find_kernel(const char *name);

#endif
