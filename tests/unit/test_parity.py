"""Parity with uWSGI: what the ini dialect makes of a file, and what lines of smart daemons mean.

`uwsgi` is what `uwsgi --show-config` of 2.0.31 printed for the file, recorded; None: it refused to
start. For the daemons it is what uWSGI said and did when it ran them. `ours` stands where lowsuper
differs, with the reason.
"""

from __future__ import annotations

import pytest
from config_world import CWD, errors_of, load_lines, read

from lowsuper.units import SECOND

FILES = {
    f"{CWD}/deep.ini": "[uwsgi]\nk = %s %S %e %c\n",
    f"{CWD}/inc.ini": "[uwsgi]\ni = %s %S %n %N\ninclude = deep.ini\nj = %s\n",
    f"{CWD}/lines.txt": "l1\nl2\n\nl4",
    f"{CWD}/sec.ini": "[uwsgi]\ns0 = %x\n[more]\ns1 = %x\n",
    f"{CWD}/tmpl.ini": "[uwsgi]\nt = %s $(HOME) %(a)\n",
    f"{CWD}/word.txt": "one\ntwo\n",
}
ENVIRON = {"HOME": "/root", "FOO": "bar"}
SAME = object()


class Case:
    def __init__(self, name, text, uwsgi, *, ours=SAME, why=""):
        self.name, self.text, self.why = name, text, why
        self.expected = uwsgi if ours is SAME else ours


