// SPDX-License-Identifier: MIT
/*
 * test_shm_moves.c - memory of the other side: asked for, copied to, taken back
 *
 * One law a function; L5, L7, L9 and L12 of a region between two processes of one user.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "checksum.h"
#include "placement.h"
#include "shm_pair.h"

#define RIGHTS (DMP_ACCESS_REMOTE_READ | DMP_ACCESS_REMOTE_WRITE)

static size_t page;

/* A buffer of @end with a region in it. */
struct ground {
	struct dmp_buffer *buffer;
	char *bytes;			/* where the region begins */
	struct dmp_region_create made;
	struct dmp_region_key key;
};

static struct ground ground_of(struct end *end, __u64 length, __u64 offset, __u64 bytes, __u32 access)
{
	struct dmp_buffer_create create = { .size = sizeof(create), .length_bytes = length,
					    .node = -1 };
	struct ground ground = { .made = { .size = sizeof(ground.made), .access = access,
					   .offset = offset, .length_bytes = bytes } };
	int error;

	CHECK(!dmp_buffer_create(end->plane, &create));
	ground.made.buffer_id = create.buffer_id;
	CHECK(!dmp_region_create(end->plane, &ground.made));
	pthread_mutex_lock(&end->plane->lock);
	ground.buffer = (struct dmp_buffer *)dmp_plane_find_locked(
		end->plane, create.buffer_id, DMP_OBJECT_BUFFER, &error);
	pthread_mutex_unlock(&end->plane->lock);
	CHECK(ground.buffer);
	ground.bytes = (char *)ground.buffer->memory.address + offset;
	CHECK(!dmp_region_key_decode(ground.made.key, ground.made.key_bytes, &ground.key));
	return ground;
}

/* What REGION_IMPORT does with a key before it asks. */
static struct dmp_remote named(const __u8 *bytes, __u32 count)
{
	struct dmp_remote remote = { .key_bytes = count };
	struct dmp_region_key key;

	CHECK(!dmp_region_key_decode(bytes, count, &key));
	memcpy(remote.key, bytes, count);
	remote.access = key.access;
	remote.length = key.length;
	remote.slot = key.slot;
	remote.generation = key.generation;
	return remote;
}

/* Asks, lets @other answer if it is here, and takes the answer. */
static int import(struct end *end, struct end *other, struct dmp_remote *remote)
{
	int ret;

	CHECK(!dmp_shm_ask(end->fabric, remote->key, remote->key_bytes));
	CHECK(dmp_shm_granted(end->fabric, remote) == -EAGAIN);
	if (other)
		CHECK(!other->fabric->type->drain(other->fabric));
	do {
		wait_readable(end->fabric->fd);
		CHECK(!end->fabric->type->drain(end->fabric));
		ret = dmp_shm_granted(end->fabric, remote);
	} while (ret == -EAGAIN);
	return ret ? ret : dmp_shm_prove(remote);
}

static void let_go(struct dmp_remote *remote)
{
	CHECK(!munmap(remote->mapping, remote->mapping_bytes));
}

static int move(struct end *end, struct dmp_remote *remote, __u64 offset, char *local, __u64 length,
		bool write)
{
	struct dmp_move move = { .remote = remote, .offset = offset, .local = local,
				 .length = length, .sweep = length, .write = write };

	return end->fabric->type->move(end->fabric, &move);
}

static void end_region(struct end *end, const struct ground *ground)
{
	struct dmp_destroy destroy = { .size = sizeof(destroy), .id = ground->made.region_id };

	CHECK(!dmp_region_destroy(end->plane, &destroy));
}

static void destroy_buffer(struct end *end, const struct ground *ground)
{
	struct dmp_destroy destroy = { .size = sizeof(destroy), .id = ground->made.buffer_id };

	CHECK(!dmp_buffer_destroy(end->plane, &destroy));
}

