"""From a model's name and ``routing`` to the policy of a request."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine.config import ROLES
from engine.errors import SteerError
from engine.routing.names import split_name
from engine.serve.errors import ApiError, unknown_model
from engine.serve.fields import Routing

_MOST_POLICIES = 64


@dataclass(frozen=True)
class Route:
    """Where a request goes.

    model: the name that the client asked for, as the answer repeats it.
    name: the policy's name.
    policy: the policy itself.
    """

    model: str
    name: str
    policy: Any

    @property
    def alone(self) -> bool:
        """Whether one model writes everything."""
        return self.name in ROLES


class Routes:
    """The served names, and the policies that were asked for before, a bounded number of them."""

    def __init__(
        self, names: tuple[str, ...], policy: str, make_policy: Callable[[str], Any]
    ) -> None:
        """
        Args:
            names: model names that route by the policy; the first is the default.
            policy: the name of the policy where a request names none.
            make_policy: makes a policy from its name; SteerError on one that is none.
        """
        self.names = names
        self._default = policy
        self._make = make_policy
        self._made: OrderedDict[str, Any] = OrderedDict()

    @property
    def served(self) -> tuple[str, ...]:
        """Every model name that a request may give."""
        return (*self.names, *(role for role in ROLES if role not in self.names))

    def find(self, model: str | None, routing: Routing | None) -> Route:
        """The route of a request.

        Raises:
            ApiError: 404 on a model that is not served, 400 on a routing that cannot be.
        """
        asked, wanted = model or self.names[0], routing or Routing()
        if asked not in self.served:
            raise unknown_model(self.served)
        if asked in ROLES and asked not in self.names:
            for field in ("policy", "tau", "window"):
                if getattr(wanted, field) is not None:
                    raise _refused(
                        field, f"model {asked} writes everything; ask for {self.names[0]} to route"
                    )
            return self._route(asked, asked, wanted)
        return self._route(asked, wanted.policy or self._default, wanted)

    def _route(self, model: str, base: str, wanted: Routing) -> Route:
        name, suffixes = split_name(base)
        if wanted.tau is not None:
            if name.partition(":")[0] != "steer":
                raise _refused("tau", f"it is the threshold of policy steer, not of {name[:50]}")
            name = f"steer:{wanted.tau:g}"
        if wanted.window is not None:
            name = f"{name.partition('@')[0]}@{wanted.window}"
        if wanted.speculate is not None:
            suffixes = (*suffixes, f"speculate:{wanted.speculate}")
        whole = "+".join((name, *suffixes))
        return Route(model, whole, self._policy(whole, wanted))

    def _policy(self, name: str, wanted: Routing) -> Any:
        if name in self._made:
            self._made.move_to_end(name)
            return self._made[name]
        try:
            policy = self._make(name)
        except SteerError as error:
            fields = ("policy", "tau", "window", "speculate")
            given = [field for field in fields if getattr(wanted, field) is not None]
            if not given:  # the server's own policy: the client cannot repair it
                raise
            raise _refused(given[0] if len(given) == 1 else "policy", str(error)) from None
        self._made[name] = policy
        if len(self._made) > _MOST_POLICIES:
            self._made.popitem(last=False)
        return policy


def _refused(field: str, why: str) -> ApiError:
    return ApiError(400, f"routing.{field}: {why}", param=f"routing.{field}")
