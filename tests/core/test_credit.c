// SPDX-License-Identifier: MIT
/*
 * test_credit.c - the credit ledger (law L2)
 *
 * The exhaustive part walks every order of operations on a pair of ledgers with a
 * window of up to three slots: told grants are kept and may be heard in any order,
 * any number of times. A model of plain counters, kept by the test, says what each
 * operation must answer.
 */
#include <string.h>

#include "check.h"
#include "credit.h"

#define EPOCH	7
#define DEPTH	12
#define TOLD_MAX DEPTH

struct world {
	struct dmp_credit_sender sender;
	struct dmp_credit_receiver receiver;
	struct dmp_credit_grant told[TOLD_MAX];
	int told_count;
	/* the model */
	__u64 heard_total;	/* largest total any heard grant carried */
	__u64 granted_total;	/* told so far */
	__u64 taken, travelling, occupied, released, answered, returned;
};

enum { TELL, HEAR_FIRST, HEAR_NEWEST, HEAR_STALE, TAKE, RETURN, ARRIVE, RELEASE,
       COMPLETE, OPERATIONS };

static __u64 window_slots;
static long worlds;

static void check_world(const struct world *world)
{
	const struct dmp_credit *send = &world->sender.ledger;
	const struct dmp_credit *receive = &world->receiver.ledger;

	CHECK(dmp_credit_check(send) == 0);
	CHECK(dmp_credit_check(receive) == 0);
	CHECK(send->granted.slots == world->heard_total);
	CHECK(receive->granted.slots == world->granted_total);
	CHECK(send->granted.slots <= receive->granted.slots);
	CHECK(receive->granted.slots - receive->completed.slots <= window_slots);
	CHECK(send->available.slots == world->heard_total - world->taken);
	CHECK(send->in_flight.slots == world->taken - world->answered);
	CHECK(receive->in_flight.slots == world->occupied);
	CHECK(receive->completed.slots == world->released);
	/* no order of events overruns the receiver's room */
	CHECK(world->occupied + world->travelling <= window_slots);
	/* bytes go with slots, three each */
	CHECK(send->available.bytes == 3 * send->available.slots);
	CHECK(receive->in_flight.bytes == 3 * receive->in_flight.slots);
}

static void hear(struct world *world, const struct dmp_credit_grant *grant)
{
	CHECK(dmp_credit_hear(&world->sender, grant) == 0);
	if (grant->total.slots > world->heard_total)
		world->heard_total = grant->total.slots;
}

static void tell(struct world *world)
{
	struct dmp_credit_grant *grant = &world->told[world->told_count++];
	__u64 untold = window_slots - (world->granted_total - world->released);

	CHECK(dmp_credit_untold(&world->receiver).slots == untold);
	dmp_credit_tell(&world->receiver, grant);
	world->granted_total += untold;
	CHECK(grant->total.slots == world->granted_total);
	CHECK(!dmp_credit_due(&world->receiver));
}

static void hear_stale(struct world *world)
{
	struct dmp_credit_grant grant = { .epoch = EPOCH + 1, .sequence = 1000 };

	grant.total.slots = 1000;
	grant.total.bytes = 3000;
	CHECK(dmp_credit_hear(&world->sender, &grant) == -ESTALE);
}

static void apply(struct world *world, int operation)
{
	switch (operation) {
	case TELL:
		tell(world);
		break;
	case HEAR_FIRST:
		if (world->told_count)
			hear(world, &world->told[0]);
		break;
	case HEAR_NEWEST:
		if (world->told_count)
			hear(world, &world->told[world->told_count - 1]);
		break;
	case HEAR_STALE:
		hear_stale(world);
		break;
	case TAKE:
		if (world->taken < world->heard_total) {
			CHECK(dmp_credit_take(&world->sender, 3) == 0);
			world->taken += 1;
			world->travelling += 1;
		} else {
			CHECK(dmp_credit_take(&world->sender, 3) == -EAGAIN);
		}
		break;
	case RETURN:
		if (world->travelling) {
			CHECK(dmp_credit_return(&world->sender, 3) == 0);
			world->taken -= 1;
			world->travelling -= 1;
		} else if (world->taken == world->answered) {
			CHECK(dmp_credit_return(&world->sender, 3) == -EPROTO);
		}
		break;
	case ARRIVE:
		if (world->travelling) {
			CHECK(dmp_credit_arrive(&world->receiver, 3) == 0);
			world->travelling -= 1;
			world->occupied += 1;
		} else if (world->granted_total == world->released + world->occupied) {
			CHECK(dmp_credit_arrive(&world->receiver, 3) == -EPROTO);
		}
		break;
	case RELEASE:
		if (world->occupied) {
			CHECK(dmp_credit_release(&world->receiver, 3) == 0);
			world->occupied -= 1;
			world->released += 1;
		} else {
			CHECK(dmp_credit_release(&world->receiver, 3) == -EPROTO);
		}
		break;
	default:
		if (world->taken - world->answered > world->travelling) {
			CHECK(dmp_credit_complete(&world->sender, 3) == 0);
			world->answered += 1;
		} else if (world->taken == world->answered) {
			CHECK(dmp_credit_complete(&world->sender, 3) == -EPROTO);
		}
	}
	check_world(world);
}

