// SPDX-License-Identifier: MIT
/*
 * test_tls.c - keys against their standard, who may ask for encryption, and that not one byte
 * of a stream is sent or read in the wrong form when the form changes
 *
 * What the kernel makes of it is tests/kernel/test_encrypted.py.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>

#include "stream_pair.h"
#include "door_session.h"
#include "tls.h"

#define SEEDS	300u
#define VEILED_BYTES (1u << 16)	/* of each direction that are looked at */

static void from_hex(const char *text, __u8 *bytes)
{
	unsigned int value;

	for (; *text; text += 2) {
		CHECK(sscanf(text, "%2x", &value) == 1);
		*bytes++ = (__u8)value;
	}
}

static void test_hkdf_gives_the_examples_of_rfc_5869(void)
{
	static const struct {
		int input_first, input_step;
		size_t input_bytes;
		int salt_first;
		size_t salt_bytes;
		int info_first;
		size_t info_bytes, length;
		const char *key, *output;
	} rows[] = {
		{ 0x0b, 0, 22, 0x00, 13, 0xf0, 10, 42,
		  "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5",
		  "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"
		  "34007208d5b887185865" },
		{ 0x00, 1, 80, 0x60, 80, 0xb0, 80, 82,
		  "06a6b88c5853361a06104c9ceb35b45cef760014904671014a193f40c15fc244",
		  "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c"
		  "59045a99cac7827271cb41c65e590e09da3275600c2f09b8367793a9aca3db71"
		  "cc30c58179ec3e87c14c01d5c1f3434f1d87" },
		{ 0x0b, 0, 22, 0, 0, 0, 0, 42,
		  "19ef24a32c717b167f33a91d6f648bdf96596776afdb6377ac434c1c293ccb04",
		  "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"
		  "9d201395faa4b61a96c8" },
	};
	__u8 input[80], salt[80], info[80], key[DMP_SHA256_BYTES], right[82], output[82];
	unsigned int row;
	int i;

	for (row = 0; row < sizeof(rows) / sizeof(rows[0]); row++) {
		for (i = 0; i < 80; i++) {
			input[i] = (__u8)(rows[row].input_first + i * rows[row].input_step);
			salt[i] = (__u8)(rows[row].salt_first + i);
			info[i] = (__u8)(rows[row].info_first + i);
		}
		dmp_hkdf_extract(salt, rows[row].salt_bytes, input, rows[row].input_bytes, key);
		from_hex(rows[row].key, right);
		CHECK(!memcmp(key, right, sizeof(key)));
		dmp_hkdf_expand(key, info, rows[row].info_bytes, output, rows[row].length);
		from_hex(rows[row].output, right);
		CHECK(!memcmp(output, right, rows[row].length));
	}
}

/* ---- the switch: a fabric that remembers which form each byte was sent in */

struct veiled {
	struct torture torture;		/* first: it is the fabric */
	__u8 *forms_out, *forms_in;	/* of the bytes of both directions */
	__u8 out, in;			/* 1 once this side has switched that direction */
};

static ssize_t veiled_send(struct dmp_fabric *fabric, const struct iovec *pieces, int count)
{
	struct veiled *veiled = (struct veiled *)fabric;
	size_t at = veiled->torture.to->in;
	ssize_t sent = torture_send(fabric, pieces, count);

	for (; at < veiled->torture.to->in && at < VEILED_BYTES; at++)
		veiled->forms_out[at] = veiled->out;
	return sent;
}

static ssize_t veiled_receive(struct dmp_fabric *fabric, const struct iovec *pieces, int count)
{
	struct veiled *veiled = (struct veiled *)fabric;
	size_t at = veiled->torture.from->out;
	ssize_t got = torture_receive(fabric, pieces, count);

	for (; at < veiled->torture.from->out && at < VEILED_BYTES; at++)
		CHECK(veiled->forms_in[at] == veiled->in);
	return got;
}

static const struct dmp_fabric_type veiled_type = {
	.path = DMP_PATH_TCP,
	.send = veiled_send,
	.receive = veiled_receive,
	.close = torture_close,
};

