// SPDX-License-Identifier: MIT
/*
 * sequences.c - what the sweep runs: every command, every kind of memory, every way to share
 *
 * Each sequence makes what it needs inside the injected part; only what belongs to others
 * (a foreign dma-buf) or is not its subject is prepared before.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/dma-buf.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "sweep.h"

#define LENGTH_BYTES	(256u << 10)
#define SLOTS		16u

static int open_plane(struct sweep *sweep)
{
	return dmp_open(&sweep->plane);
}

/* ---- steps that keep the ledger */

static int make_buffer(struct sweep *sweep, uint32_t kind, uint64_t length_bytes,
		       struct dmp_buffer_create *create)
{
	int status = device_buffer(sweep->plane, create, kind, length_bytes);

	if (!status)
		sweep->buffers[sweep->buffer_count++] = create->buffer_id;
	return status;
}

static int make_user_buffer(struct sweep *sweep, uint32_t flags, struct dmp_buffer_create *create)
{
	int status;

	memset(create, 0, sizeof(*create));
	create->size = sizeof(*create);
	create->flags = flags;
	create->kind = DMP_KIND_USER;
	create->node = -1;
	create->length_bytes = LENGTH_BYTES;
	create->user_addr = (uintptr_t)sweep->arena + 123;
	status = dmp_ioctl(sweep->plane, DMP_BUFFER_CREATE, create);
	if (!status)
		sweep->buffers[sweep->buffer_count++] = create->buffer_id;
	return status;
}

static int map(struct sweep *sweep, int fd, uint64_t length_bytes, uint64_t offset, void **address)
{
	void *mapping = mmap(NULL, length_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
			     (off_t)offset);

	if (mapping == MAP_FAILED)
		return -errno;
	sweep->mappings[sweep->mapping_count++] = (struct ledger_mapping){
		mapping, length_bytes, fd == device_fd(sweep->plane) };
	*address = mapping;
	return 0;
}

static int unmap_last(struct sweep *sweep)
{
	struct ledger_mapping *mapping = &sweep->mappings[sweep->mapping_count - 1];
	int status = munmap(mapping->address, mapping->length_bytes) ? -errno : 0;

	if (!status)
		sweep->mapping_count--;
	return status;
}

static int export(struct sweep *sweep, uint32_t id, uint32_t flags)
{
	int fd = device_export(sweep->plane, id, flags);

	if (fd >= 0)
		sweep->fds[sweep->fd_count++] = fd;
	return fd;
}

static int import(struct sweep *sweep, int fd, struct dmp_buffer_import *import)
{
	int status = device_import(sweep->plane, fd, import);

	if (!status)
		sweep->buffers[sweep->buffer_count++] = import->buffer_id;
	return status;
}

static int destroy_buffer_last(struct sweep *sweep, uint32_t flags)
{
	struct dmp_destroy request = { .size = sizeof(request), .flags = flags,
				       .id = sweep->buffers[sweep->buffer_count - 1] };
	int status = dmp_ioctl(sweep->plane, DMP_BUFFER_DESTROY, &request);

	if (!status)
		sweep->buffer_count--;
	return status;
}

static int make_channel(struct sweep *sweep, struct device_rings *rings,
			struct dmp_channel_create *create)
{
	int status;

	create->size = sizeof(*create);
	create->slots = SLOTS;
	status = dmp_ioctl(sweep->plane, DMP_CHANNEL_CREATE, create);
	if (status)
		return status;
	sweep->channels[sweep->channel_count++] = create->channel_id;
	status = map(sweep, device_fd(sweep->plane), create->map_bytes, create->map_offset,
		     &rings->mapping);
	if (status)
		return status;
	rings->channel = *create;
	rings->client = (struct dmp_client){
		.control = rings->mapping,
		.submissions = (void *)((uint8_t *)rings->mapping + create->submissions_offset),
		.completions = (void *)((uint8_t *)rings->mapping + create->completions_offset),
		.slots = SLOTS,
		.completion_slots = 2 * SLOTS,
		.channel_id = create->channel_id,
		.plane = sweep->plane,
		.fd = -1,
	};
	return 0;
}

