// SPDX-License-Identifier: GPL-2.0
/*
 * rdma_memory.c - a memory as a device sees it, and fast registrations; see rdma_pair.h
 *
 * A memory is mapped for the device once per pair, when it is first used, and until it or the
 * pair goes; a mapping holds its memory, and is charged. Moves are posted from it with the domain's
 * local key, registrations are made of parts of it.
 *
 * Which memories: those that have pages of their own as long as they live (pages, huge,
 * coherent, the caller's, and imports of these). What can be revoked is refused with
 * -EOPNOTSUPP: a mapping would have to end before the revocation returns, under locks of
 * strangers, while the queue pair may have work on it.
 *
 * As everywhere in the RDMA core, DMA has to be coherent: a device that cannot address all
 * of the machine's memory, and so would be given bounce buffers, is refused as well.
 */
#include <linux/dma-mapping.h>
#include <linux/mm.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>

#include "rdma_layout.h"

/* ---- mappings */

static void free_mapping(struct dmp_pair *pair, struct dmp_pair_mapping *mapping)
{
	ib_dma_unmap_sgtable_attrs(pair->id->device, mapping->table, mapping->direction,
				   DMA_ATTR_SKIP_CPU_SYNC);
	sg_free_table(mapping->table);
	kfree(mapping->table);
	kvfree(mapping->segments);
	dmp_uncharge(mapping->charged);
	dmp_memory_put(mapping->memory);
	kfree(mapping);
}

static struct sg_table *map_table(struct ib_device *device, struct dmp_memory *memory,
				  enum dma_data_direction direction)
{
	struct sg_table *table;
	int error;

	if (memory->revocable || !memory->operations->scatter)
		return ERR_PTR(-EOPNOTSUPP);
	if (!ib_uses_virt_dma(device) && dma_addressing_limited(device->dma_device))
		return ERR_PTR(-EOPNOTSUPP);
	table = memory->operations->scatter(memory, ib_dma_max_seg_size(device));
	if (IS_ERR(table))
		return table;
	error = ib_dma_map_sgtable_attrs(device, table, direction, DMA_ATTR_SKIP_CPU_SYNC);
	if (!error)
		return table;
	sg_free_table(table);
	kfree(table);
	return ERR_PTR(error);
}

