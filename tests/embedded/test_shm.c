// SPDX-License-Identifier: MIT
/*
 * test_shm.c - the two rings between two processes: order, sleep, lies, the end
 *
 * One law a function. Moves into regions are in test_shm_moves.c.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "shm_pair.h"

/* Byte number @index of every stream here. */
static unsigned char byte_at(uint64_t index)
{
	return (unsigned char)((index * 0x9e3779b97f4a7c15u) >> 56);
}

static void fill(unsigned char *bytes, uint64_t first, size_t length)
{
	for (size_t i = 0; i < length; i++)
		bytes[i] = byte_at(first + i);
}

static void compare(const unsigned char *bytes, uint64_t first, size_t length)
{
	for (size_t i = 0; i < length; i++)
		CHECK(bytes[i] == byte_at(first + i));
}

static void test_two_ends_in_one_process(void)
{
	struct pair pair = pair_open();
	char bytes[16];

	CHECK(pair.acceptor.fabric->type->direct);
	CHECK(pair.acceptor.fabric->type->path == DMP_PATH_SHM);
	CHECK(!pair.acceptor.fabric->type->ready(pair.acceptor.fabric));
	CHECK(end_receive(&pair.acceptor, bytes, 16) == 0);
	CHECK(end_send(&pair.connector, "there", 5) == 5);
	CHECK(pair.acceptor.fabric->type->ready(pair.acceptor.fabric));
	CHECK(end_receive(&pair.acceptor, bytes, 16) == 5 && !memcmp(bytes, "there", 5));
	CHECK(end_send(&pair.acceptor, "and back", 8) == 8);
	CHECK(end_receive(&pair.connector, bytes, 3) == 3 && !memcmp(bytes, "and", 3));
	CHECK(end_receive(&pair.connector, bytes, 16) == 5 && !memcmp(bytes, " back", 5));
	CHECK(end_receive(&pair.connector, bytes, 16) == 0);
	pair_close(&pair);
}

/* ---- the stream */

/* Up to 4 pieces of @most bytes in all, some of them empty. */
static int cut(uint64_t *seed, unsigned char *bytes, size_t most, struct iovec pieces[4])
{
	int count = 1 + (int)(next_random(seed) % 4);
	size_t at = 0;

	for (int i = 0; i < count; i++) {
		size_t length = next_random(seed) % (most / 4 + 1);

		if (next_random(seed) % 8 == 0)
			length = 0;
		pieces[i] = (struct iovec){ bytes + at, length };
		at += length;
	}
	return count;
}

static size_t most_of(uint64_t *seed)
{
	static const size_t sizes[] = { 8, 200, 5000, 100000, 600000 };

	return sizes[next_random(seed) % 5];
}

static uint64_t send_some(struct end *end, uint64_t *seed, uint64_t sent, unsigned char *room)
{
	struct iovec pieces[4];
	size_t most = most_of(seed);
	int count = cut(seed, room, most, pieces);
	ssize_t ret;

	fill(room, sent, most);
	ret = end->fabric->type->send(end->fabric, pieces, count);
	CHECK(ret >= 0 && (size_t)ret <= most);
	return sent + (uint64_t)ret;
}

static uint64_t receive_some(struct end *end, uint64_t *seed, uint64_t received,
			     unsigned char *room)
{
	struct iovec pieces[4];
	int count = cut(seed, room, most_of(seed), pieces);
	ssize_t ret = end->fabric->type->receive(end->fabric, pieces, count);

	CHECK(ret >= 0);
	compare(room, received, (size_t)ret);
	return received + (uint64_t)ret;
}

static void test_bytes_arrive_in_order_whatever_the_pieces(void)
{
	static unsigned char out[600000], in[600000];
	struct pair pair = pair_open();
	uint64_t seed = 0x5eed, sent = 0, received = 0;

	while (received < 24u << 20) {
		for (uint64_t i = next_random(&seed) % 8; i; i--)
			sent = send_some(&pair.connector, &seed, sent, out);
		for (uint64_t i = next_random(&seed) % 8; i; i--)
			received = receive_some(&pair.acceptor, &seed, received, in);
		CHECK(received <= sent && sent - received <= DMP_SHM_RING_BYTES);
		CHECK(pair.acceptor.fabric->type->ready(pair.acceptor.fabric) == (sent != received));
		if (next_random(&seed) % 64 == 0)
			pair.acceptor.fabric->type->rest(pair.acceptor.fabric);
		pair.acceptor.fabric->type->wake(pair.acceptor.fabric);
	}
	pair_close(&pair);
}