static void side_veil(struct side *side, struct veiled *veiled, bool connector)
{
	side_start(side, &veiled->torture.fabric, connector);
	veiled->torture.stream = &side->stream;
	side->stream.last_out.type = connector ? DMP_FRAME_CONFIRM : DMP_FRAME_WELCOME;
	side->stream.last_in.type = connector ? DMP_FRAME_WELCOME : DMP_FRAME_CONFIRM;
}

/* As dmp_tls_switch_locked does it, or some rounds later. */
static void switch_side(struct side *side)
{
	struct veiled *veiled = (struct veiled *)side->fabric;
	struct dmp_stream *stream = &side->stream;

	/* Long after as well: frames of the other side, and our own, are waiting by then. */
	if (veiled->torture.seed && draw(&veiled->torture.seed) % 64)
		return;
	if (stream->last_out.reached && !stream->out_bytes) {
		CHECK(!veiled->out);
		veiled->out = 1;
		stream->last_out = (struct dmp_stream_last){ 0 };
	}
	if (stream->last_in.reached) {
		CHECK(!veiled->in && !stream->in_have);
		veiled->in = 1;
		stream->last_in = (struct dmp_stream_last){ 0 };
	}
}

static void pair_veil(struct pair *pair, __u64 seed)
{
	struct veiled *a = calloc(1, sizeof(*a)), *b = calloc(1, sizeof(*b));

	pair->pipes = calloc(2, sizeof(*pair->pipes));
	CHECK(a && b && pair->pipes);
	a->torture.fabric.type = b->torture.fabric.type = &veiled_type;
	a->torture.to = b->torture.from = &pair->pipes[0];
	b->torture.to = a->torture.from = &pair->pipes[1];
	a->forms_out = b->forms_in = calloc(1, VEILED_BYTES);
	b->forms_out = a->forms_in = calloc(1, VEILED_BYTES);
	CHECK(a->forms_out && a->forms_in);
	pair->pipes[0].room = pair->pipes[1].room = seed ? 1 + seed * 97 % 500 : PIPE_BYTES;
	a->torture.seed = seed;
	b->torture.seed = seed ? seed * 31 + 7 : 0;
	side_veil(&pair->a, a, true);
	side_veil(&pair->b, b, false);
}

static void test_no_byte_is_sent_or_read_in_the_wrong_form(void)
{
	struct veiled *a, *b;
	struct pair pair;
	unsigned int rounds;
	char bytes[3000], *region;
	__u64 seed;

	memset(bytes, 7, sizeof(bytes));
	for (seed = 0; seed < SEEDS; seed++) {
		pair_veil(&pair, seed * 0x9e3779b97f4a7c15ULL);
		a = (struct veiled *)pair.a.fabric;
		b = (struct veiled *)pair.b.fabric;
		region = region_for(&pair.b, sizeof(bytes));
		/* Who has no region to be written to reads as far as there is, but for this. */
		pair.a.stream.unwritable = pair.b.stream.unwritable = seed % 2;
		for (rounds = 0; rounds < 100000; rounds++) {
			round_of(&pair.a);
			switch_side(&pair.a);
			round_of(&pair.b);
			switch_side(&pair.b);
			if (dmp_endpoint_state(pair.a.machine) == DMP_ENDPOINT_OPEN)
				break;
		}
		pair.b.stream.unwritable = false;
		submit(&pair.a, DMP_OP_WRITE, bytes, sizeof(bytes), 0, 0);
		for (rounds = 0; rounds < 100000 && !pair.a.completed; rounds++) {
			round_of(&pair.a);
			switch_side(&pair.a);
			round_of(&pair.b);
			switch_side(&pair.b);
		}
		CHECK(pair.a.completed == 1 && !pair.a.failed);
		CHECK(!memcmp(region, bytes, sizeof(bytes)));
		CHECK(a->out && a->in && b->out && b->in);
		free(a->forms_out);
		free(a->forms_in);
		pair_end(&pair);
	}
}

#define STUFFED 100u

