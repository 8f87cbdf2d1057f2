// SPDX-License-Identifier: MIT
/*
 * fuzz.c - attack an embedded plane with commands and with ring contents
 *
 *	fuzz --seed 7 --commands 10000000 --ring-writes 1000000
 *
 * Built with the sources of libdmaplane under AddressSanitizer and UBSan, which judge
 * memory; the fuzzer judges the contract:
 *  - a request that is refused is left exactly as it was (the struct ends at a guard
 *    page, so that reading past its own size is a crash),
 *  - size and flags of a request that is served are left as they were,
 *  - an errno is one that the contract names,
 *  - afterwards the plane still copies bytes correctly, everything can be freed,
 *    the counts are back at zero, and no fd is left.
 */
#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "fuzz.h"

#define PAGE_BYTES		4096u
#define REQUEST_ROOM_BYTES	4096u
#define COMMANDS_PER_REPORT	1000000u
#define COMMANDS_PER_PROOF	250000u
#define SECOND_NS		1000000000ull

static const int known_errnos[] = {
	ENOTTY, E2BIG, EOPNOTSUPP, EINVAL, EFAULT, ENOENT, EBUSY, EAGAIN, ESTALE, EOVERFLOW,
	ENOMEM, ENOSPC, EPERM, EPROTO, ETIMEDOUT, EINTR, ECANCELED, EBADMSG, EACCES, ENODEV,
	ECONNRESET, ECONNREFUSED, EHOSTUNREACH, EADDRINUSE, EBADF, EMFILE,
};

static bool errno_is_known(int status)
{
	size_t i;

	for (i = 0; i < sizeof(known_errnos) / sizeof(known_errnos[0]); i++)
		if (status == -known_errnos[i])
			return true;
	return false;
}

/*
 * Asks the plane. @answer, if given, has room for what the plane left in the struct.
 */
int fuzz_call(struct fuzz *fuzz, unsigned int command, const void *request,
	      uint32_t length_bytes, void *answer)
{
	/* Aligned like a struct of the caller's; fewer than 8 bytes lie before the guard. */
	uint8_t *at = fuzz->guard - ((length_bytes + 7) & ~7u);
	int status;

	memcpy(at, request, length_bytes);
	status = dmp_ioctl(fuzz->plane, command, at);
	if (status > 0 || (status < 0 && !errno_is_known(status)))
		FAIL("command %#x answered %d", command, status);
	if (status < 0 && memcmp(at, request, length_bytes))
		FAIL("command %#x answered %d and changed the struct", command, status);
	if (!status && memcmp(at, request, 8))
		FAIL("command %#x changed size or flags", command);
	if (answer)
		memcpy(answer, at, length_bytes);
	fuzz->accepted += !status;
	fuzz->refused += status < 0;
	return status;
}

static int open_fds(void)
{
	DIR *directory = opendir("/proc/self/fd");
	int count = -1;	/* its own */

	if (!directory)
		FAIL("cannot read /proc/self/fd");
	while (readdir(directory))
		count++;
	closedir(directory);
	return count;
}

/* ---- what is alive */

static void forget_buffer(struct fuzz *fuzz, uint32_t id)
{
	uint32_t i;

	for (i = 0; i < fuzz->buffer_count; i++)
		if (fuzz->buffers[i].id == id)
			fuzz->buffers[i--] = fuzz->buffers[--fuzz->buffer_count];
}

static void forget_channel(struct fuzz *fuzz, uint32_t id)
{
	uint32_t i;

	for (i = 0; i < fuzz->channel_count; i++)
		if (fuzz->channels[i].id == id)
			fuzz->channels[i--] = fuzz->channels[--fuzz->channel_count];
}

static void forget_id(uint32_t *ids, uint32_t *count, uint32_t id)
{
	uint32_t i;

	for (i = 0; i < *count; i++)
		if (ids[i] == id)
			ids[i--] = ids[--*count];
}

static int destroy(struct fuzz *fuzz, unsigned int command, uint32_t id)
{
	struct dmp_destroy request = { .size = sizeof(request), .id = id };

	return fuzz_call(fuzz, command, &request, sizeof(request), NULL);
}

static void unmap(struct fuzz *fuzz, uint32_t index)
{
	struct fuzz_mapping *mapping = &fuzz->mappings[index];
	int status = dmp_munmap(fuzz->plane, mapping->address);

	if (status)
		FAIL("munmap of a mapping answered %d", status);
	*mapping = fuzz->mappings[--fuzz->mapping_count];
}

