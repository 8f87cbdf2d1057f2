// SPDX-License-Identifier: MIT
/*
 * pair_talk_sides.c - the two sides of pair_talk.ko: connecting, driving, moving; see pair_talk.h
 */
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "pair_talk.h"

#define STALL_S		10

struct side sides[2];
struct dmp_pair_door *door;
struct sockaddr_storage address;
struct rnd_state dice;
char said[512];
static u8 scratch[2][RUN_MAX];

static DECLARE_WAIT_QUEUE_HEAD(rang_wait);
static atomic_t rang;
int talk_fail(int error, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	if (!said[0])
		vsnprintf(said, sizeof(said), format, arguments);
	va_end(arguments);
	return error;
}

u32 talk_roll(u32 most)
{
	return 1 + prandom_u32_state(&dice) % most;
}

/* Byte @position of what side @from sends: any lost, doubled or moved byte shows. */
static u8 byte_of(u32 from, u64 position)
{
	return (u8)((position * 2654435761u + from * 977) >> 11);
}

static void ring(struct dmp_pair_ringer *ringer)
{
	atomic_inc(&rang);
	wake_up(&rang_wait);
}

static int admit(struct dmp_pair_admission *admission, const u8 *key, u32 key_bytes,
		 struct dmp_pair_admitted *admitted)
{
	struct side *side = container_of(admission, struct side, admission);

	if (key_bytes != 4 || memcmp(key, "open", 4))
		return -EACCES;
	admitted->memory = READ_ONCE(side->region);
	if (!admitted->memory)
		return -ESTALE;
	dmp_memory_get(admitted->memory);
	admitted->offset = side->region_offset;
	admitted->length = side->region_length;
	admitted->access = side->region_access;
	admitted->slot = side->region_slot;
	return 0;
}

/* ---- connecting */

struct taking {
	struct task_struct *thread;
	struct dmp_pair *pair;
	u64 deadline_ns;
	int error;
};

u64 talk_after_ms(u32 ms)
{
	return ktime_get_ns() + (u64)ms * NSEC_PER_MSEC;
}

static int take(void *data)
{
	struct taking *taking = data;
	struct sockaddr_storage from;

	taking->error = dmp_pair_door_take(door, taking->deadline_ns, &from, &taking->pair);
	while (!kthread_should_stop())
		schedule_timeout_interruptible(1);
	return 0;
}

static void adopt(u32 number, struct dmp_pair *pair)
{
	struct side *side = &sides[number];

	*side = (struct side){
		.pair = pair, .ringer = { .ring = ring }, .admission = { .admit = admit },
	};
	dmp_pair_watch(pair, &side->ringer);
	dmp_pair_trust(pair, &side->admission);
}

int talk_meet(void)
{
	struct taking taking = { .deadline_ns = talk_after_ms(8000) };
	struct dmp_pair *pair = NULL;
	int error;

	taking.thread = kthread_run(take, &taking, "pair_talk");
	if (IS_ERR(taking.thread))
		return PTR_ERR(taking.thread);
	error = dmp_pair_dial(&address, talk_after_ms(8000), &pair);
	kthread_stop(taking.thread);
	if (!error && !taking.error) {
		adopt(0, pair);
		adopt(1, taking.pair);
		return 0;
	}
	if (!error)
		dmp_pair_close(pair);
	if (!taking.error)
		dmp_pair_close(taking.pair);
	return FAIL(error ? error : taking.error, "dial %d, take %d", error, taking.error);
}

void talk_part(u32 number)
{
	if (sides[number].pair)
		dmp_pair_close(sides[number].pair);
	sides[number].pair = NULL;
}

/* ---- driving */

/* Some of what is to be sent, in runs of any length; whether anything went. */
static bool put_some(u32 number)
{
	struct side *side = &sides[number];
	u32 length = min_t(u64, talk_roll(RUN_MAX), side->to_put - side->put), at;
	struct dmp_run run = { .address = scratch[number], .length = length };
	ssize_t count;

	if (!length)
		return false;
	for (at = 0; at < length; at++)
		scratch[number][at] = byte_of(number, side->put + at);
	count = dmp_pair_put(side->pair, &run);
	if (count > 0)
		side->put += count;
	if (talk_roll(4) == 1 || side->put == side->to_put)
		dmp_pair_flush(side->pair);
	return count > 0;
}

static int get_some(u32 number, bool *went)
{
	struct side *side = &sides[number];
	struct dmp_run run = { .address = scratch[number], .length = talk_roll(RUN_MAX) };
	ssize_t count = dmp_pair_get(side->pair, &run);
	u32 at;

	for (at = 0; (ssize_t)at < count; at++)
		if (scratch[number][at] != byte_of(1 - number, side->got + at))
			return FAIL(-EILSEQ, "byte %llu of %u", side->got + at, number);
	if (count > 0) {
		side->got += count;
		*went = true;
	}
	return 0;
}

