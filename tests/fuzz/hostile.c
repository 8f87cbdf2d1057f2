// SPDX-License-Identifier: MIT
/*
 * hostile.c - a user who writes what he likes into the rings
 *
 * The mapping of a channel is the user's to write: his own words, the plane's words,
 * entries, reserved bytes, at any moment, while a worker runs. One thread writes and
 * enters; a second one writes control words at the same time, so that what the plane
 * checked can have changed by the time it is used. Some writes are sensible, or the
 * plane would refuse everything at the door.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#include "fuzz.h"

#define BUFFERS			4u
#define BUFFER_BYTES		16384u
#define BUFFER_BYTES_LARGE	(12u << 20)	/* the first two: copies that workers share */
#define WRITES_PER_CHANNEL	2000u
#define WRITES_PER_REPORT	100000u
#define CONTROL_WORDS		(sizeof(struct dmp_ring_control) / 4)

/* Shared by the two threads; @lock is held around a burst and while it is replaced. */
struct victim {
	pthread_mutex_t lock;
	_Atomic uint32_t *words;	/* the mapping, or NULL */
	atomic_bool finished;
	atomic_ullong writes;		/* of the second thread */
	uint64_t random;
};

struct rings {
	uint32_t channel_id, slots, completion_slots;
	uint64_t map_bytes;
	uint8_t *mapping;
	struct dmp_ring_control *control;
	struct dmp_submission *submissions;
	struct dmp_completion *completions;
};

/* Ring memory is shared with threads of the plane: single words, atomically. */
static void put(void *word, uint32_t value)
{
	__atomic_store_n((uint32_t *)word, value, __ATOMIC_RELEASE);
}

static uint32_t get(const void *word)
{
	return __atomic_load_n((const uint32_t *)word, __ATOMIC_ACQUIRE);
}

static void put_bytes(void *target, const void *source, uint32_t length_bytes)
{
	uint32_t i, word;

	for (i = 0; i < length_bytes; i += 4) {
		memcpy(&word, (const uint8_t *)source + i, 4);
		put((uint8_t *)target + i, word);
	}
}

static void *second_thread(void *argument)
{
	struct victim *victim = argument;
	struct fuzz fuzz = { .random = victim->random };
	int i;

	while (!atomic_load(&victim->finished)) {
		pthread_mutex_lock(&victim->lock);
		for (i = 0; victim->words && i < 32; i++) {
			uint32_t index = fuzz_below(&fuzz, 4) ? 32 * fuzz_below(&fuzz, 3) :
								fuzz_below(&fuzz, CONTROL_WORDS);
			uint32_t value = (uint32_t)fuzz_odd_value(&fuzz);

			if (fuzz_below(&fuzz, 2))
				value = atomic_load(&victim->words[index]) +
					fuzz_below(&fuzz, 5) - 2;
			atomic_store(&victim->words[index], value);
			atomic_fetch_add(&victim->writes, 1);
		}
		pthread_mutex_unlock(&victim->lock);
		/* The first thread gets a turn with indices nobody else moves. */
		for (i = 0; i < 64 && !atomic_load(&victim->finished); i++)
			(void)dmp_now_ns();
	}
	return NULL;
}

static void open_rings(struct fuzz *fuzz, struct rings *rings)
{
	struct dmp_channel_create create = { .size = sizeof(create) };
	void *address;

	create.slots = 1u << fuzz_below(fuzz, 8);
	create.workers = 1 + fuzz_below(fuzz, 2);
	if (!fuzz_below(fuzz, 4)) {
		create.flags |= DMP_CHANNEL_EVENTFD;
		create.eventfd = fuzz->eventfd;
	}
	if (fuzz_call(fuzz, DMP_CHANNEL_CREATE, &create, sizeof(create), &create))
		FAIL("no channel");
	if (dmp_mmap(fuzz->plane, create.map_bytes, PROT_READ | PROT_WRITE, create.map_offset,
		     &address))
		FAIL("no rings");
	rings->channel_id = create.channel_id;
	rings->slots = create.slots;
	rings->completion_slots = 2 * create.slots;
	rings->map_bytes = create.map_bytes;
	rings->mapping = address;
	rings->control = address;
	rings->submissions = (void *)(rings->mapping + create.submissions_offset);
	rings->completions = (void *)(rings->mapping + create.completions_offset);
}

