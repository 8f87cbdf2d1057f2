// SPDX-License-Identifier: MIT
/*
 * client.c - the user's side of a channel, for any plane
 *
 * It trusts the plane no more than the plane trusts it: an impossible index is -EPROTO.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#include "libdmaplane.h"
#include "ring.h"

static int enter(struct dmp_client *client, struct dmp_enter *argument)
{
	if (client->plane)
		return dmp_ioctl(client->plane, DMP_ENTER, argument);
	return ioctl((int)client->fd, DMP_ENTER, argument) == 0 ? 0 : -errno;
}

/* Copies up to @room completions out and tells the plane. */
static int take(struct dmp_client *client, struct dmp_completion *completions, uint32_t room)
{
	struct dmp_ring_control *control = client->control;
	struct dmp_ring ring = { .own_word = &control->complete_head,
				 .other_word = &control->complete_tail,
				 .own = control->complete_head,
				 .slots = client->completion_slots };
	uint32_t ready, first, slot;
	int error = dmp_ring_ready(&ring, &ready);

	if (error)
		return error;
	if (ready > room)
		ready = room;
	if (ready == 0)
		return 0;
	slot = ring.own & (ring.slots - 1);
	first = ring.slots - slot < ready ? ring.slots - slot : ready;
	memcpy(completions, &client->completions[slot], first * sizeof(*completions));
	memcpy(completions + first, client->completions, (ready - first) * sizeof(*completions));
	dmp_ring_advance(&ring, ready);
	return (int)ready;
}

/* Writes up to @count submissions behind the tail; returns how many. Not yet told. */
static int put(struct dmp_client *client, const struct dmp_submission *submissions, uint32_t count)
{
	struct dmp_ring_control *control = client->control;
	struct dmp_ring ring = { .own_word = &control->submit_tail,
				 .other_word = &control->submit_head,
				 .own = control->submit_tail,
				 .slots = client->slots };
	uint32_t room, first, slot;
	int error = dmp_ring_room(&ring, &room);

	if (error)
		return error;
	if (count > room)
		count = room;
	if (count == 0)
		return 0;
	slot = ring.own & (ring.slots - 1);
	first = ring.slots - slot < count ? ring.slots - slot : count;
	memcpy(&client->submissions[slot], submissions, first * sizeof(*submissions));
	memcpy(client->submissions, submissions + first, (count - first) * sizeof(*submissions));
	dmp_ring_advance(&ring, count);
	return (int)count;
}

int dmp_client_exchange(struct dmp_client *client, const struct dmp_submission *submissions,
			uint32_t count, uint32_t *pushed, struct dmp_completion *completions,
			uint32_t room, uint32_t wait_count, uint64_t deadline_ns)
{
	int error = 0, written = 0, taken;
	struct dmp_enter argument = { .size = sizeof(argument),
				      .channel_id = client->channel_id,
				      .wait_count = wait_count,
				      .deadline_ns = deadline_ns };

	*pushed = 0;
	if (count != 0) {
		written = put(client, submissions, count);
		if (written < 0)
			return written;
		argument.submit_count = (uint32_t)written;
		if (written == 0 && wait_count == 0)
			error = -EAGAIN;
	}
	if (written != 0 || wait_count != 0) {
		error = enter(client, &argument);
		/* What was not accepted is taken back: nobody reads behind submit_head but we. */
		if (written != 0)
			client->control->submit_tail =
				__atomic_load_n(&client->control->submit_head, __ATOMIC_ACQUIRE);
		*pushed = argument.accepted;
	}
	taken = room != 0 ? take(client, completions, room) : 0;
	if (taken < 0)
		return taken;
	return error != 0 && *pushed == 0 && taken == 0 ? error : taken;
}

int dmp_client_arm(struct dmp_client *client, uint32_t count)
{
	struct dmp_ring_control *control = client->control;

	__atomic_store_n(&control->event_armed, count != 0 ? count : 1, __ATOMIC_RELAXED);
	/* Pairs with the fence in dmp_channel_tell_locked: it sees it armed, or we see the tail. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return (int)(__atomic_load_n(&control->complete_tail, __ATOMIC_ACQUIRE) -
		     control->complete_head);
}
