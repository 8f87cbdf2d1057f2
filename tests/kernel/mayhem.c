// SPDX-License-Identifier: MIT
/* mayhem.c - what a thread of the attacker does; random.c starts and watches attackers */
#define _GNU_SOURCE
#include "mayhem.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/dma-buf.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#undef FAIL
#include "fuzz/fuzz.h"

#define PAGE_BYTES	4096u
#define SPACE_PAGES	4096u		/* of a thread */
#define PLANES		4u
#define REQUEST_BYTES	4096u
#define INTERRUPT_US	3000

struct thread {
	struct fuzz fuzz;		/* the generator's, and what it believes to exist */
	struct mayhem_board *board;
	uint8_t *space;
	uint32_t *rings;		/* where a channel was mapped last */
	uint32_t ring_words;
	int pipe[2];
};

static _Atomic int planes[PLANES];	/* of all threads; anybody closes and opens them */
static _Thread_local sigjmp_buf landing;
static _Thread_local volatile sig_atomic_t flying;

static uint32_t below(struct thread *thread, uint32_t end)
{
	return fuzz_below(&thread->fuzz, end);
}

static int some_plane(struct thread *thread)
{
	/* Mostly the first, so that threads meet. */
	return atomic_load(&planes[below(thread, 4) ? 0 : below(thread, PLANES)]);
}

static uint8_t *some_page(struct thread *thread, size_t *length_bytes)
{
	uint32_t page = below(thread, SPACE_PAGES), pages = 1 + below(thread, 64);

	if (pages > SPACE_PAGES - page)
		pages = SPACE_PAGES - page;
	*length_bytes = (size_t)pages * PAGE_BYTES;
	return thread->space + (size_t)page * PAGE_BYTES;
}

/* ---- touching what may not be there */

static void on_fault(int signal)
{
	(void)signal;
	if (!flying)
		_exit(99);	/* the attacker's own mistake: a new one is started */
	siglongjmp(landing, 1);
}

static void touch(struct thread *thread, volatile uint32_t *words, uint32_t count, uint32_t value)
{
	volatile uint32_t sum = 0, i;

	if (sigsetjmp(landing, 1)) {
		flying = 0;
		atomic_fetch_add(&thread->board->faults, 1);
		return;
	}
	flying = 1;
	for (i = 0; i < count; i++) {
		sum += words[i];
		if (value)
			words[i] = value + i;
	}
	flying = 0;
}

static void touch_something(struct thread *thread)
{
	size_t length;
	uint8_t *at = some_page(thread, &length);

	touch(thread, (uint32_t *)(void *)(at + 4 * below(thread, 1000)), 1 + below(thread, 8),
	      below(thread, 2) ? (uint32_t)fuzz_odd_value(&thread->fuzz) : 0);
}

/* Control words most of all, then entries, then anything. */
static void write_rings(struct thread *thread)
{
	uint32_t i, index;

	if (!thread->rings)
		return;
	for (i = 0; i < 16; i++) {
		index = below(thread, 2) ? 32 * below(thread, 3) + below(thread, 3) :
					   below(thread, thread->ring_words);
		touch(thread, thread->rings + index, 1,
		      below(thread, 2) ? 1 + below(thread, 64) :
					 (uint32_t)fuzz_odd_value(&thread->fuzz) | 1);
	}
}

/* ---- commands */

static void keep(struct thread *thread, unsigned int command, const void *answer)
{
	struct fuzz *fuzz = &thread->fuzz;
	const struct dmp_buffer_create *create = answer;
	const struct dmp_buffer_import *import = answer;
	const struct dmp_channel_create *channel = answer;
	uint32_t place;

	if (command == DMP_BUFFER_CREATE || command == DMP_BUFFER_IMPORT) {
		/* Forgotten ones stay alive: the plane's limits are met as well. */
		place = fuzz->buffer_count < 16 ? fuzz->buffer_count++ : below(thread, 16);
		fuzz->buffers[place] = command == DMP_BUFFER_CREATE ?
			(struct fuzz_buffer){ create->buffer_id, create->map_offset,
					      create->map_bytes } :
			(struct fuzz_buffer){ import->buffer_id, import->map_offset,
					      import->length_bytes };
	} else if (command == DMP_CHANNEL_CREATE) {
		place = fuzz->channel_count < 4 ? fuzz->channel_count++ : below(thread, 4);
		fuzz->channels[place] = (struct fuzz_channel){
			channel->channel_id, channel->map_offset, channel->map_bytes };
	} else if (command == DMP_BUFFER_EXPORT) {
		place = fuzz->export_count < 8 ? fuzz->export_count++ : below(thread, 8);
		if (fuzz->exports[place] > 0)
			close(fuzz->exports[place]);
		fuzz->exports[place] = ((const struct dmp_buffer_export *)answer)->fd;
	}
}

