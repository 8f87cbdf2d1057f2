// SPDX-License-Identifier: MIT
/*
 * pair_talk_cases.c - what is tried with two pairs, one case at a time; see pair_talk.h
 *
 * debugfs pair_talk/run: write "CASE IPV4 SEED": runs it; the write fails as the case does.
 * debugfs pair_talk/said: where it went wrong, or figures. pair_talk/phase: how far it is.
 */
#include <linux/debugfs.h>
#include <linux/inet.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/uaccess.h>

#include "pair_talk.h"
#include "rdma_layout.h"	/* dmp_pair_say(), to lie with */

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 13, 0)
MODULE_IMPORT_NS(DMAPLANE_TESTS);
#else
MODULE_IMPORT_NS("DMAPLANE_TESTS");
#endif

#define BACKLOG		3U

static DEFINE_MUTEX(run_lock);
static struct dentry *folder;
static char phase[32];

/* ---- bytes */

static int stream_both_ways(void)
{
	struct dmp_pair_counters counters;
	int error = talk_stream(600000, 400000);

	if (!error)
		error = talk_stream(1, 0);
	dmp_pair_count(sides[0].pair, &counters);
	scnprintf(said, sizeof(said), "slots %llu, repaid %llu times, wakes %llu, stalls %llu",
		  counters.slots_sent, sides[1].pair ? counters.repayments : 0, counters.wakes,
		  counters.stalls);
	return error ? error : CHECK(counters.slots_sent && counters.slots_received &&
				     counters.repayments);
}

static int stream_one_way(void)
{
	struct dmp_pair_counters there, back;
	u64 began_ns = ktime_get_ns();
	int error = talk_stream(1500000, 0);

	if (error)
		return error;
	dmp_pair_count(sides[0].pair, &there);
	dmp_pair_count(sides[1].pair, &back);
	scnprintf(said, sizeof(said), "1500000 bytes in %llu us, %llu slots, repaid %llu times",
		  (ktime_get_ns() - began_ns) / 1000, there.slots_sent, back.repayments);
	/* The other side never has anything to say but where it is repaid. */
	return CHECK(there.slots_sent > 150 && back.slots_sent == 1 && back.repayments > 10);
}

static int ping_pong(void)
{
	struct dmp_pair_counters counters;
	u64 began_ns = ktime_get_ns();
	int error = 0, round;

	for (round = 0; round < 400 && !error; round++) {
		error = talk_stream(talk_roll(200), 0);
		if (!error)
			error = talk_stream(0, talk_roll(200));
	}
	dmp_pair_count(sides[0].pair, &counters);
	if (!error)
		scnprintf(said, sizeof(said), "400 there and back in %llu us",
			  (ktime_get_ns() - began_ns) / 1000);
	return error ? error : CHECK(counters.slots_sent >= 400);
}

/* Nobody reads on the other side: put takes what there are slots for, and no more. */
static int full(void)
{
	u8 bytes[256] = { 0 };
	struct dmp_run run = { .address = bytes, .length = sizeof(bytes) };
	struct dmp_run away = { .length = 1 << 20 };
	u64 put = 0, got = 0;
	ssize_t count;
	int error = talk_stream(1, 1);
	u64 until_ns = talk_after_ms(8000);

	while (!error && (count = dmp_pair_put(sides[0].pair, &run)) > 0)
		put += count;
	if (error)
		return error;
	/* 32 slots of 8192, of which a few were taken by letters and bytes before. */
	error = CHECK(count == 0 && put > 20 * 8000 && put < 33 * 8192);
	while (!error && got < put && ktime_get_ns() < until_ns) {
		dmp_pair_flush(sides[0].pair);
		error = dmp_pair_serve(sides[0].pair);
		if (!error)
			error = dmp_pair_serve(sides[1].pair);
		count = dmp_pair_get(sides[1].pair, &away);
		got += max_t(ssize_t, count, 0);
		cond_resched();
	}
	return error ? error : CHECK(got == put);
}

/* ---- moves and regions */

