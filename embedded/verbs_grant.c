// SPDX-License-Identifier: MIT
/*
 * verbs_grant.c - regions named by key, granted by registration, and taken back; see verbs.h
 *
 * An rkey may come back with a later registration. So what is void is said with a number:
 * all grants of the rkey that were answered before the REVOKE. The owner registers nothing
 * new under an rkey it has revoked before REVOKED came or the registration was dropped.
 */
#ifdef DMP_VERBS
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>

#include "verbs_layout.h"

#define LET_GO_NS	500000000u	/* the peer has so long to stop using what was revoked */

/* ---- ours */

static void drop_grant(struct dmp_verbs *verbs, __u32 number)
{
	verbs->library->dereg_mr(verbs->grants[number].mr);
	verbs->grants[number] = verbs->grants[--verbs->grant_count];
}

static struct dmp_verbs_grant *find_grant(struct dmp_verbs *verbs,
					  const struct dmp_region *region)
{
	__u32 number;

	for (number = 0; number < verbs->grant_count; number++)
		if (!verbs->grants[number].revoked &&
		    verbs->grants[number].slot == region->slot &&
		    verbs->grants[number].generation == region->generation)
			return &verbs->grants[number];
	return NULL;
}

/* Registers the region as it was granted. The kernel wants the place in a page kept. */
static int add_grant(struct dmp_verbs *verbs, struct dmp_region *region, char *address,
		     struct dmp_verbs_grant **grant)
{
	int access = IBV_ACCESS_LOCAL_WRITE;
	struct dmp_verbs_grant *more;
	struct ibv_mr *mr;

	if (!(region->access & DMP_ACCESS_REMOTE_WRITE))
		access = 0;
	else
		access |= IBV_ACCESS_REMOTE_WRITE;
	if (region->access & DMP_ACCESS_REMOTE_READ)
		access |= IBV_ACCESS_REMOTE_READ;
	more = realloc(verbs->grants, (verbs->grant_count + 1) * sizeof(*more));
	if (!more)
		return -ENOMEM;
	verbs->grants = more;
	mr = verbs->library->reg_mr_iova(verbs->pd, address, region->length,
					 (uintptr_t)address % DMP_VERBS_PAGE, access);
	if (!mr)
		return errno ? -errno : -ENOMEM;
	__atomic_store_n(&region->registered, true, __ATOMIC_SEQ_CST);
	*grant = &verbs->grants[verbs->grant_count++];
	**grant = (struct dmp_verbs_grant){
		.mr = mr, .slot = region->slot, .generation = region->generation,
	};
	return 0;
}

static bool answer(struct dmp_verbs *verbs, const struct dmp_rdma_message *question)
{
	struct dmp_rdma_message message = { .number = question->number };
	struct dmp_verbs_grant *grant = NULL;
	struct dmp_region *region;
	char *address;

	message.result = dmp_region_admit(verbs->plane, question->key, question->key_bytes, 0, 0,
					  0, &region, &address);
	if (!message.result) {
		grant = find_grant(verbs, region);
		if (!grant)
			message.result = add_grant(verbs, region, address, &grant);
		message.access = region->access;
		message.length = region->length;
		dmp_region_release(verbs->plane, region);
	}
	if (grant) {
		message.rkey = grant->mr->rkey;
		message.offset = (uintptr_t)address % DMP_VERBS_PAGE;
	}
	return dmp_verbs_say(verbs, DMP_RDMA_GRANT, &message) != -EAGAIN;
}

bool dmp_verbs_revoke(struct dmp_fabric *fabric, __u32 slot, __u64 now_ns)
{
	struct dmp_verbs *verbs = dmp_verbs_of(fabric);
	bool any = false;
	__u32 number;

	for (number = 0; number < verbs->grant_count; number++) {
		struct dmp_verbs_grant *grant = &verbs->grants[number];

		if (grant->slot != slot || grant->revoked)
			continue;
		grant->revoked = true;
		grant->due_ns = now_ns + LET_GO_NS;
		any = true;
	}
	return any;
}

bool dmp_verbs_is_registered(struct dmp_fabric *fabric, __u32 slot, __u64 now_ns)
{
	struct dmp_verbs *verbs = dmp_verbs_of(fabric);
	bool any = false;
	__u32 number;

	for (number = verbs->grant_count; number-- != 0;) {
		struct dmp_verbs_grant *grant = &verbs->grants[number];

		if (grant->slot != slot || !grant->revoked)
			continue;
		if (verbs->lost || now_ns >= grant->due_ns)
			drop_grant(verbs, number);
		else
			any = true;
	}
	return any;
}