/* Memory of kind USER may well be somebody's mapping of a plane. */
static void bend(struct thread *thread, unsigned int command, uint8_t *request)
{
	struct dmp_buffer_create *create = (void *)request;
	struct dmp_channel_create *channel = (void *)request;
	size_t length;

	if (command == DMP_BUFFER_CREATE && create->kind == DMP_KIND_USER && !below(thread, 3))
		create->user_addr = (uintptr_t)some_page(thread, &length) + below(thread, 2) * 77;
	if (command == DMP_BUFFER_CREATE && create->kind == DMP_KIND_USER && below(thread, 2))
		create->flags &= DMP_BUFFER_READ_ONLY;
	if (command == DMP_BUFFER_CREATE && create->kind == DMP_KIND_PAGES && !below(thread, 4)) {
		create->kind = DMP_KIND_COHERENT;
		create->policy = DMP_POLICY_ANY;
		create->node = -1;
		create->node_mask = 0;
	}
	if (command == DMP_CHANNEL_CREATE && channel->eventfd > 0)
		channel->eventfd = thread->fuzz.eventfd;
}

static void command(struct thread *thread)
{
	uint8_t request[REQUEST_BYTES] __attribute__((aligned(8)));
	uint32_t length_bytes;
	unsigned int number = fuzz_make_request(&thread->fuzz, request, sizeof(request),
						&length_bytes);
	uint8_t *at = thread->fuzz.guard - ((length_bytes + 7) & ~7u);
	size_t ignored;
	int status;

	bend(thread, number, request);
	memcpy(at, request, length_bytes);
	if (!below(thread, 64))
		at = some_page(thread, &ignored);	/* mapped from a plane, or not at all */
	status = ioctl(some_plane(thread), number, at) ? -errno : 0;
	atomic_fetch_add(status ? &thread->board->refused : &thread->board->served, 1);
	if (!status && at + length_bytes <= thread->fuzz.guard && at > thread->fuzz.guard - 8192)
		keep(thread, number, at);
	if (!device_errno_is_known(status)) {
		atomic_store(&thread->board->odd_command, number);
		atomic_store(&thread->board->odd_status, status);
	}
}

static bool ask(struct thread *thread, unsigned int number, void *request)
{
	if (ioctl(some_plane(thread), number, request))
		return false;
	keep(thread, number, request);
	atomic_fetch_add(&thread->board->served, 1);
	return true;
}

/* Something to attack: without it most commands would end at the door. */
static void provide(struct thread *thread)
{
	struct dmp_buffer_create buffer = {
		.size = sizeof(buffer), .node = -1,
		.length_bytes = 4096u * (1 + below(thread, 64)),
		.kind = below(thread, 4) ? DMP_KIND_PAGES : DMP_KIND_COHERENT };
	struct dmp_channel_create channel = {
		.size = sizeof(channel), .slots = 1u << below(thread, 7),
		.workers = 1 + below(thread, 2) };
	struct dmp_buffer_export share = { .size = sizeof(share) };

	if (thread->fuzz.buffer_count < 8 || !below(thread, 8))
		ask(thread, DMP_BUFFER_CREATE, &buffer);
	if (thread->fuzz.channel_count < 3 || !below(thread, 32))
		ask(thread, DMP_CHANNEL_CREATE, &channel);
	share.buffer_id = fuzz_buffer_id(&thread->fuzz);
	if (thread->fuzz.export_count < 3)
		ask(thread, DMP_BUFFER_EXPORT, &share);
}

