// SPDX-License-Identifier: MIT
/*
 * device.c - libdmaplane's calls served by /dev/dmaplane
 *
 * The library's munmap needs no length and the kernel's does, so a plane remembers its
 * mappings. Threads may share a plane as they may share the library's.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "device.h"

#define MAPPINGS_MAX	256
#define DEBUGFS_MEMORY	"/sys/kernel/debug/dmaplane/memory"
#define REFERENCES	"/sys/module/dmaplane/refcnt"

struct dmp_plane {
	int fd;
	pthread_mutex_t lock;
	struct {
		void *address;
		size_t length_bytes;
	} mappings[MAPPINGS_MAX];
	uint32_t mapping_count;
};

/* ---- libdmaplane.h */

int dmp_open(struct dmp_plane **plane)
{
	struct dmp_plane *new = calloc(1, sizeof(*new));
	int status;

	if (!new)
		return -ENOMEM;
	new->fd = open(DEVICE_PATH, O_RDWR | O_CLOEXEC);
	if (new->fd < 0) {
		status = -errno;
		free(new);
		return status;
	}
	pthread_mutex_init(&new->lock, NULL);
	*plane = new;
	return 0;
}

int dmp_close(struct dmp_plane *plane)
{
	uint32_t i;
	int status;

	for (i = 0; i < plane->mapping_count; i++)
		munmap(plane->mappings[i].address, plane->mappings[i].length_bytes);
	status = close(plane->fd) ? -errno : 0;
	pthread_mutex_destroy(&plane->lock);
	free(plane);
	return status;
}

/* The numbers of others never reach the module: some of them the kernel serves for any file. */
int dmp_ioctl(struct dmp_plane *plane, unsigned int command, void *argument)
{
	int status = _IOC_TYPE(command) == DMP_IOCTL_TYPE ? 0 : -ENOTTY;

	if (!status && ioctl(plane->fd, command, argument))
		status = -errno;
	return status;
}

int dmp_mmap(struct dmp_plane *plane, size_t length_bytes, int protection, uint64_t map_offset,
	     void **address)
{
	void *mapping = MAP_FAILED;
	int status = -ENOMEM;

	pthread_mutex_lock(&plane->lock);
	if (plane->mapping_count < MAPPINGS_MAX) {
		mapping = mmap(NULL, length_bytes, protection, MAP_SHARED, plane->fd,
			       (off_t)map_offset);
		status = mapping == MAP_FAILED ? -errno : 0;
	}
	if (!status) {
		plane->mappings[plane->mapping_count].address = mapping;
		plane->mappings[plane->mapping_count++].length_bytes = length_bytes;
		*address = mapping;
	}
	pthread_mutex_unlock(&plane->lock);
	return status;
}

int dmp_munmap(struct dmp_plane *plane, void *address)
{
	int status = -EINVAL;
	uint32_t i;

	pthread_mutex_lock(&plane->lock);
	for (i = 0; i < plane->mapping_count; i++) {
		if (plane->mappings[i].address != address)
			continue;
		status = munmap(address, plane->mappings[i].length_bytes) ? -errno : 0;
		if (!status)
			plane->mappings[i] = plane->mappings[--plane->mapping_count];
		break;
	}
	pthread_mutex_unlock(&plane->lock);
	return status;
}

int dmp_poll(struct dmp_plane *plane, uint64_t deadline_ns)
{
	struct pollfd word = { .fd = plane->fd, .events = POLLIN };
	struct timespec left, *timeout = NULL;
	uint64_t now = dmp_now_ns();
	int status;

	if (deadline_ns) {
		uint64_t ns = deadline_ns > now ? deadline_ns - now : 0;

		left.tv_sec = (time_t)(ns / SECOND_NS);
		left.tv_nsec = (long)(ns % SECOND_NS);
		timeout = &left;
	}
	status = ppoll(&word, 1, timeout, NULL);
	return status < 0 ? -errno : status;
}

uint64_t dmp_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

/* ---- commands, in one line each */

int device_fd(const struct dmp_plane *plane)
{
	return plane->fd;
}

