import pytest
from config_world import CWD, errors_of, load_lines, load_text, problems_of, warnings_of

from lowsuper.config import options
from lowsuper.config.build import DEFAULT_LOG_DATE
from lowsuper.config.known import APPLICATION, LATER
from lowsuper.model import PHASES, EnvChange, Jail, MasterSpec
from lowsuper.units import SECOND


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("chdir = /srv", "chdir", "/srv"),
        ("umask = 027", "umask", 0o27),
        ("uid = www-data", "user", "www-data"),
        ("gid = 33", "group", "33"),
        ("add-gid = a", "add_groups", ("a",)),
        ("master-as-root = true", "master_as_root", True),
        ("master_as_root", "master_as_root", True),
        ("reload-mercy = 1.5", "reload_mercy", 3 * SECOND // 2),
        ("die-on-term = false", "die_on_term", False),
        ("exit-on-reload = on", "exit_on_reload", True),
        ("pidfile = /a", "pidfile", "/a"),
        ("pidfile2 = /a", "pidfile2", "/a"),
        ("safe-pidfile = /a", "safe_pidfile", "/a"),
        ("daemonize = /a", "daemonize", "/a"),
        ("daemonize2 = /a", "daemonize2", "/a"),
        ("logto = /a", "logto", "/a"),
        ("logto2 = /a", "logto2", "/a"),
        ("log-date = true", "log_date", DEFAULT_LOG_DATE),
        ("logdate", "log_date", DEFAULT_LOG_DATE),
        ("log-date = %%Y", "log_date", "%Y"),
        ("log-date = off", "log_date", None),
        ("touch-reload = /a", "touch_reload", ("/a",)),
        ("procname-master = x", "procname_master", "x"),
        ("procname = x", "procname_master", "x"),
        ("auto-procname =", "auto_procname", True),
        ("procname-prefix = x", "procname_prefix", "x"),
        ("procname-prefix-spaced = x", "procname_prefix", "x "),
        ("procname-append = x", "procname_append", "x"),
        ("honour-stdin = yes", "honour_stdin", True),
        ("daemons-honour-stdin = 1", "daemons_honour_stdin", True),
        ("vacuum = true", "vacuum", True),
        ("master-fifo = /a", "master_fifo", ("/a",)),
        ("instance = blue", "name", "blue"),
        ("kill-domain = shim", "kill_domain", "shim"),
        ("state-dir = /var/lib/lowsuper", "state_dir", "/var/lib/lowsuper"),
    ],
)
def test_option_sets_its_field(line, field, value):
    assert getattr(load_lines(line), field) == value


def test_every_row_goes_somewhere():
    fields = {*MasterSpec.__match_args__, *Jail.__match_args__, *PHASES, "", "control"}
    fields |= {"namespace", "chroot", "pivot-root", "unshare", "unshare2", "setns"}
    for row in options.OPTIONS:
        assert row.field in fields
        assert row.help


def test_names_are_known_in_one_way_only():
    applied, reader = set(options.NAMES), set(options.READER_OPTIONS)
    for one, other in ((applied, reader), (applied | reader, APPLICATION | LATER),
                       (APPLICATION, LATER)):  # fmt: skip
        assert not one & other
    assert len(APPLICATION) > 900


@pytest.mark.parametrize("line", ["master = true", "master = false", "master"])
def test_master_is_accepted(line):
    assert load_lines(line).notices == ()


def test_lists_keep_their_order():
    spec = load_lines("master-fifo = /0", "touch-reload = /a", "master-fifo = /1")
    assert spec.master_fifo == ("/0", "/1")


def test_name_is_that_of_the_first_file():
    assert load_lines("chdir = /").name == "main"


def test_environment_changes_keep_their_order_and_envdir_comes_last():
    spec = load_lines(
        "envdir = env",
        "env = A=1",
        "unenv = B",
        "env = C=x=y",
        files={f"{CWD}/env": {"A": "9", "D": ""}},
    )
    assert spec.env == (
        EnvChange("A", "1"),
        EnvChange("B", None),
        EnvChange("C", "x=y"),
        EnvChange("A", "9"),
        EnvChange("D", None),
    )


STARTS = tuple(phase for phase in PHASES if phase != "touch")


def test_hooks_keep_phase_and_order():
    spec = load_lines(*(f"exec-{phase} = cmd {phase}" for phase in STARTS))
    assert [(hook.phase, hook.deed.command.argv[1]) for hook in spec.hooks] == [
        (phase, phase) for phase in STARTS
    ]


