"""Users of a jail, from its own files."""

from __future__ import annotations

import os

import pytest

from lowsuper.errors import PlanError
from lowsuper.kernel import accounts
from lowsuper.kernel.facts import resolve_identity
from lowsuper.model import Origin

ORIGIN = Origin("jail.ini", 1, "uid", "")
PASSWD = "root:x:0:0::/:/bin/sh\nweb:x:1234:1235:Web:/srv/web:/bin/sh\n\nbroken:x:y:z::/:\n"
GROUP = "root:x:0:\nweb:x:1235:\nlogs:x:77:web,root\nbroken\nmail:x:8:web\n"


@pytest.fixture
def jail_files(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "passwd").write_text(PASSWD)
    (tmp_path / "etc" / "group").write_text(GROUP)
    yield tmp_path
    accounts.use_files(None)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs: root")
def test_identity_in_a_jail_is_of_the_jails_users(jail_files):
    accounts.use_files(accounts.read_files(str(jail_files)))
    identity = resolve_identity("web", None, ORIGIN)
    assert (identity.uid, identity.gid, identity.home) == (1234, 1235, "/srv/web")
    assert set(identity.groups) == {1235, 77, 8}
    assert resolve_identity("1234", None, ORIGIN).gid == 1235
    assert resolve_identity(None, "logs", ORIGIN).gid == 77


@pytest.mark.parametrize(
    ("user", "group", "reason"),
    [
        ("nobody", None, "there is no user of that name"),
        ("4000000001", None, "no user has this number, so its group is not known"),
        (None, "tty", "there is no group of that name"),
        ("wep", None, "there is no user of that name; did you mean web?"),
    ],
)
def test_user_of_the_host_is_unknown_in_a_jail(jail_files, user, group, reason):
    accounts.use_files(accounts.read_files(str(jail_files)))
    with pytest.raises(PlanError, match=reason.replace("?", r"\?")):
        resolve_identity(user, group, ORIGIN)


def test_links_and_pipes_lead_to_no_file_of_the_host(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "passwd").symlink_to("/../../../../../../etc/passwd")
    os.mkfifo(tmp_path / "etc" / "group")
    files = accounts.read_files(str(tmp_path))
    assert files.users == []
    assert files.groups == {}
    (tmp_path / "etc" / "real").write_text(PASSWD)
    (tmp_path / "etc" / "passwd").unlink()
    (tmp_path / "etc" / "passwd").symlink_to("/etc/real")
    assert [user.pw_name for user in accounts.read_files(str(tmp_path)).users] == ["root", "web"]