static int destroy_channel_last(struct sweep *sweep, uint32_t flags)
{
	struct dmp_destroy request = { .size = sizeof(request), .flags = flags,
				       .id = sweep->channels[sweep->channel_count - 1] };
	int status = dmp_ioctl(sweep->plane, DMP_CHANNEL_DESTROY, &request);

	if (!status)
		sweep->channel_count--;
	return status;
}

/* ---- sequences */

static int run_open(struct sweep *sweep)
{
	TRY(sweep, open_plane(sweep));
	return 0;
}

static int run_look(struct sweep *sweep)
{
	struct dmp_query query = { .size = sizeof(query) };
	struct dmp_statistics statistics = { .size = sizeof(statistics) };
	uint32_t kind;

	TRY(sweep, dmp_ioctl(sweep->plane, DMP_QUERY, &query));
	TRY(sweep, dmp_ioctl(sweep->plane, DMP_STATISTICS, &statistics));
	for (kind = DMP_TOPOLOGY_NODE; kind <= DMP_TOPOLOGY_GPU; kind++) {
		struct dmp_topology row = { .size = sizeof(row), .kind = kind };
		int status = dmp_ioctl(sweep->plane, DMP_TOPOLOGY, &row);

		if (status != -ENOENT)
			TRY(sweep, status);
	}
	return 0;
}

/* Make, map, touch, look, sync, unmap, destroy: the life of a buffer. */
static int live(struct sweep *sweep, const struct dmp_buffer_create *create)
{
	struct dmp_buffer_query query = { .size = sizeof(query), .flags = DMP_BUFFER_RECHECK,
					  .buffer_id = create->buffer_id };
	struct dmp_buffer_sync sync = { .size = sizeof(sync), .buffer_id = create->buffer_id,
					.flags = DMP_SYNC_FOR_READ | DMP_SYNC_FOR_WRITE,
					.length_bytes = create->length_bytes };
	void *bytes;

	TRY(sweep, dmp_ioctl(sweep->plane, DMP_BUFFER_QUERY, &query));
	TRY(sweep, dmp_ioctl(sweep->plane, DMP_BUFFER_SYNC, &sync));
	if (create->map_bytes) {
		TRY(sweep, map(sweep, device_fd(sweep->plane), create->map_bytes,
			       create->map_offset, &bytes));
		TRY(sweep, unmap_last(sweep));
	}
	TRY(sweep, destroy_buffer_last(sweep, 0));
	return 0;
}

static int run_pages(struct sweep *sweep)
{
	struct dmp_buffer_create create;

	TRY(sweep, make_buffer(sweep, DMP_KIND_PAGES, LENGTH_BYTES + 5 * 4096, &create));
	return live(sweep, &create);
}

static int run_placed(struct sweep *sweep)
{
	static const uint32_t policies[] = { DMP_POLICY_PREFER, DMP_POLICY_BIND,
					     DMP_POLICY_INTERLEAVE };
	size_t i;

	for (i = 0; i < sizeof(policies) / sizeof(policies[0]); i++) {
		struct dmp_buffer_create create = {
			.size = sizeof(create), .flags = DMP_BUFFER_STRICT,
			.length_bytes = 16 * 4096, .policy = policies[i],
			.node = policies[i] == DMP_POLICY_PREFER ? 0 : -1,
			.node_mask = policies[i] != DMP_POLICY_PREFER };

		TRY(sweep, dmp_ioctl(sweep->plane, DMP_BUFFER_CREATE, &create));
		sweep->buffers[sweep->buffer_count++] = create.buffer_id;
	}
	while (sweep->buffer_count)
		TRY(sweep, destroy_buffer_last(sweep, 0));
	return 0;
}

static int run_huge(struct sweep *sweep)
{
	struct dmp_buffer_create create;

	TRY(sweep, make_buffer(sweep, DMP_KIND_HUGE, 2u << 20, &create));
	return live(sweep, &create);
}

static int run_coherent(struct sweep *sweep)
{
	struct dmp_buffer_create create;

	TRY(sweep, make_buffer(sweep, DMP_KIND_COHERENT, LENGTH_BYTES, &create));
	return live(sweep, &create);
}

