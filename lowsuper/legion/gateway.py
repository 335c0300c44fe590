"""What a legion asks of etcd, over etcd's JSON gateway, by way of the library `etcd3gw`.

One HTTP request for each request of `claim`; it blocks, and is made in a thread of its own. Of
etcd3gw its plain `post` is used: what it offers for a purpose has no bound for the time that a
watch may take. The paths are those of etcd 3.4 and later; see its documents, "gRPC gateway".
"""

from __future__ import annotations

import socket
import ssl
from base64 import b64decode, b64encode
from errno import EINVAL
from urllib.parse import quote_from_bytes, urlsplit

import requests
from etcd3gw import Etcd3Client
from etcd3gw.exceptions import ConnectionFailedError, ConnectionTimeoutError, Etcd3Exception
from requests.adapters import HTTPAdapter

from lowsuper import wire
from lowsuper.errors import KernelError
from lowsuper.legion.claim import bound
from lowsuper.legion.claim_states import (
    Beat,
    Claim,
    Done,
    Failed,
    Grant,
    Granted,
    Heartbeat,
    Holder,
    KeepAlive,
    Kept,
    Look,
    Lost,
    Member,
    Present,
    Release,
    Revoke,
    Saw,
    Stirred,
    Watch,
    Wrote,
)
from lowsuper.units import SECOND, Ns, format_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from lowsuper.legion.claim_states import Answer, Flight, Rules
    from lowsuper.model import Etcd

MOST_MEMBERS = 1024
MOST_TTL = Ns(600 * SECOND)
MOST_NAME = 256
MOST_TEXT = 200  # of what etcd says of an error

_LEASE_GONE = "requested lease not found"
_NO_AUTH = "authentication is not enabled"
_NAMED = "CommonName of client"
_OLD_TOKENS = ("invalid auth token", "revision of auth store is old")


class AnswerError(Exception):
    """An answer that is none; a phrase."""


