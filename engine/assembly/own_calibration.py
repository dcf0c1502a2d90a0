"""The calibration that comes with a pair."""

from __future__ import annotations

from engine.config import TINY
from engine.config.pairs import Pair
from engine.errors import SteerError
from engine.routing.calibration import Calibration


def own_calibration(pair: Pair, fingerprint: str) -> Calibration:
    """That of the embedded pair; SteerError for any other pair, which comes without one."""
    if pair.name != "tiny":
        missing = f"pair {pair.name} comes without a calibration"
        raise SteerError(f"{missing}: fit one with `steer calibrate`", "policy")
    return Calibration.load(TINY / "calibration.json", fingerprint)
