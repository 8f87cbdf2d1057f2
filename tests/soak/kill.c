// SPDX-License-Identifier: MIT
/*
 * kill.c - kill -9 a process that uses a plane, at random moments, many times
 *
 *	soak --seed 7 --kills 1000
 *
 * The parent has a plane and works on it all the time. Each child opens a plane of its
 * own, imports a buffer of the parent's, and makes, maps, exports, copies and destroys
 * until it is killed. After each kill the parent has the fds and objects it had before
 * and its bytes are right; at the end the machine has its memory back and the parent
 * can free everything. The children say on a shared page what they are doing, so that
 * the counts show that every state was hit.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "libdmaplane.h"

#define SHARED_BYTES		(1u << 20)	/* the parent's; children write the upper half */
#define CHILD_BYTES		(4u << 20)
#define COPY_BYTES		(256u << 10)
#define SLOTS			16u
#define KILL_AFTER_US_MAX	12000u
#define SECOND_NS		1000000000ull
#define RETURN_WITHIN_NS	SECOND_NS	/* law L4 */
#define KILLS_PER_REPORT	100u
/* Other processes of the machine come and go; leaked children would weigh far more. */
#define SHMEM_TOLERANCE_KIB	(32u << 10)

#define FAIL(...)								\
	do {									\
		fprintf(stderr, "soak: %s:%d: ", __FILE__, __LINE__);		\
		fprintf(stderr, __VA_ARGS__);					\
		fputc('\n', stderr);						\
		abort();							\
	} while (0)

enum stage { STARTING, OPEN, HOLDING, COPYING, DESTROYING, STAGES };

static const char *const stage_names[STAGES] = {
	"starting", "with a plane", "holding buffers", "copying", "destroying",
};

struct board {
	_Atomic uint32_t stage;
	_Atomic uint64_t copies;
};

struct user {
	struct dmp_plane *plane;
	struct dmp_client client;
	struct dmp_channel_create channel;
	void *rings;
};

static uint64_t random_next(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15ull;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

static void call(struct user *user, unsigned int command, void *request)
{
	int status = dmp_ioctl(user->plane, command, request);

	if (status)
		FAIL("command %#x answered %d", command, status);
}

static void *map(struct user *user, uint64_t offset, size_t length_bytes)
{
	void *address;
	int status = dmp_mmap(user->plane, length_bytes, PROT_READ | PROT_WRITE, offset, &address);

	if (status)
		FAIL("mmap answered %d", status);
	return address;
}

static struct dmp_buffer_create make_buffer(struct user *user, uint64_t length_bytes)
{
	struct dmp_buffer_create create = {
		.size = sizeof(create), .length_bytes = length_bytes, .node = -1 };

	call(user, DMP_BUFFER_CREATE, &create);
	return create;
}

static void destroy(struct user *user, unsigned int command, uint32_t id)
{
	struct dmp_destroy request = { .size = sizeof(request), .id = id };

	call(user, command, &request);
}

static void open_channel(struct user *user)
{
	struct dmp_channel_create *channel = &user->channel;

	memset(channel, 0, sizeof(*channel));
	channel->size = sizeof(*channel);
	channel->slots = SLOTS;
	call(user, DMP_CHANNEL_CREATE, channel);
	user->rings = map(user, channel->map_offset, channel->map_bytes);
	user->client = (struct dmp_client){
		.control = user->rings,
		.submissions = (void *)((uint8_t *)user->rings + channel->submissions_offset),
		.completions = (void *)((uint8_t *)user->rings + channel->completions_offset),
		.slots = SLOTS,
		.completion_slots = 2 * SLOTS,
		.channel_id = channel->channel_id,
		.plane = user->plane,
		.fd = -1,
	};
}

static void close_channel(struct user *user)
{
	int status;

	destroy(user, DMP_CHANNEL_DESTROY, user->channel.channel_id);
	status = dmp_munmap(user->plane, user->rings);
	if (status)
		FAIL("munmap answered %d", status);
}

/* ---- the child: everything, until it is killed */

static void copy_for_a_while(struct user *user, struct board *board, uint32_t own, uint32_t shared)
{
	struct dmp_submission rows[SLOTS];
	struct dmp_completion done[SLOTS];
	uint32_t pushed, i, round;

	memset(rows, 0, sizeof(rows));
	for (i = 0; i < SLOTS; i++) {
		rows[i].operation = DMP_OP_COPY;
		rows[i].flags = i % 2 ? DMP_SUBMIT_CHECKSUM : 0;
		rows[i].source_id = own;
		rows[i].source_offset = (uint64_t)i * COPY_BYTES;
		rows[i].target_id = shared;
		rows[i].target_offset = SHARED_BYTES / 2 + i % 2 * COPY_BYTES;
		rows[i].length_bytes = COPY_BYTES;
	}
	for (round = 0; round < 4; round++) {
		int status = dmp_client_exchange(&user->client, rows, SLOTS, &pushed, done, SLOTS,
						 1, dmp_now_ns() + 10 * SECOND_NS);

		if (status < 0)
			FAIL("child: exchange answered %d", status);
		for (i = 0; i < (uint32_t)status; i++)
			if (done[i].result)
				FAIL("child: a copy ended with %d", done[i].result);
		atomic_fetch_add(&board->copies, (uint64_t)status);
	}
}

static int child_main(int export_fd, int board_fd)
{
	struct board *board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED,
				   board_fd, 0);
	struct user user;

	if (board == MAP_FAILED || dmp_open(&user.plane))
		FAIL("child: no board or no plane");
	atomic_store(&board->stage, OPEN);
	for (;;) {
		struct dmp_buffer_create own = make_buffer(&user, CHILD_BYTES);
		struct dmp_buffer_import shared = { .size = sizeof(shared), .fd = export_fd };
		struct dmp_buffer_export export = { .size = sizeof(export) };
		void *bytes = map(&user, own.map_offset, CHILD_BYTES);

		memset(bytes, 0xa5, CHILD_BYTES);
		call(&user, DMP_BUFFER_IMPORT, &shared);
		export.buffer_id = own.buffer_id;
		call(&user, DMP_BUFFER_EXPORT, &export);
		atomic_store(&board->stage, HOLDING);
		open_channel(&user);
		atomic_store(&board->stage, COPYING);
		copy_for_a_while(&user, board, own.buffer_id, shared.buffer_id);
		atomic_store(&board->stage, DESTROYING);
		close_channel(&user);
		close(export.fd);
		if (dmp_munmap(user.plane, bytes))
			FAIL("child: munmap failed");
		destroy(&user, DMP_BUFFER_DESTROY, own.buffer_id);
		destroy(&user, DMP_BUFFER_DESTROY, shared.buffer_id);
		atomic_store(&board->stage, OPEN);
	}
}

