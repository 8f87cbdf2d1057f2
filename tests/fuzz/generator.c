// SPDX-License-Identifier: MIT
/*
 * generator.c - requests, from nearly right to nonsense
 *
 * Half start from a request that would be served and are then damaged, so that the
 * damage is met deep inside; the rest are filled with values that tend to break code.
 * Four things are held back, because they would harm the fuzzer and not the plane:
 * waits are short, sizes are small (or too large to be tried), addresses are no names, and
 * memory and fds that are named belong to the fuzzer or to nobody.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "fuzz.h"

#define LENGTH_BYTES_MAX	(256u << 10)
#define LENGTH_BYTES_ABSURD	(1ull << 44)
#define WAIT_NS_MAX		20000u
#define CALLED_PORT		9u	/* nobody is there */
#define DEVICE_PORT		7471u	/* there somebody may be */

static const struct {
	unsigned int number;
	uint32_t length_bytes;
} commands[] = {
	{ DMP_QUERY, sizeof(struct dmp_query) },
	{ DMP_TOPOLOGY, sizeof(struct dmp_topology) },
	{ DMP_STATISTICS, sizeof(struct dmp_statistics) },
	{ DMP_HISTOGRAM, sizeof(struct dmp_histogram) },
	{ DMP_BUFFER_CREATE, sizeof(struct dmp_buffer_create) },
	{ DMP_BUFFER_QUERY, sizeof(struct dmp_buffer_query) },
	{ DMP_BUFFER_DESTROY, sizeof(struct dmp_destroy) },
	{ DMP_BUFFER_SYNC, sizeof(struct dmp_buffer_sync) },
	{ DMP_BUFFER_EXPORT, sizeof(struct dmp_buffer_export) },
	{ DMP_BUFFER_IMPORT, sizeof(struct dmp_buffer_import) },
	{ DMP_REGION_CREATE, sizeof(struct dmp_region_create) },
	{ DMP_REGION_QUERY, sizeof(struct dmp_region_query) },
	{ DMP_REGION_DESTROY, sizeof(struct dmp_destroy) },
	{ DMP_REGION_IMPORT, sizeof(struct dmp_region_import) },
	{ DMP_CHANNEL_CREATE, sizeof(struct dmp_channel_create) },
	{ DMP_CHANNEL_QUERY, sizeof(struct dmp_channel_query) },
	{ DMP_CHANNEL_DESTROY, sizeof(struct dmp_destroy) },
	{ DMP_ENTER, sizeof(struct dmp_enter) },
	{ DMP_CANCEL, sizeof(struct dmp_cancel) },
	{ DMP_LISTEN, sizeof(struct dmp_listen) },
	{ DMP_LISTENER_DESTROY, sizeof(struct dmp_destroy) },
	{ DMP_CONNECT, sizeof(struct dmp_connect) },
	{ DMP_ACCEPT, sizeof(struct dmp_accept) },
	{ DMP_ENDPOINT_QUERY, sizeof(struct dmp_endpoint_query) },
	{ DMP_ENDPOINT_DESTROY, sizeof(struct dmp_destroy) },
};
#define COMMANDS	(sizeof(commands) / sizeof(commands[0]))

union request {
	struct {
		uint32_t size, flags;
	} head;
	struct dmp_topology topology;
	struct dmp_statistics statistics;
	struct dmp_histogram histogram;
	struct dmp_buffer_create create;
	struct dmp_buffer_query buffer;
	struct dmp_destroy destroy;
	struct dmp_buffer_sync sync;
	struct dmp_buffer_export export;
	struct dmp_buffer_import import;
	struct dmp_channel_create channel_create;
	struct dmp_channel_query channel;
	struct dmp_enter enter;
	struct dmp_cancel cancel;
	struct dmp_region_create region_create;
	struct dmp_region_query region;
	struct dmp_listen listen;
	struct dmp_connect connect;
	struct dmp_accept accept;
	uint32_t words[1024];
	uint8_t bytes[4096];
};

