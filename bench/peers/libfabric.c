// SPDX-License-Identifier: MIT
/*
 * libfabric.c - WRITE_IMM's nearest relative in libfabric, for `dmaplane bench endpoint`
 *
 *	dmaplane-bench-libfabric PROVIDER SOURCE_FD TARGET_FD ROWS_FD BYTES ROWS
 *
 * Two processes: this one writes, its child is written to. Both map memory the bench
 * shares with them by fd, so that every side of a comparison moves the same bytes between
 * the same pages. Commands come on stdin, one a line; each is answered by one line on
 * stdout, nanoseconds:
 *
 *	write COUNT WINDOW	fi_writedata of the first COUNT rows, at most WINDOW in flight
 *	ping COUNT		COUNT round trips of 8 bytes, and an immediate, each way; the median
 *
 * Time ends when every write has completed here and the child has been told of every
 * immediate. Both poll, as libfabric's own programs do; between commands the child sleeps.
 * Built where libfabric's headers are; no part of the library.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <signal.h>
#include <unistd.h>

#include <rdma/fabric.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_errno.h>
#include <rdma/fi_rma.h>

#include "dmaplane.h"

#define NAME_BYTES 512
#define ENTRIES 64
#define PING_BYTES 8

/* What each side tells the other over the socket pair. */
struct card {
	uint64_t name_bytes;
	uint64_t key;
	uint64_t address;
	char name[NAME_BYTES];
};

struct command {
	uint64_t writes;	/* 0: ping */
	uint64_t pings;
};

struct side {
	struct fi_info *info;
	struct fid_fabric *fabric;
	struct fid_domain *domain;
	struct fid_av *addresses;
	struct fid_cq *queue;
	struct fid_ep *endpoint;
	struct fid_mr *memory;
	char *bytes;
	void *descriptor;
	fi_addr_t peer;
	struct card theirs;
	uint64_t completed;	/* of own writes */
	uint64_t told;		/* immediates of the peer */
	int socket;
};

/* Shared by both processes: what the child has seen of this command. */
static uint64_t *seen;

static void fail(const char *what, long answer)
{
	fprintf(stderr, "%s: %s\n", what, fi_strerror((int)-answer));
	exit(1);
}

static void must(const char *what, long answer)
{
	if (answer)
		fail(what, answer);
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void *map(int fd, size_t bytes)
{
	void *mapped = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);

	if (mapped == MAP_FAILED)
		fail("mmap", -errno);
	return mapped;
}

static struct fi_info *find(const char *provider)
{
	struct fi_info *hints = fi_allocinfo(), *found;
	int tcp = !strncmp(provider, "tcp", 3);

	if (!hints)
		fail("fi_allocinfo", -FI_ENOMEM);
	hints->ep_attr->type = FI_EP_RDM;
	hints->caps = FI_MSG | FI_RMA;
	hints->mode = FI_CONTEXT | FI_RX_CQ_DATA;
	hints->addr_format = tcp ? FI_SOCKADDR_IN : FI_FORMAT_UNSPEC;
	hints->domain_attr->mr_mode = FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED |
				      FI_MR_PROV_KEY;
	hints->domain_attr->cq_data_size = 4;
	hints->domain_attr->threading = FI_THREAD_DOMAIN;
	hints->fabric_attr->prov_name = strdup(provider);
	must(provider, fi_getinfo(FI_VERSION(1, 15), tcp ? "127.0.0.1" : NULL, NULL, 0, hints,
				  &found));
	fi_freeinfo(hints);
	return found;
}