/* ---- the parent */

static int open_fds(void)
{
	DIR *directory = opendir("/proc/self/fd");
	int count = -1;

	if (!directory)
		FAIL("cannot read /proc/self/fd");
	while (readdir(directory))
		count++;
	closedir(directory);
	return count;
}

static uint64_t shmem_kib(void)
{
	FILE *file = fopen("/proc/meminfo", "re");
	unsigned long long kib = 0;
	char line[128];

	if (!file)
		FAIL("cannot read /proc/meminfo");
	while (fgets(line, sizeof(line), file))
		if (sscanf(line, "Shmem: %llu kB", &kib) == 1)
			break;
	fclose(file);
	return kib;
}

static struct dmp_statistics statistics(struct user *user)
{
	struct dmp_statistics now = { .size = sizeof(now) };

	call(user, DMP_STATISTICS, &now);
	return now;
}

/* One checked copy from the parent's own buffer into the lower half of the shared one. */
static void work(struct user *user, const struct dmp_buffer_create *own, uint8_t *source,
		 const struct dmp_buffer_create *shared, const uint8_t *target, uint64_t *random)
{
	struct dmp_submission copy = {
		.operation = DMP_OP_COPY,
		.source_id = own->buffer_id,
		.target_id = shared->buffer_id,
		.length_bytes = SHARED_BYTES / 2,
	};
	struct dmp_completion done = { 0 };
	uint32_t pushed, i;
	int status;

	for (i = 0; i < SHARED_BYTES / 2; i += 4096)
		memset(source + i, (int)random_next(random), 64);
	status = dmp_client_exchange(&user->client, &copy, 1, &pushed, &done, 1, 1,
				     dmp_now_ns() + 10 * SECOND_NS);
	if (status != 1 || done.result || memcmp(source, target, SHARED_BYTES / 2))
		FAIL("the parent's copy: status %d, result %d", status, done.result);
}

static pid_t start_child(int export_fd, int board_fd)
{
	char fds[2][16];
	pid_t child;

	snprintf(fds[0], sizeof(fds[0]), "%d", export_fd);
	snprintf(fds[1], sizeof(fds[1]), "%d", board_fd);
	child = fork();
	if (child < 0)
		FAIL("fork: %s", strerror(errno));
	if (child == 0) {
		fcntl(export_fd, F_SETFD, 0);
		fcntl(board_fd, F_SETFD, 0);
		execl("/proc/self/exe", "soak", "--child", fds[0], fds[1], (char *)NULL);
		_exit(127);
	}
	return child;
}

static void sleep_us(uint64_t us)
{
	struct timespec time = { .tv_nsec = (long)us * 1000 };

	nanosleep(&time, NULL);
}

