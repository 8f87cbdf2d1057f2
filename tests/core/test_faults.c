// SPDX-License-Identifier: MIT
/*
 * test_faults.c - one conversation, every message of it lost, late, twice, or cut off
 *
 * The script below uses each kind of frame. It is played once as it is; then with every
 * fault at every message; then with every pair of faults; and with owners who answer at
 * once, where fewer things overlap, with one fault again. After each play (laws L1, L2,
 * L5, L7): one completion per accepted submission, not later than its deadline; the
 * result is the script's, or says that the connection ended; what succeeded did happen;
 * the ledgers add up; both machines end in time, and without an error if the faults were
 * ones a fabric may have.
 *
 * A failure names its faults: it says with which arguments to replay them.
 */
#include "conversation.h"

#define STEPS		(sizeof(script) / sizeof(script[0]))
#define CANCEL		100	/* of step `length` */
#define PAUSE		101	/* of `length` milliseconds */
#define DRAIN		102
#define VALUE		1000u	/* plus the number of a step: what it sends or writes */
#define SETTLED_STEP	35	/* all is done and told before this step */

struct step {
	__u8 side;
	__u8 action;		/* DMP_OP_* or one of the above */
	__u8 after;		/* completions there must have been, on both sides */
	__u8 cell;
	__u32 length;
	__u32 deadline_ms;
	bool bad_key;
	__s32 expected[2];
};

#define BOTH(result) { result, result }

static const struct step script[] = {
	{ 0, DMP_OP_RECV, .length = 64 },
	{ 1, DMP_OP_RECV, .length = 8, .expected = BOTH(-EOVERFLOW) },
	{ 1, DMP_OP_RECV, .length = 64 },
	{ 0, DMP_OP_SEND, .length = 20 },
	{ 0, DMP_OP_SEND, .length = 30 },	/* staged */
	{ 0, DMP_OP_SEND, .length = 0 },	/* from here on they wait for credit */
	{ 0, DMP_OP_SEND, .length = 16 },
	{ 1, DMP_OP_SEND, .length = 10 },
	{ 1, DMP_OP_RECV, 7, .length = 64 },
	{ 1, DMP_OP_RECV, .length = 64 },
	{ 1, DMP_OP_RECV, .length = 64 },
	{ 0, DMP_OP_WRITE, 11, .length = 40, .cell = 1 },
	{ 0, DMP_OP_WRITE_IMM, .length = 20, .cell = 2 },
	{ 0, DMP_OP_READ, .length = 50, .cell = 3 },
	{ 0, DMP_OP_WRITE_IMM, .length = 90, .cell = 4 },	/* takes the whole window */
	{ 0, DMP_OP_WRITE, .length = 10, .cell = 5, .bad_key = true,
	  .expected = BOTH(-EACCES) },
	{ 0, DMP_OP_WRITE, .cell = 1 },
	{ 0, DMP_OP_READ, .cell = 1 },
	{ 0, DMP_OP_READ, .bad_key = true, .expected = BOTH(-EACCES) },
	{ 1, DMP_OP_WRITE_IMM, .length = 5, .cell = 6 },
	{ 0, DMP_OP_WRITE_IMM, .length = 10, .bad_key = true, .expected = BOTH(-EACCES) },
	{ 0, DMP_OP_READ, 21, .length = 10, .cell = 2, .expected = BOTH(-ECANCELED) },
	{ 0, CANCEL, .length = 21 },		/* the peer has not begun */
	{ 0, DMP_OP_READ, .length = 10, .cell = SLOW_CELL, .expected = BOTH(-ECANCELED) },
	{ 0, DMP_OP_WRITE, .length = 10, .cell = SLOW_CELL, .expected = { 0, -ECANCELED } },
	{ 0, PAUSE, .length = 5 },
	{ 0, CANCEL, .length = 23 },		/* the peer has begun */
	{ 0, CANCEL, .length = 24 },
	{ 0, DMP_OP_READ, .length = 10, .cell = SLOW_CELL, .deadline_ms = 20,
	  .expected = BOTH(-ETIMEDOUT) },
	{ 0, DMP_OP_WRITE, .length = 10, .cell = SLOW_CELL, .deadline_ms = 20,
	  .expected = BOTH(-ETIMEDOUT) },
	{ 0, DMP_OP_WRITE_IMM, .length = 10, .cell = SLOW_CELL, .deadline_ms = 20,
	  .expected = BOTH(-ETIMEDOUT) },
	{ 0, DMP_OP_RECV, .length = 64, .deadline_ms = 20, .expected = BOTH(-ETIMEDOUT) },
	{ 1, DMP_OP_RECV, .length = 64, .deadline_ms = 500 },
	{ 0, DMP_OP_SEND, .length = 12, .deadline_ms = 500 },
	{ 0, PAUSE, 30, .length = 150 },	/* pings, late answers, the last grants */
	{ 1, DMP_OP_RECV, .length = 64, .expected = { -ECANCELED, -ECONNRESET } },
	{ 0, DRAIN, .length = 0 },
	{ 1, DRAIN, .length = 0 },
};

