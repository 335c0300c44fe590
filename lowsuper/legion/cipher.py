"""What closes a packet for the network, and opens what came from there.

Two ways. The compatible one is uWSGI's: four bytes of header, then the packet in the configured
cipher, with the same key and the same initialization vector each time, and nothing that would show
that it was changed. The modern one, among lowsuper nodes only, is authenticated, header and all:

    offset  bytes  what
    0       3      MAGIC
    3       1      version, 1
    4       1      suite: 1 is AES-256-GCM, 2 ChaCha20-Poly1305
    5       12     nonce, random
    17      ...    ciphertext and its tag of 16 bytes

Random nonces do for 2^32 packets under one key (NIST SP 800-38D, 8.3): for a hundred nodes of a
packet per second each, more than a year; give such a legion a new secret once a year.
"""

from __future__ import annotations

import os

from lowsuper.errors import UnsupportedError
from lowsuper.legion.packet import PACKET_MAX
from lowsuper.legion.suites import SUITES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Protocol

    from lowsuper.model import Legion

    class Seal(Protocol):
        """Closes and opens the datagrams of a legion."""

        def close(self, plain: bytes) -> bytes:
            """Return the datagram of a packet."""

        def open(self, datagram: bytes) -> bytes:
            """Return the packet of a datagram.

            Raises:
                ValueError: it is none of this legion; a phrase.
            """


COMPATIBLE = 109
"""The first byte of a packet of uWSGI's."""

MAGIC = b"\xd4LS"
VERSION = 1
NONCE_SIZE, TAG_SIZE = 12, 16
_HEADER_SIZE = len(MAGIC) + 2 + NONCE_SIZE
_COMPATIBLE_HEADER_SIZE = 4

_MODERN = {"aes-256-gcm": (1, "AESGCM"), "chacha20-poly1305": (2, "ChaCha20Poly1305")}
_SCRYPT = {"n": 1 << 14, "r": 8, "p": 1}  # 16 MiB and 30 ms, once
_SALT = b"lowsuper legion 1"

_ALGORITHMS = {
    "aes": ("AES", False),
    "bf": ("Blowfish", True),
    "camellia": ("Camellia", False),
    "cast5": ("CAST5", True),
    "des-ede3": ("TripleDES", False),
    "idea": ("IDEA", True),
    "rc4": ("ARC4", True),
    "seed": ("SEED", True),
    "sm4": ("SM4", False),
}
"""Each with its class in `cryptography`, and whether OpenSSL 3 has it as legacy only."""

_MODES = {"cbc": "CBC", "ecb": "ECB", "ctr": "CTR", "cfb": "CFB", "cfb8": "CFB8", "ofb": "OFB"}
_PADDED = ("cbc", "ecb")

NO_LEGACY = "CRYPTOGRAPHY_OPENSSL_NO_LEGACY"
"""What keeps `cryptography` from loading the legacy provider; read when it is imported first."""


def is_legacy(cipher: str) -> bool:
    """Return whether a cipher is one that OpenSSL 3 has in its legacy provider only."""
    name, _ = _split(cipher)
    return name in _ALGORITHMS and _ALGORITHMS[name][1]


def spare_legacy(ciphers: Iterable[str]) -> None:
    """Keep OpenSSL's legacy provider out of this process if none of these ciphers needs it.

    `cryptography` loads it otherwise, and does nothing at all on a system that has none. To be
    called before `cryptography` is imported; it changes the environment.
    """
    if not any(map(is_legacy, ciphers)):
        os.environ[NO_LEGACY] = "1"


def make_seal(legion: Legion) -> Seal:
    """Return what closes and opens the packets of a legion.

    Raises:
        UnsupportedError: this system cannot do its cipher.
    """
    try:
        return _Modern(legion) if legion.is_modern else _Compatible(legion)
    except ImportError as error:
        raise UnsupportedError(
            f"legion {legion.name}: the Python package cryptography is missing ({error}); "
            "run pip install 'lowsuper[legion]' with the Python that runs lowsuper"
        ) from None
    except RuntimeError:
        # So says `cryptography` when it is imported and cannot load the legacy provider.
        raise UnsupportedError(_explain_legacy(legion)) from None


def _explain_legacy(legion: Legion) -> str:
    return (
        f"legion {legion.name}: {legion.cipher} needs the legacy provider of OpenSSL 3, which is "
        "not to be had here; install OpenSSL's legacy.so (on Debian 13 the package "
        "openssl-provider-legacy) or the cryptography of PyPI, which has its own, and see that "
        f"{NO_LEGACY} is not set; or choose aes-256-cbc on all nodes"
    )


def _split(cipher: str) -> tuple[str, str]:
    """Return algorithm and mode of the name of a cipher, without the length of its key."""
    words = cipher.split("-")
    mode = words.pop() if words[-1] in _MODES else ""
    return "-".join(word for word in words if not word.isdigit()), mode


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _blame_kind(first: int, wanted: str) -> str:
    """Return what to say of a datagram that begins in another way."""
    if first == COMPATIBLE:
        return f"is a packet of uWSGI's kind, and this legion has {wanted}"
    if first == MAGIC[0]:
        return f"is an authenticated packet of lowsuper's, and this legion has {wanted}"
    return "is no packet of a legion"


