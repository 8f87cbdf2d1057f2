/* SPDX-License-Identifier: MIT */
/*
 * loops.h - what libdmaplane-bench exports; called by python/dmaplane/bench
 *
 * Nothing here is part of the plane, and nothing outside the benches may use it.
 */
#ifndef DMP_BENCH_LOOPS_H
#define DMP_BENCH_LOOPS_H

#include <stdint.h>

#include "libdmaplane.h"

/* dmp_client_exchange and dmp_ioctl of the build that is measured. */
typedef int (*dmp_bench_exchange)(struct dmp_client *client,
				  const struct dmp_submission *submissions, uint32_t count,
				  uint32_t *pushed, struct dmp_completion *completions,
				  uint32_t room, uint32_t wait_count, uint64_t deadline_ns);
typedef int (*dmp_bench_ioctl)(struct dmp_plane *plane, unsigned int command, void *argument);

uint64_t dmp_bench_now_ns(void);

/* memcpy of the C library for each row's offsets and length: the peer of COPY. */
int dmp_bench_memcpy(char *target, const char *source, const struct dmp_submission *rows,
		     uint64_t count, uint64_t *elapsed_ns);

/*
 * All @rows through one channel: @batch of them an exchange, at most @window in
 * flight; window == batch waits for each batch before the next.
 */
int dmp_bench_stream(dmp_bench_exchange exchange, struct dmp_client *client,
		     const struct dmp_submission *rows, uint64_t count, uint32_t batch,
		     uint32_t window, struct dmp_completion *completions, uint32_t room,
		     uint64_t *elapsed_ns);

/* @turns exchanges of the same @batch rows, each on the next channel, each waited for. */
int dmp_bench_round_robin(dmp_bench_exchange exchange, struct dmp_client *const *clients,
			  uint32_t client_count, const struct dmp_submission *rows,
			  uint32_t batch, uint64_t turns, struct dmp_completion *completions,
			  uint32_t room, uint64_t *elapsed_ns);

/* The same command @count times, each with a fresh copy of @argument. */
int dmp_bench_commands(dmp_bench_ioctl ioctl, void *plane, unsigned int command,
		       const void *argument, uint64_t argument_bytes, uint64_t count,
		       uint64_t *elapsed_ns);

/* @count round trips to a second thread over eventfds, or by spinning on a word. */
int dmp_bench_wakeups(int spin, uint64_t count, uint64_t *each_ns);

/* How bare memory is had: see memory.c. */
#define DMP_BENCH_MEMFD		0
#define DMP_BENCH_MEMFD_HUGE	1
#define DMP_BENCH_PRIVATE	2

/* The system calls alone: get, map, write to every page; memory goes back untimed. */
int dmp_bench_allocate(int how, uint64_t length_bytes, uint64_t page_bytes, int lock,
		       uint64_t *elapsed_ns);

/* Writes one byte of every page. */
int dmp_bench_touch(char *memory, uint64_t length_bytes, uint64_t page_bytes,
		    uint64_t *elapsed_ns);

/*
 * The far side of a WRITE_IMM: takes events until @count came, waiting for @wait at a time.
 * *immediates is the sum of what they carried, *end_ns (CLOCK_MONOTONIC) when the last was taken.
 */
int dmp_bench_drain(dmp_bench_exchange exchange, struct dmp_client *client, uint64_t count,
		    uint32_t wait, uint64_t *immediates, uint64_t *end_ns);

/*
 * @count round trips of @row, a WRITE_IMM, between two processes that both call this, one of
 * them as the @first to send; each_ns has the time of each, which is a round trip for the first.
 */
int dmp_bench_pingpong(dmp_bench_exchange exchange, struct dmp_client *client,
		       const struct dmp_submission *row, int first, uint64_t count,
		       uint64_t *each_ns);

/*
 * @count messages there and back with a peer that does the same, the other one first: @rows
 * are a SEND and a RECV. Each round trip in @each_ns.
 */
int dmp_bench_messages(dmp_bench_exchange exchange, struct dmp_client *client,
		       const struct dmp_submission *rows, int first, uint64_t count,
		       uint64_t *each_ns);

/* A plain TCP socket between two processes that know the same rows; see socket.c. */
int dmp_bench_socket_send(int fd, char *source, const struct dmp_submission *rows, uint64_t count,
			  uint64_t *elapsed_ns);
int dmp_bench_socket_receive(int fd, char *target, const struct dmp_submission *rows,
			     uint64_t count);
int dmp_bench_socket_pingpong(int fd, int first, uint64_t count, uint64_t *each_ns);

#endif /* DMP_BENCH_LOOPS_H */
