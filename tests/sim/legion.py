"""A simulated network of legion nodes: discrete events, one seed, no real time.

A `Low` is a node of lowsuper: the real `election.step` in an agent, and a model of the master, the
guard and the daemon around it. A `Uwsgi` is a node of uWSGI: a model of the loop of core/legion.c
and of the legion part of core/daemons.c (2.0.31), whole seconds and quirks included.

The world knows the true time. Each node has its own CLOCK_BOOTTIME, of a slightly wrong rate, and
its own clock of the day, which may jump. Whoever runs a daemon says so to the world, which notes
when two run at the same time.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from dataclasses import dataclass, field
from itertools import count

from lowsuper.legion import election
from lowsuper.legion.packet import NOBODY, Packet, sum_of
from lowsuper.legion.states import (
    Begin,
    Busy,
    End,
    Heard,
    HookFailed,
    Lease,
    Node,
    Occur,
    Quit,
    Resign,
    Rules,
    Send,
    Tell,
    WakeAt,
    Woke,
)
from lowsuper.units import SECOND

MS = SECOND // 1000
EPOCH = 1_700_000_000


@dataclass(frozen=True)
class Plan:
    """A legion: who is in it, and with which rules. Times without a unit are nanoseconds."""

    kinds: str = "lll"  # a letter for each node: l is a lowsuper, u a uWSGI
    valors: tuple[int, ...] = (3, 2, 1)
    quorum: int = 2
    freq: int = 3  # seconds
    tolerance: int = 15  # seconds
    patience: int = 2 * SECOND
    suspension: int = 0
    skew: int = 60  # seconds
    modern: bool = False
    smart: bool = False  # daemons outlive their master
    stubborn: float = 0.1  # how many daemons ignore the stop signal
    ends: int | None = None  # how long a daemon takes to end; None: anything up to its patience
    hook_fails: float = 0.0


@dataclass
class Link:
    """The way from one node to another."""

    delay: int = MS
    jitter: int = MS
    loss: float = 0.0
    twice: float = 0.0  # how many packets come once more
    late: int = SECOND  # how long after, at most
    cut: bool = False


@dataclass(frozen=True)
class Overlap:
    """Two daemons ran at once: `second` began at that time, while `first` was running."""

    at: int
    first: int
    second: int
    wrong: bool  # the first was a uWSGI that goes on though it knows that it has no quorum
    parted: int  # for how long the two had been cut off from each other


class Clock:
    """The clocks of a node; `ppm` is how much its CLOCK_BOOTTIME is too fast."""

    def __init__(self, ppm: int, boot: int, ahead: int) -> None:
        self.ppm, self.zero = ppm, boot
        self.ahead = ahead  # of the clock of the day

    def boot(self, true: int) -> int:
        return self.zero + true + true * self.ppm // 1_000_000

    def wall(self, true: int) -> int:
        return EPOCH + (self.ahead + true) // SECOND

    def when(self, boot: int) -> int:
        """Return the first true time at which the clock shows that."""
        true = (boot - self.zero) * 1_000_000 // (1_000_000 + self.ppm)
        while self.boot(true) < boot:
            true += 1
        return true


class World:
    """Nodes, links and the true time."""

    def __init__(self, plan: Plan, seed: int, *, ppm: int = 200) -> None:
        self.plan, self.seed = plan, seed
        self.random = random.Random(seed)
        self.time = 0
        self.trace: list[tuple[int, int, object]] = []
        self.overlaps: list[Overlap] = []
        self.running: dict[int, int] = {}  # node -> since when its daemon runs
        self.starts: list[tuple[int, int]] = []  # (time, node)
        self.wire: list[Packet] = []  # all that was ever sent
        self.cuts: list[tuple[int, int, int, int]] = []  # (from, to, since, until)
        self.steps = 0
        self._open_cuts: dict[tuple[int, int], int] = {}
        self._heap: list[tuple[int, int, object, tuple]] = []
        self._serial = count()
        size = len(plan.kinds)
        self.links = {(a, b): Link() for a in range(size) for b in range(size) if a != b}
        self.nodes = [
            (Low if kind == "l" else Uwsgi)(
                self,
                number,
                Clock(
                    self.random.randint(-ppm, ppm),
                    self.random.randrange(10**6) * SECOND,
                    self.random.randrange(SECOND),
                ),
            )
            for number, kind in enumerate(plan.kinds)
        ]

    # Time.

    def at(self, delay: int, what, *arguments) -> None:
        heapq.heappush(self._heap, (self.time + delay, next(self._serial), what, arguments))

    def run(self, duration: int, finished=None) -> bool:
        """Let time pass until it has, or until `finished` says so; return whether it did."""
        end = self.time + duration
        heap = self._heap
        while heap and heap[0][0] <= end:
            self.time, _, what, arguments = heapq.heappop(heap)
            what(*arguments)
            if finished is not None and finished():
                return True
        self.time = end
        return finished is not None and finished()

    def latency(self) -> int:
        """Return how long a process waits for its turn."""
        if self.random.random() < 0.02:
            return self.random.randrange(200 * MS)
        return self.random.randrange(MS)

    def note(self, number: int, what: object) -> None:
        self.trace.append((self.time, number, what))

    # The network.

    def send(self, sender: int, packet: Packet) -> None:
        self.wire.append(packet)
        for receiver in self.nodes:
            if receiver.number == sender:
                continue
            link = self.links[sender, receiver.number]
            if link.cut or self.random.random() < link.loss:
                continue
            delay = link.delay + self.random.randrange(link.jitter + 1)
            self.at(delay, self._arrive, sender, receiver, packet)
            if self.random.random() < link.twice:
                delay += self.random.randrange(link.late + 1)
                self.at(delay, self._arrive, sender, receiver, packet)

    def _arrive(self, sender: int, receiver, packet: Packet) -> None:
        if not self.links[sender, receiver.number].cut:
            receiver.receive(packet)

    def cut(self, a: int, b: int) -> None:
        """Cut the way from a to b."""
        link = self.links[a, b]
        if not link.cut:
            link.cut = True
            self._open_cuts[a, b] = self.time
            self.note(a, f"cut to {b}")

    def join(self, a: int, b: int) -> None:
        link = self.links[a, b]
        if link.cut:
            link.cut = False
            self.cuts.append((a, b, self._open_cuts.pop((a, b)), self.time))
            self.note(a, f"joined to {b}")

    def split(self, side) -> None:
        """Cut the ways between some nodes and all others, both ways."""
        for a, b in self.links:
            if (a in side) != (b in side):
                self.cut(a, b)

    def heal(self) -> None:
        for a, b in self.links:
            self.join(a, b)

    def was_cut(self, a: int, b: int, since: int, until: int) -> bool:
        """Return whether the way between two was cut at some time."""
        closed = any({a, b} == {c, d} and e < until and f > since for c, d, e, f in self.cuts)
        return closed or any({a, b} == set(way) for way in self._open_cuts)

    def find_parted(self, a: int, b: int) -> int:
        """Return since when two are cut off from each other; now, if they are not."""
        return max(self._open_cuts.get(way, self.time) for way in ((a, b), (b, a)))

    # Daemons.

    def begin(self, number: int) -> None:
        """Be told that a daemon runs now."""
        assert number not in self.running
        for other in self.running:
            self.note(number, f"OVERLAP with {other}")
            parted = self.time - self.find_parted(other, number)
            wrong = self.nodes[other].wrong
            self.overlaps.append(Overlap(self.time, other, number, wrong, parted))
        self.running[number] = self.time
        self.starts.append((self.time, number))
        self.note(number, "daemon runs")

    def end(self, number: int) -> None:
        if self.running.pop(number, None) is not None:
            self.note(number, "daemon over")

    def start_all(self, within: int = 0) -> World:
        for node in self.nodes:
            self.at(self.random.randrange(within + 1), node.start)
        return self

    def tell(self, last: int = 60) -> str:
        """Return the end of the story, for people."""
        lines = [f"seed {self.seed}, {self.plan}"]
        lines += [f"{t / SECOND:10.3f} {n}: {what}" for t, n, what in self.trace[-last:]]
        return "\n".join(lines)


@dataclass(eq=False)
class Daemon:
    """One run of the daemon, and what the guard knows of it."""

    fence: int  # CLOCK_BOOTTIME
    smart: bool
    alive: bool = True
    runs: bool = False  # it has got as far as execve
    stopping: bool = False


@dataclass(eq=False)
class Host:
    """What both kinds of nodes have."""

    world: World
    number: int
    clock: Clock
    up: bool = False
    suspended: bool = False
    life: int = 0  # counts the starts of the master
    uuid: str = ""
    pending: list = field(default_factory=list)  # what fell due while the host was suspended
    wrong: bool = False  # it runs its daemon although it has no quorum, and knows

    @property
    def now(self) -> int:
        return self.clock.boot(self.world.time)

    @property
    def wall(self) -> int:
        return self.clock.wall(self.world.time)

    @property
    def valor(self) -> int:
        return self.world.plan.valors[self.number]

    def later(self, delay: int, what, *arguments) -> None:
        self.world.at(delay, self._fall_due, what, arguments)

    def _fall_due(self, what, arguments) -> None:
        if self.suspended:
            self.pending.append((what, arguments))
        else:
            what(*arguments)

    def suspend(self) -> None:
        """Stop all that runs; CLOCK_BOOTTIME goes on."""
        if not self.suspended:
            self.world.note(self.number, "suspended")
            self.suspended = True
            self.world.end(self.number)

    def resume(self) -> None:
        if not self.suspended:
            return
        self.world.note(self.number, "resumed")
        self.suspended = False
        self.wake_daemon()
        pending, self.pending = self.pending, []
        self.world.random.shuffle(pending)
        for what, arguments in pending:
            self.world.at(self.world.random.randrange(MS), self._fall_due, what, arguments)

    def make_uuid(self) -> str:
        return f"{self.world.random.getrandbits(144):036x}"


class Low(Host):
    """A node of lowsuper."""

    def __init__(self, world: World, number: int, clock: Clock) -> None:
        super().__init__(world, number, clock)
        self.daemon: Daemon | None = None
        self.agent_up = self.agent_stopped = self.master_stopped = False
        self.agent_life = 0
        self.lease = 0  # of the master
        self.read = 0  # the last lease of this agent that the master has read
        self.quitting = False
        self.node = Node()
        self.rules: Rules | None = None
        self.packets: deque = deque()
        self.words: deque = deque()
        self.inbox: deque = deque()  # of the master
        self.spawn_delay = 20 * MS
        self.lag = min(SECOND, world.plan.tolerance * SECOND // 10) // 2  # of a kill, at most
        self.hook_fails = world.plan.hook_fails
        self._ring = 0

    def _rules(self) -> Rules:
        plan = self.world.plan
        return Rules(
            "legion",
            self.valor,
            f"low{self.number}",
            1000 + self.number,
            self.uuid,
            plan.quorum,
            plan.freq * SECOND,
            plan.tolerance * SECOND,
            plan.skew,
            plan.patience,
            plan.suspension,
            "",
            plan.modern,
        )

    # The master.

    def start(self) -> None:
        if self.up or self.suspended:
            return
        self.world.note(self.number, "starts")
        self.up, self.quitting = True, False
        self.agent_stopped = self.master_stopped = False
        self.life += 1
        self.lease = 0
        self.inbox.clear()
        if self.daemon is not None:
            self._stop(self.daemon)
        self._start_agent()

    def _start_agent(self) -> None:
        self.agent_up, self.agent_stopped = True, False
        self.agent_life += 1
        self.uuid = self.make_uuid()
        self.rules, self.node = self._rules(), Node()
        self.packets.clear()
        self.words.clear()
        self._ring += 1
        self.read = 0
        self._feed(Begin())
        if self.daemon is not None:
            self._say_busy()

    def quit(self) -> None:
        """Stop the master gracefully."""
        if self.up and not self.quitting:
            self.world.note(self.number, "quits")
            self.quitting = True
            self._say(Quit())
            self.later(self.world.plan.patience + 2 * SECOND, self._give_up, self.life)
            if not self.agent_up:
                self._ask_master(self.life, self._go)

    def _give_up(self, life: int) -> None:
        """Stop to wait for an agent that does not end."""
        if life == self.life:
            self.kill_agent()

    def crash(self) -> None:
        """Kill the master with SIGKILL: its agent and its dumb daemon die with it."""
        if not self.up:
            return
        self.world.note(self.number, "killed")
        self.up = self.agent_up = False
        self.life += 1
        self.agent_life += 1
        if self.daemon is not None and not (self.daemon.smart and self.daemon.alive):
            self._die(self.daemon)
            self.daemon = None

    def kill_agent(self) -> None:
        if self.up and self.agent_up:
            self.world.note(self.number, "agent killed")
            self.agent_up = False
            self.agent_life += 1
            self._ask_master(self.life, self._lose_agent)

    def stop_agent(self) -> None:
        self.agent_stopped = True
        self.world.note(self.number, "agent stopped")

    def continue_agent(self) -> None:
        if self.agent_stopped:
            self.world.note(self.number, "agent continued")
            self.agent_stopped = False
            self.later(self.world.latency(), self._pump, self.agent_life)
            self.later(self.world.latency(), self._wake, self._ring)

    def stop_master(self) -> None:
        self.master_stopped = True
        self.world.note(self.number, "master stopped")

    def continue_master(self) -> None:
        if self.master_stopped:
            self.world.note(self.number, "master continued")
            self.master_stopped = False
            self.later(self.world.latency(), self._work, self.life)

    def end_daemon(self) -> None:
        """Let the daemon end by itself."""
        if self.daemon is not None and not self.suspended:
            self._die(self.daemon)

    def _ask_master(self, life: int, what, *arguments) -> None:
        """Queue something for the master."""
        if life == self.life:
            self.inbox.append((what, arguments))
            self.later(self.world.latency(), self._work, life)

    def _work(self, life: int) -> None:
        while self.inbox and life == self.life and self.up and not self.master_stopped:
            what, arguments = self.inbox.popleft()
            what(*arguments)

    def _lapse(self) -> None:
        if self.lease and self.now >= self.lease - self.world.plan.patience:
            self._lose()

    def _run_hook(self) -> None:
        if self.world.random.random() < self.hook_fails:
            self.world.note(self.number, "lord hook fails")
            self._say(HookFailed())

    def _respawn(self) -> None:
        if self.lease and self.daemon is None:
            self._launch()

    def _lose_agent(self) -> None:
        self._lose()
        if self.quitting:
            self._go()
        else:
            self.later(SECOND // 10, self._replace_agent, self.life)

    def _go(self) -> None:
        """Stop, since the agent has said goodbye, or is no more."""
        self._lose()
        self.quitting = True
        if self.daemon is None:
            self._finish()

    def _replace_agent(self, life: int) -> None:
        if life == self.life and self.up and not self.agent_up:
            self._start_agent()

    def _take_lease(self, until: int) -> None:
        patience = self.world.plan.patience
        if until - patience > self.now and not self.quitting:
            self.lease = until
            if self.daemon is None:
                self._launch()
            else:
                self.daemon.fence = max(self.daemon.fence, until)
            self.world.at(
                max(0, self.clock.when(until - patience) - self.world.time),
                self._fall_due,
                self._ask_master,
                (self.life, self._lapse),
            )
        self.read = until
        self._say_busy()

    def _take_resign(self, until: int) -> None:
        if self.daemon is not None:
            self.daemon.fence = min(self.daemon.fence, until)
            self._guard(self.daemon)
        self._lose()

    def _lose(self) -> None:
        self.lease = 0
        if self.daemon is not None:
            self._stop(self.daemon)
        else:
            self._say_busy()

    def _say_busy(self) -> None:
        self._say(Busy(self.daemon is not None or self.lease > self.now, self.read))

    def _launch(self) -> None:
        daemon = self.daemon = Daemon(self.lease, self.world.plan.smart)
        self._guard(daemon)
        self.later(self.spawn_delay, self._exec, daemon)

    def _exec(self, daemon: Daemon) -> None:
        if daemon.alive:
            daemon.runs = True
            self.world.begin(self.number)

    def _stop(self, daemon: Daemon) -> None:
        if daemon.stopping or not daemon.alive:
            return
        daemon.stopping = True
        plan, source = self.world.plan, self.world.random
        self.later(plan.patience, self._ask_master, self.life, self._die, daemon)
        if source.random() >= plan.stubborn:
            takes = source.randrange(plan.patience + 1) if plan.ends is None else plan.ends
            self.later(takes, self._die, daemon)

    def _die(self, daemon: Daemon) -> None:
        if not daemon.alive:
            return
        daemon.alive = False
        if daemon.runs:
            self.world.end(self.number)
        if self.up:
            self._ask_master(self.life, self._reap, daemon)
        else:
            self.daemon = None

    def _reap(self, daemon: Daemon) -> None:
        if self.daemon is not daemon:
            return
        self.daemon = None
        if self.quitting and not self.agent_up:
            self._finish()
        elif self.lease and self.lease - self.world.plan.patience > self.now:
            self.later(
                self.world.random.choice((0, SECOND)), self._ask_master, self.life, self._respawn
            )
        else:
            self.lease = 0
            self._say_busy()

    def _finish(self) -> None:
        self.world.note(self.number, "has stopped")
        self.up = self.agent_up = False
        self.life += 1
        self.agent_life += 1

    # The guard: a process of its own, which nothing of the above stops.

    def _guard(self, daemon: Daemon) -> None:
        delay = max(0, self.clock.when(daemon.fence) - self.world.time)
        self.later(delay + self.world.random.randrange(self.lag + 1), self._look, daemon)

    def _look(self, daemon: Daemon) -> None:
        if daemon.alive and self.now >= daemon.fence:
            self.world.note(self.number, "guard kills")
            self._die(daemon)
        elif daemon.alive:
            self._guard(daemon)

    def wake_daemon(self) -> None:
        """See to the daemon after a suspend, the guard first."""
        daemon = self.daemon
        if daemon is None or not daemon.alive:
            return
        if self.now >= daemon.fence:
            self._die(daemon)
        elif daemon.runs:
            self.world.begin(self.number)

    # The agent.

    def receive(self, packet: Packet) -> None:
        if self.up and self.agent_up and not self.suspended and len(self.packets) < 400:
            self.packets.append(packet)
            self.later(self.world.latency(), self._pump, self.agent_life)

    def _say(self, event) -> None:
        if self.agent_up:
            self.words.append(event)
            self.later(self.world.latency(), self._pump, self.agent_life)

    def _pump(self, life: int) -> None:
        while (self.packets or self.words) and life == self.agent_life and self._agent_runs():
            if self.words and (not self.packets or self.world.random.random() < 0.5):
                self._feed(self.words.popleft())
            else:
                self._feed(Heard(self.packets.popleft()))

    def _wake(self, ring: int) -> None:
        if ring == self._ring and self._agent_runs():
            self._feed(Woke())

    def _agent_runs(self) -> bool:
        return self.up and self.agent_up and not self.agent_stopped

    def _feed(self, event) -> None:
        world = self.world
        world.steps += 1
        state = self.node.state
        self.node, actions = election.step(self.rules, self.node, event, self.now, self.wall)
        if self.node.state != state:
            world.note(self.number, self.node.state)
        for action in actions:
            match action:
                case Send():
                    world.send(self.number, action.packet)
                case Lease():
                    world.note(self.number, action)
                    self._ask_master(self.life, self._take_lease, action.until)
                case Resign():
                    world.note(self.number, action)
                    self._ask_master(self.life, self._take_resign, action.until)
                case Occur(event="lord"):
                    self._ask_master(self.life, self._run_hook)
                case Tell():
                    world.note(self.number, action.text)
                case End():
                    self.agent_up = False
                    self.agent_life += 1
                    self._ask_master(self.life, self._go)
                case WakeAt():
                    self._ring += 1
                    delay = self.clock.when(action.at) - world.time
                    delay = max(0, delay) + world.latency()
                    self.later(delay, self._wake, self._ring)
                case _:
                    pass

    @property
    def is_lord(self) -> bool:
        return self.up and self.node.state == "lord"


@dataclass(eq=False)
class Seen:
    """What a uWSGI knows of another node."""

    valor: int
    name: str
    uuid: str
    last_seen: int = 0
    lord_valor: int = 0
    lord_uuid: str = NOBODY
    checksum: int = 0


class Uwsgi(Host):
    """A node of uWSGI: its legion thread, and its master as far as the daemon goes."""

    def __init__(self, world: World, number: int, clock: Clock) -> None:
        super().__init__(world, number, clock)
        self.name = f"uwsgi{number}"
        self.hears: deque = deque()
        self.spawn_delay = 20 * MS
        self.child = 0  # of its daemon, counts the launches; 0: none
        self.launches = 0
        self.signalled = False

    # The master.

    def start(self) -> None:
        if self.up or self.suspended:
            return
        self.world.note(self.number, "starts")
        self.up, self.dying, self.joined = True, False, False
        self.life += 1
        self.uuid = self.make_uuid()
        self.seen: list[Seen] = []
        self.i_am_the_lord = 0
        self.lord_valor, self.lord_uuid, self.checksum = 0, NOBODY, 0
        self.last_warning = 0
        self.wrong = False
        self.first_round = True
        self.hears.clear()
        self.last_round = self.wall
        self.waits = 0
        self._begin_round()
        self.later(self.world.random.randrange(SECOND), self._poll, self.life)

    def quit(self) -> None:
        if not self.up or self.dying:
            return
        self.world.note(self.number, "quits")
        self.dying = True
        if self.child:
            self._signal()
            self.later(3 * SECOND, self._kill_daemon, self.child)
        self._leave(self.life)

    def _leave(self, life: int) -> None:
        """Say goodbye at exit, once the daemon is gone."""
        if life != self.life:
            return
        if self.child:
            self.later(SECOND, self._leave, life)  # it looks once a second
            return
        self._announce(dead=True)
        self.world.note(self.number, "has stopped")
        self.up = False
        self.life += 1

    def crash(self) -> None:
        if self.up:
            self.world.note(self.number, "killed")
            self.up = False
            self.life += 1
            self._kill_daemon(self.child)

    def _poll(self, life: int) -> None:
        """See to the daemon once a second: uwsgi_daemons_smart_check."""
        if life != self.life or self.dying:
            return
        if self.i_am_the_lord:
            if not self.child:
                self.launches += 1
                self.child, self.signalled = self.launches, False
                self.later(self.spawn_delay, self._exec, self.child)
        elif self.child:
            self._signal()
        self.later(SECOND, self._poll, life)

    def _exec(self, child: int) -> None:
        if child == self.child:
            self.world.begin(self.number)

    def _signal(self) -> None:
        if not self.signalled:
            self.signalled = True
            plan = self.world.plan
            takes = (
                self.world.random.randrange(plan.patience + 1) if plan.ends is None else plan.ends
            )
            self.later(takes, self._kill_daemon, self.child)

    def _kill_daemon(self, child: int) -> None:
        if child and child == self.child:
            self.child = 0
            self.world.end(self.number)

    def wake_daemon(self) -> None:
        if self.child:
            self.world.begin(self.number)

    # The legion thread.

    def receive(self, packet: Packet) -> None:
        if self.up and not self.dying and not self.suspended and len(self.hears) < 400:
            self.hears.append(packet)
            self.later(self.world.latency(), self._woken, self.waits)

    def _begin_round(self) -> None:
        plan, now = self.world.plan, self.wall
        self.timeout = plan.freq
        if now > self.last_round:
            self.timeout = max(0, self.timeout - (now - self.last_round))
        self.last_round = now
        self.waits += 1
        if self.hears:
            self.later(self.world.latency(), self._woken, self.waits)
        else:
            self.later(self.timeout * SECOND + self.world.latency(), self._woken, self.waits)

    def _woken(self, waits: int) -> None:
        if waits != self.waits or not self.up or self.dying:
            return
        self._round()
        self._begin_round()

    def _round(self) -> None:
        self.world.steps += 1
        packet = self.hears.popleft() if self.hears else None
        if self.timeout == 0 or packet is None or self.wall - self.last_round >= self.timeout:
            self._announce()
            self.last_round = self.wall
        self._drop()
        if packet is not None and not self._take(packet):
            return
        if self.first_round:
            self.first_round = False
            return
        self._elect()

    def _announce(self, *, dead: bool = False) -> None:
        self.world.send(
            self.number,
            Packet(
                "legion",
                self.valor,
                self.wall,
                self.name,
                2000 + self.number,
                self.uuid,
                self.i_am_the_lord,
                self.checksum,
                self.lord_valor,
                self.lord_uuid,
                "",
                dead,
            ),
        )

    def _drop(self) -> None:
        late = self.wall - self.world.plan.tolerance
        left = [node for node in self.seen if node.last_seen < late]
        for node in left:
            self.world.note(self.number, f"{node.name} left")
        if left:
            self.seen = [node for node in self.seen if node not in left]

    def _take(self, packet: Packet) -> bool:
        """Take a packet; return False if uWSGI goes on to its next round at once."""
        if packet.legion != "legion" or packet.uuid == self.uuid:
            return False
        if packet.unix < self.wall - self.world.plan.skew:
            return False
        key = (packet.valor, packet.name, packet.uuid)
        node = next((n for n in self.seen if (n.valor, n.name, n.uuid) == key), None)
        if packet.dead:
            if node is not None:
                self.world.note(self.number, f"{node.name} announced its death")
                self.seen.remove(node)
            return False
        if node is None:
            node = Seen(*key)
            self.seen.append(node)
            self.world.note(self.number, f"{node.name} joined")
        node.last_seen = self.wall
        node.lord_valor, node.lord_uuid = packet.lord_valor, packet.lord_uuid
        node.checksum = packet.checksum
        return True

    def _elect(self) -> None:
        """Do what legions_check_nodes_step2 does."""
        best, mine = self._find_lord()
        self.checksum = sum_of(self.valor, self.uuid)
        for node in self.seen:
            self.checksum += sum_of(node.valor, node.uuid)
        self.checksum %= 1 << 64
        votes = 1 + len(self.seen)
        for node in self.seen:
            if node.checksum != self.checksum or (node.lord_valor, node.lord_uuid) != best:
                votes = 0
                break
        quorum = self.world.plan.quorum
        has_daemon = bool(self.i_am_the_lord or (self.wrong and self.child))
        self.wrong = has_daemon and 0 < votes < quorum
        if votes > 0 and votes >= quorum:
            self.joined = True
            if mine and not self.i_am_the_lord:
                self.world.note(self.number, "lord")
                self.i_am_the_lord = self.wall
                self._announce()
            elif not mine and self.i_am_the_lord:
                self.world.note(self.number, "no lord any more")
                self.i_am_the_lord = 0
        elif 0 < votes < quorum and self.wall - self.last_warning >= 60:
            self.i_am_the_lord = 0
            self.last_warning = self.wall
            self.world.note(self.number, "no quorum")

    def _find_lord(self) -> tuple[tuple[int, str], bool]:
        """Return the best candidate, and whether it is this node; the vote changes too."""
        best, other = (self.valor, self.uuid), False
        for node in self.seen:
            if node.valor and (node.valor, node.uuid) > best:
                best, other = (node.valor, node.uuid), True
        self.lord_valor, self.lord_uuid = best
        if other:
            return best, False
        if self.valor > 0:
            return best, True
        return (0, NOBODY), False

    @property
    def is_lord(self) -> bool:
        return self.up and bool(self.i_am_the_lord)


@dataclass(frozen=True)
class Takeover:
    """How one node took over from another; all in nanoseconds after the fault."""

    ended: int | None  # when the old daemon was over
    began: int | None  # when the new one ran
    overlap: int  # for how long both ran


FAULTS = ("graceful", "crash", "cut")


def take_over(plan: Plan, seed: int, fault: str) -> tuple[Takeover, World]:
    """Let a legion find its lord, then stop it, kill it, or cut it off; see who is the next."""
    source = random.Random(seed)
    world = World(plan, seed)
    for link in world.links.values():
        link.delay, link.jitter = source.choice([(0, MS), (MS, MS), (20 * MS, 20 * MS)])
    world.start_all(plan.freq * SECOND)
    calm = (3 * plan.tolerance + 4 * plan.freq) * SECOND
    world.run(calm + source.randrange(4 * plan.freq * SECOND))
    (old,) = world.running
    since = world.time
    if fault == "graceful":
        world.nodes[old].quit()
    elif fault == "crash":
        world.nodes[old].crash()
    else:
        world.split([old])
    starts = len(world.starts)
    limit = 2 * calm + 120 * SECOND
    ended = began = None
    while ended is None or began is None:
        if world.time >= since + limit:
            break
        world.run(SECOND // 50)
        if ended is None and old not in world.running:
            ended = world.time - since
        if began is None and len(world.starts) > starts:
            began = world.starts[starts][0] - since
    overlap = max(0, (limit if ended is None else ended) - (limit if began is None else began))
    return Takeover(ended, began, overlap), world
