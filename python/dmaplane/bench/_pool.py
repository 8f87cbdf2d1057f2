# SPDX-License-Identifier: MIT
"""The system's pool of huge pages: grown for a bench where that is allowed, and put back."""

from __future__ import annotations

import contextlib
import pathlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_HUGE_POOL: Final = "/sys/kernel/mm/hugepages/hugepages-{kib}kB/nr_hugepages"


@contextlib.contextmanager
def huge_pages(length_bytes: int, page_bytes: int) -> Iterator[str | None]:
    """Enough huge pages for @length_bytes, as the pool was afterwards; else the reason."""
    pool = pathlib.Path(_HUGE_POOL.format(kib=page_bytes >> 10))
    wanted = -(-length_bytes // page_bytes)
    try:
        had = int(pool.read_text(encoding="ascii"))
        free = int(pool.with_name("free_hugepages").read_text(encoding="ascii"))
    except OSError:
        yield "this kernel has no pool of huge pages"
        return
    if free >= wanted:
        yield None
        return
    try:
        pool.write_text(str(had + wanted - free), encoding="ascii")
    except OSError as error:
        yield (
            f"{free} huge pages are free, {wanted} are needed, and the pool may not be changed "
            f"by this user ({error.strerror}): sysctl vm.nr_hugepages={had + wanted - free}"
        )
        return
    try:
        free = int(pool.with_name("free_hugepages").read_text(encoding="ascii"))
        yield None if free >= wanted else f"memory has room for only {free} huge pages"
    finally:
        pool.write_text(str(had), encoding="ascii")
