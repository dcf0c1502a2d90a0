"""Policies that ask another policy, and those that change something of it."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property

from engine.routing.audit import Audit
from engine.routing.policy import Boundary, Decision, Policy, PolicyBase, complete
from engine.routing.speculation import Speculation
from engine.routing.windows import Window
from engine.text.maths import TokenMask


class Asking(PolicyBase):
    """A policy that asks another one, and looks where that looks."""

    @property
    @abstractmethod
    def asked(self) -> Policy:
        """The other policy."""

    @cached_property
    def _other(self) -> PolicyBase:
        return complete(self.asked)

    @property
    def window(self) -> Window:
        """The other policy's window."""
        return self._other.window

    @property
    def reads(self) -> bool:
        """Whether the other policy reads."""
        return self._other.reads

    @property
    def speculation(self) -> Speculation | None:
        """The other policy's."""
        return self._other.speculation

    @property
    def needs_large_signals(self) -> bool:
        """Whether the other policy needs them."""
        return self._other.needs_large_signals

    @property
    def mask(self) -> TokenMask | None:
        """The other policy's."""
        return self._other.mask


class Suffixed(Asking):
    """Another policy, of which a suffix of its name changes something: the rest is as there."""

    @property
    @abstractmethod
    def suffix(self) -> str:
        """What follows the other policy's name and a plus."""

    @property
    def name(self) -> str:
        """Both names."""
        return f"{self._other.name}+{self.suffix}"

    @property
    def reader(self) -> str:
        """The other policy's reader."""
        return self._other.reader

    @property
    def audit(self) -> Audit | None:
        """The other policy's audit."""
        return self._other.audit

    @property
    def uses_window(self) -> bool:
        """Whether the other policy's decisions depend on the window."""
        return self._other.uses_window

    @property
    def needs_think_end(self) -> bool:
        """Whether the other policy needs it."""
        return self._other.needs_think_end

    @property
    def decides_once(self) -> bool:
        """Whether the other policy decides once."""
        return self._other.decides_once

    def decide(self, boundary: Boundary) -> Decision:
        """The other policy's decision."""
        return self._other.decide(boundary)