static int run_user(struct sweep *sweep)
{
	struct dmp_buffer_create create;

	TRY(sweep, make_user_buffer(sweep, DMP_BUFFER_READ_ONLY, &create));
	TRY(sweep, destroy_buffer_last(sweep, 0));
	TRY(sweep, make_user_buffer(sweep, 0, &create));
	return live(sweep, &create);
}

static int run_export(struct sweep *sweep)
{
	struct dma_buf_sync sync = { .flags = DMA_BUF_SYNC_START | DMA_BUF_SYNC_RW };
	struct dmp_buffer_create create;
	struct dmp_buffer_query query = { .size = sizeof(query) };
	void *bytes;
	int fd;

	TRY(sweep, make_buffer(sweep, DMP_KIND_PAGES, LENGTH_BYTES, &create));
	TRY(sweep, export(sweep, create.buffer_id, DMP_EXPORT_READ_ONLY));
	fd = export(sweep, create.buffer_id, DMP_EXPORT_DMABUF);
	TRY(sweep, fd);
	TRY(sweep, map(sweep, fd, LENGTH_BYTES, 0, &bytes));
	TRY(sweep, ioctl(fd, DMA_BUF_IOCTL_SYNC, &sync) ? -errno : 0);
	sync.flags |= DMA_BUF_SYNC_END;
	TRY(sweep, ioctl(fd, DMA_BUF_IOCTL_SYNC, &sync) ? -errno : 0);
	query.buffer_id = create.buffer_id;
	TRY(sweep, dmp_ioctl(sweep->plane, DMP_BUFFER_QUERY, &query));
	TRY(sweep, unmap_last(sweep));
	while (sweep->fd_count)
		close(sweep->fds[--sweep->fd_count]);
	return 0;
}

static int import_and_map(struct sweep *sweep, int fd)
{
	struct dmp_buffer_query query = { .size = sizeof(query), .flags = DMP_BUFFER_RECHECK };
	struct dmp_buffer_import bought;
	void *bytes;

	TRY(sweep, import(sweep, fd, &bought));
	query.buffer_id = bought.buffer_id;
	TRY(sweep, dmp_ioctl(sweep->plane, DMP_BUFFER_QUERY, &query));
	TRY(sweep, map(sweep, device_fd(sweep->plane), bought.length_bytes, bought.map_offset,
		       &bytes));
	TRY(sweep, unmap_last(sweep));
	TRY(sweep, destroy_buffer_last(sweep, 0));
	return 0;
}

static int run_import_own(struct sweep *sweep)
{
	struct dmp_buffer_create create;
	int fd;

	TRY(sweep, make_buffer(sweep, DMP_KIND_PAGES, LENGTH_BYTES, &create));
	fd = export(sweep, create.buffer_id, 0);
	TRY(sweep, fd);
	return import_and_map(sweep, fd);
}

static int prepare_udmabuf(struct sweep *sweep)
{
	sweep->foreign = device_udmabuf(LENGTH_BYTES);
	return sweep->foreign < 0 ? sweep->foreign : open_plane(sweep);
}

static int prepare_heap(struct sweep *sweep)
{
	sweep->foreign = device_heap(LENGTH_BYTES);
	return sweep->foreign < 0 ? sweep->foreign : open_plane(sweep);
}

static int prepare_vgem(struct sweep *sweep)
{
	uint32_t handle;
	int vgem = device_vgem_open();

	if (vgem < 0)
		return vgem;
	sweep->foreign = device_vgem_export(vgem, LENGTH_BYTES, &handle);
	close(vgem);	/* the dma-buf holds its memory */
	return sweep->foreign < 0 ? sweep->foreign : open_plane(sweep);
}

static int run_import_foreign(struct sweep *sweep)
{
	return import_and_map(sweep, sweep->foreign);
}

/* A foreign driver attaches to ours and maps it; closing its fd lets go of both. */
static int prepare_foreign_importer(struct sweep *sweep)
{
	sweep->foreign = device_vgem_open();
	return sweep->foreign < 0 ? sweep->foreign : open_plane(sweep);
}

