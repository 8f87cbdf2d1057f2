// SPDX-License-Identifier: MIT
/*
 * storm.c - threads that make, use and destroy the same objects of one plane at once
 *
 *	storm [--seed N] [--seconds N]
 *
 * Every thread does one thing, over and over, to objects that others destroy meanwhile.
 * lockdep and KASAN judge the module; the storm judges answers (an errno of the contract,
 * never a surprise), and the end: as many completions as submissions, everything can be
 * freed, nothing is left, and a copy still arrives.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "device.h"

#define BUFFERS		12u
#define LENGTH_MAX	(512u << 10)
#define SLOTS		32u
#define WAIT_NS_MAX	3000000u
#define LEFT_MAX	4096u

struct storm {
	struct dmp_plane *plane;
	atomic_bool over;
	uint64_t seed;
	pthread_mutex_t lock;
	/* protected by lock */
	struct dmp_buffer_create buffers[BUFFERS];	/* buffer_id 0: none */
	uint32_t left[LEFT_MAX];			/* busy when they were to be destroyed */
	uint32_t left_count;
	/* its id changes; the old mapping stays until the end of the round */
	struct dmp_channel_create channel;
	uint8_t *rings;
};

struct thread {
	struct storm *storm;
	void (*turn)(struct storm *storm, uint64_t *random);
	const char *name;
	uint64_t random;
	uint64_t turns;
	pthread_t id;
};

static int checked(const char *what, int status)
{
	if (status < 0 && !device_errno_is_known(status))
		FAIL("%s answered %d", what, status);
	return status;
}

static uint64_t soon(uint64_t *random)
{
	return dmp_now_ns() + random_below(random, WAIT_NS_MAX);
}

static struct dmp_buffer_create some_buffer(struct storm *storm, uint64_t *random)
{
	struct dmp_buffer_create buffer;

	pthread_mutex_lock(&storm->lock);
	buffer = storm->buffers[random_below(random, BUFFERS)];
	pthread_mutex_unlock(&storm->lock);
	return buffer;
}

static void leave(struct storm *storm, uint32_t id)
{
	pthread_mutex_lock(&storm->lock);
	if (storm->left_count == LEFT_MAX)
		FAIL("%u buffers stay busy", LEFT_MAX);
	storm->left[storm->left_count++] = id;
	pthread_mutex_unlock(&storm->lock);
}

/* ---- what threads do */

static void make_and_destroy(struct storm *storm, uint64_t *random)
{
	static const uint32_t kinds[] = { DMP_KIND_PAGES, DMP_KIND_PAGES, DMP_KIND_COHERENT,
					  DMP_KIND_HUGE };
	struct dmp_destroy request = { .size = sizeof(request) };
	struct dmp_buffer_create new, old;
	uint32_t place = random_below(random, BUFFERS);
	int status;

	if (checked("create", device_buffer(storm->plane, &new, kinds[random_below(random, 4)],
					    1 + random_below(random, LENGTH_MAX))))
		return;
	pthread_mutex_lock(&storm->lock);
	old = storm->buffers[place];
	storm->buffers[place] = new;
	pthread_mutex_unlock(&storm->lock);
	if (!old.buffer_id)
		return;
	request.id = old.buffer_id;
	request.flags = random_below(random, 2) ? DMP_DESTROY_DRAIN : 0;
	request.deadline_ns = soon(random);
	status = checked("destroy", dmp_ioctl(storm->plane, DMP_BUFFER_DESTROY, &request));
	if (status)
		leave(storm, old.buffer_id);
}

static void map_and_touch(struct storm *storm, uint64_t *random)
{
	struct dmp_buffer_create buffer = some_buffer(storm, random);
	void *bytes;

	if (!buffer.buffer_id || checked("mmap", dmp_mmap(storm->plane, buffer.map_bytes,
							  PROT_READ | PROT_WRITE,
							  buffer.map_offset, &bytes)))
		return;
	memset(bytes, 1, 64);
	((volatile uint8_t *)bytes)[buffer.map_bytes - 1]++;
	if (random_below(random, 8) == 0 && fork() == 0) {
		/* The child has the mapping or not, and goes: either way it counts no more. */
		struct dmp_statistics now;

		device_statistics(storm->plane, &now);
		_exit(0);
	}
	if (checked("munmap", dmp_munmap(storm->plane, bytes)))
		FAIL("munmap failed");
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
}