static int moves(void)
{
	static const u32 kinds[][2] = {
		{ DMP_KIND_PAGES, DMP_KIND_PAGES },
		{ DMP_KIND_USER, DMP_KIND_COHERENT },
		{ DMP_KIND_COHERENT, DMP_KIND_USER },
	};
	int error = 0;
	u32 number;

	for (number = 0; number < ARRAY_SIZE(kinds) && !error; number++)
		error = talk_with_places(kinds[number][0], kinds[number][1], 200 << 10, 150 << 10,
					 0, 10, 1);
	return error ? error : talk_stream(1000, 1000);
}

/* Registrations of 512 pages on Soft-RoCE: 2 MiB, from the page on in which the region begins. */
static int parts(void)
{
	int error = talk_with_places(DMP_KIND_PAGES, DMP_KIND_PAGES, 3 << 20, 5 << 20, 4660, 4, 3);

	if (!error)
		error = talk_with_places(DMP_KIND_HUGE, DMP_KIND_HUGE, 2 << 20, 2 << 20, 1, 3, 1);
	return error ? error : talk_stream(1000, 1000);
}

/* A little of each. */
static int brief(void)
{
	int error = talk_stream(100, 100);

	return error ? error : talk_with_places(DMP_KIND_PAGES, DMP_KIND_PAGES, 16384, 16384, 0,
						2, 1);
}

static int nothing_granted(void)
{
	struct place place = { 0 };
	struct dmp_pair_remote remote = { 0 };
	int error = talk_make_place(&place, DMP_KIND_PAGES, 65536);

	if (!error)
		error = CHECK(talk_ask(&remote, "open") == -ESTALE);
	if (!error) {
		talk_open_region(&place, 0, DMP_ACCESS_REMOTE_READ);
		error = CHECK(talk_ask(&remote, "shut") == -EACCES);
	}
	if (!error)
		error = CHECK(talk_ask(&remote, "open") == 0 && remote.count == 1);
	dmp_pair_remote_free(&remote);
	/* Asked again: the same registration. */
	if (!error)
		error = CHECK(talk_ask(&remote, "open") == 0 && remote.count == 1);
	dmp_pair_remote_free(&remote);
	if (!error)
		error = talk_end_region(3);
	talk_part(0);
	talk_part(1);
	talk_free_place(&place);
	return error;
}

/* What may only be read is written to: the device says No, and that is the connection's end. */
static int no_right(void)
{
	struct place here = { 0 }, there = { 0 };
	struct dmp_pair_remote remote = { 0 };
	struct dmp_pair_move move = { .remote = &remote, .length = 5000, .write = true };
	int error = talk_make_place(&here, DMP_KIND_PAGES, 65536);

	if (!error)
		error = talk_make_place(&there, DMP_KIND_PAGES, 65536);
	if (!error) {
		talk_open_region(&there, 0, DMP_ACCESS_REMOTE_READ);
		error = talk_ask(&remote, "open");
	}
	move.memory = here.memory;
	if (!error)
		error = CHECK(talk_move_all(&move) == -ECONNRESET);
	talk_part(0);
	talk_part(1);
	if (!error) {
		u8 now[16];

		error = dmp_copy_from(there.memory, 0, now, sizeof(now));
		if (!error)
			error = CHECK(!memcmp(now, there.shadow, sizeof(now)));
	}
	dmp_pair_remote_free(&remote);
	talk_free_place(&here);
	talk_free_place(&there);
	return error;
}

