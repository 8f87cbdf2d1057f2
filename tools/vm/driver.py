# SPDX-License-Identifier: MIT
"""The module under test, as a machine's administrator handles it: load, look at, unload."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path


class Driver:
    """One module, from its file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.stem.replace("-", "_")
        self.folder = Path("/sys/module") / self.name

    @property
    def loaded(self) -> bool:
        return (self.folder / "refcnt").exists()

    @property
    def users(self) -> int:
        """References others hold on it: open files, exports, modules."""
        return int((self.folder / "refcnt").read_text()) if self.loaded else 0

    def parameter(self, name: str) -> str:
        return (self.folder / "parameters" / name).read_text().strip()

    def load(self, *parameters: str) -> None:
        """Loads it after what it depends on. CalledProcessError, with why, if it refuses."""
        shown = self._run("modinfo", "-F", "depends", str(self.path))
        for name in shown.strip().split(","):
            # What is there may be one of ours, which modprobe does not know.
            if name and not Path("/sys/module", name).exists():
                self._run("modprobe", name)
        self._run("insmod", str(self.path), *parameters)

    def unload(self) -> None:
        """Unloads it. CalledProcessError, with why, if it is in use."""
        self._run("rmmod", self.name)

    def wait_users(self, most: int, timeout_s: float) -> bool:
        """True as soon as it has at most so many users."""
        end = time.monotonic() + timeout_s
        while self.users > most:
            if time.monotonic() > end:
                return False
            time.sleep(0.01)
        return True

    @staticmethod
    def _run(*words: str) -> str:
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, words, done.stdout)
        return done.stdout
