// SPDX-License-Identifier: MIT
/*
 * assault.c - attack a plane that listens, over tcp and over shared memory
 *
 *	fuzz_wire --seed 7 --frames 1000000
 *
 * Built with the sources of libdmaplane under AddressSanitizer and UBSan, which judge
 * memory. The program judges the rest: others are served all the time and get exact
 * bytes, what was not granted keeps its bytes, the right secret is let in after all of
 * it, and endpoints, descriptors and memory are as before.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <malloc.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "assault.h"
#include "listener.h"
#include "shm_segment.h"
#include "tcp.h"
#include "wire.h"

#define DIAL_NS			(10 * SECOND_NS)
#define FAILURES_MAX		2u
#define PROOFS			40u
#define FDS_PATIENCE_MS		20000u
#define WARM_UP			10u	/* one part of so many, after which memory has its size */
#define GROWTH_BYTES_MAX	(2u << 20)
#define RESIDENT_KIB_MAX	(1536u << 10)	/* the quarantine of AddressSanitizer is most of it */

size_t __sanitizer_get_current_allocated_bytes(void) __attribute__((weak));

uint64_t assault_random(struct assault *assault)
{
	uint64_t z = assault->random += 0x9e3779b97f4a7c15ull;	/* splitmix64 */

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

uint32_t assault_below(struct assault *assault, uint32_t end)
{
	return (uint32_t)((assault_random(assault) >> 32) * end >> 32);
}

/* Values that tend to break code. */
uint64_t assault_odd_value(struct assault *assault)
{
	uint32_t bit = assault_below(assault, 64);

	switch (assault_below(assault, 8)) {
	case 0:
		return 0;
	case 1:
		return assault_below(assault, 16);
	case 2:
		return assault_below(assault, GRANTED_BYTES);
	case 3:
		return 1ull << bit;
	case 4:
		return (1ull << bit) - 1;
	case 5:
		return -(uint64_t)assault_below(assault, 4096);
	case 6:
		return GRANTED_BYTES - 4 + assault_below(assault, 8);
	default:
		return assault_random(assault);
	}
}

/* A few bytes are changed. */
void assault_garble(struct assault *assault, __u8 *bytes, uint32_t count)
{
	uint32_t changes = 1 + assault_below(assault, 4);

	while (changes-- && count)
		bytes[assault_below(assault, count)] ^= (__u8)(1u << assault_below(assault, 8));
}

void assault_seal(__u8 *bytes, uint32_t count)
{
	const uint32_t at = DMP_WIRE_HEADER_BYTES - sizeof(__u32);
	uint32_t crc;

	if (count < DMP_WIRE_HEADER_BYTES)
		return;
	crc = dmp_crc32c(0, bytes, at);
	crc = dmp_crc32c(crc, bytes + DMP_WIRE_HEADER_BYTES, count - DMP_WIRE_HEADER_BYTES);
	memcpy(bytes + at, &crc, sizeof(crc));
}

static int connect_tcp(struct assault *assault)
{
	struct sockaddr_in from = { .sin_family = AF_INET };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		FAIL("no socket");
	from.sin_addr.s_addr = htonl(0x7f010001 + assault_below(assault, 0xfe0000));
	if (bind(fd, (struct sockaddr *)&from, sizeof(from)) ||
	    connect(fd, (const struct sockaddr *)&assault->address.socket,
		    assault->address.length))
		FAIL("no connection from another address of this machine: %s", strerror(errno));
	return fd;
}

struct dmp_fabric *assault_dial(struct assault *assault, bool local)
{
	struct dmp_fabric *fabric;
	int error;

	if (local)
		error = dmp_dial(assault->plane, &assault->address, DMP_PATH_SHM,
				 dmp_now_ns() + DIAL_NS, &fabric);
	else
		error = dmp_tcp_fabric(connect_tcp(assault), &fabric);
	return error ? NULL : fabric;
}

bool assault_may_fail(struct assault *assault, bool local)
{
	return !local || assault->failures++ < FAILURES_MAX;
}

void assault_scribble(struct assault *assault, struct dmp_fabric *fabric, uint32_t changes)
{
	uint32_t *words = (uint32_t *)((struct dmp_shm *)fabric)->segment;
	uint32_t count = sizeof(struct dmp_shm_header) / sizeof(*words);

	while (changes--)
		__atomic_store_n(&words[assault_below(assault, count)],
				 (uint32_t)assault_odd_value(assault), __ATOMIC_SEQ_CST);
}

void assault_leave(struct dmp_fabric *fabric)
{
	struct dmp_shm_header *segment;
	int side;

	if (fabric->type->path == DMP_PATH_SHM) {
		segment = ((struct dmp_shm *)fabric)->segment;
		for (side = 0; side < 2; side++)
			__atomic_store_n(&segment->sides[side].touching, 0, __ATOMIC_SEQ_CST);
	}
	fabric->type->close(fabric);
}

static size_t live_bytes(void)
{
	if (__sanitizer_get_current_allocated_bytes)
		return __sanitizer_get_current_allocated_bytes();
	return mallinfo2().uordblks;
}

static int open_fds(void)
{
	DIR *directory = opendir("/proc/self/fd");
	int count = -1;	/* its own */

	if (!directory)
		FAIL("cannot read /proc/self/fd");
	while (readdir(directory))
		count++;
	closedir(directory);
	return count;
}

static bool parse(int count, char **words, uint64_t *seed, uint64_t *frames)
{
	int i;

	for (i = 1; i + 1 < count; i += 2) {
		char *end;
		uint64_t value = strtoull(words[i + 1], &end, 0);

		if (*end)
			return false;
		if (!strcmp(words[i], "--seed"))
			*seed = value;
		else if (!strcmp(words[i], "--frames"))
			*frames = value;
		else
			return false;
	}
	return i == count;
}

static void report(const struct assault *assault, struct victim *victim)
{
	printf("fuzz_wire: %llu frames: %llu to begin with, %llu after a handshake; "
	       "%llu of %llu were let in\n", (unsigned long long)assault->frames,
	       (unsigned long long)assault->handshakes, (unsigned long long)assault->lies,
	       (unsigned long long)victim_accepted(victim), (unsigned long long)assault->let_in);
	fflush(stdout);
}

static void run(struct assault *assault, uint64_t seed, uint64_t frames)
{
	struct victim *victim = victim_start(assault);
	uint64_t next_proof = 0, proofs = 0;
	size_t before = 0, after;
	int fds = 0;

	while (assault->frames < frames) {
		if (assault_below(assault, 3))
			liar_visit(assault);
		else
			stranger_visit(assault);
		if (assault->frames < next_proof)
			continue;
		victim_prove_service(victim, assault_random(assault));
		next_proof += frames / PROOFS + 1;
		if (++proofs % (PROOFS / 4) == 0)
			report(assault, victim);
		if (!before && assault->frames >= frames / WARM_UP) {
			victim_settle(victim);
			before = live_bytes();
			fds = open_fds();
		}
	}
	victim_settle(victim);
	after = live_bytes();
	victim_prove_service(victim, seed);
	if (after > before + GROWTH_BYTES_MAX)
		FAIL("%zu bytes were in use, now it is %zu", before, after);
	/* Those who say nothing are given a second at the door. */
	for (proofs = 0; open_fds() > fds && proofs < FDS_PATIENCE_MS; proofs++)
		nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
	if (open_fds() > fds)
		FAIL("%d fds were open, now it is %d", fds, open_fds());
	report(assault, victim);
	if (frames >= 1000 && (!assault->lies || !assault->handshakes))
		FAIL("the attackers never got as far as to lie");
	victim_end(victim);
}

int main(int count, char **words)
{
	uint64_t seed = (uint64_t)time(NULL), frames = 100000;
	struct assault assault = { 0 };
	struct rusage usage;
	int fds;

	if (!parse(count, words, &seed, &frames)) {
		fprintf(stderr, "usage: fuzz_wire [--seed N] [--frames N]\n");
		return 2;
	}
	printf("fuzz_wire: seed %llu\n", (unsigned long long)seed);
	fflush(stdout);
	assault.random = seed;
	fds = open_fds();
	if (dmp_open(&assault.plane))
		FAIL("no plane");
	run(&assault, seed, frames);
	if (dmp_close(assault.plane))
		FAIL("close failed");
	if (open_fds() != fds)
		FAIL("%d fds before, %d after", fds, open_fds());
	getrusage(RUSAGE_SELF, &usage);
	if (usage.ru_maxrss > (long)RESIDENT_KIB_MAX)
		FAIL("%ld KiB were resident", usage.ru_maxrss);
	printf("fuzz_wire: seed %llu: %llu frames; everybody else was served, nothing is left\n",
	       (unsigned long long)seed, (unsigned long long)assault.frames);
	return 0;
}
