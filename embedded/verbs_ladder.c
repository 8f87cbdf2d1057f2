// SPDX-License-Identifier: MIT
/*
 * verbs_ladder.c - how memory is registered with a device, and why it was not; see verbs.h
 *
 * Rungs, in this order:
 *	ibv_reg_mr		pages of this process, pinned by the device's driver
 *	ibv_reg_dmabuf_mr	a dma-buf, by its fd: memory of a device, which has no pages
 * The last ladder that nobody got up is kept as text, for error messages.
 */
#ifdef DMP_VERBS
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "libdmaplane.h"
#include "process.h"
#include "verbs_layout.h"

#define RUNGS		2
#define REASON_BYTES	256

static pthread_mutex_t refused_lock = PTHREAD_MUTEX_INITIALIZER;	/* a leaf */
static char refused[REASON_BYTES];
static int refused_error;

__attribute__((constructor)) static void guard_refused(void)
{
	dmp_process_guard(&refused_lock);
}

/* What came of one rung: 0 it holds; -errno; NOT_THERE: it was not tried. */
#define NOT_THERE	1

struct rung {
	const char *name;
	int result;
	const char *missing;	/* NOT_THERE: why */
};

static void note_refusal(const struct rung *rungs, __u64 length)
{
	char text[REASON_BYTES], why[64];
	int used = snprintf(text, sizeof(text), "%llu bytes are registered by no rung:",
			    (unsigned long long)length);
	int number;

	for (number = 0; number < RUNGS && used < REASON_BYTES; number++) {
		const struct rung *rung = &rungs[number];

		used += snprintf(text + used, sizeof(text) - (size_t)used, "%s %s: %s",
				 number ? ";" : "", rung->name,
				 rung->result == NOT_THERE ? rung->missing :
				 strerror_r(-rung->result, why, sizeof(why)));
	}
	pthread_mutex_lock(&refused_lock);
	memcpy(refused, text, sizeof(text));
	refused_error = -rungs[0].result;
	pthread_mutex_unlock(&refused_lock);
}

const char *dmp_verbs_refused(int error)
{
	static _Thread_local char text[REASON_BYTES];

	pthread_mutex_lock(&refused_lock);
	text[0] = '\0';
	if (error && refused_error == error)
		memcpy(text, refused, sizeof(text));
	pthread_mutex_unlock(&refused_lock);
	return text;
}

int dmp_verbs_register(struct dmp_verbs *verbs, const struct dmp_verbs_range *range,
		       struct ibv_mr **registered)
{
	const struct dmp_verbs_library *library = verbs->library;
	const struct dmp_memory *memory = range->memory;
	struct rung rungs[RUNGS] = {
		{ "ibv_reg_mr", 0, NULL },
		{ "ibv_reg_dmabuf_mr", NOT_THERE, "the memory is no dma-buf" },
	};

	errno = 0;
	*registered = library->reg_mr_iova(verbs->pd, (char *)memory->address + range->offset,
					   range->length, range->iova, range->access);
	if (*registered)
		return 0;
	rungs[0].result = errno ? -errno : -ENOMEM;
	if (memory->dmabuf && !library->reg_dmabuf_mr) {
		rungs[1].missing = "this rdma-core is too old for it (34 has it)";
	} else if (memory->dmabuf) {
		errno = 0;
		*registered = library->reg_dmabuf_mr(verbs->pd, range->offset, range->length,
						     range->iova, memory->fd, range->access);
		if (*registered)
			return 0;
		rungs[1].result = errno ? -errno : -EOPNOTSUPP;
	}
	note_refusal(rungs, range->length);
	return rungs[0].result;
}

#endif /* DMP_VERBS */
