// SPDX-License-Identifier: MIT
/* test_deadline.c - the deadline heap against a plain table */
#include "check.h"
#include "deadline.h"

#define CAPACITY 13
#define ROUNDS	 200000

static __u64 state = 2463534242ULL;

static __u32 below(__u32 limit)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (__u32)(state >> 32) % limit;
}

/* The smallest deadline of the table, ~0 if it is empty. */
static __u64 smallest(const __u64 *table)
{
	__u64 least = ~0ULL;
	__u32 i;

	for (i = 0; i < CAPACITY; i++)
		if (table[i] && table[i] < least)
			least = table[i];
	return least;
}

static void test_next_is_always_the_smallest(void)
{
	__u64 memory[64], table[CAPACITY] = { 0 }, deadline_ns;
	struct dmp_deadline_heap heap;
	__u32 round, index, next;

	CHECK(dmp_deadline_bytes(CAPACITY) <= sizeof(memory));
	dmp_deadline_init(&heap, memory, CAPACITY);
	for (round = 0; round < ROUNDS; round++) {
		index = below(CAPACITY);
		if (below(2)) {
			deadline_ns = 1 + below(20);
			CHECK(dmp_deadline_insert(&heap, index, deadline_ns) ==
			      (table[index] ? -EEXIST : 0));
			if (!table[index])
				table[index] = deadline_ns;
		} else {
			CHECK(dmp_deadline_remove(&heap, index) == (table[index] ? 0 : -ENOENT));
			table[index] = 0;
		}
		if (smallest(table) == ~0ULL) {
			CHECK(!dmp_deadline_next(&heap, &next, &deadline_ns));
		} else {
			CHECK(dmp_deadline_next(&heap, &next, &deadline_ns));
			CHECK(deadline_ns == smallest(table) && table[next] == deadline_ns);
		}
	}
}

static void test_index_out_of_range_is_refused(void)
{
	struct dmp_deadline_heap heap;
	__u64 memory[64];

	dmp_deadline_init(&heap, memory, CAPACITY);
	CHECK(dmp_deadline_insert(&heap, CAPACITY, 1) == -EINVAL);
	CHECK(dmp_deadline_remove(&heap, CAPACITY) == -ENOENT);
}

int main(void)
{
	test_next_is_always_the_smallest();
	test_index_out_of_range_is_refused();
	return 0;
}