/* What would be served if nobody else were at it: a row of the ring, and ENTER. */
static void submit(struct thread *thread)
{
	struct dmp_enter enter = { .size = sizeof(enter), .submit_count = 1 + below(thread, 8),
				   .wait_count = below(thread, 3),
				   .channel_id = fuzz_channel_id(&thread->fuzz),
				   .deadline_ns = fuzz_near_deadline(&thread->fuzz) };
	struct dmp_submission row = { .operation = (uint16_t)below(thread, 4),
				      .flags = (uint16_t)(below(thread, 4) ? 0 : below(thread, 8)) };
	uint32_t slot = below(thread, 16), i;
	uint32_t words[sizeof(row) / 4];

	if (row.operation == DMP_OP_COPY)
		row.source_id = fuzz_buffer_id(&thread->fuzz);
	if (row.operation == DMP_OP_COPY || row.operation == DMP_OP_FILL) {
		row.target_id = fuzz_buffer_id(&thread->fuzz);
		row.length_bytes = 4 * (1 + below(thread, 32768));
	}
	memcpy(words, &row, sizeof(words));
	for (i = 0; i < sizeof(words) / 4; i++)
		if (thread->rings && 1024 + (slot + 1) * 16 < thread->ring_words)
			touch(thread, thread->rings + 1024 + slot * 16 + i, 1, words[i]);
	if (thread->rings)
		touch(thread, thread->rings, 1, below(thread, 64) + 1);
	ioctl(some_plane(thread), DMP_ENTER, &enter);
}

/* ---- mappings */

static void map_something(struct thread *thread)
{
	static const int shares[] = { MAP_SHARED, MAP_SHARED, MAP_SHARED, MAP_PRIVATE,
				      MAP_SHARED | MAP_POPULATE, MAP_SHARED | MAP_LOCKED };
	struct fuzz *fuzz = &thread->fuzz;
	uint64_t offset = fuzz_odd_value(fuzz) & ~4095ull;
	size_t length, room = SPACE_PAGES * PAGE_BYTES;
	uint8_t *at = some_page(thread, &length);
	int fd = some_plane(thread), protection = below(thread, 4) ? 3 : (int)below(thread, 16);
	bool rings = false;
	void *mapping;

	if (fuzz->channel_count && !below(thread, 3)) {
		struct fuzz_channel *channel = &fuzz->channels[below(thread, fuzz->channel_count)];

		offset = channel->map_offset;
		length = channel->map_bytes;
		rings = true;
	} else if (fuzz->export_count && !below(thread, 4)) {
		fd = fuzz->exports[below(thread, fuzz->export_count)];
		offset = (uint64_t)below(thread, 4) * PAGE_BYTES;
	} else if (fuzz->buffer_count) {
		struct fuzz_buffer *buffer = &fuzz->buffers[below(thread, fuzz->buffer_count)];

		offset = buffer->map_offset;
		length = below(thread, 4) ? (size_t)buffer->length_bytes : length;
	}
	if (!below(thread, 16))
		length = (size_t)fuzz_odd_value(fuzz);
	if (length > room - (size_t)(at - thread->space))
		at = thread->space;
	if (length > room) {	/* absurd: it fails, or goes at once */
		mapping = mmap(NULL, length, protection, MAP_SHARED, fd, (off_t)offset);
		if (mapping != MAP_FAILED)
			munmap(mapping, length);
		return;
	}
	mapping = mmap(at, length, protection, shares[below(thread, 6)] | MAP_FIXED, fd,
		       (off_t)offset);
	if (mapping != MAP_FAILED && rings) {
		thread->rings = mapping;
		thread->ring_words = (uint32_t)(length / 4);
	}
}

