// SPDX-License-Identifier: MIT
/*
 * test_verbs.c - two planes of this process over an RDMA device
 *
 *	test_verbs	looks for a device; there is none: says why, and tests what needs none
 *	test_verbs --require [ADDRESS]	there has to be one (tests/kernel/test_verbs.py makes one)
 *
 * Everything goes through the contract's calls, so machine, fabric and device are all in it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ifaddrs.h>
#include <linux/capability.h>
#include <net/if.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "door_session.h"
#include "verbs.h"
#include "verbs_library.h"

#define SECRET		"only-we-two"
#define BYTES		(3u << 20)
#define SLOTS		64u
#define SECOND		1000000000ull
#define LONG_NS		(60 * SECOND)	/* an emulated machine is slow: only a hang gets there */

/* ---- two planes and a connection */

struct side {
	struct session session;
	uint32_t buffer;
	char *bytes;
	uint32_t endpoint;
	uint32_t path;
};

struct pair {
	struct side near, far;
	struct dmp_listen listen;
};

static char here[INET_ADDRSTRLEN + 8];	/* "ADDRESS:0" of an RDMA device */

static void open_side(struct side *side)
{
	struct dmp_buffer_create create = { .size = sizeof(create), .length_bytes = BYTES,
					    .node = -1 };
	void *bytes;

	session_open(&side->session, SLOTS);
	CHECK(!dmp_ioctl(side->session.plane, DMP_BUFFER_CREATE, &create));
	CHECK(!dmp_mmap(side->session.plane, BYTES, PROT_READ | PROT_WRITE, create.map_offset,
			&bytes));
	side->buffer = create.buffer_id;
	side->bytes = bytes;
}

static void *let_in(void *argument)
{
	struct pair *pair = argument;
	struct dmp_accept accept = { .size = sizeof(accept),
				     .listener_id = pair->listen.listener_id,
				     .channel_id = pair->far.session.channel.channel_id,
				     .window_slots = 16, .window_bytes = 1 << 20,
				     .detect_ms = 20000,
				     .deadline_ns = dmp_now_ns() + LONG_NS };

	CHECK(!dmp_ioctl(pair->far.session.plane, DMP_ACCEPT, &accept));
	pair->far.endpoint = accept.endpoint_id;
	pair->far.path = accept.path_taken;
	return NULL;
}

static struct dmp_connect calling(const struct pair *pair)
{
	struct dmp_connect connect = { .size = sizeof(connect), .flags = DMP_REQUIRE_PATH,
				       .path = DMP_PATH_VERBS,
				       .channel_id = pair->near.session.channel.channel_id,
				       .window_slots = 16, .window_bytes = 1 << 20,
				       .detect_ms = 20000, .secret_bytes = strlen(SECRET),
				       .deadline_ns = dmp_now_ns() + LONG_NS };

	memcpy(connect.secret, SECRET, strlen(SECRET));
	memcpy(connect.address, pair->listen.bound_address, sizeof(connect.address));
	return connect;
}

static void join(struct pair *pair)
{
	struct dmp_connect connect = calling(pair);
	pthread_t thread;
	int error;

	CHECK(!pthread_create(&thread, NULL, let_in, pair));
	error = dmp_ioctl(pair->near.session.plane, DMP_CONNECT, &connect);
	if (error)
		fprintf(stderr, "connect: %s\n", strerror(-error));
	CHECK(!error);
	pthread_join(thread, NULL);
	pair->near.endpoint = connect.endpoint_id;
	pair->near.path = connect.path_taken;
	CHECK(pair->near.path == DMP_PATH_VERBS && pair->far.path == DMP_PATH_VERBS);
}

static void open_pair(struct pair *pair)
{
	struct dmp_listen *listen = &pair->listen;

	open_side(&pair->near);
	open_side(&pair->far);
	*listen = listen_on(&pair->far.session, here);
	listen->flags = DMP_REQUIRE_PATH;
	listen->path = DMP_PATH_VERBS;
	listen->secret_bytes = strlen(SECRET);
	memcpy(listen->secret, SECRET, strlen(SECRET));
	CHECK(!dmp_ioctl(pair->far.session.plane, DMP_LISTEN, listen));
	join(pair);
}

