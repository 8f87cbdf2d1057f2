// SPDX-License-Identifier: MIT
/*
 * test_verbs_letters.c - what letters of a peer make of a connection over verbs; no device
 *
 * Letters are read, and nothing is sent: what is to be answered stays owed.
 */
#ifdef DMP_VERBS
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>

#include "core/check.h"
#include "dmaplane.h"
#include "verbs.h"
#include "verbs_layout.h"

#define RKEY	7u

static struct dmp_verbs verbs;

static void begin(void)
{
	verbs = (struct dmp_verbs){ .fabric = { .fd = -1 } };
}

static void end(void)
{
	dmp_verbs_free_grants(&verbs);
}

static void ask(void)
{
	CHECK(!dmp_verbs_ask(&verbs.fabric, (const __u8 *)"key", 3));
}

/* A region of a page, in one part, answers the last question. */
static struct dmp_remote granted(__u32 rkey)
{
	const struct dmp_rdma_message grant = { .number = verbs.asked, .rkey = rkey,
						.length = 4096, .covered = 4096,
						.access = DMP_ACCESS_REMOTE_WRITE };
	struct dmp_remote remote = { .length = 4096, .access = DMP_ACCESS_REMOTE_WRITE };

	dmp_verbs_read_letter(&verbs, DMP_RDMA_GRANT, &grant);
	CHECK(!dmp_verbs_granted(&verbs.fabric, &remote));
	CHECK(remote.part_count == 1 && remote.parts[0].rkey == rkey);
	return remote;
}

static void revoke(__u32 rkey)
{
	const struct dmp_rdma_message message = { .rkey = rkey };

	dmp_verbs_read_letter(&verbs, DMP_RDMA_REVOKE, &message);
}

/* L12: each question brings one registration at most, so no more can be taken back. */
static void test_more_is_taken_back_than_was_asked_for(void)
{
	struct dmp_remote remote;

	begin();
	revoke(RKEY);
	CHECK(verbs.lost == -EPROTO && verbs.owed_count == 0);
	end();
	begin();
	ask();
	remote = granted(RKEY);
	revoke(RKEY);
	CHECK(!verbs.lost && verbs.owed_count == 1);
	revoke(RKEY + 1);
	CHECK(verbs.lost == -EPROTO && verbs.owed_count == 1);
	free(remote.parts);
	end();
}

/* L7: REVOKED, said late, would be taken for the end of the new registration. */
static void test_an_rkey_that_comes_back_is_owed_nothing(void)
{
	struct dmp_remote first, other, second;

	begin();
	ask();
	first = granted(RKEY);
	ask();
	other = granted(RKEY + 1);
	revoke(RKEY);
	revoke(RKEY + 1);
	CHECK(verbs.owed_count == 2);
	CHECK(dmp_verbs_is_void(&verbs, &first.parts[0]));
	ask();
	second = granted(RKEY);
	CHECK(verbs.owed_count == 1 && verbs.owed[verbs.owed_first] == RKEY + 1);
	CHECK(!dmp_verbs_is_void(&verbs, &second.parts[0]));
	CHECK(dmp_verbs_is_void(&verbs, &first.parts[0]));
	CHECK(dmp_verbs_is_void(&verbs, &other.parts[0]));
	free(first.parts);
	free(other.parts);
	free(second.parts);
	end();
}

/* L1: whoever asks anew has given up the question before, so one is kept, and no slot with it. */
static void test_the_last_question_is_the_one_that_is_owed_an_answer(void)
{
	struct dmp_rdma_message question = { .number = 1, .key_bytes = 3 };

	begin();
	dmp_verbs_read_letter(&verbs, DMP_RDMA_ASK, &question);
	CHECK(verbs.question_waits && verbs.question.number == 1);
	question.number = 2;
	dmp_verbs_read_letter(&verbs, DMP_RDMA_ASK, &question);
	CHECK(verbs.question_waits && verbs.question.number == 2);
	/* Not before what is revoked has been said: its rkey may come again. */
	verbs.untold = 1;
	CHECK(dmp_verbs_write_letters(&verbs));
	CHECK(verbs.question_waits && !verbs.lost);
	end();
}

int main(void)
{
	test_more_is_taken_back_than_was_asked_for();
	test_an_rkey_that_comes_back_is_owed_nothing();
	test_the_last_question_is_the_one_that_is_owed_an_answer();
	return 0;
}
#else
#include <stdio.h>

int main(void)
{
	printf("skipped: missing-package: built without rdma-core's headers\n");
	return 0;
}
#endif
