// SPDX-License-Identifier: MIT
/*
 * verbs_grant.c - own regions: granted by registration, and taken back; see verbs.h
 *
 * A region that is larger than the device registers at once goes in parts, which lie on a grid
 * of ours: whatever bytes a peer asks from, it cannot make more registrations than the grid
 * has.
 *
 * The device may give the rkey of a registration that was dropped to the next one. So what was
 * revoked stays in the list until REVOKE is sent, even if its time is over and the device has
 * forgotten it, and no question is answered before: in the order of the slots, REVOKE is ahead
 * of any GRANT of the same rkey. The importer's half is verbs_remote.c.
 */
#ifdef DMP_VERBS
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>

#include "verbs_layout.h"

static __u64 part_limit = ~0ull;

void dmp_verbs_limit_parts(__u64 bytes)
{
	__atomic_store_n(&part_limit, bytes, __ATOMIC_RELAXED);
}

/* ---- what is granted */

/* From here on the device touches none of it. */
static void deregister(struct dmp_verbs *verbs, struct dmp_verbs_grant *grant)
{
	if (grant->mr)
		verbs->library->dereg_mr(grant->mr);
	grant->mr = NULL;
}

static void drop_grant(struct dmp_verbs *verbs, __u32 number)
{
	if (verbs->grants[number].revoked && !verbs->grants[number].told)
		verbs->untold--;
	deregister(verbs, &verbs->grants[number]);
	verbs->grants[number] = verbs->grants[--verbs->grant_count];
}

/* What is registered of the region, from byte @from of it on. */
static struct dmp_verbs_grant *find_grant(struct dmp_verbs *verbs,
					  const struct dmp_region *region, __u64 from)
{
	__u32 number;

	for (number = 0; number < verbs->grant_count; number++) {
		struct dmp_verbs_grant *grant = &verbs->grants[number];

		if (!grant->revoked && grant->slot == region->slot &&
		    grant->generation == region->generation && from >= grant->from &&
		    from - grant->from < grant->length)
			return grant;
	}
	return NULL;
}

/* At most so much goes in one registration of @verbs: whole pages. */
static __u64 part_bytes(const struct dmp_verbs *verbs)
{
	__u64 bytes = __atomic_load_n(&part_limit, __ATOMIC_RELAXED);

	if (bytes > verbs->mr_bytes_max)
		bytes = verbs->mr_bytes_max;
	return bytes < DMP_VERBS_PAGE ? DMP_VERBS_PAGE : bytes - bytes % DMP_VERBS_PAGE;
}

static int access_of(const struct dmp_region *region)
{
	int access = 0;

	if (region->access & DMP_ACCESS_REMOTE_WRITE)
		access |= IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE;
	if (region->access & DMP_ACCESS_REMOTE_READ)
		access |= IBV_ACCESS_REMOTE_READ;
	return access;
}

/*
 * Registers the part of the region, which begins at @address, that has the byte @from. The
 * kernel wants the place in a page kept.
 */
static int add_grant(struct dmp_verbs *verbs, struct dmp_region *region, char *address,
		     __u64 from, struct dmp_verbs_grant **grant)
{
	__u64 part = part_bytes(verbs), first = from - from % part, length = region->length - first;
	__u64 base = (uintptr_t)(address + first) % DMP_VERBS_PAGE;
	const struct dmp_verbs_range range = {
		.memory = &region->buffer->memory,
		.offset = region->offset + first,
		.length = length < part ? length : part,
		.iova = base,
		.access = access_of(region),
	};
	struct dmp_verbs_grant *more;
	struct ibv_mr *mr;
	int error;

	more = realloc(verbs->grants, (verbs->grant_count + 1) * sizeof(*more));
	if (!more)
		return -ENOMEM;
	verbs->grants = more;
	error = dmp_verbs_register(verbs, &range, &mr);
	if (error)
		return error;
	__atomic_store_n(&region->registered, true, __ATOMIC_SEQ_CST);
	*grant = &verbs->grants[verbs->grant_count++];
	**grant = (struct dmp_verbs_grant){
		.mr = mr,
		.rkey = mr->rkey,
		.from = first,
		.length = range.length,
		.base = base,
		.slot = region->slot,
		.generation = region->generation,
	};
	return 0;
}

