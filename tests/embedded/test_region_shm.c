// SPDX-License-Identifier: MIT
/*
 * test_region_shm.c - regions and the peers that map them
 *
 * The peer is the connector of a pair; the owner has an endpoint on the acceptor's fabric.
 * What the peer would write into the segment while it copies is written by hand, so that
 * every moment can be held.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <stdlib.h>

#include "endpoint_embedded.h"
#include "region_session.h"
#include "shm_pair.h"
#include "wait.h"

#define BYTES 65536u
#define LARGE_BYTES (128u << 10)

/* ---- the board */

static void test_the_board_shows_generations_and_only_we_write_it(void)
{
	struct dmp_plane *plane;
	const uint32_t *words, *again, *theirs;
	struct grant grant;
	uint32_t buffer, generation = 9;
	int fd, same;

	CHECK(!dmp_open(&plane));
	CHECK(!dmp_region_board(plane, &words, &fd));
	CHECK(!dmp_region_board(plane, &again, &same) && again == words && same == fd);
	CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	theirs = mmap(NULL, DMP_SHM_BOARD_BYTES, PROT_READ, MAP_SHARED, fd, 0);
	CHECK(theirs != MAP_FAILED);
	CHECK(mmap(NULL, DMP_SHM_BOARD_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) ==
	      MAP_FAILED);
	CHECK(mprotect((void *)(uintptr_t)theirs, DMP_SHM_BOARD_BYTES, PROT_READ | PROT_WRITE) != 0);
	CHECK(pwrite(fd, &generation, sizeof(generation), 0) < 0);
	CHECK(ftruncate(fd, 0) != 0);
	CHECK(fcntl(fd, F_GET_SEALS) & F_SEAL_SHRINK);
	buffer = buffer_make(plane, BYTES, NULL);
	for (uint32_t slot = 0; slot < DMP_REGIONS_MAX; slot++)
		CHECK(theirs[slot] == 0);
	for (int turn = 0; turn < 3; turn++) {
		grant = region_make(plane, buffer, 0, 1, READ);
		CHECK(grant.key.generation && theirs[grant.key.slot] == grant.key.generation);
		CHECK(!region_end(plane, grant.create.region_id, 0, 0));
		CHECK(theirs[grant.key.slot] == 0);
	}
	/* A peer that outlives the plane sees every region gone. */
	grant = region_make(plane, buffer, 0, 1, READ);
	CHECK(!dmp_close(plane));
	for (uint32_t slot = 0; slot < DMP_REGIONS_MAX; slot++)
		CHECK(theirs[slot] == 0);
	munmap((void *)(uintptr_t)theirs, DMP_SHM_BOARD_BYTES);
}

/* ---- shares */

static int share(struct dmp_plane *plane, const struct grant *grant, int *fd, uint64_t *offset,
		 uint64_t *length)
{
	__u64 at = 0, bytes = 0;
	int error = dmp_region_share(plane, grant->create.key, grant->create.key_bytes, fd, &at,
				     &bytes);

	*offset = at;
	*length = bytes;
	return error;
}