def test_shell_substitution_in_a_hook_is_no_environment_variable():
    (hook,) = load_lines(
        "basedir = /srv", "exec-as-user-atexit = kill -HUP $(cat %(basedir)/celery.pid)"
    ).hooks
    assert hook.deed.command.argv[2] == "kill -HUP $(cat /srv/celery.pid)"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("umask = 9", "octal"),
        ("reload-mercy = soon", "length of time"),
        ("die-on-term = perhaps", "neither true nor false"),
        ("pidfile =", "needs a value"),
        ("daemonize", "needs a value"),
        ("env = A", "NAME=value"),
        ("unenv = A=b", "name of a variable"),
        ("envdir = nope", "No such file"),
        ("instance = a/b", "holds '/'"),
        ("kill-domain = jail", "none of auto, cgroup, shim"),
        ("state-dir =", "not an absolute path"),
        ("state-dir = state", "not an absolute path: begin it with /"),
        ("attach-daemon =", "no command"),
        ("attach-daemon = a 'b", "has no end"),
        ("exec-as-root = ", "no command"),
        ("attach-daemon2 = uid=1", "there is no command"),
    ],
)
def test_bad_value_is_refused(line, reason):
    (error,) = errors_of(line)
    assert reason in error


@pytest.mark.parametrize(
    "line",
    [
        "legion-cron = mylegion 5 -1 -1 -1 -1 command",
        "hook-as-root = wait_for_file:/x",
        "hook-master-start = exec:x",
        "immediate-uid = 33",
    ],
)
def test_option_of_a_later_version_is_refused(line):
    (error,) = errors_of(line)
    assert "is not available in this version of lowsuper" in error


def test_flag_that_is_off_is_accepted():
    assert load_lines("attach-daemon2 = cmd=x,clean_env=0,no-new-privs=false").daemons


# Daemons.


def test_attach_daemon2_of_a_real_file():
    (daemon,) = load_lines(
        "home = /venv",
        "attach-daemon2 = stopsignal=15,reloadsignal=INT,cmd=%(home)/bin/celery -A common worker"
        " -B -s /tmp/beat --pidfile=/tmp/celery.pid",
    ).daemons
    assert daemon.name == "celery"
    assert daemon.command.argv[0] == "/venv/bin/celery"
    assert (daemon.stop_signal, daemon.reload_signal) == (15, 2)


def test_blanks_around_commas_do_not_count_but_are_told():
    spec = load_lines("attach-daemon2 = cmd=python worker.py, touch=/srv/w.py,chdir=/srv")
    (daemon,) = spec.daemons
    assert (daemon.touch, daemon.chdir) == (("/srv/w.py",), "/srv")
    (notice,) = spec.notices
    assert notice.origin.key == "touch"
    assert notice.reason == "uWSGI would have ignored this key"


@pytest.mark.parametrize(
    ("keyval", "advice"),
    [
        ("cmd=celery -A x worker -Q fast,slow", "the command needs quotes around it or a \\"),
        ("cmd=x --opt a=1,b=2", "the command needs quotes around it or a \\"),
        ("cmd=x,pidflie=/x", "did you mean pidfile?"),
        ("cmd=x,stopsignl=3", "did you mean stopsignal?"),
    ],
)
def test_unknown_key_of_a_daemon_is_an_error(keyval, advice):
    (error,) = errors_of(f"attach-daemon2 = {keyval}")
    assert "a daemon has no such key" in error
    assert advice in error


def test_comma_of_a_command_with_quotes_or_backslash():
    spec = load_lines(
        "attach-daemon2 = cmd=celery -Q 'fast,slow',control",
        "attach-daemon2 = cmd=celery -Q fast\\,slow,control",
    )
    for daemon in spec.daemons:
        assert daemon.command.argv == ("celery", "-Q", "fast,slow")
        assert daemon.control