int talk_drive(u32 number, bool *went)
{
	struct side *side = &sides[number];
	int error;

	if (!side->pair)
		return 0;
	error = dmp_pair_serve(side->pair);
	if (error && !side->lost) {
		side->lost = error;
		*went = true;
	}
	error = get_some(number, went);
	if (!error && put_some(number))
		*went = true;
	return error;
}

/* Until one of them rings, unless it did after @before, when it was served. */
static int sleep_on(u32 which, int before)
{
	bool rest = true;
	u32 number;

	for (number = 0; number < 2; number++)
		if (sides[number].pair && which >> number & 1 && !sides[number].lost)
			rest &= dmp_pair_rest(sides[number].pair);
	if (!rest)
		return 0;
	if (!wait_event_timeout(rang_wait, atomic_read(&rang) != before, STALL_S * HZ))
		return FAIL(-ETIME, "nobody rang; put %llu %llu, got %llu %llu", sides[0].put,
			    sides[1].put, sides[0].got, sides[1].got);
	return 0;
}

int talk_turn(u32 which)
{
	int before = atomic_read(&rang), error = 0;
	bool went = false;
	u32 number;

	for (number = 0; number < 2 && !error; number++)
		if (which >> number & 1)
			error = talk_drive(number, &went);
	cond_resched();
	if (error || went)
		return error;
	return sleep_on(which, before);
}

static bool is_through(void)
{
	u32 number;

	for (number = 0; number < 2; number++)
		if (sides[number].put < sides[number].to_put ||
		    sides[number].got < sides[1 - number].put)
			return false;
	return true;
}

/* So many bytes more each way. */
int talk_stream(u64 there, u64 back)
{
	int error = 0;

	sides[0].to_put += there;
	sides[1].to_put += back;
	while (!error && !is_through() && !sides[0].lost && !sides[1].lost)
		error = talk_turn(3);
	if (!error && !is_through())
		return FAIL(-ECONNRESET, "lost %d %d", sides[0].lost, sides[1].lost);
	return error;
}

/* ---- memories and moves */

static struct dmp_memory *make_memory(u32 kind, u64 bytes)
{
	struct dmp_buffer_create create = {
		.size = sizeof(create), .kind = kind, .length_bytes = bytes,
		.policy = DMP_POLICY_ANY, .node = -1,
	};
	struct dmp_policy policy = { .policy = DMP_POLICY_ANY, .node = -1 };
	unsigned long user;

	switch (kind) {
	case DMP_KIND_COHERENT:
		return dmp_coherent_create(&create, &policy);
	case DMP_KIND_USER:
		/* Not at the start of a page. It goes with the process. */
		user = vm_mmap(NULL, 0, bytes + PAGE_SIZE, PROT_READ | PROT_WRITE,
			       MAP_ANONYMOUS | MAP_PRIVATE, 0);
		if (IS_ERR_VALUE(user))
			return ERR_PTR(user);
		create.user_addr = user + 776;
		return dmp_user_create(&create);
	default:
		return dmp_pages_create(&create, &policy);
	}
}

/* Random bytes in @memory and in what it is compared with. */
static int fill(struct dmp_memory *memory, u8 *shadow, u64 bytes)
{
	prandom_bytes_state(&dice, shadow, bytes);
	return dmp_copy_to(memory, 0, shadow, bytes);
}

static int compare(struct dmp_memory *memory, const u8 *shadow, u64 bytes)
{
	u8 *now = vmalloc(bytes);
	u64 at = 0;
	int error = now ? dmp_copy_from(memory, 0, now, bytes) : -ENOMEM;

	while (!error && at < bytes && now[at] == shadow[at])
		at++;
	vfree(now);
	return error || at == bytes ? error : FAIL(-EILSEQ, "byte %llu of %llu", at, bytes);
}

/* Side 0 asks side 1 for what "open" opens. */
int talk_ask(struct dmp_pair_remote *remote, const char *key)
{
	int error = dmp_pair_ask(sides[0].pair, key, 4);

	while (!error) {
		error = dmp_pair_granted(sides[0].pair, remote);
		if (error != -EAGAIN)
			return error;
		error = talk_turn(3);
	}
	return error;
}

