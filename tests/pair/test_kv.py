# SPDX-License-Identifier: MIT
"""A KV cache crosses between two machines, and the tokens are those of one process.

The demo itself, small: its prefill server on one machine, all the rest on the other. It fails by
itself unless every token is the same, and unless one zeroed block would have changed them.
"""

from __future__ import annotations

import json
import sys

import pytest
from meeting import SECRET, Carrier
from puppet import Puppet

PICTURE = "/run/kv-demo.png"
ENGINE = ("layers=3", "hidden=64", "heads=4", "kv_heads=2", "head_size=16", "inner=96")
REQUESTS = 2
LIMIT_S = 280.0


@pytest.mark.parametrize(
    "carrier", [Carrier("tcp"), Carrier("verbs", "kernel", "kernel")], indirect=True, ids=str
)
def test_demo_gives_the_tokens_of_one_process(near: Puppet, far: Puppet) -> None:
    shared = [word for setting in ENGINE for word in ("--set", setting)]
    shared += ["--require", str(near.fabric)]
    program = ("env", f"DMAPLANE_SECRET={SECRET}", sys.executable, "-m", "dmaplane.cli")
    where = ("--listen", f"{far.node.address.ip}:0", "--plane", far.plane)
    server = far.node.start(*program, "kv", "prefill", *where, "--blocks", "64", "--json", *shared)
    bound = json.loads(server.line(far.node.patience_s))["address"]
    numbers = ("--requests", str(REQUESTS), "--prompt-tokens", "48", "--max-tokens", "32")
    status, said = near.node.run(
        *(*program, "demo", "--peer", bound, "--plane", near.plane, "--picture", PICTURE),
        *(*numbers, "--json", *shared),
        timeout_s=LIMIT_S,
    )
    assert status == 0, said[-4000:]
    outcome = json.loads(said[said.index("{") :])
    assert outcome["tokens_identical"] is True
    assert (outcome["requests"], outcome["path"]) == (REQUESTS, near.fabric)
    assert outcome["plane"] == near.plane
    assert outcome["bytes"] > 0