static void close_pair(struct pair *pair)
{
	session_close(&pair->near.session);
	session_close(&pair->far.session);
}

static struct dmp_submission operation(const struct side *side, uint16_t what, uint64_t length)
{
	return (struct dmp_submission){
		.operation = what, .endpoint_id = side->endpoint, .length_bytes = length,
		.deadline_ns = dmp_now_ns() + LONG_NS,
	};
}

/* Submits @count; waits for as many completions, of which the last is returned. */
static struct dmp_completion run(struct side *side, const struct dmp_submission *submissions,
				 uint32_t count, int result)
{
	struct dmp_completion completions[SLOTS], last = { 0 };
	uint32_t pushed = 0, had = 0, now;
	int got, i;

	while (had < count) {
		now = 0;
		got = dmp_client_exchange(&side->session.client, submissions + pushed,
					  count - pushed, &now, completions, SLOTS, 1,
					  dmp_now_ns() + LONG_NS);
		CHECK(got > 0);
		pushed += now;
		for (i = 0; i < got; i++) {
			if (completions[i].flags & DMP_COMPLETE_EVENT)
				continue;	/* that somebody came to the door */
			if (completions[i].result != result)
				fprintf(stderr, "operation %u: %d\n", completions[i].operation,
					completions[i].result);
			CHECK(completions[i].result == result);
			last = completions[i];
			had++;
		}
	}
	CHECK(pushed == count && had == count);
	return last;
}

static struct dmp_completion await_event(struct side *side, uint16_t what)
{
	struct dmp_completion event = { 0 };
	uint32_t none;

	while (!(event.flags & DMP_COMPLETE_EVENT) || event.operation != what)
		CHECK(dmp_client_exchange(&side->session.client, NULL, 0, &none, &event, 1, 1,
					  dmp_now_ns() + LONG_NS) == 1);
	return event;
}

static void fill(char *bytes, uint32_t length, unsigned int seed)
{
	for (uint32_t i = 0; i < length; i++)
		bytes[i] = (char)(i * 7 + i / 4096 + seed);
}

/* ---- a region of the far side */

static struct dmp_region_create grant(struct side *side, uint64_t offset, uint64_t length,
				      uint32_t access)
{
	struct dmp_region_create region = { .size = sizeof(region), .buffer_id = side->buffer,
					    .offset = offset, .length_bytes = length,
					    .access = access };

	CHECK(!dmp_ioctl(side->session.plane, DMP_REGION_CREATE, &region));
	return region;
}

static int import(struct side *side, const struct dmp_region_create *region, uint32_t *id)
{
	struct dmp_region_import request = { .size = sizeof(request),
					     .endpoint_id = side->endpoint,
					     .key_bytes = region->key_bytes };
	int error;

	memcpy(request.key, region->key, region->key_bytes);
	error = dmp_ioctl(side->session.plane, DMP_REGION_IMPORT, &request);
	*id = request.region_id;
	return error;
}

static int end_region(struct side *side, uint32_t id, uint32_t flags)
{
	struct dmp_destroy destroy = { .size = sizeof(destroy), .id = id, .flags = flags };

	return dmp_ioctl(side->session.plane, DMP_REGION_DESTROY, &destroy);
}

/* ---- tests */

static void test_messages_go_both_ways(void)
{
	static const uint32_t lengths[] = { 1, 100, 8183, 8184, 8185, 100000, 1 << 20 };
	struct pair pair;
	unsigned int i;

	open_pair(&pair);
	for (i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
		struct side *from = i % 2 ? &pair.far : &pair.near;
		struct side *to = i % 2 ? &pair.near : &pair.far;
		struct dmp_submission send = operation(from, DMP_OP_SEND, lengths[i]);
		struct dmp_submission receive = operation(to, DMP_OP_RECV, lengths[i]);
		struct dmp_completion done;

		send.source_id = from->buffer;
		receive.target_id = to->buffer;
		fill(from->bytes, lengths[i], i);
		memset(to->bytes, 0, lengths[i]);
		run(from, &send, 1, 0);
		done = run(to, &receive, 1, 0);
		CHECK(done.length_bytes == lengths[i] && done.path == DMP_PATH_VERBS);
		CHECK(!memcmp(from->bytes, to->bytes, lengths[i]));
	}
	close_pair(&pair);
}

