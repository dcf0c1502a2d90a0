"""What the scheduler must do, said slowly: the order, admission, what is held, what comes home.

Plans are judged in model_plan, texts kept in model_sequence, rows and books in model_sequence_rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from engine._core import Sequence

from .kinds import ERROR, FINISHED, NOBODY, RUNNING, SMALL
from .model_sequence import SequenceModel
from .model_text import Request
from .model_turns import Lanes, Turns


@dataclass(frozen=True)
class Shape:
    """The settings of a scheduler."""

    slabs: int
    slots: tuple[int, int]
    size: int  # tokens of a block
    context: int
    sequences: int
    queue: int
    budget: int  # rows of a tick
    drawn: int  # of them, most that are sampled from; 0: all
    prefix_cache: bool
    background: tuple[int, int]
    lanes: Lanes

    @property
    def holds(self) -> int:
        """Tokens of the longest request that either model alone could hold."""
        return self.slabs * min(self.slots) * self.size


@dataclass
class Span:
    """A sequence's part of a plan: where its rows go and what they and those before must hold."""

    sequence: SequenceModel
    samples: int  # draws
    first: int
    rows: int
    places: list[int]  # of each row of KV up to the last one planned
    contents: list[int]  # what must be there
    attempt: int
    void: bool = False


@dataclass
class Flight:
    spans: list[Span] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)  # blocks that copies read


BET = -2  # what a row holds that was planned ahead, while it is not won


