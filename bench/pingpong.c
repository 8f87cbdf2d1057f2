// SPDX-License-Identifier: MIT
/*
 * pingpong.c - what the far side of an endpoint does, and a round trip with C at both ends
 *
 * Each side is one thread on one channel, driven through the plane's dmp_client_exchange.
 * A peer's WRITE_IMM shows as an event in the same ring as the completions of
 * one's own; both are counted, so that nothing is left in the ring at the end.
 */
#include <errno.h>

#include "loops.h"

#define TAKEN_MAX 1024u

/* What came out of a channel so far. */
struct tally {
	uint64_t events;		/* WRITE_IMM of the peer */
	uint64_t own;			/* completions of our own */
	uint64_t immediates;		/* sum of those of the events */
};

/* Adds @count completions; the first that is a failure or the end of an endpoint, as its errno. */
static int add(struct tally *tally, const struct dmp_completion *completions, int count)
{
	int index;

	for (index = 0; index < count; index++) {
		const struct dmp_completion *one = &completions[index];

		if (!(one->flags & DMP_COMPLETE_EVENT)) {
			if (one->result)
				return one->result;
			tally->own++;
		} else if (one->operation == DMP_EVENT_WRITE_IMM) {
			tally->events++;
			tally->immediates += one->immediate;
		} else if (one->operation == DMP_EVENT_ENDPOINT_LOST) {
			return one->result ? one->result : -ECONNRESET;
		}
	}
	return 0;
}

/* One exchange that waits for @wait completions, its outcome in @tally. */
static int exchange_once(dmp_bench_exchange exchange, struct dmp_client *client,
			 const struct dmp_submission *row, uint32_t wait, struct tally *tally)
{
	struct dmp_completion taken[TAKEN_MAX];
	uint32_t pushed = 0;
	int got;

	got = exchange(client, row, row ? 1 : 0, &pushed, taken, TAKEN_MAX, wait, 0);
	if (got == -EINTR || got == -EAGAIN)
		got = 0;
	if (got < 0)
		return got;
	got = add(tally, taken, got);
	return got ? got : (int)pushed;
}

int dmp_bench_drain(dmp_bench_exchange exchange, struct dmp_client *client, uint64_t count,
		    uint32_t wait, uint64_t *immediates, uint64_t *end_ns)
{
	struct tally tally = { 0 };

	while (tally.events < count) {
		uint64_t left = count - tally.events;
		int answer = exchange_once(exchange, client, NULL,
					   left < wait ? (uint32_t)left : wait, &tally);

		if (answer < 0)
			return answer;
	}
	*immediates = tally.immediates;
	*end_ns = dmp_bench_now_ns();
	return 0;
}

int dmp_bench_pingpong(dmp_bench_exchange exchange, struct dmp_client *client,
		       const struct dmp_submission *row, int first, uint64_t count,
		       uint64_t *each_ns)
{
	struct tally tally = { 0 };
	uint64_t index;
	int answer;

	for (index = 0; index < count; index++) {
		uint64_t begin = dmp_bench_now_ns();

		while (!first && tally.events <= index) {
			answer = exchange_once(exchange, client, NULL, 1, &tally);
			if (answer < 0)
				return answer;
		}
		do {
			answer = exchange_once(exchange, client, row, first ? 1 : 0, &tally);
			if (answer < 0)
				return answer;
		} while (!answer);
		while (first && tally.events <= index) {
			answer = exchange_once(exchange, client, NULL, 1, &tally);
			if (answer < 0)
				return answer;
		}
		each_ns[index] = dmp_bench_now_ns() - begin;
	}
	while (tally.own < count) {
		answer = exchange_once(exchange, client, NULL, 1, &tally);
		if (answer < 0)
			return answer;
	}
	return 0;
}

/* ---- messages */

#define RECEIVES_AHEAD 4u

/* What of SENDs and RECVs has completed. */
struct post {
	uint64_t sent;
	uint64_t received;
	uint64_t posted;		/* RECVs */
};

/* Pushes up to two rows and waits for @wait completions. */
static int exchange_messages(dmp_bench_exchange exchange, struct dmp_client *client,
			     const struct dmp_submission *rows, uint32_t count, uint32_t wait,
			     struct post *post)
{
	struct dmp_completion taken[64];
	uint32_t pushed = 0, total = 0;
	int got, index;

	do {
		got = exchange(client, rows + total, count - total, &pushed, taken, 64, wait, 0);
		if (got < 0 && got != -EINTR && got != -EAGAIN)
			return got;
		total += pushed;
		for (index = 0; index < got; index++) {
			if (taken[index].flags & DMP_COMPLETE_EVENT) {
				if (taken[index].operation == DMP_EVENT_ENDPOINT_LOST)
					return -ECONNRESET;
				continue;
			}
			if (taken[index].result)
				return taken[index].result;
			post->sent += taken[index].operation == DMP_OP_SEND;
			post->received += taken[index].operation == DMP_OP_RECV;
		}
	} while (total < count);
	return 0;
}

int dmp_bench_messages(dmp_bench_exchange exchange, struct dmp_client *client,
		       const struct dmp_submission *rows, int first, uint64_t count,
		       uint64_t *each_ns)
{
	struct post post = { 0 };
	uint64_t index;
	int answer = 0;

	for (; !answer && post.posted < RECEIVES_AHEAD && post.posted < count; post.posted++)
		answer = exchange_messages(exchange, client, &rows[1], 1, 0, &post);
	for (index = 0; !answer && index < count; index++) {
		uint64_t begin = dmp_bench_now_ns();
		uint32_t more = post.posted < count;

		while (!answer && !first && post.received <= index)
			answer = exchange_messages(exchange, client, NULL, 0, 1, &post);
		if (!answer)
			answer = exchange_messages(exchange, client, rows, 1 + more, first, &post);
		post.posted += more;
		while (!answer && first && post.received <= index)
			answer = exchange_messages(exchange, client, NULL, 0, 1, &post);
		each_ns[index] = dmp_bench_now_ns() - begin;
	}
	while (!answer && (post.sent < count || post.received < count))
		answer = exchange_messages(exchange, client, NULL, 0, 1, &post);
	return answer;
}