static void test_bytes_go_both_ways_and_nowhere_else(void)
{
	struct pair pair = pair_open();
	struct ground ground = ground_of(&pair.acceptor, 8 * page, page + 100, 3 * page, RIGHTS);
	struct dmp_remote remote = named(ground.made.key, ground.made.key_bytes);
	char *local = malloc(3 * page);

	CHECK(local && !import(&pair.connector, &pair.acceptor, &remote));
	CHECK(remote.length == 3 * page && remote.address == (char *)remote.mapping + 100);
	CHECK(remote.mapping_bytes == 4 * page);
	memset(ground.buffer->memory.address, 'o', 8 * page);
	memset(local, 'n', 3 * page);
	CHECK(!move(&pair.connector, &remote, 7, local, page, true));
	CHECK(ground.bytes[6] == 'o' && ground.bytes[7] == 'n');
	CHECK(ground.bytes[7 + page - 1] == 'n' && ground.bytes[7 + page] == 'o');
	CHECK(!move(&pair.connector, &remote, 6, local, page, false));
	CHECK(local[0] == 'o' && local[1] == 'n' && local[page - 1] == 'n');
	let_go(&remote);
	end_region(&pair.acceptor, &ground);
	destroy_buffer(&pair.acceptor, &ground);
	free(local);
	pair_close(&pair);
}

/* L10: the CRC32C is of what was stored, whatever the slices. */
static void test_the_checksum_is_of_the_bytes_moved(void)
{
	struct pair pair = pair_open();
	struct ground ground = ground_of(&pair.connector, 64 * page, 0, 64 * page, RIGHTS);
	struct dmp_remote remote = named(ground.made.key, ground.made.key_bytes);
	static const __u64 slices[] = { 1, 4095, 100000, 31 };
	static char local[200000];
	struct dmp_move move = { .remote = &remote, .local = local, .sweep = 1 << 30,
				 .write = true, .checked = true };

	CHECK(!import(&pair.acceptor, &pair.connector, &remote));
	for (size_t i = 0; i < sizeof(local); i++)
		local[i] = (char)(i * 131 >> 3);
	for (size_t i = 0; i < 4; i++) {
		move.length = slices[i];
		CHECK(!pair.acceptor.fabric->type->move(pair.acceptor.fabric, &move));
		move.offset += slices[i];
		move.local += slices[i];
	}
	CHECK(!memcmp(ground.bytes, local, move.offset));
	CHECK(move.checksum == dmp_checksum_crc32c(0, local, move.offset));
	let_go(&remote);
	pair_close(&pair);
}

static void test_a_region_for_reading_cannot_be_written(void)
{
	struct pair pair = pair_open();
	struct ground ground = ground_of(&pair.acceptor, page, 0, page, DMP_ACCESS_REMOTE_READ);
	struct dmp_remote remote = named(ground.made.key, ground.made.key_bytes);
	char byte;

	CHECK(!import(&pair.connector, &pair.acceptor, &remote));
	CHECK(dmp_placement_touch(remote.mapping, page, page, true) == -EFAULT);
	ground.bytes[5] = 'r';
	CHECK(!move(&pair.connector, &remote, 5, &byte, 1, false) && byte == 'r');
	let_go(&remote);
	/* A right that is only claimed opens no door. */
	remote = named(ground.made.key, ground.made.key_bytes);
	remote.access = RIGHTS;
	CHECK(import(&pair.connector, &pair.acceptor, &remote) == -EACCES);
	pair_close(&pair);
}

static void test_wrong_keys_are_refused(void)
{
	struct pair pair = pair_open();
	struct ground ground = ground_of(&pair.acceptor, page, 0, page, RIGHTS);
	struct dmp_remote remote;
	unsigned int descriptors = count_descriptors();

	for (__u32 i = 0; i < ground.made.key_bytes; i++) {
		remote = named(ground.made.key, ground.made.key_bytes);
		remote.key[i] ^= 0x10;
		CHECK(import(&pair.connector, &pair.acceptor, &remote) < 0);
	}
	remote = named(ground.made.key, ground.made.key_bytes);
	end_region(&pair.acceptor, &ground);
	CHECK(import(&pair.connector, &pair.acceptor, &remote) == -ESTALE);
	CHECK(count_descriptors() == descriptors);
	pair_close(&pair);
}