/* A buffer that was imported from another's export holds it, so the order matters. */
static void free_buffers(struct fuzz *fuzz)
{
	uint32_t i, before;

	while (fuzz->buffer_count) {
		before = fuzz->buffer_count;
		for (i = before; i-- > 0;) {
			uint32_t id = fuzz->buffers[i].id;
			int status = destroy(fuzz, DMP_BUFFER_DESTROY, id);

			if (status != -EBUSY)
				forget_buffer(fuzz, id);
			if (status && status != -EBUSY)
				FAIL("destroy of buffer %u answered %d", id, status);
		}
		if (fuzz->buffer_count == before)
			FAIL("%u buffers stay busy with nothing that holds them", before);
	}
}

/* Those a peer could have, but there is none. */
static void free_ids(struct fuzz *fuzz, unsigned int command, const uint32_t *ids, uint32_t *count)
{
	while (*count) {
		int status = destroy(fuzz, command, ids[--*count]);

		if (status)
			FAIL("destroy of %u answered %d", ids[*count], status);
	}
}

/* Frees everything, and the plane has to agree that nothing is left. */
static void free_all(struct fuzz *fuzz)
{
	struct dmp_statistics now = { .size = sizeof(now) };

	free_ids(fuzz, DMP_LISTENER_DESTROY, fuzz->listeners, &fuzz->listener_count);
	free_ids(fuzz, DMP_REGION_DESTROY, fuzz->regions, &fuzz->region_count);
	while (fuzz->channel_count) {
		uint32_t id = fuzz->channels[0].id;
		int status = destroy(fuzz, DMP_CHANNEL_DESTROY, id);

		if (status && status != -ENOENT)
			FAIL("destroy of channel %u answered %d", id, status);
		forget_channel(fuzz, id);
	}
	while (fuzz->mapping_count)
		unmap(fuzz, 0);
	while (fuzz->export_count)
		close(fuzz->exports[--fuzz->export_count]);
	free_buffers(fuzz);
	if (fuzz_call(fuzz, DMP_STATISTICS, &now, sizeof(now), &now))
		FAIL("no statistics");
	if (now.buffers || now.channels || now.mappings || now.regions || now.endpoints ||
	    now.buffer_bytes)
		FAIL("left over: %llu buffers, %llu bytes, %llu channels, %llu mappings",
		     (unsigned long long)now.buffers, (unsigned long long)now.buffer_bytes,
		     (unsigned long long)now.channels, (unsigned long long)now.mappings);
	if (now.submissions != now.completions)
		FAIL("%llu submissions, %llu completions", (unsigned long long)now.submissions,
		     (unsigned long long)now.completions);
}

static void learn(struct fuzz *fuzz, unsigned int command, const void *answer)
{
	const struct dmp_buffer_create *create = answer;
	const struct dmp_buffer_import *import = answer;
	const struct dmp_buffer_export *export = answer;
	const struct dmp_channel_create *channel = answer;
	const struct dmp_region_create *region = answer;
	const struct dmp_listen *listen = answer;
	const struct dmp_destroy *gone = answer;

	if (command == DMP_BUFFER_CREATE)
		fuzz->buffers[fuzz->buffer_count++] = (struct fuzz_buffer){
			create->buffer_id, create->map_offset, create->length_bytes };
	else if (command == DMP_BUFFER_IMPORT)
		fuzz->buffers[fuzz->buffer_count++] = (struct fuzz_buffer){
			import->buffer_id, import->map_offset, import->length_bytes };
	else if (command == DMP_BUFFER_EXPORT)
		fuzz->exports[fuzz->export_count++] = export->fd;
	else if (command == DMP_CHANNEL_CREATE)
		fuzz->channels[fuzz->channel_count++] = (struct fuzz_channel){
			channel->channel_id, channel->map_offset, channel->map_bytes };
	else if (command == DMP_REGION_CREATE)
		fuzz->regions[fuzz->region_count++] = region->region_id;
	else if (command == DMP_LISTEN)
		fuzz->listeners[fuzz->listener_count++] = listen->listener_id;
	else if (command == DMP_REGION_DESTROY)
		forget_id(fuzz->regions, &fuzz->region_count, gone->id);
	else if (command == DMP_LISTENER_DESTROY)
		forget_id(fuzz->listeners, &fuzz->listener_count, gone->id);
	else if (command == DMP_BUFFER_DESTROY)
		forget_buffer(fuzz, gone->id);
	else if (command == DMP_CHANNEL_DESTROY)
		forget_channel(fuzz, gone->id);
	if (fuzz->buffer_count == FUZZ_BUFFERS_MAX || fuzz->channel_count == FUZZ_CHANNELS_MAX ||
	    fuzz->export_count == FUZZ_EXPORTS_MAX || fuzz->region_count == FUZZ_REGIONS_MAX ||
	    fuzz->listener_count == FUZZ_LISTENERS_MAX)
		free_all(fuzz);
}