static void start(struct side *side, const char *provider, char *bytes, size_t length)
{
	struct fi_av_attr of_addresses = { .type = FI_AV_TABLE };
	struct fi_cq_attr of_queue = {
		.format = FI_CQ_FORMAT_DATA, .wait_obj = FI_WAIT_NONE, .size = 16384,
	};

	side->info = find(provider);
	side->bytes = bytes;
	must("fi_fabric", fi_fabric(side->info->fabric_attr, &side->fabric, NULL));
	must("fi_domain", fi_domain(side->fabric, side->info, &side->domain, NULL));
	must("fi_av_open", fi_av_open(side->domain, &of_addresses, &side->addresses, NULL));
	must("fi_cq_open", fi_cq_open(side->domain, &of_queue, &side->queue, NULL));
	must("fi_endpoint", fi_endpoint(side->domain, side->info, &side->endpoint, NULL));
	must("fi_ep_bind", fi_ep_bind(side->endpoint, &side->addresses->fid, 0));
	must("fi_ep_bind", fi_ep_bind(side->endpoint, &side->queue->fid, FI_TRANSMIT | FI_RECV));
	must("fi_enable", fi_enable(side->endpoint));
	must("fi_mr_reg", fi_mr_reg(side->domain, bytes, length,
				    FI_WRITE | FI_REMOTE_WRITE | FI_READ | FI_REMOTE_READ, 0,
				    0, 0, &side->memory, NULL));
	side->descriptor = fi_mr_desc(side->memory);
}

static void exchange_cards(struct side *side)
{
	struct card mine = { .name_bytes = NAME_BYTES, .key = fi_mr_key(side->memory) };
	size_t name_bytes = NAME_BYTES;

	/* Without VIRT_ADDR a remote address counts from the start of the registration. */
	if (side->info->domain_attr->mr_mode & FI_MR_VIRT_ADDR)
		mine.address = (uint64_t)(uintptr_t)side->bytes;
	must("fi_getname", fi_getname(&side->endpoint->fid, mine.name, &name_bytes));
	mine.name_bytes = name_bytes;
	if (write(side->socket, &mine, sizeof(mine)) != sizeof(mine) ||
	    recv(side->socket, &side->theirs, sizeof(mine), MSG_WAITALL) != sizeof(mine))
		fail("cards", -EPIPE);
	if (fi_av_insert(side->addresses, side->theirs.name, 1, &side->peer, 0, NULL) != 1)
		fail("fi_av_insert", -FI_EINVAL);
}

/* Lets the provider make progress, and counts what it says. */
static void poll_queue(struct side *side)
{
	struct fi_cq_data_entry entries[ENTRIES];
	struct fi_cq_err_entry error = { 0 };
	ssize_t got = fi_cq_read(side->queue, entries, ENTRIES);
	ssize_t index;

	if (got == -FI_EAGAIN)
		return;
	if (got == -FI_EAVAIL) {
		fi_cq_readerr(side->queue, &error, 0);
		fail("completion", -(long)error.err);
	}
	if (got < 0)
		fail("fi_cq_read", got);
	for (index = 0; index < got; index++)
		if (entries[index].flags & FI_REMOTE_CQ_DATA)
			side->told++;
		else
			side->completed++;
}

/* FI_CONTEXT: the provider's own for as long as the operation is in flight. */
static struct fi_context *contexts;
static uint64_t contexts_count;

static void need_contexts(uint64_t count)
{
	if (count <= contexts_count)
		return;
	free(contexts);
	contexts = calloc(count, sizeof(*contexts));
	if (!contexts)
		fail("contexts", -ENOMEM);
	contexts_count = count;
}

static uint64_t write_rows(struct side *side, const struct dmp_submission *rows, uint64_t count,
			   uint64_t window)
{
	uint64_t posted = 0, begin;

	need_contexts(window);
	side->completed = 0;
	begin = now_ns();
	while (posted < count) {
		const struct dmp_submission *row = &rows[posted];
		ssize_t answer = -FI_EAGAIN;

		if (posted - side->completed < window)
			answer = fi_writedata(side->endpoint, side->bytes + row->source_offset,
					      row->length_bytes, side->descriptor, row->immediate,
					      side->peer,
					      side->theirs.address + row->target_offset,
					      side->theirs.key, &contexts[posted % window]);
		if (!answer)
			posted++;
		else if (answer == -FI_EAGAIN)
			poll_queue(side);
		else
			fail("fi_writedata", answer);
	}
	while (side->completed < count || __atomic_load_n(seen, __ATOMIC_ACQUIRE) < count)
		poll_queue(side);
	return now_ns() - begin;
}

