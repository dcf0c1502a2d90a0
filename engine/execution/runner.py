"""Runs the plans of one model: inputs to the device, a forward pass, tokens and signals back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from engine import _core
from engine.accounting.pricing import Executed
from engine.device.device_queue import DeviceQueue
from engine.device.graphs import Graphs, Outputs
from engine.device.host_offload import HostKVStore, OffloadCopies
from engine.execution.in_flight import InFlightTick, TickPlan, TickResult, pack
from engine.execution.inputs import Extent, Staged, TickInputs, TickLimits
from engine.execution.sampled_rows import DrawnRows, SamplingSpec
from engine.execution.sampler import Sampler
from engine.execution.scoring import ScoredRows, scored_rows
from engine.models.decoder import Decoder
from engine.models.passes import Batch
from kernels import ops

_SIGNALS = len(ops.Confidence._fields)


class ModelRunner:
    """One model and its view of the arena. Owns neither the arena nor the plans.

    All inputs of a pass are in static buffers of this lane; only the arena is shared with the other
    lane.
    """

    def __init__(
        self,
        model: int,
        core: _core.Scheduler,
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
            core: the scheduler whose plans it runs; asked for tokens that are in no plan.
            backend: what computes on the decoder's device.
            arena: ``KVArena.rows`` of this model.
            queue: where passes run.
            graphs: this lane's graphs; ticks of few rows replay them.
            limits: sizes of the largest plan.
            padded: pad ticks to one of few sizes, as graphs need.
            fused_head: compute signals within the head's product where kernels can.
            host: host memory for offloaded KV, if any.
        """
        self.model = model
        self.decoder = decoder
        self.executed = Executed()
        self.graphs = graphs
        self._core = core
        self._backend = backend
        self._arena = arena
        self._layout = layout
        self._sampler = sampler
        self.queue = queue
        self._limits = limits
        self._padded = padded
        self._fused_head = fused_head
        self._host = host
        self._offloaded = -1  # number of the last tick whose blocks were copied to the host
        self._inputs = TickInputs(arena.device, limits.sequences, limits.rows, limits.width)
        self._drawn = torch.zeros(limits.sequences, dtype=torch.int32, device=arena.device)
        self._logits: Tensor | None = None
        self._splits = ops.Splits.of_lane(limits.sequences, layout.kv_heads)
        self._latest: InFlightTick | None = None
        self._torn = False  # whether a failed tick may have overwritten ``_drawn``
        queue.adopt([*decoder.tensors(), decoder.rope, arena, self._inputs.buffer, self._drawn])

    def execute(self, plan: _core.Plan, requests: Mapping[int, SamplingSpec]) -> TickResult:
        """Run one plan and wait; ``requests``: sampling parameters by sequence id."""
        return self.launch(plan, requests).result()

    def launch(
        self,
        plan: _core.Plan,
        requests: Mapping[int, SamplingSpec],
        previous: InFlightTick | None = None,
    ) -> InFlightTick:
        """Start one plan, without waiting for the device. The plan's buffers are free afterwards.

        A plan made one tick ahead contains tokens that the host does not know yet: a token t < 0
        stands for the draw of sequence -1 - t of ``previous``, which must be this lane's last tick.
        ValueError if it is not.
        """
        rows = DrawnRows.of(plan)
        wanted = rows.sequences
        resolves = bool((plan.tokens[: plan.rows] < 0).any())
        if resolves and (previous is None or previous is not self._latest):
            raise ValueError("previous must be this lane's last tick: the plan names its tokens")
        scored = scored_rows(plan, requests, self._core, self.model)
        extent = self._extent(plan, len(wanted), scored)
        draws = self._sampler.prepare(plan, rows, requests, self._core)
        work, attention_pairs = self._bounds(plan, extent)
        staged = self._inputs.stage(plan, extent, rows, scored, draws.columns)
        offload = OffloadCopies(plan) if self._host else None
        tick = TickPlan(staged, draws, work, attention_pairs, resolves, scored, offload)
        columns = np.arange(len(wanted))
        if extent.padded and draws.rows.plain:
            columns = rows.rows if extent.all_rows else wanted
        drawn = partial(self._sampler.drawn, rows=draws.rows)
        pending = InFlightTick(plan.draws, rows, columns, drawn, scored)
        if resolves and previous is not None and self._torn:
            self._restore(previous)
        self._torn = True
        pending.ticket = self.queue.submit(partial(self._run, tick, pending))
        self._torn = False
        self._inputs.sent(pending.ticket)
        self._latest = pending
        return pending

    def _restore(self, previous: InFlightTick) -> None:
        """Restore the draws of ``previous``, which a failed tick may have overwritten."""
        drawn = torch.from_numpy(previous.first_tokens())
        self.queue.submit(lambda: self._keep(drawn))

    @torch.inference_mode()
    def _keep(self, drawn: Tensor) -> None:
        self._drawn[: len(drawn)] = drawn.to(self._drawn.device)

    def release(self) -> None:
        """Release cached memory, after memory ran out."""
        self.queue.release()

    def warm(self, sizes: Iterable[int]) -> None:
        """Record decodes of ``sizes`` sequences, plain and not, and wait. No tick may be in flight.

        Without a recorder they run once, so that their kernels are compiled and loaded. Without
        padding there is nothing to do.
        """
        if not self._padded:
            return
        self._latest = None  # its draws are overwritten
        # The largest first: recordings of smaller ones then reuse its memory in the pool.
        padded = (Extent.filled(n, n, self._limits) for n in sizes)
        extents = {extent for extent in padded if extent is not None}
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

    def _extent(self, plan: _core.Plan, drawn: int, scored: ScoredRows | None) -> Extent:
        n = plan.sequences
        # A padded size does not fix how many rows are scored.
        if self._padded and scored is None:
            filled = Extent.filled(n, plan.rows, self._limits, all_rows=plan.draws > n)
            if filled is not None:
                return filled
        width = -(-int(plan.contexts[:n].max()) // self._layout.block_tokens)
        return Extent(n, plan.rows, drawn + (len(scored.rows) if scored else 0), width)

    def _bounds(self, plan: _core.Plan, extent: Extent) -> tuple[ops.Work, int]:
        """Bounds of attention's work (for a padded tick, of its size), and query-key pairs."""
        n, contexts = plan.sequences, plan.contexts[: plan.sequences]
        spans = np.diff(plan.starts[: n + 1])
        attention_pairs = int(spans.dot(contexts))
        work = self._most(extent) if extent.padded else ops.Work.counted(spans, contexts)
        return work, attention_pairs

    def _most(self, extent: Extent) -> ops.Work:
        """Bounds of attention's work in ticks of a padded size."""
        reach = extent.width * self._layout.block_tokens
        return ops.Work.within(extent.sequences, extent.spans * extent.rows, reach)

    @torch.inference_mode()
    def _run(self, tick: TickPlan, pending: InFlightTick) -> None:
        """Everything from a plan's numbers to its results on the host; runs on the queue."""
        staged = tick.staged
        self._inputs.upload(staged)
        if self._host and tick.offload:
            self._copy_offloaded(self._host, tick.offload)
        if staged.copies.start < staged.copies.stop:
            pairs = self._inputs.region(staged.copies).view(-1, 2)
            self._backend.copy_blocks(self._arena, self._layout, pairs)
        wanted = self._inputs.region(staged.wanted)
        if tick.plain:
            (packed,) = self._pass(tick, wanted)
        else:
            outputs = self._pass(tick, wanted)
            signals, (logits, last, *known) = outputs[:_SIGNALS], outputs[_SIGNALS:]
            if known:
                pending.audited, *prompts = map(self.queue.fetch, known)
                pending.prompts = ops.LogProbs(*prompts)
            packed = self._draw(tick, ops.Confidence(*signals), logits, last, wanted, pending)
        pending.packed = self.queue.fetch(packed)

    def _copy_offloaded(self, host: HostKVStore, copies: OffloadCopies) -> None:
        """Offload the blocks that the tick overwrites, then restore those that it needs."""
        # A failed launch is repeated, but by then it may have overwritten the offloaded blocks.
        if copies.tick != self._offloaded:
            host.offload(copies.offloaded)
            self._offloaded = copies.tick
        host.restore(copies.restored)

    def _pass(self, tick: TickPlan, wanted: Tensor) -> Outputs:
        """The forward pass: for a padded tick, by its graph if there is one."""
        extent, plain = tick.extent, tick.plain
        if extent.padded:
            # Always resolves tokens: one graph serves plans with and without unknown tokens.
            work = partial(self._step, extent, tick.work, True, plain)
            pairs = [tick.attention_pairs]
            self.executed.add(self.decoder.config, extent.rows, extent.sampled, pairs)
            return self.graphs.run((extent, plain), work)
        batch = self._batch(extent, tick.work, tick.resolves)
        attention_pairs = self.decoder.attended(batch, tick.attention_pairs)
        self.executed.add(self.decoder.config, extent.rows, extent.sampled, [attention_pairs])
        targets = self._inputs.region(tick.staged.targets)
        known = (tick.scored, targets) if tick.scored else None
        return self.graphs.run_eagerly(partial(self._forward, batch, plain, wanted, known))

    def _step(self, extent: Extent, work: ops.Work, resolves: bool, plain: bool) -> Outputs:
        """The work that a graph records. It reads static buffers, and no data of the tick."""
        batch = self._batch(extent, work, resolves)
        outputs = self._forward(batch, plain, None, all_rows=extent.all_rows)
        if plain:
            return outputs
        *signals, logits, last = outputs
        if self._logits is None:  # one buffer for all sizes, since each graph keeps its outputs
            self._logits = logits.new_empty(self._limits.drawn, logits.shape[1])
        return (*signals, self._logits[: len(logits)].copy_(logits), last)

    def _batch(self, extent: Extent, work: ops.Work, resolves: bool) -> Batch:
        at = self._inputs.views(extent)
        tokens = at.tokens
        if resolves:
            drawn = self._drawn.index_select(0, (-1 - tokens).clamp(min=0))
            # A sequence whose logits were unusable ends with the previous tick: any token will do.
            tokens = torch.where(tokens < 0, drawn, tokens).clamp(min=0)
        plan = ops.AttentionPlan(
            self._layout, at.table, at.starts, at.contexts, at.slots, work, self._splits
        )
        return Batch(tokens, at.positions, at.sampled, plan)

    def _forward(
        self,
        batch: Batch,
        plain: bool,
        wanted: Tensor | None,
        known: tuple[ScoredRows, Tensor] | None = None,
        all_rows: bool = False,
    ) -> Outputs:
        """Packed results if all rows are plain, else signals, logits and tokens read; with
        ``known`` also the scores of audits and the parts of prompts' log-probabilities.

        ``known``: the last sampled rows, which draw no token, and the tokens that they predict.
        ``all_rows``: a recording whose rows are all sampled.
        """
        vocabulary = self._sampler.vocabulary
        logits: Tensor | None
        scores: list[Tensor] = []
        if known is not None:
            scored, targets = known
            confidence, logits, *scores = self.decoder.scored(
                batch, self._arena, vocabulary, targets, len(scored.prompts), scored.top
            )
        else:
            confidence, logits = self.decoder.signals(
                batch, self._arena, vocabulary, not plain, self._fused_head
            )
        if plain:
            chosen = torch.where(confidence.valid, confidence.argmax, -1)
            ends = (batch.attention.starts[1:] - 1).clamp(min=0) if all_rows else None
            return (self._settle(confidence, chosen, wanted, ends),)
        assert logits is not None
        last = batch.tokens.index_select(0, batch.sampled[: len(logits)])
        return (*confidence, logits, last, *scores)

    def _draw(
        self,
        tick: TickPlan,
        confidence: ops.Confidence,
        logits: Tensor,
        last: Tensor,
        wanted: Tensor,
        pending: InFlightTick,
    ) -> Tensor:
        """Sample the wanted rows by their requests' parameters; their packed results."""
        if tick.extent.padded:
            picked = tick.staged.rows if tick.extent.all_rows else tick.staged.wanted
            index = self._inputs.region(picked).long()
            logits, last = logits.index_select(0, index), last.index_select(0, index)
            confidence = ops.Confidence(*(part.index_select(0, index) for part in confidence))
        columns = self._inputs.draws(tick.staged)
        chosen, scores = self._sampler.choose(logits, confidence, tick.draws, columns, last)
        if scores is not None:
            pending.scores = ops.LogProbs(*(self.queue.fetch(part) for part in scores))
        return self._settle(confidence, chosen, wanted)

    def _settle(
        self,
        confidence: ops.Confidence,
        chosen: Tensor,
        wanted: Tensor | None,
        last: Tensor | None = None,
    ) -> Tensor:
        """Keep the tokens for the next tick; the packed results: int32 [signals + 1, rows].

        Of several draws of a sequence any is kept: no plan names them.

        Args:
            wanted: the sequences that the rows belong to; None: the rows of a recording.
            last: of these, the last one of each sequence; None: it has no others.
        """
        tokens = chosen.int()
        if wanted is not None:
            self._drawn.index_copy_(0, wanted.long(), tokens)
        else:
            kept = tokens if last is None else tokens.index_select(0, last)
            self._drawn[: len(kept)] = kept
        return pack(confidence, tokens)
