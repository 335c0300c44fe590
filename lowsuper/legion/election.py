"""Who is the lord: the decisions of one node in one legion.

The election is uWSGI's, so that both can be in one legion: the highest valor, then the greatest
uuid, of all nodes that are known; it needs a quorum of votes, and all known nodes must agree on who
the nodes are (the checksum) and whom they vote for.

What makes two lords impossible among lowsuper nodes whose quorum is more than half of them:

1. A packet echoes the last packets of the members that its sender knows. That a packet of ours was
   echoed proves that its receiver counts us as a member until `tolerance` after we sent it, and so
   agrees to no lord that does not count us. The lord's lease ends a margin before the promises of
   a quorum do.
2. A lord votes for itself until nothing of its daemons is left, so nobody better gets all votes.
   Nobody becomes lord while a member says that it is the lord.
3. A node that has just started knows nothing of promises that it gave before: for `tolerance` it
   votes for nobody but a lord that there is, unless so many nodes agree that there is no other.

All rests on CLOCK_BOOTTIME. The only rule that compares clocks of two nodes is uWSGI's, of a
packet's age.
"""

from __future__ import annotations

from lowsuper.legion import words
from lowsuper.legion.packet import MOST_HEARD, NOBODY, Packet, sum_of
from lowsuper.legion.states import (
    ENDED,
    FOLLOWER,
    LORD,
    RESIGNING,
    SUSPENDED,
    Begin,
    Busy,
    End,
    Heard,
    HookFailed,
    Lease,
    Member,
    Node,
    Occur,
    Quit,
    Resign,
    Send,
    Sent,
    Show,
    Tell,
    Tomb,
    WakeAt,
)
from lowsuper.units import SECOND, format_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lowsuper.legion.states import Action, Event, Rules
    from lowsuper.units import Ns

    Result = tuple[Node, tuple[Action, ...]]

MOST_MEMBERS = MOST_TOMBS = MOST_HEARD
MOST_SENT = 1024
WARN_EVERY = 60 * SECOND