static int run_foreign_importer(struct sweep *sweep)
{
	struct dmp_buffer_create create;
	uint32_t handle;
	int fd;

	TRY(sweep, make_buffer(sweep, DMP_KIND_PAGES, LENGTH_BYTES, &create));
	fd = export(sweep, create.buffer_id, 0);
	TRY(sweep, fd);
	TRY(sweep, device_vgem_import(sweep->foreign, fd, &handle));
	TRY(sweep, device_vgem_close_handle(sweep->foreign, handle));
	return 0;
}

static int run_channel(struct sweep *sweep)
{
	struct dmp_channel_create create = { .flags = DMP_CHANNEL_EVENTFD | DMP_CHANNEL_BIND_CPU,
					     .workers = 2 };
	struct dmp_channel_query query = { .size = sizeof(query) };
	struct dmp_histogram histogram = { .size = sizeof(histogram), .scope = DMP_SCOPE_CHANNEL };
	struct dmp_statistics statistics = { .size = sizeof(statistics),
					     .scope = DMP_SCOPE_CHANNEL };
	struct device_rings rings;
	int signal = eventfd(0, EFD_CLOEXEC);

	if (signal < 0)
		TRY(sweep, -errno);
	sweep->fds[sweep->fd_count++] = signal;
	create.eventfd = signal;
	TRY(sweep, make_channel(sweep, &rings, &create));
	query.channel_id = histogram.id = statistics.id = create.channel_id;
	TRY(sweep, dmp_ioctl(sweep->plane, DMP_CHANNEL_QUERY, &query));
	TRY(sweep, dmp_ioctl(sweep->plane, DMP_HISTOGRAM, &histogram));
	TRY(sweep, dmp_ioctl(sweep->plane, DMP_STATISTICS, &statistics));
	TRY(sweep, destroy_channel_last(sweep, 0));
	TRY(sweep, unmap_last(sweep));
	return 0;
}

static void fill_rows(struct dmp_submission *rows, uint32_t source, uint32_t target)
{
	uint32_t i;

	memset(rows, 0, SLOTS * sizeof(*rows));
	for (i = 0; i < SLOTS; i++) {
		rows[i].operation = (uint16_t)(i % 4);	/* NOP, FILL, COPY, FENCE */
		rows[i].flags = i % 8 < 4 ? 0 : DMP_SUBMIT_LINK;
		rows[i].user_data = i;
		if (rows[i].operation == DMP_OP_COPY) {
			rows[i].source_id = source;
			rows[i].flags |= DMP_SUBMIT_CHECKSUM;
		}
		if (rows[i].operation == DMP_OP_COPY || rows[i].operation == DMP_OP_FILL) {
			rows[i].target_id = target;
			rows[i].length_bytes = 16384;
			rows[i].target_offset = 4096u * i;
		}
	}
}

/* A batch under injection: what was accepted completes, each with its own result. */
static int exchange(struct sweep *sweep, struct device_rings *rings, uint32_t source,
		    uint32_t target)
{
	struct dmp_submission rows[SLOTS];
	struct dmp_completion done[SLOTS];
	struct pollfd word = { .fd = device_fd(sweep->plane), .events = POLLIN };
	uint32_t pushed, i;
	int status;

	fill_rows(rows, source, target);
	status = dmp_client_exchange(&rings->client, rows, SLOTS, &pushed, done, SLOTS, SLOTS,
				     dmp_now_ns() + 20 * SECOND_NS);
	if (status < 0)
		return status;
	if (poll(&word, 1, 0) < 0)
		return -errno;
	/* EFAULT after the acceptance: the answer was lost, the completions are not. */
	while (status < (int)SLOTS && pushed == SLOTS) {
		int more = dmp_client_exchange(&rings->client, NULL, 0, &pushed, done + status,
					       SLOTS - (uint32_t)status, 1,
					       dmp_now_ns() + 20 * SECOND_NS);

		if (more < 0)
			return more;
		status += more;
		pushed = SLOTS;
	}
	for (i = 0; i < (uint32_t)status; i++)
		if (done[i].result)
			return done[i].result;
	return 0;
}

