"""Who is the lord, where etcd elects: the decisions of one node in one legion, as plain values.

There is one key for the lord of a legion. A node becomes the lord by writing it, in a transaction
that wants it to be as it was seen before, and stays the lord by writing it again, in a transaction
that wants it to be its own. A second key of each node, on a lease of etcd's, says that the node is
there; nothing but hooks and preference rests on that.

What makes two lords impossible, however requests are delayed, lost or answered late:

1. A lord counts on its key for its `ttl`, less a margin, from when it *sent* what has written it.
   That is the lease that the master is told; at its end nothing of the daemons is left.
2. Another node writes the key of a lord only if it has not changed for the lord's `ttl` since it
   was *seen* as it is, by the clock of the one that looks: so after the end of the lease.
3. A lord deletes its key, which others then need not wait for, only when the master has said that
   nothing of the daemons is left. If that is not said, the others wait.
4. Each claim has a term of its own, and a request is for one term: what comes late, when the term
   is over, changes nothing.

The key of the lord is not on a lease of etcd's. How long such a lease lasts is the word of one
server, the leader: one that was stuck (a slow disk is enough) may end leases that were kept alive
all the time (etcd's issues 12528 and 15247). A transaction is the word of a majority.

The valor is a preference: a lord steps down for a node with a higher one. All times are
CLOCK_BOOTTIME in nanoseconds, which counts a suspend; no clock is compared with another node's.
"""

from __future__ import annotations

