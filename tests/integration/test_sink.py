"""The master's lines: all to a reader that is there, a bounded number for one that is not."""

import os

import pytest

from lowsuper.kernel.sink import LIMIT, Sink

LINE = "a line of a master with many daemons"
MANY = 2 * LIMIT // len(LINE)


@pytest.fixture
def pipe():
    read_fd, write_fd = os.pipe()
    yield read_fd, write_fd
    os.close(read_fd)
    os.close(write_fd)


def test_more_than_the_limit_in_one_turn_is_written_when_the_reader_takes_it(tmp_path):
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    sink = Sink(fd)
    for _ in range(MANY):
        sink.put(LINE)
    sink.flush()
    sink.close()
    os.close(fd)
    assert (tmp_path / "log").read_text() == (LINE + "\n") * MANY


def test_what_nobody_reads_is_kept_up_to_the_limit_and_the_rest_counted(pipe):
    read_fd, write_fd = pipe
    os.set_blocking(read_fd, False)
    sink = Sink(write_fd)
    for _ in range(MANY):
        sink.put(LINE)
    sink.flush()
    text = b""
    while True:
        try:
            text += os.read(read_fd, 65536)
        except BlockingIOError:
            before = len(text)
            sink.flush()
            if before == len(text) and b"were lost" in text:
                break
    sink.close()
    lines = text.decode().splitlines()
    lost = int(lines[-1].split()[1])
    assert lines[:-1] == [LINE] * (MANY - lost)
    assert LIMIT <= len(text) <= LIMIT + 3 * 65536
