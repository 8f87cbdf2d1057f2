// SPDX-License-Identifier: MIT
/* test_proof.c - the hash against its standards, and what a proof does and does not prove */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <string.h>

#include "core/check.h"
#include "proof.h"
#include "sha256.h"

static bool is_hex(const __u8 digest[DMP_SHA256_BYTES], const char *expected)
{
	char text[2 * DMP_SHA256_BYTES + 1];
	unsigned int i;

	for (i = 0; i < DMP_SHA256_BYTES; i++)
		snprintf(text + 2 * i, 3, "%02x", digest[i]);
	return strcmp(text, expected) == 0;
}

/* @text, @times over, handed over in pieces of @piece bytes. */
static void hash(const char *text, size_t times, size_t piece, __u8 digest[DMP_SHA256_BYTES])
{
	size_t length = strlen(text), at, take;
	struct dmp_sha256 state;

	dmp_sha256_init(&state);
	while (times-- != 0) {
		for (at = 0; at < length; at += take) {
			take = length - at < piece ? length - at : piece;
			dmp_sha256_update(&state, text + at, take);
		}
	}
	dmp_sha256_final(&state, digest);
}

static void test_sha256_gives_the_examples_of_fips_180_4(void)
{
	static const struct {
		const char *text;
		size_t times;
		const char *digest;
	} rows[] = {
		{ "", 1, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" },
		{ "abc", 1, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" },
		{ "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 1,
		  "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1" },
		{ "aaaaaaaaaa", 100000,
		  "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0" },
	};
	static const size_t pieces[] = { 1, 7, 63, 64, 65, 1000 };
	__u8 digest[DMP_SHA256_BYTES];
	unsigned int row, piece;

	for (row = 0; row < sizeof(rows) / sizeof(rows[0]); row++)
		for (piece = 0; piece < sizeof(pieces) / sizeof(pieces[0]); piece++) {
			hash(rows[row].text, rows[row].times, pieces[piece], digest);
			CHECK(is_hex(digest, rows[row].digest));
		}
}

/* Lengths on both sides of where the padding needs another block. */
static void test_sha256_pads_every_length(void)
{
	static const struct {
		size_t length;
		const char *digest;
	} rows[] = {
		{ 55, "9f4390f8d30c2dd92ec9f095b65e2b9ae9b0a925a5258e241c9f1e910f734318" },
		{ 56, "b35439a4ac6f0948b6d6f9e3c6af0f5f590ce20f1bde7090ef7970686ec6738a" },
		{ 63, "7d3e74a05d7db15bce4ad9ec0658ea98e3f06eeecf16b4c6fff2da457ddc2f34" },
		{ 64, "ffe054fe7ae0cb6dc65c3af9b61d5209f439851db43d0ba5997337df154668eb" },
		{ 119, "31eba51c313a5c08226adf18d4a359cfdfd8d2e816b13f4af952f7ea6584dcfb" },
		{ 120, "2f3d335432c70b580af0e8e1b3674a7c020d683aa5f73aaaedfdc55af904c21c" },
	};
	__u8 digest[DMP_SHA256_BYTES];
	unsigned int row;

	for (row = 0; row < sizeof(rows) / sizeof(rows[0]); row++) {
		hash("a", rows[row].length, 1, digest);
		CHECK(is_hex(digest, rows[row].digest));
	}
}

static void test_hmac_gives_the_examples_of_rfc_4231(void)
{
	static const char larger[] =
		"This is a test using a larger than block-size key and a larger than block-size "
		"data. The key needs to be hashed before being used by the HMAC algorithm.";
	static const struct {
		int key;	/* this byte, or counting up from 1 */
		size_t key_bytes;
		const char *key_text;
		int fill;
		const char *text;
		const char *code;
	} rows[] = {
		{ 0x0b, 20, NULL, 0, "Hi There",
		  "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7" },
		{ 0, 4, "Jefe", 0, "what do ya want for nothing?",
		  "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843" },
		{ 0xaa, 20, NULL, 0xdd, NULL,
		  "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe" },
		{ -1, 25, NULL, 0xcd, NULL,
		  "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b" },
		{ 0xaa, 131, NULL, 0, "Test Using Larger Than Block-Size Key - Hash Key First",
		  "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54" },
		{ 0xaa, 131, NULL, 0, larger,
		  "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2" },
	};
	__u8 code[DMP_SHA256_BYTES], key[131], data[50];
	struct dmp_hmac hmac;
	unsigned int row, i;

	for (row = 0; row < sizeof(rows) / sizeof(rows[0]); row++) {
		for (i = 0; i < rows[row].key_bytes; i++)
			key[i] = (__u8)(rows[row].key < 0 ? (int)i + 1 : rows[row].key);
		if (rows[row].key_text)
			memcpy(key, rows[row].key_text, rows[row].key_bytes);
		dmp_hmac_init(&hmac, key, rows[row].key_bytes);
		memset(data, rows[row].fill, sizeof(data));
		if (rows[row].text)
			dmp_hmac_update(&hmac, rows[row].text, strlen(rows[row].text));
		else
			dmp_hmac_update(&hmac, data, sizeof(data));
		dmp_hmac_final(&hmac, code);
		CHECK(is_hex(code, rows[row].code));
	}
}

static struct dmp_secret secret_of(const char *text)
{
	struct dmp_secret secret = { .count = (__u32)strlen(text) };

	memcpy(secret.bytes, text, secret.count);
	return secret;
}

/* Known answer: two builds, or two implementations, must agree for ever. */
static void test_a_proof_is_the_hmac_of_label_length_and_transcript(void)
{
	struct dmp_secret secret = secret_of("open sesame"), none = { .count = 0 };
	__u8 proof[DMP_PROOF_BYTES];

	dmp_proof_make(&secret, true, "transcript", 10, proof);
	CHECK(is_hex(proof, "d0569f12940516ae5741a3f33d00f6c90aff116a937a2314e63c32857e5cabc2"));
	dmp_proof_make(&secret, false, "transcript", 10, proof);
	CHECK(is_hex(proof, "b49b416c6192e3d187f8137ff3f37509324f83c921b033a7b0e887d4a098bf71"));
	dmp_proof_make(&none, true, "transcript", 10, proof);
	CHECK(is_hex(proof, "c4eb84f533e2dd6ab58a03ac940b97b39aa829460c18b7de5fa8e037d293377a"));
}

static void test_a_proof_serves_one_direction_one_secret_and_one_transcript(void)
{
	struct dmp_secret secret = secret_of("open sesame"), other = secret_of("open sesamf");
	struct dmp_secret longer = secret_of("open sesame."), none = { .count = 0 };
	__u8 proof[DMP_PROOF_BYTES + 1];
	unsigned int i;

	memset(proof, 0, sizeof(proof));
	dmp_proof_make(&secret, true, "transcript", 10, proof);
	CHECK(dmp_proof_check(&secret, true, "transcript", 10, proof, 32));
	CHECK(!dmp_proof_check(&secret, false, "transcript", 10, proof, 32));
	CHECK(!dmp_proof_check(&secret, true, "transcripu", 10, proof, 32));
	CHECK(!dmp_proof_check(&secret, true, "transcript", 9, proof, 32));
	CHECK(!dmp_proof_check(&other, true, "transcript", 10, proof, 32));
	CHECK(!dmp_proof_check(&longer, true, "transcript", 10, proof, 32));
	CHECK(!dmp_proof_check(&none, true, "transcript", 10, proof, 32));
	/* HMAC alone would take it for the same key. */
	longer.bytes[secret.count] = 0;
	CHECK(!dmp_proof_check(&longer, true, "transcript", 10, proof, 32));
	for (i = 0; i < 8 * DMP_PROOF_BYTES; i++) {
		proof[i / 8] ^= (__u8)(1u << i % 8);
		CHECK(!dmp_proof_check(&secret, true, "transcript", 10, proof, 32));
		proof[i / 8] ^= (__u8)(1u << i % 8);
	}
}

static void test_a_proof_of_another_length_is_refused(void)
{
	struct dmp_secret secret = secret_of("open sesame");
	__u8 proof[64] = { 0 };
	__u32 length;

	dmp_proof_make(&secret, true, "transcript", 10, proof);
	for (length = 0; length <= sizeof(proof); length++)
		CHECK(dmp_proof_check(&secret, true, "transcript", 10, proof, length) ==
		      (length == 32));
}

static void test_a_forgotten_secret_is_overwritten(void)
{
	struct dmp_secret secret = secret_of("open sesame"), zero;

	memset(&zero, 0, sizeof(zero));
	dmp_secret_forget(&secret);
	CHECK(memcmp(&secret, &zero, sizeof(secret)) == 0);
}

int main(void)
{
	test_sha256_gives_the_examples_of_fips_180_4();
	test_sha256_pads_every_length();
	test_hmac_gives_the_examples_of_rfc_4231();
	test_a_proof_is_the_hmac_of_label_length_and_transcript();
	test_a_proof_serves_one_direction_one_secret_and_one_transcript();
	test_a_proof_of_another_length_is_refused();
	test_a_forgotten_secret_is_overwritten();
	return 0;
}
