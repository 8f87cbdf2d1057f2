// SPDX-License-Identifier: GPL-2.0
/*
 * debugfs.c - every plane, object and holder, for an administrator: debugfs/dmaplane/
 *
 * Each file is lines of name=value, for eyes and scripts; no contract. Root only. Nothing
 * here is a holder: an object can be destroyed between two lines, never within one.
 *
 * Locks: dmp_planes_lock while one buffer of text is filled, inside it one plane's lock
 * for reading, inside that a channel's. None while text is copied to the reader.
 */
#include "debugfs.h"

#include <linux/debugfs.h>
#include <linux/module.h>
#include <linux/seq_file.h>

#include "buffer.h"
#include "endpoint_kernel.h"
#include "histogram.h"
#include "memory.h"
#include "plane.h"

static struct dentry *directory;

static const char *name_of(const char *const *names, u32 count, u32 value)
{
	return value < count ? names[value] : "unknown";
}

static const char *state_name(u32 state)
{
	static const char *const names[] = {
		[DMP_STATE_NONE] = "none", [DMP_STATE_LIVE] = "live",
		[DMP_STATE_DRAINING] = "draining", [DMP_STATE_REVOKED] = "revoked",
		[DMP_STATE_DEAD] = "dead",
	};

	return name_of(names, ARRAY_SIZE(names), state);
}

static const char *kind_name(u32 kind)
{
	static const char *const names[] = {
		[DMP_KIND_PAGES] = "pages", [DMP_KIND_HUGE] = "huge",
		[DMP_KIND_COHERENT] = "coherent", [DMP_KIND_USER] = "user",
		[DMP_KIND_IMPORTED] = "imported", [DMP_KIND_PEER] = "peer",
	};

	return name_of(names, ARRAY_SIZE(names), kind);
}

static const char *policy_name(u32 policy)
{
	static const char *const names[] = {
		[DMP_POLICY_ANY] = "any", [DMP_POLICY_PREFER] = "prefer",
		[DMP_POLICY_BIND] = "bind", [DMP_POLICY_INTERLEAVE] = "interleave",
	};

	return name_of(names, ARRAY_SIZE(names), policy);
}

static const char *placement_name(u32 how)
{
	static const char *const names[] = {
		[DMP_PLACEMENT_UNKNOWN] = "unknown", [DMP_PLACEMENT_COUNTED] = "counted",
		[DMP_PLACEMENT_SINGLE] = "single",
	};

	return name_of(names, ARRAY_SIZE(names), how);
}

/* ---- planes: one line each; `dmaplane top` reads them too */

static void *planes_start(struct seq_file *file, loff_t *position)
{
	mutex_lock(&dmp_planes_lock);
	return seq_list_start(&dmp_planes, *position);
}

static void *planes_next(struct seq_file *file, void *entry, loff_t *position)
{
	return seq_list_next(entry, &dmp_planes, position);
}

static void planes_stop(struct seq_file *file, void *entry)
{
	mutex_unlock(&dmp_planes_lock);
}

static int planes_show(struct seq_file *file, void *entry)
{
	struct dmp_plane *plane = list_entry(entry, struct dmp_plane, planes);
	struct dmp_statistics sum = { 0 };

	down_read(&plane->lock);
	dmp_plane_count_locked(plane, &sum);
	up_read(&plane->lock);
	seq_printf(file, "plane=%016llx owner=%d buffers=%llu bytes=%llu channels=%llu mappings=%llu",
		   plane->incarnation, plane->owner, sum.buffers, sum.buffer_bytes, sum.channels,
		   sum.mappings);
	seq_printf(file, " submissions=%llu completions=%llu errors=%llu cancelled=%llu timeouts=%llu",
		   sum.submissions, sum.completions, sum.errors, sum.cancelled, sum.timeouts);
	seq_printf(file, " moved=%llu checksummed=%llu batches=%llu wakeups=%llu events=%llu\n",
		   sum.bytes, sum.checksum_bytes, sum.batches, sum.wakeups, sum.events);
	return 0;
}

