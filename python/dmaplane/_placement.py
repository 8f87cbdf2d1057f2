# SPDX-License-Identifier: MIT
"""Where memory is wanted, and where it was found.

`chosen_kind` and `chosen_place` turn what a caller asked for into what the contract
knows, and refuse contradictions; a Placement is the plane's answer. Nothing here owns
memory, and nothing asks the plane.
"""

from __future__ import annotations

import dataclasses
import types
from typing import TYPE_CHECKING, Final, Literal

from dmaplane._errors import InvalidError
from dmaplane._plane import mask_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dmaplane import _abi

Kind = Literal["pages", "huge", "coherent", "user", "imported", "peer"]
Policy = Literal["any", "prefer", "bind", "interleave"]
Verification = Literal["unknown", "counted", "single"]

KINDS: Final[tuple[Kind, ...]] = ("pages", "huge", "coherent", "user", "imported", "peer")
POLICIES: Final[tuple[Policy, ...]] = ("any", "prefer", "bind", "interleave")
VERIFICATIONS: Final[tuple[Verification, ...]] = ("unknown", "counted", "single")


@dataclasses.dataclass(frozen=True, slots=True)
class Placement:
    """Where the pages of a buffer are (L6)."""

    nodes: Mapping[int, int]
    """Node -> pages on it."""
    page_bytes: int
    pages: int
    misplaced: int
    """Pages that are not where the policy wants them."""
    verified: Verification
    """"counted": asked page by page; "single": the machine has one node; "unknown"."""

    def __str__(self) -> str:
        where = ", ".join(f"node {node}: {pages}" for node, pages in self.nodes.items()) or "?"
        return (
            f"{self.pages} pages of {self.page_bytes >> 10} KiB ({where}; "
            f"{self.misplaced} misplaced, {self.verified})"
        )


def placement_of(answer: _abi.BufferQuery) -> Placement:
    """What BUFFER_QUERY said about the pages."""
    nodes = {node: pages for node, pages in enumerate(answer.node_pages) if pages}
    return Placement(
        nodes=types.MappingProxyType(nodes),
        page_bytes=answer.page_bytes,
        pages=answer.pages,
        misplaced=answer.pages_misplaced,
        verified=VERIFICATIONS[answer.placement],
    )


def chosen_kind(kind: Kind | None, huge: Literal["prefer", "require"] | None, user: object) -> Kind:
    """The kind asked for, by name or by what else was given."""
    if kind is not None and kind not in KINDS:
        raise InvalidError("kind", f"{kind!r} is none", fix=f"one of {', '.join(KINDS)}")
    if kind == "imported":
        raise InvalidError("kind", "imported buffers are not created", fix="plane.import_buffer()")
    if huge not in (None, "prefer", "require"):
        raise InvalidError("huge", f"{huge!r} is none", fix='"prefer", "require" or None')
    if huge is not None and kind not in (None, "huge"):
        raise InvalidError("huge", f"contradicts kind {kind!r}", fix="leave kind out")
    if user is None and kind == "user":
        raise InvalidError("user", "kind user is missing its memory", fix="give user= alone")
    if user is not None:
        if kind not in (None, "user") or huge is not None:
            raise InvalidError("user", "this memory already has its pages", fix="give user= alone")
        return "user"
    return "huge" if huge is not None else kind or "pages"


def chosen_place(
    node: int | None, nodes: Iterable[int] | None, policy: Policy | None, strict: bool
) -> tuple[Policy, int, int]:
    """The policy asked for, the node it prefers or -1, and the mask of nodes it names."""
    if policy is not None and policy not in POLICIES:
        raise InvalidError("policy", f"{policy!r} is none", fix=f"one of {', '.join(POLICIES)}")
    if node is not None and nodes is not None:
        raise InvalidError("node, nodes", "both are given", fix="one node, or several")
    mask = mask_of(nodes) if nodes is not None else 0
    if nodes is not None and not mask:
        raise InvalidError("nodes", "it names no node", fix="at least one")
    if nodes is not None:
        if policy not in (None, "bind", "interleave"):
            raise InvalidError("policy", f"{policy!r} takes no nodes", fix="bind or interleave")
        return policy or "bind", -1, mask
    if node is not None:
        single = mask_of([node])
        if policy in ("bind", "interleave") or (policy is None and strict):
            return policy or "bind", -1, single
        if policy == "any":
            raise InvalidError("policy", "any takes no node", fix="leave policy out")
        return "prefer", node, 0
    if policy not in (None, "any"):
        raise InvalidError("node", f"policy {policy!r} names none", fix="give node= or nodes=")
    return "any", -1, 0
