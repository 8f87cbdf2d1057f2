// SPDX-License-Identifier: MIT
/*
 * test_channel_laws.c - what holds for a channel when several things happen at once
 *
 * One invariant a function. The first ones drive core's machine by hand, so that the
 * order of events is exact; the others go through the commands.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "channel_embedded.h"
#include "core/check.h"
#include "libdmaplane.h"

#define SLOTS 8u
#define BATCH_BYTES (256u << 10)
#define LARGE_BYTES (64u << 20)

/* ---- the machine alone */

struct machine {
	struct dmp_channel channel;
	struct dmp_ring_control control;
	struct dmp_submission submissions[SLOTS];
	struct dmp_completion completions[2 * SLOTS];
	__u64 memory[1024];
};

static void machine_init(struct machine *machine)
{
	memset(machine, 0, sizeof(*machine));
	CHECK(sizeof(machine->memory) >= dmp_channel_bytes(2 * SLOTS));
	CHECK(!dmp_channel_init(&machine->channel, machine->memory, &machine->control,
				machine->submissions, SLOTS, machine->completions, 2 * SLOTS,
				NULL));
}

static void machine_accept(struct machine *machine, struct dmp_submission submission)
{
	__u32 first, accepted;

	machine->submissions[machine->control.submit_tail % SLOTS] = submission;
	machine->control.submit_tail++;
	CHECK(!dmp_channel_accept(&machine->channel, 1, 0, &first, &accepted) && accepted == 1);
}

static void test_L1_a_small_operation_is_not_told_behind_a_large_one(void)
{
	static struct machine machine;
	__u32 indices[SLOTS];

	machine_init(&machine);
	machine_accept(&machine, (struct dmp_submission){ .operation = DMP_OP_NOP });
	machine_accept(&machine, (struct dmp_submission){ .operation = DMP_OP_COPY,
							  .length_bytes = 1ull << 40 });
	machine_accept(&machine, (struct dmp_submission){ .operation = DMP_OP_COPY,
							  .length_bytes = ~0ull });
	/* What is taken together is told together: the small one goes first, alone. */
	CHECK(dmp_channel_take(&machine.channel, indices, SLOTS, BATCH_BYTES) == 1);
	dmp_channel_finish(&machine.channel, indices[0], &(struct dmp_outcome){ 0 }, 0);
	CHECK(dmp_channel_flush(&machine.channel) == 1);
	CHECK(dmp_channel_take(&machine.channel, indices, SLOTS, BATCH_BYTES) == 1);
	CHECK(dmp_channel_take(&machine.channel, indices, SLOTS, BATCH_BYTES) == 1);
}

static void test_what_is_handed_on_is_taken_however_long_it_is(void)
{
	static struct machine machine;
	__u32 indices[SLOTS];
	int number;

	machine_init(&machine);
	for (number = 0; number < 4; number++) {
		machine_accept(&machine, (struct dmp_submission){ .operation = DMP_OP_WRITE,
								  .endpoint_id = 1,
								  .length_bytes = 1ull << 40 });
		/* The last one is summed here before it goes: alone, and after the others. */
		machine.channel.operations[machine.channel.queue_last].handed_on = number < 3;
	}
	CHECK(dmp_channel_take(&machine.channel, indices, SLOTS, BATCH_BYTES) == 3);
	CHECK(dmp_channel_take(&machine.channel, indices, SLOTS, BATCH_BYTES) == 1);
}

static void test_cancel_counts_every_operation_of_a_chain(void)
{
	static struct machine machine;
	struct dmp_cancellation cancellation;
	int number;

	machine_init(&machine);
	for (number = 0; number < 3; number++)
		machine_accept(&machine,
			       (struct dmp_submission){
				       .operation = DMP_OP_NOP,
				       .flags = number < 2 ? DMP_SUBMIT_LINK : 0 });
	dmp_channel_cancel(&machine.channel, true, 0, 0, &cancellation);
	CHECK(cancellation.found == 3 && cancellation.cancelled == 3);
	CHECK(dmp_channel_cancel_done(&machine.channel, &cancellation));
	CHECK(dmp_channel_flush(&machine.channel) == 3);
}

