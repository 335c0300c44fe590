"""The master FIFO: every byte, several at once, garbage, and the slots."""

import os
import stat

import pytest
from masters import is_alive, wait_file, wait_match, wait_text


def start(masters, extra=""):
    return masters.start(
        f"master-fifo = {{T}}/fifo0\nmaster-fifo = {{T}}/fifo1\n{extra}"
        "attach-daemon2 = cmd=sleep 1000,name=one\n"
    )


def write(path, text):
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    try:
        os.write(fd, text)
    finally:
        os.close(fd)


@pytest.fixture
def fifo(tmp_path):
    return tmp_path / "fifo0"


def test_fifo_is_a_pipe_for_its_owner_only(masters, fifo):
    master = start(masters)
    mode = os.stat(fifo).st_mode
    assert stat.S_ISFIFO(mode)
    assert stat.S_IMODE(mode) == 0o600
    assert master.stop() == 0


def test_q_stops(masters, fifo):
    master = start(masters)
    write(fifo, b"q")
    assert master.wait() == 0
    assert master.has_said("master-fifo q: stopping 1 daemon")


def test_capital_q_kills(masters, fifo):
    master = masters.start(
        "master-fifo = {T}/fifo0\nattach-daemon2 = cmd={D}/ignore_term.sh,name=one,stop_timeout=600"
    )
    master.wait_output("settled")
    write(fifo, b"Q")
    assert master.wait() == 0
    assert master.has_said("SIGKILL to everything")


@pytest.mark.parametrize(("byte", "words"), [(b"r", ""), (b"R", " without waiting for anybody")])
def test_r_reloads(masters, fifo, byte, words):
    master = start(masters)
    old = master.pid_of("one")
    write(fifo, byte)
    master.wait_line(rf"master-fifo {byte.decode()}: reloading{words}$")
    master.wait_line("reloaded")
    assert master.pid_of("one") != old
    assert master.stop() == 0


def test_s_says_the_state(masters, fifo):
    master = start(masters)
    write(fifo, b"s")
    master.wait_line(rf"one: up, pid {master.pid_of('one')}")
    assert master.stop() == 0


def test_l_opens_the_log_again_and_capital_l_rotates(masters, fifo):
    log = masters.directory / "log"
    master = masters.begin(
        "master-fifo = {T}/fifo0\nlogto = {T}/log\nattach-daemon2 = cmd=sleep 1000,name=one\n"
    )
    wait_text(log, "ready: ")
    log.rename(masters.directory / "moved")
    write(fifo, b"ls")
    wait_text(log, "one: up")
    assert "ready: " not in log.read_text()
    write(fifo, b"Ls")
    rotated = wait_match(masters.directory, "log.*")
    wait_file(log)
    wait_text(log, "one: up")
    assert rotated.name.removeprefix("log.").isdigit()
    assert "one: up" in rotated.read_text()
    assert master.stop() == 0
    assert "exit status 0" in log.read_text()


def test_l_without_a_log_says_so(masters, fifo):
    master = start(masters)
    write(fifo, b"l")
    master.wait_line("there is no log file to open again")
    assert master.stop() == 0


def test_capital_p_writes_the_pidfile_again(masters, fifo):
    master = start(masters, "pidfile = {T}/pid\n")
    path = masters.directory / "pid"
    path.unlink()
    write(fifo, b"P")
    wait_file(path)
    assert path.read_text() == f"{master.pid}\n"
    assert master.stop() == 0


def test_p_is_ignored_in_words(masters, fifo):
    master = start(masters)
    write(fifo, b"p")
    master.wait_line("master-fifo p: ignored, there are no workers to pause")
    assert master.stop() == 0


def test_several_commands_in_one_write_are_all_obeyed(masters, fifo):
    master = start(masters)
    write(fifo, b"sps")
    master.wait_line("one: up")
    master.wait_line("master-fifo p: ignored")
    master.wait_line("one: up")
    assert master.stop() == 0


def test_garbage_is_ignored(masters, fifo):
    master = start(masters)
    pid = master.pid_of("one")
    write(fifo, bytes(b for b in range(256) if chr(b) not in "qQrRslLpP0123456789") * 4)
    write(fifo, b"\n\0 s\n")
    master.wait_line("one: up")
    assert is_alive(pid)
    assert master.stop() == 0
    master.expect_silence("Traceback|master-fifo")


def test_slots_are_switched(masters, fifo):
    master = start(masters)
    other = masters.directory / "fifo1"
    assert not other.exists()
    write(fifo, b"1")
    wait_file(other)
    write(other, b"s")
    master.wait_line("one: up")
    # The first one is not listened to any more.
    with pytest.raises(OSError, match="No such device or address"):
        write(fifo, b"q")
    write(other, b"9")
    master.wait_line("master-fifo 9: there is no such slot")
    write(other, b"0s")
    assert master.stop() == 0


def test_old_pipe_in_its_place_is_replaced(masters, fifo):
    os.mkfifo(fifo)
    inode = os.stat(fifo).st_ino
    master = start(masters)
    assert os.stat(fifo).st_ino != inode or stat.S_IMODE(os.stat(fifo).st_mode) == 0o600
    write(fifo, b"q")
    assert master.wait() == 0


def test_file_in_its_place_is_not_removed(masters, fifo):
    fifo.write_text("precious")
    master = masters.begin("master-fifo = {T}/fifo0\nattach-daemon2 = cmd=sleep 1000,name=one")
    assert master.wait() == 125
    assert master.has_said(rf"master-fifo {fifo}: File exists")
    assert fifo.read_text() == "precious"


def test_vacuum_removes_the_pipes(masters, fifo):
    master = start(masters, "vacuum = true\n")
    assert master.stop() == 0
    assert not fifo.exists()


def test_reload_with_another_fifo_listens_there(masters, fifo):
    master = start(masters)
    masters.write("master-fifo = {T}/other\nattach-daemon2 = cmd=sleep 1000,name=one\n")
    write(fifo, b"r")
    master.wait_line("reloaded")
    write(wait_file(masters.directory / "other", 5), b"q")
    assert master.wait() == 0
