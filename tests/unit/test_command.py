import pytest

from lowsuper.command import find_program, find_program_name, find_words, parse_command


@pytest.mark.parametrize(
    ("text", "argv"),
    [
        ("memcached -p 11311 -u nobody", ["memcached", "-p", "11311", "-u", "nobody"]),
        ("  /usr/sbin/dropbear\t-j  -k ", ["/usr/sbin/dropbear", "-j", "-k"]),
        ("python -c 'print(1); x'", ["python", "-c", "print(1); x"]),
        ('a "b c" d\\ e \'f "g"\'', ["a", "b c", "d e", 'f "g"']),
        ('a "\\$x \\\\ \\n \\`"', ["a", "$x \\ \\n `"]),
        ("a '' \"\"", ["a", "", ""]),
        ("a b\\\nc", ["a", "bc"]),
        ("java -jar start.jar ./etc/jetty.xml", ["java", "-jar", "start.jar", "./etc/jetty.xml"]),
        (
            "celery worker --pidfile=path/smees.pid;",
            ["celery", "worker", "--pidfile=path/smees.pid"],
        ),
        ("a x=1 --y=2", ["a", "x=1", "--y=2"]),
        ("a b#c", ["a", "b#c"]),
        ("a b~ c!", ["a", "b~", "c!"]),
        ("a \u00a0b", ["a", "\u00a0b"]),
        ("./manage.py sendalerts", ["./manage.py", "sendalerts"]),
    ],
)
def test_command_without_shell_syntax_is_executed_directly(text, argv):
    command = parse_command(text)
    assert command.text == text
    assert list(command.argv) == argv
    assert not command.shell
    assert not command.compound


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("FOO=1 cmd", "FOO=1 exec cmd"),
        ("A=1 B='x y' cmd $C", "A=1 B='x y' exec cmd $C"),
        ("cmd > /tmp/out 2>&1", "exec cmd > /tmp/out 2>&1"),
        ("2>/dev/null cmd a", "2>/dev/null exec cmd a"),
        ("cmd <in", "exec cmd <in"),
        ("cmd $HOME/x", "exec cmd $HOME/x"),
        ("cmd *.c", "exec cmd *.c"),
        ("cmd ~/x", "exec cmd ~/x"),
        ("cmd `date`", "exec cmd `date`"),
        ("cmd $(a 'b)' \"$(c)\") d", "exec cmd $(a 'b)' \"$(c)\") d"),
        ("$HOME/bin/cmd x", "exec $HOME/bin/cmd x"),
        ("cmd a # why", "exec cmd a # why"),
        ("cmd >x;", "exec cmd >x;"),
        ("./a=b c", "exec ./a=b c"),
        ('cmd "$x"', 'exec cmd "$x"'),
        ("cmd ${x:-y z}", "exec cmd ${x:-y z}"),
    ],
)
def test_one_simple_command_with_shell_syntax_gets_exec(text, script):
    command = parse_command(text)
    assert command.argv == ("/bin/sh", "-c", script)
    assert command.shell
    assert not command.compound


@pytest.mark.parametrize(
    "text",
    [
        "a | b",
        "a && b",
        "a || b",
        "a; b",
        "a &",
        "a\nb",
        "(a)",
        "{ a; }",
        "! a",
        "a <<E\nx\nE",
        "f() { a; }",
        "if a; then b; fi",
        "while true; do a; done",
        "for x in 1 2; do a; done",
        "cd /srv",
        "cd /srv && ./run",
        ". ./env",
        "source env",
        "eval x",
        "ulimit -n 10",
        "umask 022",
        "export A=b",
        ":",
        "test -f x",
        "[ -f x ]",
        "echo hi",
        "kill -HUP $(cat /x)",
        "FOO=1",
        "FOO=1 BAR=2",
        "$CMD a",
        '"$CMD" a',
        "> file",
        "A=1 cd /",
        "time a",
        "'cd' /",
        "command a",
        "wait",
    ],
)
def test_command_that_is_not_surely_simple_is_left_as_it_is(text):
    command = parse_command(text)
    assert command.argv == ("/bin/sh", "-c", text)
    assert command.shell
    assert command.compound


def test_command_that_has_exec_already_is_not_compound():
    command = parse_command("exec a $B")
    assert command.argv == ("/bin/sh", "-c", "exec a $B")
    assert not command.compound


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no command"),
        ("   ", "no command"),
        ("'' a", "no command"),
        (";", "no command"),
        ("a 'b", "a ' has no end"),
        ('a "b', 'a " has no end'),
        ("a `b", "a ` has no end"),
        ("a $(b", r"a \$\( has no end"),
        ("a ${b", r"a \$\{ has no end"),
        ("a\0b", "NUL"),
    ],
)
def test_command_that_cannot_be_read_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_command(text)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("/usr/bin/memcached -p 1", "memcached"),
        ("FOO=1 celery -A x", "celery"),
        ("cd /srv && ./run.sh", "run.sh"),
        ("exec redis-server", "redis-server"),
        ("2>/dev/null foo", "foo"),
        ("while sleep 1; do x; done", "sleep"),
        ("$X/bin/java -jar", "java"),
        ("$X a", ""),
        ("echo hi", ""),
    ],
)
def test_program_name(text, name):
    assert find_program_name(text) == name


@pytest.mark.parametrize(
    ("text", "program"),
    [("a/b c", "a/b"), ("A=1 x y", "x"), ("a | b", ""), ("$A/b c >d", ""), ("exec a $b", "")],
)
def test_program_that_surely_runs_first(text, program):
    assert find_program(parse_command(text)) == program


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a/b -c d", ("a/b", "-c", "d")),
        ("A=1 x 'y z' >log 2>&1", ("x", "y z")),
        ("exec x -y", ("x", "-y")),
        ("A=1 exec x", ()),  # taken for compound
        ("exec -a name x", ()),
        ('x $A -b "$C" *', ("x", "", "-b", "", "")),
        ("$A/x y", ()),
        ("PATH=/srv:$PATH x", ()),
        ("a | b", ()),
        ("a; b", ()),
        ("cd /srv && ./run", ()),
        ("echo hi", ()),
    ],
)
def test_words_that_surely_run(text, words):
    assert find_words(parse_command(text)) == words