static void test_a_full_ring_takes_nothing_and_says_when_there_is_room(void)
{
	static unsigned char bytes[DMP_SHM_RING_BYTES + 1];
	struct pair pair = pair_open();
	const struct dmp_fabric_type *type = pair.connector.fabric->type;

	CHECK(end_send(&pair.connector, bytes, sizeof(bytes)) == DMP_SHM_RING_BYTES);
	CHECK(!type->ready(pair.connector.fabric));
	CHECK(type->rest(pair.connector.fabric));
	CHECK(end_receive(&pair.acceptor, bytes, sizeof(bytes)) == DMP_SHM_RING_BYTES);
	wait_readable(pair.connector.fabric->fd);
	CHECK(!type->drain(pair.connector.fabric));
	type->wake(pair.connector.fabric);
	CHECK(type->ready(pair.connector.fabric));
	CHECK(end_send(&pair.connector, bytes, DMP_SHM_RING_BYTES) == DMP_SHM_RING_BYTES);
	CHECK(end_send(&pair.connector, bytes, 1) == 0);
	CHECK(!type->ready(pair.connector.fabric));
	CHECK(type->rest(pair.connector.fabric));
	CHECK(end_receive(&pair.acceptor, bytes, sizeof(bytes)) == DMP_SHM_RING_BYTES);
	wait_readable(pair.connector.fabric->fd);
	CHECK(!type->drain(pair.connector.fabric));
	type->wake(pair.connector.fabric);
	CHECK(type->ready(pair.connector.fabric));
	CHECK(end_send(&pair.connector, bytes, 1) == 1);
	CHECK(!type->ready(pair.connector.fabric));
	pair_close(&pair);
}

/* A heartbeat now and then must not walk through the whole ring. */
static void test_an_idle_connection_keeps_to_a_few_pages(void)
{
	struct pair pair = pair_open();
	unsigned char resident[256] = { 0 };
	size_t pages = 0, page = (size_t)sysconf(_SC_PAGESIZE), of = pair.connector.shm->segment_bytes;
	char frame[64];

	for (int beat = 0; beat < 100000; beat++) {
		struct end *from = beat & 1 ? &pair.connector : &pair.acceptor;
		struct end *to = beat & 1 ? &pair.acceptor : &pair.connector;

		CHECK(end_send(from, frame, sizeof(frame)) == sizeof(frame));
		CHECK(end_receive(to, frame, sizeof(frame)) == sizeof(frame));
		CHECK(to->fabric->type->rest(to->fabric));
		to->fabric->type->wake(to->fabric);
	}
	CHECK(!mincore(pair.connector.shm->segment, of, resident));
	for (size_t i = 0; i < (of + page - 1) / page; i++)
		pages += resident[i] & 1;
	CHECK(pages <= 3);
	pair_close(&pair);
}

/* ---- sleep */

#define STORM_BYTES (6u << 20)

/* Sends and receives STORM_BYTES, and sleeps as soon as it may, or looks a few times before. */
static void storm(struct end *end, uint64_t seed)
{
	static unsigned char out[600000], in[600000];
	uint64_t sent = 0, received = 0;
	ssize_t ret;

	while (sent < STORM_BYTES || received < STORM_BYTES) {
		if (sent < STORM_BYTES && next_random(&seed) % 4)
			sent = send_some(end, &seed, sent, out);
		if (next_random(&seed) % 4)
			received = receive_some(end, &seed, received, in);
		if (next_random(&seed) % 3)
			continue;
		/* Who sleeps has tried to send all it has. */
		if (sent < STORM_BYTES) {
			fill(out, sent, sizeof(out));
			ret = end_send(end, out, sizeof(out));
			CHECK(ret >= 0);
			sent += (uint64_t)ret;
		}
		if (sent >= STORM_BYTES && received >= STORM_BYTES)
			break;
		/* The last bytes may be with us while the other side has gone already. */
		if (end_sleep(end))
			CHECK(received + DMP_SHM_RING_BYTES >= STORM_BYTES);
	}
}

