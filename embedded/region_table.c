// SPDX-License-Identifier: MIT
/*
 * region_table.c - keys, slots and the board: how peers find a region, and no longer do
 *
 * Invariants
 *  - A region has a slot from just before it is published until it is freed. Peers may use it
 *    exactly while the word of its slot on the board is its generation; words change under
 *    the table's lock.
 *  - `operations` grows only under the table's lock and only while the word says so. So once
 *    the word has changed and the count is 0, no frame of a peer reaches the memory.
 *  - A generation is given once on a plane, counting up; 0 is none.
 *
 * The table's lock is a leaf: it is taken with plane->lock or a channel's lock held, or none.
 */
#define _GNU_SOURCE
#include "region_table.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "shm.h"

#define BOARD_BYTES	(DMP_REGIONS_MAX * sizeof(uint32_t))
#define NO_SLOT		0xffffffffu

struct region_slot {
	struct dmp_region *region;	/* NULL: free */
	uint32_t next_free;
};

struct dmp_region_table {
	pthread_mutex_t lock;
	/* protected by lock */
	struct region_slot *slots;
	uint32_t slot_count;
	uint32_t free_first;
	uint32_t generation;		/* the last one given */
	uint32_t *words;		/* the board; NULL until it is needed */
	int read_only_fd;
};

/* ---- keys */

static struct dmp_region_key key_of(const struct dmp_plane *plane, const struct dmp_region *region)
{
	return (struct dmp_region_key){
		.incarnation = plane->incarnation,
		.secret = region->secret,
		.length = region->length,
		.slot = region->slot,
		.generation = region->generation,
		.access = region->access,
	};
}

__u32 dmp_region_write_key(const struct dmp_plane *plane, const struct dmp_region *region,
			   __u8 *bytes)
{
	struct dmp_region_key key = key_of(plane, region);

	return dmp_region_key_encode(&key, bytes);
}

/* ---- the board */

/* A second descriptor of @fd that can only be read, or the same one if the seal makes it so. */
static int reopen_read_only(int fd, bool sealed)
{
	char path[32];
	int again;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	again = open(path, O_RDONLY | O_CLOEXEC);
	if (again >= 0)
		return again;
	return sealed ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : -1;
}

