"""A jail where the machine's root is an initramfs. See scenarios/initramfs_jail.py."""

from __future__ import annotations


def test_jail_on_an_initramfs_has_its_own_root_and_changes_no_mount(run_guest):
    found = run_guest("initramfs_jail.py")
    assert found["root"] == "rootfs"
    assert found["same"] is True
    assert sorted(found["seen"])[:3] == ["bin", "dev", "proc"]
    assert "srv" not in found["seen"]
    assert found["host"] == "cell"
    assert found["code"] == 0
    assert [point for point in found["points"] if point not in ("/", "/proc", "/dev/null")] == []
