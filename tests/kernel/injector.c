// SPDX-License-Identifier: MIT
/* injector.c - see injector.h */
#define _GNU_SOURCE
#include "injector.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "device.h"

#define INJECTIONS_MAX	1000000

const char *const injector_manners[INJECT_MANNERS] = { "nth", "pages", "slab" };
static const char *const attributes[INJECT_MANNERS] = { NULL, "fail_page_alloc", "failslab" };

static int nth_fd, filter_fd;

/* Writing is a user copy too, and may be the one that fails. */
static void write_number(int fd, uint64_t number)
{
	char text[24];
	int length = snprintf(text, sizeof(text), "%llu", (unsigned long long)number), tries;

	for (tries = 0; tries < 3; tries++)
		if (pwrite(fd, text, (size_t)length, 0) == length)
			return;
	FAIL("cannot write to the fault injector: %s", strerror(errno));
}

static void set_attribute(const char *attribute, const char *name, const char *value)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "/sys/kernel/debug/%s/%s", attribute, name);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, value, strlen(value)) < 0)
		FAIL("%s: %s", path, strerror(errno));
	close(fd);
}

static int64_t attribute_times(const char *attribute)
{
	char path[128];

	snprintf(path, sizeof(path), "/sys/kernel/debug/%s/times", attribute);
	return device_proc_value(path, NULL);
}

/* @kind: "require" or "reject" to have @function among the callers. */
static void judge_callers(const char *kind, const char *function)
{
	static const char *const all[] = { "failslab", "fail_page_alloc", "fail_usercopy" };
	FILE *file = fopen("/proc/kallsyms", "re");
	unsigned long long start = 0, end = ~0ull, address;
	char line[256], name[128], text[24], setting[24];
	size_t i;

	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, "%llx %*c %127s", &address, name) == 2 && !strcmp(name, function))
			start = address;
	if (!start)
		FAIL("where is %s?", function);
	rewind(file);
	while (fgets(line, sizeof(line), file))
		if (sscanf(line, "%llx", &address) == 1 && address > start && address < end)
			end = address;
	fclose(file);
	for (i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		snprintf(text, sizeof(text), "%#llx", start);
		snprintf(setting, sizeof(setting), "%s-start", kind);
		set_attribute(all[i], setting, text);
		snprintf(text, sizeof(text), "%#llx", end);
		snprintf(setting, sizeof(setting), "%s-end", kind);
		set_attribute(all[i], setting, text);
	}
}

bool injector_open(void)
{
	static const char *const all[] = { "failslab", "fail_page_alloc", "fail_usercopy" };
	size_t i;

	nth_fd = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC);
	filter_fd = open("/proc/thread-self/make-it-fail", O_RDWR | O_CLOEXEC);
	if (nth_fd < 0 || filter_fd < 0 || access("/sys/kernel/debug/failslab", F_OK))
		return false;
	for (i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		set_attribute(all[i], "verbose", "0");
		set_attribute(all[i], "task-filter", "Y");
		set_attribute(all[i], "probability", "0");
		set_attribute(all[i], "interval", "1");
	}
	set_attribute("failslab", "ignore-gfp-wait", "N");
	set_attribute("fail_page_alloc", "ignore-gfp-wait", "N");
	set_attribute("fail_page_alloc", "ignore-gfp-highmem", "N");
	set_attribute("fail_page_alloc", "min-order", "0");
	/*
	 * It warns when an exporter has no memory for an address. That is for the kernel's
	 * maintainers: nothing fails below it.
	 */
	judge_callers("reject", "dma_buf_vmap");
	return true;
}

void injector_arm(enum injector_manner manner, uint64_t number)
{
	char text[24];

	if (manner == INJECT_NTH) {
		write_number(nth_fd, number);
		return;
	}
	snprintf(text, sizeof(text), "%llu", (unsigned long long)number);
	set_attribute(attributes[manner], "space", text);
	snprintf(text, sizeof(text), "%d", INJECTIONS_MAX);
	set_attribute(attributes[manner], "times", text);
	set_attribute(attributes[manner], "probability", "100");
	write_number(filter_fd, 1);
}

uint64_t injector_disarm(enum injector_manner manner)
{
	char text[24] = "";

	if (manner == INJECT_NTH) {
		/* Reading it copies to the user: if that is what fails, nothing failed before. */
		bool injected = pread(nth_fd, text, sizeof(text) - 1, 0) > 0 && atoi(text) == 0;

		write_number(nth_fd, 0);
		return injected;
	}
	write_number(filter_fd, 0);
	set_attribute(attributes[manner], "probability", "0");
	return (uint64_t)(INJECTIONS_MAX - attribute_times(attributes[manner]));
}

void injector_only_below(const char *function)
{
	judge_callers("require", function);
}