/* ---- calls that are no commands */

static void attack_mapping(struct fuzz *fuzz)
{
	uint64_t offset = fuzz_odd_value(fuzz);
	size_t length = 1 + fuzz_below(fuzz, 65536);
	int protection = fuzz_below(fuzz, 8) ? PROT_READ | PROT_WRITE : (int)fuzz_below(fuzz, 16);
	volatile uint8_t *bytes;
	void *address = NULL;

	if (fuzz_below(fuzz, 2) && fuzz->buffer_count) {
		struct fuzz_buffer *buffer = &fuzz->buffers[fuzz_below(fuzz, fuzz->buffer_count)];

		offset = buffer->map_offset;
		length = buffer->length_bytes;
	} else if (fuzz_below(fuzz, 2) && fuzz->channel_count) {
		struct fuzz_channel *channel =
			&fuzz->channels[fuzz_below(fuzz, fuzz->channel_count)];

		offset = channel->map_offset;
		length = channel->map_bytes;
	}
	if (!fuzz_below(fuzz, 8))
		length = (size_t)fuzz_odd_value(fuzz);
	if (!dmp_mmap(fuzz->plane, length, protection, offset, &address)) {
		if (!address)
			FAIL("mmap gave no address");
		bytes = address;
		if (protection & PROT_READ)
			(void)(bytes[0] + bytes[length - 1]);
		fuzz->mappings[fuzz->mapping_count++] = (struct fuzz_mapping){ address, length };
	}
	if (fuzz->mapping_count == FUZZ_MAPPINGS_MAX || !fuzz_below(fuzz, 4)) {
		while (fuzz->mapping_count && fuzz_below(fuzz, 8))
			unmap(fuzz, fuzz_below(fuzz, fuzz->mapping_count));
	}
	if (dmp_munmap(fuzz->plane, fuzz->arena) == 0)
		FAIL("munmap took an address that is not the plane's");
}

/* ---- does it still serve? */

/* A channel, two buffers and a thousand checked copies, with a right-minded client. */
void fuzz_prove_service(struct fuzz *fuzz)
{
	struct dmp_buffer_create buffer[2] = { 0 };
	struct dmp_channel_create channel = { .size = sizeof(channel), .slots = 16 };
	struct dmp_submission copy = { .operation = DMP_OP_COPY, .length_bytes = 65536 };
	struct dmp_completion done;
	struct dmp_client client = { .plane = fuzz->plane, .fd = -1 };
	void *bytes[2], *rings;
	uint32_t pushed, i, round;
	int status = 0;

	for (i = 0; i < 2; i++) {
		buffer[i].size = sizeof(buffer[i]);
		buffer[i].length_bytes = copy.length_bytes;
		buffer[i].node = -1;
		status |= fuzz_call(fuzz, DMP_BUFFER_CREATE, &buffer[i], sizeof(buffer[i]),
				    &buffer[i]);
		status |= dmp_mmap(fuzz->plane, copy.length_bytes, PROT_READ | PROT_WRITE,
				   buffer[i].map_offset, &bytes[i]);
	}
	status |= fuzz_call(fuzz, DMP_CHANNEL_CREATE, &channel, sizeof(channel), &channel);
	if (status)
		FAIL("the plane no longer gives buffers or channels");
	status = dmp_mmap(fuzz->plane, channel.map_bytes, PROT_READ | PROT_WRITE,
			  channel.map_offset, &rings);
	if (status)
		FAIL("the rings cannot be mapped: %d", status);
	client.control = rings;
	client.submissions = (void *)((uint8_t *)rings + channel.submissions_offset);
	client.completions = (void *)((uint8_t *)rings + channel.completions_offset);
	client.slots = 16;
	client.completion_slots = 32;
	client.channel_id = channel.channel_id;
	copy.source_id = buffer[0].buffer_id;
	copy.target_id = buffer[1].buffer_id;
	for (round = 0; round < 20; round++) {
		for (i = 0; i < copy.length_bytes; i += 8)
			*(uint64_t *)((uint8_t *)bytes[0] + i) = fuzz_random(fuzz);
		copy.user_data = round;
		status = dmp_client_exchange(&client, &copy, 1, &pushed, &done, 1, 1,
					     dmp_now_ns() + 30 * SECOND_NS);
		if (status != 1 || done.result || done.user_data != round ||
		    memcmp(bytes[0], bytes[1], copy.length_bytes))
			FAIL("a plain copy went wrong: status %d, result %d", status,
			     status == 1 ? done.result : 0);
	}
	status = destroy(fuzz, DMP_CHANNEL_DESTROY, channel.channel_id);
	status |= dmp_munmap(fuzz->plane, rings);
	for (i = 0; i < 2; i++) {
		status |= dmp_munmap(fuzz->plane, bytes[i]);
		status |= destroy(fuzz, DMP_BUFFER_DESTROY, buffer[i].buffer_id);
	}
	if (status)
		FAIL("what was just made cannot be freed");
}