static void test_cancel_waits_only_for_what_it_found(void)
{
	static struct machine machine;
	struct dmp_cancellation earlier, ours, same;
	__u32 index;

	machine_init(&machine);
	machine_accept(&machine, (struct dmp_submission){ .operation = DMP_OP_NOP, .user_data = 1 });
	CHECK(dmp_channel_take(&machine.channel, &index, 1, BATCH_BYTES) == 1);
	machine_accept(&machine, (struct dmp_submission){ .operation = DMP_OP_NOP, .user_data = 2 });
	dmp_channel_cancel(&machine.channel, false, 1, 0, &earlier);
	CHECK(earlier.pending == 1);
	dmp_channel_cancel_abandon(&machine.channel, &earlier);
	dmp_channel_cancel(&machine.channel, false, 2, 0, &ours);
	CHECK(ours.found == 1 && ours.cancelled == 1);
	CHECK(dmp_channel_cancel_done(&machine.channel, &ours));
	/* L5: a second fence for what still runs does wait. */
	dmp_channel_cancel(&machine.channel, false, 1, 0, &same);
	CHECK(same.found == 1 && !dmp_channel_cancel_done(&machine.channel, &same));
	dmp_channel_finish(&machine.channel, index,
			   &(struct dmp_outcome){ .result = -ECANCELED }, 0);
	CHECK(dmp_channel_cancel_done(&machine.channel, &same));
}

/* ---- through the commands */

struct session {
	struct dmp_plane *plane;
	struct dmp_client client;
};

static void session_open(struct session *session, uint32_t flags, int eventfd)
{
	struct dmp_channel_create create = { .size = sizeof(create), .flags = flags,
					     .slots = SLOTS, .eventfd = eventfd };
	void *rings;

	CHECK(!dmp_open(&session->plane));
	CHECK(!dmp_ioctl(session->plane, DMP_CHANNEL_CREATE, &create));
	CHECK(!dmp_mmap(session->plane, create.map_bytes, PROT_READ | PROT_WRITE,
			create.map_offset, &rings));
	session->client = (struct dmp_client){
		.control = rings,
		.submissions = (void *)((char *)rings + create.submissions_offset),
		.completions = (void *)((char *)rings + create.completions_offset),
		.slots = SLOTS,
		.completion_slots = 2 * SLOTS,
		.channel_id = create.channel_id,
		.plane = session->plane,
	};
}

static uint32_t buffer_create(struct session *session, uint64_t length)
{
	struct dmp_buffer_create create = { .size = sizeof(create), .length_bytes = length,
					    .node = -1 };

	CHECK(!dmp_ioctl(session->plane, DMP_BUFFER_CREATE, &create));
	return create.buffer_id;
}

/* Submits @count of them; waits for @wait completions, and takes what is there. */
static int exchange(struct session *session, const struct dmp_submission *submissions,
		    uint32_t count, uint32_t wait)
{
	struct dmp_completion completions[2 * SLOTS];
	uint32_t pushed;
	int taken = dmp_client_exchange(&session->client, submissions, count, &pushed, completions,
					wait ? 2 * SLOTS : 0, wait,
					dmp_now_ns() + 5000000000ull);

	CHECK(pushed == count);
	return taken;
}

static void test_the_callers_eventfd_stays_as_it_was(void)
{
	struct dmp_submission nop = { .operation = DMP_OP_NOP };
	int fd = eventfd(0, EFD_CLOEXEC), flags = fcntl(fd, F_GETFL);
	uint64_t value = ~0ull - 1;
	struct session session;

	session_open(&session, DMP_CHANNEL_EVENTFD, fd);
	CHECK(fcntl(fd, F_GETFL) == flags);
	/* And a full counter does not stop the worker. */
	CHECK(write(fd, &value, sizeof(value)) == sizeof(value));
	CHECK(dmp_client_arm(&session.client, 1) == 0);
	CHECK(exchange(&session, &nop, 1, 1) == 1);
	CHECK(dmp_client_arm(&session.client, 1) == 0);
	CHECK(exchange(&session, &nop, 1, 1) == 1);
	CHECK(read(fd, &value, sizeof(value)) == sizeof(value) && value == ~0ull - 1);
	CHECK(dmp_client_arm(&session.client, 1) == 0);
	CHECK(exchange(&session, &nop, 1, 1) == 1);
	CHECK(read(fd, &value, sizeof(value)) == sizeof(value) && value == 1);
	CHECK(!dmp_close(session.plane));
	close(fd);
}

static void test_a_channel_bound_to_a_node_names_no_cpu(void)
{
	struct dmp_channel_create create = { .size = sizeof(create), .slots = SLOTS,
					     .flags = DMP_CHANNEL_BIND_NODE, .cpu = 1 };
	struct dmp_plane *plane;

	CHECK(!dmp_open(&plane));
	CHECK(dmp_ioctl(plane, DMP_CHANNEL_CREATE, &create) == -EINVAL);
	CHECK(!dmp_close(plane));
}

