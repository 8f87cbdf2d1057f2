// SPDX-License-Identifier: MIT
/*
 * hog.c - a user without rights takes all the memory and all the threads he can get
 *
 *	hog [--group GID] [--processes N]
 *
 * Every process asks for buffers of falling size and for channels until each is refused.
 * A refusal is ENOMEM, ENOSPC or EPERM; the plane's limit holds; nobody is killed for it,
 * neither a hog nor anybody else; and when the hogs are killed all of it comes back.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <grp.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "device.h"

#define NOBODY		65534
#define PROCESSES_MAX	8u
#define CHANNELS_MAX	1024u
#define RETURN_WITHIN_NS (20 * SECOND_NS)	/* giving back is work, at a GiB a second or so */
#define LIMIT		"/sys/module/dmaplane/parameters/bytes_max"

struct board {
	_Atomic uint64_t bytes, buffers, channels;
	_Atomic uint32_t full;		/* processes that got all they could */
	_Atomic int32_t odd_status;
};

static bool refused(struct board *board, int status)
{
	if (status && status != -ENOMEM && status != -ENOSPC && status != -EPERM)
		atomic_store(&board->odd_status, status);
	return status != 0;
}

static void take_buffers(struct board *board, struct dmp_plane *plane)
{
	static const uint32_t kinds[] = { DMP_KIND_PAGES, DMP_KIND_COHERENT, DMP_KIND_HUGE };
	struct dmp_buffer_create buffer;
	uint64_t length;
	uint32_t i;

	for (i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		for (length = 1ull << 40; length >= 4096; length /= 4) {
			while (!refused(board, device_buffer(plane, &buffer, kinds[i], length))) {
				atomic_fetch_add(&board->bytes, length);
				atomic_fetch_add(&board->buffers, 1);
			}
		}
	}
}

static void take_channels(struct board *board, struct dmp_plane *plane)
{
	struct dmp_channel_create channel;
	uint32_t slots, i;

	for (slots = DMP_SLOTS_MAX; slots; slots /= 16) {
		for (i = 0; i < CHANNELS_MAX; i++) {
			memset(&channel, 0, sizeof(channel));
			channel.size = sizeof(channel);
			channel.slots = slots;
			if (refused(board, dmp_ioctl(plane, DMP_CHANNEL_CREATE, &channel)))
				break;
			atomic_fetch_add(&board->channels, 1);
		}
	}
}

static void take_everything(struct board *board, gid_t group, bool channels_first)
{
	struct dmp_plane *plane;

	if (setgroups(1, &group) || setresgid(NOBODY, NOBODY, NOBODY) ||
	    setresuid(NOBODY, NOBODY, NOBODY) || dmp_open(&plane))
		FAIL("cannot become nobody or open the device: %s", strerror(errno));
	if (channels_first)
		take_channels(board, plane);
	take_buffers(board, plane);
	take_channels(board, plane);
	atomic_fetch_add(&board->full, 1);
	for (;;)
		pause();
}

static void wait_until_full(struct board *board, const pid_t *hogs, uint32_t processes)
{
	int status;
	uint32_t i;

	while (atomic_load(&board->full) < processes) {
		for (i = 0; i < processes; i++)
			if (waitpid(hogs[i], &status, WNOHANG) == hogs[i])
				FAIL("a hog ended: %#x", status);
		sleep_us(20000);
	}
	sleep_us(200000);
	for (i = 0; i < processes; i++)
		if (waitpid(hogs[i], &status, WNOHANG) == hogs[i])
			FAIL("a hog was killed: %#x", status);
}

int main(int count, char **words)
{
	struct board *board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE,
				   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int64_t charged = device_charged_bytes(), victims;
	uint32_t processes = 2, i;
	gid_t group = NOBODY;
	pid_t hogs[PROCESSES_MAX];
	uint64_t deadline;
	int word;

	for (word = 1; word + 1 < count; word += 2) {
		unsigned long value = strtoul(words[word + 1], NULL, 0);

		if (!strcmp(words[word], "--group"))
			group = (gid_t)value;
		else if (!strcmp(words[word], "--processes") && value <= PROCESSES_MAX)
			processes = (uint32_t)value;
		else
			break;
	}
	if (word != count || board == MAP_FAILED) {
		fprintf(stderr, "usage: hog [--group GID] [--processes N]\n");
		return 2;
	}
	victims = device_proc_value("/proc/vmstat", "oom_kill");
	for (i = 0; i < processes; i++) {
		hogs[i] = fork();
		if (hogs[i] < 0)
			FAIL("fork: %s", strerror(errno));
		if (hogs[i] == 0)
			take_everything(board, group, i % 2);
	}
	wait_until_full(board, hogs, processes);
	printf("hog: %llu MiB in %llu buffers, %llu channels; %lld MiB are available\n",
	       (unsigned long long)board->bytes >> 20, (unsigned long long)board->buffers,
	       (unsigned long long)board->channels,
	       (long long)device_proc_value("/proc/meminfo", "MemAvailable") / 1024);
	if (board->odd_status)
		FAIL("a refusal was %d", board->odd_status);
	if (device_charged_bytes() > device_proc_value(LIMIT, NULL))
		FAIL("%lld bytes are more than the limit", (long long)device_charged_bytes());
	if (device_proc_value("/proc/vmstat", "oom_kill") != victims)
		FAIL("the OOM killer had to act");
	for (i = 0; i < processes; i++)
		kill(hogs[i], SIGKILL);
	for (i = 0; i < processes; i++)
		waitpid(hogs[i], NULL, 0);
	for (deadline = dmp_now_ns() + RETURN_WITHIN_NS; device_charged_bytes() != charged;) {
		if (dmp_now_ns() > deadline)
			FAIL("%lld bytes stay", (long long)device_charged_bytes());
		sleep_us(10000);
	}
	printf("hog: all of it came back\n");
	return 0;
}