/* Bytes lie right behind the last clear frame, as those of a peer may who does not wait. */
static bool stuff(struct side *side, bool done)
{
	struct veiled *veiled = (struct veiled *)side->fabric;
	struct pipe_bytes *pipe = veiled->torture.to;
	unsigned int i;

	if (done || !side->stream.last_out.reached || side->stream.out_bytes)
		return done;
	for (i = 0; i < STUFFED; i++) {
		veiled->forms_out[pipe->in] = 1;
		pipe->bytes[pipe->in++] = 0xee;
	}
	return true;
}

static void test_not_a_byte_is_read_behind_the_last_clear_frame(void)
{
	bool stuffed_a = false, stuffed_b = false;
	unsigned int rounds;
	struct pair pair;

	pair_veil(&pair, 0);
	pair.a.stream.unwritable = pair.b.stream.unwritable = true;
	for (rounds = 0; rounds < 100; rounds++) {
		round_of(&pair.a);
		stuffed_a = stuff(&pair.a, stuffed_a);
		round_of(&pair.b);
		stuffed_b = stuff(&pair.b, stuffed_b);
	}
	CHECK(pair.a.stream.last_in.reached && pair.b.stream.last_in.reached);
	CHECK(!pair.a.stream.in_have && !pair.b.stream.in_have);
	CHECK(pair.pipes[0].in - pair.pipes[0].out == STUFFED);
	CHECK(pair.pipes[1].in - pair.pipes[1].out == STUFFED);
	free(((struct veiled *)pair.a.fabric)->forms_out);
	free(((struct veiled *)pair.a.fabric)->forms_in);
	pair_end(&pair);
}

/* ---- who may ask for it */

static int try_listen(struct session *session, const char *address, __u32 path, __u32 secret_bytes)
{
	struct dmp_listen listen = listen_on(session, address);

	listen.flags = DMP_ENCRYPT | (path ? DMP_REQUIRE_PATH : 0);
	listen.path = path;
	listen.secret_bytes = secret_bytes;
	return dmp_ioctl(session->plane, DMP_LISTEN, &listen);
}

static int try_connect(struct session *session, const char *address, __u32 path,
		       __u32 secret_bytes)
{
	struct dmp_connect connect = { .size = sizeof(connect),
				       .channel_id = session->channel.channel_id,
				       .window_slots = 1,
				       .window_bytes = 1,
				       .secret_bytes = secret_bytes,
				       .flags = DMP_ENCRYPT | (path ? DMP_REQUIRE_PATH : 0),
				       .path = path };

	memcpy(connect.address, address, strlen(address));
	return dmp_ioctl(session->plane, DMP_CONNECT, &connect);
}

/* Port 9 of loopback: nobody listens there. */
static void test_what_cannot_be_encrypted_is_refused_before_anybody_is_called(void)
{
	int there = dmp_tls_probe();
	struct session session;

	CHECK(there == 0 || there == -EOPNOTSUPP);
	session_open(&session, 8);
	CHECK(try_listen(&session, "127.0.0.1:0", 0, 0) == -EPERM);
	CHECK(try_listen(&session, "127.0.0.1:0", DMP_PATH_SHM, 0) == -EPERM);
	CHECK(try_listen(&session, "127.0.0.1:0", 0, 6) == there);
	CHECK(try_listen(&session, "127.0.0.1:0", DMP_PATH_TCP, 6) == there);
	CHECK(try_listen(&session, "127.0.0.1:0", DMP_PATH_SHM, 6) == 0);
	CHECK(try_connect(&session, "127.0.0.1:9", 0, 0) == -EPERM);
	CHECK(try_connect(&session, "127.0.0.1:9", DMP_PATH_TCP, 6) ==
	      (there ? there : -ECONNREFUSED));
	CHECK(try_connect(&session, "unix:/no/such/door", 0, 6) == -ECONNREFUSED);
	if (there)
		CHECK(try_connect(&session, "192.0.2.1:9", 0, 6) == there);
	session_close(&session);
}

int main(void)
{
	test_hkdf_gives_the_examples_of_rfc_5869();
	test_no_byte_is_sent_or_read_in_the_wrong_form();
	test_not_a_byte_is_read_behind_the_last_clear_frame();
	test_what_cannot_be_encrypted_is_refused_before_anybody_is_called();
	return 0;
}