def margin(rules: Rules) -> Ns:
    """Return how much a lease ends before the promises it rests on, for clocks and kills."""
    return min(SECOND, rules.tolerance // 10)


def step(rules: Rules, node: Node, event: Event, now: Ns, wall: int) -> Result:
    """Return the new state and what is to be done, in order; the last action is a WakeAt.

    Args:
        rules: what is configured.
        node: the state.
        event: what happened.
        now: CLOCK_BOOTTIME in nanoseconds; never less than at the step before.
        wall: seconds since 1970, which may jump.
    """
    if node.state == ENDED:
        return node, ()
    turn = _Turn(rules, node, now, wall)
    turn.lapse()
    match event:
        case Begin():
            turn.node = node.replace(since=now, due=now)
            turn.act(Occur("setup"))
        case Heard():
            turn.hear(event.packet)
        case Busy():
            turn.hear_master(event)
        case HookFailed():
            turn.fail()
        case Quit():
            turn.node = turn.node.replace(quits=True)
            turn.resign("the master stops")
        case _:
            pass  # what there is to do is found below
    turn.decide()
    return turn.finish()


def view(rules: Rules, node: Node, now: Ns) -> words.View:
    """Return what is shown of a legion."""
    lord = next((m.uuid for m in node.members if m.counts and m.lord), "")
    if node.state in (LORD, RESIGNING):
        lord = rules.uuid
    own = words.Node(
        rules.name,
        rules.valor,
        rules.uuid,
        lord=node.lord != 0,
        vote=_show_uuid(node.vote[1]),
        scroll=rules.scroll,
        peer="lowsuper",
    )
    others = tuple(
        words.Node(
            m.name,
            m.valor,
            m.uuid,
            lord=m.lord != 0,
            seen=m.seen,
            vote=_show_uuid(m.vote[1]),
            scroll=m.scroll,
            peer="lowsuper" if m.seq else "uwsgi",
        )
        for m in node.members
        if m.counts
    )
    state = node.state
    if state == FOLLOWER and _is_waiting(rules, node, now):
        state = "waiting"
    return words.View(
        rules.legion,
        state,
        lord,
        node.votes,
        rules.quorum,
        node.until if node.state in (LORD, RESIGNING) else 0,
        (own, *others),
        note="" if lord else _explain(rules, node, now),
    )


def _show_uuid(uuid: str) -> str:
    return "" if uuid == NOBODY else uuid


def _explain(rules: Rules, node: Node, now: Ns) -> str:
    """Return why there is no lord, a phrase."""
    if node.state == SUSPENDED:
        if node.suspended == 0:
            return "the master does not answer"
        return f"a lord hook has failed; back in {format_duration(max(0, node.suspended - now))}"
    if _is_waiting(rules, node, now):
        wait = format_duration(max(0, node.since + _listening(rules) - now))
        return f"has just started: listens for {wait} whether there is a lord"
    if node.best == (0, NOBODY):
        return "no node has a valor"
    members = [m for m in node.members if m.counts]
    if len(members) + 1 < rules.quorum:
        return f"no quorum: {_count(len(members) + 1, 'node')}, {rules.quorum} needed"
    return _find_dissent(node, members)


def _find_dissent(node: Node, members: list[Member]) -> str:
    for m in members:
        if m.checksum != node.checksum:
            return f"{m.name} knows other nodes"
        if m.vote != node.best:
            return f"{m.name} votes for another"
    return "an election is going on"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _listening(rules: Rules) -> Ns:
    """Return how long a node that has started does not bring about a lord."""
    return rules.tolerance if rules.quorum > 1 else 2 * rules.freq


def _is_waiting(rules: Rules, node: Node, now: Ns) -> bool:
    """Return whether promises that were given before the start may still hold."""
    return not node.settled and now < node.since + _listening(rules)


def _has_met_all(rules: Rules, members: list[Member], checksum: int) -> bool:
    """Return whether there can be no lord that is not among the members, or was before.

    With more nodes than that, the quorum would not be more than half of them. From then on it is
    known what was promised to whom.
    """
    return (
        rules.quorum > 1
        and len(members) + 1 >= 2 * rules.quorum - 1
        and all(m.checksum == checksum for m in members)
    )


def _checksum(rules: Rules, node: Node) -> int:
    total = sum_of(rules.valor, rules.uuid)
    for m in node.members:
        if m.counts:
            total += sum_of(m.valor, m.uuid)
    return total % (1 << 64)


def _is_mixed(node: Node) -> bool:
    """Return whether there is a uWSGI among the members.

    Each packet that one gets puts off its next announcement by up to `freq`: so all are sent
    together.
    """
    return any(not m.seq for m in node.members)


def _sent_at(node: Node, seq: int) -> Ns:
    """Return when a packet of ours was sent, or -1: too long ago."""
    return next((sent.at for sent in reversed(node.sent) if sent.seq == seq), -1)


class _Turn:
    """One step: what it has decided so far."""

    def __init__(self, rules: Rules, node: Node, now: Ns, wall: int) -> None:
        self.rules, self.node, self.now, self.wall = rules, node, now, wall
        self._actions: list[Action] = []

    def act(self, *actions: Action) -> None:
        """Note what is to be done."""
        self._actions += actions

    def finish(self) -> Result:
        """Return the result of the step."""
        if self.node.state == ENDED:
            return self.node, tuple(self._actions)
        return self.node, (*self._actions, WakeAt(max(self.now, self._next_wake())))

    # What is heard.

    def hear(self, packet: Packet) -> None:
        """Take a packet, if it is to be believed."""
        rules, node = self.rules, self.node
        if packet.legion != rules.legion or packet.uuid == rules.uuid:
            return
        if packet.unix < self.wall - rules.skew:
            self._blame(packet)
            return
        if rules.modern and not packet.seq:
            return
        for tomb in node.tombs:
            if tomb.uuid == packet.uuid and self._is_older(packet, tomb.seq, tomb.unix):
                return
        known = next((m for m in node.members if m.uuid == packet.uuid), None)
        if known is not None and (
            (known.valor, known.name) != (packet.valor, packet.name)
            or bool(known.seq) != bool(packet.seq)
            or (packet.seq <= known.seq if packet.seq else packet.unix < known.unix)
        ):
            return
        if packet.dead:
            self._bury(packet, known)
            return
        self._admit(packet, known)

    @staticmethod
    def _is_older(packet: Packet, seq: int, unix: int) -> bool:
        return packet.seq <= seq if packet.seq and seq else packet.unix <= unix

    def _blame(self, packet: Packet) -> None:
        node = self.node
        if node.blamed and self.now < node.blamed + WARN_EVERY:
            return
        self.node = node.replace(blamed=self.now)
        late = _count(self.wall - packet.unix, "second")
        self.act(Tell(f"packets of {packet.name} are {late} old and not taken: see the clocks"))

    def _bury(self, packet: Packet, known: Member | None) -> None:
        until = self.now + self.rules.tolerance
        self._entomb(Tomb(packet.uuid, packet.seq, packet.unix, until))
        if known is not None:
            self._remove(known, "said goodbye")

    def _entomb(self, tomb: Tomb) -> None:
        tombs = (*(t for t in self.node.tombs if t.uuid != tomb.uuid), tomb)[-MOST_TOMBS:]
        self.node = self.node.replace(tombs=tombs)

    def _admit(self, packet: Packet, known: Member | None) -> None:
        """Take what a node says of itself."""
        reached = -1 if known is None else known.reached
        promised = max((self._echo(packet.heard), reached))
        fresh = max(self._echo(packet.heard), self._echo(packet.met))
        counts = not packet.seq or (known is not None and known.counts)
        if packet.seq:
            # What is replayed does not echo what we said lately.
            if fresh < 0 and counts:
                return
            counts = counts or fresh >= 0
        else:
            promised = max(promised, self._guess_reached(packet))
        # A uWSGI's packet that was sent again is as old as the first time.
        again = not packet.seq and known is not None and packet.unix == known.unix
        member = Member(
            packet.valor,
            packet.name,
            packet.uuid,
            known.seen if again and known is not None else self.now,
            packet.unix,
            packet.lord,
            packet.checksum,
            (packet.lord_valor, packet.lord_uuid),
            packet.scroll,
            packet.seq,
            promised,
            counts,
        )
        if not self._put(member, known):
            return
        if known is not None and known.lord and not (packet.seq or packet.lord):
            self._fade(self.now)
        node = self.node
        if counts and (known is None or not known.counts):
            self.act(
                Tell(f"{packet.name} (valor {packet.valor}) joined"), Occur("node-joined", member)
            )
            self.node = node.replace(due=self.now)
        elif not counts or (packet.lord and packet.seq):
            # A lord waits for the echo of its packet; one that is met for that of its first.
            if self.now - self._last_sent() >= self.rules.freq // 4 or known is None:
                self.node = node.replace(due=self.now)
        elif _is_mixed(node) and self.now - self._last_sent() >= self.rules.freq // 2:
            self.node = node.replace(due=self.now)

    def _last_sent(self) -> Ns:
        return self.node.sent[-1].at if self.node.sent else -self.rules.freq

    def _fade(self, since: Ns) -> None:
        """A uWSGI is no lord any more: its daemon is, for a while.

        It looks once a second what is to end, and sends a signal.
        """
        fading = since + SECOND + self.rules.patience
        self.node = self.node.replace(fading=max(fading, self.node.fading))

    def _echo(self, echo: tuple[tuple[str, int], ...]) -> Ns:
        return max(
            (_sent_at(self.node, seq) for uuid, seq in echo if uuid == self.rules.uuid), default=-1
        )

    def _guess_reached(self, packet: Packet) -> Ns:
        """Return which packet of ours has reached a uWSGI, which echoes none.

        That it counts us says only that it heard us within its tolerance. If the way there is as
        good as the way back, it got what was sent a while ago.
        """
        me = (self.rules.valor, self.rules.uuid)
        knows_us = (
            packet.checksum == self.node.checksum
            or (
                packet.lord_valor,
                packet.lord_uuid,
            )
            == me
        )
        if not knows_us:
            return -1
        before = self.now - self.rules.freq // 2
        return next((sent.at for sent in reversed(self.node.sent) if sent.at <= before), -1)

    def _put(self, member: Member, known: Member | None) -> bool:
        """Have a member in the list; return False if there is no room."""
        members = self.node.members
        if known is not None:
            members = tuple(member if m.uuid == member.uuid else m for m in members)
        elif len(members) < MOST_MEMBERS:
            members = (*members, member)
        else:
            idle = min((m for m in members if not m.counts), key=lambda m: m.seen, default=None)
            if idle is None:
                return False
            members = (*(m for m in members if m is not idle), member)
        self.node = self.node.replace(members=members)
        return True

    def _remove(self, member: Member, why: str) -> None:
        node = self.node
        self.node = node.replace(members=tuple(m for m in node.members if m.uuid != member.uuid))
        if member.counts:
            self.act(Tell(f"{member.name} (valor {member.valor}) left: {why}"))
            self.act(Occur("node-left", member))

    # What is decided.

    def lapse(self) -> None:
        """See first whether a lease is over: what came meanwhile does not bring it back."""
        node = self.node
        if node.state == LORD and self.now >= node.until - self.rules.patience:
            self.resign("too few nodes are heard")
        elif node.state == LORD and node.asked and self.now >= node.asked + self.rules.tolerance:
            # Nobody would start the daemons that the others leave to this node.
            self.resign("the master does not answer")
            self.node = self.node.replace(out="master")

    def resign(self, why: str, until: Ns | None = None) -> None:
        """Begin to be no lord any more."""
        node = self.node
        if node.state != LORD:
            return
        until = node.until if until is None else min(until, node.until)
        self.node = node.replace(state=RESIGNING, until=until, why=why)
        self.act(Resign(until, why), Show())

    def fail(self) -> None:
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

    def decide(self) -> None:
        """Do what the state and the time ask for."""
        self._forget()
        if self.node.state == RESIGNING and (not self.node.busy or self.now >= self._last_moment()):
            self._abdicate()
        if self.node.quits and self.node.state in (FOLLOWER, SUSPENDED):
            self._say_goodbye()
            return
        if self.node.state == SUSPENDED:
            if self.now < self.node.suspended or self.node.suspended == 0:
                return
            # The promises that it gave before its goodbye hold, as before a start.
            self.node = self.node.replace(
                state=FOLLOWER, since=self.now, settled=False, due=self.now
            )
            self.act(Tell("this node is back in the legion"), Show())
        self._elect()
        self._announce()

    def _last_moment(self) -> Ns:
        """Return when nothing is left whatever the master says: a kill takes a moment, too."""
        return self.node.until + margin(self.rules)

    def _forget(self) -> None:
        """Drop what is too old."""
        tolerance = self.rules.tolerance
        for member in self.node.members:
            if self.now - member.seen > tolerance:
                if not member.seq:
                    # What it said may be sent again for as long as it is not too old.
                    until = self.now + self.rules.skew * SECOND
                    self._entomb(Tomb(member.uuid, 0, member.unix, until))
                if member.lord and not member.seq:
                    # If it is cut off it finds that out later than we do.
                    self._fade(self.now + self.rules.freq)
                self._remove(member, f"nothing was heard of it for {format_duration(tolerance)}")
        node = self.node
        if any(tomb.until < self.now for tomb in node.tombs):
            self.node = node.replace(tombs=tuple(t for t in node.tombs if t.until >= self.now))
        if node.sent and node.sent[0].at < self.now - tolerance:
            sent = tuple(s for s in node.sent if s.at >= self.now - tolerance)
            self.node = self.node.replace(sent=sent)

    def _abdicate(self) -> None:
        """Nothing of the daemons is left, or the guard has seen to it: tell the others."""
        node = self.node
        self.act(Tell(f"this node is not the lord any more: {node.why}"), Occur("unlord"), Show())
        self.node = node.replace(state=FOLLOWER, lord=0, until=0, due=self.now, vote=(0, NOBODY))
        if node.out and not node.quits:
            self._send(dead=True)
            wait, suspended = "until the master answers", 0
            if node.out == "hook":
                wait = f"for {format_duration(self.rules.suspension)}"
                suspended = self.now + self.rules.suspension
            self.node = self.node.replace(state=SUSPENDED, out="", suspended=suspended)
            self.act(Tell(f"this node keeps out of the legion {wait}"))

    def _say_goodbye(self) -> None:
        if self.node.state == FOLLOWER:
            self._send(dead=True)
        self.act(Occur("death"))
        self.node = self.node.replace(state=ENDED)
        self.act(Show(), End())

    def _elect(self) -> None:
        rules, node = self.rules, self.node
        members = [m for m in node.members if m.counts]
        candidates = [(m.valor, m.uuid) for m in members if m.valor]
        me = (rules.valor, rules.uuid)
        if rules.valor:
            candidates.append(me)
        best = max(candidates, key=_rank, default=(0, NOBODY))
        checksum = _checksum(rules, node)
        if _has_met_all(rules, members, checksum):
            node = self.node = node.replace(settled=True)
        votes = 0
        if best[0] and all(m.checksum == checksum and m.vote == best for m in members):
            votes = 1 + len(members)
        if (best, checksum, votes) != (node.best, node.checksum, node.votes):
            self.act(Show())
        node = self.node = node.replace(best=best, votes=votes)
        if votes and votes >= rules.quorum and not node.joined and node.state != RESIGNING:
            self.node = node.replace(joined=True)
            self.act(Occur("join"))
        if self.node.state == LORD:
            self._stay(members, best, checksum)
        if self.node.state == FOLLOWER and best == me:
            self._rise(members)
        self._vote(members, checksum)

    def _stay(self, members: list[Member], best: tuple[int, str], checksum: int) -> None:
        """Go on to be the lord, or not."""
        rules, node = self.rules, self.node
        me = (rules.valor, rules.uuid)
        if node.votes >= max(1, rules.quorum) and best != me:
            name = next(m.name for m in members if m.uuid == best[1])
            self.resign(f"{name} has a higher {'valor' if best[0] > me[0] else 'uuid'}")
            return
        if len(members) + 1 < rules.quorum:
            have = _count(len(members) + 1, "node")
            self.resign(f"no quorum: {have}, {rules.quorum} needed")
            return
        # A uWSGI gives no promises: if its checksum has us no more, it may elect another at once.
        without = (checksum - sum_of(*me)) % (1 << 64)
        lost = sum(not m.seq and m.checksum == without and m.vote != me for m in members)
        if len(members) - lost + 1 < rules.quorum:
            self.resign("the other nodes do not hear it", self.now)
            return
        until = self._find_until(members)
        if self._is_longer(until):
            asked = node.asked or self.now
            self.node = node.replace(until=until, leased=until, busy=True, asked=asked)
            self.act(Lease(until), Show())

    def _is_longer(self, until: Ns) -> bool:
        """Return whether a lease is worth to be told of.

        This holds for the first of a new lord as well: what the last one left of its promises is
        too little to run a daemon for.
        """
        return until >= self.node.leased + self.rules.freq // 4

    def _find_until(self, members: list[Member]) -> Ns:
        """Return when the promises of a quorum end, less the margin."""
        rules = self.rules
        needed = rules.quorum - 1
        proof = self.now
        if needed > 0:
            reached = sorted((m.reached for m in members), reverse=True)
            proof = reached[needed - 1] if len(reached) >= needed else -1
        return proof + rules.tolerance - margin(rules) if proof >= 0 else -1

    def _rise(self, members: list[Member]) -> None:
        """Become the lord if nothing stands against it."""
        rules, node = self.rules, self.node
        needed = max(1, rules.quorum)
        if (
            node.votes < needed
            or node.quits
            or _is_waiting(rules, node, self.now)
            or any(m.lord for m in members)
            or self.now < node.fading
            # A vote whose promise is over may be older than another lord.
            or any(
                m.seq and m.reached < self.now - rules.tolerance + margin(rules) for m in members
            )
        ):
            self._warn(members)
            return
        until = self._find_until(members)
        if until - rules.patience <= self.now or not self._is_longer(until):
            return  # their echo of what is said now will do
        self.node = node.replace(
            state=LORD,
            lord=max(1, self.wall),
            until=until,
            leased=until,
            busy=True,
            asked=self.now,
            due=self.now,
            warned=0,
        )
        self.act(
            Tell(f"this node is the lord now, with {_count(node.votes, 'vote')}"),
            Occur("lord"),
            Lease(until),
            Show(),
        )

    def _warn(self, members: list[Member]) -> None:
        rules, node = self.rules, self.node
        have = len(members) + 1
        if have >= rules.quorum or _is_waiting(rules, node, self.now):
            return
        if node.warned and self.now < node.warned + WARN_EVERY:
            return
        self.node = node.replace(warned=self.now)
        self.act(Tell(f"no quorum: {_count(have, 'node')}, {rules.quorum} needed"))

    def _vote(self, members: list[Member], checksum: int) -> None:
        """Choose the vote, and speak up if it, or what is known, has changed."""
        rules, node = self.rules, self.node
        if node.state in (LORD, RESIGNING):
            vote = (rules.valor, rules.uuid)
        elif _is_waiting(rules, node, self.now) and not any(
            m.lord and (m.valor, m.uuid) == node.best for m in members
        ):
            vote = (0, NOBODY)
        else:
            vote = node.best
        if (vote, checksum) != (node.vote, node.checksum):
            self.node = node.replace(vote=vote, checksum=checksum, due=self.now)

    # What is said.

    def _announce(self) -> None:
        """Send a packet if it is time, and not right after the last one."""
        node = self.node
        if self.now >= self._next_send(node):
            self._send()

    def _next_send(self, node: Node) -> Ns:
        """Return when the next packet is to be sent."""
        rules = self.rules
        if not node.sent:
            return node.due
        last = node.sent[-1].at
        pause = rules.freq
        if rules.quorum > 1 and node.best == (rules.valor, rules.uuid):
            # A lord, and who wants to be one, needs the echo.
            reached = sorted((m.reached for m in node.members if m.counts and m.seq), reverse=True)[
                : rules.quorum - 1
            ]
            if reached and reached[-1] < last and (node.votes or node.state == LORD):
                pause = rules.freq * 2 // 3 if _is_mixed(node) else rules.freq // 3
        soon = max(node.due, last + rules.freq // 30)
        return min(last + pause, soon) if node.due else last + pause

    def _send(self, *, dead: bool = False) -> None:
        rules, node = self.rules, self.node
        seq = node.seq + 1
        packet = Packet(
            rules.legion,
            rules.valor,
            self.wall,
            rules.name,
            rules.pid,
            rules.uuid,
            node.lord,
            node.checksum,
            *node.vote,
            rules.scroll,
            dead,
            seq,
            tuple((m.uuid, m.seq) for m in node.members if m.seq and m.counts),
            tuple((m.uuid, m.seq) for m in node.members if m.seq and not m.counts),
        )
        sent = (*node.sent, Sent(seq, self.now))[-MOST_SENT:]
        members = node.members
        if dead:
            sent, members = (), ()  # what was said before, and heard, proves nothing any more
        self.node = node.replace(seq=seq, sent=sent, members=members, due=0)
        self.act(Send(packet))

    def _next_wake(self) -> Ns:
        rules, node = self.rules, self.node
        times = [m.seen + rules.tolerance + 1 for m in node.members]
        if node.fading > self.now:
            times.append(node.fading)
        if node.state == SUSPENDED:
            times.append(node.suspended or self.now + rules.tolerance)
        else:
            times.append(self._next_send(node))
        if node.state == LORD:
            times.append(node.until - rules.patience)
            if node.asked:
                times.append(node.asked + rules.tolerance)
        elif node.state == RESIGNING:
            times.append(self._last_moment())
        elif self.now < node.since + _listening(rules):
            times.append(node.since + _listening(rules))
        return min(times)


def _rank(candidate: tuple[int, str]) -> tuple[int, bytes]:
    """Return what candidates are compared by: uWSGI compares the bytes of their uuids."""
    valor, uuid = candidate
    return valor, uuid.encode("utf-8", "surrogateescape")