static void wait_for_memory(uint64_t before_kib)
{
	uint64_t deadline = dmp_now_ns() + RETURN_WITHIN_NS;

	while (shmem_kib() > before_kib + SHMEM_TOLERANCE_KIB) {
		if (dmp_now_ns() > deadline)
			FAIL("shared memory: %llu KiB before, %llu KiB after",
			     (unsigned long long)before_kib, (unsigned long long)shmem_kib());
		sleep_us(10000);
	}
}

static void run(uint64_t seed, uint64_t kills)
{
	uint64_t random = seed, hits[STAGES] = { 0 }, i, shmem_before;
	struct dmp_buffer_create own, shared;
	struct dmp_buffer_export export = { .size = sizeof(export) };
	struct dmp_statistics before, now;
	uint8_t *source, *target;
	struct board *board;
	struct user user;
	int fds_at_start = open_fds(), board_fd = memfd_create("soak-board", MFD_CLOEXEC), fds;

	if (board_fd < 0 || ftruncate(board_fd, sizeof(*board)))
		FAIL("no board");
	board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED, board_fd, 0);
	if (board == MAP_FAILED || dmp_open(&user.plane))
		FAIL("no board or no plane");
	own = make_buffer(&user, SHARED_BYTES);
	shared = make_buffer(&user, SHARED_BYTES);
	source = map(&user, own.map_offset, SHARED_BYTES);
	target = map(&user, shared.map_offset, SHARED_BYTES);
	export.buffer_id = shared.buffer_id;
	call(&user, DMP_BUFFER_EXPORT, &export);
	open_channel(&user);
	fds = open_fds();
	before = statistics(&user);
	shmem_before = shmem_kib();
	for (i = 1; i <= kills; i++) {
		pid_t child;
		int status;

		atomic_store(&board->stage, STARTING);
		child = start_child(export.fd, board_fd);
		work(&user, &own, source, &shared, target, &random);
		sleep_us(random_next(&random) % KILL_AFTER_US_MAX);
		kill(child, SIGKILL);
		work(&user, &own, source, &shared, target, &random);
		if (waitpid(child, &status, 0) != child || !WIFSIGNALED(status) ||
		    WTERMSIG(status) != SIGKILL)
			FAIL("child %llu ended by itself: %#x", (unsigned long long)i, status);
		hits[atomic_load(&board->stage)]++;
		now = statistics(&user);
		if (open_fds() != fds || now.buffers != before.buffers ||
		    now.buffer_bytes != before.buffer_bytes || now.channels != before.channels ||
		    now.mappings != before.mappings || now.submissions != now.completions)
			FAIL("kill %llu left something behind in the parent",
			     (unsigned long long)i);
		if (i % KILLS_PER_REPORT == 0) {
			printf("soak: %llu kills, %llu copies by children\n",
			       (unsigned long long)i, (unsigned long long)board->copies);
			fflush(stdout);
		}
	}
	wait_for_memory(shmem_before);
	close_channel(&user);
	close(export.fd);
	if (dmp_munmap(user.plane, source) || dmp_munmap(user.plane, target))
		FAIL("munmap failed");
	destroy(&user, DMP_BUFFER_DESTROY, own.buffer_id);
	destroy(&user, DMP_BUFFER_DESTROY, shared.buffer_id);
	now = statistics(&user);
	if (now.buffers || now.channels || now.mappings || now.buffer_bytes)
		FAIL("the parent cannot free all it made");
	printf("soak: killed while");
	for (i = 0; i < STAGES; i++)
		printf("%s %s %llu", i ? "," : "", stage_names[i], (unsigned long long)hits[i]);
	printf("\nsoak: shared memory %llu KiB before, %llu KiB after\n",
	       (unsigned long long)shmem_before, (unsigned long long)shmem_kib());
	dmp_close(user.plane);
	munmap(board, sizeof(*board));
	close(board_fd);
	if (open_fds() != fds_at_start)
		FAIL("%d fds at the start, %d at the end", fds_at_start, open_fds());
	printf("soak: seed %llu: %llu kills, the parent worked on; no fd, memory or object is left\n",
	       (unsigned long long)seed, (unsigned long long)kills);
}

int main(int count, char **words)
{
	uint64_t seed = (uint64_t)time(NULL), kills = 1000;
	int i;

	if (count == 4 && !strcmp(words[1], "--child"))
		return child_main(atoi(words[2]), atoi(words[3]));
	for (i = 1; i + 1 < count; i += 2) {
		if (!strcmp(words[i], "--seed"))
			seed = strtoull(words[i + 1], NULL, 0);
		else if (!strcmp(words[i], "--kills"))
			kills = strtoull(words[i + 1], NULL, 0);
		else
			break;
	}
	if (i != count) {
		fprintf(stderr, "usage: soak [--seed N] [--kills N]\n");
		return 2;
	}
	printf("soak: seed %llu\n", (unsigned long long)seed);
	fflush(stdout);
	run(seed, kills);
	return 0;
}
