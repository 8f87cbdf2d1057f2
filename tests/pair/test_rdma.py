# SPDX-License-Identifier: MIT
"""RDMA between two kernels: Soft-RoCE on the cable, before anything of ours uses it."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from meeting import RDMA_MODULES, bring_rdma_up
from node import Node
from twins import Pair

PORT = 18515
LISTENS = f":{PORT:04X} [0-9A-F]*:0000 0A"
SIZES = (65536, 4096)
ROUNDS = 40
UNTIL = "until grep -q {} /sys/class/infiniband/rxe0/ports/1/state; do sleep 0.1; done"


def _doctor(node: Node) -> dict[str, dict[str, str]]:
    """What doctor says there, by check."""
    said = json.loads(node.fork("puppets", "examine").line(node.patience_s))
    return {check["name"]: check for check in said["checks"]}


@pytest.fixture
def rdma(pair: Pair) -> Pair:
    """rxe0 on the wire of both, and perftest to try it."""
    if not shutil.which("ib_write_bw"):
        pytest.skip("missing-tool: ib_write_bw")
    bring_rdma_up(pair)
    return pair


def test_doctor_explains_the_way_to_rdma(pair: Pair) -> None:
    """Nothing loaded, a device, a cable that is out, a small MTU: each time what is wrong."""
    node = pair.nodes[0]
    if node.run("modprobe", "-n", "rdma_rxe")[0]:
        pytest.skip("missing-kernel-feature: rdma_rxe")
    found = _doctor(node)
    if "rxe0" not in node.run("rdma", "link", "show")[1]:
        assert found["rdma"]["verdict"] == "lack"
        assert "rdma link add rxe0 type rxe netdev wire" in found["rdma"]["fix"]
        for module in RDMA_MODULES:
            node.shell(f"modprobe {module}")
        node.shell("rdma link add rxe0 type rxe netdev wire")
        found = _doctor(node)
    every = {name: check for name, check in found.items() if name.startswith("rdma")}
    assert {check["verdict"] for check in every.values()} == {"ok"}, every
    assert "4096" in found["rdma-mtu"]["finding"]
    assert node.address.ip in found["rdma-gids"]["finding"]
    try:
        node.shell("ip link set wire mtu 1500; ip address flush dev wire")
        node.plug(False)
        node.shell(UNTIL.format("DOWN"))
        found = _doctor(node)
        node.plug(True)
        node.shell(UNTIL.format("ACTIVE"))
        up = _doctor(node)
    finally:
        node.shell(f"ip link set wire mtu 4200; ip address add {node.address.ip}/24 dev wire")
    assert found["rdma"]["verdict"] == "lack"
    assert "ip link set wire up" in found["rdma"]["fix"]
    assert up["rdma"]["verdict"] == "ok"
    assert up["rdma-mtu"]["verdict"] == "warn"
    assert "1024" in up["rdma-mtu"]["finding"]
    assert up["rdma-gids"]["verdict"] != "ok"


@pytest.mark.parametrize("size", SIZES)
def test_perftest_runs_between_the_machines(
    rdma: Pair, size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """ib_write_bw of perftest, 1 to 2; its figure is printed and not judged."""
    one, two = rdma.nodes
    words = ["ib_write_bw", "-d", "rxe0", "-F", "-x", "1", "-p", str(PORT)]
    words += ["-s", str(size), "-n", str(ROUNDS * 65536 // size)]
    server = two.start(*words)
    two.shell(f"until cat /proc/net/tcp /proc/net/tcp6 | grep -q '{LISTENS}'; do sleep 0.1; done")
    status, said = one.run(*words, two.address.ip)
    assert status == 0, said
    assert server.wait(two.patience_s) == 0, list(server.lines)
    row = re.search(rf"^ *{size} +(\d+) +([\d.]+) +([\d.]+)", said, re.MULTILINE)
    assert row, said
    with capsys.disabled():
        print(f" ib_write_bw, {row[1]} x {size} bytes: {float(row[3])} MB/s", end=" ")
