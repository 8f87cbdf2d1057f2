# SPDX-License-Identifier: MIT
"""`python -m dmaplane.cli` is `dmaplane`."""

from dmaplane.cli import main

if __name__ == "__main__":
    main()
