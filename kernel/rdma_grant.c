// SPDX-License-Identifier: GPL-2.0
/*
 * rdma_grant.c - regions named by key, granted by registration, and taken back; see rdma_pair.h
 *
 * A region is registered in parts as long as a fast registration reaches, each when it is first
 * asked for, and cut at places that do not depend on the question: however a peer asks, there
 * are no more registrations than parts.
 *
 * Invariants
 *  - What is asked is registered, or known to be, before it is answered; the registration is
 *    ahead of the answer in the send queue.
 *  - A part that is revoked is never granted again. It is registered until the peer has let
 *    go or its time is over, then until its invalidation has completed. The registration, and
 *    with it the rkey, is freed when the peer has been told, too. If the connection is lost
 *    first: when the queue pair is gone.
 *  - An rkey may come back with a later registration. So what is void is said with a number:
 *    all grants of the rkey that were answered before the REVOKE.
 *  - What came is read, and its slot emptied, whether or not there is a slot for the answer: two
 *    sides whose slots are full of letters would wait for each other. The answer is owed: one to
 *    the last question, and a mark on each rkey of the peer's that is void.
 */
#include <linux/ktime.h>
#include <linux/mm.h>
#include <linux/slab.h>

#include "rdma_layout.h"

#define GRANTED_BYTES	640U	/* charged for a peer's rkey: it may fill a node of the array */
#define OWED		XA_MARK_0	/* void, and the peer is not told that we know */

/* ---- ours */

/* What it takes: itself, and the registration's list of pages. */
static u64 bytes_of(const struct dmp_pair_grant *grant)
{
	return sizeof(*grant) + (grant->length >> PAGE_SHIFT) * sizeof(u64);
}

static void free_grant(struct dmp_pair *pair, struct dmp_pair_grant *grant)
{
	list_del(&grant->grants);
	ib_dereg_mr(grant->mr);
	if (grant->mapping)
		dmp_pair_unmap(pair, grant->mapping);
	dmp_uncharge(bytes_of(grant));
	kfree(grant);
}

void dmp_pair_free_grants(struct dmp_pair *pair)
{
	struct dmp_pair_grant *grant, *next;

	list_for_each_entry_safe(grant, next, &pair->grants, grants)
		free_grant(pair, grant);
}

static struct dmp_pair_grant *find_grant_locked(struct dmp_pair *pair, u32 slot, u64 from)
{
	struct dmp_pair_grant *grant;

	lockdep_assert_held(&pair->grants_lock);
	list_for_each_entry(grant, &pair->grants, grants)
		if (grant->slot == slot && !grant->revoked && from >= grant->from &&
		    from - grant->from < grant->length)
			return grant;
	return NULL;
}

/* Where the part that holds @from begins and ends: pages of the memory, so many at a time. */
static void cut_part(const struct dmp_pair *pair, const struct dmp_pair_admitted *admitted,
		     u64 from, struct dmp_pair_grant *grant)
{
	u64 place = offset_in_page(admitted->memory->page_offset + admitted->offset);
	u64 reach = (u64)pair->part_pages << PAGE_SHIFT;
	u64 number = div64_u64(place + from, reach);
	u64 end = min((number + 1) * reach - place, admitted->length);

	grant->from = number ? number * reach - place : 0;
	grant->length = end - grant->from;
	grant->base = number ? 0 : place;
}

static int access_of(u32 access)
{
	int rights = 0;

	if (access & DMP_ACCESS_REMOTE_WRITE)
		rights |= IB_ACCESS_LOCAL_WRITE | IB_ACCESS_REMOTE_WRITE;
	if (access & DMP_ACCESS_REMOTE_READ)
		rights |= IB_ACCESS_REMOTE_READ;
	return rights;
}

/* A device that says "not now" does not say when. */
static int final(int error)
{
	return error == -EAGAIN ? -ENOMEM : error;
}

static int register_part(struct dmp_pair *pair, const struct dmp_pair_admitted *admitted,
			 struct dmp_pair_grant *grant)
{
	int error;

	/* The only reason to come back to a question: the end of a chore makes us. */
	if (pair->chore_count == DMP_PAIR_CHORES)
		return -EAGAIN;
	grant->mapping = dmp_pair_map(pair, admitted->memory);
	if (IS_ERR(grant->mapping))
		return final(PTR_ERR(grant->mapping));
	grant->mr = dmp_pair_make_mr(pair, grant->mapping, admitted->offset + grant->from,
				     grant->length);
	if (IS_ERR(grant->mr)) {
		error = final(PTR_ERR(grant->mr));
		goto err_unmap;
	}
	error = dmp_pair_post_registration(pair, grant->mr, access_of(admitted->access));
	if (error)
		goto err_mr;
	return 0;

err_mr:
	ib_dereg_mr(grant->mr);
err_unmap:
	dmp_pair_unmap(pair, grant->mapping);
	return error;
}

