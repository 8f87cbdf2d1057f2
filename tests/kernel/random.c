// SPDX-License-Identifier: MIT
/*
 * random.c - attackers without rights, one after the other, for a while
 *
 *	random [--seed N] [--seconds N] [--threads N] [--group GID] [--within-ms N]
 *
 * Each attacker (mayhem.c) is user nobody in the group that may open the device, lives for
 * a moment, and then leaves or is killed. After each, in the time given, the module holds
 * nothing (L4; its forked children are on their way out as well). Nobody may die but the attackers, and of them nobody by another's hand
 * than ours: the kernel's OOM killer had to act then.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <grp.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "mayhem.h"

#define NOBODY			65534
#define LIFE_MS_MAX		4000u
#define PROCESSES_MAX		200
#define LOCKED_BYTES_MAX	(8u << 20)

static pid_t start(struct mayhem_board *board, uint64_t seed, uint32_t threads, uint32_t life_ms,
		   gid_t group)
{
	struct rlimit processes = { PROCESSES_MAX, PROCESSES_MAX }, core = { 0, 0 };
	struct rlimit locked = { LOCKED_BYTES_MAX, LOCKED_BYTES_MAX };
	pid_t pid = fork();

	if (pid < 0)
		FAIL("fork: %s", strerror(errno));
	if (pid > 0)
		return pid;
	setsid();
	setrlimit(RLIMIT_NPROC, &processes);
	setrlimit(RLIMIT_CORE, &core);
	setrlimit(RLIMIT_MEMLOCK, &locked);
	if (setgroups(1, &group) || setresgid(NOBODY, NOBODY, NOBODY) ||
	    setresuid(NOBODY, NOBODY, NOBODY))
		FAIL("cannot become nobody: %s", strerror(errno));
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	mayhem(board, seed, threads, life_ms);
	_exit(0);
}

/* An attacker, and what it held, is gone so soon after its end. */
static uint64_t within_ns = 5 * SECOND_NS;
static uint64_t slowest_ns;

/* True if it is gone in time. */
static bool wait_for(pid_t pid, int *status, uint64_t since_ns)
{
	uint64_t deadline = since_ns + within_ns;

	while (waitpid(pid, status, WNOHANG) == 0) {
		if (dmp_now_ns() > deadline)
			return false;
		sleep_us(2000);
	}
	return true;
}

static void wait_until_returned(int64_t charged, int64_t references, uint64_t seed)
{
	uint64_t deadline = dmp_now_ns() + within_ns;

	while (device_charged_bytes() != charged || device_references() != references) {
		if (dmp_now_ns() > deadline)
			FAIL("seed %llu: %lld bytes and %lld references stay",
			     (unsigned long long)seed, (long long)device_charged_bytes(),
			     (long long)device_references());
		sleep_us(5000);
	}
}

static void attack(struct mayhem_board *board, uint64_t seed, uint32_t threads, gid_t group,
		   uint32_t *failed_starts)
{
	uint64_t random = seed;
	uint32_t life_ms = 50 + random_below(&random, LIFE_MS_MAX);
	bool killed = random_below(&random, 2);
	pid_t pid = start(board, seed, threads, killed ? 60000 : life_ms, group);
	bool gone = false;
	uint64_t since_ns;
	int status = 0;

	if (killed) {
		sleep_us(life_ms * 1000ull);
		gone = waitpid(pid, &status, WNOHANG) == pid;
		if (!gone)
			kill(pid, SIGKILL);
	}
	since_ns = dmp_now_ns() + (killed ? 0 : life_ms * 1000000ull);
	if (!gone && !wait_for(pid, &status, since_ns))
		FAIL("seed %llu: the attacker does not die", (unsigned long long)seed);
	if (!killed && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
		FAIL("seed %llu: somebody else killed the attacker", (unsigned long long)seed);
	if (dmp_now_ns() > since_ns + slowest_ns)
		slowest_ns = dmp_now_ns() - since_ns;
	*failed_starts += WIFEXITED(status) && WEXITSTATUS(status) >= 96 && WEXITSTATUS(status) < 99;
	kill(-pid, SIGKILL);	/* its children */
	if (board->odd_status)
		FAIL("seed %llu: command %#x answered %d", (unsigned long long)seed,
		     board->odd_command, board->odd_status);
}

int main(int count, char **words)
{
	struct mayhem_board *board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE,
					  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	uint64_t seed = dmp_now_ns(), seconds = 20, end, attackers = 0;
	int64_t charged = device_charged_bytes(), references = device_references();
	uint32_t threads = 4, failed_starts = 0;
	gid_t group = NOBODY;
	int i;

	for (i = 1; i + 1 < count; i += 2) {
		uint64_t value = strtoull(words[i + 1], NULL, 0);

		if (!strcmp(words[i], "--seed"))
			seed = value;
		else if (!strcmp(words[i], "--seconds"))
			seconds = value;
		else if (!strcmp(words[i], "--threads") && value <= MAYHEM_THREADS_MAX)
			threads = (uint32_t)value;
		else if (!strcmp(words[i], "--within-ms"))
			within_ns = value * 1000000;
		else if (!strcmp(words[i], "--group"))
			group = (gid_t)value;
		else
			break;
	}
	if (i != count || board == MAP_FAILED) {
		fprintf(stderr, "usage: random [--seed N] [--seconds N] [--threads N] [--group GID] "
			"[--within-ms N]\n");
		return 2;
	}
	prctl(PR_SET_CHILD_SUBREAPER, 0);
	printf("random: seed %llu\n", (unsigned long long)seed);
	fflush(stdout);
	for (end = dmp_now_ns() + seconds * SECOND_NS; dmp_now_ns() < end; attackers++) {
		attack(board, seed + (attackers << 32), threads, group, &failed_starts);
		wait_until_returned(charged, references, seed + (attackers << 32));
	}
	printf("random: seed %llu: %llu attackers, %llu calls: %llu commands served, %llu refused; "
	       "%llu faults, %llu forks; the slowest end took %llu ms\n", (unsigned long long)seed,
	       (unsigned long long)attackers, (unsigned long long)board->calls,
	       (unsigned long long)board->served, (unsigned long long)board->refused,
	       (unsigned long long)board->faults, (unsigned long long)board->forks,
	       (unsigned long long)slowest_ns / 1000000);
	if (failed_starts > attackers / 4)
		FAIL("%u of %llu attackers could not start", failed_starts,
		     (unsigned long long)attackers);
	return 0;
}
