// SPDX-License-Identifier: MIT
/*
 * killed.c - kill -9 a process that holds everything a plane can give, many times
 *
 *	killed [--seed N] [--kills N] [--longest-us N] [--within-ms N]
 *
 * Each child opens a plane, makes a buffer of every kind, maps, exports, imports, hands an
 * export to its parent, fills a ring with copies and goes on until it is killed at a moment
 * chosen by chance. Within a second (L4), or what a slow machine is given instead, the module
 * holds what the parent's share of the exports accounts for, to the byte and to the
 * reference, and nothing else. The children say on a shared page what they are doing, so
 * that the counts show which states were hit.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "device.h"

#define PAGES_BYTES	(1u << 20)
#define COPY_BYTES	(8u << 20)	/* so long that it is under way when the signal comes */
#define SMALL_BYTES	(256u << 10)
#define SLOTS		16u
#define KEPT_MAX	4u		/* exports that outlive their process */
#define STAGE_WITHIN_NS	(2 * SECOND_NS)
#define KILLS_PER_REPORT 100u
#define LOST_KIB_MAX	(16 << 10)

enum stage { STARTING, MAKING, HOLDING, COPYING, CANCELLING, DRAINING, DESTROYING, STAGES };

static const char *const stage_names[STAGES] = {
	"starting", "making", "holding", "copying", "cancelling", "draining", "destroying",
};

struct board {
	_Atomic uint32_t stage;
	_Atomic uint64_t copies;
	_Atomic uint64_t imports;
};

struct child {
	struct dmp_plane *plane;
	struct board *board;
	uint64_t random;
	int socket;
	uint8_t *arena;
	struct device_rings rings;
	uint32_t source, target;	/* of the large copies */
};

struct kept {
	int fd;
	void *bytes;
	uint64_t length_bytes;
};

/* What the module holds of the machine. */
struct account {
	int64_t memories, charged, references;
};

/* ---- the child */

static void must(int status, const char *what)
{
	if (status < 0)
		FAIL("child: %s answered %d", what, status);
}

static void hand_over(int socket, int fd)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control = { .header = { .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET,
				  .cmsg_type = SCM_RIGHTS } };
	struct iovec byte = { .iov_base = (char[1]){ 0 }, .iov_len = 1 };
	struct msghdr message = { .msg_iov = &byte, .msg_iovlen = 1, .msg_control = &control,
				  .msg_controllen = sizeof(control) };

	memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
	if (sendmsg(socket, &message, MSG_DONTWAIT) < 0 && errno != EAGAIN)
		FAIL("child: sendmsg: %s", strerror(errno));
}

/* Where the machine has such a driver: a foreign dma-buf, else one of our own. */
static void import_something(struct child *child, uint32_t own)
{
	struct dmp_buffer_import bought;
	uint32_t choice = random_below(&child->random, 3);
	int fd = choice == 0 ? device_udmabuf(SMALL_BYTES) :
		 choice == 1 ? device_heap(SMALL_BYTES) : -1;
	void *bytes;

	if (fd < 0)
		fd = device_export(child->plane, own, 0);
	must(fd, "export");
	must(device_import(child->plane, fd, &bought), "import");
	atomic_fetch_add(&child->board->imports, 1);
	if (random_below(&child->random, 2))
		close(fd);
	if (random_below(&child->random, 2))
		must(dmp_mmap(child->plane, bought.length_bytes, PROT_READ | PROT_WRITE,
			      bought.map_offset, &bytes), "mmap of an import");
}