class _Compatible:
    """As uWSGI does it: see its core/legion.c."""

    def __init__(self, legion: Legion) -> None:
        """Make the key: cut, or padded with zeros; the vector is padded with the digit "0"."""
        import cryptography.exceptions
        from cryptography.hazmat.decrepit.ciphers import algorithms as old
        from cryptography.hazmat.decrepit.ciphers import modes as old_modes
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        suite = SUITES.get(legion.cipher)
        name, mode = _split(legion.cipher)
        if suite is None or name not in _ALGORITHMS:
            raise UnsupportedError(f"legion {legion.name}: there is no cipher {legion.cipher}")
        key = _encode(legion.secret.text)[: suite.key].ljust(suite.key, b"\0")
        vector = _encode(legion.iv or "")[: suite.iv].ljust(suite.iv, b"0")
        algorithm = _find(_ALGORITHMS[name][0], old, algorithms)(key)
        self._name = legion.cipher
        self._block = algorithm.block_size // 8 if mode in _PADDED else 0
        kind = _find(_MODES[mode], old_modes, modes) if mode else None
        with_mode = None if kind is None else kind(vector) if suite.iv else kind()
        self._cipher: Cipher[Any] = Cipher(algorithm, with_mode)
        try:
            self._cipher.encryptor()
        except cryptography.exceptions.UnsupportedAlgorithm:
            if is_legacy(legion.cipher):
                raise UnsupportedError(_explain_legacy(legion)) from None
            raise UnsupportedError(
                f"legion {legion.name}: the OpenSSL of this system has no {legion.cipher}; "
                "choose aes-256-cbc on all nodes"
            ) from None

    def close(self, plain: bytes) -> bytes:
        """Return the datagram of a packet."""
        size = len(plain)
        assert size <= PACKET_MAX, "the length has 16 bits"
        if self._block:
            pad = self._block - size % self._block
            plain += bytes([pad]) * pad
        work = self._cipher.encryptor()
        header = bytes([COMPATIBLE, size & 0xFF, size >> 8, 0])
        return header + work.update(plain) + work.finalize()

    def open(self, datagram: bytes) -> bytes:
        """Return the packet of a datagram; see Seal."""
        if len(datagram) <= _COMPATIBLE_HEADER_SIZE:
            raise ValueError("is too short")
        if datagram[0] != COMPATIBLE:
            raise ValueError(_blame_kind(datagram[0], self._name))
        size = int.from_bytes(datagram[1:3], "little")
        data = datagram[_COMPATIBLE_HEADER_SIZE:]
        # The length is known before any work is done.
        block = self._block
        if len(data) != (size + block - size % block if block else size):
            raise ValueError("is not as long as it says")
        work = self._cipher.decryptor()
        plain = work.update(data) + work.finalize()
        if not block:
            return plain
        pad = len(plain) - size
        if plain[size:] != bytes([pad]) * pad:
            raise ValueError("does not decrypt: the secret, the cipher or the IV is another one")
        return plain[:size]


def _find(name: str, *modules: object) -> Any:  # noqa: ANN401  # a class that has no common base
    """Return a class of the first module that has it.

    What is out of fashion moves from the one to the other as `cryptography` goes on, and warns
    where it was.
    """
    for module in modules:
        found = getattr(module, name, None)
        if found is not None:
            return found
    raise ImportError(f"it has no {name}")


class _Modern:
    """Authenticated."""

    def __init__(self, legion: Legion) -> None:
        """Derive the key, which is another one for each legion and each suite."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers import aead
        from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

        self._name, self._error = legion.cipher, InvalidTag
        number, name = _MODERN[legion.cipher]
        salt = b"\0".join((_SALT, _encode(legion.cipher), _encode(legion.name)))
        key = Scrypt(salt=salt, length=32, **_SCRYPT).derive(_encode(legion.secret.text))
        self._cipher = getattr(aead, name)(key)
        self._start = MAGIC + bytes([VERSION, number])

    def close(self, plain: bytes) -> bytes:
        """Return the datagram of a packet."""
        header = self._start + os.urandom(NONCE_SIZE)
        sealed: bytes = self._cipher.encrypt(header[-NONCE_SIZE:], plain, header)
        return header + sealed

    def open(self, datagram: bytes) -> bytes:
        """Return the packet of a datagram; see Seal."""
        if len(datagram) < _HEADER_SIZE + TAG_SIZE:
            raise ValueError("is too short")
        if not datagram.startswith(self._start):
            raise ValueError(self._blame(datagram))
        header = datagram[:_HEADER_SIZE]
        try:
            plain: bytes = self._cipher.decrypt(
                header[-NONCE_SIZE:], datagram[_HEADER_SIZE:], header
            )
        except self._error:
            raise ValueError("is not authentic: the secret is another one") from None
        return plain

    def _blame(self, datagram: bytes) -> str:
        if not datagram.startswith(MAGIC):
            first = datagram[0] if datagram[0] == COMPATIBLE else 0
            return _blame_kind(first, self._name)
        if datagram[len(MAGIC)] != VERSION:
            return f"is of version {datagram[len(MAGIC)]}, and this lowsuper knows {VERSION}"
        return f"is in another cipher than {self._name}"
