# SPDX-License-Identifier: MIT
"""Ask for a node, and have it proved; or be refused."""

import dmaplane

with dmaplane.open() as plane:
    node = plane.topology().nodes[0]
    with plane.buffer(16 << 20, node=node.node, strict=True) as buffer:
        print(buffer.recheck())
        assert buffer.placement.misplaced == 0
    try:
        plane.buffer(4096, node=63, strict=True)
    except dmaplane.DmaplaneError as error:
        print(f"node 63: {type(error).__name__}")