static void ask(struct storm *storm, uint64_t *random)
{
	struct dmp_buffer_create buffer = some_buffer(storm, random);
	struct dmp_buffer_query query = { .size = sizeof(query), .buffer_id = buffer.buffer_id,
					  .flags = random_below(random, 2) };
	struct dmp_buffer_sync sync = { .size = sizeof(sync), .buffer_id = buffer.buffer_id,
					.flags = 1 + random_below(random, 7), .length_bytes = 1 };
	struct dmp_channel_query channel = { .size = sizeof(channel) };
	struct dmp_histogram histogram = { .size = sizeof(histogram), .scope = DMP_SCOPE_CHANNEL };
	struct dmp_statistics now;

	channel.channel_id = histogram.id = storm->channel.channel_id;
	checked("query", dmp_ioctl(storm->plane, DMP_BUFFER_QUERY, &query));
	checked("sync", dmp_ioctl(storm->plane, DMP_BUFFER_SYNC, &sync));
	checked("channel query", dmp_ioctl(storm->plane, DMP_CHANNEL_QUERY, &channel));
	checked("histogram", dmp_ioctl(storm->plane, DMP_HISTOGRAM, &histogram));
	checked("statistics", device_statistics(storm->plane, &now));
	checked("poll", dmp_poll(storm->plane, soon(random)));
	device_charged_bytes();
}

static void share(struct storm *storm, uint64_t *random)
{
	struct dmp_buffer_create buffer = some_buffer(storm, random);
	struct dmp_buffer_import bought;
	void *bytes;
	int fd = checked("export", device_export(storm->plane, buffer.buffer_id,
						 random_below(random, 4)));
	int status;

	if (fd < 0)
		return;
	status = checked("import", device_import(storm->plane, fd, &bought));
	if (random_below(random, 2)) {
		bytes = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
		if (bytes != MAP_FAILED)
			munmap(bytes, 4096);
	}
	close(fd);
	if (status)
		return;
	if (checked("destroy of an import", device_destroy(storm->plane, DMP_BUFFER_DESTROY,
							   bought.buffer_id)))
		leave(storm, bought.buffer_id);
}

static void fill_row(uint64_t *random, uint32_t source_id, uint32_t target_id,
		     struct dmp_submission *row)
{
	memset(row, 0, sizeof(*row));
	row->operation = (uint16_t)random_below(random, 4);
	row->flags = random_below(random, 4) ? 0 : (uint16_t)random_below(random, 4);
	row->deadline_ns = random_below(random, 4) ? 0 : soon(random);
	row->user_data = random_below(random, 8);
	if (row->operation == DMP_OP_COPY)
		row->source_id = source_id;
	if (row->operation == DMP_OP_COPY || row->operation == DMP_OP_FILL) {
		row->target_id = target_id;
		row->length_bytes = 4u * (1 + random_below(random, LENGTH_MAX / 8));
	}
}

/* A channel of its own, used as it should be, with buffers that vanish. */
static void copy(struct storm *storm, uint64_t *random)
{
	struct dmp_submission rows[SLOTS];
	struct dmp_completion done[SLOTS];
	struct device_rings rings;
	uint32_t pushed, i, round;

	if (checked("channel", device_rings_open(storm->plane, &rings, SLOTS,
						 1 + random_below(random, 3))))
		return;
	for (round = 0; round < 8; round++) {
		for (i = 0; i < SLOTS; i++)
			fill_row(random, some_buffer(storm, random).buffer_id,
				 some_buffer(storm, random).buffer_id, &rows[i]);
		checked("exchange", dmp_client_exchange(&rings.client, rows, SLOTS, &pushed, done,
							SLOTS, random_below(random, SLOTS),
							soon(random)));
	}
	if (checked("close of a channel", device_rings_close(storm->plane, &rings)))
		FAIL("a channel of one's own cannot be destroyed");
}

