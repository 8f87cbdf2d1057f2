// SPDX-License-Identifier: MIT
/*
 * simulate.c - run the endpoint simulator from the command line
 *
 *	simulate --seeds 10000 --steps 1000 [--first 1]	many seeds; stops at a failure
 *	simulate --seed 42 --steps 1000 --trace		one seed, every event printed
 *
 * Ends with 0 if every law held, else 1 and the command that shows the failing seed.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "simulator.h"

struct arguments {
	unsigned long long first, seeds;
	__u32 steps;
	bool trace;
};

static bool parse(int count, char **words, struct arguments *arguments)
{
	int i;

	for (i = 1; i < count; i++) {
		const char *value = i + 1 < count ? words[i + 1] : NULL;
		char *end = NULL;
		unsigned long long number;

		if (!strcmp(words[i], "--trace")) {
			arguments->trace = true;
			continue;
		}
		if (!value)
			return false;
		number = strtoull(value, &end, 10);
		if (*end || end == value)
			return false;
		if (!strcmp(words[i], "--seeds"))
			arguments->seeds = number;
		else if (!strcmp(words[i], "--first"))
			arguments->first = number;
		else if (!strcmp(words[i], "--steps"))
			arguments->steps = (__u32)number;
		else if (!strcmp(words[i], "--seed")) {
			arguments->first = number;
			arguments->seeds = 1;
		} else {
			return false;
		}
		i++;
	}
	return true;
}

static void add(struct simulation *total, const struct simulation *one)
{
#define X(name) total->name += one->name;
	SIMULATOR_COUNTERS(X)
#undef X
	total->trace_hash = total->trace_hash * 31 + one->trace_hash;
}

static void print(const struct simulation *total)
{
#define X(name) printf("%-16s %llu\n", #name, (unsigned long long)total->name);
	SIMULATOR_COUNTERS(X)
#undef X
	printf("%-16s %016llx\n", "trace hash", (unsigned long long)total->trace_hash);
}

int main(int count, char **words)
{
	struct arguments arguments = { .first = 1, .seeds = 100, .steps = 1000 };
	struct simulation total = { .seed = 0 };
	unsigned long long i;

	if (!parse(count, words, &arguments)) {
		fprintf(stderr, "usage: simulate [--seed N | --seeds COUNT [--first N]]"
				" [--steps COUNT] [--trace]\n");
		return 2;
	}
	for (i = 0; i < arguments.seeds; i++) {
		struct simulation one = { .seed = arguments.first + i,
					  .steps = arguments.steps,
					  .trace = arguments.trace };

		if (!simulate(&one)) {
			printf("seed %llu, step %u: %s\n", (unsigned long long)one.seed,
			       one.failed_step, one.message);
			printf("replay: simulate --seed %llu --steps %u --trace\n",
			       (unsigned long long)one.seed, arguments.steps);
			return 1;
		}
		add(&total, &one);
	}
	printf("%llu seeds of %u steps: every law held\n", arguments.seeds, arguments.steps);
	print(&total);
	return 0;
}