struct outcome {
	__u64 tag, deadline_ns;
	__s32 result;
	bool accepted, done;
};

struct play {
	struct conversation talk;
	struct outcome outcomes[STEPS];
	__u32 step, completions, received[2], sent[2], announced[2], written[2], last_event[2];
	__u32 lost[2];
	__u64 pause_until_ns, fatal_ns;
	bool fatal[2];		/* a fault that this side, OPEN, has to notice */
};

static const char *const kinds[FAULT_KINDS] = { "delay", "repeat", "drop", "late",
						 "swap", "damage", "cut", "silence" };

static struct play *playing;	/* for the report of a failure */
static bool passed;

static void report(void)
{
	__u32 i;

	if (passed || !playing)
		return;
	fprintf(stderr, "replay: test_faults %s %llu", playing->talk.direct ? "direct" : "stream",
		(unsigned long long)playing->talk.owner_ns);
	for (i = 0; i < playing->talk.fault_count; i++)
		fprintf(stderr, " %u %s", playing->talk.faults[i].number,
			kinds[playing->talk.faults[i].kind]);
	fprintf(stderr, "\n");
}

/* Faults that a fabric may have and nobody has to notice. */
static bool is_harmless(const struct play *play)
{
	__u32 i;

	for (i = 0; i < play->talk.fault_count; i++)
		if (play->talk.faults[i].kind > REPEAT)
			return false;
	return true;
}

static bool is_open(struct play *play, __u32 number)
{
	return state_of(&play->talk.side[number]) == DMP_ENDPOINT_OPEN;
}

/* ---- the user */

static void submit(struct play *play, __u32 number)
{
	const struct step *step = &script[number];
	struct side *side = &play->talk.side[step->side];
	struct outcome *outcome = &play->outcomes[number];
	struct dmp_endpoint_submission submission = {
		.operation = step->action,
		.user_data = number,
		.local = number,
		.length_bytes = step->length,
		.offset = step->cell,
		.immediate = step->action == DMP_OP_WRITE_IMM ? number : 0,
	};
	int error;

	if (step->action != DMP_OP_SEND && step->action != DMP_OP_RECV)
		submission.key_bytes = 16;
	if (step->bad_key)
		submission.key[0] = BAD_KEY;
	if (step->deadline_ms)
		submission.deadline_ns = play->talk.now_ns + step->deadline_ms * MS;
	side->buffers[number] = VALUE + number;
	if (step->action == DMP_OP_RECV || step->action == DMP_OP_READ)
		side->buffers[number] = 0;
	error = dmp_endpoint_submit(side->machine, play->talk.now_ns, &submission,
				    &outcome->tag);
	CHECK(error == (is_open(play, step->side) ? 0 : -ECONNRESET));
	outcome->accepted = !error;
	outcome->deadline_ns = submission.deadline_ns;
}