static void test_what_is_in_flight_is_counted_once_and_at_once(void)
{
	struct dmp_statistics statistics = { .size = sizeof(statistics) };
	struct dmp_buffer_query query = { .size = sizeof(query) };
	struct dmp_submission copy = { .operation = DMP_OP_COPY,
				       .target_offset = LARGE_BYTES / 2,
				       .length_bytes = LARGE_BYTES / 2 };
	struct session session;

	session_open(&session, 0, 0);
	copy.source_id = copy.target_id = query.buffer_id = buffer_create(&session, LARGE_BYTES);
	CHECK(exchange(&session, &copy, 1, 0) == 0);
	CHECK(!dmp_ioctl(session.plane, DMP_STATISTICS, &statistics));
	CHECK(!dmp_ioctl(session.plane, DMP_BUFFER_QUERY, &query));
#if DMP_OBSERVE
	CHECK(statistics.submissions == 1 && statistics.batches == 1);
#endif
	CHECK(query.operations <= 1);
	CHECK(exchange(&session, NULL, 0, 1) == 1);
	CHECK(!dmp_ioctl(session.plane, DMP_BUFFER_QUERY, &query) && query.operations == 0);
	CHECK(!dmp_ioctl(session.plane, DMP_STATISTICS, &statistics));
#if DMP_OBSERVE
	CHECK(statistics.submissions == 1 && statistics.completions == 1);
#endif
	CHECK(!dmp_close(session.plane));
}

/* The indices run over 32 bits: a wish of long ago must not hide one of today. */
static void test_a_waiter_that_left_leaves_no_wish_behind(void)
{
	struct dmp_enter enter = { .size = sizeof(enter), .wait_count = 1,
				   .deadline_ns = 1 };
	struct dmp_submission copies[2] = { { .operation = DMP_OP_COPY,
					      .length_bytes = 120u << 10 } };
	struct dmp_embedded_channel *channel;
	struct session session;
	uint64_t start_ns;

	session_open(&session, DMP_CHANNEL_SPIN, 0);
	copies[0].source_id = buffer_create(&session, 120u << 10);
	copies[0].target_id = buffer_create(&session, 120u << 10);
	copies[1] = copies[0];
	enter.channel_id = session.client.channel_id;
	CHECK(dmp_ioctl(session.plane, DMP_ENTER, &enter) == -ETIMEDOUT);
	channel = (void *)dmp_table_find(&session.plane->table, enter.channel_id);
	pthread_mutex_lock(&channel->lock);
	channel->machine.complete.own = 0x7fffffffu;
	channel->control->complete_tail = channel->control->complete_head = 0x7fffffffu;
	pthread_mutex_unlock(&channel->lock);
	start_ns = dmp_now_ns();
	CHECK(exchange(&session, copies, 2, 1) == 2);
	CHECK(dmp_now_ns() - start_ns < 4000000000ull);
	CHECK(!dmp_close(session.plane));
}

/* A caller who executes while the worker sleeps goes home in time all the same. */
static void test_L1_a_wait_ends_at_its_deadline_however_much_is_queued(void)
{
	struct dmp_channel_create create = { .size = sizeof(create), .slots = 32768 };
	struct dmp_enter enter = { .size = sizeof(enter), .submit_count = 32768,
				   .wait_count = 32768 };
	struct dmp_submission fill = { .operation = DMP_OP_FILL, .length_bytes = BATCH_BYTES };
	struct dmp_submission *submissions;
	struct dmp_ring_control *control;
	struct session session;
	uint64_t start_ns;
	void *rings;
	uint32_t slot;

	CHECK(!dmp_open(&session.plane));
	fill.target_id = buffer_create(&session, BATCH_BYTES);
	CHECK(!dmp_ioctl(session.plane, DMP_CHANNEL_CREATE, &create));
	CHECK(!dmp_mmap(session.plane, create.map_bytes, PROT_READ | PROT_WRITE,
			create.map_offset, &rings));
	control = rings;
	submissions = (void *)((char *)rings + create.submissions_offset);
	for (slot = 0; slot < 32768; slot++)
		submissions[slot] = fill;
	control->submit_tail = 32768;
	usleep(20000);		/* until the worker sleeps */
	enter.channel_id = create.channel_id;
	start_ns = dmp_now_ns();
	enter.deadline_ns = start_ns + 5000000u;
	CHECK(!dmp_ioctl(session.plane, DMP_ENTER, &enter) && enter.accepted == 32768);
	/* Cut short, unless this machine is done with all 8 GiB at once. */
	CHECK(enter.unread < 32768 || dmp_now_ns() - start_ns < 100000000u);
	CHECK(!dmp_close(session.plane));
}