static const struct seq_operations planes_sops = {
	.start = planes_start,
	.next = planes_next,
	.stop = planes_stop,
	.show = planes_show,
};
DEFINE_SEQ_ATTRIBUTE(planes);

/* ---- all objects of all planes, for `objects` and `histograms` */

struct walk {
	struct dmp_plane *plane;		/* locked for reading, or NULL */
	struct dmp_histogram_counts latency;	/* a copy, so that no channel waits for us */
};

/*
 * The position is the plane's place in the list and, below, the id. A plane that closes
 * between two buffers of text moves those behind it: one of them may then be missed.
 */
static void *walk_from(struct walk *walk, loff_t *position)
{
	unsigned long id = *position & U32_MAX;
	u64 skip = *position >> 32, place = 0;
	struct dmp_plane *plane;
	void *object;

	lockdep_assert_held(&dmp_planes_lock);
	list_for_each_entry(plane, &dmp_planes, planes) {
		if (place++ < skip)
			continue;
		down_read(&plane->lock);
		object = xa_find(&plane->objects, &id, U32_MAX, XA_PRESENT);
		if (object) {
			walk->plane = plane;
			*position = (place - 1) << 32 | id;
			return object;
		}
		up_read(&plane->lock);
		id = 0;
	}
	*position = place << 32;
	return NULL;
}

static void walk_unlock(struct walk *walk)
{
	if (walk->plane)
		up_read(&walk->plane->lock);
	walk->plane = NULL;
}

static void *walk_start(struct seq_file *file, loff_t *position)
{
	mutex_lock(&dmp_planes_lock);
	return walk_from(file->private, position);
}

static void *walk_next(struct seq_file *file, void *object, loff_t *position)
{
	walk_unlock(file->private);
	++*position;
	return walk_from(file->private, position);
}

static void walk_stop(struct seq_file *file, void *object)
{
	walk_unlock(file->private);
	mutex_unlock(&dmp_planes_lock);
}

static void show_buffer(struct seq_file *file, struct dmp_buffer *buffer)
{
	const struct dmp_placement *placement = &buffer->placement;
	struct dmp_memory *memory = buffer->memory;
	char separator = '=';
	int node;

	seq_printf(file, " kind=%s memory=%llu bytes=%llu charged=%llu policy=%s",
		   kind_name(memory->kind), memory->serial, memory->length,
		   memory->charged_bytes, policy_name(buffer->policy.policy));
	seq_printf(file, " placement=%s page_bytes=%u pages=%llu misplaced=%llu nodes",
		   placement_name(placement->how), memory->page_bytes, placement->pages,
		   placement->pages_misplaced);
	for (node = 0; node < DMP_NODES_MAX; node++) {
		if (placement->node_pages[node] == 0)
			continue;
		seq_printf(file, "%c%d:%llu", separator, node, placement->node_pages[node]);
		separator = ',';
	}
	if (separator == '=')
		seq_puts(file, "=none");
	seq_printf(file, " mappings=%d exports=%d operations=%d regions=%u\n",
		   atomic_read(&buffer->mappings), atomic_read(&memory->exports),
		   atomic_read(&buffer->operations), buffer->regions);
}

static void show_channel(struct seq_file *file, struct dmp_kernel_channel *channel)
{
	u32 in_flight, queued, running, unread = 0;

	mutex_lock(&channel->lock);
	in_flight = channel->machine.in_flight;
	queued = channel->machine.queued;
	running = channel->machine.running;
	if (dmp_channel_unread(&channel->machine, &unread) != 0)
		unread = U32_MAX;	/* its user has broken the ring */
	mutex_unlock(&channel->lock);
	seq_printf(file, " slots=%u completion_slots=%u in_flight=%u queued=%u running=%u unread=%d",
		   channel->machine.slots, channel->machine.completion_slots, in_flight, queued,
		   running, (int)unread);
	seq_printf(file, " mappings=%d users=%d workers=%u cpu=%d node=%d\n",
		   atomic_read(&channel->mappings->alive), atomic_read(&channel->users),
		   channel->workers, channel->cpu, channel->node);
}