static struct dmp_pair_grant *add_grant_locked(struct dmp_pair *pair,
					       const struct dmp_pair_admitted *admitted, u64 from)
{
	struct dmp_pair_grant *grant = kzalloc(sizeof(*grant), GFP_KERNEL_ACCOUNT);
	int error;

	lockdep_assert_held(&pair->grants_lock);
	if (!grant)
		return ERR_PTR(-ENOMEM);
	grant->slot = admitted->slot;
	cut_part(pair, admitted, from, grant);
	error = dmp_charge(bytes_of(grant));
	if (error)
		goto err_free;
	error = register_part(pair, admitted, grant);
	if (error)
		goto err_charge;
	list_add_tail(&grant->grants, &pair->grants);
	return grant;

err_charge:
	dmp_uncharge(bytes_of(grant));
err_free:
	kfree(grant);
	return ERR_PTR(error);
}

/* What the question is answered with; -EAGAIN: not now. */
static int admit_locked(struct dmp_pair *pair, const struct dmp_rdma_message *question,
			struct dmp_rdma_message *message)
{
	struct dmp_pair_admitted admitted = { 0 };
	struct dmp_pair_grant *grant;
	int error;

	lockdep_assert_held(&pair->grants_lock);
	error = pair->admission->admit(pair->admission, question->key, question->key_bytes,
				       &admitted);
	if (error)
		return error;
	if (question->from >= admitted.length) {
		dmp_memory_put(admitted.memory);
		return -EINVAL;
	}
	grant = find_grant_locked(pair, admitted.slot, question->from);
	if (!grant)
		grant = add_grant_locked(pair, &admitted, question->from);
	dmp_memory_put(admitted.memory);	/* the mapping has a reference of its own */
	if (IS_ERR(grant))
		return PTR_ERR(grant);
	message->rkey = grant->mr->rkey;
	message->access = admitted.access;
	message->length = admitted.length;
	message->offset = grant->base + (question->from - grant->from);
	message->covered = grant->length - (question->from - grant->from);
	return 0;
}

/* What the peer has asked last; again when there is a slot, or a chore has completed. */
static void answer(struct dmp_pair *pair)
{
	struct dmp_rdma_message message = { .number = pair->question.number };
	int error;

	mutex_lock(&pair->grants_lock);
	error = admit_locked(pair, &pair->question, &message);
	mutex_unlock(&pair->grants_lock);
	if (error == -EAGAIN)
		return;
	message.result = error;
	if (dmp_pair_say(pair, DMP_RDMA_GRANT, &message) != -EAGAIN)
		pair->question_waits = false;
}

bool dmp_pair_revoke(struct dmp_pair *pair, u32 slot)
{
	struct dmp_pair_grant *grant;
	bool any = false;

	mutex_lock(&pair->grants_lock);
	list_for_each_entry(grant, &pair->grants, grants) {
		if (grant->slot != slot || grant->revoked)
			continue;
		grant->revoked = true;
		grant->due_ns = ktime_get_ns() + DMP_RDMA_LET_GO_MS * (u64)NSEC_PER_MSEC;
		any = true;
	}
	mutex_unlock(&pair->grants_lock);
	if (any)
		dmp_pair_ring(pair);
	return any;
}

bool dmp_pair_is_registered(struct dmp_pair *pair, u32 slot)
{
	struct dmp_pair_grant *grant;
	bool any = false;

	mutex_lock(&pair->grants_lock);
	list_for_each_entry(grant, &pair->grants, grants)
		any |= grant->slot == slot && grant->revoked && grant->mapping;
	mutex_unlock(&pair->grants_lock);
	return any;
}

static void let_go(struct dmp_pair *pair, u32 rkey)
{
	struct dmp_pair_grant *grant;

	mutex_lock(&pair->grants_lock);
	list_for_each_entry(grant, &pair->grants, grants)
		if (grant->told && grant->mr->rkey == rkey)
			grant->let_go = true;
	mutex_unlock(&pair->grants_lock);
}

/* One step of a revoked registration towards its end. */
static void end_grant_locked(struct dmp_pair *pair, struct dmp_pair_grant *grant, u64 now_ns)
{
	struct dmp_rdma_message message = { .rkey = grant->mr->rkey };

	lockdep_assert_held(&pair->grants_lock);
	if (!grant->told && !dmp_pair_say(pair, DMP_RDMA_REVOKE, &message))
		grant->told = true;
	if (!grant->ending && (grant->let_go || now_ns >= grant->due_ns))
		grant->ending = !dmp_pair_post_invalidation(pair, grant);
	/* No device reaches it any more. The rkey is kept: a peer not told takes it for good. */
	if (grant->ended && grant->mapping && !pair->lost) {
		dmp_pair_unmap(pair, grant->mapping);
		grant->mapping = NULL;
	}
}

