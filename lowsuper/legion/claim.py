"""Who is the lord, where etcd elects: the decisions of one node in one legion, as plain values.

There is one key for the lord of a legion. Who makes it, in a transaction that wants it not to be
there, is the lord; it hangs on a lease of the node's, and goes away with it. A second key of each
node, on the same lease, says that the node is there.

What makes two lords impossible, however requests are delayed, lost or answered late:

1. etcd ends a lease no earlier than its `ttl` after it was kept alive, which is after the request
   was sent. A lord's lease, as it is told to the master, ends `margin` before that; by then nothing
   of its daemons is left.
2. A lord deletes its key, and gives back its lease, only when the master has said that nothing of
   the daemons is left. If that is not said the key runs out by itself.
3. What is deleted is the key of one revision, so that a request that comes late deletes no key that
   was made since. A lease that was given back is never used again.
4. Requests that change or read keys are sent one after the other, and one that was not answered in
   time is as good as lost: what it did is seen by the next look.

The valor is a preference: a lord steps down for a node with a higher one. All times are
CLOCK_BOOTTIME in nanoseconds, which counts a suspend; no clock is compared with another node's.
"""

from __future__ import annotations

from lowsuper.legion import words
from lowsuper.legion.claim_states import (
    LIFE,
    WATCH,
    WORK,
    Ask,
    Claim,
    Done,
    Failed,
    Flight,
    Grant,
    Granted,
    Holder,
    KeepAlive,
    Kept,
    Lease,
    Look,
    Lost,
    Member,
    Node,
    Occur,
    Present,
    Release,
    Revoke,
    Saw,
    Stirred,
    Trouble,
    Watch,
    Won,
)
from lowsuper.legion.states import (
    ENDED,
    FOLLOWER,
    LORD,
    RESIGNING,
    SUSPENDED,
    Begin,
    Busy,
    End,
    HookFailed,
    Quit,
    Resign,
    Show,
    Tell,
    WakeAt,
    Woke,
)
from lowsuper.units import SECOND, Ns, format_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lowsuper.legion.claim_states import Action, Answer, Event, Request, Rules

    Result = tuple[Node, tuple[Action, ...]]

GOODBYE = Ns(2 * SECOND)  # for giving the lease back, if etcd does not answer
TROUBLE_EVERY = Ns(10 * SECOND)  # of each server at most that often something is said
WATCH_FOR = Ns(60 * SECOND)
WATCH_PAUSE = Ns(SECOND)