/* ---- the run */

static void attack_commands(struct fuzz *fuzz, uint64_t commands)
{
	uint8_t request[REQUEST_ROOM_BYTES], answer[REQUEST_ROOM_BYTES];
	uint64_t i;

	for (i = 1; i <= commands; i++) {
		uint32_t length_bytes;
		unsigned int command =
			fuzz_make_request(fuzz, request, sizeof(request), &length_bytes);

		memset(answer, 0, sizeof(answer));
		if (!fuzz_call(fuzz, command, request, length_bytes, answer))
			learn(fuzz, command, answer);
		if (!fuzz_below(fuzz, 64))
			attack_mapping(fuzz);
		if (!fuzz_below(fuzz, 1024))
			dmp_poll(fuzz->plane, fuzz_near_deadline(fuzz));
		if (i % COMMANDS_PER_PROOF == 0) {
			free_all(fuzz);
			fuzz_prove_service(fuzz);
		}
		if (i % COMMANDS_PER_REPORT == 0) {
			printf("fuzz: %llu commands: %llu served, %llu refused\n",
			       (unsigned long long)i, (unsigned long long)fuzz->accepted,
			       (unsigned long long)fuzz->refused);
			fflush(stdout);
		}
	}
	free_all(fuzz);
}

static uint8_t *guarded(size_t length_bytes)
{
	uint8_t *all = mmap(NULL, length_bytes + 2 * PAGE_BYTES, PROT_NONE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (all == MAP_FAILED ||
	    mprotect(all + PAGE_BYTES, length_bytes, PROT_READ | PROT_WRITE))
		FAIL("no memory for the fuzzer itself");
	return all + PAGE_BYTES;
}

static bool parse(int count, char **words, uint64_t *seed, uint64_t *commands, uint64_t *writes)
{
	int i;

	for (i = 1; i + 1 < count; i += 2) {
		char *end;
		uint64_t value = strtoull(words[i + 1], &end, 0);

		if (*end)
			return false;
		if (!strcmp(words[i], "--seed"))
			*seed = value;
		else if (!strcmp(words[i], "--commands"))
			*commands = value;
		else if (!strcmp(words[i], "--ring-writes"))
			*writes = value;
		else
			return false;
	}
	return i == count;
}

int main(int count, char **words)
{
	uint64_t seed = (uint64_t)time(NULL), commands = 1000000, writes = 100000;
	struct fuzz fuzz = { 0 };
	int fds;

	if (!parse(count, words, &seed, &commands, &writes)) {
		fprintf(stderr, "usage: fuzz [--seed N] [--commands N] [--ring-writes N]\n");
		return 2;
	}
	printf("fuzz: seed %llu\n", (unsigned long long)seed);
	fflush(stdout);
	fuzz.random = seed;
	fuzz.arena = guarded(FUZZ_ARENA_BYTES);
	fuzz.guard = guarded(2 * REQUEST_ROOM_BYTES) + 2 * REQUEST_ROOM_BYTES;
	fuzz.eventfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	fds = open_fds();
	if (dmp_open(&fuzz.plane))
		FAIL("no plane");
	fuzz_prove_service(&fuzz);
	attack_commands(&fuzz, commands);
	fuzz_hostile(&fuzz, writes);
	free_all(&fuzz);
	fuzz_prove_service(&fuzz);
	if (dmp_close(fuzz.plane))
		FAIL("close failed");
	if (open_fds() != fds)
		FAIL("%d fds before, %d after", fds, open_fds());
	printf("fuzz: seed %llu: %llu commands and %llu ring writes; the plane still serves, "
	       "nothing is left\n", (unsigned long long)seed, (unsigned long long)commands,
	       (unsigned long long)writes);
	return 0;
}
