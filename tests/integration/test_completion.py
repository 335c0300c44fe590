"""Completion in shells: what a shell offers when the key is pressed."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys

import pytest
from masters import DEADLINE, RUNTIME

from lowsuper.ctl import VERBS
from lowsuper.ctl.completion import SHELLS, list_switches

TEXT = "".join(
    f"attach-daemon2 = name={name},cmd=sleep 1000\n" for name in ("web", "web:2", "worker", "db")
)


class Shell:
    """A shell that has the completion, and a `lowsuper` in its PATH."""

    def __init__(self, masters, directory):
        self._directory = directory
        program = directory / "bin" / "lowsuper"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m lowsuper "$@"\n')
        program.chmod(0o755)
        self._env = {
            **os.environ,
            RUNTIME: f"{masters.directory}/.run",
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "HOME": str(directory),
        }

    def run(self, *words: str) -> subprocess.CompletedProcess:
        done = subprocess.run(
            words, cwd=self._directory, env=self._env, capture_output=True, text=True,
            timeout=DEADLINE, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done

    def bash(self, line: str) -> list[str]:
        """Return what bash offers at the end of a line, parted as readline does it."""
        code = (
            "source <(lowsuper completion bash); COMP_LINE=$1; COMP_POINT=${#1}; shift;"
            ' COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _lowsuper;'
            ' printf "%s\\n" "${COMPREPLY[@]}"'
        )
        words = line.replace(":", " : ").split() + ([""] if line.endswith((" ", ":")) else [])
        done = self.run("bash", "--norc", "-c", code, "bash", line, *words)
        assert done.stderr == ""
        return sorted(filter(None, done.stdout.splitlines()))

    def fish(self, line: str) -> list[str]:
        code = "lowsuper completion fish | source; complete -C $argv[1]"
        done = self.run("fish", "--no-config", "-c", code, line)
        assert done.stderr == ""
        return sorted(each.partition("\t")[0] for each in done.stdout.splitlines())


@pytest.fixture
def shell(masters, tmp_path):
    masters.start(TEXT)
    return Shell(masters, tmp_path)


def need_shell(name: str) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"needs: {name}")


def test_bash_offers_verbs_names_and_options(shell, tmp_path):
    need_shell("bash")
    (tmp_path / "start.ini").touch()
    assert shell.bash("lowsuper sta") == ["start", "start.ini", "status"]
    assert shell.bash("lowsuper stop w") == ["web", "web:2", "worker"]
    assert shell.bash("lowsuper stop web db wo") == ["worker"]
    assert shell.bash("lowsuper stop web:") == ["2"]
    assert shell.bash("lowsuper -n test why d") == ["db"]
    assert shell.bash("lowsuper -n nobody why d") == []
    assert shell.bash("lowsuper logs --f") == ["--follow"]
    assert shell.bash("lowsuper status --m") == ["--memory"]
    assert shell.bash("lowsuper stop --m") == []
    assert shell.bash("lowsuper status -n ") == ["test"]
    assert shell.bash("lowsuper status --color n") == ["never"]
    assert shell.bash("lowsuper signal -s T") == ["TERM"]
    assert shell.bash("lowsuper completion z") == ["zsh"]
    assert shell.bash("lowsuper diff ") == []


def test_fish_offers_verbs_names_and_options(shell):
    need_shell("fish")
    assert {"start", "status"} <= set(shell.fish("lowsuper sta"))
    assert shell.fish("lowsuper stop w") == ["web", "web:2", "worker"]
    assert shell.fish("lowsuper -n test why d") == ["db"]
    assert shell.fish("lowsuper -n nobody why d") == []
    assert shell.fish("lowsuper logs --fo") == ["--follow"]
    assert shell.fish("lowsuper status --color n") == ["never"]


def test_zsh_offers_verbs_names_and_options(shell, tmp_path):
    """In a pseudo terminal, as zsh completes nowhere else."""
    need_shell("zsh")
    site = tmp_path / "site"
    site.mkdir()
    (site / "_lowsuper").write_text(shell.run("lowsuper", "completion", "zsh").stdout)
    code = """
zmodload zsh/zpty
zpty z zsh -f -i
zpty -w z 'PS1=; fpath=(%s $fpath); autoload -Uz compinit; compinit -u -d %s/dump; print R''EADY'
zpty -r z REPLY '*READY*'
zpty -n -w z $'%s\\t'
zpty -r -m z REPLY '*worker*'
print -r -- $REPLY
zpty -d z
"""
    found = shell.run("zsh", "-f", "-c", code % (site, tmp_path, "lowsuper stop wor")).stdout
    assert "worker" in found


@pytest.mark.parametrize("name", SHELLS)
def test_script_has_every_verb_and_option(masters, tmp_path, name):
    text = Shell(masters, tmp_path).run("lowsuper", "completion", name).stdout
    for verb in VERBS:
        assert verb in text
        for each in list_switches(verb):
            assert (f"-l {each.name}" if name == "fish" else f"--{each.name}") in text
    if shutil.which(name) is not None:
        flag = "--no-execute" if name == "fish" else "-n"
        path = tmp_path / "script"
        path.write_text(text)
        subprocess.run([name, flag, str(path)], check=True)


def test_other_shell_is_refused():
    done = subprocess.run(
        [sys.executable, "-m", "lowsuper", "completion", "tcsh"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert "bash, zsh, fish" in done.stderr
