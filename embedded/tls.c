// SPDX-License-Identifier: MIT
/*
 * tls.c - see tls.h
 *
 * A direction is switched when the stream stands exactly behind its last clear frame: out,
 * when the last byte of it is with the kernel and nothing else was loaded; in, when it was
 * handed in and, since no byte was read behind it, the socket's queue begins with the
 * first record. What has come of that by then the kernel opens like the rest.
 *
 * Not used: TLS_RX_EXPECT_NO_PAD, with which the kernel decrypts straight into our memory, and
 * before it has checked the tag: a byte that somebody changed on the way would be in a
 * region by the time it is noticed.
 */
#define _GNU_SOURCE
#include "tls.h"

#include <errno.h>
#include <linux/tls.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "endpoint_embedded.h"

#ifndef SOL_TLS
#define SOL_TLS 282
#endif

#define INFO_BYTES_MAX	(64u + 2 * DMP_WIRE_FRAME_BYTES_MAX)

static const struct tls_crypto_info form = { .version = TLS_1_3_VERSION,
					     .cipher_type = TLS_CIPHER_AES_GCM_256 };
static const char salt[] = "dmaplane encryption v1";
static const char connector_label[] = "dmaplane connector key v1";
static const char acceptor_label[] = "dmaplane acceptor key v1";

void dmp_hkdf_extract(const void *from_salt, size_t salt_bytes, const void *input,
		      size_t input_bytes, __u8 key[DMP_SHA256_BYTES])
{
	struct dmp_hmac hmac;

	dmp_hmac_init(&hmac, from_salt, salt_bytes);
	dmp_hmac_update(&hmac, input, input_bytes);
	dmp_hmac_final(&hmac, key);
}

void dmp_hkdf_expand(const __u8 key[DMP_SHA256_BYTES], const void *info, size_t info_bytes,
		     __u8 *output, size_t length)
{
	__u8 digest[DMP_SHA256_BYTES] = { 0 }, number = 0;
	struct dmp_hmac hmac;
	size_t part;

	while (length) {
		dmp_hmac_init(&hmac, key, DMP_SHA256_BYTES);
		dmp_hmac_update(&hmac, digest, number ? sizeof(digest) : 0);
		dmp_hmac_update(&hmac, info, info_bytes);
		number++;
		dmp_hmac_update(&hmac, &number, 1);
		dmp_hmac_final(&hmac, digest);
		part = length < sizeof(digest) ? length : sizeof(digest);
		memcpy(output, digest, part);
		output += part;
		length -= part;
	}
	explicit_bzero(digest, sizeof(digest));
}

static int set_keys(int socket, int direction, const struct tls12_crypto_info_aes_gcm_256 *keys)
{
	if (!setsockopt(socket, SOL_TLS, direction, keys, sizeof(*keys)))
		return 0;
	return errno == ENOMEM ? -ENOMEM : -EOPNOTSUPP;
}

/* 0: the socket may be switched. */
static int take_tls(int socket)
{
	if (!setsockopt(socket, IPPROTO_TCP, TCP_ULP, "tls", sizeof("tls")))
		return 0;
	/* It is there, but wants a connection. */
	return errno == ENOTCONN ? -ECONNRESET : -EOPNOTSUPP;
}