/* Before the last steps of a play that went well, nothing is owed to anybody. */
static void check_books(struct play *play)
{
	struct dmp_endpoint_status status[2];
	__u32 i;

	for (i = 0; i < 2; i++)
		dmp_endpoint_query(play->talk.side[i].machine, &status[i]);
	for (i = 0; i < 2; i++) {
		const struct dmp_credit *sender = &status[i].send;
		const struct dmp_credit *receiver = &status[!i].receive;

		CHECK(status[i].state == DMP_ENDPOINT_OPEN);
		CHECK(!status[i].operations && !status[i].zombies && !status[i].held);
		CHECK(!status[i].incoming && !status[i].staged && !status[i].unread);
		CHECK(!sender->in_flight.slots && !receiver->in_flight.slots);
		CHECK(sender->completed.slots == receiver->completed.slots);
		CHECK(sender->completed.bytes == receiver->completed.bytes);
		CHECK(sender->granted.slots == receiver->granted.slots);
		CHECK(sender->granted.bytes == receiver->granted.bytes);
	}
}

static void act(struct play *play)
{
	const struct step *step = &script[play->step];
	struct side *side = &play->talk.side[step->side];
	__u64 now_ns = play->talk.now_ns;

	if (play->step == SETTLED_STEP && is_harmless(play))
		check_books(play);
	switch (step->action) {
	case CANCEL:
		dmp_endpoint_cancel(side->machine, now_ns, play->outcomes[step->length].tag);
		break;
	case PAUSE:
		play->pause_until_ns = now_ns + step->length * MS;
		break;
	case DRAIN:
		dmp_endpoint_drain(side->machine, now_ns, 0);
		break;
	default:
		submit(play, play->step);
		take_requests(&play->talk, side);
		take_frames(&play->talk, side);
	}
	play->step += 1;
}

static bool continue_script(struct play *play)
{
	bool progress = false;

	while (play->step < STEPS && play->talk.now_ns >= play->pause_until_ns &&
	       play->completions >= script[play->step].after) {
		if (state_of(&play->talk.side[script[play->step].side]) < DMP_ENDPOINT_OPEN)
			break;
		act(play);
		progress = true;
	}
	return progress;
}

/* Success means that it did happen. */
static void check_success(struct play *play, __u32 number)
{
	const struct step *step = &script[number];
	struct side *side = &play->talk.side[step->side];
	struct side *peer = peer_of(&play->talk, side);
	__u32 from;

	switch (step->action) {
	case DMP_OP_SEND:
		play->sent[step->side] += 1;
		CHECK(play->sent[step->side] <= peer->arrived);
		break;
	case DMP_OP_RECV:	/* the next message of the peer, in the order of the script */
		for (from = side->buffers[number] - VALUE; from-- > 0;)
			if (script[from].side != step->side &&
			    script[from].action == DMP_OP_SEND)
				break;
		CHECK(play->received[step->side] == (from == ~0u ? 0 : from));
		play->received[step->side] = side->buffers[number] - VALUE;
		break;
	case DMP_OP_WRITE_IMM:
		play->written[step->side] += 1;
		CHECK(peer->cells[step->cell] == VALUE + number);
		break;
	case DMP_OP_WRITE:
		CHECK(!step->length || peer->cells[step->cell] == VALUE + number);
		break;
	default:
		CHECK(!step->length || side->buffers[number] == peer->cells[step->cell]);
	}
}

/* What was cancelled is over at the peer too (L5). */
static void check_cancelled(struct play *play, __u32 which, __u64 tag)
{
	const struct side *peer = &play->talk.side[!which];
	__u32 i;

	for (i = 0; i < peer->pendings; i++) {
		const struct dmp_endpoint_request *request = &peer->pending[i].request;

		CHECK(request->tag != tag || (request->kind != DMP_REQUEST_ADMIT &&
					      request->target != DMP_TARGET_REGION));
	}
}