/* All threads of this kind enter one channel; its indices are nobody's. */
static void enter_shared(struct storm *storm, uint64_t *random)
{
	struct dmp_enter enter = { .size = sizeof(enter), .submit_count = 1 + random_below(random, 4),
				   .wait_count = random_below(random, 3),
				   .deadline_ns = soon(random) };
	struct dmp_cancel cancel = { .size = sizeof(cancel), .deadline_ns = soon(random) };
	uint32_t source_id = some_buffer(storm, random).buffer_id;
	uint32_t target_id = some_buffer(storm, random).buffer_id;
	struct dmp_ring_control *control;
	struct dmp_submission *row;

	pthread_mutex_lock(&storm->lock);
	enter.channel_id = cancel.channel_id = storm->channel.channel_id;
	if (storm->rings) {
		control = (void *)storm->rings;
		row = (void *)(storm->rings + storm->channel.submissions_offset);
		fill_row(random, source_id, target_id, &row[control->submit_tail % SLOTS]);
		control->submit_tail++;
		control->complete_head = control->complete_tail;
	}
	pthread_mutex_unlock(&storm->lock);
	checked("enter", dmp_ioctl(storm->plane, DMP_ENTER, &enter));
	if (!random_below(random, 4)) {
		cancel.flags = random_below(random, 2) ? DMP_CANCEL_ALL : 0;
		cancel.user_data = cancel.flags ? 0 : random_below(random, 8);
		checked("cancel", dmp_ioctl(storm->plane, DMP_CANCEL, &cancel));
	}
}

static void replace_shared(struct storm *storm, uint64_t *random)
{
	struct dmp_destroy request = { .size = sizeof(request) };
	struct dmp_channel_create new = { .size = sizeof(new), .slots = SLOTS, .workers = 2 };
	uint32_t old_id;
	uint8_t *old;
	void *rings;
	int status;

	sleep_us(random_below(random, 30000));
	if (checked("channel", dmp_ioctl(storm->plane, DMP_CHANNEL_CREATE, &new)) ||
	    checked("mmap", dmp_mmap(storm->plane, new.map_bytes, PROT_READ | PROT_WRITE,
				     new.map_offset, &rings)))
		return;
	pthread_mutex_lock(&storm->lock);
	old_id = storm->channel.channel_id;
	old = storm->rings;
	storm->channel = new;
	storm->rings = rings;
	pthread_mutex_unlock(&storm->lock);
	if (!old_id)
		return;
	request.id = old_id;
	request.flags = random_below(random, 2) ? DMP_DESTROY_DRAIN : 0;
	request.deadline_ns = soon(random);
	status = checked("destroy of a channel",
			 dmp_ioctl(storm->plane, DMP_CHANNEL_DESTROY, &request));
	/* Draining ran out of time: without it nothing can refuse. */
	request.flags = 0;
	request.deadline_ns = 0;
	if (status && checked("destroy of a channel",
			      dmp_ioctl(storm->plane, DMP_CHANNEL_DESTROY, &request)))
		FAIL("a channel cannot be destroyed");
	if (old && dmp_munmap(storm->plane, old))
		FAIL("rings cannot be unmapped");
}

/* Another plane of this process, closed with everything in it. */
static void close_full_plane(struct storm *storm, uint64_t *random)
{
	struct dmp_buffer_create buffer;
	struct device_rings rings;
	struct dmp_submission row = { .operation = DMP_OP_FILL, .length_bytes = LENGTH_MAX };
	struct dmp_completion done;
	struct dmp_plane *plane;
	uint32_t pushed;
	void *bytes;

	(void)storm;
	if (checked("open", dmp_open(&plane)))
		return;
	if (!checked("create", device_buffer(plane, &buffer, DMP_KIND_PAGES, LENGTH_MAX)) &&
	    !checked("mmap", dmp_mmap(plane, LENGTH_MAX, PROT_READ, buffer.map_offset, &bytes)) &&
	    !checked("channel", device_rings_open(plane, &rings, SLOTS, 1))) {
		row.target_id = buffer.buffer_id;
		checked("exchange", dmp_client_exchange(&rings.client, &row, 1, &pushed, &done, 1,
							random_below(random, 2), soon(random)));
	}
	dmp_close(plane);
}

/* ---- the storm */

static void *thread_main(void *argument)
{
	struct thread *thread = argument;

	while (!atomic_load(&thread->storm->over)) {
		thread->turn(thread->storm, &thread->random);
		thread->turns++;
	}
	return NULL;
}