/* @drivers: 3, the peer lets go; 2: it is not there to do so, and has its half second. */
static int revoked(u32 drivers)
{
	struct place here = { 0 }, there = { 0 };
	struct dmp_pair_remote remote = { 0 };
	struct dmp_pair_move move = { .remote = &remote, .length = 1 << 20, .write = true };
	struct dmp_pair_move late;
	u64 began_ns, tag, length;
	int error = talk_make_place(&here, DMP_KIND_PAGES, 1 << 20);

	if (!error)
		error = talk_make_place(&there, DMP_KIND_PAGES, 1 << 20);
	if (!error) {
		talk_open_region(&there, 0, DMP_ACCESS_REMOTE_WRITE);
		error = talk_ask(&remote, "open");
	}
	move.memory = here.memory;
	late = move;
	if (!error && drivers == 3)
		error = dmp_pair_post(sides[0].pair, &move, 1);
	began_ns = ktime_get_ns();
	if (!error)
		error = talk_end_region(drivers);
	if (!error && drivers == 3)
		error = CHECK(dmp_pair_reap(sides[0].pair, &tag, &length) && tag == 1);
	if (!error && drivers != 3)
		error = CHECK(ktime_get_ns() - began_ns > 450 * NSEC_PER_MSEC);
	if (!error)
		error = talk_stream(100, 100);
	if (!error)
		error = CHECK(dmp_pair_post(sides[0].pair, &late, 2) == -ESTALE);
	/* The connection lives on, and what is granted next is good. */
	if (!error)
		error = talk_with_places(DMP_KIND_PAGES, DMP_KIND_PAGES, 65536, 65536, 0, 3, 1);
	talk_part(0);
	talk_part(1);
	dmp_pair_remote_free(&remote);
	talk_free_place(&here);
	talk_free_place(&there);
	return error;
}

static int revoked_while_moving(void)
{
	return revoked(3);
}

static int revoked_alone(void)
{
	return revoked(2);
}

/* Side 0 has asked once, and is told of the end of two registrations: somebody lies. */
static int revokes_too_many(void)
{
	const struct dmp_rdma_message lie = { .rkey = 1 };
	struct dmp_pair_remote remote = { 0 };
	u64 until_ns = talk_after_ms(8000);
	struct place there = { 0 };
	int error = talk_make_place(&there, DMP_KIND_PAGES, 4096);

	if (!error) {
		talk_open_region(&there, 0, DMP_ACCESS_REMOTE_WRITE);
		error = talk_ask(&remote, "open");
	}
	if (!error)
		error = CHECK(!dmp_pair_say(sides[1].pair, DMP_RDMA_REVOKE, &lie));
	if (!error)
		error = talk_stream(1000, 1000);	/* one may be about anything */
	if (!error)
		error = CHECK(!dmp_pair_say(sides[1].pair, DMP_RDMA_REVOKE, &lie));
	while (!error && !sides[0].lost && ktime_get_ns() < until_ns)
		error = talk_turn(1);
	if (!error)
		error = CHECK(sides[0].lost == -EPROTO);
	talk_part(0);
	talk_part(1);
	dmp_pair_remote_free(&remote);
	talk_free_place(&there);
	return error;
}

/* ---- ends */

/* All that was sent arrives, then the loss; moves that are posted are nobody's any more. */
static int peer_closes(void)
{
	struct place place = { 0 };
	struct dmp_pair_remote remote = { 0 };
	struct dmp_pair_move move = { .remote = &remote, .length = 1 << 20, .write = true };
	u64 until_ns = talk_after_ms(8000);
	bool went;
	int error = talk_make_place(&place, DMP_KIND_PAGES, 1 << 20);

	if (!error) {
		talk_open_region(&place, 0, DMP_ACCESS_REMOTE_WRITE);
		error = talk_ask(&remote, "open");
	}
	if (!error)
		error = talk_stream(50000, 50000);
	sides[0].to_put += 10000;
	while (!error && sides[0].put < sides[0].to_put)
		error = talk_drive(0, &went);
	talk_part(0);
	while (!error && sides[1].got < sides[0].put && ktime_get_ns() < until_ns)
		error = talk_turn(2);
	while (!error && !sides[1].lost && ktime_get_ns() < until_ns)
		error = talk_turn(2);
	if (!error)
		error = CHECK(sides[1].got == sides[0].put && sides[1].lost == -ECONNRESET);
	talk_part(1);
	/* Once more, with a move under way on the side that closes. */
	if (!error)
		error = talk_meet();
	dmp_pair_remote_free(&remote);
	if (!error) {
		talk_open_region(&place, 0, DMP_ACCESS_REMOTE_WRITE);
		error = talk_ask(&remote, "open");
	}
	move.memory = place.memory;
	if (!error)
		error = dmp_pair_post(sides[0].pair, &move, 1);
	talk_part(0);
	talk_part(1);
	dmp_pair_remote_free(&remote);
	talk_free_place(&place);
	return error;
}