static void complete(struct play *play, __u32 which,
		     const struct dmp_endpoint_completion *completion)
{
	__u32 number = (__u32)completion->user_data;
	const struct step *step = &script[number];
	struct outcome *outcome = &play->outcomes[number];
	__s32 result = completion->result;

	CHECK(step->side == which && outcome->accepted && !outcome->done);
	CHECK(completion->tag == outcome->tag);
	outcome->done = true;
	outcome->result = result;
	play->completions += 1;
	CHECK(!play->talk.side[which].touched[number]);
	CHECK(!outcome->deadline_ns ||
	      play->talk.now_ns <= outcome->deadline_ns + play->talk.owner_ns);
	if (result == -ECANCELED)
		check_cancelled(play, which, completion->tag);
	if (result == 0)
		check_success(play, number);
	if (result == step->expected[0] || result == step->expected[1])
		return;
	CHECK(!is_harmless(play));
	if (result == -ETIMEDOUT)
		CHECK(outcome->deadline_ns && play->talk.now_ns >= outcome->deadline_ns);
	else
		CHECK(result == -ECONNRESET && !is_open(play, which));
}

static bool read_completions(struct play *play, __u32 which)
{
	struct dmp_endpoint *machine = play->talk.side[which].machine;
	struct dmp_endpoint_completion completion;
	bool progress = false;

	while (!dmp_endpoint_next_completion(machine, &completion)) {
		complete(play, which, &completion);
		progress = true;
	}
	while (!dmp_endpoint_next_event(machine, play->talk.now_ns, &completion)) {
		progress = true;
		if (completion.operation == DMP_EVENT_ENDPOINT_LOST) {
			play->lost[which] += 1;
			continue;
		}
		CHECK(completion.operation == DMP_EVENT_WRITE_IMM && !play->lost[which]);
		CHECK(completion.immediate > play->last_event[which]);	/* in order, once */
		play->last_event[which] = completion.immediate;
		play->announced[which] += 1;
	}
	return progress;
}

/* ---- a play from the first HELLO to the end */

static bool is_over(struct play *play)
{
	return state_of(&play->talk.side[0]) == DMP_ENDPOINT_DEAD &&
	       state_of(&play->talk.side[1]) == DMP_ENDPOINT_DEAD;
}

static void watch_for_faults(struct play *play, __u32 before)
{
	__u32 i;

	for (i = 0; i < play->talk.fault_count; i++) {
		const struct fault *fault = &play->talk.faults[i];

		if (fault->number < before || fault->number >= play->talk.messages ||
		    fault->kind <= REPEAT || play->fatal_ns)
			continue;
		play->fatal_ns = play->talk.now_ns;
		if (play->step >= SETTLED_STEP || !is_open(play, 0) || !is_open(play, 1))
			continue;
		play->fatal[fault->victim] = true;
		if (fault->kind >= CUT)
			play->fatal[!fault->victim] = true;
	}
}

static void do_what_is_due(struct play *play)
{
	struct conversation *talk = &play->talk;
	bool progress = true;

	while (progress) {
		__u32 i, before = talk->messages;

		progress = continue_script(play);
		for (i = 0; i < 2; i++) {
			progress |= turn(talk, &talk->side[i]);
			progress |= read_completions(play, i);
		}
		watch_for_faults(play, before);
		if (talk->cut) {
			lose(talk, &talk->side[0]);
			lose(talk, &talk->side[1]);
		}
		for (i = 0; i < 2; i++) {
			if (state_of(&talk->side[i]) == DMP_ENDPOINT_DEAD)
				close_side(talk, &talk->side[i]);
			progress |= read_completions(play, i);
		}
	}
}

static void check_end(struct play *play)
{
	__u64 start_ns = 1000 * MS, last_ns = start_ns + GREETING_NS;
	__u32 number, i;

	for (number = 0; number < STEPS; number++)
		CHECK(play->outcomes[number].accepted == play->outcomes[number].done);
	for (i = 0; i < 2; i++) {
		struct dmp_endpoint_status status;

		dmp_endpoint_query(play->talk.side[i].machine, &status);
		CHECK(status.reason == 0 || status.reason == -ECONNRESET ||
		      status.reason == -ETIMEDOUT || status.reason == -EPROTO);
		CHECK(!status.operations && !status.zombies && !status.held && !status.unread);
		CHECK(play->announced[!i] >= play->written[i]);	/* what was said has been heard */
		CHECK(play->lost[i] <= 1);
		if (play->fatal[i])
			CHECK(status.reason != 0 && play->lost[i] == 1);
		if (is_harmless(play))
			CHECK(status.reason == 0 && play->lost[i] == 1 && play->step == STEPS);
	}
	if (play->fatal_ns > last_ns)
		last_ns = play->fatal_ns;
	if (play->fatal_ns)
		CHECK(play->talk.now_ns <= last_ns + LATE_NS + 2 * DETECT_NS);
}