static void end_grants(struct dmp_pair *pair)
{
	struct dmp_pair_grant *grant, *next;
	u64 now_ns = ktime_get_ns(), due_ns = 0;
	bool freed = false;

	mutex_lock(&pair->grants_lock);
	list_for_each_entry_safe(grant, next, &pair->grants, grants) {
		bool mapped = grant->mapping;

		if (grant->revoked)
			end_grant_locked(pair, grant, now_ns);
		freed |= mapped && !grant->mapping;
		if (grant->ended && grant->told && !pair->lost)
			free_grant(pair, grant);
		else if (grant->revoked && !grant->ending && grant->due_ns > now_ns)
			due_ns = due_ns ? min(due_ns, grant->due_ns) : grant->due_ns;
	}
	mutex_unlock(&pair->grants_lock);
	if (due_ns)
		mod_delayed_work(system_wq, &pair->due, nsecs_to_jiffies(due_ns - now_ns) + 2);
	if (freed)
		dmp_pair_ring(pair);
}

/* ---- the peer's */

bool dmp_pair_is_void(const struct dmp_pair *pair, const struct dmp_pair_part *part)
{
	void *entry = xa_load((struct xarray *)&pair->granted, part->rkey);

	return !entry || part->grant <= xa_to_value(entry);
}

static void ask_from(struct dmp_pair *pair, u64 from)
{
	pair->ask.number = ++pair->asked;
	pair->ask.from = from;
	pair->ask_waits = true;
}