static void change_mappings(struct thread *thread)
{
	static const int advices[] = { MADV_NORMAL, MADV_DONTNEED, MADV_REMOVE, MADV_DONTFORK,
				       MADV_DOFORK, MADV_FREE, MADV_MERGEABLE, MADV_HUGEPAGE,
				       MADV_DONTDUMP, MADV_WIPEONFORK, MADV_COLD, MADV_PAGEOUT,
				       MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_WILLNEED };
	size_t length, other_length;
	uint8_t *at = some_page(thread, &length), *other = some_page(thread, &other_length);
	unsigned char resident[64];

	switch (below(thread, 9)) {
	case 0:
		munmap(at, length);
		break;
	case 1:
		mprotect(at, length, (int)below(thread, 8));
		break;
	case 2:
		if (at + length <= other || other + other_length <= at)
			mremap(at, length, other_length, MREMAP_MAYMOVE | MREMAP_FIXED, other);
		break;
	case 3:
		if (at + length <= other || other + length <= at)
			mremap(at, length, length, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP,
			       other);
		break;
	case 4:
		mremap(at, length, length / 2 + PAGE_BYTES, 0);
		break;
	case 5:
		madvise(at, length, advices[below(thread, sizeof(advices) / sizeof(advices[0]))]);
		break;
	case 6:
		mlock(at, length);
		munlock(at, length);
		break;
	case 7:
		msync(at, length, below(thread, 2) ? MS_SYNC : MS_ASYNC | MS_INVALIDATE);
		mincore(at, length, resident);
		break;
	default:
		mmap(at, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
		     -1, 0);
		break;
	}
}

/* The kernel takes hold of mapped pages: they must outlive the mapping and the buffer. */
static void splice_something(struct thread *thread)
{
	uint8_t bytes[PAGE_BYTES];
	struct iovec remote = { 0 }, local = { .iov_base = bytes, .iov_len = sizeof(bytes) };

	remote.iov_base = some_page(thread, &remote.iov_len);
	if (below(thread, 2)) {
		vmsplice(thread->pipe[1], &remote, 1, SPLICE_F_NONBLOCK);
		if (!below(thread, 3))
			while (read(thread->pipe[0], bytes, sizeof(bytes)) > 0)
				;
	} else {
		remote.iov_len = sizeof(bytes);
		if (below(thread, 2))
			process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
		else
			process_vm_writev(getpid(), &local, 1, &remote, 1, 0);
	}
}

/* ---- files */

static void reopen(struct thread *thread)
{
	uint32_t place = below(thread, PLANES);
	int fd = below(thread, 2) ? open(DEVICE_PATH, O_RDWR | O_CLOEXEC) :
				    dup(some_plane(thread));

	if (fd < 0)
		return;
	if (place == 0 && below(thread, 8))
		place = 1;	/* the first lives longer */
	close(atomic_exchange(&planes[place], fd));
}

static void use_file(struct thread *thread)
{
	struct pollfd word = { .fd = some_plane(thread), .events = (short)below(thread, 0x80) };
	struct stat status;
	char byte = 0;

	switch (below(thread, 6)) {
	case 0:
		poll(&word, 1, (int)below(thread, 2));
		break;
	case 1:
		(void)!pread(word.fd, &byte, 1, 0);
		(void)!pwrite(word.fd, &byte, 1, 0);
		break;
	case 2:
		lseek(word.fd, (off_t)fuzz_odd_value(&thread->fuzz), (int)below(thread, 5));
		(void)!ftruncate(word.fd, 4096);
		break;
	case 3:
		fcntl(word.fd, F_SETFL, below(thread, 2) ? O_NONBLOCK : O_ASYNC);
		fcntl(word.fd, F_SETOWN, getpid());
		break;
	case 4:
		fstat(word.fd, &status);
		fsync(word.fd);
		posix_fallocate(word.fd, 0, 4096);
		break;
	default:
		(void)!read(thread->fuzz.eventfd, &byte, 1);
		break;
	}
}

static void use_export(struct thread *thread)
{
	struct dma_buf_sync sync = { .flags = fuzz_random(&thread->fuzz) & 7 };
	struct pollfd word = { .events = POLLIN | POLLOUT };
	struct dma_buf_export_sync_file file = { .flags = DMA_BUF_SYNC_RW };
	uint32_t place;
	int fd;

	if (!thread->fuzz.export_count)
		return;
	place = below(thread, thread->fuzz.export_count);
	word.fd = fd = thread->fuzz.exports[place];
	switch (below(thread, 6)) {
	case 0:
		ioctl(fd, DMA_BUF_IOCTL_SYNC, &sync);
		break;
	case 1:
		poll(&word, 1, 0);
		break;
	case 2:
		lseek(fd, 0, SEEK_END);
		ioctl(fd, DMA_BUF_SET_NAME_B, "mayhem");
		break;
	case 3:
		if (!ioctl(fd, DMA_BUF_IOCTL_EXPORT_SYNC_FILE, &file))
			close(file.fd);
		break;
	case 4:
		ioctl(fd, (unsigned long)fuzz_random(&thread->fuzz) & 0xffff, &sync);
		break;
	default:
		close(fd);
		thread->fuzz.exports[place] =
			thread->fuzz.exports[--thread->fuzz.export_count];
		break;
	}
}

