# SPDX-License-Identifier: MIT
"""The conformance suite: what any plane must do, whoever serves it.

    from dmaplane import testing
    testing.check_plane(lambda: dmaplane.open(plane="embedded"))

or, one test per case:

    @pytest.mark.parametrize("case", testing.cases(), ids=str)
    def test_conformance(case):
        case.run(make_plane)

One module per group of laws (docs/laws.md). A case asks for what it needs by
capability, never by the name of a plane; a plane that lacks it raises
MissingCapability, which pytest shows as a skip with that reason. Cases speak the
contract: structs, rings and errno, with as little of the Python API between as
possible. They fork children, which open planes of their own.
"""

from dmaplane.testing._case import Case, MissingCapability, Report, cases, check_plane

__all__ = ["Case", "MissingCapability", "Report", "cases", "check_plane"]