static int run_enter(struct sweep *sweep)
{
	struct dmp_channel_create create = { 0 };
	struct dmp_cancel cancel = { .size = sizeof(cancel), .flags = DMP_CANCEL_ALL };
	struct dmp_buffer_create source, target;
	struct device_rings rings;
	int status;

	TRY(sweep, make_buffer(sweep, DMP_KIND_PAGES, LENGTH_BYTES, &source));
	TRY(sweep, make_buffer(sweep, DMP_KIND_PAGES, LENGTH_BYTES, &target));
	TRY(sweep, make_channel(sweep, &rings, &create));
	TRY(sweep, exchange(sweep, &rings, source.buffer_id, target.buffer_id));
	cancel.channel_id = create.channel_id;
	status = dmp_ioctl(sweep->plane, DMP_CANCEL, &cancel);
	if (status != -ENOENT)
		TRY(sweep, status);
	return 0;
}

/* All of it is there; what is injected into is the taking down. */
static int prepare_destroy(struct sweep *sweep)
{
	struct dmp_channel_create channel = { 0 };
	struct dmp_buffer_create create;
	struct dmp_buffer_import bought;
	struct device_rings rings;
	void *bytes;
	int fd;

	TRY(sweep, open_plane(sweep));
	TRY(sweep, make_buffer(sweep, DMP_KIND_COHERENT, LENGTH_BYTES, &create));
	TRY(sweep, make_user_buffer(sweep, 0, &create));
	TRY(sweep, make_buffer(sweep, DMP_KIND_PAGES, LENGTH_BYTES, &create));
	TRY(sweep, map(sweep, device_fd(sweep->plane), create.map_bytes, create.map_offset,
		       &bytes));
	fd = export(sweep, create.buffer_id, 0);
	TRY(sweep, fd);
	TRY(sweep, import(sweep, fd, &bought));
	TRY(sweep, make_channel(sweep, &rings, &channel));
	return 0;
}

static int expect_done(struct sweep *sweep, const char *step, int status)
{
	if (status == -ENOMEM)
		FAIL("%s wants memory", step);
	return sweep_step(sweep, step, status);
}

static int run_destroy(struct sweep *sweep)
{
	int status = 0;

	while (!status && sweep->channel_count)
		status = expect_done(sweep, "destroy of a channel",
				     destroy_channel_last(sweep, DMP_DESTROY_DRAIN));
	while (!status && sweep->mapping_count)
		status = sweep_step(sweep, "munmap", unmap_last(sweep));
	if (!status)
		status = expect_done(sweep, "destroy of an import", destroy_buffer_last(sweep, 0));
	while (!status && sweep->fd_count)
		close(sweep->fds[--sweep->fd_count]);
	while (!status && sweep->buffer_count)
		status = expect_done(sweep, "destroy of a buffer",
				     destroy_buffer_last(sweep, DMP_DESTROY_DRAIN));
	return status;
}

/* Closing answers nobody: whatever is injected, all has to go. */
static int run_close(struct sweep *sweep)
{
	while (sweep->mapping_count)
		TRY(sweep, unmap_last(sweep));
	while (sweep->fd_count)
		close(sweep->fds[--sweep->fd_count]);
	dmp_close(sweep->plane);
	sweep->plane = NULL;
	sweep->buffer_count = sweep->channel_count = 0;
	return 0;
}

const struct sequence sequences[] = {
	{ "open", NULL, run_open },
	{ "look", open_plane, run_look },
	{ "pages", open_plane, run_pages },
	{ "placed", open_plane, run_placed },
	{ "huge", open_plane, run_huge },
	{ "coherent", open_plane, run_coherent },
	{ "user", open_plane, run_user },
	{ "export", open_plane, run_export },
	{ "import-own", open_plane, run_import_own },
	{ "import-udmabuf", prepare_udmabuf, run_import_foreign },
	{ "import-heap", prepare_heap, run_import_foreign },
	{ "import-vgem", prepare_vgem, run_import_foreign },
	{ "export-to-vgem", prepare_foreign_importer, run_foreign_importer },
	{ "channel", open_plane, run_channel },
	{ "enter", open_plane, run_enter },
	{ "destroy", prepare_destroy, run_destroy },
	{ "close", prepare_destroy, run_close },
};
const uint32_t sequence_count = sizeof(sequences) / sizeof(sequences[0]);
