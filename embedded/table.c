// SPDX-License-Identifier: MIT
/* table.c - see table.h */
#include "table.h"

#include <errno.h>
#include <stdlib.h>

#define SLOT_BITS 16
#define SLOTS_MAX (1u << SLOT_BITS)
#define GENERATIONS (1u << (32 - SLOT_BITS))
#define NONE 0xffffffffu

void dmp_table_init(struct dmp_table *table)
{
	table->slots = NULL;
	table->capacity = 0;
	table->free_first = NONE;
}

void dmp_table_free(struct dmp_table *table)
{
	free(table->slots);
	dmp_table_init(table);
}

static int grow(struct dmp_table *table)
{
	uint32_t capacity = table->capacity == 0 ? 64 : table->capacity * 2;
	struct dmp_slot *slots;
	uint32_t slot;

	if (table->capacity == SLOTS_MAX)
		return -ENOSPC;
	slots = realloc(table->slots, capacity * sizeof(*slots));
	if (!slots)
		return -ENOMEM;
	for (slot = capacity; slot-- > table->capacity;) {
		slots[slot].object = NULL;
		slots[slot].generation = 1;
		slots[slot].next_free = table->free_first;
		table->free_first = slot;
	}
	table->slots = slots;
	table->capacity = capacity;
	return 0;
}

int dmp_table_insert(struct dmp_table *table, struct dmp_object *object)
{
	struct dmp_slot *slot;
	uint32_t index;

	if (table->free_first == NONE) {
		int error = grow(table);

		if (error)
			return error;
	}
	index = table->free_first;
	slot = &table->slots[index];
	table->free_first = slot->next_free;
	slot->object = object;
	object->id = slot->generation << SLOT_BITS | index;
	return 0;
}

void dmp_table_remove(struct dmp_table *table, struct dmp_object *object)
{
	uint32_t index = object->id & (SLOTS_MAX - 1);
	struct dmp_slot *slot = &table->slots[index];

	slot->object = NULL;
	if (++slot->generation < GENERATIONS) {
		slot->next_free = table->free_first;
		table->free_first = index;
	}
}

struct dmp_object *dmp_table_find(const struct dmp_table *table, uint32_t id)
{
	uint32_t index = id & (SLOTS_MAX - 1);

	if (index >= table->capacity || !table->slots[index].object ||
	    table->slots[index].generation != id >> SLOT_BITS)
		return NULL;
	return table->slots[index].object;
}

struct dmp_object *dmp_table_at(const struct dmp_table *table, uint32_t slot)
{
	return slot < table->capacity ? table->slots[slot].object : NULL;
}
