// SPDX-License-Identifier: MIT
/*
 * loader.c - loading the module with one more failure ahead each time
 *
 *	loader MODULE.ko
 *
 * The module is not loaded before, nor after. What fails is in the module's own start, not
 * in the kernel's loader. Until no failure is left that it could meet: either it is refused,
 * and nothing of it is there; or it is loaded all the same, serves, and goes.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "device.h"
#include "injector.h"

#define NAME		"dmaplane"
#define RUNS_END	2000u
#define NO_INJECTION	3

static bool is_there(void)
{
	return !access("/sys/module/" NAME "/refcnt", F_OK) || !access(DEVICE_PATH, F_OK) ||
	       !access("/sys/kernel/debug/" NAME, F_OK);
}

static void prove_and_unload(uint32_t number)
{
	struct dmp_buffer_create create;
	struct dmp_plane *plane;
	uint64_t deadline = dmp_now_ns() + 5 * SECOND_NS;

	/* devtmpfs makes the node in a thread of its own. */
	while (access(DEVICE_PATH, F_OK) && dmp_now_ns() < deadline)
		sleep_us(1000);
	if (dmp_open(&plane))
		FAIL("%u: loaded, and cannot be opened", number);
	if (device_buffer(plane, &create, DMP_KIND_PAGES, 4096) || dmp_close(plane))
		FAIL("%u: loaded, and does not serve", number);
	while (syscall(SYS_delete_module, NAME, O_NONBLOCK)) {
		if (dmp_now_ns() > deadline)
			FAIL("%u: cannot be unloaded: %s", number, strerror(errno));
		sleep_us(1000);
	}
}

int main(int count, char **words)
{
	uint32_t number, runs = 0, refused = 0;
	uint64_t injected = 1;
	int module = count == 2 ? open(words[1], O_RDONLY | O_CLOEXEC) : -1;

	if (module < 0) {
		fprintf(stderr, "usage: loader MODULE.ko\n");
		return 2;
	}
	if (is_there())
		FAIL("the module is loaded already");
	if (!injector_open()) {
		printf("loader: this kernel has no fault injection\n");
		return NO_INJECTION;
	}
	injector_only_below("do_one_initcall");
	for (number = 1; injected; number++, runs++) {
		int status;

		if (number == RUNS_END)
			FAIL("no end after %u", RUNS_END);
		injector_arm(INJECT_NTH, number);
		status = syscall(SYS_finit_module, module, "", 0) ? -errno : 0;
		injected = injector_disarm(INJECT_NTH);
		if (status && !injected)
			FAIL("%u: refused with %d though nothing was injected", number, status);
		/* EINVAL is what the driver core says to a device whose name it had no memory for. */
		if (status && status != -ENOMEM && status != -EINVAL)
			FAIL("%u: refused with %d", number, status);
		refused += status != 0;
		if (!status)
			prove_and_unload(number);
		if (is_there())
			FAIL("%u: something of the module is left", number);
	}
	printf("loader: %u runs, %u refused\n", runs, refused);
	return 0;
}
