// SPDX-License-Identifier: MIT
/*
 * test_submission.c - what a submission may say (the table of operations in dmaplane.h)
 *
 * For each operation one submission that is right, and then every field of it in turn made
 * wrong: taken away where it is needed, given where the table has a "-".
 */
#include "channel.h"
#include "check.h"

#define SERVED (~0u)

struct row {
	__u16 operation;
	bool endpoint, source, target, immediate, length, checksum, may_be_empty;
};

static const struct row rows[] = {
	{ .operation = DMP_OP_NOP },
	{ .operation = DMP_OP_FENCE },
	{ .operation = DMP_OP_FILL, .target = true, .immediate = true, .length = true },
	{ .operation = DMP_OP_COPY, .source = true, .target = true, .length = true,
	  .checksum = true },
	{ .operation = DMP_OP_SEND, .endpoint = true, .source = true, .length = true,
	  .checksum = true, .may_be_empty = true },
	{ .operation = DMP_OP_RECV, .endpoint = true, .target = true, .length = true,
	  .checksum = true },
	{ .operation = DMP_OP_WRITE, .endpoint = true, .source = true, .target = true,
	  .length = true, .checksum = true },
	{ .operation = DMP_OP_WRITE_IMM, .endpoint = true, .source = true, .target = true,
	  .immediate = true, .length = true, .checksum = true },
	{ .operation = DMP_OP_READ, .endpoint = true, .source = true, .target = true,
	  .length = true, .checksum = true },
};

#define ROWS (sizeof(rows) / sizeof(rows[0]))

static struct dmp_submission right(const struct row *row)
{
	return (struct dmp_submission){
		.operation = row->operation,
		.endpoint_id = row->endpoint ? 3 : 0,
		.source_id = row->source ? 4 : 0,
		.source_offset = row->source ? 64 : 0,
		.target_id = row->target ? 5 : 0,
		.target_offset = row->target ? 128 : 0,
		.length_bytes = row->length ? 256 : 0,
		.immediate = row->immediate ? 9 : 0,
		.user_data = ~0ull,
		.deadline_ns = ~0ull,
	};
}

static int check(struct dmp_submission submission)
{
	return dmp_submission_check(&submission, SERVED);
}

static void test_what_is_right_passes(const struct row *row)
{
	struct dmp_submission submission = right(row);

	CHECK(check(submission) == 0);
	submission.flags = DMP_SUBMIT_LINK | DMP_SUBMIT_NOWAIT;
	CHECK(check(submission) == 0);
	CHECK(dmp_submission_check(&submission, 1u << row->operation) == 0);
	CHECK(dmp_submission_check(&submission, ~(1u << row->operation)) == -EOPNOTSUPP);
}

static void test_an_id_stands_where_the_table_has_one(const struct row *row)
{
	struct dmp_submission submission = right(row);

	submission.endpoint_id = row->endpoint ? 0 : 3;
	CHECK(check(submission) == -EINVAL);
	submission = right(row);
	submission.source_id = row->source ? 0 : 3;
	CHECK(check(submission) == -EINVAL);
	submission = right(row);
	submission.target_id = row->target ? 0 : 3;
	CHECK(check(submission) == -EINVAL);
}

static void test_an_offset_belongs_to_an_id(const struct row *row)
{
	struct dmp_submission submission = right(row);

	submission.source_offset = 4;
	CHECK(check(submission) == (row->source ? 0 : -EINVAL));
	submission = right(row);
	submission.target_offset = 4;
	CHECK(check(submission) == (row->target ? 0 : -EINVAL));
}

static void test_only_some_carry_an_immediate(const struct row *row)
{
	struct dmp_submission submission = right(row);

	submission.immediate = 1;
	CHECK(check(submission) == (row->immediate ? 0 : -EINVAL));
	submission.immediate = 0;
	CHECK(check(submission) == 0);
}

static void test_a_length_stands_where_bytes_move(const struct row *row)
{
	struct dmp_submission submission = right(row);

	submission.length_bytes = row->length ? 0 : 4;
	CHECK(check(submission) == (row->may_be_empty ? 0 : -EINVAL));
	if (!row->length)
		return;
	submission.length_bytes = ~0ull - 3;
	CHECK(check(submission) == -EOVERFLOW);
	submission = right(row);
	if (row->source)
		submission.source_offset = ~0ull - 3;
	else
		submission.target_offset = ~0ull - 3;
	CHECK(check(submission) == -EOVERFLOW);
}

static void test_checksums_are_of_bytes(const struct row *row)
{
	struct dmp_submission submission = right(row);

	submission.flags = DMP_SUBMIT_CHECKSUM;
	CHECK(check(submission) == (row->checksum ? 0 : -EINVAL));
	submission.checksum = 77;
	CHECK(check(submission) == -EINVAL);	/* it is compared with VERIFY only */
	submission.flags = DMP_SUBMIT_VERIFY;
	CHECK(check(submission) == (row->checksum ? 0 : -EINVAL));
}

static void test_unknown_flags_are_refused(const struct row *row)
{
	struct dmp_submission submission = right(row);
	int bit;

	for (bit = 4; bit < 16; bit++) {
		submission.flags = (__u16)(1u << bit);
		CHECK(check(submission) == -EINVAL);
	}
}

static void test_unknown_operations_are_refused(void)
{
	struct dmp_submission submission = { 0 };
	__u32 operation;
	size_t row;

	for (operation = 0; operation <= 0xffff; operation++) {
		bool known = false;

		for (row = 0; row < ROWS; row++)
			known |= rows[row].operation == operation;
		submission.operation = (__u16)operation;
		if (!known)
			CHECK(check(submission) == -EINVAL);
	}
}

static void test_a_pattern_is_whole_words(void)
{
	struct dmp_submission submission = { .operation = DMP_OP_FILL, .target_id = 1,
					     .length_bytes = 6 };

	CHECK(check(submission) == -EINVAL);
	submission.length_bytes = 8;
	submission.target_offset = 2;
	CHECK(check(submission) == -EINVAL);
	submission.target_offset = 4;
	CHECK(check(submission) == 0);
}

int main(void)
{
	size_t row;

	for (row = 0; row < ROWS; row++) {
		test_what_is_right_passes(&rows[row]);
		test_an_id_stands_where_the_table_has_one(&rows[row]);
		test_an_offset_belongs_to_an_id(&rows[row]);
		test_only_some_carry_an_immediate(&rows[row]);
		test_a_length_stands_where_bytes_move(&rows[row]);
		test_checksums_are_of_bytes(&rows[row]);
		test_unknown_flags_are_refused(&rows[row]);
	}
	test_unknown_operations_are_refused();
	test_a_pattern_is_whole_words();
	return 0;
}