static void make_everything(struct child *child)
{
	static const uint32_t kinds[] = { DMP_KIND_PAGES, DMP_KIND_COHERENT, DMP_KIND_HUGE };
	static const uint64_t lengths[] = { PAGES_BYTES, SMALL_BYTES, 2u << 20 };
	struct dmp_buffer_create create, user = {
		.size = sizeof(user), .kind = DMP_KIND_USER, .node = -1,
		.user_addr = (uintptr_t)child->arena + 77, .length_bytes = PAGES_BYTES - 4096 };
	uint32_t i, first = 0;
	void *bytes;
	int fd;

	for (i = 0; i < 3; i++) {
		must(device_buffer(child->plane, &create, kinds[i], lengths[i]), "create");
		first = i ? first : create.buffer_id;
		must(dmp_mmap(child->plane, create.map_bytes, PROT_READ | PROT_WRITE,
			      create.map_offset, &bytes), "mmap");
		memset(bytes, 0xa5, SMALL_BYTES);
	}
	must(dmp_ioctl(child->plane, DMP_BUFFER_CREATE, &user), "create of user memory");
	fd = device_export(child->plane, first, 0);
	must(fd, "export");
	hand_over(child->socket, fd);
	import_something(child, first);
}

static void fill_ring(struct child *child)
{
	struct dmp_submission rows[SLOTS];
	struct dmp_completion done[SLOTS];
	uint32_t pushed, i;
	int status;

	memset(rows, 0, sizeof(rows));
	for (i = 0; i < SLOTS; i++) {
		rows[i].operation = i % 5 == 4 ? DMP_OP_FENCE : DMP_OP_COPY;
		if (rows[i].operation == DMP_OP_FENCE)
			continue;
		rows[i].flags = i % 3 ? 0 : DMP_SUBMIT_CHECKSUM;
		rows[i].source_id = child->source;
		rows[i].target_id = child->target;
		rows[i].length_bytes = COPY_BYTES;
	}
	status = dmp_client_exchange(&child->rings.client, rows, SLOTS, &pushed, done, SLOTS,
				     random_below(&child->random, 3),
				     dmp_now_ns() + random_below(&child->random, 50000000));
	if (status < 0 && status != -ETIMEDOUT && status != -EAGAIN)
		must(status, "a full ring");
	atomic_fetch_add(&child->board->copies, status > 0 ? (uint64_t)status : 0);
}

static void cancel_some(struct child *child)
{
	struct dmp_cancel cancel = { .size = sizeof(cancel), .flags = DMP_CANCEL_ALL,
				     .channel_id = child->rings.channel.channel_id };
	int status = dmp_ioctl(child->plane, DMP_CANCEL, &cancel);

	if (status != -ENOENT)
		must(status, "cancel");
}

static void drain(struct child *child)
{
	struct dmp_destroy request = { .size = sizeof(request), .flags = DMP_DESTROY_DRAIN,
				       .id = child->rings.channel.channel_id };

	must(dmp_ioctl(child->plane, DMP_CHANNEL_DESTROY, &request), "drain");
}

/* Comes and goes in the plane beside the first thread. */
static void *second_thread(void *argument)
{
	struct child *child = argument;
	uint64_t random = child->random ^ 1;

	for (;;) {
		struct dmp_statistics now;
		struct dmp_buffer_create create;

		must(device_statistics(child->plane, &now), "statistics");
		dmp_poll(child->plane, dmp_now_ns() + random_below(&random, 3000000));
		must(device_buffer(child->plane, &create, DMP_KIND_PAGES,
				   1 + random_below(&random, SMALL_BYTES)), "create");
		must(device_destroy(child->plane, DMP_BUFFER_DESTROY, create.buffer_id),
		     "destroy");
	}
	return NULL;
}

static void child_main(struct child *child)
{
	_Atomic uint32_t *stage = &child->board->stage;
	struct dmp_buffer_create create;
	pthread_t thread;

	must(dmp_open(&child->plane), "open");
	atomic_store(stage, MAKING);
	must(device_buffer(child->plane, &create, DMP_KIND_PAGES, COPY_BYTES), "create");
	child->source = create.buffer_id;
	must(device_buffer(child->plane, &create, DMP_KIND_PAGES, COPY_BYTES), "create");
	child->target = create.buffer_id;
	if (random_below(&child->random, 2) &&
	    pthread_create(&thread, NULL, second_thread, child))
		FAIL("child: no thread");
	make_everything(child);
	for (;;) {
		uint32_t choice = random_below(&child->random, 4);

		atomic_store(stage, HOLDING);
		must(device_rings_open(child->plane, &child->rings, SLOTS,
				       1 + random_below(&child->random, 2)), "channel");
		atomic_store(stage, COPYING);
		fill_ring(child);
		atomic_store(stage, choice == 0 ? CANCELLING : choice == 1 ? DRAINING : DESTROYING);
		if (choice == 0)
			cancel_some(child);
		if (choice == 1) {
			drain(child);
			must(dmp_munmap(child->plane, child->rings.mapping), "munmap");
		} else {
			must(device_rings_close(child->plane, &child->rings), "destroy");
		}
	}
}

