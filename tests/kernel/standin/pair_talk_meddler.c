// SPDX-License-Identifier: MIT
/*
 * pair_talk_meddler.c - a region is taken away by another thread, again and again; see pair_talk.h
 *
 * Side 1's region ends while side 0 moves to and from it and asks for it; each time it comes
 * back in another slot. What is asked meanwhile is granted or not, what is posted ends, and
 * nothing stays registered.
 */
#include <linux/delay.h>
#include <linux/kthread.h>
#include <linux/ktime.h>

#include "pair_talk.h"

#define ROUNDS		12U
#define ROUND_MS	1500

struct meddler {
	struct task_struct *thread;
	struct dmp_memory *memory;
	u32 rounds;
	int error;
};

/* Nobody is told to hurry: who drives the sides may be anywhere. */
static int meddle(void *data)
{
	struct meddler *meddler = data;
	struct side *side = &sides[1];

	while (!kthread_should_stop() && READ_ONCE(meddler->rounds) < ROUNDS && !meddler->error) {
		u64 until_ns = talk_after_ms(ROUND_MS);
		u32 slot = side->region_slot;

		usleep_range(500, 30000);
		WRITE_ONCE(side->region, NULL);
		dmp_pair_revoke(side->pair, slot);
		while (dmp_pair_is_registered(side->pair, slot) && !meddler->error) {
			usleep_range(100, 1000);
			if (ktime_get_ns() > until_ns)
				meddler->error = -ETIME;
		}
		WRITE_ONCE(side->region_slot, slot + 1);
		WRITE_ONCE(side->region, meddler->memory);
		WRITE_ONCE(meddler->rounds, meddler->rounds + 1);
	}
	while (!kthread_should_stop())
		schedule_timeout_interruptible(1);
	return 0;
}

/* The meddler rings nobody when it is done: no sleep until somebody does. */
static int look_around(void)
{
	bool went = false;
	int error = talk_drive(0, &went);

	if (!error)
		error = talk_drive(1, &went);
	if (!error && !went)
		usleep_range(50, 200);
	return error ? error : sides[0].lost;
}

/* Until what is posted is refused. *@posted counts what is under way. */
static int move_until_stale(const struct dmp_pair_remote *remote, const struct place *here,
			    u32 *posted, const struct meddler *meddler)
{
	u64 tag, length;
	int error = 0;

	while (!error && READ_ONCE(meddler->rounds) < ROUNDS) {
		struct dmp_pair_move move = {
			.remote = remote,
			.memory = here->memory,
			.length = talk_roll(here->bytes),
			.write = talk_roll(2) == 1,
		};

		error = dmp_pair_post(sides[0].pair, &move, 0);
		if (!error)
			++*posted;
		else if (error == -EAGAIN)
			error = look_around();
		while (dmp_pair_reap(sides[0].pair, &tag, &length))
			--*posted;
		if (!error)
			error = look_around();
	}
	return error == -ESTALE ? 0 : error;
}

int talk_meddled(void)
{
	struct place here = { 0 }, there = { 0 };
	struct dmp_pair_remote remote = { 0 };
	struct meddler meddler = { 0 };
	u32 posted = 0, granted = 0;
	u64 tag, length;
	int error = talk_make_place(&here, DMP_KIND_PAGES, 100000);

	if (!error)
		error = talk_make_place(&there, DMP_KIND_PAGES, 100000);
	if (error)
		goto out_free;
	talk_open_region(&there, 0, DMP_ACCESS_REMOTE_READ | DMP_ACCESS_REMOTE_WRITE);
	meddler.memory = there.memory;
	meddler.thread = kthread_run(meddle, &meddler, "pair_talk");
	if (IS_ERR(meddler.thread)) {
		error = PTR_ERR(meddler.thread);
		goto out_free;
	}
	while (!error && READ_ONCE(meddler.rounds) < ROUNDS && !READ_ONCE(meddler.error)) {
		error = talk_ask(&remote, "open");
		if (!error) {
			granted++;
			error = move_until_stale(&remote, &here, &posted, &meddler);
		} else if (error == -ESTALE) {
			error = look_around();
		}
		dmp_pair_remote_free(&remote);
	}
	/* The last round may still be under way, and wants side 0 to let go. */
	while (!error && (posted || READ_ONCE(meddler.rounds) < ROUNDS) &&
	       !READ_ONCE(meddler.error)) {
		error = look_around();
		while (dmp_pair_reap(sides[0].pair, &tag, &length))
			posted--;
	}
	kthread_stop(meddler.thread);
	if (!error)
		error = meddler.error ? FAIL(meddler.error, "round %u", meddler.rounds) :
					CHECK(granted > 2);
	if (!error)
		error = talk_stream(1000, 1000);
out_free:
	talk_part(0);
	talk_part(1);
	talk_free_place(&here);
	talk_free_place(&there);
	return error;
}