/* A lost wake-up leaves both asleep, and end_sleep() out of patience. */
static void test_no_wakeup_is_lost(void)
{
	for (uint64_t seed = 1; seed <= 6; seed++) {
		int socket;
		pid_t child = fork_connected(&socket);
		struct end end;

		if (!child) {
			end = end_answer(socket);
			storm(&end, seed * 77);
			end_close(&end);
			_exit(0);
		}
		end = end_offer(socket);
		storm(&end, seed);
		end_close(&end);
		reap(child);
	}
}

/* One frame at a time, both sleeping between them: 20,000 sleeps each. */
static void test_ping_pong_asleep(void)
{
	unsigned char frame[160], answer[160];
	int socket;
	pid_t child = fork_connected(&socket);
	struct end end;

	if (!child) {
		end = end_answer(socket);
		for (int i = 0; i < 20000; i++) {
			end_receive_all(&end, frame, sizeof(frame));
			end_send_all(&end, frame, sizeof(frame));
		}
		end_close(&end);
		_exit(0);
	}
	end = end_offer(socket);
	for (int i = 0; i < 20000; i++) {
		fill(frame, (uint64_t)i, sizeof(frame));
		end_send_all(&end, frame, sizeof(frame));
		end_receive_all(&end, answer, sizeof(answer));
		CHECK(!memcmp(frame, answer, sizeof(frame)));
	}
	end_close(&end);
	reap(child);
}