bool device_errno_is_known(int status)
{
	static const int known[] = {
		0, ENOTTY, E2BIG, EOPNOTSUPP, EINVAL, EFAULT, ENOENT, EBUSY, EAGAIN, ESTALE,
		EOVERFLOW, ENOMEM, ENOSPC, EPERM, EPROTO, ETIMEDOUT, EINTR, ECANCELED, EBADMSG,
		EACCES, ENODEV, ECONNRESET, ECONNREFUSED, EHOSTUNREACH, EADDRINUSE, EBADF, EMFILE,
	};
	size_t i;

	for (i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (status == -known[i])
			return true;
	return false;
}

int device_buffer(struct dmp_plane *plane, struct dmp_buffer_create *create, uint32_t kind,
		  uint64_t length_bytes)
{
	memset(create, 0, sizeof(*create));
	create->size = sizeof(*create);
	create->length_bytes = length_bytes;
	create->kind = kind;
	create->node = -1;
	create->flags = kind == DMP_KIND_HUGE ? DMP_BUFFER_HUGE_PREFER : 0;
	return dmp_ioctl(plane, DMP_BUFFER_CREATE, create);
}

int device_destroy(struct dmp_plane *plane, unsigned int command, uint32_t id)
{
	struct dmp_destroy request = { .size = sizeof(request), .id = id };

	return dmp_ioctl(plane, command, &request);
}

int device_export(struct dmp_plane *plane, uint32_t buffer_id, uint32_t flags)
{
	struct dmp_buffer_export request = {
		.size = sizeof(request), .flags = flags, .buffer_id = buffer_id };
	int status = dmp_ioctl(plane, DMP_BUFFER_EXPORT, &request);

	return status ? status : request.fd;
}

int device_import(struct dmp_plane *plane, int fd, struct dmp_buffer_import *import)
{
	memset(import, 0, sizeof(*import));
	import->size = sizeof(*import);
	import->fd = fd;
	return dmp_ioctl(plane, DMP_BUFFER_IMPORT, import);
}

int device_statistics(struct dmp_plane *plane, struct dmp_statistics *statistics)
{
	memset(statistics, 0, sizeof(*statistics));
	statistics->size = sizeof(*statistics);
	return dmp_ioctl(plane, DMP_STATISTICS, statistics);
}

int device_rings_open(struct dmp_plane *plane, struct device_rings *rings, uint32_t slots,
		      uint32_t workers)
{
	struct dmp_channel_create *channel = &rings->channel;
	int status;

	memset(rings, 0, sizeof(*rings));
	channel->size = sizeof(*channel);
	channel->slots = slots;
	channel->workers = workers;
	status = dmp_ioctl(plane, DMP_CHANNEL_CREATE, channel);
	if (status)
		return status;
	status = dmp_mmap(plane, channel->map_bytes, PROT_READ | PROT_WRITE, channel->map_offset,
			  &rings->mapping);
	if (status) {
		device_destroy(plane, DMP_CHANNEL_DESTROY, channel->channel_id);
		return status;
	}
	rings->client.control = rings->mapping;
	rings->client.submissions = (void *)((uint8_t *)rings->mapping +
					     channel->submissions_offset);
	rings->client.completions = (void *)((uint8_t *)rings->mapping +
					     channel->completions_offset);
	rings->client.slots = slots;
	rings->client.completion_slots = 2 * slots;
	rings->client.channel_id = channel->channel_id;
	rings->client.plane = plane;
	rings->client.fd = -1;
	return 0;
}

int device_rings_close(struct dmp_plane *plane, struct device_rings *rings)
{
	int status = device_destroy(plane, DMP_CHANNEL_DESTROY, rings->channel.channel_id);

	return status ? status : dmp_munmap(plane, rings->mapping);
}

/* ---- what the kernel says of itself */

int64_t device_proc_value(const char *path, const char *name)
{
	FILE *file = fopen(path, "re");
	size_t length = name ? strlen(name) : 0;
	long long value = -1;
	char line[256];

	if (!file)
		return -1;
	while (value < 0 && fgets(line, sizeof(line), file)) {
		if (!name)
			value = strtoll(line, NULL, 10);
		else if (!strncmp(line, name, length) && (line[length] == ':' || line[length] == ' '))
			value = strtoll(line + length + 1, NULL, 10);
	}
	fclose(file);
	return value;
}

/* A "name=value" of the module's own account. */
static int64_t account_value(const char *name)
{
	FILE *file = fopen(DEBUGFS_MEMORY, "re");
	size_t length = strlen(name);
	int64_t value = -1;
	char word[64];

	if (!file)
		return -1;
	while (value < 0 && fscanf(file, "%63s", word) == 1)
		if (!strncmp(word, name, length) && word[length] == '=')
			value = strtoll(word + length + 1, NULL, 10);
	fclose(file);
	return value;
}

int64_t device_charged_bytes(void)
{
	return account_value("charged_bytes");
}

int64_t device_memories(void)
{
	return account_value("memories");
}

int64_t device_references(void)
{
	return device_proc_value(REFERENCES, NULL);
}

int64_t device_reusable_kib(void)
{
	static const char *const names[] = { "MemFree", "Buffers", "Cached", "SReclaimable" };
	FILE *file = fopen("/proc/zoneinfo", "re");
	long long pages;
	char line[256];
	int64_t sum = 0;
	size_t i;

	for (i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		sum += device_proc_value("/proc/meminfo", names[i]);
	/* Free too, but kept back by a CPU for its next allocation. */
	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, " count: %lld", &pages) == 1)
			sum += pages * 4;
	if (file)
		fclose(file);
	return sum;
}

int64_t device_pinned_pages(void)
{
	int fd = open("/proc/sys/vm/stat_refresh", O_WRONLY | O_CLOEXEC);

	/* Each CPU keeps what it counted for a while; this collects it. */
	if (fd < 0 || write(fd, "1", 1) != 1)
		return -1;
	close(fd);
	return device_proc_value("/proc/vmstat", "nr_foll_pin_acquired") -
	       device_proc_value("/proc/vmstat", "nr_foll_pin_released");
}

/* ---- chance */

uint64_t random_next(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15ull;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

uint32_t random_below(uint64_t *state, uint32_t end)
{
	return (uint32_t)((random_next(state) >> 32) * end >> 32);
}

void sleep_us(uint64_t us)
{
	struct timespec time = { .tv_sec = (time_t)(us / 1000000),
				 .tv_nsec = (long)(us % 1000000) * 1000 };

	nanosleep(&time, NULL);
}