static void ping_once(struct side *side)
{
	ssize_t answer;

	do {
		answer = fi_inject_writedata(side->endpoint, side->bytes, PING_BYTES, 7,
					     side->peer, side->theirs.address, side->theirs.key);
		if (answer == -FI_EAGAIN)
			poll_queue(side);
	} while (answer == -FI_EAGAIN);
	must("fi_inject_writedata", answer);
}

static int compare(const void *left, const void *right)
{
	uint64_t one = *(const uint64_t *)left, other = *(const uint64_t *)right;

	return (one > other) - (one < other);
}

static uint64_t ping(struct side *side, uint64_t count)
{
	uint64_t *each = calloc(count, sizeof(*each));
	uint64_t index, middle;

	if (!each)
		fail("ping", -ENOMEM);
	side->told = 0;
	for (index = 0; index < count; index++) {
		uint64_t begin = now_ns();

		ping_once(side);
		while (side->told <= index)
			poll_queue(side);
		each[index] = now_ns() - begin;
	}
	qsort(each, count, sizeof(*each), compare);
	middle = each[count / 2];
	free(each);
	return middle;
}

static void answer_commands(struct side *side)
{
	struct command command;
	uint64_t index;

	while (recv(side->socket, &command, sizeof(command), MSG_WAITALL) == sizeof(command)) {
		side->told = 0;
		__atomic_store_n(seen, 0, __ATOMIC_RELEASE);
		if (write(side->socket, "r", 1) != 1)
			return;
		while (side->told < command.writes) {
			poll_queue(side);
			__atomic_store_n(seen, side->told, __ATOMIC_RELEASE);
		}
		for (index = 0; index < command.pings; index++) {
			while (side->told <= index)
				poll_queue(side);
			ping_once(side);
		}
		/* What was sent last must leave: the writer says when all is done. */
		while (recv(side->socket, &command, 1, MSG_DONTWAIT) != 1)
			poll_queue(side);
	}
}

static void take_commands(struct side *side, const struct dmp_submission *rows, uint64_t rows_max)
{
	char line[128], ready;

	while (fgets(line, sizeof(line), stdin)) {
		struct command command = { 0 };
		uint64_t window = 1, elapsed;

		if (sscanf(line, "write %" SCNu64 " %" SCNu64, &command.writes, &window) != 2 &&
		    sscanf(line, "ping %" SCNu64, &command.pings) != 1)
			fail(line, -EINVAL);
		if (command.writes > rows_max || !window)
			fail(line, -ERANGE);
		if (write(side->socket, &command, sizeof(command)) != sizeof(command) ||
		    recv(side->socket, &ready, 1, MSG_WAITALL) != 1)
			fail("the other side", -EPIPE);
		elapsed = command.writes ? write_rows(side, rows, command.writes, window) :
					   ping(side, command.pings);
		if (write(side->socket, "d", 1) != 1)
			fail("the other side", -EPIPE);
		printf("%" PRIu64 "\n", elapsed);
		fflush(stdout);
	}
}

int main(int argc, char **argv)
{
	struct side side = { 0 };
	uint64_t bytes, rows_max;
	struct dmp_submission *rows;
	int sockets[2];
	pid_t child;

	if (argc != 7) {
		fprintf(stderr, "usage: %s PROVIDER SOURCE_FD TARGET_FD ROWS_FD BYTES ROWS\n",
			argv[0]);
		return 2;
	}
	bytes = strtoull(argv[5], NULL, 10);
	rows_max = strtoull(argv[6], NULL, 10);
	seen = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (seen == MAP_FAILED || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets))
		fail("set-up", -errno);
	child = fork();
	if (child < 0)
		fail("fork", -errno);
	side.socket = sockets[!child];
	close(sockets[!!child]);
	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		start(&side, argv[1], map(atoi(argv[3]), bytes), bytes);
		exchange_cards(&side);
		answer_commands(&side);
		return 0;
	}
	rows = map(atoi(argv[4]), rows_max * sizeof(*rows));
	start(&side, argv[1], map(atoi(argv[2]), bytes), bytes);
	exchange_cards(&side);
	printf("%s %s\n", side.info->fabric_attr->prov_name, fi_tostr(side.info, FI_TYPE_VERSION));
	fflush(stdout);
	take_commands(&side, rows, rows_max);
	return 0;
}