/* A question that nobody waits for any more does not answer the next one. */
static void test_a_new_question_replaces_the_old(void)
{
	struct pair pair = pair_open();
	struct ground first = ground_of(&pair.acceptor, page, 0, page, RIGHTS);
	struct ground second = ground_of(&pair.acceptor, 4 * page, 0, 3 * page, RIGHTS);
	struct dmp_remote remote = named(second.made.key, second.made.key_bytes);
	unsigned int descriptors = count_descriptors();

	CHECK(dmp_shm_granted(pair.connector.fabric, &remote) == -EINVAL);
	CHECK(!dmp_shm_ask(pair.connector.fabric, first.made.key, first.made.key_bytes));
	CHECK(!import(&pair.connector, &pair.acceptor, &remote));
	CHECK(remote.length == 3 * page);
	CHECK(dmp_shm_granted(pair.connector.fabric, &remote) == -EINVAL);
	CHECK(count_descriptors() == descriptors);
	let_go(&remote);
	/* One that was answered, but not taken, before the end. */
	CHECK(!dmp_shm_ask(pair.connector.fabric, first.made.key, first.made.key_bytes));
	CHECK(!pair.acceptor.fabric->type->drain(pair.acceptor.fabric));
	CHECK(!pair.connector.fabric->type->drain(pair.connector.fabric));
	CHECK(count_descriptors() == descriptors + 1);
	pair_close(&pair);
}

/* L7 */
static void test_a_revoked_region_is_stale_at_once(void)
{
	struct pair pair = pair_open();
	struct ground ground = ground_of(&pair.acceptor, page, 0, page, RIGHTS), again;
	struct dmp_remote remote = named(ground.made.key, ground.made.key_bytes);
	struct dmp_remote missing = { .slot = remote.slot };
	char byte = 'x';

	CHECK(!import(&pair.connector, &pair.acceptor, &remote));
	CHECK(!move(&pair.connector, &remote, 0, &byte, 1, true));
	CHECK(dmp_shm_is_touching(pair.acceptor.fabric, remote.slot));
	CHECK(!dmp_shm_is_touching(pair.acceptor.fabric, remote.slot + 1));
	pair.connector.fabric->type->ready(pair.connector.fabric);
	CHECK(!dmp_shm_is_touching(pair.acceptor.fabric, remote.slot));
	end_region(&pair.acceptor, &ground);
	ground.bytes[0] = 'o';
	CHECK(move(&pair.connector, &remote, 0, &byte, 1, true) == -ESTALE);
	CHECK(move(&pair.connector, &remote, 0, &byte, 1, false) == -ESTALE);
	CHECK(ground.bytes[0] == 'o' && byte == 'x');
	CHECK(!dmp_shm_is_touching(pair.acceptor.fabric, remote.slot));
	/* The next region may get the same slot: another generation all the same. */
	again = ground_of(&pair.acceptor, page, 0, page, RIGHTS);
	CHECK(again.key.generation != remote.generation);
	CHECK(move(&pair.connector, &remote, 0, &byte, 1, true) == -ESTALE);
	CHECK(move(&pair.connector, &missing, 0, &byte, 1, true) == -EINVAL);
	let_go(&remote);
	pair_close(&pair);
}

/* ---- a peer that is in the middle of a slice */

struct other {
	struct end end;		/* ours */
	struct ground ground;
	pid_t child;
};

/* The child copies into our region until it may not any more; its status says why. */
static void copy_until_refused(int socket)
{
	static char local[1 << 20];
	struct end end = end_answer(socket);
	struct dmp_remote remote;
	__u8 key[DMP_KEY_BYTES];
	__u32 count;
	int ret;

	memset(local, 'w', sizeof(local));
	end_receive_all(&end, &count, sizeof(count));
	end_receive_all(&end, key, count);
	remote = named(key, count);
	CHECK(!import(&end, NULL, &remote));
	do
		ret = move(&end, &remote, 0, local, sizeof(local), true);
	while (!ret);
	let_go(&remote);
	end_close(&end);
	_exit(-ret);
}

/* A child that is stopped while it says that it touches our region. */
static struct other other_stopped_in_a_move(void)
{
	struct other other;
	int socket, status;

	other.child = fork_connected(&socket);
	if (!other.child)
		copy_until_refused(socket);
	other.end = end_offer(socket);
	other.ground = ground_of(&other.end, 1 << 20, 0, 1 << 20, RIGHTS);
	end_send_all(&other.end, &other.ground.made.key_bytes, sizeof(__u32));
	end_send_all(&other.end, other.ground.made.key, other.ground.made.key_bytes);
	while (!dmp_shm_is_touching(other.end.fabric, other.ground.key.slot)) {
		CHECK(!other.end.fabric->type->drain(other.end.fabric));
		sched_yield();
	}
	CHECK(!kill(other.child, SIGSTOP));
	CHECK(waitpid(other.child, &status, WUNTRACED) == other.child && WIFSTOPPED(status));
	CHECK(dmp_shm_is_touching(other.end.fabric, other.ground.key.slot));
	return other;
}