/* ---- the parent */

static struct account account(void)
{
	return (struct account){ device_memories(), device_charged_bytes(), device_references() };
}

static void drop(struct kept *kept)
{
	if (kept->bytes)
		munmap(kept->bytes, kept->length_bytes);
	if (kept->fd >= 0)
		close(kept->fd);
	*kept = (struct kept){ .fd = -1 };
}

/* Takes what the dead child handed over; @kept holds the latest of all. */
static void take_over(int socket, struct kept *kept, uint32_t *next)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control;
	char byte;
	struct iovec vector = { .iov_base = &byte, .iov_len = 1 };

	for (;;) {
		struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1,
					  .msg_control = &control,
					  .msg_controllen = sizeof(control) };
		struct kept *place = &kept[*next % KEPT_MAX];

		if (recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) != 1)
			return;
		drop(place);
		memcpy(&place->fd, CMSG_DATA(&control.header), sizeof(place->fd));
		place->length_bytes = (uint64_t)lseek(place->fd, 0, SEEK_END);
		place->bytes = mmap(NULL, place->length_bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
				    place->fd, 0);
		if (place->bytes == MAP_FAILED || *(uint8_t *)place->bytes != 0xa5)
			FAIL("an export that outlived its process cannot be read");
		(*next)++;
	}
}

/* Returns how long it took until nothing but the kept exports was held. */
static uint64_t wait_until_returned(const struct kept *kept, struct account before,
				    uint64_t since_ns, uint64_t within_ns, uint64_t kill)
{
	uint64_t now;
	uint32_t i;

	for (i = 0; i < KEPT_MAX; i++) {
		before.charged += kept[i].fd >= 0 ? (int64_t)kept[i].length_bytes : 0;
		before.memories += kept[i].fd >= 0;
		before.references += kept[i].fd >= 0;
	}
	for (;;) {
		struct account held = account();

		now = dmp_now_ns();
		if (!memcmp(&held, &before, sizeof(held)) && now <= since_ns + within_ns)
			return now - since_ns;
		if (now > since_ns + within_ns)
			FAIL("kill %llu, too late: %lld memories for %lld, %lld bytes for %lld, "
			     "%lld references for %lld", (unsigned long long)kill,
			     (long long)held.memories, (long long)before.memories,
			     (long long)held.charged, (long long)before.charged,
			     (long long)held.references, (long long)before.references);
		sleep_us(1000);
	}
}

/* So that every stage is hit, whatever the machine's speed: then a moment chosen by chance. */
static void wait_for_stage(const struct board *board, uint32_t stage, uint32_t longest_us,
			   uint64_t *random)
{
	uint64_t deadline = dmp_now_ns() + STAGE_WITHIN_NS;

	while (atomic_load(&board->stage) < stage && dmp_now_ns() < deadline)
		sleep_us(300);
	sleep_us(random_below(random, longest_us));
}