@pytest.mark.parametrize(
    ("keyval", "field", "value"),
    [
        ("control", "control", True),
        ("control=0", "control", False),
        ("control=", "control", True),
        ("stdin", "stdin", True),
        ("ns_pid=true", "ns_pid", True),
        ("ns-init=false", "ns_init", False),
        ("uid=www-data", "user", "www-data"),
        ("gid=33", "group", "33"),
        ("stop_signal=QUIT", "stop_signal", 3),
        ("reload_signal=1", "reload_signal", 1),
        ("chdir='/a,b'", "chdir", "/a,b"),
        ("max_throttle=30", "max_throttle", 30 * SECOND),
        ("stop_timeout=500ms", "stop_timeout", SECOND // 2),
        ("name=web", "name", "web"),
        ("touch=/a;/b", "touch", ("/a", "/b")),
        ("pidfile=run/my.pid", "pidfile", "run/my.pid"),
        ("pidfile='/a,b c'", "pidfile", "/a,b c"),
        ("freq=3,pidfile=/a", "freq", 3 * SECOND),
        ("freq=500ms,pidfile=/a", "freq", SECOND // 2),
        ("daemonize,pidfile=/a", "daemonize", True),
        ("daemon=yes,pidfile=/a", "daemonize", True),
        ("pidfile=/a,daemonize=0", "daemonize", False),
        ("daemonize=off", "daemonize", False),
        ("notifypid,pidfile=/a", "notify_pid", True),
        ("notify_pid,pidfile=/a", "notify_pid", True),
        ("notify-pid=1,pidfile=/a", "notify_pid", True),
        ("notifypid=false", "notify_pid", False),
        ("control,pidfile=/a", "control", True),
    ],
)
def test_key_sets_its_field(keyval, field, value):
    (daemon,) = load_lines(f"attach-daemon2 = cmd=x,{keyval}").daemons
    assert getattr(daemon, field) == value


@pytest.mark.parametrize("key", ["cmd", "command", "exec"])
def test_command_has_three_names_and_the_last_counts(key):
    (daemon,) = load_lines(f"attach-daemon2 = cmd=a,{key}=b").daemons
    assert daemon.command.text == "b"


@pytest.mark.parametrize(
    ("keyval", "reason"),
    [
        ("uid", "needs a value"),
        ("uid=", "is empty"),
        ("control=2", "neither true nor false"),
        ("stopsignal=TERMM", "did you mean TERM?"),
        ("stopsignal=0", "not a signal"),
        ("stop_timeout=x", "length of time"),
        ("name=a/b", "holds '/'"),
        ("name=.a", "begins with a dot"),
        ("touch=;", "is empty"),
        ("pidfile", "needs a value"),
        ("pidfile=,daemonize", "is empty"),
        ("pidfile=/run/", "names a directory"),
        ("pidfile=/run/..", "names a directory"),
        ("pidfile=/a,freq=0", "is not more than 0"),
        ("pidfile=/a,freq=often", "length of time"),
        ("freq=3", "means nothing without a pidfile; add pidfile=FILE, or leave freq out"),
        ("daemonize", "means nothing without a pidfile; add pidfile=FILE, or leave daemonize out"),
        ("daemon=1", "means nothing without a pidfile; add pidfile=FILE, or leave daemon out"),
        ("notify-pid", "means nothing without a pidfile; add pidfile=FILE, or leave notify-pid"),
    ],
)
def test_bad_value_of_a_key_is_refused(keyval, reason):
    (error,) = errors_of(f"attach-daemon2 = cmd=x,{keyval}")
    assert reason in error


def test_problem_of_a_key_names_daemon_key_and_value():
    (problem,) = problems_of("[uwsgi]\nattach-daemon2 = name=web,cmd=x,stopsignal=Q")
    origin = problem.origin
    assert (origin.file, origin.line, origin.key, origin.value) == (
        "main.ini", 2, "stopsignal", "Q",
    )  # fmt: skip
    assert problem.daemon == "web"


def test_names_are_made_unique():
    spec = load_lines(
        "attach-daemon = memcached -p 1",
        "attach-daemon = /usr/bin/memcached -p 2",
        "attach-daemon2 = name=memcached-2,cmd=memcached -p 3",
        "attach-daemon = ./a\\ b",
        "attach-daemon = ./.hidden",
        "attach-daemon = echo hi",
    )
    assert [daemon.name for daemon in spec.daemons] == [
        "memcached", "memcached-3", "memcached-2", "a-b", "hidden", "daemon",
    ]  # fmt: skip


def test_duplicate_names_are_refused():
    (error,) = errors_of("attach-daemon2 = name=a,cmd=x", "attach-daemon2 = name=a,cmd=y")
    assert "the daemon of main.ini:2 has the same name" in error


def test_control_daemon():
    daemons = load_lines("attach-control-daemon = a", "attach-daemon = b").daemons
    assert [daemon.control for daemon in daemons] == [True, False]


@pytest.mark.parametrize(
    ("section", "reason"),
    [
        ("[daemon:]\ncommand = x", "the name is empty"),
        ("[daemon:a b]\ncommand = x", "the name holds ' '"),
        ("[daemon:a]", "there is no command"),
        ("[daemon:a]\ncommand = x\nuidd = 1", "a daemon has no such key"),
        ("[daemon:a]\ncommand = x\nname = b", "the section has a name already"),
        ("[daemon:a]\ncommand = x\nuid", "needs a value"),
        ("[daemon:a]\ncommand = x\npidfile\ndaemonize", "needs a value"),
        ("[daemon:a]\ncommand = x\nfreq = 3", "without a pidfile"),
    ],
)
def test_bad_daemon_section_is_refused(section, reason):
    reasons = [each.reason for each in problems_of(section) if each.is_error]
    assert any(reason in each for each in reasons)


def test_daemon_section():
    (daemon,) = load_text(
        "[daemon:web]\ncommand = /srv/web --list a,b\nuid = www-data\nns_pid\nstop-timeout = 10s\n"
        "touch = /a\ntouch = /b\n"
    ).daemons
    assert daemon.command.argv == ("/srv/web", "--list", "a,b")
    assert (daemon.user, daemon.ns_pid, daemon.stop_timeout) == ("www-data", True, 10 * SECOND)
    assert daemon.touch == ("/a", "/b")
    assert (daemon.origin.line, daemon.origin.key) == (1, "[daemon:web]")


# Smart daemons.


@pytest.mark.parametrize(
    ("value", "pidfile", "freq", "argv"),
    [
        ("/tmp/c.pid celery -A x worker", "/tmp/c.pid", 10, ("celery", "-A", "x", "worker")),
        ("$(HOME)/m.pid,180 mysqld", "/root/m.pid", 180, ("mysqld",)),
        ("/tmp/c.pid,1m30s celery", "/tmp/c.pid", 90, ("celery",)),
        ("path/smees.pid celery worker;", "path/smees.pid", 10, ("celery", "worker")),
        ("a.PID   x", "a.PID", 10, ("x",)),
        ("a.pid\tx\ty", "a.pid", 10, ("x", "y")),
        ("./celery flower", "./celery", 10, ("flower",)),
        (
            "%(chdir)/tmp/pids/d.pid %(chdir)/d start",
            "/app/tmp/pids/d.pid",
            10,
            ("/app/d", "start"),
        ),
    ],
)
@pytest.mark.parametrize("name", ["smart-attach-daemon", "smart_attach_daemon2"])
def test_smart_daemon(name, value, pidfile, freq, argv):
    (daemon,) = load_lines("chdir = /app", f"{name} = {value}", environ={"HOME": "/root"}).daemons
    assert (daemon.pidfile, daemon.freq, daemon.command.argv) == (pidfile, freq * SECOND, argv)
    assert daemon.daemonize == name.endswith("2")
    assert daemon.name == argv[0].rpartition("/")[2]


@pytest.mark.parametrize(
    ("value", "reason", "advice"),
    [
        ("", "needs a pidfile and a command", "write PIDFILE COMMAND"),
        ("/tmp/x.pid", "there is no command after the pidfile", "write PIDFILE COMMAND"),
        ("/tmp/x.pid,30", "there is no command after the pidfile", "write PIDFILE COMMAND"),
        ("/tmp/x.pid ;", "there is no command", ""),
        ("/tmp/x.pid, 30 x", "there is no FREQ after the comma", "write PIDFILE,10 COMMAND"),
        ("/tmp/x.pid ,30 x", "a blank before the comma", "PIDFILE,FREQ COMMAND"),
        ("/tmp/x.pid,ten x", "FREQ is not a length of time", "write PIDFILE,10 COMMAND"),
        ("/tmp/x.pid,3,4 x", "FREQ is not a length of time", "write PIDFILE,10 COMMAND"),
        ("/tmp/x.pid,-1 x", "FREQ is not a length of time", "write PIDFILE,10 COMMAND"),
        ("/tmp/x.pid,0 x", "FREQ is not more than 0", "write PIDFILE,10 COMMAND"),
        ("/tmp/a,b.pid x", "FREQ is not", "a pidfile with a comma needs attach-daemon2"),
        (",30 x", "there is no pidfile before the comma", "PIDFILE,FREQ COMMAND"),
        ("/tmp/ x", "the pidfile names a directory", "write PIDFILE COMMAND"),
        ('"/a b.pid" x', "protects no blank", "needs attach-daemon2 or a [daemon:NAME] section"),
        ("/a\\ b.pid x", "protects no blank", "needs attach-daemon2 or a [daemon:NAME] section"),
        ("celery flower -p 1", "celery stands where the pidfile belongs", "write ./celery"),
        ("/tmp/x.pid y 'z", "a ' has no end", ""),
    ],
)
@pytest.mark.parametrize("name", ["smart-attach-daemon", "smart-attach-daemon2"])
def test_bad_line_of_a_smart_daemon_is_one_error_with_the_way_out(name, value, reason, advice):
    (error,) = errors_of(f"{name} = {value}")
    found, _, way = error.partition("; ")
    assert reason in found
    assert advice in way
    assert bool(advice) == bool(way)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["smart-attach-daemon2 = /a.pid x"], "is the pidfile of x (main.ini:2) too"),
        (["attach-daemon2 = cmd=x,pidfile=/./a.pid"], "is the pidfile of x (main.ini:2) too"),
        (["smart-attach-daemon = //b/..//a.pid x"], "is the pidfile of x (main.ini:2) too"),
        (["smart-attach-daemon = /../a.pid x"], "is the pidfile of x (main.ini:2) too"),
        (["chdir = /", "smart-attach-daemon = a.pid x"], "is the pidfile of x (main.ini:2) too"),
        (["chdir = /b", "smart-attach-daemon = ../a.pid x"], "is the pidfile of x (main.ini:2)"),
        (["pidfile = /a.pid"], "is the master's own pidfile"),
        (["pidfile2 = /a.pid"], "is the master's own pidfile2"),
        (["safe-pidfile = /a.pid"], "is the master's own safe-pidfile"),
        (["chdir = /", "safe-pidfile = a.pid"], "is the master's own safe-pidfile"),
        (["smart-attach-daemon = /b.pid x", "pidfile = /c.pid"], ""),
        (["smart-attach-daemon = a.pid x"], ""),
        (["chdir = /b", "smart-attach-daemon = a.pid x"], ""),
    ],
)
def test_two_with_the_same_pidfile(lines, reason):
    errors = errors_of("smart-attach-daemon = /a.pid x", *lines)
    assert len(errors) == bool(reason)
    assert reason in "".join(errors)
    assert all("give each a pidfile of its own" in error for error in errors)


