// SPDX-License-Identifier: GPL-2.0 OR MIT
/* errand.c - see errand.h */
#include "errand.h"

void dmp_errands_init(struct dmp_errands *errands, struct dmp_errand *ring, __u32 room)
{
	*errands = (struct dmp_errands){ .ring = ring, .room = room };
}

void dmp_errands_add(struct dmp_errands *errands, const struct dmp_endpoint_request *request)
{
	errands->wait = false;
	*dmp_errands_at(errands, errands->count++) = (struct dmp_errand){
		.tag = request->tag,
		.length = request->length_bytes,
		.kind = request->kind,
		.index = (__u32)request->local,
		.stage = request->stage,
	};
}

int dmp_errands_give_back(struct dmp_errands *errands, __u32 *number, __u64 tag, __u64 length)
{
	while (*number < errands->count && dmp_errands_at(errands, *number)->tag != tag)
		++*number;
	if (*number == errands->count)
		return -ENOENT;
	dmp_errands_at(errands, *number)->done += length;
	return 0;
}

static bool is_under_way(const struct dmp_errand *errand)
{
	return errand->posted > errand->done;
}

bool dmp_errand_is_over(const struct dmp_errand *errand)
{
	return !is_under_way(errand) &&
	       (errand->done == errand->length || errand->result || errand->stopped);
}

int dmp_errands_drop(struct dmp_errands *errands, __u64 tag)
{
	__u32 number, kept = 0;
	bool found;

	for (number = 0; number < errands->count; number++) {
		struct dmp_errand *errand = dmp_errands_at(errands, number);

		/* A tag is there once: nothing has been moved up yet. */
		if (errand->tag == tag && is_under_way(errand)) {
			errand->stopped = true;
			return -EINPROGRESS;
		}
		if (errand->tag != tag)
			*dmp_errands_at(errands, kept++) = *errand;
	}
	found = kept != errands->count;
	errands->count = kept;
	return found ? 0 : -ENOENT;
}

bool dmp_errands_is_stopping(const struct dmp_errands *errands)
{
	__u32 number;

	for (number = 0; number < errands->count; number++)
		if (dmp_errands_at(errands, number)->stopped)
			return true;
	return false;
}

void dmp_errands_take(struct dmp_errands *errands, struct dmp_errand *errand,
		      struct dmp_endpoint_answer *answer)
{
	*errand = *dmp_errands_at(errands, 0);
	*answer = (struct dmp_endpoint_answer){
		.tag = errand->tag,
		.kind = errand->kind,
		.length_bytes = errand->done,
		.result = errand->result,
	};
	if (errand->stopped && errand->done != errand->length)
		answer->kind = DMP_REQUEST_STOP;
	errands->first = (errands->first + 1) % errands->room;
	errands->count--;
}