static pid_t start_child(struct board *board, int socket, uint64_t random)
{
	pid_t pid = fork();

	if (pid < 0)
		FAIL("fork: %s", strerror(errno));
	if (pid == 0) {
		struct child child = { .board = board, .random = random, .socket = socket };

		child.arena = mmap(NULL, PAGES_BYTES, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (child.arena == MAP_FAILED)
			FAIL("child: no memory");
		child_main(&child);
	}
	return pid;
}

static void report(const uint64_t *hits, const struct board *board, uint64_t slowest_ns,
		   int64_t lost_kib)
{
	uint32_t i;

	printf("killed: while");
	for (i = 0; i < STAGES; i++)
		printf("%s %s %llu", i ? "," : "", stage_names[i], (unsigned long long)hits[i]);
	printf("\nkilled: %llu copies and %llu imports by children; the slowest return took "
	       "%llu us; %lld KiB fewer than before\n", (unsigned long long)board->copies,
	       (unsigned long long)board->imports, (unsigned long long)slowest_ns / 1000,
	       (long long)lost_kib);
}

static void run(uint64_t seed, uint64_t kills, uint32_t longest_us, uint64_t within_ns)
{
	uint64_t random = seed, hits[STAGES] = { 0 }, slowest_ns = 0, i;
	struct board *board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE,
				   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct account before = account();
	int64_t pinned = device_pinned_pages(), reusable = device_reusable_kib();
	struct kept kept[KEPT_MAX] = { [0 ... KEPT_MAX - 1] = { .fd = -1 } };
	uint32_t next = 0;
	int sockets[2];

	if (before.charged < 0 || before.references < 0)
		FAIL("the module does not say what it holds");
	if (board == MAP_FAILED || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets))
		FAIL("no board or no sockets");
	for (i = 1; i <= kills; i++) {
		uint64_t since_ns, took_ns;
		int status;
		pid_t child;

		atomic_store(&board->stage, STARTING);
		child = start_child(board, sockets[1], random_next(&random));
		wait_for_stage(board, random_below(&random, STAGES), longest_us, &random);
		since_ns = dmp_now_ns();
		kill(child, SIGKILL);
		if (waitpid(child, &status, 0) != child || !WIFSIGNALED(status) ||
		    WTERMSIG(status) != SIGKILL)
			FAIL("child %llu ended by itself: %#x", (unsigned long long)i, status);
		hits[atomic_load(&board->stage)]++;
		take_over(sockets[0], kept, &next);
		took_ns = wait_until_returned(kept, before, since_ns, within_ns, i);
		slowest_ns = took_ns > slowest_ns ? took_ns : slowest_ns;
		if (i % KILLS_PER_REPORT == 0) {
			printf("killed: %llu\n", (unsigned long long)i);
			fflush(stdout);
		}
	}
	for (i = 0; i < KEPT_MAX; i++)
		drop(&kept[i]);
	wait_until_returned(kept, before, dmp_now_ns(), within_ns, kills);
	reusable -= device_reusable_kib();
	report(hits, board, slowest_ns, reusable);
	if (reusable > LOST_KIB_MAX)
		FAIL("pages are lost");
	if (device_pinned_pages() != pinned)
		FAIL("%lld pages stay pinned", (long long)(device_pinned_pages() - pinned));
}

int main(int count, char **words)
{
	uint64_t seed = dmp_now_ns(), kills = 1000, within_ns = SECOND_NS;
	uint32_t longest_us = 20000;
	int i;

	for (i = 1; i + 1 < count; i += 2) {
		if (!strcmp(words[i], "--seed"))
			seed = strtoull(words[i + 1], NULL, 0);
		else if (!strcmp(words[i], "--kills"))
			kills = strtoull(words[i + 1], NULL, 0);
		else if (!strcmp(words[i], "--longest-us"))
			longest_us = (uint32_t)strtoul(words[i + 1], NULL, 0);
		else if (!strcmp(words[i], "--within-ms"))
			within_ns = strtoull(words[i + 1], NULL, 0) * 1000000;
		else
			break;
	}
	if (i != count) {
		fprintf(stderr, "usage: killed [--seed N] [--kills N] [--longest-us N] [--within-ms N]\n");
		return 2;
	}
	printf("killed: seed %llu\n", (unsigned long long)seed);
	fflush(stdout);
	run(seed, kills, longest_us, within_ns);
	printf("killed: seed %llu: %llu kills, nothing is left\n", (unsigned long long)seed,
	       (unsigned long long)kills);
	return 0;
}
