/* SPDX-License-Identifier: MIT */
/*
 * libdmaplane.h - the embedded plane as a C library
 *
 * The same calls the kernel plane answers at /dev/dmaplane, served inside this
 * process: no module, no root, no hardware. The commands and structs are those
 * of dmaplane.h; this header only says how to reach them.
 *
 *  - Every function returns 0 (or a count) on success and a negative errno
 *    otherwise; errno itself is neither set nor read.
 *  - All functions may be called from any thread. A plane does not survive
 *    fork(): in the child every call answers -EPERM and nothing of the parent's
 *    can be touched through it; open a plane of the child's own.
 *  - dmp_close() must not race with other calls on the same plane.
 */
#ifndef DMP_LIBDMAPLANE_H
#define DMP_LIBDMAPLANE_H

#include <stddef.h>
#include <stdint.h>

#include "dmaplane.h"

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define DMP_PUBLIC __attribute__((visibility("default")))
#else
#define DMP_PUBLIC
#endif

struct dmp_plane;

/* Opens an embedded plane. May fail with -ENOMEM or -EMFILE. */
DMP_PUBLIC int dmp_open(struct dmp_plane **plane);

/* Stops every worker, cancels what is in flight, frees all objects and their mappings. */
DMP_PUBLIC int dmp_close(struct dmp_plane *plane);

/* @command is a DMP_* command, @argument its struct. May sleep where the command may. */
DMP_PUBLIC int dmp_ioctl(struct dmp_plane *plane, unsigned int command, void *argument);

/*
 * Maps a buffer or a channel's rings at the map_offset its create call gave.
 * @protection is PROT_READ or PROT_READ | PROT_WRITE. Counts as a holder of the
 * object until dmp_munmap() with the same address.
 */
DMP_PUBLIC int dmp_mmap(struct dmp_plane *plane, size_t length_bytes, int protection,
			uint64_t map_offset, void **address);
DMP_PUBLIC int dmp_munmap(struct dmp_plane *plane, void *address);

/*
 * Waits until any channel of the plane has an unread completion, or until
 * @deadline_ns (CLOCK_MONOTONIC, 0 = no limit, 1 = do not wait).
 * 1 = there is one, 0 = the time passed, -EINTR = a signal came.
 */
DMP_PUBLIC int dmp_poll(struct dmp_plane *plane, uint64_t deadline_ns);

/*
 * The user's side of a channel's rings, with the memory ordering done right. It
 * works on the mapping alone, so it serves any plane: enter() is how this plane
 * is entered. One thread at a time may submit and one may take completions: two
 * threads that do one each need no lock between them.
 */
struct dmp_client {
	struct dmp_ring_control *control;	/* the mapping */
	struct dmp_submission *submissions;
	struct dmp_completion *completions;
	uint32_t slots;
	uint32_t completion_slots;
	uint32_t channel_id;
	uint32_t __reserved;
	struct dmp_plane *plane;		/* embedded plane, or NULL */
	int64_t fd;				/* else: fd of /dev/dmaplane */
};

/*
 * Puts as many of @count submissions into the ring as there is room for, enters
 * once, waits until @wait_count completions are unread (or @deadline_ns), and
 * copies up to @room completions out. *@pushed says how many went in and were
 * accepted; what was not accepted is not left in the ring. Returns the number of
 * completions copied, or a negative errno if nothing was accepted and nothing
 * copied. With @count 0 and @wait_count 0 it makes no system call.
 */
DMP_PUBLIC int dmp_client_exchange(struct dmp_client *client,
				   const struct dmp_submission *submissions, uint32_t count,
				   uint32_t *pushed, struct dmp_completion *completions,
				   uint32_t room, uint32_t wait_count, uint64_t deadline_ns);

/*
 * Arms the channel's eventfd for the next @count completions, or fewer
 * (dmp_ring_control.event_armed). Returns the number of completions unread now: if it is not
 * 0, take them instead of waiting.
 */
DMP_PUBLIC int dmp_client_arm(struct dmp_client *client, uint32_t count);

/* CRC32C as in completions, over @length_bytes; @seed is 0 or the CRC of what came before. */
DMP_PUBLIC uint32_t dmp_crc32c(uint32_t seed, const void *bytes, size_t length_bytes);

/*
 * The same for @count groups of runs, into @checksums. Group g is runs starts[g] up to
 * starts[g + 1], which is there for the last one too; run r is lengths[r] bytes from
 * @bytes + offsets[r] on, and goes on where the run before it in its group ended.
 */
DMP_PUBLIC void dmp_crc32c_groups(const void *bytes, const uint64_t *offsets,
				  const uint64_t *lengths, const uint64_t *starts, size_t count,
				  uint32_t *checksums);

/* CLOCK_MONOTONIC in nanoseconds, the clock of every deadline. */
DMP_PUBLIC uint64_t dmp_now_ns(void);

/* The first broken link on the way to RDMA and what mends it, or "" if there is none. */
DMP_PUBLIC const char *dmp_verbs_missing(void);

/*
 * What the ways to register memory with an RDMA device answered when last none of them
 * worked in this process, if operations have failed with @error for it (positive); else "".
 * The text is the calling thread's.
 */
DMP_PUBLIC const char *dmp_verbs_refused(int error);

/*
 * Every open plane publishes its counters in a sealed memfd of this name, found
 * under /proc/PID/fd by others of the same user; it goes with the process. It
 * holds struct dmp_board.
 */
#define DMP_BOARD_NAME	"dmaplane-board"
#define DMP_BOARD_MAGIC	0x42504d44u	/* "DMPB" */

struct dmp_board {
	uint32_t magic;
	uint32_t version;			/* 1 */
	uint64_t incarnation;
	uint64_t opened_ns;			/* CLOCK_MONOTONIC */
	struct dmp_statistics statistics;	/* of the plane; fields are stored one by one */
};

#ifdef __cplusplus
}
#endif

#endif /* DMP_LIBDMAPLANE_H */