from lowsuper.legion import words
from lowsuper.legion.claim_states import (
    LANES,
    LIFE,
    TITLE,
    WATCH,
    WORK,
    Ask,
    Beat,
    Claim,
    Done,
    Failed,
    Flight,
    Grant,
    Granted,
    Heartbeat,
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
    Wrote,
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
    """Return how much the lease ends before another may be the lord: for clocks, and for kills."""
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
        case Wrote():
            turn.hear_wrote(event)
        case Heartbeat():
            turn.hear_heartbeat(event)
        case _:
            turn.hear(event)
    turn.decide()
    return turn.finish()


def view(rules: Rules, node: Node, now: Ns) -> words.View:
    """Return what is shown of a legion."""
    lord = who(node.holder)
    if node.holder is not None and now >= node.changed + node.holder.ttl:
        lord = ""
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


def who(holder: Holder | None) -> str:
    """Return the uuid of the lord; "": there is none, or it cannot be read."""
    return "" if holder is None else holder.uuid


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

    def hear_wrote(self, event: Wrote) -> None:
        """Take that the lord's key was written. However late that is said, it was."""
        lane = self._lane_of(event.serial)
        if lane is not None:
            flight = getattr(self.node, lane)
            self.node = self.node.replace(**{lane: None})
            self._praise(flight)
            self._note_revision(event.revision)
            if isinstance(flight.request, Claim):
                self._take_title(event.term, event.revision)
        node = self.node
        if event.term == node.term and event.sent > node.proved:
            self.node = node.replace(proved=event.sent, beat=event.sent + pace(self.rules))

    def hear_heartbeat(self, event: Heartbeat) -> None:
        """Take that the lord is there, as early as that can be known."""
        node = self.node
        is_news = event.holder.revision > node.revision
        if is_news and node.watch is not None and node.watch.serial == event.serial:
            self._note_revision(event.holder.revision)
            self._meet(event.holder)

    def _note_revision(self, revision: int) -> None:
        """What was true before that revision is no news any more."""
        self.node = self.node.replace(revision=max(revision, self.node.revision))

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
                self._take_lease(flight, event.lease)
            case Kept():
                self._keep_lease(flight, event)
            case Lost():
                self._note_revision(0 if event.holder is None else event.holder.revision)
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
        for lane in LANES:
            flight = getattr(self.node, lane)
            if flight is not None and flight.serial == serial:
                return lane
        return None

    def _take_title(self, term: int, token: int) -> None:
        """The lord's key is this node's. It is the lord once it knows for how long."""
        self.node = self.node.replace(
            term=term, token=token, proved=-1, beat=self.now, title=None, look=self.now
        )

    def _take_lease(self, flight: Flight, lease: int) -> None:
        renew = flight.sent + pace(self.rules)
        self.node = self.node.replace(lease=lease, alive=flight.sent, renew=renew, is_present=False)

    def _keep_lease(self, flight: Flight, event: Kept) -> None:
        if event.is_alive:
            renew = flight.sent + pace(self.rules)
            self.node = self.node.replace(alive=flight.sent, renew=renew)
        else:
            self._bury_lease()

    def _bury_lease(self) -> None:
        """The lease is no more, and the key that hung on it is gone."""
        self.node = self.node.replace(lease=0, is_present=False, life=None)

    def _finish(self, request: Request) -> None:
        """Take note that what was asked is done."""
        node = self.node
        match request:
            case Present():
                self.node = node.replace(is_present=request.lease == node.lease, look=self.now)
            case Release() if request.term == node.dropped:
                self.node = node.replace(dropped=0, look=self.now)
            case Revoke() if request.lease == node.revoke:
                self.node = node.replace(revoke=0)
            case _:
                pass

    def _see(self, flight: Flight, event: Saw) -> None:
        """Take what there is."""
        node = self.node
        own = next((m for m in event.members if m.uuid == self.rules.uuid), None)
        is_present = own is not None and own.lease == node.lease != 0
        self.node = node.replace(
            look=flight.sent + pace(self.rules), revision=event.revision, is_present=is_present
        )
        self._meet(event.holder)
        self._compare([m for m in event.members if m.uuid != self.rules.uuid])
        self.node = self.node.replace(looked=flight.sent)
        if is_present and not self.node.joined:
            self.node = self.node.replace(joined=True)
            self.act(Occur("join"))

    def _meet(self, holder: Holder | None) -> None:
        """Take who has the lord's key."""
        node, rules = self.node, self.rules
        if node.looked < 0 or who(node.holder) != who(holder):
            self.act(Show())
        changed = self.now if node.looked < 0 or node.holder != holder else node.changed
        shunned = node.shunned if holder is None else node.shunned - {holder.uuid}
        node = self.node = node.replace(holder=holder, changed=changed, shunned=shunned)
        term = 0 if holder is None or holder.uuid != rules.uuid else holder.term
        if node.dropped and term != node.dropped:
            node = self.node = node.replace(dropped=0)
        if node.term and term != node.term:
            self.node = node.replace(term=0, title=None)
            self.resign("the key of its title is not as it was written", self.now)
        elif not node.term and term > node.lapsed and node.state == FOLLOWER:
            # A claim that was given up was carried out all the same.
            assert holder is not None, "it is this node"
            self._take_title(term, holder.revision)

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
        for lane in LANES:
            flight = getattr(self.node, lane)
            if flight is not None and self.now >= flight.sent + flight.bound:
                self.node = self.node.replace(**{lane: None})
                self._fail(lane, flight, f"did not answer in {format_duration(flight.bound)}")
        if self.node.shunned and self.now >= self.node.shun:
            self.node = self.node.replace(shunned=frozenset())
        node = self.node
        if node.lease and self.now >= node.alive + 2 * self.rules.ttl:
            # No server knows it, or says so.
            self._bury_lease()

    def _last_moment(self) -> Ns:
        """Return when nothing is left whatever the master says: a kill takes a moment, too."""
        return self.node.until + min(SECOND, margin(self.rules))

    def _abdicate(self) -> None:
        """Nothing of the daemons is left, or the guard has seen to it."""
        node = self.node
        self.act(Tell(f"this node is not the lord any more: {node.why}"), Occur("unlord"), Show())
        # If it is not sure that nothing is left, only time tells: the others have to wait.
        dropped = 0 if node.busy else node.term
        lapsed = node.term or node.lapsed
        self.node = node.replace(
            state=FOLLOWER, until=0, dropped=dropped, lapsed=lapsed, term=0, title=None, work=None
        )
        if node.out and not node.quits:
            wait, suspended = "until the master answers", 0
            if node.out == "hook":
                wait = f"for {format_duration(self.rules.suspension)}"
                suspended = self.now + self.rules.suspension
            self._leave()
            self.node = self.node.replace(state=SUSPENDED, out="", suspended=suspended)
            self.act(Tell(f"this node keeps out of the legion {wait}"))

    def _leave(self) -> None:
        """Give the lease back, and with it the key of this node."""
        lease = self.node.lease
        if lease:
            self._bury_lease()
            self.node = self.node.replace(revoke=lease, work=None)

    def _say_goodbye(self) -> None:
        """Delete what is this node's; if etcd does not answer it runs out."""
        node = self.node
        if not node.leave_by:
            claim = None if node.work is None else node.work.request
            term = claim.term if isinstance(claim, Claim) else node.term
            if term:
                # Its key, or about to be, but it was not the lord yet.
                self.node = node.replace(dropped=term, lapsed=term, term=0, title=None, work=None)
            self._leave()
            self.node = self.node.replace(leave_by=self.now + GOODBYE)
        node = self.node
        if (node.revoke or node.dropped) and self.now < node.leave_by:
            self._ask()
            return
        self.act(Occur("death"))
        self.node = self.node.replace(state=ENDED)
        self.act(Show(), End())

    def _find_until(self) -> Ns:
        """Return until when nobody else writes the key, less the margin."""
        if self.node.proved < 0:
            return -1
        return self.node.proved + self.rules.ttl - margin(self.rules)

    def _rise(self) -> None:
        """Become the lord if the key is this node's, and it lasts."""
        node, rules = self.node, self.rules
        until = self._find_until()
        if node.state != FOLLOWER or not node.term or until - rules.patience <= self.now:
            return
        self.node = node.replace(
            state=LORD, until=until, leased=until, busy=True, asked=self.now, why=""
        )
        self.act(Tell("this node is the lord now"), Occur("lord"), Lease(until, node.token), Show())

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
            self.act(Lease(until, node.token), Show())

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
        for lane, choose in (
            (TITLE, self._choose_title),
            (LIFE, self._choose_life),
            (WORK, self._choose_work),
        ):
            if getattr(self.node, lane) is None:
                request = choose()
                if request is not None:
                    self._send(lane, request)
        node = self.node
        if node.watch is None and node.lease and node.looked >= 0 and self.now >= node.watch_at:
            self._send(WATCH, Watch(node.revision), WATCH_FOR)

    def _choose_title(self) -> Request | None:
        node = self.node
        is_wanted = node.term and node.state in (FOLLOWER, LORD)
        return Beat(node.term) if is_wanted and self.now >= node.beat else None

    def _choose_life(self) -> Request | None:
        node = self.node
        if node.state == SUSPENDED or node.leave_by:
            return None
        if not node.lease:
            return Grant(-(-self.rules.ttl // SECOND))
        return KeepAlive(node.lease) if self.now >= node.renew else None

    def _choose_work(self) -> Request | None:
        node = self.node
        if node.dropped:
            return Release(node.dropped)
        if node.revoke:
            return Revoke(node.revoke)
        if not node.lease:
            return None
        request: Request | None = None
        if not node.is_present:
            request = Present(node.lease)
        elif self.now >= node.look:
            request = Look()
        elif self._may_claim() and self.now >= self._claim_at():
            request = self._claim()
        return request

    def _claim(self) -> Claim:
        better = self._list_better()
        if better:
            shunned = self.node.shunned.union(m.uuid for m in better)
            self.node = self.node.replace(shunned=shunned, shun=self.now + _shunning(self.rules))
        holder = self.node.holder
        return Claim(self.node.serial + 1, 0 if holder is None else holder.revision)

    def _may_claim(self) -> bool:
        node, rules = self.node, self.rules
        return (
            rules.valor > 0
            and node.state == FOLLOWER
            and not node.quits
            and not node.term
            and not node.dropped
            and node.looked >= 0
        )

    def _list_better(self) -> list[Member]:
        """Return who should be the lord rather than this node."""
        me = (self.rules.valor, self.rules.uuid)
        passed = self.node.shunned | {who(self.node.holder)}
        return [m for m in self.node.members if (m.valor, m.uuid) > me and m.uuid not in passed]

    def _claim_at(self) -> Ns:
        """Return when it is this node's turn: each better one has some time to be first."""
        node = self.node
        free = node.changed + (0 if node.holder is None else node.holder.ttl)
        better = self._list_better()
        since = max((m.since for m in better), default=0)
        return max(free, since) + len(better) * _grace(self.rules)

    def _send(self, lane: str, request: Request, most: Ns = 0) -> None:
        node = self.node
        serial = node.serial + 1
        flight = Flight(serial, node.server, self.now, most or bound(self.rules), request)
        self.node = node.replace(serial=serial, **{lane: flight})
        self.act(Ask(lane, flight))

    def _next_wake(self) -> Ns:
        node, rules = self.node, self.rules
        flights = [flight for lane in LANES if (flight := getattr(node, lane))]
        times = [flight.sent + flight.bound for flight in flights]
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
        if node.leave_by:
            times.append(node.leave_by)
        if node.term:
            times.append(max(node.pause, node.beat))
        times.append(max(node.pause, node.renew))
        times.append(max(node.pause, node.look))
        if self._may_claim():
            times.append(max(node.pause, self._claim_at()))
        times.append(max(node.pause, node.watch_at))
        return min((time for time in times if time > self.now), default=self.now + rules.ttl)