static void show_region(struct seq_file *file, struct dmp_region *region)
{
	seq_printf(file, " buffer=%u bytes=%llu access=%x generation=%u operations=%d registered=%d\n",
		   region->buffer->object.id, region->key.length, region->key.access,
		   region->key.generation, atomic_read(&region->operations),
		   READ_ONCE(region->registered));
}

static void show_remote(struct seq_file *file, struct dmp_remote *remote)
{
	seq_printf(file, " endpoint=%u bytes=%llu access=%x generation=%u parts=%u operations=%d\n",
		   remote->endpoint->object.id, remote->key.length, remote->key.access,
		   remote->key.generation, remote->granted.count,
		   atomic_read(&remote->operations));
}

/* What is the channel's is looked at under its lock, while there is a channel. */
static void show_endpoint(struct seq_file *file, struct dmp_kernel_endpoint *endpoint)
{
	struct dmp_pair_counters counters = { };
	struct dmp_endpoint_status status;

	seq_printf(file, " epoch=%u peer=%.*s operations=%d receives=%d regions=%u users=%d",
		   endpoint->epoch, DMP_ADDRESS_BYTES, endpoint->peer_address,
		   atomic_read(&endpoint->operations), atomic_read(&endpoint->receives),
		   endpoint->remotes, atomic_read(&endpoint->users));
	if (endpoint->orphaned) {
		seq_puts(file, " channel=none\n");
		return;
	}
	mutex_lock(&endpoint->channel->lock);
	dmp_endpoint_query(endpoint->machine, &status);
	if (endpoint->pair)
		dmp_pair_count(endpoint->pair, &counters);
	mutex_unlock(&endpoint->channel->lock);
	seq_printf(file, " channel=%u machine=%u reason=%d staged=%u held=%u stalls=%llu stall_ns=%llu",
		   endpoint->channel->object.id, status.state, status.reason, status.staged,
		   status.held, status.stalls, status.stall_ns);
	seq_printf(file, " slots_sent=%llu slots_received=%llu repayments=%llu wakes=%llu",
		   counters.slots_sent, counters.slots_received, counters.repayments,
		   counters.wakes);
	seq_printf(file, " moves=%llu slot_stalls=%llu\n", counters.moves, counters.stalls);
}

static const char *type_name(u32 type)
{
	static const char *const names[] = {
		[DMP_OBJECT_BUFFER] = "buffer", [DMP_OBJECT_CHANNEL] = "channel",
		[DMP_OBJECT_REGION] = "region", [DMP_OBJECT_REMOTE] = "remote",
		[DMP_OBJECT_LISTENER] = "listener", [DMP_OBJECT_ENDPOINT] = "endpoint",
	};

	return name_of(names, ARRAY_SIZE(names), type);
}

static int objects_show(struct seq_file *file, void *entry)
{
	struct walk *walk = file->private;
	struct dmp_object *object = entry;

	seq_printf(file, "plane=%016llx id=%u type=%s state=%s", walk->plane->incarnation,
		   object->id, type_name(object->type), state_name(object->state));
	switch (object->type) {
	case DMP_OBJECT_BUFFER:
		show_buffer(file, container_of(object, struct dmp_buffer, object));
		break;
	case DMP_OBJECT_CHANNEL:
		show_channel(file, container_of(object, struct dmp_kernel_channel, object));
		break;
	case DMP_OBJECT_REGION:
		show_region(file, container_of(object, struct dmp_region, object));
		break;
	case DMP_OBJECT_REMOTE:
		show_remote(file, container_of(object, struct dmp_remote, object));
		break;
	case DMP_OBJECT_ENDPOINT:
		show_endpoint(file, dmp_endpoint_of(object));
		break;
	default:
		seq_puts(file, "\n");
		break;
	}
	return 0;
}