CASES = (
    Case(
        "comments and blanks",
        (
            "a = 1\n"
            "\ta2\t=  x y  \n"
            ";c = 1\n"
            "  # d = 1\n"
            "b = a=b=c\n"
            "bare\n"
            "empty =\n"
            "[other]\n"
            "q = 1\n"
            "[uwsgi]\n"
            "z = 9 ; no comment"
        ),
        ("a = 1\na2 = x y\nb = a=b=c\nbare = \nempty = \nz = 9 ; no comment"),
    ),
    Case(
        "repeated keys accumulate",
        ("a = 1\na = 2\nb = %(a)"),
        ("a = 1\na = 2\nb = 1"),
    ),
    Case(
        "carriage returns",
        ("a = x\r\nb = y\r\n"),
        ("a = x\nb = y"),
    ),
    Case(
        "magic of the file",
        "m = %o %p %s %d %e %n %c %x %0 %1 %2 %9.",
        "m = main.ini /srv/app/conf/main.ini main.ini /srv/app/conf/ ini main conf  srv app conf .",
    ),
    Case(
        "magic of the process",
        "m = %v",
        "m = /srv/app/conf",
    ),
    Case(
        "escapes",
        ("a = %%d %%%s x%%\nb = %%(a) %["),
        ("a = %d %main.ini x%\nb = %d %main.ini x% \x1b"),
    ),
    Case(
        "a magic variable without meaning",
        "a = x%qy%zz",
        "a = xyz",
    ),
    Case(
        "date",
        "a = date +%%s +%s",
        "a = date +%s +main.ini",
    ),
    Case(
        "percent at the end of a line",
        ("a = 50%\nb = 2"),
        "a = 50b = 2",
        ours=("a = 50\nb = 2"),
        why="a line's end is kept, for the next line is not meant",
    ),
    Case(
        "include",
        ("x = 1\ninclude = inc.ini\ny = %s %S"),
        (
            "x = 1\n"
            "include = inc.ini\n"
            "i = inc.ini main.ini inc main\n"
            "include = deep.ini\n"
            "k = deep.ini main.ini ini conf\n"
            "j = inc.ini\n"
            "y = main.ini main.ini"
        ),
    ),
    Case(
        "ini",
        ("ini = inc.ini\ny = %s"),
        (
            "ini = inc.ini\n"
            "i = inc.ini main.ini inc main\n"
            "include = deep.ini\n"
            "k = deep.ini main.ini ini conf\n"
            "j = inc.ini\n"
            "y = main.ini"
        ),
    ),
    Case(
        "inherit comes last",
        ("inherit = tmpl.ini\na = 1\nb = %(t)"),
        ("inherit = tmpl.ini\na = 1\nb = %(t)\nt = tmpl.ini $(HOME) %(a)"),
    ),
    Case(
        "sections of another file",
        ("ini = sec.ini:more\nini = sec.ini\nini = :more"),
        ("ini = sec.ini:more\ns1 = more\nini = sec.ini\ns0 = \nini = :more\ns1 = more"),
    ),
    Case(
        "a section of this file",
        ("ini = :two\nb = 1\n[two]\nc = %x %s"),
        ("ini = :two\nc = two main.ini\nb = 1"),
    ),
    Case(
        "environment",
        ("a = $(FOO)$(NOPE)$(HOME)/x\nb = $(kill $(cat x)) $$(FOO) $(FOO\nc = $()"),
        ("a = bar$(NOPE)/root/x\nb = $(kill $(cat x)) $bar $(FOO\nc = $()"),
    ),
    Case(
        "files",
        ("a = <@(word.txt)>\nb = @(exec://echo hi)"),
        ("a = <one\ntwo>\nb = hi"),
    ),
    Case(
        "placeholders",
        ("chdir = /x\na = %(chdir)/y %(nope) %()\nb = %(a)"),
        ("chdir = /x\na = /x/y %(nope) %()\nb = /x/y %(nope) %()"),
    ),
    Case(
        "a placeholder that comes later",
        ("a = x%(b)\nb = y%(c)\nc = $(FOO)"),
        ("a = xybar\nb = ybar\nc = bar"),
    ),
    Case(
        "a placeholder that is one again",
        ("a = %(b)\nb = %(c)\nc = 1"),
        ("a = %(c)\nb = 1\nc = 1"),
        ours=("a = 1\nb = 1\nc = 1"),
        why="uWSGI does not look at the first character again",
    ),
    Case(
        "math",
        (
            "n = 7\n"
            "a = %(n + 3 * 2 - 1 / 4)\n"
            "b = %(n ++ ++) %(n --) %(n - 10)\n"
            "c = %(n - 10 / 3) %(n / 0) %(1 + 2)\n"
            "d = %(n n) %(n n + 1) %(nope + 2) %(nope ++)"
        ),
        ("n = 7\na = 4\nb = 9 6 -3\nc = -1 0 3\nd = 77 78 2 1"),
    ),
    Case(
        "set",
        ("set = a=5\nset-ph = b=6\nset-placeholder = c=%(a)\nd = %(a)%(b)x%(c)"),
        ("set = a=5\na = 5\nset-ph = b=6\nb = 6\nset-placeholder = c=%(a)\nc = %(a)\nd = 56x5"),
    ),
    Case(
        "set-ph is not expanded itself",
        ("set-ph = a=$(FOO)\nb = x%(a)"),
        ("set-ph = a=$(FOO)\na = $(FOO)\nb = x$(FOO)"),
    ),
    Case(
        "for",
        ("for = a b  c\nx = %(_)-%(_)\nk%(_) = 1\nendfor ="),
        ("for = a b  c\nx = a-a\nx = b-b\nx = c-c\nk%(_) = 1\nk%(_) = 1\nk%(_) = 1\nendfor = "),
    ),
    Case(
        "for-times",
        ("for-times = 3\nx = %(_)\nend-for"),
        ("for-times = 3\nx = 1\nx = 2\nx = 3\nend-for = "),
    ),
    Case(
        "for-glob",
        ("for-glob = *.txt\nx = %(_)\nendfor\nfor-glob = /nope*\ny = %(_)\nendfor"),
        (
            "for-glob = *.txt\n"
            "x = lines.txt\n"
            "x = word.txt\n"
            "endfor = \n"
            "for-glob = /nope*\n"
            "y = /nope*\n"
            "endfor = "
        ),
    ),
    Case(
        "for-readline",
        ("for-readline = lines.txt\nx = %(_)\nendfor"),
        ("for-readline = lines.txt\nx = l1\nx = l2\nx = \nx = l4\nendfor = "),
    ),
    Case(
        "include in a for",
        ("for = one two\nini = :%(_)\nendfor\n[one]\na = 1\n[two]\na = 2"),
        ("for = one two\nini = :one\na = 1\nini = :two\na = 2\nendfor = "),
    ),
    Case(
        "if-env",
        (
            "if-env = FOO\n"
            "a = %(_)\n"
            "endif\n"
            "if-env = FOO=bar\n"
            "b = 1\n"
            "endif\n"
            "if-env = FOO=no\n"
            "c = 1\n"
            "endif\n"
            "if-env = NOPE\n"
            "d = 1\n"
            "endif\n"
            "ifenv = FOO\n"
            "e = 1\n"
            "endif"
        ),
        (
            "if-env = FOO\n"
            "a = bar\n"
            "endif = \n"
            "if-env = FOO=bar\n"
            "b = 1\n"
            "endif = \n"
            "if-env = FOO=no\n"
            "endif = \n"
            "if-env = NOPE\n"
            "endif = \n"
            "ifenv = FOO\n"
            "e = 1\n"
            "endif = "
        ),
    ),
    Case(
        "if-not-env",
        (
            "if-not-env = FOO\n"
            "a = 1\n"
            "endif\n"
            "if-not-env = NOPE\n"
            "b = %(_)\n"
            "endif\n"
            "if-not-env = FOO=no\n"
            "c = %(_)\n"
            "endif"
        ),
        (
            "if-not-env = FOO\n"
            "endif = \n"
            "if-not-env = NOPE\n"
            "b = %(_)\n"
            "endif = \n"
            "if-not-env = FOO=no\n"
            "c = bar\n"
            "endif = "
        ),
    ),
    Case(
        "if-opt",
        (
            "q = 7\n"
            "if-opt = q\n"
            "a = %(_)\n"
            "endif\n"
            "if-opt = q=7\n"
            "b = 1\n"
            "endif\n"
            "if-opt = q=8\n"
            "c = 1\n"
            "endif\n"
            "if-not-opt = q\n"
            "d = 1\n"
            "endif\n"
            "if-not-opt = w\n"
            "e = 1\n"
            "endif"
        ),
        (
            "q = 7\n"
            "if-opt = q\n"
            "a = 7\n"
            "endif = \n"
            "if-opt = q=7\n"
            "b = 1\n"
            "endif = \n"
            "if-opt = q=8\n"
            "endif = \n"
            "if-not-opt = q\n"
            "endif = \n"
            "if-not-opt = w\n"
            "e = 1\n"
            "endif = "
        ),
    ),
    Case(
        "if-opt of an option set in the block",
        ("if-not-opt = q\nq = 1\nr = 2\nendif"),
        ("if-not-opt = q\nq = 1\nendif = "),
        ours=("if-not-opt = q\nq = 1\nr = 2\nendif = "),
        why="a condition is judged once",
    ),
    Case(
        "if-exists",
        (
            "if-exists = word.txt\n"
            "a = %(_)\n"
            "endif\n"
            "if-not-exists = word.txt\n"
            "b = 1\n"
            "endif\n"
            "if-not-exists = nope\n"
            "c = %(_)\n"
            "endif\n"
            "ifexists = nope\n"
            "d = 1\n"
            "endif"
        ),
        (
            "if-exists = word.txt\n"
            "a = word.txt\n"
            "endif = \n"
            "if-not-exists = word.txt\n"
            "endif = \n"
            "if-not-exists = nope\n"
            "c = nope\n"
            "endif = \n"
            "ifexists = nope\n"
            "endif = "
        ),
    ),
    Case(
        "if-file and if-dir",
        (
            "if-file = word.txt\n"
            "a = %(_)\n"
            "endif\n"
            "if-file = /srv\n"
            "b = 1\n"
            "endif\n"
            "if-dir = /srv\n"
            "c = %(_)\n"
            "endif\n"
            "if-directory = nope\n"
            "d = 1\n"
            "endif\n"
            "if-not-file = /srv\n"
            "e = 1\n"
            "endif\n"
            "if-not-dir = /srv\n"
            "f = 1\n"
            "endif"
        ),
        (
            "if-file = word.txt\n"
            "a = word.txt\n"
            "endif = \n"
            "if-file = /srv\n"
            "endif = \n"
            "if-dir = /srv\n"
            "c = /srv\n"
            "endif = \n"
            "if-directory = nope\n"
            "endif = \n"
            "if-not-file = /srv\n"
            "e = 1\n"
            "endif = \n"
            "if-not-dir = /srv\n"
            "endif = "
        ),
    ),
    Case(
        "if-reload",
        ("if-reload =\na = 1\nendif\nif-not-reload\nb = %(_)\nendif"),
        ("if-reload = \nendif = \nif-not-reload = \nb = %(_)\nendif = "),
    ),
    Case(
        "endfor ends an if",
        ("if-env = FOO\na = 1\nendfor\nb = 1"),
        ("if-env = FOO\na = 1\nendfor = \nb = 1"),
    ),
    Case(
        "an end without an opener",
        ("endif =\na = 1"),
        ("endif = \na = 1"),
        ours=None,
        why="an error: something is missing",
    ),
    Case(
        "a block without an end",
        ("if-env = FOO\na = 1"),
        ("if-env = FOO\na = 1"),
        ours=None,
        why="an error: the rest of all files would belong to it",
    ),
    Case(
        "strict below",
        ("strict = true\nfoo = 1"),
        None,
    ),
    Case(
        "strict above",
        ("foo = 1\nstrict = true"),
        None,
    ),
    Case(
        "strict with a placeholder",
        ("strict = true\nset-ph = foo=1\nchdir = %(foo)"),
        ("strict = true\nset-ph = foo=1\nfoo = 1\nchdir = 1"),
    ),
    Case(
        "nested blocks",
        ("for = a\nif-env = FOO\nb = 1\nendif\nendfor"),
        None,
    ),
    Case(
        "a missing file",
        "ini = nope.ini",
        None,
    ),
    Case(
        "a missing @ file",
        "a = @(nope)",
        None,
    ),
    Case(
        "an option as a placeholder",
        "set-ph = chdir=/",
        None,
    ),
    Case(
        "set without a value",
        "set-ph = x",
        None,
    ),
    Case(
        "env is not seen",
        ("env = A=b\nq = $(A)x"),
        ("env = A=b\nq = $(A)x"),
    ),
    Case(
        "hyphen and underscore",
        ("foo_bar = 1\na = %(foo-bar)"),
        ("foo_bar = 1\na = %(foo-bar)"),
        ours=("foo_bar = 1\na = 1"),
        why="hyphen and underscore are alike",
    ),
    Case(
        "smart daemons",
        (
            "chdir = /x\n"
            "smart-attach-daemon = %(chdir)/pids/d.pid %(chdir)/d start\n"
            "smart_attach_daemon = %dredis.pid,180 redis-server --pidfile %dredis.pid ;\n"
            "smart-attach-daemon2 = $(HOME)/a.pid,30 a -p %(chdir)/a.pid"
        ),
        (
            "chdir = /x\n"
            "smart-attach-daemon = /x/pids/d.pid /x/d start\n"
            "smart_attach_daemon = /srv/app/conf/redis.pid,180"
            " redis-server --pidfile /srv/app/conf/redis.pid ;\n"
            "smart-attach-daemon2 = /root/a.pid,30 a -p /x/a.pid"
        ),
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_file_is_read_as_uwsgi_reads_it(case):
    reading = read(case.text, FILES, environ=ENVIRON, commands={"echo hi": "hi\n"})
    errors = [problem for problem in reading.problems if problem.is_error]
    if case.expected is None:
        assert errors
    else:
        values = [f"{option.name} = {option.value}" for option in reading.options]
        assert not errors
        assert "\n".join(values[1:]) == case.expected


class Smart:
    """One daemon: (pidfile, freq in seconds, daemonize, command), None for a refusal."""

    def __init__(self, line, uwsgi, *, ours=SAME, why=""):
        self.line, self.uwsgi, self.why = line, uwsgi, why
        self.expected = uwsgi if ours is SAME else ours


REFUSED = None
SMART = (
    Smart("smart-attach-daemon = /a.pid x y", ("/a.pid", 10, False, "x y")),
    Smart("smart-attach-daemon2 = /a.pid x y", ("/a.pid", 10, True, "x y")),
    Smart("smart-attach-daemon = /a.pid,3 x", ("/a.pid", 3, False, "x")),
    Smart("smart-attach-daemon = a.pid x", ("a.pid", 10, False, "x")),
    Smart("smart-attach-daemon = /a.pid", REFUSED),
    Smart("smart-attach-daemon =", REFUSED),
    Smart("attach-daemon2 = cmd=x,pidfile=/a,freq=3", ("/a", 3, False, "x")),
    Smart("attach-daemon2 = cmd=x,pidfile=/a,daemonize", ("/a", 10, True, "x")),
    Smart("attach-daemon2 = cmd=x,daemon=1,pidfile=/a", ("/a", 10, True, "x")),
    Smart(
        "smart-attach-daemon = /a.pid  x",
        ("/a.pid", 10, False, " x"),
        ours=("/a.pid", 10, False, "x"),
        why="blanks before a command are not meant",
    ),
    Smart(
        "smart-attach-daemon = /a.pid\tx y",
        ("/a.pid\tx", 10, False, "y"),
        ours=("/a.pid", 10, False, "x y"),
        why="a tab is a blank",
    ),
    Smart(
        "smart-attach-daemon = /a.pid,soon x",
        ("/a.pid", 0, False, "x"),
        ours=REFUSED,
        why="the daemon would be given no time at all",
    ),
    Smart(
        "smart-attach-daemon = /a.pid,0 x",
        ("/a.pid", 0, False, "x"),
        ours=REFUSED,
        why="the daemon would be given no time at all",
    ),
    Smart(
        "smart-attach-daemon2 = /a.pid,3,4 x",
        ("/a.pid", 3, True, "x"),
        ours=REFUSED,
        why="one of the commas belongs to the pidfile, or to nothing",
    ),
    Smart(
        "smart-attach-daemon = ,5 x",
        ("", 5, False, "x"),
        ours=REFUSED,
        why="a file without a name cannot be opened",
    ),
    Smart(
        "smart-attach-daemon = /a.pid ,5 x",
        ("/a.pid", 10, False, ",5 x"),
        ours=REFUSED,
        why="no program begins with a comma",
    ),
    Smart(
        'smart-attach-daemon = "/a b.pid" x',
        ('"/a', 10, False, 'b.pid" x'),
        ours=REFUSED,
        why="it is meant otherwise",
    ),
    Smart(
        "smart-attach-daemon = celery flower --port=5555",
        ("celery", 10, False, "flower --port=5555"),
        ours=REFUSED,
        why="the pidfile was forgotten",
    ),
    Smart(
        "attach-daemon2 = cmd=x,daemonize=0,pidfile=/a",
        ("/a", 10, True, "x"),
        ours=("/a", 10, False, "x"),
        why="booleans are parsed",
    ),
    Smart(
        "attach-daemon2 = cmd=x,daemonize",
        (None, 10, False, "x"),
        ours=REFUSED,
        why="it is not what was asked for: a plain daemon",
    ),
    Smart(
        "attach-daemon2 = cmd=x,freq=3",
        (None, 10, False, "x"),
        ours=REFUSED,
        why="it would have no effect: the pidfile was forgotten",
    ),
    Smart(
        "attach-daemon2 = cmd=x,notifypid",
        (None, 10, False, "x"),
        ours=REFUSED,
        why="it would have no effect: the pidfile was forgotten",
    ),
)


@pytest.mark.parametrize("row", SMART, ids=lambda row: row.line)
def test_smart_daemon_is_read_as_uwsgi_reads_it(row):
    assert bool(row.why) == (row.expected != row.uwsgi)
    if row.expected is REFUSED:
        assert len(errors_of(row.line)) == 1
        return
    (daemon,) = load_lines(row.line).daemons
    freq = daemon.freq // SECOND
    assert (daemon.pidfile, freq, daemon.daemonize, daemon.command.text) == row.expected