static int make_board_locked(struct dmp_region_table *table)
{
	int fd = memfd_create("dmaplane-regions", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	void *words = MAP_FAILED;
	bool sealed;
	int error;

	if (fd < 0)
		return -errno;
	if (ftruncate(fd, BOARD_BYTES) != 0 || fchmod(fd, 0600) != 0 ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0)
		goto err_close;
	words = mmap(NULL, BOARD_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (words == MAP_FAILED)
		goto err_close;
	/* Destroy needs no memory: every page is there before the first word is written. */
	error = dmp_placement_populate(words, BOARD_BYTES, (size_t)sysconf(_SC_PAGESIZE), true);
	if (error)
		goto err_unmap;
	sealed = fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) == 0;
	table->read_only_fd = reopen_read_only(fd, sealed);
	if (table->read_only_fd < 0) {
		error = errno == EMFILE || errno == ENFILE ? -errno : -EOPNOTSUPP;
		goto err_unmap;
	}
	close(fd);
	table->words = words;
	return 0;

err_close:
	error = -errno;
err_unmap:
	if (words != MAP_FAILED)
		munmap(words, BOARD_BYTES);
	close(fd);
	return error;
}

int dmp_region_board(struct dmp_plane *plane, const uint32_t **words, int *read_only_fd)
{
	struct dmp_region_table *table = plane->region_table;
	int error;

	pthread_mutex_lock(&table->lock);
	error = table->words ? 0 : make_board_locked(table);
	if (!error) {
		*words = table->words;
		*read_only_fd = table->read_only_fd;
	}
	pthread_mutex_unlock(&table->lock);
	return error;
}

static void set_word_locked(struct dmp_region_table *table, __u32 slot, __u32 generation)
{
	/* Pairs with the load of the board in a shm peer's move. */
	__atomic_store_n(&table->words[slot], generation, __ATOMIC_SEQ_CST);
}

/* ---- the table of slots */

int dmp_region_open(struct dmp_plane *plane)
{
	struct dmp_region_table *table = calloc(1, sizeof(*table));
	int error;

	if (!table)
		return -ENOMEM;
	error = pthread_mutex_init(&table->lock, NULL);
	if (error) {
		free(table);
		return -error;
	}
	table->free_first = NO_SLOT;
	table->read_only_fd = -1;
	plane->region_table = table;
	return 0;
}

void dmp_region_close(struct dmp_plane *plane)
{
	struct dmp_region_table *table = plane->region_table;

	dmp_shm_forget_left(plane);
	if (table->words)
		munmap(table->words, BOARD_BYTES);
	if (table->read_only_fd >= 0)
		close(table->read_only_fd);
	free(table->slots);
	pthread_mutex_destroy(&table->lock);
	free(table);
	plane->region_table = NULL;
}

static int grow_locked(struct dmp_region_table *table)
{
	uint32_t count = table->slot_count == 0 ? 64 : table->slot_count * 2;
	struct region_slot *slots;
	uint32_t slot;

	if (table->slot_count == DMP_REGIONS_MAX)
		return -ENOSPC;
	if (count > DMP_REGIONS_MAX)
		count = DMP_REGIONS_MAX;
	slots = realloc(table->slots, count * sizeof(*slots));
	if (!slots)
		return -ENOMEM;
	for (slot = count; slot-- > table->slot_count;) {
		slots[slot] = (struct region_slot){ .next_free = table->free_first };
		table->free_first = slot;
	}
	table->slots = slots;
	table->slot_count = count;
	return 0;
}

int dmp_region_take_slot(struct dmp_plane *plane, struct dmp_region *region)
{
	struct dmp_region_table *table = plane->region_table;
	int error = 0;

	pthread_mutex_lock(&table->lock);
	if (!table->words)
		error = make_board_locked(table);
	if (!error && table->generation == UINT32_MAX)
		error = -ENOSPC;
	if (!error && table->free_first == NO_SLOT)
		error = grow_locked(table);
	if (!error) {
		region->slot = table->free_first;
		region->generation = ++table->generation;
		table->free_first = table->slots[region->slot].next_free;
		table->slots[region->slot].region = region;
	}
	pthread_mutex_unlock(&table->lock);
	return error;
}

void dmp_region_give_slot(struct dmp_plane *plane, struct dmp_region *region)
{
	struct dmp_region_table *table = plane->region_table;

	pthread_mutex_lock(&table->lock);
	set_word_locked(table, region->slot, 0);
	table->slots[region->slot].region = NULL;
	table->slots[region->slot].next_free = table->free_first;
	table->free_first = region->slot;
	pthread_mutex_unlock(&table->lock);
}

void dmp_region_let_in(struct dmp_plane *plane, const struct dmp_region *region)
{
	struct dmp_region_table *table = plane->region_table;

	pthread_mutex_lock(&table->lock);
	set_word_locked(table, region->slot, region->generation);
	pthread_mutex_unlock(&table->lock);
}

void dmp_region_keep_out(struct dmp_plane *plane, const struct dmp_region *region)
{
	struct dmp_region_table *table = plane->region_table;

	pthread_mutex_lock(&table->lock);
	set_word_locked(table, region->slot, 0);
	pthread_mutex_unlock(&table->lock);
}

bool dmp_region_keep_out_if_idle(struct dmp_plane *plane, const struct dmp_region *region)
{
	struct dmp_region_table *table = plane->region_table;
	bool idle;

	pthread_mutex_lock(&table->lock);
	idle = __atomic_load_n(&region->operations, __ATOMIC_SEQ_CST) == 0;
	if (idle)
		set_word_locked(table, region->slot, 0);
	pthread_mutex_unlock(&table->lock);
	return idle;
}

/* ---- use by peers */

static int find_locked(struct dmp_plane *plane, const struct dmp_region_key *key,
		       struct dmp_region **found)
{
	struct dmp_region_table *table = plane->region_table;
	struct dmp_region_key right;
	struct dmp_region *region;

	/* What was never given cannot have been revoked. */
	if (key->incarnation != plane->incarnation || key->slot >= table->slot_count ||
	    key->generation > table->generation)
		return -EACCES;
	region = table->slots[key->slot].region;
	if (!region || region->generation != key->generation)
		return -ESTALE;
	right = key_of(plane, region);
	if (!dmp_region_key_equal(&right, key))
		return -EACCES;
	if (table->words[key->slot] != region->generation)
		return -ESTALE;
	*found = region;
	return 0;
}

int dmp_region_admit(struct dmp_plane *plane, const __u8 *bytes, __u32 count, __u64 offset,
		     __u64 length, __u32 access, struct dmp_region **found, char **address)
{
	struct dmp_region_table *table = plane->region_table;
	struct dmp_region *region;
	struct dmp_region_key key;
	int error;

	if (dmp_region_key_decode(bytes, count, &key))
		return -EACCES;
	pthread_mutex_lock(&table->lock);
	error = find_locked(plane, &key, &region);
	if (!error && access & ~region->access)
		error = -EACCES;
	if (!error && (offset > region->length || length > region->length - offset))
		error = -EINVAL;
	if (!error) {
		__atomic_add_fetch(&region->operations, 1, __ATOMIC_SEQ_CST);
		*found = region;
		*address = (char *)region->buffer->memory.address + region->offset + offset;
	}
	pthread_mutex_unlock(&table->lock);
	return error;
}

void dmp_region_release(struct dmp_plane *plane, struct dmp_region *region)
{
	/* After the subtraction the region may be gone. */
	__atomic_sub_fetch(&region->operations, 1, __ATOMIC_SEQ_CST);
	/*
	 * plane->lock may not be taken here, so a drainer between its look and its wait may
	 * miss this; it looks again by itself within milliseconds.
	 */
	if (__atomic_load_n(&plane->drainers, __ATOMIC_SEQ_CST) != 0)
		pthread_cond_broadcast(&plane->released);
}

int dmp_region_share(struct dmp_plane *plane, const __u8 *key, __u32 key_bytes, int *fd,
		     __u64 *offset, __u64 *length)
{
	struct dmp_memory *memory;
	struct dmp_region *region;
	bool writable;
	char *address;
	int error = dmp_region_admit(plane, key, key_bytes, 0, 0, 0, &region, &address);

	if (error)
		return error;
	memory = &region->buffer->memory;
	writable = region->access & DMP_ACCESS_REMOTE_WRITE;
	if (!(region->access & (DMP_ACCESS_REMOTE_READ | DMP_ACCESS_REMOTE_WRITE)))
		error = -EACCES;
	else if (memory->dmabuf)
		error = -EOPNOTSUPP;	/* nothing seals it against shrinking under the peer */
	else
		error = dmp_memory_export(memory, writable ? 0 : DMP_EXPORT_READ_ONLY, fd);
	if (!error) {
		*offset = region->offset;
		*length = region->length;
		__atomic_store_n(&region->shared, true, __ATOMIC_SEQ_CST);
	}
	dmp_region_release(plane, region);
	return error;
}