/* A door at every address of the machine. */
static int any_address(void)
{
	struct sockaddr_in *here = (struct sockaddr_in *)&address;
	struct sockaddr_storage everywhere = { .ss_family = AF_INET };
	struct dmp_pair_door *first = door;
	int error = dmp_pair_door_open(&everywhere, BACKLOG, &door);

	if (error) {
		door = first;
		return error;
	}
	here->sin_port = ((struct sockaddr_in *)&everywhere)->sin_port;
	error = CHECK(here->sin_port != 0);
	if (!error)
		error = talk_meet();
	if (!error)
		error = talk_stream(20000, 20000);
	dmp_pair_door_close(door);
	door = first;
	return error;
}

/* Callers that wait, that leave, that are too many, and doors. */
static int doors(void)
{
	struct dmp_pair *pair = NULL, *taken = NULL;
	struct sockaddr_storage from, there = address, twin = address;
	struct dmp_pair_door *second = NULL;
	int error = CHECK(dmp_pair_door_open(&twin, 1, &second) == -EADDRINUSE);

	if (!error)
		error = CHECK(dmp_pair_door_take(door, talk_after_ms(100), &from, &taken) ==
			      -ETIMEDOUT);
	((struct sockaddr_in *)&there)->sin_port = htons(9);
	if (!error)
		error = CHECK(dmp_pair_dial(&there, talk_after_ms(4000), &pair) == -ECONNREFUSED);
	/* In nobody's network with a device. */
	((struct sockaddr_in *)&there)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (!error) {
		int answer = dmp_pair_dial(&there, talk_after_ms(4000), &pair);

		error = CHECK(answer == -ENODEV || answer == -EHOSTUNREACH);
	}
	/* One who is not answered gives up, and is forgotten. */
	if (!error)
		error = CHECK(dmp_pair_dial(&address, talk_after_ms(300), &pair) == -ETIMEDOUT);
	if (!error) {
		int answer = dmp_pair_door_take(door, talk_after_ms(2000), &from, &taken);

		/* Whether the peer said so, or was taken before that came. */
		if (!answer)
			dmp_pair_close(taken);
		error = CHECK(answer == -ETIMEDOUT || answer == -ECONNRESET || !answer);
	}
	if (!error)
		error = talk_meet();
	if (!error)
		error = talk_stream(1000, 1000);
	dmp_pair_door_shut(door);
	if (!error)
		error = CHECK(dmp_pair_door_take(door, 0, &from, &taken) == -ESTALE);
	return error;
}

struct calling {
	struct task_struct *thread;
	int error;
};

/* One who calls, and whom nobody takes. */
static int call(void *data)
{
	struct calling *calling = data;
	struct dmp_pair *pair;

	calling->error = dmp_pair_dial(&address, talk_after_ms(60000), &pair);
	if (!calling->error)
		dmp_pair_close(pair);
	while (!kthread_should_stop())
		schedule_timeout_interruptible(1);
	return 0;
}

/* Until somebody outside deletes the link. */
static int removed(void)
{
	struct calling calling = { .error = 1 };
	struct sockaddr_storage from;
	struct dmp_pair *taken;
	u64 until_ns = talk_after_ms(60000);
	bool went;
	int error = talk_stream(20000, 20000);

	calling.thread = kthread_run(call, &calling, "pair_talk");
	if (IS_ERR(calling.thread))
		return PTR_ERR(calling.thread);
	/* Time for the call to arrive; it may also come too late, and fails all the same. */
	while (!error && ktime_get_ns() < until_ns - 59500 * NSEC_PER_MSEC)
		error = talk_stream(100, 100);
	strscpy(phase, "talking", sizeof(phase));
	while (!error && !sides[0].lost && ktime_get_ns() < until_ns) {
		sides[0].to_put += 100;
		error = talk_drive(0, &went);
		if (!error)
			error = talk_drive(1, &went);
		cond_resched();
	}
	while (!error && !sides[1].lost && ktime_get_ns() < until_ns)
		error = talk_drive(1, &went);
	if (!error)
		error = CHECK(sides[0].lost == -ECONNRESET && sides[1].lost == -ECONNRESET);
	if (!error)
		error = CHECK(dmp_pair_door_take(door, talk_after_ms(5000), &from, &taken) ==
			      -ESTALE);
	kthread_stop(calling.thread);
	return error ? error : CHECK(calling.error < 0);
}