static void run(struct play *play)
{
	static const struct dmp_endpoint_config limits = {
		.window_slots = 2, .window_bytes = 64, .detect_ns = DETECT_NS,
		.operations_max = 10, .receives_max = 6, .incoming_max = 10,
	};
	struct conversation *talk = &play->talk;
	struct dmp_endpoint_config config = limits;

	playing = play;
	config.unchecked = talk->direct;
	begin(talk, &config);
	talk->side[1].cells[3] = 333;
	for (;;) {
		__u64 next_ns;

		do_what_is_due(play);
		if (is_over(play))
			break;
		next_ns = next_event(talk);
		if (play->pause_until_ns > talk->now_ns && play->pause_until_ns < next_ns)
			next_ns = play->pause_until_ns;
		CHECK(next_ns > talk->now_ns && next_ns < 3000 * MS);
		talk->now_ns = next_ns;
		dmp_endpoint_tick(talk->side[0].machine, next_ns);
		dmp_endpoint_tick(talk->side[1].machine, next_ns);
	}
	check_end(play);
	free(talk->side[0].memory);
	free(talk->side[1].memory);
}

/* ---- all plays */

static __u32 plays, noticed;

/* Returns how many messages there were. */
static __u32 play_with(const struct conversation *start)
{
	static struct play play;

	memset(&play, 0, sizeof(play));
	play.talk = *start;
	run(&play);
	plays += 1;
	noticed += play.fatal[0] || play.fatal[1];
	return play.talk.messages;
}

/* All that can become of message @number and, up to @most faults, of each after it. */
static void play_from(struct conversation *start, __u32 number, __u32 most)
{
	struct fault *fault = &start->faults[start->fault_count++];
	__u32 kind, messages, next;

	for (kind = 0; kind < FAULT_KINDS; kind++) {
		if (kind == DAMAGE && start->direct)
			continue;	/* its bytes cannot flip */
		*fault = (struct fault){ number, (enum fault_kind)kind, 0 };
		messages = play_with(start);
		for (next = number + 1; start->fault_count < most && next < messages; next++)
			play_from(start, next, most);
	}
	start->fault_count -= 1;
}

static void test_every_message_with_every_fault(bool direct, __u64 owner_ns, __u32 most)
{
	struct conversation start = { .direct = direct, .owner_ns = owner_ns };
	__u32 messages = play_with(&start), number;

	plays = noticed = 0;
	for (number = 0; number < messages; number++)
		play_from(&start, number, most);
	printf("%s, up to %u faults: %u messages, %u plays, %u with a fault to notice\n",
	       direct ? "direct" : "stream", most, messages, plays, noticed);
}

static void replay(int argc, char **argv)
{
	struct conversation start = { .direct = !strcmp(argv[1], "direct"),
				      .owner_ns = strtoull(argv[2], NULL, 0) };
	__u32 kind;
	int i;

	for (i = 3; i + 1 < argc && start.fault_count < 2; i += 2) {
		for (kind = 0; kind < FAULT_KINDS - 1 && strcmp(kinds[kind], argv[i + 1]);)
			kind++;
		start.faults[start.fault_count].number = (__u32)atoi(argv[i]);
		start.faults[start.fault_count++].kind = (enum fault_kind)kind;
	}
	play_with(&start);
}

int main(int argc, char **argv)
{
	atexit(report);
	if (argc > 2) {
		replay(argc, argv);
	} else {
		test_every_message_with_every_fault(false, MS, 2);
		test_every_message_with_every_fault(true, MS, 2);
		test_every_message_with_every_fault(false, 0, 1);
		test_every_message_with_every_fault(true, 0, 1);
	}
	passed = true;
	return 0;
}