static void test_L12_a_share_gives_the_granted_rights_and_no_more(void)
{
	struct dmp_plane *plane;
	uint64_t offset, length;
	struct grant grant;
	uint32_t buffer;
	char *bytes, *theirs;
	int fd;

	CHECK(!dmp_open(&plane));
	buffer = buffer_make(plane, BYTES, &bytes);
	grant = region_make(plane, buffer, 5000, 300, READ);
	CHECK(!share(plane, &grant, &fd, &offset, &length) && offset == 5000 && length == 300);
	CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	CHECK((fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDONLY);
	CHECK(fcntl(fd, F_GET_SEALS) & F_SEAL_SHRINK);
	CHECK(mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED);
	memcpy(bytes + 5000, "owner", 5);
	theirs = mmap(NULL, BYTES, PROT_READ, MAP_SHARED, fd, 0);
	CHECK(theirs != MAP_FAILED && !memcmp(theirs + offset, "owner", 5));
	munmap(theirs, BYTES);
	close(fd);

	grant = region_make(plane, buffer, 0, BYTES, WRITE);
	CHECK(!share(plane, &grant, &fd, &offset, &length) && offset == 0 && length == BYTES);
	theirs = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(theirs != MAP_FAILED);
	memcpy(theirs + 7, "peer", 4);
	CHECK(!memcmp(bytes + 7, "peer", 4));
	munmap(theirs, BYTES);
	close(fd);
	/* Nothing of it stays a holder of the region. */
	CHECK(region_ask(plane, grant.create.region_id).operations == 0);
	CHECK(!region_end(plane, grant.create.region_id, 0, 0));
	CHECK(share(plane, &grant, &fd, &offset, &length) == -ESTALE);
	CHECK(!dmp_close(plane));
}

static void test_what_cannot_be_shared_says_why(void)
{
	char *own = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct dmp_plane *plane;
	uint64_t offset, length;
	struct grant grant;
	unsigned int before;
	uint32_t buffer;
	int fd = -1;

	CHECK(own != MAP_FAILED && !dmp_open(&plane));
	buffer = buffer_make(plane, BYTES, NULL);
	/* Only RECVs of its own may land there: no peer has a right to its memory. */
	grant = region_make(plane, buffer, 0, BYTES, LAND);
	before = count_descriptors();
	CHECK(share(plane, &grant, &fd, &offset, &length) == -EACCES);
	grant.create.key[20] ^= 1;
	CHECK(share(plane, &grant, &fd, &offset, &length) == -EACCES);
	buffer = buffer_of_user(plane, own, BYTES, 0);
	grant = region_make(plane, buffer, 0, BYTES, READ);
	CHECK(share(plane, &grant, &fd, &offset, &length) == -EOPNOTSUPP);
	CHECK(!admits(plane, &grant, 0, BYTES, READ));
	CHECK(fd == -1 && count_descriptors() == before);
	CHECK(region_ask(plane, grant.create.region_id).operations == 0);
	CHECK(!dmp_close(plane));
	munmap(own, BYTES);
}

static void test_a_peer_that_keeps_a_dead_mapping_does_not_keep_the_buffer(void)
{
	struct dmp_plane *plane;
	uint64_t offset, length;
	struct grant grant;
	uint32_t buffer;
	char *theirs;
	int fd;

	CHECK(!dmp_open(&plane));
	buffer = buffer_make(plane, BYTES, NULL);
	grant = region_make(plane, buffer, 0, BYTES, WRITE);
	CHECK(!share(plane, &grant, &fd, &offset, &length));
	theirs = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(theirs != MAP_FAILED);
	close(fd);
	CHECK(buffer_ask(plane, buffer).regions == 1 && buffer_ask(plane, buffer).exports == 0);
	CHECK(buffer_end(plane, buffer, 0, 0) == -EBUSY);
	CHECK(!region_end(plane, grant.create.region_id, DMP_DESTROY_DRAIN, 0));
	CHECK(!buffer_end(plane, buffer, 0, 0));
	/* No signal for the peer: the pages live as long as it maps them. */
	memset(theirs, 1, BYTES);
	munmap(theirs, BYTES);
	CHECK(!dmp_close(plane));
}

/* ---- who touches */

struct owner {
	struct dmp_plane *plane;
	struct dmp_embedded_endpoint *endpoint;
	uint32_t buffer;
	struct grant grant;
};

static struct dmp_embedded_channel *channel_make(struct dmp_plane *plane)
{
	struct dmp_channel_create create = { .size = sizeof(create), .slots = 8 };
	struct dmp_object *object;

	CHECK(!dmp_ioctl(plane, DMP_CHANNEL_CREATE, &create));
	pthread_mutex_lock(&plane->lock);
	object = dmp_table_find(&plane->table, create.channel_id);
	pthread_mutex_unlock(&plane->lock);
	return (struct dmp_embedded_channel *)object;
}

/* The acceptor with an endpoint in its table and a region that was shared with the peer. */
static struct owner owner_make(struct end *end)
{
	struct owner owner = { .plane = end->plane };
	uint64_t offset, length;
	int fd;

	owner.endpoint = calloc(1, sizeof(*owner.endpoint));
	CHECK(owner.endpoint);
	owner.endpoint->object.type = DMP_OBJECT_ENDPOINT;
	owner.endpoint->plane = owner.plane;
	owner.endpoint->channel = channel_make(owner.plane);
	owner.endpoint->fabric = end->fabric;
	pthread_mutex_lock(&owner.plane->lock);
	CHECK(!dmp_table_insert(&owner.plane->table, &owner.endpoint->object));
	pthread_mutex_unlock(&owner.plane->lock);
	owner.buffer = buffer_make(owner.plane, BYTES, NULL);
	region_make(owner.plane, owner.buffer, 0, BYTES, READ);	/* so that slots are not all 0 */
	owner.grant = region_make(owner.plane, owner.buffer, 0, BYTES, WRITE);
	CHECK(!share(owner.plane, &owner.grant, &fd, &offset, &length));
	close(fd);
	return owner;
}

/* Takes the endpoint away again: it was never one of the plane's making. */
static void owner_end(struct owner *owner)
{
	pthread_mutex_lock(&owner->plane->lock);
	dmp_table_remove(&owner->plane->table, &owner->endpoint->object);
	pthread_mutex_unlock(&owner->plane->lock);
	free(owner->endpoint);
}

static void touch(struct end *peer, uint32_t value)
{
	__atomic_store_n(&peer->shm->ours->touching, value, __ATOMIC_SEQ_CST);
}

static int owner_ends_region(struct owner *owner, uint32_t flags, uint64_t deadline_ns)
{
	return region_end(owner->plane, owner->grant.create.region_id, flags, deadline_ns);
}

static void test_L3_a_region_a_peer_touches_is_busy_and_unchanged(void)
{
	struct pair pair = pair_open();
	struct owner owner = owner_make(&pair.acceptor);
	uint32_t slot = owner.grant.key.slot;

	touch(&pair.connector, slot + 1);
	CHECK(owner_ends_region(&owner, 0, 0) == -EBUSY);
	CHECK(region_ask(owner.plane, owner.grant.create.region_id).state == DMP_STATE_LIVE);
	CHECK(pair.connector.shm->board[slot] == owner.grant.key.generation);
	CHECK(!admits(owner.plane, &owner.grant, 0, 1, WRITE));
	/* Another slot is another region's business. */
	touch(&pair.connector, slot + 2);
	CHECK(!owner_ends_region(&owner, 0, 0));
	CHECK(pair.connector.shm->board[slot] == 0);
	owner_end(&owner);
	pair_close(&pair);
}

struct ending {
	pthread_t thread;
	struct owner *owner;
	int error;
};

static void *ending_run(void *argument)
{
	struct ending *ending = argument;

	ending->error = owner_ends_region(ending->owner, DMP_DESTROY_DRAIN, 0);
	return NULL;
}

static void test_L7_drain_waits_for_a_slice_and_no_further_one_begins(void)
{
	struct pair pair = pair_open();
	struct owner owner = owner_make(&pair.acceptor);
	struct ending ending = { .owner = &owner };
	uint32_t slot = owner.grant.key.slot;

	touch(&pair.connector, slot + 1);
	CHECK(owner_ends_region(&owner, DMP_DESTROY_DRAIN, dmp_now_ns() + SOON_NS) == -ETIMEDOUT);
	CHECK(region_ask(owner.plane, owner.grant.create.region_id).state == DMP_STATE_DRAINING);
	CHECK(pair.connector.shm->board[slot] == 0);
	CHECK(owner_ends_region(&owner, 0, 0) == -EBUSY);
	CHECK(!pthread_create(&ending.thread, NULL, ending_run, &ending));
	while (!__atomic_load_n(&owner.plane->drainers, __ATOMIC_SEQ_CST))
		sched_yield();
	CHECK(admits(owner.plane, &owner.grant, 0, 1, WRITE) == -ESTALE);
	touch(&pair.connector, 0);
	pthread_join(ending.thread, NULL);
	CHECK(ending.error == 0);
	owner_end(&owner);
	pair_close(&pair);
}

static void test_L7_a_peer_left_in_a_slice_is_still_watched(void)
{
	struct pair pair = pair_open();
	struct owner owner = owner_make(&pair.acceptor);

	touch(&pair.connector, owner.grant.key.slot + 1);
	/* The connection is cut on our side; the peer is somewhere in its copy. */
	pair.acceptor.fabric->type->close(pair.acceptor.fabric);
	pair.acceptor.fabric = NULL;
	owner.endpoint->fabric = NULL;
	CHECK(owner_ends_region(&owner, 0, 0) == -EBUSY);
	CHECK(owner_ends_region(&owner, DMP_DESTROY_DRAIN, dmp_now_ns() + SOON_NS) == -ETIMEDOUT);
	touch(&pair.connector, 0);
	CHECK(!owner_ends_region(&owner, DMP_DESTROY_DRAIN, 0));
	owner_end(&owner);
	pair_close(&pair);
}

static void test_a_region_nobody_was_given_is_not_looked_for(void)
{
	struct pair pair = pair_open();
	struct owner owner = owner_make(&pair.acceptor);
	struct grant unshared = region_make(owner.plane, owner.buffer, 0, BYTES, WRITE);

	/* A peer may claim to touch what it never got; that holds nothing. */
	touch(&pair.connector, unshared.key.slot + 1);
	CHECK(!region_end(owner.plane, unshared.create.region_id, 0, 0));
	owner_end(&owner);
	pair_close(&pair);
}

/* A peer's process that is stopped, then killed, in the middle of a copy. */
static void test_L4_a_peer_holds_a_region_no_longer_than_it_lives(void)
{
	struct owner owner;
	struct end acceptor;
	int socket, told[2];
	uint32_t slot;
	pid_t child;

	CHECK(!pipe(told));
	child = fork_connected(&socket);
	if (!child) {
		struct end connector = end_offer(socket);

		CHECK(read(told[0], &slot, sizeof(slot)) == sizeof(slot));
		touch(&connector, slot + 1);
		raise(SIGSTOP);
		pause();
		_exit(0);
	}
	acceptor = end_answer(socket);
	owner = owner_make(&acceptor);
	slot = owner.grant.key.slot;
	CHECK(write(told[1], &slot, sizeof(slot)) == sizeof(slot));
	CHECK(waitpid(child, NULL, WUNTRACED) == child);
	CHECK(owner_ends_region(&owner, 0, 0) == -EBUSY);
	CHECK(owner_ends_region(&owner, DMP_DESTROY_DRAIN, dmp_now_ns() + SOON_NS) == -ETIMEDOUT);
	CHECK(!kill(child, SIGKILL) && waitpid(child, NULL, 0) == child);
	CHECK(!owner_ends_region(&owner, DMP_DESTROY_DRAIN, dmp_now_ns() + 1000000000u));
	owner_end(&owner);
	end_close(&acceptor);
	close(told[0]);
	close(told[1]);
}

/*
 * A peer that writes as fast as it can, and an owner that destroys without DRAIN: each
 * destroy either says EBUSY, and the key works on, or nothing is written after it.
 */
struct peer {
	pthread_t thread;
	struct end *end;
	struct grant *grant;
	char *theirs;
	char *bytes;
};

static void *peer_run(void *argument)
{
	struct peer *peer = argument;
	struct dmp_shm *shm = peer->end->shm;
	uint32_t moves = 0;
	struct dmp_remote remote = { .slot = peer->grant->key.slot,
				     .generation = peer->grant->key.generation,
				     .access = WRITE, .length = LARGE_BYTES, .address = peer->theirs };
	struct dmp_move move = { .remote = &remote, .local = peer->bytes, .length = LARGE_BYTES,
				 .sweep = LARGE_BYTES, .write = true };

	/* Between its moves an executor looks for what came in. */
	while (!peer->end->fabric->type->move(&shm->fabric, &move)) {
		peer->end->fabric->type->ready(peer->end->fabric);
		/* A pause, or the owner would hardly ever find the region idle. */
		if (++moves % 64 == 0)
			sched_yield();
	}
	return NULL;
}

static void test_L7_a_busy_peer_and_a_destroy_that_does_not_wait(void)
{
	struct pair pair = pair_open();
	struct owner owner = owner_make(&pair.acceptor);
	static char written[LARGE_BYTES];
	uint32_t busy = 0;
	int turn;

	memset(written, 0x33, sizeof(written));
	for (turn = 0; turn < 300; turn++) {
		char *bytes;
		uint32_t buffer = buffer_make(owner.plane, LARGE_BYTES, &bytes);
		struct grant grant = region_make(owner.plane, buffer, 0, LARGE_BYTES, WRITE);
		struct peer peer = { .end = &pair.connector, .grant = &grant, .bytes = written };
		uint64_t offset, length;
		int fd, error;

		CHECK(!share(owner.plane, &grant, &fd, &offset, &length));
		peer.theirs = mmap(NULL, LARGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		CHECK(peer.theirs != MAP_FAILED);
		close(fd);
		CHECK(!pthread_create(&peer.thread, NULL, peer_run, &peer));
		while (!*(volatile char *)bytes)
			sched_yield();
		do {
			error = region_end(owner.plane, grant.create.region_id, 0, 0);
			busy += error == -EBUSY;
			if (busy % 256 == 0)
				sched_yield();
		} while (error == -EBUSY);
		CHECK(!error);
		memset(bytes, 0x44, LARGE_BYTES);
		pthread_join(peer.thread, NULL);
		for (uint32_t byte = 0; byte < LARGE_BYTES; byte++)
			CHECK(bytes[byte] == 0x44);
		munmap(peer.theirs, LARGE_BYTES);
		CHECK(!dmp_munmap(owner.plane, bytes));
		CHECK(!buffer_end(owner.plane, buffer, 0, 0));
	}
	printf("%d regions ended under a busy peer, %u times EBUSY before\n", turn, busy);
	owner_end(&owner);
	pair_close(&pair);
}

int main(void)
{
	test_the_board_shows_generations_and_only_we_write_it();
	test_L12_a_share_gives_the_granted_rights_and_no_more();
	test_what_cannot_be_shared_says_why();
	test_a_peer_that_keeps_a_dead_mapping_does_not_keep_the_buffer();
	test_L3_a_region_a_peer_touches_is_busy_and_unchanged();
	test_L7_drain_waits_for_a_slice_and_no_further_one_begins();
	test_L7_a_peer_left_in_a_slice_is_still_watched();
	test_a_region_nobody_was_given_is_not_looked_for();
	test_L4_a_peer_holds_a_region_no_longer_than_it_lives();
	test_L7_a_busy_peer_and_a_destroy_that_does_not_wait();
	return 0;
}
