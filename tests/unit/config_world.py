"""A world of dicts that answers the configuration reader."""

from __future__ import annotations

import fnmatch
import posixpath

from lowsuper.config import load
from lowsuper.config.arguments import parse_arguments, parse_environment
from lowsuper.config.dialect import Reader
from lowsuper.config.requests import (
    UNKNOWN,
    AskFact,
    Failure,
    FileText,
    JudgePath,
    ListGlob,
    ReadDirectory,
    ReadFile,
    RunCommand,
)
from lowsuper.errors import ConfigError

CWD = "/srv/app/conf"
MAIN = f"{CWD}/main.ini"
FACTS = {"cwd": CWD, "hostname": "box", "cpus": "2", "uid": "0", "user": "root", "reload": "0"}


class World:
    """Files by absolute path; a dict is a directory of an envdir."""

    def __init__(self, files, environ=None, commands=None, facts=None):
        self.files = files
        self.environ = environ or {}
        self.commands = commands or {}
        self.facts = FACTS | (facts or {})
        self.requests = []

    def answer(self, request):
        self.requests.append(request)
        match request:
            case ReadFile(path):
                full = posixpath.join(CWD, path)
                found = self.files.get(full)
                if isinstance(found, str):
                    return FileText(found, full, 7)
                return Failure("No such file or directory")
            case RunCommand(text):
                return FileText(self.commands.get(text, UNKNOWN))
            case ListGlob(pattern):
                full = posixpath.join(CWD, pattern)
                names = sorted(name for name in self.files if fnmatch.fnmatch(name, full))
                return tuple(name.removeprefix(CWD + "/") for name in names) or (pattern,)
            case JudgePath(path, kind):
                full = posixpath.join(CWD, path)
                is_dir = any(name.startswith(full + "/") for name in self.files)
                is_file = full in self.files
                return {"file": is_file, "dir": is_dir, "exists": is_file or is_dir}[kind]
            case ReadDirectory(path):
                found = self.files.get(posixpath.join(CWD, path))
                if isinstance(found, dict):
                    return tuple(found.items())
                return Failure("No such file or directory")
            case AskFact(name):
                return self.facts[name]

    def drive(self, generator):
        try:
            request = next(generator)
            while True:
                request = generator.send(self.answer(request))
        except StopIteration as stop:
            return stop.value

    def read(self, *arguments):
        """Return the Reading of a command line."""
        given = (*parse_environment(self.environ), *parse_arguments(arguments))
        return self.drive(Reader(self.environ).read(given))

    def load(self, *arguments):
        """Return the MasterSpec of a command line; raises ConfigError."""
        return self.drive(load(arguments, self.environ))


def read(text, files=None, **world):
    """Return the Reading of one [uwsgi] section."""
    return World({MAIN: "[uwsgi]\n" + text} | (files or {}), **world).read("--ini", "main.ini")


def load_text(text, files=None, **world):
    """Return the MasterSpec of a file; raises ConfigError."""
    return World({MAIN: text} | (files or {}), **world).load("main.ini")


def load_lines(*lines, **world):
    """Return the MasterSpec of the lines of one [uwsgi] section; raises ConfigError."""
    return load_text("[uwsgi]\n" + "\n".join(lines), **world)


def problems_of(text, files=None, **world):
    """Return all problems of a file, errors first seen or not."""
    try:
        return load_text(text, files, **world).notices
    except ConfigError as error:
        return error.problems


def errors_of(*lines, **world):
    """Return the reasons and advices of the errors in the lines of a [uwsgi] section."""
    found = problems_of("[uwsgi]\n" + "\n".join(lines), **world)
    return [f"{each.reason}; {each.advice}" for each in found if each.is_error]


def warnings_of(*lines, **world):
    """Return the reasons and advices of the warnings."""
    found = problems_of("[uwsgi]\n" + "\n".join(lines), **world)
    return [f"{each.reason}; {each.advice}" for each in found if not each.is_error]