static void explore(const struct world *world, int depth)
{
	struct world next;
	int operation;

	worlds += 1;
	if (!depth)
		return;
	for (operation = 0; operation < OPERATIONS; operation++) {
		next = *world;
		apply(&next, operation);
		/* an operation that changes nothing leads nowhere new */
		if (memcmp(&next, world, sizeof(next)))
			explore(&next, depth - 1);
	}
}

static void test_no_order_of_events_mints_or_overruns(void)
{
	struct dmp_credit_amount window;
	struct world world;

	for (window_slots = 1; window_slots <= 3; window_slots++) {
		window.slots = window_slots;
		window.bytes = 3 * window_slots;
		memset(&world, 0, sizeof(world));
		dmp_credit_sender_init(&world.sender, EPOCH);
		CHECK(dmp_credit_receiver_init(&world.receiver, EPOCH, window) == 0);
		explore(&world, DEPTH);
	}
	CHECK(worlds > 100000);
}

static void test_duplicate_grant_does_not_mint(void)
{
	struct dmp_credit_grant grant = { { 4, 400 }, 1, EPOCH };
	struct dmp_credit_sender sender;
	int i;

	dmp_credit_sender_init(&sender, EPOCH);
	for (i = 0; i < 10; i++)
		CHECK(dmp_credit_hear(&sender, &grant) == 0);
	for (i = 0; i < 4; i++)
		CHECK(dmp_credit_take(&sender, 100) == 0);
	CHECK(dmp_credit_hear(&sender, &grant) == 0);
	CHECK(dmp_credit_take(&sender, 0) == -EAGAIN);
}

static void test_late_grant_does_not_take_back_or_mint(void)
{
	struct dmp_credit_grant old = { { 2, 20 }, 1, EPOCH };
	struct dmp_credit_grant new = { { 5, 50 }, 4, EPOCH };	/* 2 and 3 merged in */
	struct dmp_credit_sender sender;

	dmp_credit_sender_init(&sender, EPOCH);
	CHECK(dmp_credit_hear(&sender, &new) == 0);
	CHECK(dmp_credit_hear(&sender, &old) == 0);
	CHECK(sender.ledger.available.slots == 5 && sender.ledger.available.bytes == 50);
}

static void test_grant_of_another_epoch_is_stale(void)
{
	struct dmp_credit_grant grant = { { 4, 400 }, 1, EPOCH - 1 };
	struct dmp_credit_sender sender;

	dmp_credit_sender_init(&sender, EPOCH);
	CHECK(dmp_credit_hear(&sender, &grant) == -ESTALE);
	grant.epoch = EPOCH + 1;
	CHECK(dmp_credit_hear(&sender, &grant) == -ESTALE);
	CHECK(dmp_credit_take(&sender, 0) == -EAGAIN);
}

static void test_grant_that_contradicts_an_earlier_one_is_a_broken_protocol(void)
{
	struct dmp_credit_grant grant = { { 4, 400 }, 3, EPOCH };
	struct dmp_credit_sender sender;

	dmp_credit_sender_init(&sender, EPOCH);
	CHECK(dmp_credit_hear(&sender, &grant) == 0);
	grant.total.slots = 5;
	CHECK(dmp_credit_hear(&sender, &grant) == -EPROTO);
	grant.sequence = 4;
	grant.total.slots = 3;
	CHECK(dmp_credit_hear(&sender, &grant) == -EPROTO);
	grant.total.slots = 4;
	grant.total.bytes = 399;
	CHECK(dmp_credit_hear(&sender, &grant) == -EPROTO);
	CHECK(sender.ledger.granted.slots == 4 && sender.ledger.granted.bytes == 400);
}