class Shadow:
    """What the last write left in each row of the arena. The two models' rows overlap."""

    def __init__(self, shape: Shape) -> None:
        self.per_slab = [slots * shape.size for slots in shape.slots]
        self.slabs: dict[int, tuple[int, dict[int, int]]] = {}

    def write(self, model: int, place: int, digest: int) -> None:
        slab = place // self.per_slab[model]
        if self.slabs.get(slab, (NOBODY, {}))[0] != model:
            self.slabs[slab] = (model, {})
        self.slabs[slab][1][place] = digest

    def read(self, model: int, place: int) -> int | None:
        owner, rows = self.slabs.get(place // self.per_slab[model], (NOBODY, {}))
        return rows.get(place) if owner == model else None


def digest(tokens: list[int]) -> list[int]:
    """A hash of each prefix."""
    hashes = [NOBODY]
    for token in tokens:
        hashes.append(hash((hashes[-1], token)))
    return hashes[1:]


class SchedulerModel:
    def __init__(self, shape: Shape) -> None:
        self.shape, self.size = shape, shape.size
        self.sequences: dict[int, SequenceModel] = {}
        self.running: list[SequenceModel] = []
        self.waiting: list[SequenceModel] = []
        self.events: list[tuple[int, int, int]] = []
        self.flights: list[list[Flight]] = [[], []]  # oldest first
        self.turns = Turns(shape.lanes)
        self.shadow = Shadow(shape)
        self.next_id = 1
        # Blocks by the prefix that they end; None once some were dropped that only the core knows.
        self.cache: list[dict[tuple[int, ...], int]] | None = [{}, {}]
        # Counters of the core.
        self.admitted, self.ticks, self.held, self.lost = 0, [0, 0], [0, 0], [0, 0]
        self.hits, self.shared, self.copied, self.background = [0, 0], [0, 0], [0, 0], [0, 0]
        self.ahead, self.voided = [0, 0], [0, 0]
        self.may_have_lost = False  # KV taken in flight may go with the end anyway: who knows
        self.planned = [[0, 0], [0, 0]]  # rows and keys of each lane, less those that failed

    def blocks_for(self, rows: int) -> int:
        return -(-rows // self.size)

    # -- requests

    def add(self, request: Request, samples: int) -> list[SequenceModel]:
        self.turns.changed()
        first, made = self.next_id, []
        for id in range(first, first + samples):
            made.append(SequenceModel(self, id, first, samples, request))
            self.sequences[id] = made[-1]
        self.next_id += samples
        self.waiting = sorted([*self.waiting, *made], key=lambda s: s.order)
        return made

    def leave(self, sequence: SequenceModel) -> None:
        (self.running if sequence in self.running else self.waiting).remove(sequence)
        self.turns.changed()
        self.events.append((FINISHED, sequence.id, NOBODY))

    def void_events(self, sequence: SequenceModel) -> None:
        self.events = [event for event in self.events if event[1] != sequence.id]

    def leader(self) -> SequenceModel | None:
        """The first in the order that could go on."""
        return next((s for s in self.running if not s.awaits_route), None)

    def admit(self, free: list[int], limit: int, after: dict[int, Sequence]) -> None:
        """In order: those that were stopped, and new ones while the batch has room. The leader in
        any case, and one if all were stopped; none before there is room for what it has now.
        Where all of them fit to their ends none waits. Between the two the forecast decides."""
        leader = self.leader()
        if leader is not None:
            # One of a better priority that comes in now is the first from here on, and may stop it.
            passed = any(
                s.order < leader.order and after[s.id].phase == RUNNING for s in self.waiting
            )
            assert passed or not after[leader.id].suspended, "the first to go on was stopped"
            self.go_on(leader)
        line = [s for s in self.running if s.suspended] + self.waiting
        room = self.room(free)
        for s in sorted(line, key=lambda s: s.order):
            full = len(self.running) >= self.shape.sequences
            if s in self.waiting and full:
                continue
            active = [o for o in self.running if not o.suspended]
            came = after[s.id].phase == RUNNING and not after[s.id].suspended
            if not came:
                assert active, "nobody runs, and yet this one waits"
                assert not self.all_fit({*self.running, s}), "kept waiting though there is room"
                return
            room[s.active] -= self.missing(s, s.active)
            if s.suspended:
                room = [n - len(s.blocks[m]) for m, n in enumerate(room)]
            if active:
                assert len(active) < limit, "more at once than the guard allows"
                assert self.shape.prefix_cache or room[s.active] >= 0, "admitted without room"
            self.go_on(s)
            if s in self.waiting:
                s.phase = RUNNING
                self.waiting.remove(s)
                self.running = sorted([*self.running, s], key=lambda s: s.order)
                self.admitted += 1

    def go_on(self, s: SequenceModel) -> None:
        if s.suspended:
            s.suspended = False
            self.turns.changed()

    def room(self, free: list[int]) -> list[int]:
        """Blocks of each model beside the next row of all that run; what those hold that were
        stopped, or are done with a model, can be taken."""
        room = list(free)
        for s in self.running:
            for model in (0, 1):
                if s.suspended or s.done_with(model):
                    room[model] += len(s.blocks[model])
            if not s.suspended:
                room[s.active] -= self.missing(s, s.active)
        return room

    def all_fit(self, sequences: set[SequenceModel]) -> bool:
        """To their ends, on both models, with a sixteenth of the arena and a slab to spare."""
        slabs = 0.0
        for s in sequences:
            blocks = self.blocks_for(s.prompt + s.request.max_tokens)
            slabs += sum(blocks / slots for slots in self.shape.slots)
        return slabs <= self.shape.slabs * 15 / 16 - 1

    def missing(self, s: SequenceModel, model: int) -> int:
        """Blocks to its next token; a prompt that another sample shares with it counts once."""
        held = len(s.blocks[model])
        others = [o for o in self.running if o.group == s.group and o is not s]
        if not held and s.id != s.group and any(not o.suspended for o in others):
            held = (s.prompt - 1) // self.shape.size
        return max(0, self.blocks_for(s.length + 1) - held)

    def open_rounds(self) -> None:
        for s in self.running:
            rows = (max(0, o.wanted - o.request.verified) for o in self.running)
            s.open_round(self.guesses_left() - sum(rows))

    def guesses_left(self) -> int:
        """Guesses that one pass has room for, beside a row of each sequence."""
        return self.shape.drawn - len(self.running) if self.shape.drawn else 10**6

    def ready(self, ahead: int = NOBODY) -> list[int]:
        """Sequences with work on each lane; on lane ``ahead`` also after what is in flight."""
        return [
            sum(s.runnable(lane) or (lane == ahead and s.follows(lane) > 0) for s in self.running)
            for lane in (0, 1)
        ]

    def holds(self, lane: int) -> bool:
        """Does the lane policy put the lane off?"""
        other_flies = bool(self.flights[1 - lane])
        active = sum(not s.suspended for s in self.running)
        held = self.turns.holds(lane, other_flies, active, self.ready(lane))
        self.held[lane] += held
        return held

    # -- memory

    def is_shared(self, one: SequenceModel, model: int, index: int) -> bool:
        block = one.blocks[model][index]
        if any(block in flight.sources for flight in self.flights[model]):
            return True
        tables = (s.blocks[model] for s in self.running if s is not one)
        return block is not None and any(block in table[index : index + 1] for table in tables)

    def register(self, s: SequenceModel, model: int) -> None:
        """Full blocks of settled tokens are known from now on, the first of a kind."""
        certain = s.settled if s.request.settle_at_once else s.settled - 1
        full = min(s.computed[model], certain) // self.size
        for index in range(s.known[model], full if self.shape.prefix_cache else 0):
            if self.cache is not None:
                block = s.blocks[model][index]
                assert block is not None
                prefix = tuple(s.tokens[: (index + 1) * self.size])
                self.cache[model].setdefault(prefix, block)
            s.known[model] = index + 1

    def distrust(self) -> None:
        """Some block is no longer known: what the cache finds is taken as the core says."""
        if self.shape.prefix_cache:
            self.cache = None

    def lose(self, s: SequenceModel, model: int, rows: int) -> None:
        self.lost[model] += s.computed[model] - rows
        s.keep(model, rows)
        assert s.computed[model] == rows, "KV was lost up to the middle of a block"

    def live(self, model: int) -> tuple[set[int], int]:
        """The live blocks that are known by number, and how many there may be besides."""
        known: set[int] = set()
        unknown = 0
        for s in self.running:
            known.update(block for block in s.blocks[model] if block is not None)
            unknown += s.blocks[model].count(None)
        for flight in self.flights[model]:
            known.update(flight.sources)
        return known, unknown

    # -- a batch comes home

    def land(self, lane: int) -> list[Span]:
        flight = self.flights[lane].pop(0)
        self.turns.changed()
        for span in flight.spans:
            if not span.void:
                found = [self.shadow.read(lane, place) for place in span.places]
                assert found == span.contents, "KV in use was overwritten"
        return flight.spans

    def write(self, lane: int, span: Span, tokens: list[int]) -> None:
        """What a span computes from these tokens, on KV that is there. A bet leaves in its rows
        what no lane can read, until it is won."""
        first = span.first
        digests = digest(tokens[: first + span.rows])
        found = [self.shadow.read(lane, place) for place in span.places[:first]]
        assert found == digests[:first], "KV that is built upon is not there"
        if span.sequence.bets[lane] is span:
            digests = digests[:first] + [BET] * span.rows
        for place, content in zip(span.places[first:], digests[first:], strict=True):
            self.shadow.write(lane, place, content)
        span.contents = digests

    def win(self, lane: int, bet: Span, tokens: list[int]) -> None:
        found = {self.shadow.read(lane, place) for place in bet.places[bet.first :]}
        assert found == {BET}, "rows planned ahead were overwritten"
        self.write(lane, bet, tokens)

    def commit(self, lane: int, draws: list[list[int]], after: dict[int, Sequence]) -> None:
        for row, span in enumerate(self.land(lane)):
            s = span.sequence
            if span.void:
                continue
            if s.bets[lane] is span:  # no answer has come in time
                s.lose_bet(lane)
                continue
            if s.may_lose[lane]:
                self.may_have_lost = True
            drawn = draws[row] if span.samples else []
            s.retire(lane, row, drawn, after[s.id].computed[lane])
            s.settle_bets()

    def fail(self, lane: int, after: dict[int, Sequence]) -> None:
        for span in self.land(lane):
            s = span.sequence
            if span.void:
                continue
            undecided = s.bets[lane] is span
            s.lose_bet(lane)
            if undecided:
                continue
            first, last = s.computed[lane], s.computed[lane] + s.flying[lane]
            self.planned[lane][0] -= last - first
            self.planned[lane][1] -= sum(range(first + 1, last + 1))
            s.flying[lane] = 0
            lossy, gives_up = s.may_lose[lane], s.gives_up[lane]
            s.gives_up[lane] = s.may_lose[lane] = False
            s.keep(lane, first)  # the rows that came to nothing
            if not s.open or s.request.verified or lane != SMALL:
                s.end(ERROR)
                continue
            # It can do without guesses.
            self.may_have_lost |= lossy
            found = after[s.id].computed[lane]
            if gives_up:
                s.give_up(lane)
            elif lossy and found < first:
                self.lose(s, lane, found)
            s.close_round()
            s.take_effect()
