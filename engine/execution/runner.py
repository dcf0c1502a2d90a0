"""Runs plans of one model: buffers become tensors, a forward pass, tokens and confidences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from engine import _core
from engine.accounting.pricing import Executed
from engine.device.device_queue import DeviceQueue
from engine.device.graphs import Graphs, Outputs
from engine.device.host_offload import HostKVStore, OffloadCopies
from engine.execution.in_flight import STATISTICS, InFlightTick, TickResult
from engine.execution.inputs import Extent, Staged, TickInputs, TickLimits
from engine.execution.sampler import SampledRows, Sampler, SamplingSpec
from engine.execution.scoring import AuditRows, scored_rows
from engine.models.decoder import Decoder
from engine.models.passes import Batch
from kernels import ops


@dataclass(frozen=True)
class _Tick:
    """A plan, taken over from the scheduler's buffers."""

    staged: Staged
    rows: SampledRows
    work: ops.Work
    attention_pairs: int
    resolves: bool
    audits: bool
    parcel: OffloadCopies | None

    @property
    def plain(self) -> bool:
        """Whether nothing but statistics and the likeliest tokens is wanted."""
        return self.rows.plain and not self.audits

    @property
    def extent(self) -> Extent:
        return self.staged.extent


class ModelRunner:
    """One model and its view of the arena. Owns neither the arena nor the plans.

    Everything that a pass reads is in static buffers of this lane, and nothing of it is shared with
    the other lane but the arena.
    """

    def __init__(
        self,
        model: int,
        decoder: Decoder,
        backend: ops.Backend,
        arena: Tensor,
        layout: ops.KVLayout,
        sampler: Sampler,
        queue: DeviceQueue,
        graphs: Graphs,
        limits: TickLimits,
        padded: bool,
        fused_head: bool = True,
        host: HostKVStore | None = None,
    ) -> None:
        """
        Args:
            backend: what computes on the decoder's device.
            arena: ``KVArena.rows`` of this model.
            queue: where passes run.
            graphs: of this lane; ticks of few rows are replayed from them.
            limits: of all plans.
            padded: fill ticks up to sizes of which there are few, as graphs need it.
            fused_head: take statistics out of the head's product where kernels can.
            host: where plans park KV, if they do.
        """
        self.model = model
        self.decoder = decoder
        self.executed = Executed()
        self.graphs = graphs
        self._backend = backend
        self._arena = arena
        self._layout = layout
        self._sampler = sampler
        self.queue = queue
        self._limits = limits
        self._padded = padded
        self._fused_head = fused_head
        self._host = host
        self._saved = -1  # the last plan whose blocks were copied to the host
        self._inputs = TickInputs(arena.device, limits.sequences, limits.rows, limits.width)
        self._drawn = torch.zeros(limits.sequences, dtype=torch.int32, device=arena.device)
        self._logits: Tensor | None = None
        self._splits = ops.Splits.of_lane(limits.sequences, layout.kv_heads)
        self._latest: InFlightTick | None = None
        self._torn = False  # whether ``_drawn`` may hold draws of a tick that then failed
        queue.adopt([*decoder.tensors(), decoder.rope, arena, self._inputs.buffer, self._drawn])

    def execute(self, plan: _core.Plan, requests: Mapping[int, SamplingSpec]) -> TickResult:
        """Run one plan and wait; ``requests`` by sequence id give the sampling parameters."""
        return self.launch(plan, requests).result()

    def launch(
        self,
        plan: _core.Plan,
        requests: Mapping[int, SamplingSpec],
        previous: InFlightTick | None = None,
    ) -> InFlightTick:
        """Start one plan, without waiting for the device. The plan's buffers are free afterwards.

        A plan that was made one tick ahead names tokens that nobody knows yet: one below 0 is what
        sequence ``-1 - token`` of ``previous``, this lane's last tick, drew.
        """
        n = plan.sequences
        wanted = np.flatnonzero(plan.samples[:n])
        resolves = bool((plan.tokens[: plan.rows] < 0).any())
        if resolves and (previous is None or previous is not self._latest):
            raise ValueError("previous must be this lane's last tick: the plan names its tokens")
        scored = self._scored(plan, requests)
        extent = self._extent(plan, len(wanted), scored)
        rows = self._sampler.rows(plan, wanted, requests)
        work, attention_pairs = self._bounds(plan, extent)
        staged = self._inputs.stage(plan, extent, wanted, scored)
        parcel = OffloadCopies(plan) if self._host else None
        tick = _Tick(staged, rows, work, attention_pairs, resolves, scored is not None, parcel)
        columns = wanted if extent.padded and rows.plain else np.arange(len(wanted))
        drawn = partial(self._sampler.drawn, rows=rows)
        pending = InFlightTick(n, wanted, columns, drawn, scored)
        if resolves and previous is not None and self._torn:
            self._restore(previous)
        self._torn = True
        pending.ticket = self.queue.submit(partial(self._run, tick, pending))
        self._torn = False
        self._inputs.sent(pending.ticket)
        self._latest = pending
        return pending

    def _restore(self, previous: InFlightTick) -> None:
        """Keep again what ``previous`` drew: a tick that broke off may have written over it."""
        drawn = torch.from_numpy(previous.result().tokens)
        self.queue.submit(lambda: self._keep(drawn))

    @torch.inference_mode()
    def _keep(self, drawn: Tensor) -> None:
        self._drawn[: len(drawn)] = drawn.to(self._drawn.device)

    def _scored(self, plan: _core.Plan, requests: Mapping[int, SamplingSpec]) -> AuditRows | None:
        if self.model == 0:  # what the small model reads is not audited
            return None
        return scored_rows(plan, requests, self._sampler.tokens_of)

    def release(self) -> None:
        """Give back what memory can be spared; for who has run out of it."""
        self.queue.release()

    def warm(self, sizes: Iterable[int]) -> None:
        """Record decodes of so many sequences, in both kinds, and wait; while no tick is in flight.

        Without a recorder they run once, so that what they compile and load is there. Where ticks
        are not filled up there is nothing to do.
        """
        if not self._padded:
            return
        self._latest = None  # what it drew is overwritten
        # The largest first: in what its recording leaves of the pool the smaller ones find room.
        found = (Extent.filled(n, n, self._limits) for n in sizes)
        extents = {extent for extent in found if extent is not None}
        for extent in sorted(extents, key=lambda e: -e.rows):
            staged = self._inputs.stage_padding(extent)
            ticket = self.queue.submit(partial(self._prepare, staged))
            self._inputs.sent(ticket)
            ticket.wait()

    @torch.inference_mode()
    def _prepare(self, staged: Staged) -> None:
        self._inputs.upload(staged)
        extent = staged.extent
        for plain in (True, False):
            work = partial(self._step, extent, self._most(extent), True, plain)
            self.graphs.prepare((extent, plain), work)

    def _extent(self, plan: _core.Plan, drawn: int, scored: AuditRows | None) -> Extent:
        n = plan.sequences
        if self._padded and scored is None:  # how many rows an audit scores, no size foretells
            filled = Extent.filled(n, plan.rows, self._limits)
            if filled is not None:
                return filled
        width = -(-int(plan.contexts[:n].max()) // self._layout.block_tokens)
        return Extent(n, plan.rows, drawn + (len(scored.rows) if scored else 0), width)

    def _bounds(self, plan: _core.Plan, extent: Extent) -> tuple[ops.Work, int]:
        """Bounds of attention's work (of a padded tick those of its size), and its pairs."""
        n, contexts = plan.sequences, plan.contexts[: plan.sequences]
        spans = np.diff(plan.starts[: n + 1])
        attention_pairs = int(spans.dot(contexts))
        work = self._most(extent) if extent.padded else ops.Work.counted(spans, contexts)
        return work, attention_pairs

    def _most(self, extent: Extent) -> ops.Work:
        """Of attention in ticks of a padded size."""
        reach = extent.width * self._layout.block_tokens
        return ops.Work.within(extent.sequences, extent.spans * extent.rows, reach)

    @torch.inference_mode()
    def _run(self, tick: _Tick, pending: InFlightTick) -> None:
        """On the queue: everything between a plan's numbers and its results on the host."""
        staged = tick.staged
        self._inputs.upload(staged)
        if self._host and tick.parcel:
            self._park(self._host, tick.parcel)
        if staged.copies.start < staged.copies.stop:
            pairs = self._inputs.region(staged.copies).view(-1, 2)
            self._backend.copy_blocks(self._arena, self._layout, pairs)
        wanted = self._inputs.region(staged.wanted)
        if tick.plain:
            (packed,) = self._pass(tick, wanted)
        else:
            *found, logits, last, scores = self._pass(tick, wanted)
            if tick.audits:
                pending.audited = self.queue.fetch(scores)
            packed = self._draw(tick, ops.Confidence(*found), logits, last, wanted, pending)
        pending.packed = self.queue.fetch(packed)

    def _park(self, host: HostKVStore, parcel: OffloadCopies) -> None:
        """What the tick takes the room of goes to the host, then what it takes back comes here."""
        # A launch that was cut short is repeated, but has written where the blocks were.
        if parcel.tick != self._saved:
            host.save(parcel.saves)
            self._saved = parcel.tick
        host.restore(parcel.restores)

    def _pass(self, tick: _Tick, wanted: Tensor) -> Outputs:
        """The forward pass: a graph's replay where it may be one."""
        extent, plain = tick.extent, tick.plain
        if extent.padded:
            # Tokens are always resolved here: one graph serves plans with and without.
            work = partial(self._step, extent, tick.work, True, plain)
            pairs = [tick.attention_pairs]
            self.executed.add(self.decoder.config, extent.rows, extent.sampled, pairs)
            return self.graphs.run((extent, plain), work)
        batch = self._batch(extent, tick.work, tick.resolves)
        attention_pairs = self.decoder.attended(batch, tick.attention_pairs)
        self.executed.add(self.decoder.config, extent.rows, extent.sampled, [attention_pairs])
        targets = self._inputs.region(tick.staged.targets)
        return self.graphs.run_eagerly(partial(self._forward, batch, plain, wanted, targets))

    def _step(self, extent: Extent, work: ops.Work, resolves: bool, plain: bool) -> Outputs:
        """What a graph records. It reads static buffers, and nothing of the tick at hand."""
        outputs = self._forward(self._batch(extent, work, resolves), plain, None)
        if plain:
            return outputs
        *found, logits, last, scores = outputs
        if self._logits is None:  # of all sizes: what else they use, graphs of a lane share
            self._logits = logits.new_empty(self._limits.sequences, logits.shape[1])
        return (*found, self._logits[: len(logits)].copy_(logits), last, scores)

    def _batch(self, extent: Extent, work: ops.Work, resolves: bool) -> Batch:
        at = self._inputs.views(extent)
        tokens = at.tokens
        if resolves:
            drawn = self._drawn.index_select(0, (-1 - tokens).clamp(min=0))
            # A sequence whose logits were unusable ends with the tick before: any token will do.
            tokens = torch.where(tokens < 0, drawn, tokens).clamp(min=0)
        plan = ops.AttentionPlan(
            self._layout, at.table, at.starts, at.contexts, at.slots, work, self._splits
        )
        return Batch(tokens, at.positions, at.sampled, plan)

    def _forward(
        self, batch: Batch, plain: bool, wanted: Tensor | None, targets: Tensor | None = None
    ) -> Outputs:
        """Packed results if all rows are plain, else statistics, logits, tokens read, and scores.

        The last of the sampled rows are audited: they foretell ``targets``, and nothing is drawn.
        """
        vocabulary, scores = self._sampler.vocabulary, batch.tokens[:0]
        logits: Tensor | None
        if targets is not None and len(targets):
            confidence, logits, scores = self.decoder.audited(
                batch, self._arena, vocabulary, targets
            )
        else:
            confidence, logits = self.decoder.statistics(
                batch, self._arena, vocabulary, not plain, self._fused_head
            )
        if plain:
            chosen = torch.where(confidence.valid, confidence.argmax, -1)
            return (self._settle(confidence, chosen, wanted),)
        assert logits is not None
        last = batch.tokens.index_select(0, batch.sampled[: len(logits)])
        return (*confidence, logits, last, scores)

    def _draw(
        self, tick: _Tick, confidence: ops.Confidence, logits: Tensor, last: Tensor,
        wanted: Tensor, pending: InFlightTick,
    ) -> Tensor:  # fmt: skip
        """As each request asks; packed results of the wanted rows."""
        if tick.extent.padded:
            index = wanted.long()
            logits, last = logits.index_select(0, index), last.index_select(0, index)
            confidence = ops.Confidence(*(part.index_select(0, index) for part in confidence))
        chosen = self._sampler.choose(logits, confidence, tick.rows, last)
        scores = self._sampler.logprobs(logits, chosen, tick.rows)
        if scores is not None:
            pending.scores = ops.LogProbs(*(self.queue.fetch(part) for part in scores))
        return self._settle(confidence, chosen, wanted)

    def _settle(self, confidence: ops.Confidence, chosen: Tensor, wanted: Tensor | None) -> Tensor:
        """Keep the tokens for the next tick. [len(STATISTICS) + 1, rows] int32 for the host."""
        tokens = chosen.int()
        if wanted is None:
            self._drawn[: len(tokens)] = tokens
        else:
            self._drawn.index_copy_(0, wanted.long(), tokens)
        values = torch.stack([getattr(confidence, name) for name in STATISTICS])
        return torch.cat([values.view(torch.int32), tokens[None]])