static int wake_and_reap(const struct other *other, int signal)
{
	int status;

	CHECK(!kill(other->child, signal));
	CHECK(waitpid(other->child, &status, 0) == other->child);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static void end_generation(struct other *other)
{
	struct dmp_destroy destroy = { .size = sizeof(destroy), .id = other->ground.made.region_id,
				       .flags = DMP_DESTROY_DRAIN, .deadline_ns = 1 };

	/* Bare fabrics are no endpoints of the plane, so nothing makes destroy wait. */
	CHECK(!dmp_region_destroy(other->end.plane, &destroy));
}

static bool is_touched(struct other *other)
{
	return dmp_shm_is_touching(other->end.fabric, other->ground.key.slot);
}

/* L5, L7: revoked in the middle; after the peer has let go not one byte more comes. */
static void test_revoked_in_the_middle_of_a_move(void)
{
	struct other other = other_stopped_in_a_move();

	end_generation(&other);
	CHECK(is_touched(&other));
	CHECK(!kill(other.child, SIGCONT));
	while (is_touched(&other))
		sched_yield();
	memset(other.ground.bytes, 'k', 1 << 20);
	CHECK(wake_and_reap(&other, SIGCONT) == ESTALE);
	for (size_t i = 0; i < 1 << 20; i++)
		CHECK(other.ground.bytes[i] == 'k');
	end_close(&other.end);
}

/* L4: it cannot clear its word any more, but the kernel says that it is gone. */
static void test_a_killed_peer_touches_nothing(void)
{
	struct other other = other_stopped_in_a_move();

	CHECK(wake_and_reap(&other, SIGKILL) == -SIGKILL);
	CHECK(!is_touched(&other));
	if (dmp_shm_pidfd(other.end.fabric) >= 0)
		wait_readable(dmp_shm_pidfd(other.end.fabric));
	wait_readable(other.end.fabric->fd);
	while (!other.end.fabric->type->drain(other.end.fabric))
		continue;
	end_close(&other.end);
}

/* Closed here, while the peer is stopped there: known until it has let go, or is gone. */
static void test_a_peer_left_in_a_move_is_not_forgotten(void)
{
	for (int violent = 0; violent < 2; violent++) {
		struct other other = other_stopped_in_a_move();
		unsigned int segments = count_segments_mapped();
		__u32 slot = other.ground.key.slot;

		other.end.fabric->type->close(other.end.fabric);
		other.end.fabric = NULL;
		CHECK(dmp_shm_left_touching(other.end.plane, slot));
		CHECK(!dmp_shm_left_touching(other.end.plane, slot + 1));
		CHECK(count_segments_mapped() == segments);
		/* The region still stands: what stops the peer is that we have closed. */
		CHECK(wake_and_reap(&other, violent ? SIGKILL : SIGCONT) ==
		      (violent ? -SIGKILL : ECONNRESET));
		CHECK(!dmp_shm_left_touching(other.end.plane, slot));
		CHECK(count_segments_mapped() == segments - 1);
		end_close(&other.end);
	}
}

int main(void)
{
	unsigned int descriptors;

	page = (size_t)sysconf(_SC_PAGESIZE);
	setvbuf(stdout, NULL, _IOLBF, 0);
	descriptors = count_descriptors();
	test_bytes_go_both_ways_and_nowhere_else();
	test_the_checksum_is_of_the_bytes_moved();
	test_a_region_for_reading_cannot_be_written();
	test_wrong_keys_are_refused();
	test_a_new_question_replaces_the_old();
	test_a_revoked_region_is_stale_at_once();
	test_revoked_in_the_middle_of_a_move();
	test_a_killed_peer_touches_nothing();
	test_a_peer_left_in_a_move_is_not_forgotten();
	CHECK(count_descriptors() == descriptors && !count_segments_mapped());
	return 0;
}