def margin(rules: Rules) -> Ns:
    """Return how much a lease, as the master has it, ends before etcd may end it.

    For clocks of different rates, and for an etcd that has lost its majority a moment ago and does
    not know it yet: that takes it about a second.
    """
    return max(SECOND, rules.ttl // 10)


def _spare(rules: Rules) -> Ns:
    """Return how long etcd may be silent before a lord has to stop its daemons."""
    return max(SECOND // 2, rules.ttl - margin(rules) - rules.patience)


def pace(rules: Rules) -> Ns:
    """Return how often a lease is kept alive, and keys are looked at."""
    return _spare(rules) // 3


def bound(rules: Rules) -> Ns:
    """Return how long a server may take to answer before the next one is asked."""
    return _spare(rules) // 5


def _grace(rules: Rules) -> Ns:
    """Return how long each better node has the chance to be the lord."""
    return rules.ttl // 3


def _settling(rules: Rules) -> Ns:
    """Return how long a better node has to be there before a lord steps down for it."""
    return min(3 * SECOND, rules.ttl // 4)


def _shunning(rules: Rules) -> Ns:
    """Return how long one that had the chance to be the lord, and did not take it, gets no other.

    It costs the daemons a restart to find out.
    """
    return 10 * rules.ttl


def step(rules: Rules, node: Node, event: Event, now: Ns) -> Result:
    """Return the new state and what is to be done, in order; the last action is a WakeAt.

    Args:
        rules: what is configured.
        node: the state.
        event: what happened.
        now: CLOCK_BOOTTIME in nanoseconds; never less than at the step before.
    """
    if node.state == ENDED:
        return node, ()
    turn = _Turn(rules, node, now)
    turn.lapse()
    match event:
        case Begin():
            turn.node = turn.node.replace(troubles=(None,) * len(rules.servers))
            turn.act(Occur("setup"))
        case Busy():
            turn.hear_master(event)
        case HookFailed():
            turn.fail_hook()
        case Quit():
            turn.node = turn.node.replace(quits=True)
            turn.resign("the master stops")
        case Woke():
            pass  # what there is to do is found below
        case Kept():
            turn.hear_kept(event)
        case _:
            turn.hear(event)
    turn.decide()
    return turn.finish()


def view(rules: Rules, node: Node, now: Ns) -> words.View:
    """Return what is shown of a legion."""
    lord = "" if node.holder is None else node.holder.uuid
    if node.state in (LORD, RESIGNING):
        lord = rules.uuid
    elif lord == rules.uuid:
        lord = ""
    own = words.Node(
        rules.name, rules.valor, rules.uuid, lord == rules.uuid, scroll=rules.scroll, peer="etcd"
    )
    others = tuple(
        words.Node(
            m.name, m.valor, m.uuid, m.uuid == lord, max(1, node.looked), "", m.scroll, "etcd"
        )
        for m in node.members
    )
    state = node.state
    if state == FOLLOWER and not _has_contact(rules, node, now):
        state = "waiting"
    until = node.until if node.state in (LORD, RESIGNING) else 0
    note = "" if lord and state != "waiting" else _explain(rules, node, now)
    return words.View(rules.legion, state, lord, 0, 0, until, (own, *others), note=note)


def _has_contact(rules: Rules, node: Node, now: Ns) -> bool:
    return node.looked >= 0 and now < node.looked + rules.ttl


def _explain(rules: Rules, node: Node, now: Ns) -> str:
    """Return why there is no lord, a phrase."""
    if node.state == SUSPENDED:
        if node.suspended == 0:
            return "the master does not answer"
        return f"a lord hook has failed; back in {format_duration(max(0, node.suspended - now))}"
    if not _has_contact(rules, node, now):
        trouble = next((t.text for t in node.troubles if t is not None), "")
        return f"etcd does not answer{trouble and f': {trouble}'}"
    if not rules.valor and not any(m.valor for m in node.members):
        return "no node has a valor"
    return "an election is going on"


class _Turn:
    """One step: what it has decided so far."""

    def __init__(self, rules: Rules, node: Node, now: Ns) -> None:
        self.rules, self.node, self.now = rules, node, now
        self._actions: list[Action] = []

    def act(self, *actions: Action) -> None:
        """Note what is to be done."""
        self._actions += actions

    def finish(self) -> Result:
        """Return the result of the step."""
        if self.node.state == ENDED:
            return self.node, tuple(self._actions)
        return self.node, (*self._actions, WakeAt(self._next_wake()))

    # What etcd says.

    def hear_kept(self, event: Kept) -> None:
        """Take that a lease was kept alive. However late that is said, it was."""
        node = self.node
        if node.life is not None and node.life.serial == event.serial:
            self._praise(node.life)
            node = self.node = self.node.replace(life=None)
        if event.lease != node.lease or not node.lease:
            return
        if not event.ttl:
            self._bury_lease()
        elif event.sent > node.proved:
            ttl = min(event.ttl, self.rules.ttl)
            self.node = node.replace(
                proved=event.sent, ttl=ttl, renew=event.sent + pace(self.rules)
            )

    def hear(self, event: Answer) -> None:
        """Take an answer to a request that is still waited for."""
        lane = self._lane_of(event.serial)
        if lane is None:
            return
        flight = getattr(self.node, lane)
        self.node = self.node.replace(**{lane: None})
        if isinstance(event, Failed):
            self._fail(lane, flight, event.why)
            if event.lease and event.lease == self.node.lease:
                self._bury_lease()
            return
        self._praise(flight)
        match event:
            case Granted():
                self._take_lease(flight, event)
            case Won():
                self.node = self.node.replace(title=event.revision, free=-1, look=self.now)
            case Lost():
                self._meet(event.holder)
                self.node = self.node.replace(look=self.now)
            case Saw():
                self._see(flight, event)
            case Stirred():
                self.node = self.node.replace(look=self.now)
            case Done():
                self._finish(flight.request)
            case _:
                raise AssertionError(f"not handled: {event!r}")

    def _lane_of(self, serial: int) -> str | None:
        for lane in (LIFE, WORK, WATCH):
            flight = getattr(self.node, lane)
            if flight is not None and flight.serial == serial:
                return lane
        return None

    def _take_lease(self, flight: Flight, event: Granted) -> None:
        ttl = min(event.ttl, self.rules.ttl)
        self.node = self.node.replace(
            lease=event.lease,
            ttl=ttl,
            proved=flight.sent,
            renew=flight.sent + pace(self.rules),
            is_present=False,
        )

    def _finish(self, request: Request) -> None:
        """Take note that what was asked is done."""
        node = self.node
        match request:
            case Present():
                self.node = node.replace(is_present=request.lease == node.lease, look=self.now)
            case Release() if request.revision == node.dropped:
                self.node = node.replace(dropped=0, look=self.now)
            case Revoke() if request.lease == node.revoke:
                self.node = node.replace(revoke=0)
            case _:
                pass

    def _bury_lease(self) -> None:
        """The lease is no more, and the keys that hung on it are gone: others may be the lord."""
        node = self.node
        self.node = node.replace(
            lease=0, is_present=False, title=0, dropped=0, life=None, work=None, look=self.now
        )
        if node.title:
            self.resign("etcd has ended its lease", self.now)

    def _see(self, flight: Flight, event: Saw) -> None:
        """Take what there is."""
        node = self.node
        own = next((m for m in event.members if m.uuid == self.rules.uuid), None)
        is_present = own is not None and own.lease == node.lease != 0
        self.node = node.replace(
            looked=flight.sent,
            look=flight.sent + pace(self.rules),
            revision=event.revision,
            is_present=is_present,
        )
        self._meet(event.holder)
        self._compare([m for m in event.members if m.uuid != self.rules.uuid])
        if is_present and not self.node.joined:
            self.node = self.node.replace(joined=True)
            self.act(Occur("join"))
        if self.node.title and (event.holder is None or event.holder.revision != self.node.title):
            self.node = self.node.replace(title=0)
            self.resign("somebody has deleted the key of its title", self.now)

    def _meet(self, holder: Holder | None) -> None:
        """Take who the lord is."""
        node = self.node
        if node.holder != holder or node.looked < 0:
            self.act(Show())
        free = -1
        if holder is None:
            free = node.free if node.free >= 0 else self.now
        shunned = node.shunned if holder is None else node.shunned - {holder.uuid}
        dropped = node.dropped if holder is not None and holder.revision == node.dropped else 0
        node = self.node = node.replace(holder=holder, free=free, shunned=shunned, dropped=dropped)
        if (
            holder is not None
            and holder.uuid == self.rules.uuid
            and holder.lease == node.lease != 0
            and node.state == FOLLOWER
            and not node.title
            and not dropped
        ):
            # A request to be the lord that was given up was carried out all the same.
            self.node = node.replace(title=holder.revision)

    def _compare(self, found: list[Member]) -> None:
        """Take who is there."""
        known = {m.uuid: m for m in self.node.members}
        members = []
        for member in found:
            before = known.pop(member.uuid, None)
            since = self.now if before is None else before.since
            members.append(member.replace(since=since))
            if before is None:
                self.act(Tell(f"{member.name} (valor {member.valor}) joined"))
                self.act(Occur("node-joined", member))
        for member in known.values():
            self.act(Tell(f"{member.name} (valor {member.valor}) left"))
            self.act(Occur("node-left", member))
        if tuple(members) != self.node.members:
            self.act(Show())
        shunned = self.node.shunned - known.keys()
        self.node = self.node.replace(members=tuple(members), shunned=shunned)

    # Servers.

    def _fail(self, lane: str, flight: Flight, why: str) -> None:
        """A request has failed, or its answer was late: ask the next server."""
        if lane == WATCH:
            self.node = self.node.replace(watch_at=self.now + WATCH_PAUSE)
            return
        self._blame(flight.server, why)
        node = self.node
        if flight.server == node.server:
            count = len(self.rules.servers)
            fails = node.fails + 1
            pause = node.pause
            if fails % count == 0:
                pause = self.now + min(SECOND, bound(self.rules))
            server = (node.server + 1) % count
            self.node = node.replace(server=server, fails=fails, pause=pause)

    def _blame(self, server: int, why: str) -> None:
        trouble = self.node.troubles[server]
        if trouble is not None and trouble.text == why:
            return
        told = -TROUBLE_EVERY if trouble is None else trouble.told
        if self.now >= told + TROUBLE_EVERY:
            told = self.now
            self.act(Tell(f"{self.rules.servers[server]} {why}"), Show())
        self._note(server, Trouble(why, told))

    def _praise(self, flight: Flight) -> None:
        """A server has answered."""
        trouble = self.node.troubles[flight.server]
        self.node = self.node.replace(fails=0)
        if trouble is not None and trouble.text:
            if self.now >= trouble.told + TROUBLE_EVERY // 10 or trouble.told < 0:
                self.act(Tell(f"{self.rules.servers[flight.server]} answers again"), Show())
            self._note(flight.server, Trouble("", trouble.told))

    def _note(self, server: int, trouble: Trouble) -> None:
        troubles = list(self.node.troubles)
        troubles[server] = trouble
        self.node = self.node.replace(troubles=tuple(troubles))

    # What the master says.

    def lapse(self) -> None:
        """See first whether a lease is over: what came meanwhile does not bring it back."""
        node = self.node
        if node.state == LORD and self.now >= node.until - self.rules.patience:
            self.resign("etcd did not answer in time")
        elif node.state == LORD and node.asked and self.now >= node.asked + self.rules.ttl:
            # Nobody would start the daemons that the others leave to this node.
            self.resign("the master does not answer")
            self.node = self.node.replace(out="master")

    def resign(self, why: str, until: Ns | None = None) -> None:
        """Begin to be no lord any more."""
        node = self.node
        if node.state == RESIGNING and until is not None and until < node.until:
            self.node = node.replace(until=until)
            self.act(Resign(until, why))
        if node.state != LORD:
            return
        until = node.until if until is None else min(until, node.until)
        self.node = node.replace(state=RESIGNING, until=until, why=why)
        self.act(Resign(until, why), Show())

    def fail_hook(self) -> None:
        """A lord hook has failed."""
        if self.rules.suspension and self.node.state == LORD:
            self.resign("a lord hook has failed")
            self.node = self.node.replace(out="hook")

    def hear_master(self, event: Busy) -> None:
        """Take the answer of the master."""
        node = self.node
        has_read = event.until >= node.leased
        asked = 0 if has_read else node.asked
        self.node = node.replace(busy=event.busy or not has_read, asked=asked)
        if has_read and node.out == "master":
            self.node = self.node.replace(out="")
        if self.node.state == SUSPENDED and self.node.suspended == 0:
            self.node = self.node.replace(suspended=self.now)

    # What is decided.

    def decide(self) -> None:
        """Do what the state and the time ask for."""
        self._time_out()
        if self.node.state == RESIGNING and (not self.node.busy or self.now >= self._last_moment()):
            self._abdicate()
        if self.node.quits and self.node.state in (FOLLOWER, SUSPENDED):
            self._say_goodbye()
            return
        if self.node.state == SUSPENDED and 0 < self.node.suspended <= self.now:
            self.node = self.node.replace(state=FOLLOWER, look=self.now)
            self.act(Tell("this node is back in the legion"), Show())
        self._rise()
        if self.node.state == LORD:
            self._stay()
        self._ask()

    def _time_out(self) -> None:
        for lane in (LIFE, WORK, WATCH):
            flight = getattr(self.node, lane)
            if flight is not None and self.now >= flight.sent + flight.bound:
                self.node = self.node.replace(**{lane: None})
                self._fail(lane, flight, f"did not answer in {format_duration(flight.bound)}")
        if self.node.shunned and self.now >= self.node.shun:
            self.node = self.node.replace(shunned=frozenset())
        node = self.node
        if node.revoke and self.now >= node.revoke_by:
            self.node = node.replace(revoke=0)
        if node.lease and node.state == FOLLOWER and self.now >= node.proved + 2 * self.rules.ttl:
            # No server knows it, or says so.
            self._bury_lease()

    def _last_moment(self) -> Ns:
        """Return when nothing is left whatever the master says: a kill takes a moment, too."""
        return self.node.until + min(SECOND, margin(self.rules))

    def _abdicate(self) -> None:
        """Nothing of the daemons is left, or the guard has seen to it."""
        node = self.node
        self.act(Tell(f"this node is not the lord any more: {node.why}"), Occur("unlord"), Show())
        orderly = not node.busy
        self.node = node.replace(state=FOLLOWER, until=0, dropped=node.title, title=0)
        if not orderly:
            # Only time tells that nothing is left: the key has to run out.
            self._forget_lease()
        if node.out and not node.quits:
            wait, suspended = "until the master answers", 0
            if node.out == "hook":
                wait = f"for {format_duration(self.rules.suspension)}"
                suspended = self.now + self.rules.suspension
            self._leave(self.rules.ttl)
            self.node = self.node.replace(state=SUSPENDED, out="", suspended=suspended)
            self.act(Tell(f"this node keeps out of the legion {wait}"))

    def _forget_lease(self) -> None:
        """Use the lease no more; it runs out by itself."""
        self.node = self.node.replace(
            lease=0, is_present=False, title=0, dropped=0, life=None, work=None
        )

    def _leave(self, patience: Ns) -> None:
        """Give the lease back, and with it all keys of this node."""
        lease = self.node.lease
        if lease:
            self._forget_lease()
            self.node = self.node.replace(revoke=lease, revoke_by=self.now + patience)

    def _say_goodbye(self) -> None:
        self._leave(GOODBYE)
        if self.node.revoke:
            self._ask()
            return
        self.act(Occur("death"))
        self.node = self.node.replace(state=ENDED)
        self.act(Show(), End())

    def _find_until(self) -> Ns:
        node = self.node
        return node.proved + node.ttl - margin(self.rules)

    def _rise(self) -> None:
        """Become the lord if the key is this node's, and it lasts."""
        node, rules = self.node, self.rules
        until = self._find_until()
        if node.state != FOLLOWER or not node.title or until - rules.patience <= self.now:
            return
        self.node = node.replace(
            state=LORD, until=until, leased=until, busy=True, asked=self.now, why=""
        )
        self.act(Tell("this node is the lord now"), Occur("lord"), Lease(until, node.title), Show())

    def _stay(self) -> None:
        """Go on to be the lord, or not."""
        node, rules = self.node, self.rules
        better = self._find_better(rules.valor)
        if better is not None:
            self.resign(f"{better.name} has a higher valor")
            return
        until = self._find_until()
        if until > node.until:
            asked = node.asked or self.now
            self.node = node.replace(until=until, leased=until, busy=True, asked=asked)
            self.act(Lease(until, node.title), Show())

    def _find_better(self, valor: int) -> Member | None:
        """Return who the title should be given to."""
        node = self.node
        settled = self.now - _settling(self.rules)
        return next(
            (
                m
                for m in node.members
                if m.valor > valor and m.since <= settled and m.uuid not in node.shunned
            ),
            None,
        )

    # What is asked.

    def _ask(self) -> None:
        """Send what there is to ask, one request of each lane at a time."""
        if self.now < self.node.pause:
            return
        if self.node.life is None:
            request = self._choose_life()
            if request is not None:
                self._send(LIFE, request)
        if self.node.work is None:
            request = self._choose_work()
            if request is not None:
                self._send(WORK, request)
        node = self.node
        if node.watch is None and node.lease and node.looked >= 0 and self.now >= node.watch_at:
            self._send(WATCH, Watch(node.revision), WATCH_FOR)

    def _choose_life(self) -> Request | None:
        node = self.node
        if node.quits or node.state in (SUSPENDED, RESIGNING):
            return None  # it may run out now
        if not node.lease:
            return Grant(-(-self.rules.ttl // SECOND))
        return KeepAlive(node.lease) if self.now >= node.renew else None

    def _choose_work(self) -> Request | None:
        node = self.node
        if node.revoke:
            return Revoke(node.revoke)
        if not node.lease:
            return None
        request: Request | None = None
        if node.dropped:
            request = Release(node.dropped)
        elif not node.is_present and node.state != RESIGNING:
            request = Present(node.lease)
        elif self.now >= node.look:
            request = Look()
        elif self._may_claim() and self.now >= self._claim_at():
            better = self._list_better()
            if better:
                shunned = node.shunned.union(m.uuid for m in better)
                self.node = node.replace(shunned=shunned, shun=self.now + _shunning(self.rules))
            request = Claim(node.lease)
        return request

    def _may_claim(self) -> bool:
        node, rules = self.node, self.rules
        return (
            rules.valor > 0
            and node.state == FOLLOWER
            and node.free >= 0
            and not node.title
            and not node.dropped
            and node.is_present
            and node.looked >= 0
            and self._find_until() - rules.patience - bound(rules) > self.now
        )

    def _list_better(self) -> list[Member]:
        """Return who should be the lord rather than this node."""
        me = (self.rules.valor, self.rules.uuid)
        members = self.node.members
        return [m for m in members if (m.valor, m.uuid) > me and m.uuid not in self.node.shunned]

    def _claim_at(self) -> Ns:
        """Return when it is this node's turn: each better one has some time to be first."""
        better = self._list_better()
        since = max((m.since for m in better), default=0)
        return max(self.node.free, since) + len(better) * _grace(self.rules)

    def _send(self, lane: str, request: Request, most: Ns = 0) -> None:
        node = self.node
        serial = node.serial + 1
        flight = Flight(serial, node.server, self.now, most or bound(self.rules), request)
        self.node = node.replace(serial=serial, **{lane: flight})
        self.act(Ask(lane, flight))

    def _next_wake(self) -> Ns:
        node, rules = self.node, self.rules
        times = [
            flight.sent + flight.bound for flight in (node.life, node.work, node.watch) if flight
        ]
        if node.state == LORD:
            times.append(node.until - rules.patience)
            times += [m.since + _settling(rules) for m in node.members if m.valor > rules.valor]
            if node.asked:
                times.append(node.asked + rules.ttl)
            if node.shunned:
                times.append(node.shun)
        elif node.state == RESIGNING:
            times.append(self._last_moment())
        elif node.state == SUSPENDED and node.suspended:
            times.append(node.suspended)
        if node.revoke:
            times.append(node.revoke_by)
        times.append(max(node.pause, node.renew))
        times.append(max(node.pause, node.look))
        if self._may_claim():
            times.append(max(node.pause, self._claim_at()))
        times.append(max(node.pause, node.watch_at))
        return min((time for time in times if time > self.now), default=self.now + rules.ttl)