static void test_bytes_are_written_and_read_where_they_belong(void)
{
	uint32_t access = DMP_ACCESS_REMOTE_READ | DMP_ACCESS_REMOTE_WRITE;
	struct dmp_submission move;
	struct dmp_region_create region;
	struct dmp_completion done;
	struct pair pair;
	uint32_t remote;

	open_pair(&pair);
	region = grant(&pair.far, 5000, BYTES - 6000, access);	/* nothing of it is a page's */
	CHECK(!import(&pair.near, &region, &remote));
	fill(pair.near.bytes, BYTES, 1);
	memset(pair.far.bytes, 0, BYTES);
	move = operation(&pair.near, DMP_OP_WRITE, BYTES - 6010);
	move.flags = DMP_SUBMIT_CHECKSUM;
	move.source_id = pair.near.buffer;
	move.source_offset = 3;
	move.target_id = remote;
	move.target_offset = 10;
	done = run(&pair.near, &move, 1, 0);
	CHECK(done.path == DMP_PATH_VERBS && done.length_bytes == BYTES - 6010);
	CHECK(done.checksum == dmp_crc32c(0, pair.near.bytes + 3, BYTES - 6010));
	CHECK(!memcmp(pair.far.bytes + 5010, pair.near.bytes + 3, BYTES - 6010));
	CHECK(pair.far.bytes[5009] == 0 && pair.far.bytes[BYTES - 1000] == 0);
	memset(pair.near.bytes, 0, BYTES);
	move = operation(&pair.near, DMP_OP_READ, BYTES - 6010);
	move.flags = DMP_SUBMIT_CHECKSUM;
	move.source_id = remote;
	move.source_offset = 10;
	move.target_id = pair.near.buffer;
	done = run(&pair.near, &move, 1, 0);
	CHECK(done.checksum == dmp_crc32c(0, pair.far.bytes + 5010, BYTES - 6010));
	CHECK(!memcmp(pair.near.bytes, pair.far.bytes + 5010, BYTES - 6010));
	close_pair(&pair);
}

static void check_moves(struct pair *pair, uint32_t remote, uint64_t offset, uint64_t length,
			unsigned int seed)
{
	struct dmp_submission move = operation(&pair->near, DMP_OP_WRITE, length);

	fill(pair->near.bytes, BYTES, seed);
	memset(pair->far.bytes, 0, BYTES);
	move.source_id = pair->near.buffer;
	move.target_id = remote;
	move.target_offset = offset;
	run(&pair->near, &move, 1, 0);
	CHECK(!memcmp(pair->far.bytes + 5000 + offset, pair->near.bytes, length));
	CHECK(pair->far.bytes[4999 + offset] == 0 && pair->far.bytes[5000 + offset + length] == 0);
	memset(pair->near.bytes, 0, BYTES);
	move.operation = DMP_OP_READ;
	move.source_id = remote;
	move.source_offset = offset;
	move.target_id = pair->near.buffer;
	move.target_offset = 0;
	run(&pair->near, &move, 1, 0);
	CHECK(!memcmp(pair->far.bytes + 5000 + offset, pair->near.bytes, length));
}

