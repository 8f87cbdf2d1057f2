// SPDX-License-Identifier: MIT
/*
 * test_errand.c - L5 for MOVE and COPY: what can be dropped is dropped at once, what a device has
 * is answered when it has given it back; each errand is answered once, in order
 */
#include "check.h"
#include "errand.h"

#define ROOM 5u

static struct dmp_errand ring[ROOM];
static struct dmp_errands errands;

static void begin(__u32 first)
{
	dmp_errands_init(&errands, ring, ROOM);
	errands.first = first;
}

static void ask(__u64 tag, __u64 length, __u32 kind)
{
	struct dmp_endpoint_request request = {
		.tag = tag, .length_bytes = length, .kind = kind, .local = tag | 1ull << 32,
	};

	errands.wait = true;
	dmp_errands_add(&errands, &request);
	CHECK(!errands.wait);
}

static struct dmp_endpoint_answer take(void)
{
	struct dmp_endpoint_answer answer;
	struct dmp_errand errand;

	CHECK(errands.count != 0 && dmp_errand_is_over(dmp_errands_at(&errands, 0)));
	dmp_errands_take(&errands, &errand, &answer);
	CHECK(answer.tag == errand.tag && errand.index == (__u32)errand.tag);
	return answer;
}

/* Half of it is copied by ourselves: between two slices nobody touches the buffer. */
static void test_what_we_copy_is_dropped_half_way(void)
{
	static const __u32 kinds[] = { DMP_REQUEST_MOVE, DMP_REQUEST_COPY };
	unsigned int which, done;

	for (which = 0; which < 2; which++)
		for (done = 0; done <= 10; done++) {
			begin(0);
			ask(7, 10, kinds[which]);
			dmp_errands_at(&errands, 0)->done = done;
			CHECK(dmp_errands_drop(&errands, 7) == 0);
			CHECK(errands.count == 0 && !dmp_errands_is_stopping(&errands));
			CHECK(dmp_errands_drop(&errands, 7) == -ENOENT);
		}
}

/* However much of it the device was given and has given back. */
static void test_what_a_device_has_is_answered_when_it_is_back(void)
{
	unsigned int posted, done;

	for (posted = 0; posted <= 10; posted++)
		for (done = 0; done <= posted; done++) {
			struct dmp_errand *errand;
			__u32 number = 0;

			begin(0);
			ask(7, 10, DMP_REQUEST_MOVE);
			errand = dmp_errands_at(&errands, 0);
			errand->posted = posted;
			errand->done = done;
			CHECK(dmp_errand_is_over(errand) == (done == 10));
			if (posted == done) {
				CHECK(dmp_errands_drop(&errands, 7) == 0);
				continue;
			}
			CHECK(dmp_errands_drop(&errands, 7) == -EINPROGRESS);
			CHECK(dmp_errands_is_stopping(&errands) && !dmp_errand_is_over(errand));
			CHECK(!dmp_errands_give_back(&errands, &number, 7, posted - done));
			CHECK(take().kind == (posted == 10 ? DMP_REQUEST_MOVE : DMP_REQUEST_STOP));
			CHECK(!dmp_errands_is_stopping(&errands));
		}
}

/* Every subset dropped, from every place in the ring: the others stay, in order. */
static void test_others_stay_in_order(void)
{
	unsigned int first, subset, tag;

	for (first = 0; first < ROOM; first++)
		for (subset = 0; subset < 1u << ROOM; subset++) {
			begin(first);
			for (tag = 0; tag < ROOM; tag++)
				ask(tag, 0, DMP_REQUEST_MOVE);
			for (tag = 0; tag < ROOM; tag++)
				if (subset >> tag & 1)
					CHECK(dmp_errands_drop(&errands, tag) == 0);
			for (tag = 0; tag < ROOM; tag++)
				if (!(subset >> tag & 1))
					CHECK(take().tag == tag);
			CHECK(errands.count == 0);
		}
}

static void test_device_gives_back_in_order(void)
{
	struct dmp_endpoint_answer answer;
	__u32 number = 0;

	begin(ROOM - 1);
	ask(1, 10, DMP_REQUEST_MOVE);
	ask(2, 10, DMP_REQUEST_COPY);
	ask(3, 10, DMP_REQUEST_MOVE);
	dmp_errands_at(&errands, 0)->posted = 10;
	dmp_errands_at(&errands, 1)->done = 10;
	dmp_errands_at(&errands, 2)->posted = 10;
	CHECK(!dmp_errands_give_back(&errands, &number, 1, 4));
	CHECK(!dmp_errands_give_back(&errands, &number, 1, 6));
	CHECK(!dmp_errands_give_back(&errands, &number, 3, 10));
	CHECK(dmp_errands_give_back(&errands, &number, 4, 1) == -ENOENT);
	dmp_errands_at(&errands, 1)->result = -ESTALE;
	CHECK(take().length_bytes == 10);
	answer = take();
	CHECK(answer.result == -ESTALE && answer.kind == DMP_REQUEST_COPY);
	CHECK(take().tag == 3);
}

/* One that fails is over as soon as nothing of it is under way. */
static void test_failure_waits_for_what_is_under_way(void)
{
	__u32 number = 0;

	begin(0);
	ask(1, 10, DMP_REQUEST_MOVE);
	dmp_errands_at(&errands, 0)->posted = 6;
	dmp_errands_at(&errands, 0)->result = -ESTALE;
	CHECK(!dmp_errand_is_over(dmp_errands_at(&errands, 0)));
	CHECK(!dmp_errands_give_back(&errands, &number, 1, 6));
	CHECK(take().result == -ESTALE);
}

int main(void)
{
	test_what_we_copy_is_dropped_half_way();
	test_what_a_device_has_is_answered_when_it_is_back();
	test_others_stay_in_order();
	test_device_gives_back_in_order();
	test_failure_waits_for_what_is_under_way();
	return 0;
}
