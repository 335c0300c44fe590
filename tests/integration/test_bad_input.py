"""Bad input: one clear line with file, line, key, value, reason and the way out.

At the start it ends the program with 78; at a reload the running daemons are left alone.
"""

import os
import random
import re
import signal

import pytest
from masters import IS_ROOT, Masters, is_alive, need
from test_daemons_misbehaving import unprivileged

FINE = "attach-daemon2 = cmd=sleep 1000,name=fine\n"

BAD = {
    "unknown key of a daemon": (
        "attach-daemon2 = cmd=sleep 9,name=bad,pidflie=/x\n",
        r"test\.ini:3: bad: pidflie=/x: a daemon has no such key; did you mean pidfile\?",
    ),
    "unknown legion": (
        "attach-daemon2 = cmd=sleep 9,name=bad,legion=x\n",
        r"test\.ini:3: bad: .*: there is no legion x",
    ),
    "unknown user": (
        "attach-daemon2 = cmd=sleep 9,name=bad,uid=www-dat\n",
        r"test\.ini:3: bad: uid=www-dat: there is no user of that name; did you mean www-data\?",
    ),
    "unknown group": (
        "attach-daemon2 = cmd=sleep 9,name=bad,gid=no-such-group\n",
        r"test\.ini:3: bad: gid=no-such-group: there is no group of that name",
    ),
    "unknown user of the master": (
        "uid = nobdy\n" + FINE.replace("fine", "bad"),
        r"test\.ini:3: uid=nobdy: there is no user of that name; did you mean nobody\?",
    ),
    "no such signal": (
        "attach-daemon2 = cmd=sleep 9,name=bad,stopsignal=SIGKIL\n",
        r"test\.ini:3: bad: stopsignal=SIGKIL: there is no such signal; did you mean KILL\?",
    ),
    "signal out of range": (
        "attach-daemon2 = cmd=sleep 9,name=bad,stopsignal=65\n",
        r"test\.ini:3: bad: stopsignal=65: is not a signal: they go from 1 to 64",
    ),
    "missing chdir of the master": (
        "chdir = /no/such/directory\n",
        r"test\.ini:3: chdir=/no/such/directory: .*cannot be entered: .*; make it first",
    ),
    "neither true nor false": (
        "attach-daemon2 = cmd=sleep 9,name=bad,control=perhaps\n",
        r"test\.ini:3: bad: control=perhaps: is neither true nor false",
    ),
    "no length of time": (
        "reload-mercy = soon\n",
        r"test\.ini:3: reload-mercy=soon: is not a length of time such as 10",
    ),
    "no command": ("attach-daemon2 = name=bad\n", r"test\.ini:3: .*there is no command; add comm"),
    "quote without an end": (
        "attach-daemon = sh -c 'echo\n",
        r"test\.ini:3: .*attach-daemon=sh -c 'echo: a ' has no end",
    ),
    "two of a name": (
        FINE,
        r"test\.ini:3: .*fine: the daemon of .*test\.ini:2 has the same name",
    ),
    "missing file": (
        "ini = /no/such/file.ini\n",
        r"test\.ini:3: .*ini=/no/such/file\.ini: .*No su",
    ),
    "directory instead of a file": ("include = {T}\n", r"test\.ini:3: include=.*is a directory"),
    "include loop": ("include = {T}/test.ini\n", r"test\.ini:3: include=.*(loop|already|itself)"),
    "unterminated for": ("for = a b\nfoo = %(_)\n", r"test\.ini:3: for=a b: .*(end|endfor)"),
    "unterminated if": ("if-env = PATH\nfoo = bar\n", r"test\.ini:3: if-env=PATH: .*(end|endif)"),
    "option of a later version": (
        "safe-pidfile2 = /tmp/x.pid\n",
        r"test\.ini:3: safe-pidfile2=.*is not available in this version of lowsuper; use safe-pidf",
    ),
    "smart daemon without a command": (
        "smart-attach-daemon = {T}/x.pid\n",
        r"test\.ini:3: smart-attach-daemon=.*there is no command after the pidfile; write PIDFILE",
    ),
    "smart daemon without a pidfile": (
        "smart-attach-daemon2 = celery flower\n",
        r"test\.ini:3: smart-attach-daemon2=.*celery stands where the pidfile belongs; write PIDFI",
    ),
    "garbled patience": (
        "smart-attach-daemon = {T}/x.pid,soon sleep 9\n",
        r"test\.ini:3: smart-attach-daemon=.*FREQ is not a length of time .*; write PIDFILE,10",
    ),
    "no patience": (
        "attach-daemon2 = cmd=sleep 9,name=bad,pidfile={T}/x.pid,freq=0\n",
        r"test\.ini:3: bad: freq=0: is not more than 0",
    ),
    "daemonize without a pidfile": (
        "attach-daemon2 = cmd=sleep 9,name=bad,daemonize\n",
        r"test\.ini:3: bad: daemonize: means nothing without a pidfile; add pidfile=FILE, or leave",
    ),
    "the master's own pidfile": (
        "safe-pidfile = {T}/x.pid\nattach-daemon2 = cmd=sleep 9,name=bad,pidfile={T}//x.pid\n",
        r"test\.ini:4: bad: pidfile=.*: is the master's own safe-pidfile; give each",
    ),
    "two with one pidfile": (
        "smart-attach-daemon = {T}/x.pid sleep 8\nsmart-attach-daemon2 = {T}/./x.pid sleep 9\n",
        r"test\.ini:4: sleep-2: .*is the pidfile of sleep \(.*test\.ini:3\) too; give each",
    ),
    "relative state-dir": (
        "state-dir = state\n",
        r"test\.ini:3: state-dir=state: is not an absolute path: begin it with /",
    ),
    "octal": ("umask = 9\n", r"test\.ini:3: umask=9: is not an octal mode such as 022"),
    "rung": (
        "kill-domain = magic\n",
        r"test\.ini:3: kill-domain=magic: is none of auto, cgroup,",
    ),
    "NUL byte": ("foo = \0\n", r"test\.ini.*holds a NUL byte in line 3: it is not a text file"),
    "strict": ("strict = true\nunknwon-option = 1\n", r"test\.ini:4: unknwon-option=1: .*"),
}