static void close_rings(struct fuzz *fuzz, struct rings *rings)
{
	struct dmp_destroy request = { .size = sizeof(request), .id = rings->channel_id };
	int status;

	status = fuzz_call(fuzz, DMP_CHANNEL_DESTROY, &request, sizeof(request), NULL);
	if (status)
		FAIL("a channel cannot be destroyed: %d", status);
	status = dmp_munmap(fuzz->plane, rings->mapping);
	if (status)
		FAIL("rings cannot be unmapped: %d", status);
}

static void make_submission(struct fuzz *fuzz, struct dmp_submission *entry)
{
	uint32_t words[sizeof(*entry) / 4], i;

	memset(entry, 0, sizeof(*entry));
	entry->operation = (uint16_t)fuzz_below(fuzz, 5);
	entry->flags = fuzz_below(fuzz, 4) ? 0 : (uint16_t)fuzz_below(fuzz, 16);
	entry->user_data = fuzz_random(fuzz);
	if (entry->operation == DMP_OP_COPY)
		entry->source_id = fuzz_buffer_id(fuzz);
	if (entry->operation == DMP_OP_COPY || entry->operation == DMP_OP_FILL) {
		entry->target_id = fuzz_buffer_id(fuzz);
		entry->length_bytes = 4 * (1 + fuzz_below(fuzz, BUFFER_BYTES / 8));
		entry->target_offset = 4 * fuzz_below(fuzz, BUFFER_BYTES / 8);
	}
	if (entry->operation == DMP_OP_COPY && !fuzz_below(fuzz, 256)) {
		entry->source_id = fuzz->buffers[0].id;
		entry->target_id = fuzz->buffers[1].id;
		entry->target_offset = 0;
		entry->length_bytes = BUFFER_BYTES_LARGE;
	}
	if (!fuzz_below(fuzz, 8))
		entry->deadline_ns = fuzz_below(fuzz, 2) ? dmp_now_ns() + fuzz_below(fuzz, 200000) :
							   fuzz_near_deadline(fuzz);
	memcpy(words, entry, sizeof(words));
	for (i = fuzz_below(fuzz, 3); i > 0; i--)
		words[fuzz_below(fuzz, sizeof(*entry) / 4)] = (uint32_t)fuzz_odd_value(fuzz);
	memcpy(entry, words, sizeof(words));
}

static void write_something(struct fuzz *fuzz, struct rings *rings)
{
	struct dmp_ring_control *control = rings->control;
	struct dmp_submission entry;
	uint32_t value = (uint32_t)fuzz_odd_value(fuzz);

	switch (fuzz_below(fuzz, 12)) {
	case 0:
		put(&control->submit_tail, value);
		break;
	case 1:
		put(&control->complete_head, value);
		break;
	case 2:
		put(&control->submit_head, value);
		break;
	case 3:
		put(&control->complete_tail, value);
		break;
	case 4:
		put(&control->event_armed, value);
		break;
	case 5:
		put((uint32_t *)control + fuzz_below(fuzz, CONTROL_WORDS), value);
		break;
	case 6:
		put(&rings->completions[fuzz_below(fuzz, rings->completion_slots)], value);
		break;
	case 7:
		put(rings->mapping + 4 * fuzz_below(fuzz, (uint32_t)(rings->map_bytes / 4)), value);
		break;
	case 8:	/* a step like a well-behaved user's, from wherever things are */
		put(&control->complete_head, get(&control->complete_tail));
		break;
	case 9:
		put(&control->submit_tail, get(&control->submit_head) +
		    fuzz_below(fuzz, rings->slots + 2));
		break;
	default:
		make_submission(fuzz, &entry);
		put_bytes(&rings->submissions[fuzz_below(fuzz, rings->slots)], &entry,
			  sizeof(entry));
		break;
	}
}

