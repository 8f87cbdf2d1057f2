# SPDX-License-Identifier: MIT
"""Negative controls: break one law in the source, and see that a test notices.

A simulator that never fails proves nothing. Each mutant below is a small edit of one core file
that breaks a law; core is compiled with it into a temporary directory, and the named program must
fail. The unchanged source must pass the same programs, and every edit must still apply, so a
mutant cannot go stale unseen.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "core"
TESTS = ROOT / "tests" / "core"
COMPILER = os.environ.get("CC", "gcc")
FLAGS = ["-std=gnu11", "-O1", f"-I{ROOT / 'include/uapi'}", f"-I{CORE}", f"-I{TESTS}"]
SEEDS = "1000"
TIMEOUT_SECONDS = 120


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    edits: tuple[tuple[str, str], ...]
    caught_by: str = "simulate"


def mutant(name: str, file: str, old: str, new: str, caught_by: str = "simulate") -> Mutant:
    return Mutant(name, file, ((old, new),), caught_by)


IGNORE_STALE_GRANT = "	if (grant->epoch != ledger->epoch)\n		return -ESTALE;\n"
UNTOLD = "(ledger->granted.slots - ledger->completed.slots);"

MUTANTS = (
    # L2: the ledger
    mutant(
        "grants_add_up_instead_of_counting_once",
        "credit.c",
        "	ledger_raise(ledger, &grant->total);\n",
        "	ledger->granted.slots += grant->total.slots;\n"
        "	ledger->granted.bytes += grant->total.bytes;\n"
        "	ledger->available.slots += grant->total.slots;\n"
        "	ledger->available.bytes += grant->total.bytes;\n",
    ),
    mutant("grant_of_another_epoch_counts", "credit.c", IGNORE_STALE_GRANT, "", "test_credit"),
    mutant(
        "late_grant_is_taken_for_a_new_one",
        "credit.c",
        "	if (grant->sequence < ledger->sequence)\n		return 0;\n",
        "",
        "test_credit",
    ),
    mutant("grant_beyond_the_window", "credit.c", UNTOLD, UNTOLD.replace(";", " + 1;")),
    mutant(
        "send_without_credit",
        "inflight.c",
        "if (dmp_credit_take(&endpoint->sender, operation->charge_bytes)) {",
        "if (dmp_credit_take(&endpoint->sender, operation->charge_bytes) && !now_ns) {",
    ),
    mutant(
        "answered_credit_is_not_settled",
        "inflight.c",
        "		dmp_credit_complete(&endpoint->sender, operation->charge_bytes);",
        "		(void)endpoint;",
    ),
    mutant(
        "credit_of_a_refused_write_is_lost",
        "incoming.c",
        "		if (from->result)\n			dmp_incoming_release(endpoint, now_ns,"
        " incoming->charge_bytes);\n		else\n",
        "		if (!from->result)\n",
    ),
    mutant(
        "unsent_credit_is_not_returned",
        "inflight.c",
        "	if (operation->charged && dmp_endpoint_is_up(endpoint))",
        "	if (operation->charged && !dmp_endpoint_is_up(endpoint))",
    ),
    # L1: exactly one completion, in time
    mutant(
        "acceptance_reserves_nothing",
        "acceptance.c",
        "	if (endpoint->reserved >= endpoint->slots)\n		return -EAGAIN;\n",
        "",
    ),
    mutant(
        "late_answer_completes_again",
        "inflight.c",
        "	if (operation->state == OPERATION_ZOMBIE) {\n		bury(endpoint, index);\n"
        "		return 0;\n	}\n	operation->state = OPERATION_FINISHED;\n"
        "	dmp_inflight_decide(",
        "	if (operation->state == OPERATION_ZOMBIE) {\n		deliver(endpoint, index);\n"
        "		bury(endpoint, index);\n"
        "		return 0;\n	}\n	operation->state = OPERATION_FINISHED;\n"
        "	dmp_inflight_decide(",
    ),
    mutant(
        "deadline_is_late",
        "liveness.c",
        "	       deadline_ns <= now_ns) {",
        "	       deadline_ns + 2000000 <= now_ns) {",
    ),
    mutant(
        "slot_is_reused_before_the_answer",
        "inflight.c",
        "if (operation->state == OPERATION_SENT && dmp_endpoint_is_up(endpoint)) {",
        "if (operation->state == OPERATION_SENT && !dmp_endpoint_is_up(endpoint)) {",
    ),
    mutant(
        "end_of_connection_forgets_what_waits",
        "inflight.c",
        "		dmp_inflight_decide(endpoint, index, -ECONNRESET, 0);\n",
        "		if (operation->sending || operation->charged)\n			dmp_inflight_decide("
        "endpoint, index, -ECONNRESET, 0);\n",
    ),
    # L5: a completion means that nothing touches the buffer
    mutant(
        "held_buffer_is_completed",
        "inflight.c",
        "	if (!operation->decided || operation->held)\n",
        "	if (!operation->decided)\n",
    ),
    mutant(
        "cancel_does_not_wait_for_the_peer",
        "inflight.c",
        "		ask_cancel(endpoint, index);\n		return 0;\n	}\n	finish(endpoint, index,"
        " -ECANCELED);",
        "		finish(endpoint, index, -ECANCELED);\n		return 0;\n	}\n"
        "	finish(endpoint, index, -ECANCELED);",
    ),
    mutant(
        "response_lands_in_a_buffer_given_back",
        "inflight.c",
        "		.target = DMP_TARGET_DISCARD,",
        "		.target = DMP_TARGET_LOCAL,",
    ),
    mutant(
        "timed_out_receive_is_still_filled",
        "incoming.c",
        "		placing->target = DMP_TARGET_STAGE;\n	}\n}",
        "		placing->target = DMP_TARGET_LOCAL;\n	}\n}",
    ),
    mutant(
        "cut_does_not_wait_for_the_owner",
        "inflight.c",
        "		detach(endpoint, index);\n		operation->state = OPERATION_FINISHED;",
        "		dmp_inflight_let_go(endpoint, index);\n		detach(endpoint, index);\n"
        "		operation->state = OPERATION_FINISHED;",
    ),
    mutant(
        "answer_to_a_move_is_lost_at_the_end",
        "inflight.c",
        "	if (!operation || !operation->moving || !operation->held)",
        "	if (!operation || operation->state != OPERATION_MOVING || !operation->held)",
    ),
    # L7: nothing stale is honoured
    mutant(
        "another_epoch_is_honoured",
        "endpoint.c",
        "	return endpoint->peer_incarnation && frame->epoch == endpoint->epoch &&\n",
        "	return endpoint->peer_incarnation &&\n",
    ),
    mutant(
        "another_incarnation_is_honoured",
        "endpoint.c",
        "	       frame->incarnation == endpoint->peer_incarnation &&\n",
        "",
    ),
    mutant(
        "frame_to_another_incarnation_is_honoured",
        "endpoint.c",
        " &&\n	       frame->destination == endpoint->config.incarnation;",
        ";",
    ),
    mutant(
        "new_incarnation_displaces_a_live_one",
        "handshake.c",
        "	dmp_endpoint_break(endpoint, -ECONNRESET);\n	return -EBUSY;",
        "	return accept_hello(endpoint, now_ns, frame);",
    ),
    mutant(
        "welcome_to_another_hello_is_honoured",
        "handshake.c",
        "	    frame->destination != endpoint->config.incarnation ||\n"
        "	    welcome->hello_incarnation != endpoint->config.incarnation ||\n"
        "	    !same_bytes(welcome->hello_nonce, endpoint->hello.nonce, DMP_WIRE_NONCE_BYTES))",
        "	    !welcome->hello_incarnation)",
    ),
    mutant(
        "wrong_proof_is_let_in",
        "handshake.c",
        "	if (answer->result) {\n		refuse(",
        "	if (answer->result > 0) {\n		refuse(",
    ),
    # the failure model
    Mutant(
        "repeated_frame_is_honoured",
        "endpoint.c",
        (
            ("	if (frame.sequence <= endpoint->sequence_in) {", "	if (!frame.sequence) {"),
            ("	if (frame.sequence != endpoint->sequence_in + 1)", "	if (!frame.sequence)"),
        ),
    ),
    mutant(
        "gap_is_not_noticed",
        "endpoint.c",
        "	if (frame.sequence != endpoint->sequence_in + 1)",
        "	if (!frame.sequence)",
    ),
    mutant(
        "silence_is_not_noticed",
        "liveness.c",
        "	if (now_ns >= endpoint->heard_ns + endpoint->config.detect_ns) {",
        "	if (now_ns >= endpoint->heard_ns + 4 * endpoint->config.detect_ns) {",
    ),
    mutant(
        "damaged_frame_is_believed",
        "wire.c",
        "	if ((__u32)walk(&at, 0, 4) != (checked ? frame_checksum(bytes, expected) : 0))",
        "	if (walk(&at, 0, 4) > 0xffffffffU)",
    ),
    mutant(
        "messages_overtake_each_other",
        "incoming.c",
        "	if (!endpoint->staged.count && !endpoint->copying)\n		index =",
        "	if (true)\n		index =",
    ),
    # L2: the completion ring of a channel
    mutant(
        "event_takes_a_reserved_slot",
        "channel.c",
        "	__u32 taken = channel->in_flight + channel->events_written;\n",
        "	__u32 taken = channel->events_written;\n",
        "test_channel",
    ),
    mutant(
        "event_is_overwritten_before_it_is_told",
        "channel.c",
        "channel->complete.own + channel->written + channel->events_written;",
        "channel->complete.own + channel->written;",
        "test_channel",
    ),
    mutant(
        "acceptance_takes_the_slots_of_events",
        "channel.c",
        "channel->events_written + channel->events_reserved;",
        "channel->events_written;",
        "test_channel",
    ),
    # parked operations
    mutant(
        "fence_passes_a_parked_operation",
        "channel.c",
        "	       (channel->running == 0 && channel->parked == 0);\n",
        "	       channel->running == 0;\n",
        "test_channel",
    ),
    mutant(
        "parked_operation_loses_its_cancel",
        "channel.c",
        "	if (channel->operations[index].cancel)\n		return -ECANCELED;\n",
        "",
        "test_channel",
    ),
    mutant(
        "cancelled_operation_stays_in_its_lane",
        "channel.c",
        "	if (lane) {\n		extract(channel,",
        "	if (lane && operation->state == DMP_OPERATION_FREE) {\n		extract(channel,",
        "test_channel",
    ),
    # L5: MOVE and COPY
    mutant(
        "what_we_have_copied_in_part_counts_as_the_devices",
        "errand.c",
        "errand->posted > errand->done",
        "errand->posted != errand->done",
        "test_errand",
    ),
    mutant(
        "what_a_device_has_is_let_go",
        "errand.c",
        "errand->tag == tag && is_under_way(errand)",
        "errand->tag == tag && errand->result",
        "test_errand",
    ),
    mutant(
        "failed_errand_is_over_while_the_device_has_part_of_it",
        "errand.c",
        "!is_under_way(errand) &&\n",
        "!errand->stopped &&\n",
        "test_errand",
    ),
    mutant(
        "stopped_errand_is_answered_as_done",
        "errand.c",
        "errand->stopped && errand->done != errand->length",
        "errand->stopped && !errand->done",
        "test_errand",
    ),
    # L12: what is granted over RDMA
    mutant(
        "grant_reaches_behind_the_region",
        "rdma.c",
        "grant->covered > grant->length - from",
        "grant->covered > grant->length",
        "test_rdma",
    ),
    mutant(
        "word_repays_more_than_was_sent",
        "rdma.c",
        "word >> 32 || emptied - *repaid > sent - *repaid",
        "word >> 32",
        "test_rdma",
    ),
    # L5: who revokes waits for what is under way, and not for long
    mutant(
        "more_is_under_way_than_comes_back_in_time",
        "rdma.c",
        "took_ns > SLOW_NS && bytes > DMP_RDMA_PIECE_BYTES",
        "0",
        "test_rdma",
    ),
)

PROGRAMS = ("simulate", "test_credit", "test_channel", "test_errand", "test_rdma")


def compile_one(source: Path, target: Path) -> Path:
    command = [COMPILER, *FLAGS, "-c", str(source), "-o", str(target)]
    subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT_SECONDS)
    return target


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Everything compiled once as it is, so that a mutant costs one file and a link."""
    directory = tmp_path_factory.mktemp("objects")
    mains = {TESTS / f"{program}.c" for program in PROGRAMS}
    sources = [*CORE.glob("*.c"), *{*TESTS.glob("simul*.c"), *mains}]
    return {path.name: compile_one(path, directory / f"{path.stem}.o") for path in sources}


