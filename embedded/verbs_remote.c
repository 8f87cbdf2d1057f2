// SPDX-License-Identifier: MIT
/*
 * verbs_remote.c - peers' regions: asked for, granted in parts, and void; see verbs.h
 *
 * An owner may need several registrations for a region, so it says how far each answer
 * reaches, and is asked on until the region is whole. What is named then is a row of parts
 * without a gap, in the order of their offsets.
 *
 * An rkey may come back with a later registration. So what is held of an rkey is the number
 * of the answer that first brought it, and REVOKE drops it: a part is void if its rkey is not
 * held, or is held since after the part was granted. The owner answers no question while a
 * REVOKE of its is unsaid, so that one is always ahead of a new GRANT of the same rkey.
 *
 * A REVOKE is obeyed at once and its slot emptied; that it was, REVOKED, is owed until nothing
 * that was posted uses the rkey, and until there is a slot. So two sides that revoke at the
 * same time, with all their slots, do not wait for each other.
 */
#ifdef DMP_VERBS
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "verbs_layout.h"

/* Of one region: 2 MiB each, as a kernel registers small pages, make 1 TiB. */
#define PARTS_MAX	(1u << 19)
/* REVOKED owed at once: an owner has one outstanding for each part it granted. */
#define OWED_MAX	(1u << 20)

/* ---- what is held */

/* Where @rkey is, or would be. */
static __u32 place_of(const struct dmp_verbs *verbs, __u32 rkey)
{
	__u32 first = 0, end = verbs->granted_count;

	while (first < end) {
		__u32 middle = first + (end - first) / 2;

		if (verbs->granted[middle].rkey < rkey)
			first = middle + 1;
		else
			end = middle;
	}
	return first;
}

static bool is_held_at(const struct dmp_verbs *verbs, __u32 place, __u32 rkey)
{
	return place < verbs->granted_count && verbs->granted[place].rkey == rkey;
}

/* It is granted anew: so its owner does not wait to be told, and would take that for the new one. */
static void forget_owed(struct dmp_verbs *verbs, __u32 rkey)
{
	__u32 *owed = verbs->owed + verbs->owed_first, number;

	for (number = verbs->owed_count; number-- != 0;)
		if (owed[number] == rkey)
			memmove(&owed[number], &owed[number + 1],
				(--verbs->owed_count - number) * sizeof(*owed));
}

static int hold(struct dmp_verbs *verbs, const struct dmp_rdma_message *grant)
{
	__u32 place = place_of(verbs, grant->rkey);

	forget_owed(verbs, grant->rkey);
	if (is_held_at(verbs, place, grant->rkey))
		return 0;
	if (verbs->granted_count == verbs->granted_room) {
		__u32 room = verbs->granted_room ? 2 * verbs->granted_room : 16;
		struct dmp_verbs_granted *more = realloc(verbs->granted, room * sizeof(*more));

		if (!more)
			return -ENOMEM;
		verbs->granted = more;
		verbs->granted_room = room;
	}
	memmove(&verbs->granted[place + 1], &verbs->granted[place],
		(verbs->granted_count - place) * sizeof(*verbs->granted));
	verbs->granted_count++;
	verbs->granted[place] = (struct dmp_verbs_granted){ grant->rkey, grant->number };
	return 0;
}

bool dmp_verbs_is_void(const struct dmp_verbs *verbs, const struct dmp_remote_part *part)
{
	__u32 place = place_of(verbs, part->rkey);

	/* Numbers count up, and wrap. */
	return !is_held_at(verbs, place, part->rkey) ||
	       (__s32)(part->grant - verbs->granted[place].first) < 0;
}

static bool is_moving(const struct dmp_verbs *verbs, __u32 rkey)
{
	__u32 number;

	for (number = verbs->pieces_done; number < verbs->piece_count; number++)
		if (verbs->pieces[(verbs->piece_first + number) % DMP_VERBS_MOVES].rkey == rkey)
			return true;
	return false;
}

/* Behind those that are owed already. */
static int owe(struct dmp_verbs *verbs, __u32 rkey)
{
	__u32 *more;

	if (verbs->owed_first + verbs->owed_count == verbs->owed_room &&
	    verbs->owed_first != 0 && verbs->owed_first >= verbs->owed_room / 2) {
		memmove(verbs->owed, verbs->owed + verbs->owed_first,
			verbs->owed_count * sizeof(*verbs->owed));
		verbs->owed_first = 0;
	}
	if (verbs->owed_first + verbs->owed_count == verbs->owed_room) {
		__u32 room = verbs->owed_room ? 2 * verbs->owed_room : 16;

		more = room > OWED_MAX ? NULL : realloc(verbs->owed, room * sizeof(*more));
		if (!more)
			return -ENOMEM;
		verbs->owed = more;
		verbs->owed_room = room;
	}
	verbs->owed[verbs->owed_first + verbs->owed_count++] = rkey;
	return 0;
}