static uint32_t watched;

static void *watch(void *argument)
{
	struct dmp_plane *plane = argument;
	struct dmp_channel_query query = { .size = sizeof(query) };
	struct dmp_statistics statistics = { .size = sizeof(statistics),
					     .scope = DMP_SCOPE_CHANNEL };

	while ((query.channel_id = __atomic_load_n(&watched, __ATOMIC_RELAXED)) != 0) {
		statistics.id = query.channel_id;
		if (!dmp_ioctl(plane, DMP_CHANNEL_QUERY, &query))
			CHECK(query.state == DMP_STATE_LIVE || query.state == DMP_STATE_DRAINING ||
			      query.state == DMP_STATE_DEAD);
		dmp_ioctl(plane, DMP_STATISTICS, &statistics);
	}
	return NULL;
}

/* For the thread sanitizer: state and mappings are read under the lock that guards them. */
static void test_a_query_may_race_with_destroy_and_mmap(void)
{
	struct dmp_channel_create create = { .size = sizeof(create), .slots = SLOTS };
	struct dmp_destroy destroy = { .size = sizeof(destroy) };
	struct dmp_plane *plane;
	pthread_t thread;
	void *rings;
	int round;

	CHECK(!dmp_open(&plane));
	for (round = 0; round < 50; round++) {
		CHECK(!dmp_ioctl(plane, DMP_CHANNEL_CREATE, &create));
		__atomic_store_n(&watched, create.channel_id, __ATOMIC_RELAXED);
		if (round == 0)
			CHECK(!pthread_create(&thread, NULL, watch, plane));
		CHECK(!dmp_mmap(plane, create.map_bytes, PROT_READ | PROT_WRITE,
				create.map_offset, &rings));
		usleep(100);
		destroy.id = create.channel_id;
		CHECK(!dmp_ioctl(plane, DMP_CHANNEL_DESTROY, &destroy));
		CHECK(!dmp_munmap(plane, rings));
	}
	__atomic_store_n(&watched, 0, __ATOMIC_RELAXED);
	CHECK(!pthread_join(thread, NULL));
	CHECK(!dmp_close(plane));
}

static void *keep_busy(void *argument)
{
	struct dmp_submission nop = { .operation = DMP_OP_NOP };
	struct session *session = argument;

	while (__atomic_load_n(&watched, __ATOMIC_RELAXED) != 0)
		CHECK(exchange(session, &nop, 1, 1) == 1);
	return NULL;
}

static void test_completions_never_outrun_submissions(void)
{
	struct dmp_statistics statistics = { .size = sizeof(statistics) };
	struct session session;
	pthread_t thread;
	int number;

	session_open(&session, 0, 0);
	__atomic_store_n(&watched, 1, __ATOMIC_RELAXED);
	CHECK(!pthread_create(&thread, NULL, keep_busy, &session));
	for (number = 0; number < 100000; number++) {
		CHECK(!dmp_ioctl(session.plane, DMP_STATISTICS, &statistics));
		CHECK(statistics.completions <= statistics.submissions);
	}
	__atomic_store_n(&watched, 0, __ATOMIC_RELAXED);
	CHECK(!pthread_join(thread, NULL));
	CHECK(!dmp_close(session.plane));
}

int main(int argc, char **argv)
{
	static void (*const tests[])(void) = {
		test_L1_a_small_operation_is_not_told_behind_a_large_one,
		test_what_is_handed_on_is_taken_however_long_it_is,
		test_cancel_counts_every_operation_of_a_chain,
		test_cancel_waits_only_for_what_it_found,
		test_the_callers_eventfd_stays_as_it_was,
		test_a_channel_bound_to_a_node_names_no_cpu,
		test_what_is_in_flight_is_counted_once_and_at_once,
		test_a_waiter_that_left_leaves_no_wish_behind,
		test_a_query_may_race_with_destroy_and_mmap,
		test_completions_never_outrun_submissions,
		test_L1_a_wait_ends_at_its_deadline_however_much_is_queued,
	};
	size_t count = sizeof(tests) / sizeof(tests[0]), number;

	/* With an argument: only that one. */
	for (number = 0; number < count; number++)
		if (argc < 2 || (size_t)atoi(argv[1]) == number)
			tests[number]();
	return 0;
}