/* The list as an array, so that a place in it is found by halving. */
static int list_segments(struct dmp_pair_mapping *mapping)
{
	u32 count = mapping->table->nents;
	struct dmp_pair_segment *segments;
	struct scatterlist *entry;
	u64 offset = 0, bytes;
	int number, error;

	bytes = sizeof(*mapping) + (u64)mapping->table->orig_nents * sizeof(*entry) +
		(u64)count * sizeof(*segments);
	error = dmp_charge(bytes);
	if (error)
		return error;
	mapping->charged = bytes;
	segments = kvmalloc_array(count, sizeof(*segments), GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	if (!segments)
		return -ENOMEM;
	for_each_sgtable_dma_sg(mapping->table, entry, number) {
		segments[number] = (struct dmp_pair_segment){
			.offset = offset, .bus = sg_dma_address(entry), .bytes = sg_dma_len(entry),
		};
		offset += sg_dma_len(entry);
	}
	mapping->segments = segments;
	mapping->segment_count = count;
	return 0;
}

static struct dmp_pair_mapping *make_mapping(struct dmp_pair *pair, struct dmp_memory *memory)
{
	struct dmp_pair_mapping *mapping = kzalloc(sizeof(*mapping), GFP_KERNEL_ACCOUNT);
	int error;

	if (!mapping)
		return ERR_PTR(-ENOMEM);
	mapping->direction = memory->read_only ? DMA_TO_DEVICE : DMA_BIDIRECTIONAL;
	mapping->table = map_table(pair->id->device, memory, mapping->direction);
	if (IS_ERR(mapping->table)) {
		error = PTR_ERR(mapping->table);
		kfree(mapping);
		return ERR_PTR(error);
	}
	dmp_memory_get(memory);
	mapping->memory = memory;
	error = list_segments(mapping);
	if (error) {
		free_mapping(pair, mapping);
		return ERR_PTR(error);
	}
	return mapping;
}

static struct dmp_pair_mapping *find_mapping_locked(struct dmp_pair *pair,
						    const struct dmp_memory *memory)
{
	struct dmp_pair_mapping *mapping;

	lockdep_assert_held(&pair->mappings_lock);
	list_for_each_entry(mapping, &pair->mappings, mappings)
		if (mapping->memory == memory)
			return mapping;
	return NULL;
}

struct dmp_pair_mapping *dmp_pair_map(struct dmp_pair *pair, struct dmp_memory *memory)
{
	struct dmp_pair_mapping *mapping;

	mutex_lock(&pair->mappings_lock);
	mapping = find_mapping_locked(pair, memory);
	if (mapping) {
		/* What is used is in front, however many there are. */
		list_move(&mapping->mappings, &pair->mappings);
	} else {
		mapping = make_mapping(pair, memory);
		if (!IS_ERR(mapping)) {
			mapping->users = 1;	/* the list */
			list_add(&mapping->mappings, &pair->mappings);
		}
	}
	if (!IS_ERR(mapping))
		mapping->users++;
	mutex_unlock(&pair->mappings_lock);
	return mapping;
}

void dmp_pair_unmap(struct dmp_pair *pair, struct dmp_pair_mapping *mapping)
{
	bool unused;

	mutex_lock(&pair->mappings_lock);
	unused = --mapping->users == 0;
	mutex_unlock(&pair->mappings_lock);
	if (unused)
		free_mapping(pair, mapping);
}

static void take_off_locked(struct dmp_pair *pair, struct dmp_pair_mapping *mapping,
			    struct list_head *unused)
{
	lockdep_assert_held(&pair->mappings_lock);
	list_del_init(&mapping->mappings);
	if (--mapping->users == 0)
		list_add(&mapping->mappings, unused);
}

void dmp_pair_forget(struct dmp_pair *pair, const struct dmp_memory *memory)
{
	struct dmp_pair_mapping *mapping, *next;
	LIST_HEAD(unused);

	mutex_lock(&pair->mappings_lock);
	mapping = find_mapping_locked(pair, memory);
	if (mapping)
		take_off_locked(pair, mapping, &unused);
	mutex_unlock(&pair->mappings_lock);
	list_for_each_entry_safe(mapping, next, &unused, mappings)
		free_mapping(pair, mapping);
}

void dmp_pair_free_mappings(struct dmp_pair *pair)
{
	struct dmp_pair_mapping *mapping, *next;
	LIST_HEAD(unused);

	mutex_lock(&pair->mappings_lock);
	list_for_each_entry_safe(mapping, next, &pair->mappings, mappings)
		take_off_locked(pair, mapping, &unused);
	mutex_unlock(&pair->mappings_lock);
	list_for_each_entry_safe(mapping, next, &unused, mappings)
		free_mapping(pair, mapping);
}

/* The segment that holds @offset, which is inside. */
static u32 segment_at(const struct dmp_pair_mapping *mapping, u64 offset)
{
	u32 first = 0, end = mapping->segment_count;

	while (end - first > 1) {
		u32 middle = first + (end - first) / 2;

		if (mapping->segments[middle].offset <= offset)
			first = middle;
		else
			end = middle;
	}
	return first;
}

u32 dmp_pair_places(const struct dmp_pair *pair, const struct dmp_pair_mapping *mapping,
		    u64 offset, u64 *length, struct ib_sge *sges, u32 most)
{
	u64 at = mapping->memory->page_offset + offset, done = 0;
	u32 segment = segment_at(mapping, at), count = 0;

	while (done < *length && count < most) {
		const struct dmp_pair_segment *this = &mapping->segments[segment++];
		u64 inside = at + done - this->offset;
		u64 part = min(this->bytes - inside, *length - done);

		sges[count++] = (struct ib_sge){
			.addr = this->bus + inside, .length = part,
			.lkey = pair->pd->local_dma_lkey,
		};
		done += part;
	}
	*length = done;
	return count;
}

/* ---- registrations */

/*
 * Zero-based: the peer calls the first byte by its place in its page and sees no more of
 * its address. Devices want the two to agree so far.
 */
static struct ib_mr *make_mr(struct ib_pd *pd, struct scatterlist *list, u32 entries, u32 pages,
			     u64 place)
{
	struct ib_mr *mr = ib_alloc_mr(pd, IB_MR_TYPE_MEM_REG, pages);
	int mapped;

	if (IS_ERR(mr))
		return mr;
	mapped = ib_map_mr_sg(mr, list, entries, NULL, PAGE_SIZE);
	if (mapped < 0 || mapped != entries) {
		ib_dereg_mr(mr);
		return ERR_PTR(mapped < 0 ? mapped : -EOPNOTSUPP);
	}
	mr->iova = place;
	return mr;
}

struct ib_mr *dmp_pair_make_mr(struct dmp_pair *pair, const struct dmp_pair_mapping *mapping,
			       u64 offset, u64 length)
{
	u64 at = mapping->memory->page_offset + offset;
	u32 first = segment_at(mapping, at), end = segment_at(mapping, at + length - 1) + 1;
	u32 pages = (PAGE_ALIGN(at + length) - (at & PAGE_MASK)) >> PAGE_SHIFT;
	struct scatterlist *list;
	struct ib_mr *mr;
	u64 done = 0;
	u32 number;

	list = kvmalloc_array(end - first, sizeof(*list), GFP_KERNEL);
	if (!list)
		return ERR_PTR(-ENOMEM);
	sg_init_table(list, end - first);
	for (number = first; number < end; number++) {
		const struct dmp_pair_segment *this = &mapping->segments[number];
		u64 inside = at + done - this->offset;
		u64 part = min(this->bytes - inside, length - done);

		sg_dma_address(&list[number - first]) = this->bus + inside;
		sg_dma_len(&list[number - first]) = part;
		done += part;
	}
	mr = make_mr(pair->pd, list, end - first, pages, offset_in_page(at));
	kvfree(list);
	return mr;
}

struct ib_mr *dmp_pair_make_word_mr(struct dmp_pair *pair)
{
	struct scatterlist list;

	sg_init_table(&list, 1);
	sg_dma_address(&list) = pair->word.bus;
	sg_dma_len(&list) = DMP_RDMA_WORD_BYTES;
	return make_mr(pair->pd, &list, 1, 1, offset_in_page(pair->word.bus));
}

static int post_chore(struct dmp_pair *pair, const struct ib_send_wr *request,
		      struct dmp_pair_grant *grant)
{
	if (pair->lost)
		return pair->lost;
	if (pair->chore_count == DMP_PAIR_CHORES)
		return -EAGAIN;
	if (ib_post_send(pair->id->qp, request, NULL))
		return dmp_pair_lose(pair, -ECONNRESET);
	pair->chores[(pair->chore_first + pair->chore_count++) % DMP_PAIR_CHORES] = grant;
	return 0;
}

int dmp_pair_post_registration(struct dmp_pair *pair, struct ib_mr *mr, int access)
{
	struct ib_reg_wr request = {
		.wr = {
			.wr_id = DMP_PAIR_ID(DMP_PAIR_CHORE, 0),
			.opcode = IB_WR_REG_MR,
			.send_flags = IB_SEND_SIGNALED,
		},
		.mr = mr,
		.key = mr->rkey,
		.access = access,
	};

	return post_chore(pair, &request.wr, NULL);
}

int dmp_pair_post_invalidation(struct dmp_pair *pair, struct dmp_pair_grant *grant)
{
	struct ib_send_wr request = {
		.wr_id = DMP_PAIR_ID(DMP_PAIR_CHORE, 0),
		.opcode = IB_WR_LOCAL_INV,
		.send_flags = IB_SEND_SIGNALED,
		.ex.invalidate_rkey = grant->mr->rkey,
	};

	return post_chore(pair, &request, grant);
}

/* Requests complete in the order in which they were posted. */
void dmp_pair_chore_done(struct dmp_pair *pair)
{
	struct dmp_pair_grant *grant = pair->chores[pair->chore_first];

	pair->chore_first = (pair->chore_first + 1) % DMP_PAIR_CHORES;
	pair->chore_count--;
	pair->chores_done = true;
	if (grant)
		grant->ended = true;
}
