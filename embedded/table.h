/* SPDX-License-Identifier: MIT */
/*
 * table.h - ids to objects, O(1), never reusing an id
 *
 * An id is generation << 16 | slot, generation >= 1. A slot whose generations are used
 * up is retired. The caller serialises; the table owns no object.
 */
#ifndef DMP_TABLE_H
#define DMP_TABLE_H

#include <stdint.h>

enum dmp_object_type {
	DMP_OBJECT_BUFFER = 1,
	DMP_OBJECT_CHANNEL,
	DMP_OBJECT_REGION,	/* an own region */
	DMP_OBJECT_REMOTE,	/* a peer's region */
	DMP_OBJECT_ENDPOINT,
	DMP_OBJECT_LISTENER,
};

struct dmp_object {
	uint32_t id;
	uint32_t type;
	uint32_t state;		/* DMP_STATE_*, moved by dmp_lifetime_move() */
};

struct dmp_slot {
	struct dmp_object *object;
	uint32_t generation;	/* of the object in it, or of the next one */
	uint32_t next_free;
};

struct dmp_table {
	struct dmp_slot *slots;
	uint32_t capacity;
	uint32_t free_first;
};

void dmp_table_init(struct dmp_table *table);
void dmp_table_free(struct dmp_table *table);

/* Gives @object an id and makes it findable: -ENOMEM, -ENOSPC. */
int dmp_table_insert(struct dmp_table *table, struct dmp_object *object);
void dmp_table_remove(struct dmp_table *table, struct dmp_object *object);
struct dmp_object *dmp_table_find(const struct dmp_table *table, uint32_t id);

/* For walking: the object of slot @slot or NULL. */
struct dmp_object *dmp_table_at(const struct dmp_table *table, uint32_t slot);

#endif /* DMP_TABLE_H */