/* An owner whose device registers little at once: no piece crosses from one part to the next. */
static void test_a_region_in_parts_is_one_region(void)
{
	static const uint64_t edges[][2] = {
		{ 0, BYTES - 6000 }, { 65535, 1 }, { 65536, 1 }, { 65535, 2 }, { 100, 65536 },
		{ 65536, 131072 }, { BYTES - 6001, 1 }, { 65530, 2 * 65536 + 12 },
	};
	uint32_t access = DMP_ACCESS_REMOTE_READ | DMP_ACCESS_REMOTE_WRITE, remote, again, i;
	struct dmp_region_create region;
	struct dmp_submission move;
	struct pair pair;

	dmp_verbs_limit_parts(65536 + 100);	/* whole pages of it */
	open_pair(&pair);
	region = grant(&pair.far, 5000, BYTES - 6000, access);
	CHECK(!import(&pair.near, &region, &remote) && !import(&pair.near, &region, &again));
	for (i = 0; i < 8; i++)
		check_moves(&pair, i % 2 ? again : remote, edges[i][0], edges[i][1], i);
	CHECK(!end_region(&pair.near, again, 0));
	check_moves(&pair, remote, 1, 200000, 77);
	CHECK(!end_region(&pair.far, region.region_id, DMP_DESTROY_DRAIN));
	move = operation(&pair.near, DMP_OP_WRITE, 200000);
	move.source_id = pair.near.buffer;
	move.target_id = remote;
	run(&pair.near, &move, 1, -ESTALE);
	region = grant(&pair.far, 5000, BYTES - 6000, access);
	CHECK(!import(&pair.near, &region, &again));
	run(&pair.near, &move, 1, -ESTALE);
	check_moves(&pair, again, 0, BYTES - 6000, 78);
	close_pair(&pair);
	dmp_verbs_limit_parts(~0ull);
}

/* A batch with more operations than fit in flight, then one that announces itself. */
static void test_many_at_once_and_an_immediate(void)
{
	struct dmp_submission moves[200];
	struct dmp_completion event;
	struct dmp_region_create region;
	struct pair pair;
	uint32_t remote, i;

	open_pair(&pair);
	region = grant(&pair.far, 0, BYTES, DMP_ACCESS_REMOTE_WRITE);
	CHECK(!import(&pair.near, &region, &remote));
	fill(pair.near.bytes, BYTES, 9);
	for (i = 0; i < 200; i++) {
		moves[i] = operation(&pair.near, DMP_OP_WRITE, 4096);
		moves[i].source_id = pair.near.buffer;
		moves[i].source_offset = i * 4096;
		moves[i].target_id = remote;
		moves[i].target_offset = (199 - i) * 4096;
	}
	run(&pair.near, moves, 200, 0);
	for (i = 0; i < 200; i++)
		CHECK(!memcmp(pair.far.bytes + (199 - i) * 4096, pair.near.bytes + i * 4096,
			      4096));
	moves[0].operation = DMP_OP_WRITE_IMM;
	moves[0].immediate = 0xabcd0001;
	run(&pair.near, moves, 1, 0);
	event = await_event(&pair.far, DMP_EVENT_WRITE_IMM);
	CHECK(event.immediate == 0xabcd0001 && event.path == DMP_PATH_VERBS);
	close_pair(&pair);
}

static void test_wrong_keys_and_rights_are_refused_at_import(void)
{
	struct dmp_region_create region, wrong;
	struct pair pair;
	uint32_t remote;

	open_pair(&pair);
	region = grant(&pair.far, 0, 4096, DMP_ACCESS_REMOTE_READ);
	wrong = region;
	wrong.key[20] ^= 1;
	CHECK(import(&pair.near, &wrong, &remote) < 0);
	CHECK(!import(&pair.near, &region, &remote));
	CHECK(!end_region(&pair.far, region.region_id, 0));
	CHECK(import(&pair.near, &region, &remote) == -ESTALE);
	close_pair(&pair);
}