static void let_go(struct dmp_verbs *verbs, __u32 rkey)
{
	__u32 number;

	for (number = verbs->grant_count; number-- != 0;)
		if (verbs->grants[number].told && verbs->grants[number].mr->rkey == rkey)
			drop_grant(verbs, number);
	/* channel->lock is held: no plane->lock. Who misses this looks again in milliseconds. */
	if (__atomic_load_n(&verbs->plane->drainers, __ATOMIC_SEQ_CST) != 0)
		pthread_cond_broadcast(&verbs->plane->released);
}

/* ---- the peer's */

static struct dmp_verbs_granted *find_granted(const struct dmp_verbs *verbs, __u32 rkey)
{
	__u32 number;

	for (number = 0; number < verbs->granted_count; number++)
		if (verbs->granted[number].rkey == rkey)
			return &verbs->granted[number];
	return NULL;
}

bool dmp_verbs_is_void(const struct dmp_verbs *verbs, const struct dmp_remote *remote)
{
	const struct dmp_verbs_granted *granted = find_granted(verbs, remote->rkey);

	return !granted || remote->grant <= granted->revoked;
}

static bool is_moving(const struct dmp_verbs *verbs, __u32 rkey)
{
	__u32 number;

	for (number = verbs->pieces_done; number < verbs->piece_count; number++)
		if (verbs->pieces[(verbs->piece_first + number) % DMP_VERBS_MOVES].rkey == rkey)
			return true;
	return false;
}

/* False: pieces of ours are still on their way there, or there is no slot for the answer. */
static bool obey(struct dmp_verbs *verbs, __u32 rkey)
{
	struct dmp_verbs_granted *granted = find_granted(verbs, rkey);
	struct dmp_rdma_message message = { .rkey = rkey };

	if (granted)
		granted->revoked = verbs->asked;
	return !is_moving(verbs, rkey) &&
	       dmp_verbs_say(verbs, DMP_RDMA_REVOKED, &message) != -EAGAIN;
}

static void note_answer(struct dmp_verbs *verbs, const struct dmp_rdma_message *message)
{
	struct dmp_verbs_granted *more;

	if (message->number != verbs->asked || verbs->answered)
		return;		/* nobody waits for it any more */
	verbs->answer = *message;
	verbs->answered = true;
	if (message->result || find_granted(verbs, message->rkey))
		return;
	more = realloc(verbs->granted, (verbs->granted_count + 1) * sizeof(*more));
	if (!more) {
		verbs->answer.result = -ENOMEM;
		return;
	}
	verbs->granted = more;
	more[verbs->granted_count++] = (struct dmp_verbs_granted){ .rkey = message->rkey };
}

bool dmp_verbs_serve(struct dmp_verbs *verbs, __u8 kind, const struct dmp_rdma_message *message)
{
	switch (kind) {
	case DMP_RDMA_ASK:
		return answer(verbs, message);
	case DMP_RDMA_GRANT:
		note_answer(verbs, message);
		return true;
	case DMP_RDMA_REVOKE:
		return obey(verbs, message->rkey);
	default:
		let_go(verbs, message->rkey);
		return true;
	}
}

void dmp_verbs_write_letters(struct dmp_verbs *verbs)
{
	__u32 number;

	if (verbs->ask_waits && !dmp_verbs_say(verbs, DMP_RDMA_ASK, &verbs->ask))
		verbs->ask_waits = false;
	for (number = 0; number < verbs->grant_count; number++) {
		struct dmp_verbs_grant *grant = &verbs->grants[number];
		struct dmp_rdma_message message = { .rkey = grant->mr->rkey };

		if (grant->revoked && !grant->told &&
		    !dmp_verbs_say(verbs, DMP_RDMA_REVOKE, &message))
			grant->told = true;
	}
}

void dmp_verbs_trust(struct dmp_fabric *fabric)
{
	dmp_verbs_of(fabric)->trusted = true;
}

int dmp_verbs_ask(struct dmp_fabric *fabric, const __u8 *key, __u32 key_bytes)
{
	struct dmp_verbs *verbs = dmp_verbs_of(fabric);
	__u32 at;

	if (key_bytes > DMP_KEY_BYTES)
		return -EINVAL;
	if (verbs->lost)
		return verbs->lost;
	verbs->ask = (struct dmp_rdma_message){ .number = ++verbs->asked, .key_bytes = key_bytes };
	for (at = 0; at < key_bytes; at++)
		verbs->ask.key[at] = key[at];
	verbs->ask_waits = true;
	verbs->answered = false;
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
	remote->rkey = verbs->answer.rkey;
	remote->base = verbs->answer.offset;
	remote->grant = verbs->answer.number;
	return 0;
}

void dmp_verbs_free_grants(struct dmp_verbs *verbs)
{
	while (verbs->grant_count != 0)
		drop_grant(verbs, verbs->grant_count - 1);
	free(verbs->grants);
	free(verbs->granted);
}

#endif /* DMP_VERBS */