/* An import holds what it was exported from, so the order matters. */
static void free_left(struct storm *storm)
{
	uint32_t before, i;

	while (storm->left_count) {
		before = storm->left_count;
		for (i = before; i-- > 0;) {
			int status = device_destroy(storm->plane, DMP_BUFFER_DESTROY,
						    storm->left[i]);

			if (!status)
				storm->left[i] = storm->left[--storm->left_count];
			else if (status != -EBUSY)
				FAIL("destroy of buffer %u answered %d", storm->left[i], status);
		}
		if (storm->left_count == before)
			FAIL("%u buffers stay busy with nothing that holds them", before);
	}
}

static void free_everything(struct storm *storm)
{
	struct dmp_statistics now;
	uint32_t i;

	if (storm->channel.channel_id &&
	    device_destroy(storm->plane, DMP_CHANNEL_DESTROY, storm->channel.channel_id))
		FAIL("the shared channel cannot be destroyed");
	if (storm->rings && dmp_munmap(storm->plane, storm->rings))
		FAIL("the shared rings cannot be unmapped");
	for (i = 0; i < BUFFERS; i++)
		if (storm->buffers[i].buffer_id)
			leave(storm, storm->buffers[i].buffer_id);
	free_left(storm);
	if (device_statistics(storm->plane, &now))
		FAIL("no statistics");
	if (now.buffers || now.channels || now.mappings || now.buffer_bytes)
		FAIL("left over: %llu buffers, %llu bytes, %llu channels, %llu mappings",
		     (unsigned long long)now.buffers, (unsigned long long)now.buffer_bytes,
		     (unsigned long long)now.channels, (unsigned long long)now.mappings);
	if (now.submissions != now.completions)
		FAIL("%llu submissions, %llu completions", (unsigned long long)now.submissions,
		     (unsigned long long)now.completions);
	printf("storm: %llu operations, %llu errors, %llu cancelled, %llu MiB\n",
	       (unsigned long long)now.completions, (unsigned long long)now.errors,
	       (unsigned long long)now.cancelled, (unsigned long long)now.bytes >> 20);
}

static void run(struct storm *storm, uint64_t seconds)
{
	struct thread threads[] = {
		{ .turn = make_and_destroy, .name = "made" },
		{ .turn = make_and_destroy, .name = "made" },
		{ .turn = map_and_touch, .name = "mapped" },
		{ .turn = ask, .name = "asked" },
		{ .turn = share, .name = "shared" },
		{ .turn = copy, .name = "used a channel" },
		{ .turn = enter_shared, .name = "entered" },
		{ .turn = enter_shared, .name = "entered" },
		{ .turn = replace_shared, .name = "replaced the channel" },
		{ .turn = close_full_plane, .name = "closed a full plane" },
	};
	const uint32_t count = sizeof(threads) / sizeof(threads[0]);
	uint32_t i;

	for (i = 0; i < count; i++) {
		threads[i].storm = storm;
		threads[i].random = storm->seed + i;
		if (pthread_create(&threads[i].id, NULL, thread_main, &threads[i]))
			FAIL("no thread");
	}
	sleep_us(seconds * 1000000);
	atomic_store(&storm->over, true);
	for (i = 0; i < count; i++) {
		pthread_join(threads[i].id, NULL);
		printf("storm: %s %llu times\n", threads[i].name,
		       (unsigned long long)threads[i].turns);
	}
	while (waitpid(-1, NULL, 0) > 0)
		;
	free_everything(storm);
}

int main(int count, char **words)
{
	struct storm storm = { .lock = PTHREAD_MUTEX_INITIALIZER, .seed = dmp_now_ns() };
	uint64_t seconds = 10;
	int i;

	for (i = 1; i + 1 < count; i += 2) {
		if (!strcmp(words[i], "--seed"))
			storm.seed = strtoull(words[i + 1], NULL, 0);
		else if (!strcmp(words[i], "--seconds"))
			seconds = strtoull(words[i + 1], NULL, 0);
		else
			break;
	}
	if (i != count) {
		fprintf(stderr, "usage: storm [--seed N] [--seconds N]\n");
		return 2;
	}
	printf("storm: seed %llu\n", (unsigned long long)storm.seed);
	fflush(stdout);
	if (dmp_open(&storm.plane))
		FAIL("no plane");
	run(&storm, seconds);
	if (dmp_close(storm.plane))
		FAIL("close failed");
	printf("storm: over\n");
	return 0;
}