def link(directory: Path, program: str, objects: dict[str, Path]) -> Path:
    mains = {f"{name}.c" for name in PROGRAMS} - {f"{program}.c"}
    parts = [str(path) for name, path in sorted(objects.items()) if name not in mains]
    target = directory / program
    subprocess.run([COMPILER, *parts, "-o", str(target)], check=True, timeout=TIMEOUT_SECONDS)
    return target


def run(program: Path, seeds: str) -> subprocess.CompletedProcess[str]:
    command = [str(program)]
    if program.name == "simulate":
        command += ["--seeds", seeds, "--steps", "1000"]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)


pytestmark = pytest.mark.skipif(
    shutil.which(COMPILER) is None, reason=f"no C compiler: {COMPILER} is not on the path"
)


@pytest.mark.parametrize("program", PROGRAMS)
def test_unchanged_core_passes(program: str, tmp_path: Path, objects: dict[str, Path]) -> None:
    result = run(link(tmp_path, program, objects), seeds="100")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("broken", MUTANTS, ids=lambda broken: broken.name)
def test_broken_law_is_noticed(broken: Mutant, tmp_path: Path, objects: dict[str, Path]) -> None:
    text = (CORE / broken.file).read_text()
    for old, new in broken.edits:
        assert text.count(old) == 1, f"edit applies {text.count(old)} times to {broken.file}"
        text = text.replace(old, new)
    source = tmp_path / broken.file
    source.write_text(text)
    changed = {**objects, broken.file: compile_one(source, tmp_path / "mutant.o")}
    result = run(link(tmp_path, broken.caught_by, changed), SEEDS)
    assert result.returncode != 0, f"{SEEDS} seeds and no law was seen broken"
    print(result.stdout.splitlines()[:1] or result.stderr.splitlines()[:1])