/* One slice after another until @move is done: posted, reaped, in order. */
int talk_move_all(struct dmp_pair_move *move)
{
	u64 length = move->length, posted = 0, reaped = 0, tag, part, next = 0, tags = 0;
	int error = 0;

	while (reaped < length && !error) {
		bool went = false;

		while (posted < length) {
			struct dmp_pair_move slice = *move;

			slice.local += posted;
			slice.offset += posted;
			slice.length = length - posted;
			error = dmp_pair_post(sides[0].pair, &slice, tags);
			if (error)
				break;
			tags++;
			posted += slice.length;
			went = true;
		}
		if (error && error != -EAGAIN)
			return error;
		error = 0;
		while (dmp_pair_reap(sides[0].pair, &tag, &part)) {
			if (tag != next++)
				return FAIL(-EILSEQ, "tag %llu", tag);
			reaped += part;
			went = true;
		}
		if (!went)
			error = talk_turn(3);
		if (!error && sides[0].lost)
			return sides[0].lost;
	}
	return error;
}

int talk_make_place(struct place *place, u32 kind, u64 bytes)
{
	struct dmp_memory *memory = make_memory(kind, bytes);

	if (IS_ERR(memory))
		return FAIL(PTR_ERR(memory), "kind %u", kind);
	place->memory = memory;
	place->bytes = bytes;
	place->shadow = vmalloc(bytes);
	return place->shadow ? fill(memory, place->shadow, bytes) : -ENOMEM;
}

void talk_free_place(struct place *place)
{
	if (place->memory)
		dmp_memory_put(place->memory);
	vfree(place->shadow);
	*place = (struct place){ 0 };
}

void talk_open_region(const struct place *place, u64 offset, u32 access)
{
	sides[1].region = place->memory;
	sides[1].region_offset = offset;
	sides[1].region_length = place->bytes - offset;
	sides[1].region_access = access;
	sides[1].region_slot = 7;
}

/* Slices of any size and place, there and back, beside a stream; then both are looked at. */
static int move_about(const struct dmp_pair_remote *remote, struct place *here,
		      struct place *there, u64 offset, u32 slices)
{
	int error = 0;

	while (slices-- && !error) {
		u64 length = talk_roll(min(here->bytes, remote->length));
		struct dmp_pair_move move = {
			.remote = remote,
			.memory = here->memory,
			.local = talk_roll(here->bytes - length + 1) - 1,
			.offset = talk_roll(remote->length - length + 1) - 1,
			.length = length,
			.write = talk_roll(2) == 1,
		};
		u8 *mine = here->shadow + move.local, *its = there->shadow + offset + move.offset;

		sides[0].to_put += talk_roll(3000);
		sides[1].to_put += talk_roll(3000);
		error = talk_move_all(&move);
		memcpy(move.write ? its : mine, move.write ? mine : its, length);
	}
	if (!error)
		error = talk_stream(0, 0);
	if (!error)
		error = compare(here->memory, here->shadow, here->bytes);
	return error ? error : compare(there->memory, there->shadow, there->bytes);
}

/* Revoked; gone within a second, and then nothing is granted. */
int talk_end_region(u32 drivers)
{
	u64 until_ns = talk_after_ms(1500);
	int error = 0;

	sides[1].region = NULL;
	if (!dmp_pair_revoke(sides[1].pair, 7))
		return FAIL(-EILSEQ, "nothing was registered");
	while (!error && dmp_pair_is_registered(sides[1].pair, 7)) {
		if (ktime_get_ns() > until_ns)
			return FAIL(-ETIME, "still registered");
		error = talk_turn(drivers);
	}
	return error;
}

int talk_with_places(u32 kind, u32 kind_there, u64 bytes, u64 bytes_there, u64 offset,
		       u32 slices, u32 parts)
{
	const u32 both = DMP_ACCESS_REMOTE_READ | DMP_ACCESS_REMOTE_WRITE;
	struct dmp_pair_remote remote = { 0 };
	struct place here = { 0 }, there = { 0 };
	int error = talk_make_place(&here, kind, bytes);

	if (!error)
		error = talk_make_place(&there, kind_there, bytes_there);
	if (!error) {
		talk_open_region(&there, offset, both);
		error = talk_ask(&remote, "open");
	}
	if (!error)
		error = CHECK(remote.count == parts && remote.length == bytes_there - offset &&
			      remote.access == both);
	if (!error)
		error = move_about(&remote, &here, &there, offset, slices);
	if (!error)
		error = talk_end_region(3);
	if (sides[0].pair && here.memory && !error)
		dmp_pair_forget(sides[0].pair, here.memory);
	dmp_pair_remote_free(&remote);
	if (error) {	/* what is posted still has the memory */
		talk_part(0);
		talk_part(1);
	}
	talk_free_place(&here);
	talk_free_place(&there);
	return error;
}
