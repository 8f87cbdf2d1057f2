# SPDX-License-Identifier: MIT
"""Which fabric the embedded plane takes between two machines when it is not told."""

from __future__ import annotations

from meeting import RDMA_DEVICE, bring_rdma_up, meet
from puppet import Puppet
from twins import Pair

from dmaplane import _abi


def test_without_being_asked_verbs_is_taken_where_both_have_it(pair: Pair) -> None:
    """And tcp where the other one has no device; what is written arrives by either."""
    bring_rdma_up(pair)
    near, far = (Puppet(node) for node in pair.nodes)
    assert meet(near, far)["path"] == _abi.PATH_VERBS
    near.do("scramble", seed=6)
    assert near.do("run", kind="write", size=4096) == [0]
    assert far.do("checksum", size=4096) == near.do("checksum", size=4096)
    assert near.do("close") == [0, 0]
    near.kill()
    far.kill()
    far.node.shell(f"rdma link delete {RDMA_DEVICE}")
    assert meet(near, far)["path"] == _abi.PATH_TCP
    assert near.do("run", kind="write", size=4096) == [0]
    assert far.do("checksum", size=4096) == near.do("checksum", size=4096)