static void test_totals_near_the_end_of_64_bits_do_not_wrap(void)
{
	struct dmp_credit_grant grant = { { ~0ULL, ~0ULL }, ~0ULL, EPOCH };
	struct dmp_credit_sender sender;

	dmp_credit_sender_init(&sender, EPOCH);
	CHECK(dmp_credit_hear(&sender, &grant) == 0);
	CHECK(dmp_credit_take(&sender, ~0ULL) == 0);
	CHECK(dmp_credit_check(&sender.ledger) == 0);
	CHECK(dmp_credit_take(&sender, 1) == -EAGAIN);
	CHECK(dmp_credit_complete(&sender, ~0ULL) == 0);
	CHECK(dmp_credit_check(&sender.ledger) == 0);
	/* a sum that would wrap is not taken for one that adds up */
	sender.ledger.available.slots = ~0ULL;
	sender.ledger.in_flight.slots = ~0ULL;
	CHECK(dmp_credit_check(&sender.ledger) == -EPROTO);
}

static void test_check_sees_a_change_of_any_column(void)
{
	struct dmp_credit_sender sender;
	__u64 *columns[8];
	int i;

	dmp_credit_sender_init(&sender, EPOCH);
	columns[0] = &sender.ledger.granted.slots;
	columns[1] = &sender.ledger.granted.bytes;
	columns[2] = &sender.ledger.available.slots;
	columns[3] = &sender.ledger.available.bytes;
	columns[4] = &sender.ledger.in_flight.slots;
	columns[5] = &sender.ledger.in_flight.bytes;
	columns[6] = &sender.ledger.completed.slots;
	columns[7] = &sender.ledger.completed.bytes;
	for (i = 0; i < 8; i++) {
		*columns[i] += 1;
		CHECK(dmp_credit_check(&sender.ledger) == -EPROTO);
		*columns[i] -= 1;
		CHECK(dmp_credit_check(&sender.ledger) == 0);
	}
}

/* Bring @receiver to: everything told, @arrived messages in, @released out again. */
static void prepare(struct dmp_credit_receiver *receiver, int arrived, int released)
{
	struct dmp_credit_amount window = { 16, 1600 };
	struct dmp_credit_grant grant;
	int i;

	CHECK(dmp_credit_receiver_init(receiver, EPOCH, window) == 0);
	CHECK(dmp_credit_due(receiver));
	dmp_credit_tell(receiver, &grant);
	for (i = 0; i < arrived; i++)
		CHECK(dmp_credit_arrive(receiver, 100) == 0);
	for (i = 0; i < released; i++)
		CHECK(dmp_credit_release(receiver, 100) == 0);
}

static void test_watermarks_batch_grants_and_flush_bounds_the_wait(void)
{
	struct dmp_credit_receiver receiver;

	prepare(&receiver, 8, 0);
	CHECK(!dmp_credit_due(&receiver));	/* nothing to tell */
	dmp_credit_flush(&receiver);
	CHECK(!dmp_credit_due(&receiver));
	prepare(&receiver, 8, 7);
	CHECK(!dmp_credit_due(&receiver));	/* between the marks: wait */
	dmp_credit_flush(&receiver);
	CHECK(dmp_credit_due(&receiver));	/* but not for ever */
	prepare(&receiver, 8, 8);
	CHECK(dmp_credit_due(&receiver));	/* high mark of room is back */
	prepare(&receiver, 12, 1);
	CHECK(dmp_credit_due(&receiver));	/* sender at the low mark */
	prepare(&receiver, 11, 1);
	CHECK(!dmp_credit_due(&receiver));
}

static void test_stalls_are_counted_and_timed(void)
{
	struct dmp_credit_sender sender;

	dmp_credit_sender_init(&sender, EPOCH);
	dmp_credit_stall_begin(&sender, 100);
	dmp_credit_stall_begin(&sender, 150);
	dmp_credit_stall_end(&sender, 175);
	dmp_credit_stall_end(&sender, 500);
	dmp_credit_stall_begin(&sender, 1000);
	dmp_credit_stall_end(&sender, 1001);
	CHECK(sender.stalls == 2 && sender.stall_ns == 76);
}

static void test_window_of_nothing_is_refused(void)
{
	struct dmp_credit_amount window = { 0, 10 };
	struct dmp_credit_receiver receiver;

	CHECK(dmp_credit_receiver_init(&receiver, EPOCH, window) == -EINVAL);
	window.slots = 10;
	window.bytes = 0;
	CHECK(dmp_credit_receiver_init(&receiver, EPOCH, window) == -EINVAL);
}

int main(void)
{
	test_no_order_of_events_mints_or_overruns();
	test_duplicate_grant_does_not_mint();
	test_late_grant_does_not_take_back_or_mint();
	test_grant_of_another_epoch_is_stale();
	test_grant_that_contradicts_an_earlier_one_is_a_broken_protocol();
	test_totals_near_the_end_of_64_bits_do_not_wrap();
	test_check_sees_a_change_of_any_column();
	test_watermarks_batch_grants_and_flush_bounds_the_wait();
	test_stalls_are_counted_and_timed();
	test_window_of_nothing_is_refused();
	return 0;
}