void dmp_verbs_obey(struct dmp_verbs *verbs, __u32 rkey)
{
	__u32 place = place_of(verbs, rkey);

	/* An owner registers at most once for each question, so it has no more to take back. */
	if ((__s32)(verbs->asked - ++verbs->revokes) < 0) {
		dmp_verbs_lose(verbs, -EPROTO);
		return;
	}
	if (is_held_at(verbs, place, rkey))
		memmove(&verbs->granted[place], &verbs->granted[place + 1],
			(--verbs->granted_count - place) * sizeof(*verbs->granted));
	/* Then the end of the connection says it. */
	if (owe(verbs, rkey))
		dmp_verbs_lose(verbs, -ENOMEM);
}

bool dmp_verbs_write_revoked(struct dmp_verbs *verbs)
{
	while (verbs->owed_count != 0) {
		struct dmp_rdma_message message = { .rkey = verbs->owed[verbs->owed_first] };

		/* Its completion makes this a letter that waits. */
		if (is_moving(verbs, message.rkey))
			return false;
		if (dmp_verbs_say(verbs, DMP_RDMA_REVOKED, &message))
			return true;
		verbs->owed_first++;
		verbs->owed_count--;
	}
	verbs->owed_first = 0;
	return false;
}

/* ---- questions and answers */

static void ask(struct dmp_verbs *verbs, __u64 from)
{
	verbs->ask.number = ++verbs->asked;
	verbs->ask.from = from;
	verbs->ask_waits = true;
	verbs->answered = false;
}

static int add_part(struct dmp_verbs *verbs, const struct dmp_rdma_message *grant)
{
	struct dmp_remote_part *more;

	/* A power of two is full: twice as many. */
	if (verbs->part_count == PARTS_MAX)
		return -ENOSPC;
	if ((verbs->part_count & (verbs->part_count - 1)) == 0) {
		__u32 room = verbs->part_count ? 2 * verbs->part_count : 1;

		more = realloc(verbs->parts, room * sizeof(*more));
		if (!more)
			return -ENOMEM;
		verbs->parts = more;
	}
	verbs->parts[verbs->part_count++] = (struct dmp_remote_part){
		.offset = verbs->ask.from,
		.length = grant->covered,
		.base = grant->offset,
		.rkey = grant->rkey,
		.grant = grant->number,
	};
	return hold(verbs, grant);
}

void dmp_verbs_note_answer(struct dmp_verbs *verbs, const struct dmp_rdma_message *grant)
{
	int error = grant->result;

	if (grant->number != verbs->asked || verbs->answered)
		return;		/* nobody waits for it any more */
	if (!error && dmp_rdma_check_grant(grant, verbs->ask.from)) {
		dmp_verbs_lose(verbs, -EPROTO);
		return;
	}
	/* One region has one length and one set of rights, in each answer. */
	if (!error && verbs->part_count != 0 &&
	    (grant->length != verbs->answer.length || grant->access != verbs->answer.access)) {
		dmp_verbs_lose(verbs, -EPROTO);
		return;
	}
	verbs->answer = *grant;
	if (!error)
		error = add_part(verbs, grant);
	if (!error && grant->covered != grant->length - verbs->ask.from) {
		ask(verbs, verbs->ask.from + grant->covered);
		return;
	}
	verbs->answer.result = error;
	verbs->answered = true;
}

int dmp_verbs_ask(struct dmp_fabric *fabric, const __u8 *key, __u32 key_bytes)
{
	struct dmp_verbs *verbs = dmp_verbs_of(fabric);

	if (key_bytes > DMP_KEY_BYTES)
		return -EINVAL;
	if (verbs->lost)
		return verbs->lost;
	verbs->ask = (struct dmp_rdma_message){ .key_bytes = key_bytes };
	memcpy(verbs->ask.key, key, key_bytes);
	free(verbs->parts);
	verbs->parts = NULL;
	verbs->part_count = 0;
	ask(verbs, 0);
	return 0;
}

int dmp_verbs_granted(struct dmp_fabric *fabric, struct dmp_remote *remote)
{
	struct dmp_verbs *verbs = dmp_verbs_of(fabric);

	if (!verbs->answered)
		return verbs->lost ? verbs->lost : -EAGAIN;
	if (verbs->answer.result)
		return verbs->answer.result;
	if (verbs->answer.length != remote->length || verbs->answer.access != remote->access)
		return -EACCES;
	/* Owned by the remote from here. */
	remote->parts = verbs->parts;
	remote->part_count = verbs->part_count;
	verbs->parts = NULL;
	verbs->part_count = 0;
	return 0;
}

const struct dmp_remote_part *dmp_verbs_part(const struct dmp_remote *remote, __u64 offset)
{
	__u32 first = 0, end = remote->part_count;

	/* The last one that does not begin behind it. */
	while (end - first > 1) {
		__u32 middle = first + (end - first) / 2;

		if (remote->parts[middle].offset <= offset)
			first = middle;
		else
			end = middle;
	}
	return &remote->parts[first];
}

#endif /* DMP_VERBS */