def test_relative_pidfiles_are_compared_without_a_chdir_too():
    (problem,) = problems_of(
        "[uwsgi]\nsmart-attach-daemon = a.pid x\n[daemon:b]\ncommand = x\npidfile = ./c/../a.pid"
    )
    assert (problem.daemon, problem.origin.line, problem.origin.key) == ("b", 5, "pidfile")
    assert not errors_of("smart-attach-daemon = a.pid x", "smart-attach-daemon = ../a.pid x")


def test_smart_daemon_in_a_section():
    (daemon,) = load_text(
        "[daemon:db]\ncommand = /srv/db\npidfile = %(base)/db.pid\nfreq = 2m\ndaemonize\n"
        "notifypid\n[uwsgi]\nbase = /run"
    ).daemons
    assert (daemon.pidfile, daemon.freq) == ("/run/db.pid", 120 * SECOND)
    assert (daemon.daemonize, daemon.notify_pid) == (True, True)


@pytest.mark.parametrize(
    ("lines", "refused"),
    [
        (["uid = www-data", "attach-daemon2 = cmd=x,uid=33"], True),
        (["gid = www-data", "attach-daemon2 = cmd=x,gid=33"], True),
        (["uid = www-data", "attach-daemon2 = cmd=x,uid=www-data"], False),
        (["uid = www-data", "master-as-root", "attach-daemon2 = cmd=x,uid=33"], False),
        (["uid = 0", "attach-daemon2 = cmd=x,uid=33"], False),
        (["uid = www-data", "attach-daemon = x"], False),
    ],
)
def test_daemon_with_another_identity_than_a_master_that_drops(lines, refused):
    errors = errors_of(*lines)
    assert bool(errors) is refused
    assert all("master-as-root = true" in error for error in errors)


def test_all_problems_come_at_once():
    lines = ["umask = 9", "attach-daemon2 = cmd=x,a=1,b=2", "instance = /", "include = nope.ini"]
    assert len(errors_of(*lines)) == 5


def test_documented_examples_have_only_the_notices_they_deserve():
    assert warnings_of("master = true", "socket = :3031", "attach-daemon = memcached -p 1") == [
        "binds only if a daemon asks for it; "
    ]
