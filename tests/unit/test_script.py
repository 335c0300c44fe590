"""Command lines of interpreters, and the script in each."""

from __future__ import annotations

import pytest

from lowsuper.script import find_script, needs_script

LINES = [
    ("python3 app.py --port 1", "app.py"),
    ("python3 -u -W ignore /srv/app.py", "/srv/app.py"),
    ("python3 -uWignore app.py", "app.py"),
    ("python3 -um celery worker", "celery"),
    ("python3 -mcelery worker", "celery"),
    ("python3 -c pass app.py", "pass"),
    ("python3 -Xdev --check-hash-based-pycs always -- -app.py", "-app.py"),
    ("python3", ""),
    ("python3 -u", ""),
    ("python3 -m", ""),
    ("python3 - app.py", ""),
    ("pypy3.10 app.py", "app.py"),
    ("perl -w -Ilib -I lib -MFoo::e app.pl", "app.pl"),
    ("perl -we text", "text"),
    ("ruby3.1 -rbundler -I lib script/delayed_job start", "script/delayed_job"),
    ("php8.2 -d memory_limit=1G artisan queue:work", "artisan"),
    ("php -f artisan", "artisan"),
    ("sh -c text name", "text"),
    ("bash -euo pipefail -c text", "text"),
    ("bash +o posix --rcfile x /srv/run.sh", "/srv/run.sh"),
    ("dash -ec text", "text"),
    ("node --max-old-space-size=99 -r dotenv/config server.js", "server.js"),
    ("node -e text", "text"),
    ("nodejs server.js", "server.js"),
    ("java -Xmx1g -cp a:b -Dx=y org.Main", "org.Main"),
    ("java -Xmx1g -jar app.jar", "app.jar"),
    ("lua5.4 -l posix app.lua", "app.lua"),
    ("gawk -F : -f app.awk file", "app.awk"),
    ("mawk {print} file", "{print}"),
    ("tclsh8.6 app.tcl", "app.tcl"),
    ("busybox httpd -f", "httpd"),
    ("busybox sh -x /srv/run.sh", "/srv/run.sh"),
    ("busybox", ""),
    ("busybox --install", ""),
    ("ld-linux-x86-64.so.2 /srv/app", "/srv/app"),
    ("timeout 3 sleep 5", ""),
    ("sudo -u web app", ""),
    ("some-interpreter -x app", "app"),
]


@pytest.mark.parametrize(("line", "script"), LINES, ids=[line for line, _ in LINES])
def test_script_of_a_command_line(line, script):
    argv = tuple(line.split())
    assert find_script(argv, argv[0]) == script
    assert find_script(("another name", *argv[1:]), f"/usr/bin/{argv[0]}") == script or (
        argv[0] == "busybox"
    )


def test_applet_is_the_name_that_it_was_called_by():
    assert find_script(("/usr/sbin/httpd", "-f"), "/bin/busybox") == "httpd"
    assert find_script(("-sh", "/srv/run.sh"), "/bin/busybox") == "/srv/run.sh"
    assert find_script(("/bin/sh",), "/bin/busybox") == ""
    assert find_script((), "/bin/busybox") == ""


INTERPRETERS = (
    "python python3 python3.11 python3.13t python3.11-dbg python3-dbg pypy3 perl5.36.0 ruby3.1 php"
    " php8.2 php-cgi8.2 lua5.4 luajit-2.1.0 node nodejs java dash bash busybox busybox.static"
    " toybox coreutils env mawk original-awk tclsh8.6 ld-linux-x86-64.so.2 ld-musl-x86_64.so.1"
    " qemu-aarch64 timeout beam.smp"
)
OTHERS = (
    "memcached nginx postgres node_exporter node-exporter php-fpm8.2 php-fpm shd javac luad"
    " perlbal pythond2 mongod redis-server sleep"
)


@pytest.mark.parametrize("program", INTERPRETERS.split())
def test_what_needs_a_script(program):
    assert needs_script(program)
    assert needs_script(f"/usr/lib/{program}")


@pytest.mark.parametrize("program", OTHERS.split())
def test_what_needs_none(program):
    assert not needs_script(program)