/* The region goes; the connection stays, and what comes later is ESTALE. */
static void test_a_revoked_region_does_not_cost_the_connection(void)
{
	struct dmp_region_create region, other;
	struct dmp_submission move;
	struct pair pair;
	uint32_t remote, another;

	open_pair(&pair);
	region = grant(&pair.far, 0, 65536, DMP_ACCESS_REMOTE_WRITE);
	other = grant(&pair.far, 65536, 65536, DMP_ACCESS_REMOTE_WRITE);
	CHECK(!import(&pair.near, &region, &remote) && !import(&pair.near, &other, &another));
	move = operation(&pair.near, DMP_OP_WRITE, 65536);
	move.source_id = pair.near.buffer;
	move.target_id = remote;
	fill(pair.near.bytes, 65536, 5);
	run(&pair.near, &move, 1, 0);
	CHECK(!end_region(&pair.far, region.region_id, DMP_DESTROY_DRAIN));
	memset(pair.far.bytes, 0, 131072);
	run(&pair.near, &move, 1, -ESTALE);
	move.target_id = another;
	run(&pair.near, &move, 1, 0);
	CHECK(pair.far.bytes[1] == 0);
	CHECK(!memcmp(pair.far.bytes + 65536, pair.near.bytes, 65536));
	close_pair(&pair);
}

/* A plane that closes is a lost connection to the other one, and a new one can be made. */
static void test_the_end_is_told_and_a_new_beginning_is_possible(void)
{
	struct pair pair;

	open_pair(&pair);
	session_close(&pair.near.session);
	await_event(&pair.far, DMP_EVENT_ENDPOINT_LOST);
	open_side(&pair.near);
	join(&pair);
	close_pair(&pair);
}

/* The same ACCEPT lets in who knows the secret, after one who does not. */
static void test_a_stranger_is_refused(void)
{
	struct dmp_connect connect;
	struct pair pair;
	pthread_t thread;

	open_pair(&pair);
	connect = calling(&pair);
	connect.secret[0] ^= 1;
	CHECK(!pthread_create(&thread, NULL, let_in, &pair));
	CHECK(dmp_ioctl(pair.near.session.plane, DMP_CONNECT, &connect) == -EACCES);
	connect = calling(&pair);
	CHECK(!dmp_ioctl(pair.near.session.plane, DMP_CONNECT, &connect));
	pthread_join(thread, NULL);
	close_pair(&pair);
}

/* The device's files are the parent's: the child is told so, and the parent goes on. */
static void test_a_fork_is_told_that_it_cannot(void)
{
	struct pair pair;
	int status;
	pid_t child;

	open_pair(&pair);
	child = fork();
	if (child == 0)
		_exit(dmp_verbs_probe() == DMP_VERBS_FORKED && strlen(dmp_verbs_missing()) ? 0 : 1);
	CHECK(waitpid(child, &status, 0) == child && status == 0);
	CHECK(!*dmp_verbs_missing());
	close_pair(&pair);
}

/* Gives up the right to pin more than @bytes. Before a device is opened: its files know who did. */
static void pin_little(rlim_t bytes)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct rlimit limit = { .rlim_cur = bytes, .rlim_max = RLIM_INFINITY };
	struct __user_cap_data_struct data[2];

	CHECK(!setrlimit(RLIMIT_MEMLOCK, &limit));
	CHECK(!syscall(SYS_capget, &header, data));
	data[0].effective &= ~(1u << CAP_IPC_LOCK);
	CHECK(!syscall(SYS_capset, &header, data));
}

/* `--refused ADDRESS`: each rung and what it said; and nothing is broken by it. */
static int be_refused(void)
{
	struct rlimit limit = { .rlim_cur = RLIM_INFINITY, .rlim_max = RLIM_INFINITY };
	struct dmp_region_create region;
	struct dmp_submission move;
	struct pair pair;
	uint32_t remote;

	pin_little(7 << 19);	/* both connections' slots fit, and not a buffer of BYTES besides */
	open_pair(&pair);
	region = grant(&pair.far, 0, 4096, DMP_ACCESS_REMOTE_WRITE);
	CHECK(!import(&pair.near, &region, &remote));
	move = operation(&pair.near, DMP_OP_WRITE, 4096);
	move.source_id = pair.near.buffer;
	move.target_id = remote;
	run(&pair.near, &move, 1, -ENOMEM);
	CHECK(strstr(dmp_verbs_refused(ENOMEM), "ibv_reg_mr: Cannot allocate memory; "
		     "ibv_reg_dmabuf_mr: the memory is no dma-buf"));
	CHECK(!*dmp_verbs_refused(EIO) && !*dmp_verbs_refused(0));
	CHECK(!setrlimit(RLIMIT_MEMLOCK, &limit));
	run(&pair.near, &move, 1, 0);
	close_pair(&pair);
	return 0;
}

