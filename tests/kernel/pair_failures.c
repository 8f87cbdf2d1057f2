// SPDX-License-Identifier: MIT
/*
 * pair_failures.c - a case of the stand-in pair_talk.ko with one more failure ahead each time
 *
 *	pair_failures CASE ADDRESS FUNCTION
 *
 * What fails is what FUNCTION of the module, or what it calls, allocates in this thread. Until
 * no failure is left that it could meet the case fails (with ENOMEM, or what the RDMA core and
 * the network make of it, which is shown), or it does what it did without; the caller looks
 * whether anything of the device is left.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "device.h"
#include "injector.h"

#define RUN		"/sys/kernel/debug/pair_talk/run"
#define SAID		"/sys/kernel/debug/pair_talk/said"
#define RUNS_END	2000u
#define NO_INJECTION	3

static void show_what_it_said(void)
{
	char said[512];
	int fd = open(SAID, O_RDONLY | O_CLOEXEC);
	ssize_t length = fd < 0 ? 0 : read(fd, said, sizeof(said));

	printf("%.*s\n", length > 0 ? (int)length : 0, said);
}

int main(int count, char **words)
{
	uint32_t number, runs = 0, refused = 0;
	bool injected = true;
	char text[96];
	int run, length;

	if (count != 4 || (run = open(RUN, O_WRONLY | O_CLOEXEC)) < 0) {
		fprintf(stderr, "usage: pair_failures CASE ADDRESS FUNCTION, pair_talk.ko loaded\n");
		return 2;
	}
	if (!injector_open()) {
		printf("pair_failures: this kernel has no fault injection\n");
		return NO_INJECTION;
	}
	injector_only_below(words[3]);
	length = snprintf(text, sizeof(text), "%s %s 1", words[1], words[2]);
	for (number = 1; injected; number++, runs++) {
		int error;

		if (number == RUNS_END)
			FAIL("no end after %u", RUNS_END);
		injector_arm(INJECT_NTH, number);
		error = write(run, text, (size_t)length) < 0 ? errno : 0;
		injected = injector_disarm(INJECT_NTH);
		if (!error)
			continue;
		refused++;
		if (error != ENOMEM) {
			printf("%u: %s: ", number, strerror(error));
			show_what_it_said();
		}
		if (!injected || error == EILSEQ || error == ETIME)
			FAIL("%u: %s, %s injected", number, strerror(error),
			     injected ? "one" : "none");
	}
	printf("%s: %u runs, %u refused\n", words[3], runs, refused);
	return 0;
}
