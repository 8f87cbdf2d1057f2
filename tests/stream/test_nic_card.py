# SPDX-License-Identifier: MIT
"""Which network card a device gets, on a /sys that the test wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from dmaplane._errors import InvalidError, UnsupportedError
from dmaplane.stream.nic import _card

GID = "0000:0000:0000:0000:0000:ffff:{:02x}{:02x}:{:02x}{:02x}"


def gid_of(address: str) -> str:
    return GID.format(*(int(part) for part in address.split(".")))


class Sysfs:
    """A /sys with cards and PCI devices in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "class/infiniband").mkdir(parents=True)
        (root / "class/net").mkdir()
        (root / "bus/pci/devices").mkdir(parents=True)

    def pci(self, *places: str, node: int = 0) -> Path:
        folder = self.root.joinpath("devices", *places)
        folder.mkdir(parents=True)
        (folder / "numa_node").write_text(f"{node}\n")
        (self.root / "bus/pci/devices" / places[-1]).symlink_to(folder)
        return folder

    def card(
        self,
        name: str,
        hardware: Path | None,
        *addresses: str,
        state: str = "4: ACTIVE",
        kind: str = "RoCE v2",
    ) -> None:
        folder = self.root / "class/infiniband" / name
        port = folder / "ports/1"
        (port / "gids").mkdir(parents=True)
        (port / "gid_attrs/types").mkdir(parents=True)
        (port / "state").write_text(state + "\n")
        for index, address in enumerate(("fe80::1", *addresses)):
            number = address if ":" in address else gid_of(address)
            (port / "gids" / str(index)).write_text(number + "\n")
            (port / "gid_attrs/types" / str(index)).write_text(kind + "\n")
        if hardware is not None:
            (folder / "device").symlink_to(hardware)


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path)


GPU = ("pci0000:3a", "0000:3a:00.0", "0000:3b:00.0", "0000:3d:00.0")


@pytest.fixture
def server(sysfs: Sysfs) -> Sysfs:
    """A GPU below a switch, and cards ever farther away; names in no useful order."""
    sysfs.pci(*GPU, node=1)
    below = sysfs.pci("pci0000:3a", "0000:3a:00.0", "0000:3b:00.0", "0000:3e:00.0", node=1)
    sysfs.card("mlx5_7", below, "10.0.0.7")
    root = sysfs.pci("pci0000:3a", "0000:3a:01.0", "0000:40:00.0", node=1)
    sysfs.card("mlx5_3", root, "10.0.0.3")
    near = sysfs.pci("pci0000:90", "0000:90:00.0", "0000:91:00.0", node=1)
    sysfs.card("mlx5_2", near, "10.0.0.2")
    far = sysfs.pci("pci0000:10", "0000:10:00.0", "0000:11:00.0", node=0)
    sysfs.card("mlx5_0", far, "10.0.0.10")
    return sysfs


def place_of(server: Sysfs) -> tuple[str, ...]:
    return _card.pci_place(server.root / "bus/pci/devices/0000:3d:00.0")


def test_the_place_of_a_device_is_its_path_from_the_root(server: Sysfs) -> None:
    assert place_of(server) == GPU
    assert _card.pci_place(server.root / "bus/pci/devices/0000:ff:00.0") == ()


def test_the_nearest_card_is_taken_and_the_next_when_it_is_gone(server: Sysfs) -> None:
    left = list(_card.cards(server.root))
    place, seen = place_of(server), []
    while left:
        taken = _card.choose("auto", left, node=1, place=place)
        seen.append((taken.name, _card.nearness(taken, node=1, place=place)))
        left.remove(taken)
    assert seen == [
        ("mlx5_7", "same switch"),
        ("mlx5_3", "same root"),
        ("mlx5_2", "same node"),
        ("mlx5_0", "other node"),
    ]


def test_without_a_place_the_node_decides_and_without_a_node_the_name(server: Sysfs) -> None:
    found = _card.cards(server.root)
    assert _card.choose("auto", found, node=0).name == "mlx5_0"
    assert _card.choose("auto", found).name == "mlx5_0"
    assert _card.nearness(found[0], node=None, place=()) == "unknown"


def test_a_card_is_described_as_it_is(server: Sysfs) -> None:
    card = _card.cards(server.root)[-1]
    assert (card.name, card.node, card.address, card.lacks) == ("mlx5_7", 1, "10.0.0.7", "")
    assert card.listen_address == "10.0.0.7:0"
    assert card.place == ("pci0000:3a", "0000:3a:00.0", "0000:3b:00.0", "0000:3e:00.0")


def test_a_card_named_is_the_card_taken_however_far(server: Sysfs) -> None:
    found = _card.cards(server.root)
    assert _card.choose("mlx5_0", found, node=1, place=place_of(server)).name == "mlx5_0"


def test_a_wrong_name_is_an_error_that_names_those_that_exist(server: Sysfs) -> None:
    with pytest.raises(InvalidError, match=r"mlx5_9") as wrong:
        _card.choose("mlx5_9", _card.cards(server.root))
    assert wrong.value.field == "nic"
    assert "mlx5_0, mlx5_2, mlx5_3, mlx5_7" in wrong.value.fix


def test_where_there_is_no_card_the_error_says_how_to_have_one(sysfs: Sysfs) -> None:
    with pytest.raises(InvalidError, match="there is none"):
        _card.choose("mlx5_0", _card.cards(sysfs.root))
    with pytest.raises(UnsupportedError, match="rdma link add"):
        _card.choose("auto", _card.cards(sysfs.root))


def test_a_card_without_an_address_or_a_live_port_is_not_taken_for_another(sysfs: Sysfs) -> None:
    sysfs.card("down0", None, "10.0.0.1", state="1: DOWN")
    sysfs.card("mute0", None)
    sysfs.card("old0", None, "10.0.0.2", kind="IB/RoCE v1")
    found = _card.cards(sysfs.root)
    assert [bool(card.lacks) for card in found] == [True, True, True]
    for name, word in (("down0", "active"), ("mute0", "ip addr add"), ("old0", "ip addr add")):
        with pytest.raises(UnsupportedError, match=word):
            _card.choose(name, found)
    with pytest.raises(UnsupportedError, match=r"down0.*mute0.*old0"):
        _card.choose("auto", found)
    sysfs.card("up0", None, "fd00::7", "10.0.0.3")
    assert _card.choose("auto", _card.cards(sysfs.root)).address == "10.0.0.3"


def test_an_address_of_six_is_listened_to_in_brackets(sysfs: Sysfs) -> None:
    sysfs.card("six0", None, "fd00::7")
    assert _card.cards(sysfs.root)[0].listen_address == "[fd00::7]:0"


def test_soft_roce_is_where_its_interface_is(sysfs: Sysfs) -> None:
    hardware = sysfs.pci("pci0000:3a", "0000:3a:00.0", "0000:3b:00.0", node=3)
    (sysfs.root / "class/net/eth7").mkdir()
    (sysfs.root / "class/net/eth7/device").symlink_to(hardware)
    sysfs.card("rxe0", None, "10.0.0.1")
    (sysfs.root / "class/infiniband/rxe0/parent").write_text("eth7\n")
    card = _card.cards(sysfs.root)[0]
    assert card.node == 3
    assert card.place[-1] == "0000:3b:00.0"


def test_what_sysfs_says_that_makes_no_sense_is_no_address(sysfs: Sysfs) -> None:
    sysfs.card("odd0", None, "10.0.0.1")
    (sysfs.root / "class/infiniband/odd0/ports/1/gids/1").write_text("zz\n")
    assert _card.cards(sysfs.root)[0].lacks
