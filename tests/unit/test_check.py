import json

import pytest
from config_world import load_text

from lowsuper.check import find_problems, join_path, sort_problems
from lowsuper.config.wording import format_json, format_problem
from lowsuper.errors import ConfigError, PlanError
from lowsuper.model import Origin, Problem
from lowsuper.plan import Identity


class World:
    """Facts of a machine that has one user and a few files."""

    directories = ("/", "/srv", "/run", "/srv/run", "/srv/open")
    programs = ("/bin/true", "/srv/app", "/srv/bad")
    links = ("/srv/run/link.pid",)

    def __init__(self):
        self.judged = []

    def resolve_identity(self, user, group, origin, daemon="", add_groups=()):
        if user is None and group is None and not add_groups:
            return None
        if user == "www":
            return Identity(33, 33, (33,), "www", "/srv")
        origin = origin.replace(key="uid", value=user)
        raise PlanError(Problem(origin, "there is no user of that name", daemon, "www?"))

    def is_directory(self, path):
        return (path.rstrip("/") or "/") in self.directories

    def is_there(self, path):
        return self.is_directory(path) or path in self.programs

    def find_program(self, program, directory):
        path = join_path(directory, program) if "/" in program else f"/bin/{program}"
        return path.replace("/./", "/") if path.replace("/./", "/") in self.programs else ""

    def judge_program(self, path, identity, *, by_shell):
        self.judged.append((path, identity and identity.uid, by_shell))
        return "is not executable" if path == "/srv/bad" else ""

    def is_program(self, path):
        return path in self.programs

    def judge_pidfile(self, path):
        return "is a symbolic link" if path in self.links else ""

    def judge_writing(self, path, identity):
        mine = path.startswith("/srv/run") or identity is None
        return "" if mine else f"user {identity.name} may not write to {path}"

    def find_state_directory(self, path, identity):
        return path or f"/run/state-{identity.uid if identity else 0}"

    def judge_state_directory(self, path, identity):
        return "can be written to by others" if path in ("/srv/open", "/run/state-33") else ""

    def judge_cgroup(self, path):
        return "" if path.startswith("/sys/fs/cgroup/") else "it is not in a cgroup hierarchy"

    def judge_controller(self, controller):
        return "there is no controller io" if controller == "io" else ""

    def name_writers(self, directory, identity):
        return "everybody can write to" if directory == "/srv/open" else ""


def check(text, world=None):
    spec = load_text(text)
    return [format_problem(problem) for problem in find_problems(spec, world or World())]


def test_limit_without_its_controller_is_an_error():
    text = "[daemon:web]\ncommand = /srv/web\ncgroup_memory_max = 1M\ncgroup_io_weight = 7\n"
    (line,) = [line for line in check(text) if "cgroup" in line]
    assert line.endswith("web: cgroup_io_weight=default 7: there is no controller io")


def test_cgroup_that_cannot_be_is_an_error():
    assert check("[uwsgi]\ncgroup = /sys/fs/cgroup/x\n") == []
    (line,) = check("[uwsgi]\ncgroup = /srv/x\n")
    assert line.endswith("cgroup=/srv/x: it is not in a cgroup hierarchy")


def test_daemon_with_a_wrong_key_is_looked_at_all_the_same():
    text = "[uwsgi]\nattach-daemon2 = cmd=nope,uid=wwww,stop_timout=5s\n"
    with pytest.raises(ConfigError) as caught:
        load_text(text)
    assert [problem.origin.key for problem in caught.value.problems] == ["stop_timout"]
    found = {problem.origin.key for problem in find_problems(caught.value.spec, World())}
    assert found == {"uid", "command"}