static void test_a_sleeper_is_rung_for_once(void)
{
	struct pair pair = pair_open();
	struct dmp_fabric *sleeper = pair.acceptor.fabric;
	char byte;

	CHECK(sleeper->type->rest(sleeper));
	for (int i = 0; i < 10; i++)
		CHECK(end_send(&pair.connector, "x", 1) == 1);
	CHECK(recv(sleeper->fd, &byte, 1, MSG_DONTWAIT) == 1);
	CHECK(recv(sleeper->fd, &byte, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN);
	sleeper->type->wake(sleeper);
	CHECK(end_send(&pair.connector, "x", 1) == 1);
	CHECK(recv(sleeper->fd, &byte, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN);
	CHECK(!sleeper->type->rest(sleeper));
	pair_close(&pair);
}

/* ---- lies in the shared words */

static void test_impossible_indices_are_refused(void)
{
	char bytes[64];

	for (int lie = 0; lie < 4; lie++) {
		struct pair pair = pair_open();
		struct dmp_shm_side *liar = pair.connector.shm->ours;
		struct end *victim = &pair.acceptor;

		CHECK(end_send(&pair.connector, bytes, 40) == 40);
		CHECK(end_receive(victim, bytes, 8) == 8);
		CHECK(end_send(victim, bytes, 8) == 8);
		if (lie == 0)
			liar->tail = 8 + DMP_SHM_RING_BYTES + 1;
		if (lie == 1)
			liar->tail = 39;	/* it said 40 before */
		if (lie < 2) {
			CHECK(end_receive(victim, bytes, 64) == -EPROTO);
			CHECK(victim->fabric->type->ready(victim->fabric));
			CHECK(!victim->fabric->type->rest(victim->fabric));
		}
		if (lie == 2)
			liar->head = 1u << 20;	/* more than was sent */
		if (lie == 3)
			liar->head = -1u;
		if (lie >= 2)
			for (int i = 0; i < 4096; i++)	/* the head is read once a page */
				if (end_send(victim, bytes, 8) != 8)
					break;
		CHECK(end_send(victim, bytes, 8) == -EPROTO);
		CHECK(end_receive(victim, bytes, 8) == -EPROTO);
		pair_close(&pair);
	}
}

/* Any words at all: what comes is refused or harmless bytes, within the buffers given. */
static void test_random_words_do_no_harm(void)
{
	unsigned char *bytes = malloc(5000);
	uint64_t seed = 0xbad;

	CHECK(bytes);
	for (int round = 0; round < 300; round++) {
		struct pair pair = pair_open();
		struct end *victim = &pair.acceptor;
		const struct dmp_fabric_type *type = victim->fabric->type;

		for (int step = 0; step < 50; step++) {
			uint32_t *words = (uint32_t *)pair.connector.shm->ours;
			uint32_t word = (uint32_t)next_random(&seed) % 4 * (DMP_SHM_LINE_BYTES / 4) +
					(uint32_t)next_random(&seed) % 2;

			words[word] = (uint32_t)next_random(&seed) >> next_random(&seed) % 32;
			end_send(victim, bytes, next_random(&seed) % 5000);
			end_receive(victim, bytes, next_random(&seed) % 5000);
			type->ready(victim->fabric);
			type->rest(victim->fabric);
			dmp_shm_is_touching(victim->fabric, (uint32_t)next_random(&seed));
			type->wake(victim->fabric);
		}
		/* Whatever it claims to touch, its process is ours: let go, to be forgotten. */
		pair_close(&pair);
	}
	free(bytes);
}

/* ---- the end */

static void test_what_was_written_before_the_end_is_received(void)
{
	static unsigned char bytes[100000];

	for (int violent = 0; violent < 2; violent++) {
		int socket;
		pid_t child = fork_connected(&socket);
		struct end end;

		if (!child) {
			end = end_answer(socket);
			fill(bytes, 5, sizeof(bytes));
			end_send_all(&end, bytes, sizeof(bytes));
			if (violent)
				raise(SIGKILL);
			_exit(0);
		}
		end = end_offer(socket);
		while (!end.fabric->type->drain(end.fabric))
			wait_readable(end.fabric->fd);
		CHECK(end.fabric->type->drain(end.fabric) == -ECONNRESET);
		CHECK(end.fabric->type->ready(end.fabric));
		CHECK(!end.fabric->type->rest(end.fabric));
		CHECK(end_send(&end, bytes, 1) == -ECONNRESET);
		memset(bytes, 0, sizeof(bytes));
		CHECK(end_receive(&end, bytes, 50000) == 50000);
		CHECK(end_receive(&end, bytes + 50000, sizeof(bytes)) == 50000);
		compare(bytes, 5, sizeof(bytes));
		CHECK(end_receive(&end, bytes, 1) == -ECONNRESET);
		end_close(&end);
		CHECK(waitpid(child, NULL, 0) == child);
	}
}

static void test_a_close_is_the_end_for_the_other_side(void)
{
	struct pair pair = pair_open();
	char bytes[8];

	CHECK(end_send(&pair.connector, "last", 4) == 4);
	CHECK(pair.acceptor.fabric->type->rest(pair.acceptor.fabric) == false);
	end_close(&pair.connector);
	wait_readable(pair.acceptor.fabric->fd);
	CHECK(pair.acceptor.fabric->type->drain(pair.acceptor.fabric) == -ECONNRESET);
	CHECK(end_receive(&pair.acceptor, bytes, 8) == 4 && !memcmp(bytes, "last", 4));
	CHECK(end_receive(&pair.acceptor, bytes, 8) == -ECONNRESET);
	end_close(&pair.acceptor);
}

static void test_everything_is_given_back(void)
{
	unsigned int descriptors, segments;
	struct pair pair = pair_open();

	pair_close(&pair);
	descriptors = count_descriptors();
	segments = count_segments_mapped();
	for (int i = 0; i < 200; i++) {
		pair = pair_open();
		CHECK(end_send(&pair.acceptor, "x", 1) == 1);
		pair_close(&pair);
	}
	CHECK(count_descriptors() == descriptors);
	CHECK(count_segments_mapped() == segments);
}

int main(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	test_two_ends_in_one_process();
	test_bytes_arrive_in_order_whatever_the_pieces();
	test_a_full_ring_takes_nothing_and_says_when_there_is_room();
	test_an_idle_connection_keeps_to_a_few_pages();
	test_no_wakeup_is_lost();
	test_ping_pong_asleep();
	test_a_sleeper_is_rung_for_once();
	test_impossible_indices_are_refused();
	test_random_words_do_no_harm();
	test_what_was_written_before_the_end_is_received();
	test_a_close_is_the_end_for_the_other_side();
	test_everything_is_given_back();
	return 0;
}
