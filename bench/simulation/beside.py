"""One model alone on a card of its own, under the loads of a grid: the baseline of a pair."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from bench.alone import Alone
from bench.simulation.cards import CARDS, GIB, WEIGHTS, free_gib
from bench.simulation.run import Simulation
from bench.simulation.setting import Case, Setting, arena_fields, arena_of, check_fits
from bench.simulation.ticktimes import AloneRoofline
from bench.simulation.workload import Means, Workload
from bench.table import render
from engine.errors import SteerError

Row = dict[str, Any]


@dataclass(frozen=True)
class Beside:
    """The simulation of one model. ``setting`` and ``workload``: None if the model does not fit.

    fields: common to all of its rows.
    """

    model: Alone
    cases: list[Case]
    fields: Row
    setting: Setting | None = None
    workload: Workload | None = None

    @classmethod
    def of(
        cls,
        model: Alone,
        setting: Setting,
        cases: list[Case],
        fields: Row,
        wanted_gib: float | None,
        max_tokens: int | None,
    ) -> Beside:
        """A model under the setting, the loads and the fields of a pair's grid.

        Args:
            wanted_gib: size of the arena; None: all that is left on the card.
            max_tokens: limit of each request, as in :class:`Workload`.

        Raises:
            SteerError: names the model, if it could never run a request of the pair's grid.
        """
        held = model.resident_bytes(WEIGHTS[fields["weights"]])
        left = free_gib(fields["card"], held)
        loads = dict.fromkeys((case.concurrency, case.rate) for case in cases)
        # All steps go to the large lane: the other one has nothing to do.
        alone = [Case("latency", 1.0, *load) for load in loads]
        own = {
            **fields,
            "alone": model.name,
            "pair": None,
            "weights": model.weights(fields["weights"]),
            "weights_gib": held / GIB,
            "fits": left > 0,
        }
        if left <= 0:
            return cls(model, alone, own | {"memory_gib": 0.0, "slabs": 0, "slots": None})
        try:
            if wanted_gib is not None and wanted_gib > left:
                raise SteerError(f"--memory {wanted_gib:g}: its weights leave {left:.1f} GiB")
            setting = _alone(model, setting, fields, left if wanted_gib is None else wanted_gib)
            workload = _workload(setting, fields, max_tokens)
        except SteerError as error:
            raise SteerError(f"--beside {model.name}: {error}") from None
        own |= arena_fields(setting.geometry) | {"max_tokens": max(workload.limits)}
        return cls(model, alone, own, setting, workload)

    def rows(self) -> Iterator[Row]:
        """A row for each load; for a model that does not fit one row that says so."""
        if self.setting is None or self.workload is None:
            yield {"simulated": True, **self.fields}
            return
        for case in self.cases:
            figures = Simulation(self.setting, self.workload, case).run()
            covered = self.model.coverage(figures["large_mean_batch"])
            row = {"simulated": True, **vars(case), **self.fields, **figures}
            yield row | {"experts_read": covered if self.model.mixture else None}


def _alone(model: Alone, setting: Setting, fields: Row, gib: float) -> Setting:
    """The setting with one model on the card: both lanes have its shape, one of them runs."""
    shapes = model.shape, model.shape
    times = AloneRoofline(
        model,
        CARDS[fields["card"]],
        fields["weights"],
        fields["efficiency"],
        fields["overhead_us"] / 1e6,
    )
    return replace(setting, shapes=shapes, geometry=arena_of(shapes, int(gib * GIB)), times=times)


def _workload(setting: Setting, fields: Row, max_tokens: int | None) -> Workload:
    """The pair's workload, within the context of the model. SteerError if a request never fits."""
    means = Means(*(fields[n] for n in ("prompt", "answer", "step", "spread", "shift")))
    check_fits(setting, means.prompt, means.answer)
    workload = Workload(fields["requests"], means, fields["seed"], setting.most, max_tokens)
    check_fits(setting, max(workload.prompts), 1)
    return workload


def compare(rows: list[Row]) -> str:
    """Pair and models side by side, by load; rows of both kinds."""
    header = (
        "who writes",
        "load",
        "tokens/s",
        "tpot ms",
        "latency s",
        "weights",
        "weights GiB",
        "KV GiB",
        "experts read in a decode tick",
    )
    several = len({row["lanes"] for row in rows if not row.get("alone")}) > 1
    return render(header, [(_who(row, several), *_figures(row)) for row in rows])


def load(row: Row) -> str:
    """The load in words."""
    return f"{row['rate']:g}/s" if row["rate"] else f"{row['concurrency']} at once"


def _who(row: Row, several_lanes: bool) -> str:
    if name := row.get("alone"):
        return f"{name} alone"
    lanes = f", {row['lanes']} lanes" if several_lanes else ""
    return f"{row['pair']}, {row['handoff']:.0%} handed over{lanes}"


def _figures(row: Row) -> tuple[str, ...]:
    held = f"{row['weights_gib']:.1f}"
    if not row.get("fits", True):
        return "-", "does not fit", "-", "-", row["weights"], held, "-", "-"
    covered = row.get("experts_read")
    return (
        load(row),
        f"{row['tokens_per_second']:.0f}",
        f"{1e3 * row['tpot_p50']:.1f}" if row["tpot_p50"] is not None else "-",
        f"{row['latency_p50']:.1f}" if row["latency_p50"] is not None else "-",
        row["weights"],
        held,
        f"{row['memory_gib']:.1f}",
        "-" if covered is None else f"{covered:.0%}",
    )