def test_what_can_run_has_no_problem():
    world = World()
    text = "[uwsgi]\nuid = www\nchdir = /srv\nattach-daemon = ./app\nexec-asap = true x\n"
    assert check(text, world) == []
    assert world.judged == [("/srv/app", 33, False)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("chdir = /nope", "main.ini:2: chdir=/nope: is not a directory"),
        ("uid = wwww", "main.ini:2: uid=wwww: there is no user of that name; www?"),
        ("logto = /nope/x", "main.ini:2: logto=/nope/x: there is no directory /nope"),
        ("pidfile = /nope/x", "main.ini:2: pidfile=/nope/x: there is no directory /nope"),
        ("touch-reload = /nope/x", "main.ini:2: touch-reload=/nope/x: there is no directory /nope"),
        ("master-fifo = /nope/x", "main.ini:2: master-fifo=/nope/x: there is no directory /nope"),
        (
            "attach-daemon = nope",
            (
                "main.ini:2: nope: command=nope: there is no program nope in PATH;"
                " write its whole path"
            ),
        ),
        (
            "attach-daemon = /srv/nope a",
            "main.ini:2: nope: command=/srv/nope a: there is no file /srv/nope",
        ),
        (
            "attach-daemon = /srv/bad",
            "main.ini:2: bad: command=/srv/bad: /srv/bad: is not executable",
        ),
        (
            "attach-daemon = A=1 /srv/bad >/dev/null",
            "main.ini:2: bad: command=A=1 /srv/bad >/dev/null: /srv/bad: is not executable",
        ),
        (
            "attach-daemon2 = cmd=/srv/app,uid=wwww",
            "main.ini:2: app: uid=wwww: there is no user of that name; www?",
        ),
        (
            "attach-daemon2 = cmd=./app,chdir=/nope",
            "main.ini:2: app: chdir=/nope: is not a directory",
        ),
        (
            "attach-daemon2 = cmd=/srv/app,log=/nope/x",
            "main.ini:2: app: log=/nope/x: there is no directory /nope",
        ),
        (
            "attach-daemon2 = cmd=/srv/app,touch=/nope/x",
            "main.ini:2: app: touch=/nope/x: there is no directory /nope",
        ),
        (
            "exec-as-root = nope",
            "main.ini:2: exec-as-root=nope: there is no program nope in PATH; write its whole path",
        ),
        (
            "attach-daemon = cd /srv && ./app",
            (
                "main.ini:2: warning: app: command=cd /srv && ./app: a shell runs this and stays:"
                " it is the daemon's first process"
            ),
        ),
    ],
)
def test_problem(line, expected):
    assert check(f"[uwsgi]\n{line}\n") == [expected]


WRITE_DENIED = "warning: user www may not write to /run; use a directory of that user"


@pytest.mark.parametrize(
    ("keyval", "before", "expected"),
    [
        ("pidfile=/run/a.pid", "", ""),
        ("pidfile=/a.pid", "", ""),
        ("pidfile=/run/a.pid,daemonize", "", ""),
        ("pidfile=run/a.pid,daemonize", "chdir = /srv", ""),
        ("pidfile=/run", "", "is a directory; name a file in it"),
        ("pidfile=/srv/app,daemonize", "", "is a program, not a pidfile; the pidfile comes first"),
        ("pidfile=/nope/a.pid,daemonize", "", "there is no directory /nope"),
        ("pidfile=nope/a.pid,daemonize", "chdir = /srv", "there is no directory /srv/nope"),
        (
            "pidfile=/nope/a.pid,daemonize",
            "exec-asap = true",
            "warning: there is no directory /nope; unless a hook makes it",
        ),
        (
            "pidfile=/nope/a.pid",
            "",
            "warning: there is no directory /nope; unless the program makes it",
        ),
        (
            "pidfile=/nope/a.pid",
            "exec-asap = true",
            "warning: there is no directory /nope; unless the program or a hook makes it",
        ),
        (
            "pidfile=/srv/open/a.pid,daemonize",
            "",
            (
                "warning: everybody can write to /srv/open, and so replace the pidfile;"
                " use a directory that only root can write to, such as /run"
            ),
        ),
        ("pidfile=/srv/open/a.pid", "", ""),
        (
            "pidfile=/srv/run/link.pid",
            "",
            "warning: is a symbolic link, and is not believed; remove it",
        ),
        ("pidfile=/srv/run/link.pid,daemonize", "", ""),
        ("pidfile=/run/a.pid,uid=www", "", WRITE_DENIED),
        ("pidfile=/srv/run/a.pid,uid=www", "", ""),
        ("pidfile=/run/a.pid,uid=www,daemonize", "", ""),
        ("pidfile=/run/a.pid,daemonize", "uid = www\nstate-dir = /srv", WRITE_DENIED),
        ("pidfile=/run/a.pid,daemonize", "master-as-root = 1\nuid = www", ""),
        (
            "pidfile=a.pid,chdir=/srv",
            "",
            (
                "warning: is looked for in the master's directory, not in the daemon's chdir;"
                " write its whole path"
            ),
        ),
        ("pidfile=/run/a.pid,chdir=/srv", "", ""),
        ("pidfile=a.pid,chdir=/srv,daemonize", "", ""),
    ],
)
def test_pidfile_of_a_smart_daemon(keyval, before, expected):
    world = World()
    world.directories = (*world.directories, ".")
    text = f"[uwsgi]\n{before}\nattach-daemon2 = name=db,cmd=/srv/app,{keyval}\n"
    pidfile = keyval.partition(",")[0]
    found = [line.partition(": ")[2].replace(f"db: {pidfile}: ", "") for line in check(text, world)]
    assert found == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("smart-attach-daemon = /run/a.pid /srv/app\nstate-dir = /srv", None),
        ("attach-daemon = /srv/app\nstate-dir = /srv/open", None),
        (
            "smart-attach-daemon = /run/a.pid /srv/app\nstate-dir = /srv/open",
            "main.ini:3: state-dir=/srv",
        ),
        (
            "smart-attach-daemon = /srv/run/a.pid /srv/app\nuid = www",
            "main.ini: state-dir=/run/state-33",
        ),
        ("smart-attach-daemon = /srv/run/a.pid /srv/app\nuid = www\nmaster-as-root = 1", None),
    ],
)
def test_state_directory_matters_where_there_is_a_smart_daemon(lines, expected):
    found = check(f"[uwsgi]\n{lines}\n")
    assert len(found) == bool(expected)
    for line in found:
        assert expected in line
        assert "can be written to by others; name a directory of which only root" in line