uint64_t fuzz_random(struct fuzz *fuzz)
{
	uint64_t z = fuzz->random += 0x9e3779b97f4a7c15ull;	/* splitmix64 */

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

uint32_t fuzz_below(struct fuzz *fuzz, uint32_t end)
{
	return (uint32_t)((fuzz_random(fuzz) >> 32) * end >> 32);
}

uint32_t fuzz_buffer_id(struct fuzz *fuzz)
{
	if (!fuzz->buffer_count)
		return 1;
	return fuzz->buffers[fuzz_below(fuzz, fuzz->buffer_count)].id;
}

uint32_t fuzz_channel_id(struct fuzz *fuzz)
{
	if (!fuzz->channel_count)
		return 1;
	return fuzz->channels[fuzz_below(fuzz, fuzz->channel_count)].id;
}

uint32_t fuzz_region_id(struct fuzz *fuzz)
{
	if (!fuzz->region_count)
		return 1;
	return fuzz->regions[fuzz_below(fuzz, fuzz->region_count)];
}

uint32_t fuzz_listener_id(struct fuzz *fuzz)
{
	if (!fuzz->listener_count)
		return 1;
	return fuzz->listeners[fuzz_below(fuzz, fuzz->listener_count)];
}

uint64_t fuzz_near_deadline(struct fuzz *fuzz)
{
	return fuzz_below(fuzz, 4) ? 1 : dmp_now_ns() + fuzz_below(fuzz, WAIT_NS_MAX);
}

uint64_t fuzz_odd_value(struct fuzz *fuzz)
{
	uint32_t bit = fuzz_below(fuzz, 64);

	switch (fuzz_below(fuzz, 12)) {
	case 0:
		return 0;
	case 1:
		return fuzz_below(fuzz, 16);
	case 2:
		return fuzz_buffer_id(fuzz);
	case 3:
		return fuzz_channel_id(fuzz);
	case 4:
		return 1ull << bit;
	case 5:
		return (1ull << bit) - 1;
	case 6:
		return ~0ull;
	case 7:
		return 0ull - (1ull << bit);
	case 8:
		return 4096ull * fuzz_below(fuzz, 64);
	case 9:
		return 0x80000000ull;
	case 10:
		return fuzz->buffer_count ?
			fuzz->buffers[fuzz_below(fuzz, fuzz->buffer_count)].map_offset : 1;
	default:
		return fuzz_random(fuzz);
	}
}

static void good_buffer(struct fuzz *fuzz, struct dmp_buffer_create *create)
{
	create->length_bytes = 1 + fuzz_below(fuzz, fuzz_below(fuzz, 64) ? 16384 : LENGTH_BYTES_MAX);
	create->policy = fuzz_below(fuzz, 4);
	create->node = create->policy == DMP_POLICY_PREFER ? 0 : -1;
	create->node_mask = create->policy >= DMP_POLICY_BIND;
	if (!fuzz_below(fuzz, 16)) {
		create->kind = DMP_KIND_HUGE;
		create->flags |= DMP_BUFFER_HUGE_PREFER;
	} else if (!fuzz_below(fuzz, 4)) {
		create->kind = DMP_KIND_USER;
		create->policy = DMP_POLICY_ANY;
		create->node = -1;
		create->node_mask = 0;
		create->user_addr = (uintptr_t)fuzz->arena + fuzz_below(fuzz, FUZZ_ARENA_BYTES);
	}
	if (!fuzz_below(fuzz, 4))
		create->flags |= DMP_BUFFER_STRICT;
}

static void good_channel(struct fuzz *fuzz, struct dmp_channel_create *create)
{
	create->slots = 1u << fuzz_below(fuzz, 9);
	create->completion_slots = fuzz_below(fuzz, 2) ? 0 : create->slots << fuzz_below(fuzz, 3);
	create->workers = fuzz_below(fuzz, 3);
	if (!fuzz_below(fuzz, 4)) {
		create->flags |= DMP_CHANNEL_SPIN;
		create->spin_us = fuzz_below(fuzz, 20);
	}
	if (!fuzz_below(fuzz, 4)) {
		create->flags |= DMP_CHANNEL_EVENTFD;
		create->eventfd = fuzz->eventfd;
	}
	if (!fuzz_below(fuzz, 8))
		create->flags |= DMP_CHANNEL_BIND_CPU;
}

/* RDMA has no loopback: DMAPLANE_FUZZ_HOST is an address of a device, and then they may meet. */
static void put_address(uint8_t *address, unsigned int port)
{
	const char *host = getenv("DMAPLANE_FUZZ_HOST");

	snprintf((char *)address, DMP_ADDRESS_BYTES, "%s:%u", host ? host : "127.0.0.1",
		 host ? DEVICE_PORT : port);
}

/* Regions, listeners and those who call; nobody answers a call, its time is short. */
static void good_connection(struct fuzz *fuzz, unsigned int command, union request *request)
{
	switch (command) {
	case DMP_REGION_CREATE:
		request->region_create.buffer_id = fuzz_buffer_id(fuzz);
		request->region_create.access = fuzz_below(fuzz, 8);
		request->region_create.offset = fuzz_below(fuzz, 4096);
		request->region_create.length_bytes = 1 + fuzz_below(fuzz, 8192);
		break;
	case DMP_REGION_QUERY:
		request->region.region_id = fuzz_region_id(fuzz);
		break;
	case DMP_REGION_DESTROY:
		request->destroy.id = fuzz_region_id(fuzz);
		request->head.flags = fuzz_below(fuzz, 2);
		break;
	case DMP_LISTEN:
		request->listen.channel_id = fuzz_channel_id(fuzz);
		request->listen.secret_bytes = fuzz_below(fuzz, DMP_SECRET_BYTES);
		put_address(request->listen.address, 0);
		break;
	case DMP_LISTENER_DESTROY:
		request->destroy.id = fuzz_listener_id(fuzz);
		break;
	case DMP_CONNECT:
		request->connect.channel_id = fuzz_channel_id(fuzz);
		request->connect.window_slots = 1 + fuzz_below(fuzz, 8);
		request->connect.window_bytes = 4096;
		request->connect.secret_bytes = fuzz_below(fuzz, DMP_SECRET_BYTES);
		put_address(request->connect.address, CALLED_PORT);
		break;
	case DMP_ACCEPT:
		request->accept.listener_id = fuzz_listener_id(fuzz);
		request->accept.channel_id = fuzz_channel_id(fuzz);
		request->accept.window_slots = 1 + fuzz_below(fuzz, 8);
		request->accept.window_bytes = 4096;
		break;
	default:
		break;
	}
}

/* What would be served if nobody damaged it afterwards. */
static void good_request(struct fuzz *fuzz, unsigned int command, union request *request)
{
	switch (command) {
	case DMP_TOPOLOGY:
		request->topology.kind = fuzz_below(fuzz, 3);
		break;
	case DMP_STATISTICS:
		request->statistics.scope = fuzz_below(fuzz, 2);
		request->statistics.id = request->statistics.scope ? fuzz_channel_id(fuzz) : 0;
		break;
	case DMP_HISTOGRAM:
		request->histogram.scope = DMP_SCOPE_CHANNEL;
		request->histogram.id = fuzz_channel_id(fuzz);
		request->histogram.bucket_first = DMP_HISTOGRAM_WINDOW * fuzz_below(fuzz, 18);
		break;
	case DMP_BUFFER_CREATE:
		good_buffer(fuzz, &request->create);
		break;
	case DMP_BUFFER_QUERY:
		request->buffer.buffer_id = fuzz_buffer_id(fuzz);
		request->head.flags = !fuzz_below(fuzz, 4);
		break;
	case DMP_BUFFER_DESTROY:
		request->destroy.id = fuzz_buffer_id(fuzz);
		break;
	case DMP_BUFFER_SYNC:
		request->sync.buffer_id = fuzz_buffer_id(fuzz);
		request->sync.length_bytes = 1;
		request->head.flags = 1 + fuzz_below(fuzz, 7);
		break;
	case DMP_BUFFER_EXPORT:
		request->export.buffer_id = fuzz_buffer_id(fuzz);
		request->head.flags = fuzz_below(fuzz, 4);
		break;
	case DMP_BUFFER_IMPORT:
		request->import.fd = fuzz->export_count ?
			fuzz->exports[fuzz_below(fuzz, fuzz->export_count)] : -1;
		request->head.flags = fuzz_below(fuzz, 2);
		break;
	case DMP_CHANNEL_CREATE:
		good_channel(fuzz, &request->channel_create);
		break;
	case DMP_CHANNEL_QUERY:
		request->channel.channel_id = fuzz_channel_id(fuzz);
		break;
	case DMP_CHANNEL_DESTROY:
		request->destroy.id = fuzz_channel_id(fuzz);
		request->head.flags = fuzz_below(fuzz, 2);
		break;
	case DMP_ENTER:
		request->enter.channel_id = fuzz_channel_id(fuzz);
		request->enter.submit_count = fuzz_below(fuzz, 4);
		request->enter.wait_count = fuzz_below(fuzz, 2);
		break;
	case DMP_CANCEL:
		request->cancel.channel_id = fuzz_channel_id(fuzz);
		request->head.flags = DMP_CANCEL_ALL;
		break;
	default:
		good_connection(fuzz, command, request);
		break;
	}
}

static uint64_t hold_back(uint64_t deadline_ns, struct fuzz *fuzz)
{
	uint64_t now = dmp_now_ns();

	if (deadline_ns && deadline_ns < now + WAIT_NS_MAX)
		return deadline_ns;
	return fuzz_near_deadline(fuzz);
}

static void hold_back_buffer(struct fuzz *fuzz, struct dmp_buffer_create *create)
{
	uint64_t begin = (uintptr_t)fuzz->arena;

	if (create->length_bytes > LENGTH_BYTES_MAX && create->length_bytes < LENGTH_BYTES_ABSURD)
		create->length_bytes %= LENGTH_BYTES_MAX;
	/* Above 2^56 nothing is mapped, and nothing is in the first page. */
	if (create->user_addr >= 4096 && create->user_addr < 1ull << 56 &&
	    (create->user_addr < begin || create->user_addr >= begin + FUZZ_ARENA_BYTES))
		create->user_addr = begin + create->user_addr % FUZZ_ARENA_BYTES;
	if (create->user_addr && create->user_addr < 4096 && create->length_bytes > 4096)
		create->length_bytes %= 4096 - create->user_addr;
}

/* No names: somebody would be asked what they mean, and he may take his time. */
static void hold_back_address(uint8_t *address)
{
	uint32_t i;

	for (i = 0; i < DMP_ADDRESS_BYTES; i++)
		if (address[i] > ':' && address[i] != '[' && address[i] != ']')
			address[i] = '0' + address[i] % 10;
}

static void hold_back_all(struct fuzz *fuzz, unsigned int command, union request *request)
{
	switch (command) {
	case DMP_BUFFER_CREATE:
		hold_back_buffer(fuzz, &request->create);
		break;
	case DMP_BUFFER_DESTROY:
	case DMP_REGION_DESTROY:
	case DMP_CHANNEL_DESTROY:
	case DMP_LISTENER_DESTROY:
	case DMP_ENDPOINT_DESTROY:
		request->destroy.deadline_ns = hold_back(request->destroy.deadline_ns, fuzz);
		break;
	case DMP_CHANNEL_CREATE:
		if (request->channel_create.eventfd > 0)
			request->channel_create.eventfd =
				fuzz_below(fuzz, 2) ? fuzz->eventfd : 0x7fffffff;
		if (request->channel_create.spin_us <= 1000000)
			request->channel_create.spin_us %= 20;
		if (request->channel_create.slots > 512 && fuzz_below(fuzz, 16))
			request->channel_create.slots = 1;
		if (request->channel_create.workers <= 256)
			request->channel_create.workers %= 4;
		break;
	case DMP_ENTER:
		request->enter.deadline_ns = hold_back(request->enter.deadline_ns, fuzz);
		break;
	case DMP_CANCEL:
		request->cancel.deadline_ns = hold_back(request->cancel.deadline_ns, fuzz);
		break;
	case DMP_LISTEN:
		hold_back_address(request->listen.address);
		break;
	case DMP_CONNECT:
		hold_back_address(request->connect.address);
		request->connect.deadline_ns = hold_back(request->connect.deadline_ns, fuzz);
		break;
	case DMP_ACCEPT:
		request->accept.deadline_ns = hold_back(request->accept.deadline_ns, fuzz);
		break;
	default:
		break;
	}
}

/* Sizes: right, too short, or longer with and without garbage behind. */
static uint32_t make_size(struct fuzz *fuzz, uint32_t right, union request *request)
{
	uint32_t size = right, i;

	switch (fuzz_below(fuzz, 32)) {
	case 0:
		size = fuzz_below(fuzz, right);
		break;
	case 1:
		size = right + 1 + fuzz_below(fuzz, 64);
		break;
	case 2:
		size = right + 1 + fuzz_below(fuzz, 64);
		for (i = right; i < size; i++)
			request->bytes[i] = (uint8_t)fuzz_random(fuzz);
		break;
	case 3:
		size = fuzz_below(fuzz, sizeof(*request));
		break;
	default:
		break;
	}
	request->head.size = size;
	return size < 4 ? 4 : size;	/* the size field itself is always there */
}

/* Fills @request and returns the command; @length_bytes of it are the caller's. */
unsigned int fuzz_make_request(struct fuzz *fuzz, uint8_t *bytes, size_t room,
			       uint32_t *length_bytes)
{
	uint32_t row = fuzz_below(fuzz, COMMANDS), words, i;
	unsigned int command = commands[row].number;
	union request request;

	/* These cost far more than the others and are asked for less. */
	if ((command == DMP_CHANNEL_CREATE || command == DMP_TOPOLOGY || command == DMP_LISTEN ||
	     command == DMP_CONNECT || command == DMP_BUFFER_CREATE) && fuzz_below(fuzz, 16)) {
		command = DMP_ENTER;
		row = 17;
	}
	words = commands[row].length_bytes / 4;
	memset(&request, 0, sizeof(request));
	if (fuzz_below(fuzz, 2)) {
		good_request(fuzz, command, &request);
		for (i = fuzz_below(fuzz, 3); i > 0; i--)
			request.words[1 + fuzz_below(fuzz, words - 1)] =
				(uint32_t)fuzz_odd_value(fuzz);
	} else {
		for (i = 2; i < words; i++)
			if (!fuzz_below(fuzz, 3))
				request.words[i] = (uint32_t)fuzz_odd_value(fuzz);
		if (!fuzz_below(fuzz, 4))
			request.head.flags = (uint32_t)fuzz_odd_value(fuzz);
	}
	*length_bytes = make_size(fuzz, commands[row].length_bytes, &request);
	hold_back_all(fuzz, command, &request);
	if (!fuzz_below(fuzz, 256))
		command = (unsigned int)fuzz_odd_value(fuzz);
	memcpy(bytes, &request, room < sizeof(request) ? room : sizeof(request));
	return command;
}
