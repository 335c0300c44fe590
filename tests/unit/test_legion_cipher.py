"""Closing and opening packets: as uWSGI and OpenSSL do it, and as nobody can change it."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowsuper.legion import cipher as module
from lowsuper.legion.cipher import MAGIC, NO_LEGACY, make_seal, spare_legacy
from lowsuper.legion.packet import PACKET_MAX, Packet, decode
from lowsuper.legion.suites import SUITES
from lowsuper.model import Legion, Origin, Secret

TEXT = b"some packet of a legion"
MODERN = [name for name, suite in SUITES.items() if suite.modern]
COMPATIBLE = [name for name, suite in SUITES.items() if not suite.modern]


def legion(cipher, secret="a secret", *, iv=None, name="web"):
    return Legion(name, Origin("", 0, "", ""), cipher=cipher, secret=Secret(secret), iv=iv)


SEALS = {name: make_seal(legion(name)) for name in SUITES}

# What uWSGI 2.0.31 sent, with a secret that is too long or too short, and the same of the IV.
OF_UWSGI = [
    (
        legion("aes-128-cbc", "a_secret_that_is_cut_at_sixteen", iv="myiv"),
        (
            "6dd10000e4d1571e5092b90c9b799242b536eea9cd9ed5ed318bc3638f645fac5b5abec2ee0b1e4b"
            "e6cf70c869b89e6e36e27f62d5d6c86270ff44ed6a69ad1156fb9e2affc4530318ff441eb8ff72bb"
            "a593c84fc87d4b4e0f89162d4b15fa20686fb21bc41cf7ee6ea16934fdc3a3304cbfe1b16c93f379"
            "eb15c3b3325e331ab1e3031f68ef65ff7b231cdaf2b0c8ad8223b7cd82e9c7433af0415d7f65b405"
            "50532c1a22bf462b1a57f1d8497ebbdf88084a2962b84f0da8c2318a297f012002e5c7665207ceeb"
            "62cd6b526950e790f6a33cc2fc84299b91d2a332710f9eafe1c805e9"
        ),
        (1795490345, 27537, "3d3cbfa1-594e-48a8-89ba-eb2c20aec81e"),
    ),
    (
        legion("aes-256-cbc", "short"),
        (
            "6dd10000f19144c0922157fd31ffd8bd9301e532009249cfb5965e4037abe6cdb081ff9b87d813a0"
            "54815c20a1a238d6325ca732fe203031051887dc64633cc9bad339ac4b0e5c0caf7d602ec0a05ad0"
            "e3993175b96f5282dd3f694b7fdf0118f82b30c9cf1f7d000d9d7505640c084ce63119c5ed37f114"
            "5a7c604e0b1a9f689b7baefd4adee93c7fa196bc335a0a8c2b60770bb521539671acad76f51275c6"
            "bc87916bce4a2bfb0f536c7617cf732b9f71e95aab1237a7cf3c3f7ffbc4e6f61cb05aa0490501a8"
            "2a5e0de3237d049328307b52e10059ff4cc8b8d6bbd4405204f22bf7"
        ),
        (1795490346, 27539, "f8836231-1249-4c36-a17e-a0838aea1f63"),
    ),
    (
        legion("des-ede3-cbc", "short", iv="12345678andmore"),
        (
            "6dd100002b8f8a9cf4877372466a243b259709981333085be0814ea04c8957eac2275c5b01c45193"
            "de76cb388bf5231c444892d616382c04c611767e26684dda3dab249588b5812fc0aab265373bc36f"
            "d5323a71f449c4254db53e31f21c97745e3ac1e3ea8161e584d3c854946252cce2669cff9ed09588"
            "b86f9f2b9b8e5bc6191838d8b8d5bd33265ecd80dec1a314e4811de9b2750d5bac5b59597f234987"
            "7b8c70313a754fd22842162a802e623656630ca9268e37d52cfda90a860da12103a674909c244c84"
            "49c0100141ff1111b1388d447794e56fcf197f7a"
        ),
        (1795490347, 27549, "e6da4664-07bd-4263-8585-ad5f443e704a"),
    ),
]

# What `openssl enc` makes of TEXT with the key "a secret" and zeros, and a vector of digits "0".
OF_OPENSSL = {
    "bf-cbc": "79dba215eeffcc02e74f644f516b138b6e3dc61de43a2354",
    "des-ede3-cbc": "ea2340771589080cef5de157fcea21e6bd283e4830ac7d32",
    "camellia-256-cbc": "83083301fdf5c6e42ff16a6b1eba3895e69f8354c930613023eec33d6d01a902",
    "aes-192-cfb": "da1509a9db791c191af6d27d38d43bcd3597eb2158d284",
    "aes-128-ctr": "8c212ab987957a7e7187394191d202dca6685379f50134",
    "aes-128-ecb": "79d1281497558cbd6730cf1ad747990feb46672989f96f758b393385ccb493a5",
    "cast5-cbc": "ee26aef7e720e913eff891afaf0e1ae2de2d0f2e1bda50e6",
    "seed-cbc": "7a0d5942c7cdd98fd9b31d2b055725ff13a6a747622c692eecdb8eea4c8297db",
    "rc4": "cbb5f9de496c91576aed444b2be72e6f1900045cdbbfa0",
    "sm4-cbc": "00d1fbe93160b59c3020163d127f0e16a491432b0f169b2a5f0d054274dbf1f0",
}


@pytest.mark.parametrize(("node", "datagram", "wanted"), OF_UWSGI)
def test_datagram_of_uwsgi_is_opened_and_closed_alike(node, datagram, wanted):
    data = bytes.fromhex(datagram)
    seal = make_seal(node)
    plain = seal.open(data)
    unix, pid, uuid = wanted
    assert decode(plain) == Packet("web", 98, unix, "vm", pid, uuid, scroll="hello")
    assert seal.close(plain) == data


@pytest.mark.parametrize("name", OF_OPENSSL)
def test_ciphertext_is_that_of_openssl(name):
    data = SEALS[name].close(TEXT)
    assert data[:4] == bytes([109, len(TEXT), 0, 0])
    assert data[4:].hex() == OF_OPENSSL[name]


@pytest.mark.parametrize("name", SUITES)
def test_every_cipher_opens_what_it_has_closed(name):
    seal = SEALS[name]
    for size in (0, 1, 7, 8, 15, 16, 17, 255, 256, 4096, PACKET_MAX):
        data = bytes(size)
        # An empty packet is none; but in blocks it has a length.
        if size or not name.endswith(("cfb", "ofb", "ctr", "rc4")):
            assert seal.open(seal.close(data)) == data


@pytest.mark.parametrize("name", ["aes-256-cbc", "bf-cbc", "aes-128-ecb", "rc4", *MODERN])
@given(data=st.binary(max_size=200), start=st.sampled_from(["", "6d", MAGIC.hex(), "d44c530101"]))
def test_anything_is_opened_or_refused_with_a_phrase(name, data, start):
    try:
        SEALS[name].open(bytes.fromhex(start) + data)
    except ValueError as error:
        assert str(error).split()[0] in ("is", "does")  # noqa: PT017  # nothing else may come
    else:
        assert name not in MODERN


@pytest.mark.parametrize("name", ["aes-256-cbc", "bf-cbc", "aes-128-ctr", *MODERN])
@given(at=st.integers(0, 1 << 16), bit=st.integers(0, 7), size=st.integers(0, 300))
def test_changed_datagram_is_refused_or_read_as_something_else(name, at, bit, size):
    data = bytearray(SEALS[name].close(TEXT))
    data[at % len(data)] ^= 1 << bit
    for changed in (bytes(data), bytes(data[:size])):
        try:
            plain = SEALS[name].open(changed)
        except ValueError:
            continue
        assert name not in MODERN
        assert plain != TEXT or at % len(data) == 3  # uWSGI does not look at that byte


@pytest.mark.parametrize("name", MODERN)
def test_every_bit_of_a_modern_datagram_counts(name):
    data = SEALS[name].close(TEXT)
    for at in range(8 * len(data)):
        changed = bytearray(data)
        changed[at // 8] ^= 1 << at % 8
        with pytest.raises(ValueError, match=r"^is "):
            SEALS[name].open(bytes(changed))
    for changed in (data + b"\0", data[:-1], data[1:], data[:33], b""):
        with pytest.raises(ValueError, match=r"^is "):
            SEALS[name].open(changed)


@pytest.mark.parametrize("name", MODERN)
def test_modern_datagrams_of_one_packet_have_nothing_in_common_but_the_start(name):
    first, second = SEALS[name].close(TEXT), SEALS[name].close(TEXT)
    assert first[:5] == second[:5]
    assert first[5:17] != second[5:17]
    assert first[17:] != second[17:]


@pytest.mark.parametrize("name", MODERN)
@pytest.mark.parametrize(
    ("secret", "legion_name"), [("another", "web"), ("a secret", "mail"), ("", "web")]
)
def test_modern_datagram_of_another_secret_or_legion_is_refused(name, secret, legion_name):
    other = make_seal(legion(name, secret, name=legion_name))
    with pytest.raises(ValueError, match=r"^is not authentic: the secret is another one$"):
        other.open(SEALS[name].close(TEXT))


def test_suites_have_keys_of_their_own_though_the_secret_is_one():
    first, second = MODERN
    data = SEALS[first].close(TEXT)
    # As if somebody had changed the suite: even without authentication it would be of no use.
    with pytest.raises(ValueError, match=r"^is in another cipher"):
        SEALS[second].open(data)
    with pytest.raises(ValueError, match=r"^is not authentic"):
        SEALS[second].open(data[:4] + SEALS[second].close(TEXT)[4:5] + data[5:])


@pytest.mark.parametrize(
    ("cipher", "data", "reason"),
    [
        ("aes-256-cbc", b"", "is too short"),
        ("aes-256-cbc", b"\x6d\x01\x00\x00", "is too short"),
        ("aes-256-cbc", b"\x6d\x01\x00\x00" + bytes(17), "is not as long as it says"),
        ("aes-256-cbc", b"\x6d\x10\x00\x00" + bytes(16), "is not as long as it says"),
        ("aes-256-cbc", b"GET / HTTP/1.0", "is no packet of a legion"),
        (
            "aes-256-cbc",
            SEALS[MODERN[0]].close(TEXT),
            "is an authenticated packet of lowsuper's, and this legion has aes-256-cbc",
        ),
        (
            "aes-256-gcm",
            SEALS["aes-256-cbc"].close(bytes(100)),
            "is a packet of uWSGI's kind, and this legion has aes-256-gcm",
        ),
        ("aes-256-gcm", bytes(100), "is no packet of a legion"),
        ("aes-256-gcm", MAGIC + bytes(3), "is too short"),
        (
            "aes-256-gcm",
            MAGIC + b"\x02\x01" + bytes(50),
            "is of version 2, and this lowsuper knows 1",
        ),
        ("aes-256-gcm", SEALS[MODERN[1]].close(TEXT), "is in another cipher than aes-256-gcm"),
        (
            "aes-256-cbc",
            make_seal(legion("aes-256-cbc", "another")).close(TEXT),
            "does not decrypt: the secret, the cipher or the IV is another one",
        ),
    ],
    # Of what is sealed each time anew, each process of the tests would make another name.
    ids=lambda value: "data" if isinstance(value, bytes) else None,
)
def test_what_is_wrong_with_a_datagram_is_said(cipher, data, reason):
    with pytest.raises(ValueError, match=f"^{re.escape(reason)}$"):
        SEALS[cipher].open(data)


@pytest.mark.parametrize("name", COMPATIBLE)
def test_secret_is_in_no_text_of_a_seal(name):
    seal = make_seal(legion(name, "xyzzy-plugh"))
    assert "xyzzy" not in repr(seal) + repr(legion(name, "xyzzy-plugh"))


def test_secret_may_hold_any_bytes():
    seal = make_seal(legion("aes-256-cbc", "\udcff\udc80é"))
    assert seal.open(seal.close(TEXT)) == TEXT


@pytest.mark.parametrize(
    ("ciphers", "wanted"),
    [
        (["aes-256-cbc", "des-ede3-cbc", "aes-256-gcm"], "1"),
        (["aes-256-cbc", "bf-cbc"], None),
        (["cast5-cbc"], None),
        ([""], "1"),  # of a legion with etcd
    ],
)
def test_legacy_provider_is_loaded_only_for_who_needs_it(monkeypatch, ciphers, wanted):
    environment = {}
    monkeypatch.setattr(module.os, "environ", environment)
    spare_legacy(ciphers)
    assert environment.get(NO_LEGACY) == wanted


PROGRAM = """
import sys
from lowsuper.errors import UnsupportedError
from lowsuper.legion.cipher import make_seal
from lowsuper.model import Legion, Origin, Secret
{}
for name in ("bf-cbc", "aes-256-cbc", "aes-256-gcm", "no-such"):
    legion = Legion("web", Origin("", 0, "", ""), cipher=name, secret=Secret("s"))
    try:
        make_seal(legion)
    except UnsupportedError as error:
        print(error)
    else:
        print("ok")
"""


def run(prelude="", **environment):
    command = [sys.executable, "-I", "-c", PROGRAM.format(prelude)]
    env = {**os.environ, **environment}
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True, timeout=20)
    return done.stdout.splitlines()


def test_missing_legacy_provider_is_said_with_the_remedy():
    lines = run(**{NO_LEGACY: "1"})
    assert lines[0].startswith("legion web: bf-cbc needs the legacy provider of OpenSSL 3")
    assert "choose aes-256-cbc on all nodes" in lines[0]
    assert lines[1:3] == ["ok", "ok"]
    assert lines[3] == "legion web: there is no cipher no-such"


def test_missing_package_is_said_with_the_remedy():
    for line in run("sys.modules['cryptography'] = None"):
        assert line.startswith("legion web: the Python package cryptography is missing")
        assert "pip install 'lowsuper[legion]'" in line