def test_shell_that_stays_is_what_a_written_pidfile_names():
    (line,) = check("[uwsgi]\nsmart-attach-daemon2 = /run/a.pid cd /srv && ./app\n")
    assert "it is the daemon's first process, and the pidfile will name it; let one" in line
    (line,) = check("[uwsgi]\nsmart-attach-daemon = /run/a.pid cd /srv && ./app\n")
    assert line.endswith("it is the daemon's first process")


def test_directory_that_a_hook_may_make_is_a_warning():
    (line,) = check("[uwsgi]\nexec-asap = true mkdir /nope\nlogto = /nope/x\n") or [""]
    assert line == (
        "main.ini:3: warning: logto=/nope/x: there is no directory /nope; unless a hook makes it"
    )


def test_daemon_runs_as_its_own_user_else_as_the_masters():
    world = World()
    check(
        "[uwsgi]\nmaster-as-root\nuid = www\nattach-daemon = /srv/app\n"
        "exec-as-user = /srv/app\nattach-daemon2 = cmd=/srv/app,uid=www\n",
        world,
    )
    assert [uid for _, uid, _ in world.judged] == [None, 33, 33]


def test_problems_are_sorted_by_file_and_line():
    places = [("b", 2), ("a", 3), ("b", 1), ("a", 1)]
    problems = [Problem(Origin(file, line, "", ""), "x") for file, line in places]
    found = [(each.origin.file, each.origin.line) for each in sort_problems(problems)]
    assert found == [("b", 1), ("b", 2), ("a", 1), ("a", 3)]


@pytest.mark.parametrize(
    ("problem", "line"),
    [
        (Problem(Origin("a.ini", 3, "uid", "x"), "is bad", "web", "do so"),
         "a.ini:3: web: uid=x: is bad; do so"),
        (Problem(Origin("a.ini", 3, "x", ""), "is bad", is_error=False),
         "a.ini:3: warning: x: is bad"),
        (Problem(Origin("command line", 0, "", "a.ini"), "is bad"), "command line: a.ini: is bad"),
        (Problem(Origin("a\n", 1, "k", "\033[1m\udcff"), "is\nbad"),
         "a\\n:1: k=\\x1b[1m\\udcff: is\\nbad"),
        (Problem(Origin("a", 1, "k", "x" * 500), "r"), "a:1: k=" + "x" * 158 + "...: r"),
    ],
)  # fmt: skip
def test_wording(problem, line):
    assert format_problem(problem) == line


def test_json():
    spec = load_text("[uwsgi]\nattach-daemon = a 'b c'\n")
    report = json.loads(format_json([Problem(Origin("f", 1, "k", "v"), "r")], spec))
    assert report == {
        "schema": 1,
        "problems": [
            {
                "severity": "error",
                "file": "f",
                "line": 1,
                "daemon": "",
                "key": "k",
                "value": "v",
                "reason": "r",
                "advice": "",
            }
        ],
        "daemons": [
            {
                "name": "a",
                "file": "main.ini",
                "line": 2,
                "command": "a 'b c'",
                "argv": ["a", "b c"],
                "shell": False,
                "compound": False,
                "user": None,
                "group": None,
                "control": False,
                "pidfile": None,
                "daemonize": False,
            }
        ],
    }
    assert json.loads(format_json([], None))["daemons"] == []


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ("cmd=/in/there,root=/srv,mounts=/run:/in/there", []),
        ("cmd=/in/there,root=/nope", ["root=/nope: is not a directory"]),
        ("cmd=/bin/true,mounts=/srv:/run:ro;/bin/true:/srv/app", []),
        (
            "cmd=/bin/true,mounts=/srv:/nope;/gone:/srv",
            ["mounts=/gone: is not there", "mounts=/nope: is not there"],
        ),
        ("cmd=/srv/nope,mounts=/run:/srv", ["command=/srv/nope: there is no file /srv/nope"]),
    ],
)
def test_places_of_an_isolated_daemon_are_looked_for(keys, found):
    lines = check(f"[uwsgi]\nattach-daemon2 = name=web,{keys}\n")
    assert [line.partition("web: ")[2].removeprefix("warning: ") for line in lines] == found


def test_places_that_a_hook_may_still_make_are_missed_with_a_warning():
    text = "[uwsgi]\nexec-asap = true\nattach-daemon2 = cmd=true,root=/nope,mounts=/no:/no\n"
    assert not any(problem.is_error for problem in find_problems(load_text(text), World()))