/* A child with the parent's fds and mappings: it uses some, and goes by one of two ways. */
static void fork_something(struct thread *thread)
{
	pid_t pid = fork();
	uint32_t i;

	atomic_fetch_add(&thread->board->forks, 1);
	if (pid == 0) {
		for (i = 0; i < 20; i++) {
			touch_something(thread);
			command(thread);
			change_mappings(thread);
		}
		if (below(thread, 2))
			kill(getpid(), SIGKILL);
		_exit(0);
	}
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
}

/* ---- the attacker */

static void *thread_main(void *argument)
{
	struct thread *thread = argument;

	for (;;) {
		uint32_t chance = below(thread, 64);

		atomic_fetch_add(&thread->board->calls, 1);
		if (chance < 4)
			provide(thread);
		else if (chance < 12)
			submit(thread);
		else if (chance < 28)
			command(thread);
		else if (chance < 36)
			map_something(thread);
		else if (chance < 42)
			change_mappings(thread);
		else if (chance < 48)
			touch_something(thread);
		else if (chance < 54)
			write_rings(thread);
		else if (chance < 57)
			splice_something(thread);
		else if (chance < 59)
			use_file(thread);
		else if (chance < 61)
			use_export(thread);
		else if (chance < 62)
			reopen(thread);
		else if (!below(thread, 16))
			fork_something(thread);
	}
	return NULL;
}

static void on_alarm(int signal)
{
	(void)signal;
}

static uint8_t *memory(size_t length_bytes, int protection)
{
	uint8_t *bytes = mmap(NULL, length_bytes, protection,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (bytes == MAP_FAILED)
		_exit(98);
	return bytes;
}

static struct thread *make_thread(struct mayhem_board *board, uint64_t seed)
{
	struct thread *thread = (void *)memory(sizeof(*thread), PROT_READ | PROT_WRITE);
	uint8_t *guarded = memory(3 * REQUEST_BYTES, PROT_NONE);

	if (mprotect(guarded, 2 * REQUEST_BYTES, PROT_READ | PROT_WRITE) ||
	    pipe2(thread->pipe, O_CLOEXEC | O_NONBLOCK))
		_exit(98);
	thread->fuzz.random = seed;
	thread->fuzz.arena = memory(FUZZ_ARENA_BYTES, PROT_READ | PROT_WRITE);
	thread->fuzz.guard = guarded + 2 * REQUEST_BYTES;
	thread->fuzz.eventfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	thread->space = memory(SPACE_PAGES * PAGE_BYTES, PROT_NONE);
	thread->board = board;
	return thread;
}

void mayhem(struct mayhem_board *board, uint64_t seed, uint32_t threads, uint32_t milliseconds)
{
	struct sigaction fault = { .sa_handler = on_fault, .sa_flags = SA_NODEFER };
	struct sigaction alarm = { .sa_handler = on_alarm };
	struct itimerval timer = { .it_interval = { .tv_usec = INTERRUPT_US },
				   .it_value = { .tv_usec = INTERRUPT_US } };
	pthread_t id;
	uint32_t i;

	sigaction(SIGSEGV, &fault, NULL);
	sigaction(SIGBUS, &fault, NULL);
	sigaction(SIGALRM, &alarm, NULL);
	signal(SIGIO, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	for (i = 0; i < PLANES; i++) {
		int fd = open(DEVICE_PATH, O_RDWR | O_CLOEXEC);

		if (fd < 0)
			_exit(97);
		atomic_store(&planes[i], fd);
	}
	for (i = 0; i < threads; i++)
		if (pthread_create(&id, NULL, thread_main, make_thread(board, seed + i)))
			_exit(96);
	setitimer(ITIMER_REAL, &timer, NULL);
	for (uint64_t end = dmp_now_ns() + milliseconds * 1000000ull; dmp_now_ns() < end;)
		sleep_us(5000);
	_exit(0);
}
