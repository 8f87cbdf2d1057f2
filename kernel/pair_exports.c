// SPDX-License-Identifier: GPL-2.0
/*
 * pair_exports.c - what tests/kernel/standin/pair_talk.ko links to: the pair's interface
 *
 * In a namespace of its own, so that nobody else takes it for an interface of the module.
 */
#include <linux/module.h>

#include "compat.h"
#include "rdma_layout.h"

DMP_EXPORT_TO_TESTS(dmp_pair_dial);
DMP_EXPORT_TO_TESTS(dmp_pair_watch);
DMP_EXPORT_TO_TESTS(dmp_pair_close);
DMP_EXPORT_TO_TESTS(dmp_pair_door_open);
DMP_EXPORT_TO_TESTS(dmp_pair_door_take);
DMP_EXPORT_TO_TESTS(dmp_pair_door_shut);
DMP_EXPORT_TO_TESTS(dmp_pair_door_close);
DMP_EXPORT_TO_TESTS(dmp_pair_put);
DMP_EXPORT_TO_TESTS(dmp_pair_say);		/* what an honest peer would not */
DMP_EXPORT_TO_TESTS(dmp_pair_flush);
DMP_EXPORT_TO_TESTS(dmp_pair_get);
DMP_EXPORT_TO_TESTS(dmp_pair_serve);
DMP_EXPORT_TO_TESTS(dmp_pair_is_ready);
DMP_EXPORT_TO_TESTS(dmp_pair_rest);
DMP_EXPORT_TO_TESTS(dmp_pair_post);
DMP_EXPORT_TO_TESTS(dmp_pair_reap);
DMP_EXPORT_TO_TESTS(dmp_pair_forget);
DMP_EXPORT_TO_TESTS(dmp_pair_trust);
DMP_EXPORT_TO_TESTS(dmp_pair_ask);
DMP_EXPORT_TO_TESTS(dmp_pair_granted);
DMP_EXPORT_TO_TESTS(dmp_pair_remote_free);
DMP_EXPORT_TO_TESTS(dmp_pair_revoke);
DMP_EXPORT_TO_TESTS(dmp_pair_is_registered);
DMP_EXPORT_TO_TESTS(dmp_pair_count);
DMP_EXPORT_TO_TESTS(dmp_memory_get);
DMP_EXPORT_TO_TESTS(dmp_memory_put);
DMP_EXPORT_TO_TESTS(dmp_pages_create);
DMP_EXPORT_TO_TESTS(dmp_coherent_create);
DMP_EXPORT_TO_TESTS(dmp_user_create);
DMP_EXPORT_TO_TESTS(dmp_copy_to);
DMP_EXPORT_TO_TESTS(dmp_copy_from);