/* A socket of loopback is encrypted for nobody: what the kernel needs for it is loaded now. */
static int rehearse(int door, int caller)
{
	struct sockaddr_in here = { .sin_family = AF_INET,
				    .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	const struct tls12_crypto_info_aes_gcm_256 keys = { .info = form };
	const struct linger reset = { .l_onoff = 1 };
	socklen_t length = sizeof(here);
	int error;

	/* Without loopback there is nobody to call: what TLS says without a connection has to do. */
	setsockopt(caller, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
	if (!bind(door, (struct sockaddr *)&here, length) && !listen(door, 1) &&
	    !getsockname(door, (struct sockaddr *)&here, &length))
		connect(caller, (struct sockaddr *)&here, length);
	error = take_tls(caller);
	if (error)
		return error == -ECONNRESET ? 0 : error;
	error = set_keys(caller, TLS_TX, &keys);
	return error ? error : set_keys(caller, TLS_RX, &keys);
}

int dmp_tls_probe(void)
{
	static bool proved;		/* atomic */
	int door, caller, error = -EMFILE;

	if (__atomic_load_n(&proved, __ATOMIC_RELAXED))
		return 0;
	door = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	caller = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (door >= 0 && caller >= 0)
		error = rehearse(door, caller);
	if (door >= 0)
		close(door);
	if (caller >= 0)
		close(caller);
	if (!error)
		__atomic_store_n(&proved, true, __ATOMIC_RELAXED);
	return error;
}

int dmp_tls_prepare(struct dmp_embedded_endpoint *endpoint)
{
	struct dmp_stream *stream = &endpoint->stream;

	stream->last_out.type = endpoint->connector ? DMP_FRAME_CONFIRM : DMP_FRAME_WELCOME;
	stream->last_in.type = endpoint->connector ? DMP_FRAME_WELCOME : DMP_FRAME_CONFIRM;
	return take_tls(endpoint->fabric->fd);
}

/* The key of what @by_connector sends, for one direction of our socket. */
static int install(struct dmp_embedded_endpoint *endpoint, int direction, bool by_connector)
{
	const char *label = by_connector ? connector_label : acceptor_label;
	size_t label_bytes = strlen(label);
	__u8 info[INFO_BYTES_MAX], extracted[DMP_SHA256_BYTES];
	struct tls12_crypto_info_aes_gcm_256 keys = {
		.info = form,
	};
	__u8 output[sizeof(keys.key) + sizeof(keys.salt) + sizeof(keys.iv)];
	int length, error;

	memcpy(info, label, label_bytes);
	length = dmp_endpoint_transcript(endpoint->machine, info + label_bytes,
					 sizeof(info) - label_bytes);
	if (length < 0)
		return length;
	dmp_hkdf_extract(salt, strlen(salt), endpoint->secret.bytes, endpoint->secret.count,
			 extracted);
	dmp_hkdf_expand(extracted, info, label_bytes + (size_t)length, output, sizeof(output));
	memcpy(keys.key, output, sizeof(keys.key));
	memcpy(keys.salt, output + sizeof(keys.key), sizeof(keys.salt));
	memcpy(keys.iv, output + sizeof(keys.key) + sizeof(keys.salt), sizeof(keys.iv));
	error = set_keys(endpoint->fabric->fd, direction, &keys);
	explicit_bzero(extracted, sizeof(extracted));
	explicit_bzero(output, sizeof(output));
	explicit_bzero(&keys, sizeof(keys));
	return error;
}

/* The peer has proved the secret. Who failed to, or left, still gets his answer in the clear. */
static bool is_proved(const struct dmp_embedded_endpoint *endpoint)
{
	__u32 state = dmp_endpoint_state(endpoint->machine);

	return state == DMP_ENDPOINT_OPEN || state == DMP_ENDPOINT_CONFIRMING;
}

int dmp_tls_switch_locked(struct dmp_embedded_endpoint *endpoint)
{
	struct dmp_stream *stream = &endpoint->stream;
	int error = 0, switched = 0;

	if (!endpoint->fabric)
		return 0;
	if (stream->last_out.reached && !stream->out_bytes) {
		error = install(endpoint, TLS_TX, endpoint->connector);
		stream->last_out = (struct dmp_stream_last){ 0 };
		switched = 1;
	}
	if (!error && stream->last_in.reached && is_proved(endpoint)) {
		/* A byte in the buffer would be one of a record: the stream promises none. */
		error = stream->in_have ? -EPROTO :
					  install(endpoint, TLS_RX, !endpoint->connector);
		stream->last_in = (struct dmp_stream_last){ 0 };
		stream->records = true;
		switched = 1;
	}
	return error ? error : switched;
}
