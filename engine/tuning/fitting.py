"""Turns a finding into a calibration with its provenance."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from engine.engine import Engine
from engine.errors import SteerError
from engine.routing.calibration import Calibration
from engine.tuning.prompts import digest
from engine.tuning.samples import Sample, answer_shape
from engine.tuning.separability import Finding

BAYES = 0.5  # tau that follows the likelier component


def fitted(
    engine: Engine, samples: Sequence[Sample], finding: Finding, prompts: Sequence[str]
) -> Calibration:
    """A calibration on the finding's signal and window, tau at the Bayes split.

    SteerError if no mixture could be fitted.
    """
    if finding.mixture is None:
        raise SteerError(f"{finding.signal} over {finding.window}: {finding.trouble}")
    return Calibration(
        pair=engine.fingerprint,
        signal=finding.signal,
        mixture=finding.mixture,
        tau=BAYES,
        window=finding.window,
        provenance=_provenance(engine, samples, finding, prompts),
        errors=finding.errors,
        shape=answer_shape(samples),
    )


def _provenance(
    engine: Engine, samples: Sequence[Sample], finding: Finding, prompts: Sequence[str]
) -> dict[str, Any]:
    try:
        version = metadata.version("steer-engine")
    except metadata.PackageNotFoundError:
        version = "not installed"
    return {
        "boundaries": finding.count,
        "problems": len(samples),
        "prompts": " ".join(map(digest, prompts)),
        "auroc": finding.area,
        "separation": finding.separation,
        "reference": "the small model's own doubt about the tokens of the step",
        "pair": engine.pair.name,
        "tokenizer": engine.tokenizer.fingerprint,
        "delimiters": list(engine.config.delimiters),
        "dtype": str(engine.dtype).removeprefix("torch."),
        "version": version,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