class _Adapter(HTTPAdapter):
    """Connections that trust whom the context trusts, and nobody else.

    The library would add certificate authorities of its own, and read files at each connection.
    """

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._context = context
        super().__init__(max_retries=0)

    def init_poolmanager(self, *args: Any, **named: Any) -> None:  # noqa: ANN401  # the library's
        if self._context is not None:
            named["ssl_context"] = self._context
        super().init_poolmanager(*args, **named)  # type: ignore[no-untyped-call, unused-ignore]

    def build_connection_pool_key_attributes(
        self,
        request: requests.PreparedRequest,
        verify: Any,  # noqa: ANN401
        cert: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        host, _ = super().build_connection_pool_key_attributes(request, verify, cert)
        return host, {}

    def cert_verify(self, conn: object, url: object, verify: object, cert: object) -> None:
        """Leave it to the context."""


class Access:
    """What all threads of a legion share: whom to believe, who we are, which cluster it is."""

    def __init__(self, etcd: Etcd) -> None:
        """Read the certificates.

        Raises:
            KernelError: a file cannot be read, or is no such thing.
        """
        self.etcd = etcd
        self.context = make_context(etcd)
        self.tokens: dict[int, str] = {}  # of each server, once it knows us
        self.cluster = ""  # that has granted the last lease


def make_context(etcd: Etcd) -> ssl.SSLContext | None:
    """Return what connections are closed with; None: they are not.

    Raises:
        KernelError: a file cannot be read, or is no such thing.
    """
    if not any(server.startswith("https:") for server in etcd.servers):
        return None
    path = etcd.ca or "the system's certificates"
    try:
        context = ssl.create_default_context(cafile=etcd.ca)
        if etcd.certificate is not None:
            path = etcd.certificate
            context.load_cert_chain(etcd.certificate, etcd.key, password="")
    except ssl.SSLError as error:
        advice = f"{error.reason or error}: it has to hold a certificate, and its key, in PEM"
        raise KernelError("load", EINVAL, path, advice) from None
    except OSError as error:
        raise KernelError("open", error.errno or EINVAL, f"{path} or its key") from None
    return context


def find_prefix(legion: str) -> bytes:
    """Return what all keys of a legion begin with."""
    name = quote_from_bytes(legion.encode("utf-8", "surrogateescape"), safe="")
    return f"/lowsuper/legion/{name}/".encode()


class Gateway:
    """The connections of one thread. All answers are those of `claim`."""

    def __init__(
        self, access: Access, rules: Rules, most_scroll: int, emit: Callable[[Answer], None]
    ) -> None:
        """Make no connection yet.

        Args:
            access: shared with other threads.
            rules: of the legion.
            most_scroll: bytes of a scroll; a longer one of another node is left out.
            emit: is given what is heard while a watch goes on.
        """
        self._access, self._rules, self._most_scroll = access, rules, most_scroll
        self._emit = emit
        self._prefix = find_prefix(rules.legion)
        self._clients: dict[int, Etcd3Client] = {}

    def carry_out(self, flight: Flight) -> Answer:
        """Send a request; return the answer, once it is there."""
        try:
            return self._try(flight)
        except (Etcd3Exception, requests.RequestException, OSError) as error:
            text = find_said(error)
            lease = getattr(flight.request, "lease", 0)
            if _LEASE_GONE in text and lease:
                if isinstance(flight.request, Revoke):
                    return Done(flight.serial)
                return Failed(flight.serial, "says that the lease is no more", lease)
            return Failed(flight.serial, explain(error, flight.bound))
        except AnswerError as error:
            return Failed(flight.serial, str(error))
        except (LookupError, ValueError, TypeError, AttributeError, RecursionError):
            return Failed(flight.serial, "answers what no etcd answers")

    def close(self) -> None:
        """Close the connections."""
        for client in self._clients.values():
            client.session.close()

    def _try(self, flight: Flight) -> Answer:
        client = self._client(flight.server)
        client.timeout = bound(self._rules) / SECOND
        try:
            self._sign_on(client, flight.server)
            return self._send(client, flight)
        except (Etcd3Exception, AnswerError) as error:
            if not any(each in find_said(error) for each in _OLD_TOKENS):
                raise
        self._access.tokens.pop(flight.server, None)
        self._sign_on(client, flight.server)
        return self._send(client, flight)

    def _client(self, server: int) -> Etcd3Client:
        client = self._clients.get(server)
        if client is None:
            session = requests.Session()
            session.trust_env = False  # neither a proxy, nor a password, that nobody has told us
            session.max_redirects = 0
            adapter = _Adapter(self._access.context)
            session.mount("https://", adapter)
            session.mount("http://", adapter)
            url = urlsplit(self._access.etcd.servers[server])
            client = self._clients[server] = Etcd3Client(
                host=url.hostname or "",
                port=url.port or 2379,
                protocol=url.scheme,
                api_path="/v3/",
                session=session,
            )
        return client

    def _sign_on(self, client: Etcd3Client, server: int) -> None:
        etcd, tokens = self._access.etcd, self._access.tokens
        if etcd.user is None:
            return
        if server not in tokens:
            client.session.headers.pop("Authorization", None)
            password = "" if etcd.password is None else etcd.password.text
            body = {"name": etcd.user, "password": password}
            try:
                token = self._post(client, "auth/authenticate", body)["token"]
            except Etcd3Exception as error:
                if _NO_AUTH not in find_said(error):
                    raise
                token = ""
            tokens[server] = token
        if tokens[server]:
            client.session.headers["Authorization"] = tokens[server]

    @staticmethod
    def _post(client: Etcd3Client, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        answer = client.post(client.get_url(path), json=body)
        if not isinstance(answer, dict):
            raise TypeError
        return answer

    def _check(self, header: dict[str, Any]) -> None:
        """Refuse what another cluster says: of our lease it knows nothing."""
        if header["cluster_id"] != self._access.cluster:
            raise AnswerError("belongs to another cluster than the one that has granted the lease")

    def _send(self, client: Etcd3Client, flight: Flight) -> Answer:
        serial, request = flight.serial, flight.request
        match request:
            case Grant(ttl=ttl):
                answer = self._post(client, "lease/grant", {"TTL": ttl, "ID": 0})
                self._access.cluster = answer["header"]["cluster_id"]
                return Granted(serial, int(answer["ID"]))
            case KeepAlive(lease=lease):
                return self._keep_alive(client, serial, lease)
            case Claim() | Beat():
                return self._write(client, flight, request)
            case Look():
                return self._look(client, serial)
            case Watch(revision=revision):
                return self._watch(client, flight, revision)
            case _:
                self._change(client, request)
                return Done(serial)

    def _keep_alive(self, client: Etcd3Client, serial: int, lease: int) -> Answer:
        answer = self._post(client, "lease/keepalive", {"ID": lease})
        if "result" not in answer:
            raise AnswerError(f"says: {clean(str(answer['error']['message']))}")
        result = answer["result"]
        self._check(result["header"])
        return Kept(serial, int(result.get("TTL", 0)) > 0)

    def _change(self, client: Etcd3Client, request: Present | Release | Revoke) -> None:
        rules = self._rules
        match request:
            case Present(lease=lease):
                value = {"name": rules.name, "valor": rules.valor, "scroll": rules.scroll}
                key = encode64(self._prefix + b"nodes/" + rules.uuid.encode())
                body = {"key": key, "value": encode64(wire.encode(value).encode()), "lease": lease}
                answer = self._post(client, "kv/put", body)
            case Release(term=term):
                delete = {"request_delete_range": {"key": self._lord}}
                body = {
                    "compare": [self._compare_value(term)],
                    "success": [delete],
                    "failure": [],
                }
                answer = self._post(client, "kv/txn", body)
            case Revoke(lease=lease):
                answer = self._post(client, "lease/revoke", {"ID": lease})
        self._check(answer["header"])

    @property
    def _lord(self) -> str:
        return encode64(self._prefix + b"lord")

    def _title(self, term: int) -> str:
        """Return the value of the lord's key: of each term another one, and always the same."""
        rules = self._rules
        value = {
            "uuid": rules.uuid,
            "term": term,
            "ttl": rules.ttl,
            "name": rules.name,
            "valor": rules.valor,
        }
        return encode64(wire.encode(value).encode())

    def _compare_value(self, term: int) -> dict[str, object]:
        """Return what is true if the lord's key is that of a term of this node."""
        value = self._title(term)
        return {"key": self._lord, "result": "EQUAL", "target": "VALUE", "value": value}

    def _write(self, client: Etcd3Client, flight: Flight, request: Claim | Beat) -> Answer:
        key, term = self._lord, request.term
        compare = self._compare_value(term)
        if isinstance(request, Claim):
            # A key that is not there was last written in revision 0.
            compare = {"key": key, "result": "EQUAL", "target": "MOD"}
            compare["mod_revision"] = request.revision
        body = {
            "compare": [compare],
            "success": [{"request_put": {"key": key, "value": self._title(term)}}],
            "failure": [{"request_range": {"key": key}}],
        }
        answer = self._post(client, "kv/txn", body)
        self._check(answer["header"])
        if answer.get("succeeded"):
            revision = int(answer["header"]["revision"])
            return Wrote(flight.serial, term, flight.sent, revision)
        pairs = answer["responses"][0]["response_range"].get("kvs", ())
        return Lost(flight.serial, read_holder(pairs[0]) if pairs else None)

    def _look(self, client: Etcd3Client, serial: int) -> Answer:
        end = self._prefix[:-1] + b"0"  # "0" follows "/"
        body = {"key": encode64(self._prefix), "range_end": encode64(end)}
        answer = self._post(client, "kv/range", body)
        self._check(answer["header"])
        holder, members = None, list[Member]()
        for pair in answer.get("kvs", ()):
            key = b64decode(pair["key"])[len(self._prefix) :]
            if key == b"lord":
                holder = read_holder(pair)
            elif key.startswith(b"nodes/") and len(members) < MOST_MEMBERS:
                member = read_member(key[len(b"nodes/") :], pair, self._most_scroll)
                members += [] if member is None else [member]
        return Saw(serial, int(answer["header"]["revision"]), holder, tuple(members))

    def _watch(self, client: Etcd3Client, flight: Flight, revision: int) -> Answer:
        end = self._prefix[:-1] + b"0"
        create: dict[str, Any] = {
            "key": encode64(self._prefix),
            "range_end": encode64(end),
            "start_revision": revision + 1,
        }
        times = (bound(self._rules) / SECOND, flight.bound / SECOND)
        try:
            with client.session.post(
                client.get_url("watch"), json={"create_request": create}, stream=True, timeout=times
            ) as response:
                return self._follow(flight, response)
        except requests.Timeout:
            return Stirred(flight.serial)

    def _follow(self, flight: Flight, response: requests.Response) -> Answer:
        if response.status_code != requests.codes["ok"]:
            raise Etcd3Exception(response.text, response.reason)
        for line in response.iter_lines():
            said = wire.decode(line.decode()) if line else {}
            result = said.get("result", {})
            if result.get("canceled") or "error" in said:
                return Stirred(flight.serial)
            for event in result.get("events", ()):
                if not self._is_beat(event):
                    return Stirred(flight.serial)
                self._emit(Heartbeat(flight.serial, read_holder(event["kv"])))
        raise AnswerError("has ended the connection")

    def _is_beat(self, event: dict[str, Any]) -> bool:
        """Return whether somebody has written a lord's key that was there before."""
        pair = event["kv"]
        is_put = event.get("type", "PUT") == "PUT"
        return is_put and pair["key"] == self._lord and int(pair.get("version", 1)) > 1


def encode64(data: bytes) -> str:
    """Return bytes as they are in JSON."""
    return b64encode(data).decode()


def read_holder(pair: dict[str, Any]) -> Holder:
    """Return who has the lord's key; whoever it is, it is somebody."""
    revision = int(pair["mod_revision"])
    try:
        said = wire.decode(b64decode(pair.get("value", "")).decode())
        uuid, term, ttl = said["uuid"], said["term"], said["ttl"]
    except (LookupError, ValueError, TypeError, RecursionError):
        return Holder("", 0, MOST_TTL, revision)
    is_good = isinstance(uuid, str) and type(term) is int and type(ttl) is int
    if not is_good or len(uuid) > MOST_NAME or not 0 <= ttl <= MOST_TTL:
        return Holder("", 0, MOST_TTL, revision)
    return Holder(uuid, term, ttl, revision)


def read_member(uuid: bytes, pair: dict[str, Any], most_scroll: int) -> Member | None:
    """Return a node that is there; None: what its key says is nothing."""
    try:
        said = wire.decode(b64decode(pair.get("value", "")).decode())
        name, valor, scroll = said["name"], said["valor"], said["scroll"]
        text = uuid.decode("ascii")
    except (LookupError, ValueError, TypeError, RecursionError):
        return None
    if (
        not (isinstance(name, str) and isinstance(scroll, str) and type(valor) is int)
        or not 0 <= valor <= 65535
        or max(len(name), len(text)) > MOST_NAME
    ):
        return None
    if len(scroll.encode("utf-8", "surrogatepass")) > most_scroll:
        scroll = ""
    return Member(valor, name, text, int(pair.get("lease", 0)), scroll)


# What went wrong, in words.


def find_said(error: BaseException) -> str:
    """Return what etcd says of an error, or ""."""
    detail = getattr(error, "detail_text", None)
    if not isinstance(detail, str):
        return str(error) if isinstance(error, AnswerError) else ""
    try:
        return str(wire.decode(detail)["error"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return detail


def clean(text: str) -> str:
    """Return a text of another for a message: one line, not too long."""
    kept = "".join(char if char.isprintable() else " " for char in text[:MOST_TEXT])
    return " ".join(kept.split())


def explain(error: BaseException, limit: Ns) -> str:
    """Return why a request has failed: a phrase about the server, the same for the same reason.

    Args:
        error: what was raised.
        limit: how long an answer was allowed to take.
    """
    causes = list(walk(error))
    if any(isinstance(each, ConnectionTimeoutError | requests.Timeout) for each in causes):
        return f"did not answer in {format_duration(limit)}"
    text = next(filter(None, map(_explain_cause, causes)), "")
    said = clean(find_said(error))
    if _NAMED in said:
        # See etcd's security advisory GHSA-h8g9-6gvh-5mrc.
        return "takes no certificate with a common name where there are users: make one without"
    if text or said:
        return text or f"says: {said}"
    if isinstance(error, ConnectionFailedError | requests.ConnectionError):
        return "has ended the connection"
    return "answers what no etcd answers"


def _explain_cause(cause: BaseException) -> str:
    match cause:
        case ssl.SSLCertVerificationError():
            return f"is not to be trusted: {clean(cause.verify_message)}"
        case ssl.SSLError():
            return f"does not agree on TLS: {clean(cause.reason or str(cause))}"
        case socket.gaierror():
            return f"has no address: {cause.strerror}"
        case OSError() if cause.errno and cause.strerror:
            return f"cannot be reached: {cause.strerror}"
        case _:
            return ""


def walk(error: BaseException) -> Iterable[BaseException]:
    """Yield an error and all that it has come from, each once."""
    seen: set[int] = set()
    ahead: list[object] = [error]
    while ahead:
        each = ahead.pop()
        if not isinstance(each, BaseException) or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        ahead += [each.__context__, each.__cause__, getattr(each, "reason", None), *each.args]