static void use_rings(struct fuzz *fuzz, struct rings *rings)
{
	struct dmp_enter enter = { .size = sizeof(enter), .channel_id = rings->channel_id };
	struct dmp_cancel cancel = { .size = sizeof(cancel), .flags = DMP_CANCEL_ALL };
	struct dmp_client client = {
		.control = rings->control,
		.submissions = rings->submissions,
		.completions = rings->completions,
		.slots = rings->slots,
		.completion_slots = rings->completion_slots,
		.channel_id = rings->channel_id,
		.plane = fuzz->plane,
		.fd = -1,
	};
	struct dmp_completion done[8];
	struct dmp_submission entry;
	uint32_t pushed;
	int status;

	if (!fuzz_below(fuzz, 4)) {
		enter.submit_count = fuzz_below(fuzz, rings->slots + 1);
		enter.wait_count = fuzz_below(fuzz, 8) ? 0 : fuzz_below(fuzz, 4);
		enter.deadline_ns = fuzz_near_deadline(fuzz);
		fuzz_call(fuzz, DMP_ENTER, &enter, sizeof(enter), &enter);
	}
	if (!fuzz_below(fuzz, 32)) {
		/* The library's own client must survive rings that somebody else writes. */
		make_submission(fuzz, &entry);
		status = dmp_client_exchange(&client, &entry, 1, &pushed, done, 8, 1,
					     fuzz_near_deadline(fuzz));
		if (status > 8)
			FAIL("the client copied %d completions into room for 8", status);
	}
	if (!fuzz_below(fuzz, 64)) {
		cancel.channel_id = rings->channel_id;
		cancel.deadline_ns = fuzz_near_deadline(fuzz);
		fuzz_call(fuzz, DMP_CANCEL, &cancel, sizeof(cancel), &cancel);
	}
	if (!fuzz_below(fuzz, 256))
		dmp_poll(fuzz->plane, fuzz_near_deadline(fuzz));
}

static void make_buffers(struct fuzz *fuzz)
{
	uint32_t i;

	for (i = 0; i < BUFFERS; i++) {
		struct dmp_buffer_create create = { .size = sizeof(create), .node = -1 };

		create.length_bytes = i < 2 ? BUFFER_BYTES_LARGE : BUFFER_BYTES;
		if (fuzz_call(fuzz, DMP_BUFFER_CREATE, &create, sizeof(create), &create))
			FAIL("no buffer");
		fuzz->buffers[fuzz->buffer_count++] = (struct fuzz_buffer){
			create.buffer_id, create.map_offset, create.length_bytes };
	}
}

void fuzz_hostile(struct fuzz *fuzz, uint64_t writes)
{
	struct victim victim = { .random = fuzz_random(fuzz) };
	struct rings rings;
	pthread_t thread;
	uint64_t i;

	make_buffers(fuzz);
	pthread_mutex_init(&victim.lock, NULL);
	if (pthread_create(&thread, NULL, second_thread, &victim))
		FAIL("no second thread");
	open_rings(fuzz, &rings);
	for (i = 1; i <= writes; i++) {
		write_something(fuzz, &rings);
		use_rings(fuzz, &rings);
		if (i % WRITES_PER_CHANNEL == 0) {
			/* Every other channel is attacked by both threads. */
			pthread_mutex_lock(&victim.lock);
			victim.words = NULL;
			close_rings(fuzz, &rings);
			open_rings(fuzz, &rings);
			if (i / WRITES_PER_CHANNEL % 2)
				victim.words = (_Atomic uint32_t *)(void *)rings.mapping;
			pthread_mutex_unlock(&victim.lock);
		}
		if (i % WRITES_PER_REPORT == 0) {
			printf("fuzz: %llu ring writes, %llu more by the second thread\n",
			       (unsigned long long)i,
			       (unsigned long long)atomic_load(&victim.writes));
			fflush(stdout);
		}
	}
	pthread_mutex_lock(&victim.lock);
	victim.words = NULL;
	pthread_mutex_unlock(&victim.lock);
	atomic_store(&victim.finished, true);
	pthread_join(thread, NULL);
	pthread_mutex_destroy(&victim.lock);
	close_rings(fuzz, &rings);
}