/* Room for twice as many parts. */
static int grow(struct dmp_pair *pair)
{
	u32 most = max(2 * pair->gathered_max, 4U);
	struct dmp_pair_remote *gathered = &pair->gathered;
	u64 bytes = most * sizeof(struct dmp_pair_part);
	struct dmp_pair_part *parts;
	int error;

	if (most > DMP_PAIR_PARTS_MAX)
		return -ENOSPC;
	error = dmp_charge(bytes);
	if (error)
		return error;
	parts = kvmalloc(bytes, GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	if (!parts) {
		dmp_uncharge(bytes);
		return -ENOMEM;
	}
	if (gathered->count)
		memcpy(parts, gathered->parts, gathered->count * sizeof(*parts));
	kvfree(gathered->parts);
	dmp_uncharge(gathered->charged);
	gathered->parts = parts;
	gathered->charged = bytes;
	pair->gathered_max = most;
	return 0;
}

/* From the answer @number on the rkey is good. One that is known is so already. */
static int note_granted(struct dmp_pair *pair, u32 rkey, u32 number)
{
	int error;

	if (xa_load(&pair->granted, rkey)) {
		/* It was void, and is granted anew: so its owner does not wait to be told. */
		if (xa_get_mark(&pair->granted, rkey, OWED)) {
			xa_store(&pair->granted, rkey, xa_mk_value(number - 1), GFP_KERNEL);
			xa_clear_mark(&pair->granted, rkey, OWED);
		}
		return 0;
	}
	if (pair->granted_count == DMP_PAIR_GRANTED_MAX)
		return -ENOSPC;
	error = dmp_charge(GRANTED_BYTES);
	if (error)
		return error;
	error = xa_err(xa_store(&pair->granted, rkey, xa_mk_value(number - 1), GFP_KERNEL));
	if (error) {
		dmp_uncharge(GRANTED_BYTES);
		return error;
	}
	pair->granted_count++;
	return 0;
}

static void forget_granted(struct dmp_pair *pair, u32 rkey)
{
	if (!xa_erase(&pair->granted, rkey))
		return;
	pair->granted_count--;
	dmp_uncharge(GRANTED_BYTES);
}

/* False: pieces of ours are still on their way there, or there is no slot. */
static bool say_revoked(struct dmp_pair *pair, u32 rkey)
{
	struct dmp_rdma_message message = { .rkey = rkey };

	if (dmp_pair_is_moving(pair, rkey) ||
	    dmp_pair_say(pair, DMP_RDMA_REVOKED, &message) == -EAGAIN)
		return false;
	forget_granted(pair, rkey);
	return true;
}

/*
 * All that was granted of the rkey is void; a grant to come is not: answers come in order with
 * this. An owner registers at most once for each question, so it has no more to take back.
 */
static void obey(struct dmp_pair *pair, u32 rkey)
{
	int error = (s32)(pair->asked - ++pair->revokes) < 0 ? -EPROTO : 0;

	/* Takes no memory where the rkey was granted. */
	if (!error)
		error = note_granted(pair, rkey, pair->asked + 1);
	if (error) {
		dmp_pair_lose(pair, error);
		return;
	}
	xa_store(&pair->granted, rkey, xa_mk_value(pair->asked), GFP_KERNEL);
	xa_set_mark(&pair->granted, rkey, OWED);
	say_revoked(pair, rkey);
}

static void pay_revoked(struct dmp_pair *pair)
{
	unsigned long rkey;
	void *entry;

	xa_for_each_marked(&pair->granted, rkey, entry, OWED)
		if (!say_revoked(pair, rkey) && pair->letter_waits)
			return;
}

bool dmp_pair_owes_revoked(const struct dmp_pair *pair)
{
	return xa_marked(&pair->granted, OWED);
}

void dmp_pair_free_granted(struct dmp_pair *pair)
{
	dmp_uncharge((u64)pair->granted_count * GRANTED_BYTES);
	xa_destroy(&pair->granted);
}

static int gather(struct dmp_pair *pair, const struct dmp_rdma_message *message)
{
	struct dmp_pair_remote *gathered = &pair->gathered;
	int error = 0;

	if (gathered->count && (message->length != gathered->length ||
				message->access != gathered->access))
		return -ESTALE;
	if (gathered->count == pair->gathered_max)
		error = grow(pair);
	if (!error)
		error = note_granted(pair, message->rkey, message->number);
	if (error)
		return error;
	gathered->length = message->length;
	gathered->access = message->access;
	gathered->parts[gathered->count++] = (struct dmp_pair_part){
		.from = pair->ask.from,
		.length = message->covered,
		.base = message->offset,
		.rkey = message->rkey,
		.grant = message->number,
	};
	return 0;
}

static void note_answer(struct dmp_pair *pair, const struct dmp_rdma_message *message)
{
	u64 until = pair->ask.from + message->covered;
	int error = dmp_pair_reason(message->result);

	if (message->number != pair->asked || pair->ask_waits || pair->answered)
		return;		/* nobody waits for it any more */
	if (!error && dmp_rdma_check_grant(message, pair->ask.from)) {
		dmp_pair_lose(pair, -EPROTO);
		return;
	}
	if (!error)
		error = gather(pair, message);
	if (error || until == message->length) {
		pair->ask_result = error;
		pair->answered = true;
		dmp_pair_ring(pair);
	} else {
		ask_from(pair, until);
	}
}

void dmp_pair_read_letter(struct dmp_pair *pair, u8 kind, const struct dmp_rdma_message *message)
{
	switch (kind) {
	case DMP_RDMA_ASK:
		/* Who asks anew has given up the question before. */
		pair->question = *message;
		pair->question_waits = true;
		break;
	case DMP_RDMA_GRANT:
		note_answer(pair, message);
		break;
	case DMP_RDMA_REVOKE:
		obey(pair, message->rkey);
		break;
	default:
		let_go(pair, message->rkey);
		break;
	}
}

void dmp_pair_write_letters(struct dmp_pair *pair)
{
	pair->chores_done = false;
	if (pair->question_waits)
		answer(pair);
	pay_revoked(pair);
	if (pair->ask_waits && !dmp_pair_say(pair, DMP_RDMA_ASK, &pair->ask))
		pair->ask_waits = false;
	end_grants(pair);
}

void dmp_pair_trust(struct dmp_pair *pair, struct dmp_pair_admission *admission)
{
	pair->admission = admission;
	pair->trusted = true;
}

void dmp_pair_remote_free(struct dmp_pair_remote *remote)
{
	kvfree(remote->parts);
	dmp_uncharge(remote->charged);
	*remote = (struct dmp_pair_remote){ 0 };
}

int dmp_pair_ask(struct dmp_pair *pair, const u8 *key, u32 key_bytes)
{
	if (!key_bytes || key_bytes > DMP_KEY_BYTES)
		return -EINVAL;
	if (pair->lost)
		return pair->lost;
	dmp_pair_remote_free(&pair->gathered);
	pair->gathered_max = 0;
	pair->ask = (struct dmp_rdma_message){ .key_bytes = key_bytes };
	memcpy(pair->ask.key, key, key_bytes);
	pair->answered = false;
	ask_from(pair, 0);
	dmp_pair_ring(pair);
	return 0;
}

int dmp_pair_granted(struct dmp_pair *pair, struct dmp_pair_remote *remote)
{
	if (!pair->answered)
		return pair->lost ? pair->lost : -EAGAIN;
	if (pair->ask_result)
		return pair->ask_result;
	*remote = pair->gathered;	/* the caller's from here on */
	pair->gathered = (struct dmp_pair_remote){ 0 };
	pair->gathered_max = 0;
	return 0;
}