static void test_what_is_not_registered_says_why(void)
{
	pid_t child = fork();
	int status;

	if (child == 0) {
		here[strcspn(here, ":")] = '\0';
		execl("/proc/self/exe", "verbs", "--refused", here, NULL);
		_exit(127);
	}
	CHECK(waitpid(child, &status, 0) == child && status == 0);
}

/* ---- without a device */

static void test_each_reason_says_what_to_do(void)
{
	int reason;

	CHECK(!*dmp_verbs_reason(DMP_VERBS_READY));
	for (reason = DMP_VERBS_READY + 1; reason < DMP_VERBS_REASONS; reason++)
		CHECK(!strncmp(dmp_verbs_reason(reason), "missing-", 8));
	CHECK(!*dmp_verbs_reason(DMP_VERBS_REASONS) && !*dmp_verbs_reason(-1));
}

static void test_a_path_that_is_not_there_is_refused(void)
{
	struct session session;
	struct dmp_listen listen;

	session_open(&session, 4);
	listen = listen_on(&session, "127.0.0.1:0");
	listen.flags = DMP_REQUIRE_PATH;
	listen.path = DMP_PATH_VERBS;
	CHECK(dmp_ioctl(session.plane, DMP_LISTEN, &listen) == -ENODEV);
	session_close(&session);
}

/* An address of ours that an RDMA device has. */
static bool find_address(void)
{
	struct ifaddrs *all, *one;
	bool found = false;

	CHECK(!getifaddrs(&all));
	for (one = all; one && !found; one = one->ifa_next) {
		struct dmp_address address = { .length = sizeof(struct sockaddr_in) };
		struct dmp_verbs_door *door;
		char text[INET_ADDRSTRLEN];

		if (!one->ifa_addr || one->ifa_addr->sa_family != AF_INET ||
		    one->ifa_flags & IFF_LOOPBACK)
			continue;
		memcpy(&address.socket, one->ifa_addr, sizeof(struct sockaddr_in));
		if (dmp_verbs_door_open(&address, 1, &door))
			continue;
		dmp_verbs_door_close(door);
		inet_ntop(AF_INET, &((struct sockaddr_in *)one->ifa_addr)->sin_addr, text,
			  sizeof(text));
		snprintf(here, sizeof(here), "%s:0", text);
		found = true;
	}
	freeifaddrs(all);
	return found;
}

int main(int count, char **words)
{
	bool required = count > 1 && !strcmp(words[1], "--require");
	int reason;

	if (count > 2)
		snprintf(here, sizeof(here), "%s:0", words[2]);
	if (count > 2 && !strcmp(words[1], "--refused"))
		return be_refused();
	reason = dmp_verbs_probe();
	test_each_reason_says_what_to_do();
	if (reason != DMP_VERBS_READY)
		test_a_path_that_is_not_there_is_refused();
	if (reason != DMP_VERBS_READY || (!*here && !find_address())) {
		printf("skipped: %s\n", reason == DMP_VERBS_READY ?
		       "missing-device: no address of this machine is an RDMA device's" :
		       dmp_verbs_reason(reason));
		return required;
	}
#define RUN(test) (test(), printf("%s: ok\n", #test), fflush(stdout))
	RUN(test_messages_go_both_ways);
	RUN(test_bytes_are_written_and_read_where_they_belong);
	RUN(test_a_region_in_parts_is_one_region);
	RUN(test_many_at_once_and_an_immediate);
	RUN(test_wrong_keys_and_rights_are_refused_at_import);
	RUN(test_a_revoked_region_does_not_cost_the_connection);
	RUN(test_what_is_not_registered_says_why);
	RUN(test_the_end_is_told_and_a_new_beginning_is_possible);
	RUN(test_a_stranger_is_refused);
	RUN(test_a_fork_is_told_that_it_cannot);
	return 0;
}
