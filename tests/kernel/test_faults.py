# SPDX-License-Identifier: MIT
"""Every allocation and every user copy fails once, and then everything after it.

sweep.c runs each of the sequences of calls in sequences.c with one more failure ahead each
time. On kernels without fault injection there is nothing to inject with; on the debug
kernel a skip is a failure.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import attack
import pytest

SOURCE = Path(__file__).with_name("sequences.c").read_text()
SEQUENCES = re.findall(r'^\t\{ "([a-z-]+)", ', SOURCE, re.MULTILINE)
# What these do allocates nothing, or cannot be refused.
NEVER_REFUSED = {"close"}


def test_the_sequences_were_found() -> None:
    assert len(SEQUENCES) >= 15


@pytest.mark.parametrize("sequence", SEQUENCES)
@pytest.mark.timeout(1200)
def test_no_failure_leaves_anything(program: Callable[[str], Path], sequence: str) -> None:
    if not attack.IS_DEBUG:
        pytest.skip("this kernel has no fault injection (CONFIG_FAULT_INJECTION)")
    attack.modprobe("udmabuf", "vgem")
    said = attack.run(program("sweep"), sequence)
    assert "not here" not in said, "the debug kernel has udmabuf, vgem and the system heap"
    counts = re.findall(rf"{sequence}: (\w+): (\d+) runs, (\d+) refused", said)
    assert [manner for manner, _, _ in counts] == ["nth", "pages", "slab"]
    if sequence not in NEVER_REFUSED:
        assert int(counts[0][2]) > 0, "no failure was ever felt"
