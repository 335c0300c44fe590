"""The reader's answers from the running system."""

import os
import threading

import pytest

from lowsuper.errors import ConfigError
from lowsuper.kernel import source
from lowsuper.kernel.source import load_config


@pytest.fixture
def write(tmp_path):
    def _write(data, name="main.ini"):
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return str(path)

    return _write


def refuse(*arguments, environ=None):
    with pytest.raises(ConfigError) as caught:
        load_config(arguments, environ or {})
    return [each.reason for each in caught.value.problems if each.is_error]


def test_files_are_absolute_and_in_the_order_of_reading(write, tmp_path, monkeypatch):
    write("[uwsgi]\ninclude = b.ini\nchdir = %d\n", "a.ini")
    write("[uwsgi]\n", "b.ini")
    monkeypatch.chdir(tmp_path)
    spec = load_config(["a.ini"], {})
    assert spec.files == (f"{tmp_path}/a.ini", f"{tmp_path}/b.ini")
    assert spec.chdir == f"{tmp_path}/"


def test_link_is_known_by_its_own_name(write, tmp_path):
    write("[uwsgi]\nchdir = /%n\n", "real.ini")
    os.symlink("real.ini", tmp_path / "link.ini")
    assert load_config([f"{tmp_path}/link.ini"], {}).chdir == "/link"


def test_missing_file_is_refused(tmp_path):
    assert refuse(f"{tmp_path}/nope.ini") == ["No such file or directory"]


def test_directory_is_refused(tmp_path):
    assert refuse(str(tmp_path)) == ["is a directory, not a file"]


def test_nul_byte_is_refused_with_its_line(write):
    assert refuse(write(b"[uwsgi]\nchdir = a\0b\n")) == [
        "holds a NUL byte in line 2: it is not a text file"
    ]


def test_nul_byte_in_a_name_is_refused():
    assert refuse("--ini", "a\0b") == ["the path holds a NUL byte"]


def test_line_of_ten_megabytes_is_refused(write):
    assert refuse(write(b"[uwsgi]\nchdir = " + b"x" * 10_000_000)) == ["is larger than 4 MiB"]


def test_line_of_two_megabytes_is_refused_with_its_number(write):
    assert refuse(write(b"[uwsgi]\nchdir = " + b"x" * 2_000_000)) == ["line 2 is longer than 1 MiB"]


def test_unreadable_file_is_refused(write, not_root):
    path = write("[uwsgi]\n")
    os.chmod(path, 0)
    not_root()
    assert refuse(path) == ["Permission denied"]


def test_bytes_that_are_not_utf8_come_through(write):
    spec = load_config([write(b"[uwsgi]\nenv = A=\xff\xe9\n")], {})
    assert os.fsencode(spec.env[0].value) == b"\xff\xe9"


def test_fifo_without_a_writer_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "PATIENCE", 0.1)
    path = tmp_path / "fifo.ini"
    os.mkfifo(path)
    assert "gave no end of file" in refuse(str(path))[0]


def test_fifo_that_is_never_closed_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "PATIENCE", 0.1)
    path = str(tmp_path / "fifo.ini")
    os.mkfifo(path)
    held_fd = os.open(path, os.O_RDWR)
    try:
        assert "gave no end of file" in refuse(path)[0]
    finally:
        os.close(held_fd)


def test_fifo_is_read_to_its_end():
    read_fd, write_fd = os.pipe()

    def feed():
        os.write(write_fd, b"[uwsgi]\nchdir = /srv\n")
        os.close(write_fd)

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        assert load_config([f"/dev/fd/{read_fd}"], {}).chdir == "/srv"
    finally:
        thread.join()
        os.close(read_fd)


def test_command_output(write):
    path = write("[uwsgi]\nchdir = @(exec://printf '%%s\\n' /$A)\n")
    environ = {"A": "srv", "PATH": os.environ["PATH"]}
    assert load_config([path], environ).chdir == "/srv"


def test_command_that_must_not_run_is_unknown(write, tmp_path):
    mark = tmp_path / "mark"
    path = write(f"[uwsgi]\nchdir = @(exec://touch {mark})\n")
    spec = load_config([path], dict(os.environ), runs_commands=False)
    assert spec.chdir is None
    assert "use --exec" in spec.notices[0].advice
    assert not mark.exists()


def test_command_that_fails_is_refused(write):
    path = write("[uwsgi]\nchdir = @(exec://exit 3)\n")
    assert refuse(path, environ=dict(os.environ)) == [
        "@(exec://exit 3): the command ended with status 3"
    ]


def test_command_that_does_not_end_is_killed(write, tmp_path, monkeypatch):
    monkeypatch.setattr(source, "PATIENCE", 0.2)
    note = tmp_path / "pid"
    path = write(f"[uwsgi]\nchdir = @(exec://echo $$ > {note}; exec sleep 600)\n")
    (reason,) = refuse(path, environ=dict(os.environ))
    assert "did not end within" in reason
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)


def test_envdir(tmp_path, write):
    directory = tmp_path / "env"
    directory.mkdir()
    for name, data in (("A", b"x y \n"), ("B", b""), ("C", b"1\0002"), (".hidden", b"x")):
        (directory / name).write_bytes(data)
    (directory / "sub").mkdir()
    spec = load_config([write(f"[uwsgi]\nenvdir = {directory}\n")], {})
    assert [(each.name, each.value) for each in spec.env] == [
        ("A", "x y"),
        ("B", None),
        ("C", "1\n2"),
    ]


def test_glob_marks_directories(tmp_path, write):
    (tmp_path / "x1").mkdir()
    (tmp_path / "x2").write_text("")
    text = f"[uwsgi]\nfor-glob = {tmp_path}/x*\ntouch-reload = %(_)\nendfor\n"
    spec = load_config([write(text)], {})
    assert spec.touch_reload == (f"{tmp_path}/x1/", f"{tmp_path}/x2")


def test_facts(write):
    text = "[uwsgi]\nprocname-prefix = %h|%u|%U|%g|%G|%k|%v|%i|\n"
    path = write(text)
    values = load_config([path], {}).procname_prefix.split("|")
    assert values[0] == os.uname().nodename
    assert values[1] == str(os.getuid())
    assert values[3] == str(os.getgid())
    assert values[6:8] == [os.getcwd(), str(os.stat(path).st_ino)]


def test_reload_is_seen(write):
    path = write("[uwsgi]\nif-reload =\nchdir = /again\nendif\n")
    assert load_config([path], {}, is_reload=True).chdir == "/again"
    assert load_config([path], {}).chdir is None