each_row = pytest.mark.parametrize("row", BAD)


def is_one_line(master, pattern):
    return sum(bool(re.search(pattern, line)) for line in master.lines) == 1


@each_row
def test_bad_input_at_the_start_ends_with_78_and_one_line(masters: Masters, row):
    text, pattern = BAD[row]
    master = masters.begin("[uwsgi]\n" + FINE + text)
    assert master.wait() == 78, master.text
    assert is_one_line(master, "lowsuper: .*" + pattern), master.text
    master.expect_silence("Traceback|started")


@each_row
def test_bad_input_at_a_reload_leaves_the_daemons_alone(masters, row):
    text, pattern = BAD[row]
    master = masters.start("[uwsgi]\n" + FINE)
    pid = master.pid_of("fine")
    masters.write("[uwsgi]\n" + FINE + text)
    master.signal(signal.SIGHUP)
    master.wait_line("nothing was changed: the new configuration is not good")
    assert is_one_line(master, "lowsuper: .*" + pattern), master.text
    assert is_alive(pid)
    assert master.pid_of("fine") == pid
    assert master.stop() == 0


@each_row
def test_check_finds_bad_input(masters, row):
    text, pattern = BAD[row]
    masters.write("[uwsgi]\n" + FINE + text)
    master = masters.launch("check", "test.ini")
    code = master.wait()
    assert "Traceback" not in master.text
    if row == "missing chdir of the master":
        pattern = r"test\.ini:3: chdir=/no/such/directory: is not a directory"
    assert re.search(pattern, master.text), master.text
    assert code == 78


def test_all_problems_come_at_once(masters):
    master = masters.begin(
        "attach-daemon2 = cmd=sleep 9,name=a,stopsignal=X\nattach-daemon2 = cmd=sleep 9,foo=1\n"
    )
    assert master.wait() == 78
    assert master.has_said("stopsignal=X")
    assert master.has_said("foo=1")


# Files that are none.


def test_missing_file_on_the_command_line(masters):
    master = masters.launch("missing.ini")
    assert master.wait() == 78
    assert master.has_said(r"lowsuper: .*missing\.ini: No such file or directory")


def test_directory_on_the_command_line(masters):
    master = masters.launch(str(masters.directory))
    assert master.wait() == 78
    assert master.has_said("is a directory, not a file")


def test_line_of_10_mb(masters):
    path = masters.directory / "big.ini"
    path.write_text("[uwsgi]\n" + "x" * 10_000_000 + "\n")
    master = masters.launch("big.ini")
    assert master.wait() == 78
    assert master.has_said(r"big\.ini: .*(line 2 is longer than 1 MiB|is larger than 4 MiB)")
    assert len(master.text) < 500


def test_line_of_2_mb(masters):
    path = masters.directory / "big.ini"
    path.write_text("[uwsgi]\n" + "x" * 2_000_000 + "\n")
    master = masters.launch("big.ini")
    assert master.wait() == 78
    assert master.has_said(r"big\.ini: .*line 2 is longer than 1 MiB")


def test_file_that_may_not_be_read(open_masters):
    need(IS_ROOT, "root")
    path = open_masters.write(FINE, "secret.ini")
    path.chmod(0)
    words = [word.replace(",+dac_read_search", "") for word in unprivileged()]
    if not os.access("/", os.R_OK):
        pytest.skip("needs: a readable /")
    master = open_masters.launch("secret.ini", prefix=tuple(words))
    code = master.wait()
    if "No module named" in master.text or "can't open" in master.text:
        pytest.skip("needs: sources that nobody may read")
    assert code == 78
    assert master.has_said(r"secret\.ini: Permission denied")


@pytest.mark.parametrize("key", ["uid=www-data", "gid=daemon"])
def test_identity_without_root(open_masters, key):
    master = open_masters.begin(
        f"attach-daemon2 = cmd=sleep 9,name=bad,{key}\n", prefix=unprivileged()
    )
    assert master.wait() == 78
    name = key.partition("=")[0]
    assert master.has_said(
        rf"test\.ini:2: bad: {key}: lowsuper runs with uid 65534 and cannot become another user; "
        rf"start lowsuper as root, or leave {name} out"
    )


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--no-such-option",), "--no-such-option: there is no such option"),
        (("--attach-daemon",), "--attach-daemon: needs a value"),
        (("-%",), "there is no option -%"),
        (("--attach-deamon", "x"), "--attach-deamon: .*did you mean attach-daemon"),
    ],
)
def test_bad_command_line(masters, words, reason):
    master = masters.launch(*words)
    assert master.wait() == 78
    assert master.has_said("command line: .*" + reason.partition(": ")[2])


def test_garbage_never_gives_a_traceback(masters):
    """Random bytes as a file, seeded."""
    chance = random.Random(7)
    for number in range(6):
        path = masters.directory / f"garbage{number}.ini"
        data = bytes(chance.randrange(1, 256) for _ in range(2000))
        path.write_bytes(b"[uwsgi]\nstrict = true\n" + data)
        master = masters.launch("check", path.name)
        assert master.wait() in (0, 78)
        master.expect_silence("Traceback")