static const struct seq_operations objects_sops = {
	.start = walk_start,
	.next = walk_next,
	.stop = walk_stop,
	.show = objects_show,
};

static int objects_open(struct inode *inode, struct file *file)
{
	return seq_open_private(file, &objects_sops, sizeof(struct walk));
}

static const struct file_operations objects_fops = {
	.owner = THIS_MODULE,
	.open = objects_open,
	.read = seq_read,
	.llseek = seq_lseek,
	.release = seq_release_private,
};

/* ---- histograms: of each channel a line, then its buckets that are not empty */

static int histograms_show(struct seq_file *file, void *entry)
{
	struct walk *walk = file->private;
	struct dmp_histogram_counts *latency = &walk->latency;
	struct dmp_kernel_channel *channel;
	struct dmp_object *object = entry;
	u32 bucket;

	if (object->type != DMP_OBJECT_CHANNEL)
		return SEQ_SKIP;
	channel = container_of(object, struct dmp_kernel_channel, object);
	mutex_lock(&channel->lock);
	*latency = *channel->latency;
	mutex_unlock(&channel->lock);
	seq_printf(file, "plane=%016llx id=%u samples=%llu sum_ns=%llu p50_ns=%llu p99_ns=%llu max_ns=%llu\n",
		   walk->plane->incarnation, object->id, latency->samples, latency->sum,
		   dmp_histogram_quantile(latency, 500000),
		   dmp_histogram_quantile(latency, 990000), latency->maximum);
	for (bucket = 0; bucket < DMP_HISTOGRAM_BUCKETS; bucket++)
		if (latency->counts[bucket] != 0)
			seq_printf(file, "\tfrom_ns=%llu below_ns=%llu count=%llu\n",
				   dmp_histogram_lower(bucket), dmp_histogram_lower(bucket + 1),
				   latency->counts[bucket]);
	return 0;
}

static const struct seq_operations histograms_sops = {
	.start = walk_start,
	.next = walk_next,
	.stop = walk_stop,
	.show = histograms_show,
};

static int histograms_open(struct inode *inode, struct file *file)
{
	return seq_open_private(file, &histograms_sops, sizeof(struct walk));
}

static const struct file_operations histograms_fops = {
	.owner = THIS_MODULE,
	.open = histograms_open,
	.read = seq_read,
	.llseek = seq_lseek,
	.release = seq_release_private,
};

/* ---- memory: what all planes, and exports that outlive them, have of what is limited */

static int memory_show(struct seq_file *file, void *entry)
{
	u64 buffers = 0, channels = 0;
	struct dmp_plane *plane;

	mutex_lock(&dmp_planes_lock);
	list_for_each_entry(plane, &dmp_planes, planes) {
		down_read(&plane->lock);
		buffers += plane->buffers;
		channels += plane->channels;
		up_read(&plane->lock);
	}
	mutex_unlock(&dmp_planes_lock);
	seq_printf(file, "memories=%u charged_bytes=%llu bytes_max=%lu", dmp_memory_count(),
		   dmp_memory_charged_bytes(), READ_ONCE(dmp_bytes_max));
	seq_printf(file, " buffers=%llu buffers_max=%u channels=%llu channels_max=%u\n", buffers,
		   READ_ONCE(dmp_buffers_total_max), channels, READ_ONCE(dmp_channels_total_max));
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(memory);

void dmp_debugfs_init(void)
{
	directory = debugfs_create_dir("dmaplane", NULL);
	debugfs_create_file("planes", 0400, directory, NULL, &planes_fops);
	debugfs_create_file("objects", 0400, directory, NULL, &objects_fops);
	debugfs_create_file("memory", 0400, directory, NULL, &memory_fops);
	debugfs_create_file("histograms", 0400, directory, NULL, &histograms_fops);
}

void dmp_debugfs_exit(void)
{
	debugfs_remove(directory);
}