/* ---- running them */

static const struct {
	const char *name;
	int (*run)(void);
	bool alone;		/* without two pairs that have met */
} cases[] = {
	{ "both-ways", stream_both_ways },
	{ "one-way", stream_one_way },
	{ "ping-pong", ping_pong },
	{ "full", full },
	{ "brief", brief },
	{ "moves", moves },
	{ "parts", parts },
	{ "nothing-granted", nothing_granted },
	{ "no-right", no_right },
	{ "revoked-while-moving", revoked_while_moving },
	{ "revoked-alone", revoked_alone },
	{ "revoked-by-another-thread", talk_meddled },
	{ "revokes-too-many", revokes_too_many },
	{ "peer-closes", peer_closes },
	{ "doors", doors, true },
	{ "any-address", any_address, true },
	{ "removed", removed },
};

static int run_case(const char *name)
{
	size_t number;
	int error;

	for (number = 0; number < ARRAY_SIZE(cases); number++)
		if (!strcmp(cases[number].name, name))
			break;
	if (number == ARRAY_SIZE(cases))
		return -EINVAL;
	((struct sockaddr_in *)&address)->sin_port = 0;
	error = dmp_pair_door_open(&address, BACKLOG, &door);
	if (error)
		return FAIL(error, "no door");
	if (!cases[number].alone)
		error = talk_meet();
	if (!error)
		error = cases[number].run();
	talk_part(0);
	talk_part(1);
	dmp_pair_door_close(door);
	door = NULL;
	return error;
}

static ssize_t run_write(struct file *file, const char __user *from, size_t length, loff_t *at)
{
	struct sockaddr_in *to = (struct sockaddr_in *)&address;
	char text[96], name[32], host[32];
	unsigned int seed;
	int error;

	if (length >= sizeof(text) || copy_from_user(text, from, length))
		return -EINVAL;
	text[length] = 0;
	if (sscanf(text, "%31s %31s %u", name, host, &seed) != 3)
		return -EINVAL;
	mutex_lock(&run_lock);
	memset(&address, 0, sizeof(address));
	memset(sides, 0, sizeof(sides));
	said[0] = 0;
	phase[0] = 0;
	prandom_seed_state(&dice, seed);
	to->sin_family = AF_INET;
	error = in4_pton(host, -1, (u8 *)&to->sin_addr, -1, NULL) ? run_case(name) : -EINVAL;
	mutex_unlock(&run_lock);
	return error ? error : length;
}

static const struct file_operations run_operations = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.write = run_write,
};

static ssize_t text_read(struct file *file, char __user *to, size_t length, loff_t *at)
{
	const char *text = file->private_data;

	return simple_read_from_buffer(to, length, at, text, strlen(text));
}

static const struct file_operations text_operations = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.read = text_read,
};

static int __init talk_init(void)
{
	folder = debugfs_create_dir("pair_talk", NULL);
	debugfs_create_file("run", 0200, folder, NULL, &run_operations);
	debugfs_create_file("said", 0400, folder, said, &text_operations);
	debugfs_create_file("phase", 0400, folder, phase, &text_operations);
	return 0;
}

static void __exit talk_exit(void)
{
	debugfs_remove(folder);
}

module_init(talk_init);
module_exit(talk_exit);

MODULE_DESCRIPTION("two queue pairs of dmaplane talk to each other, for its tests");
MODULE_AUTHOR("the dmaplane authors");
MODULE_LICENSE("Dual MIT/GPL");
