"""The filter of system calls, as the kernel would run it."""

from __future__ import annotations

import re
import struct
from errno import ENOSYS, EPERM
from pathlib import Path

import pytest

from lowsuper.legion import confine
from lowsuper.legion.confine import make_filter

X86, ARM = "x86_64", "aarch64"
ALLOW, FAIL = 0x7FFF0000, 0x00050000
ARCH = {X86: 0xC000003E, ARM: 0xC00000B7}
HEADERS = {
    X86: "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
    ARM: "/usr/include/asm-generic/unistd.h",
}
NUMBERS = {
    **confine._CALLS,
    **confine._CALLS_OF_CLIENTS,
    **confine._BOUNDED,
    "openat": confine._OPENAT,
    "clone": confine._CLONE,
    "clone3": confine._CLONE3,
}


def run(code: bytes, arch: int, number: int, *arguments: int) -> int:
    """Return what a program answers: the part of classic BPF that it uses."""
    data = struct.pack("=IIQ6Q", number, arch, 0, *arguments, *(0,) * (6 - len(arguments)))
    program = list(struct.iter_unpack("=HBBI", code))
    at = value = 0
    while True:
        kind, yes, no, constant = program[at]
        at += 1
        if kind == 0x20:
            (value,) = struct.unpack_from("=I", data, constant)
        elif kind == 0x54:
            value &= constant
        elif kind == 0x15:
            at += yes if value == constant else no
        else:
            assert kind == 0x06
            return constant


def ask(machine, name, *arguments, threads=False):
    code = make_filter(machine, threads=threads)
    number = NUMBERS[name][0 if machine == X86 else 1]
    return run(code, ARCH[machine], number, *arguments)


@pytest.mark.parametrize("machine", [X86, ARM])
@pytest.mark.parametrize("threads", [False, True])
def test_what_is_on_the_list_is_allowed_and_all_else_fails(machine, threads):
    code = make_filter(machine, threads=threads)
    column = 0 if machine == X86 else 1
    names = {*confine._CALLS} | ({*confine._CALLS_OF_CLIENTS} if threads else set())
    allowed = {NUMBERS[name][column] for name in names} - {-1}
    partly = {
        *(NUMBERS[name][column] for name in ("mmap", "mprotect")),
        *((NUMBERS[name][column] for name in ("openat", "clone", "clone3")) if threads else ()),
    }
    for number in {*range(600)} - partly:
        answer = run(code, ARCH[machine], number)
        assert answer == (ALLOW if number in allowed else FAIL | EPERM), number
    # Not those of other machines, nor those of 32 bits on this one.
    for arch in (0, 0x40000003, *({*ARCH.values()} - {ARCH[machine]})):
        assert run(code, arch, min(allowed)) == FAIL | EPERM
    assert run(code, ARCH[machine], 0x40000000 | min(allowed)) == FAIL | EPERM


@pytest.mark.parametrize("machine", [X86, ARM])
def test_calls_that_depend_on_an_argument(machine):
    for name in ("mmap", "mprotect"):
        assert ask(machine, name, 0, 4096, 3) == ALLOW
        for protection in (4, 5, 7):
            assert ask(machine, name, 0, 4096, protection) == FAIL | EPERM
    assert ask(machine, "openat", 0, 0, 0o2000000) == FAIL | EPERM
    assert ask(machine, "openat", 0, 0, 0o2000000, threads=True) == ALLOW
    for flags in (1, 2, 0o101):
        assert ask(machine, "openat", 0, 0, flags, threads=True) == FAIL | EPERM
    assert ask(machine, "clone", 0x3D0F00, threads=True) == ALLOW
    assert ask(machine, "clone", 17, threads=True) == FAIL | EPERM
    assert ask(machine, "clone3", threads=True) == FAIL | ENOSYS
    assert ask(machine, "clone", 0x3D0F00) == FAIL | EPERM


def test_other_machine_has_no_list():
    assert make_filter("riscv64", threads=False) is None


@pytest.mark.parametrize("machine", [X86, ARM])
def test_numbers_are_those_of_the_kernel(machine):
    path = Path(HEADERS[machine])
    if not path.exists():
        pytest.skip(f"needs: {path}")
    text = re.sub(r"__NR3264_(\w+) ", r"__NR_\1 ", path.read_text())
    found = {
        name: int(number)
        for name, number in re.findall(r"^#define __NR_(\w+) (\d+)$", text, re.MULTILINE)
    }
    for name, numbers in NUMBERS.items():
        number = numbers[0 if machine == X86 else 1]
        # The generic header has two names for what has two widths.
        other = {"newfstatat": "fstatat"}.get(name, name) if machine == ARM else name
        assert number == found.get(other, -1), name