/* What the peer has asked last; again when there is a slot. */
static void answer(struct dmp_verbs *verbs)
{
	const struct dmp_rdma_message *question = &verbs->question;
	struct dmp_rdma_message message = { .number = question->number };
	struct dmp_verbs_grant *grant = NULL;
	__u64 from = question->from;
	struct dmp_region *region;
	char *address;

	message.result = dmp_region_admit(verbs->plane, question->key, question->key_bytes, from,
					  1, 0, &region, &address);
	if (!message.result) {
		grant = find_grant(verbs, region, from);
		if (!grant)
			message.result = add_grant(verbs, region, address - from, from, &grant);
		message.access = region->access;
		message.length = region->length;
		dmp_region_release(verbs->plane, region);
	}
	if (grant) {
		message.rkey = grant->rkey;
		message.offset = grant->base + (from - grant->from);
		message.covered = grant->length - (from - grant->from);
	}
	verbs->question_waits = dmp_verbs_say(verbs, DMP_RDMA_GRANT, &message) == -EAGAIN;
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
		grant->due_ns = now_ns + DMP_RDMA_LET_GO_MS * 1000000ull;
		verbs->untold++;
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
		if (!verbs->lost && now_ns < grant->due_ns)
			any = any || grant->mr;
		else if (verbs->lost || grant->told)
			drop_grant(verbs, number);
		else
			deregister(verbs, grant);
	}
	return any;
}

static void let_go(struct dmp_verbs *verbs, __u32 rkey)
{
	__u32 number;

	for (number = verbs->grant_count; number-- != 0;)
		if (verbs->grants[number].told && verbs->grants[number].rkey == rkey)
			drop_grant(verbs, number);
	/* channel->lock is held: no plane->lock. Who misses this looks again in milliseconds. */
	if (__atomic_load_n(&verbs->plane->drainers, __ATOMIC_SEQ_CST) != 0)
		pthread_cond_broadcast(&verbs->plane->released);
}

void dmp_verbs_read_letter(struct dmp_verbs *verbs, __u8 kind,
			   const struct dmp_rdma_message *message)
{
	switch (kind) {
	case DMP_RDMA_ASK:
		/* Who asks anew has given up the question before. */
		verbs->question = *message;
		verbs->question_waits = true;
		break;
	case DMP_RDMA_GRANT:
		dmp_verbs_note_answer(verbs, message);
		break;
	case DMP_RDMA_REVOKE:
		dmp_verbs_obey(verbs, message->rkey);
		break;
	default:
		let_go(verbs, message->rkey);
		break;
	}
}

bool dmp_verbs_write_letters(struct dmp_verbs *verbs)
{
	bool revoked_waits = dmp_verbs_write_revoked(verbs);
	__u32 number;

	if (verbs->ask_waits && !dmp_verbs_say(verbs, DMP_RDMA_ASK, &verbs->ask))
		verbs->ask_waits = false;
	/* From the last to the first: dropping one puts the last in its place. */
	for (number = verbs->grant_count; verbs->untold != 0 && number-- != 0;) {
		struct dmp_verbs_grant *grant = &verbs->grants[number];
		struct dmp_rdma_message message = { .rkey = grant->rkey };

		if (!grant->revoked || grant->told)
			continue;
		if (dmp_verbs_say(verbs, DMP_RDMA_REVOKE, &message))
			break;
		grant->told = true;
		verbs->untold--;
		if (!grant->mr)
			drop_grant(verbs, number);
	}
	/* What is revoked is said before anything is granted. */
	if (verbs->question_waits && verbs->untold == 0)
		answer(verbs);
	return revoked_waits || verbs->ask_waits || verbs->untold != 0 || verbs->question_waits;
}

void dmp_verbs_trust(struct dmp_fabric *fabric)
{
	dmp_verbs_of(fabric)->trusted = true;
}

void dmp_verbs_free_grants(struct dmp_verbs *verbs)
{
	while (verbs->grant_count != 0)
		drop_grant(verbs, verbs->grant_count - 1);
	free(verbs->grants);
	free(verbs->granted);
	free(verbs->owed);
	free(verbs->parts);
}

#endif /* DMP_VERBS */
