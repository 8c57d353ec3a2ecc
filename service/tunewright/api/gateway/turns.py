"""Turns: which of the generations that wait for an engine is sent to it next, so that callers share it.

vLLM answers requests in the order in which they came. So an engine is sent no more than it runs at once, and the others
wait here. Where none waits, a request goes on without delay.

Projects take turns, within a project its addresses, and within an address the values of `user`, which clients choose as
they like: a name can only divide the share of its own address (docs/decisions/0023, 0059).
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.types import Scope

from tunewright.api.gateway.limits import prompts, whole
from tunewright.errors import TooManyRequests, cut

_K = TypeVar("_K", bound=Hashable)
_LONGEST_NAME = 64
_PREFIX = 64
"""Bits of an IPv6 address that are the network's; its hosts choose the rest as they like."""
_MOST_REMEMBERED = 10_000
"""Callers of which it is known what they have had, as long as any wait."""
_EXTRA = 8
"""One in so many places above the limit is for callers that have no generation in flight, and a project has one in so
many places whatever others have, as long as these are not twice the limit."""

_KEPT = 8
"""One in so many places is kept for projects that have fewer sequences running than these are, while several ask: where
one has all places, a request of another waits until an answer ends."""
_LATELY = 60.0
"""Seconds in which a project has to have asked for that."""


@dataclass(frozen=True)
class Caller:
    address: str
    user: str = ""
    project: str = ""
    """"" for what the service asks itself, for nobody."""

    @property
    def levels(self) -> tuple[str, str, str]:
        """Who takes turns with others of the same level."""
        return self.project, self.address, self.user


NOBODY = Caller("")
"""Who asks for what the service asks itself: copies of requests for shadows."""
BATCHES = Caller("batches")
"""Who asks for the requests of batches, all together: no client has this address."""
IDLE_SHARE, BUSY_SHARE = 3 / 4, 1 / 4
"""The parts of an engine's sequences that batches have at most: while they are alone, and beside others. The rest is
free for who comes next."""


def caller_of(scope: Scope, body: dict[str, Any], project: str = "") -> Caller:
    """Who sent the request, which is one of the project. Behind a proxy on this machine, the address is that of its
    `X-Forwarded-For`."""
    client = scope.get("client")
    user = body.get("safety_identifier") or body.get("user")
    name = cut(user, _LONGEST_NAME) if isinstance(user, str) else ""
    return Caller(_network(client[0]) if client else "", name, project)


def _network(address: str) -> str:
    if ":" in address:
        try:
            return str(ipaddress.ip_network((address, _PREFIX), strict=False))
        except ValueError:  # a proxy's header may have anything
            pass
    return cut(address, _LONGEST_NAME)


def sequences(body: dict[str, Any]) -> int:
    """How many texts vLLM generates for the request at once: its choices, for each of its prompts."""
    return whole(body.get("n"), 1) * prompts(body)


@dataclass(eq=False)
class _Waiting:
    caller: Caller
    size: int
    may_go: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


_Key = tuple[str, ...]
"""() for all, (project,) for a project, (project, address) for one of its addresses, and so on."""
NO_KEY: _Key = ()
_Tree = dict[Any, Any]
"""The next level by name; that of users has the waiting requests of each, in the order in which they came."""


class Line:
    """The generations in flight of one engine. Used from one event loop only.

    At most `most` are in flight, one in eight more for callers that have none, and for each project one in eight
    whatever others have. `places` is the number of sequences that the engine runs at once; what does not fit waits, and
    goes in turns: those of projects, within a project those of its addresses, and within an address those of its users,
    in start-time fair queueing (Goyal, Vin, Cheng 1996) with the sequences as lengths. While several projects ask, one
    place in eight is for those that have few. `clock`: monotonic seconds.

    Requests of batches go on only where no other waits, and have no more than a part of the places.
    """

    def __init__(
        self, name: str, most: int, places: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = name
        self._clock = clock
        self._most = most
        self.places = places
        self.in_flight = 0
        self._by_project: dict[str, int] = {}
        self._by_address: dict[tuple[str, str], int] = {}
        """Requests in flight; an address is that of a project."""
        self._batches = 0
        """Those of batches."""
        self._running = 0
        """Sequences that have a place."""
        self._running_of: dict[str, int] = {}
        """The same by project, without those of batches."""
        self._last, self._before = ("", -_LATELY), ("", -_LATELY)
        """The projects that have asked last, two different ones, and when."""
        self._line: _Tree = {}
        """The waiting requests."""
        self._number = 0
        self._turn: dict[_Key, int] = {}
        """The time at which the next request of a caller has its turn. Time is counted in sequences."""
        self._now: dict[_Key, int] = {}
        """The time among all projects, among the addresses of each, and so on."""
        self._below = 0
        """Those of the running sequences that are of batches."""
        self._below_line: dict[_Waiting, None] = {}
        """The requests of batches that wait, in the order in which they came."""

    @property
    def running(self) -> int:
        """Sequences that have a place."""
        return self._running

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return self._number

    @property
    def waiting_below(self) -> int:
        """Requests of batches that wait."""
        return len(self._below_line)

    def enter(self, caller: Caller) -> None:
        """Count a request as in flight. Raises TooManyRequests."""
        project, here = caller.project, (caller.project, caller.address)
        of_project, of_address = self._by_project.get(project, 0), self._by_address.get(here, 0)
        extra = max(1, self._most // _EXTRA)
        reserve = 0 if of_address else extra
        if project and of_project < extra:
            reserve = self._most
        if caller is not BATCHES and self.in_flight - self._batches >= self._most + reserve:
            raise TooManyRequests(
                f"{self._name} has {self._most} requests in flight, which is the limit (--max-requests): try again "
                "when some have ended."
            )
        self.in_flight += 1
        self._batches += caller is BATCHES
        self._by_project[project] = of_project + 1
        self._by_address[here] = of_address + 1

    def leave(self, caller: Caller) -> None:
        self.in_flight -= 1
        self._batches -= caller is BATCHES
        _count_down(self._by_project, caller.project)
        _count_down(self._by_address, (caller.project, caller.address))

    async def take(self, caller: Caller, size: int) -> int:
        """Wait for places for `size` sequences, all of them at most, and return the number that was taken."""
        size = min(size, self.places)
        self._note(caller.project)
        if not self._line and self._fits(size, caller.project):
            self._grant(size, caller)
            return size
        waiting = _Waiting(caller, size)
        self._add(waiting)
        self._admit_in_turns()  # there may be room for it, and for nobody else
        try:
            await waiting.may_go
        except asyncio.CancelledError:
            if waiting.may_go.cancelled():
                self._remove(waiting)
                self._admit()
            else:
                self.give_back(size, caller)
            raise
        return size

    def _grant(self, size: int, caller: Caller) -> None:
        self._running += size
        self._running_of[caller.project] = self._running_of.get(caller.project, 0) + size

    def give_back(self, size: int, caller: Caller) -> None:
        """Of a request that has taken them."""
        self._running -= size
        _count_down(self._running_of, caller.project, size)
        self._admit()

    def _note(self, project: str) -> None:
        if project:
            if project != self._last[0]:
                self._before = self._last
            self._last = (project, self._clock())

    def _has_few(self, project: str) -> bool:
        return self._running_of.get(project, 0) < self.places // _KEPT

    def _room(self, project: str) -> int:
        """Places that may be taken in all when the project takes some."""
        if self._has_few(project):
            return self.places
        other = self._before if self._last[0] == project else self._last
        is_shared = self._clock() - other[1] < _LATELY
        return self.places - self.places // _KEPT if is_shared else self.places

    def _fits(self, size: int, project: str) -> bool:
        return self._running == 0 or self._running + size <= self._room(project)

    async def take_below(self, size: int) -> int:
        """As `take`, for a request of a batch: wait until there is room below everybody else."""
        waiting = _Waiting(BATCHES, min(size, self.places))
        self._below_line[waiting] = None
        self._admit_below()
        try:
            await waiting.may_go
        except asyncio.CancelledError:
            if waiting.may_go.cancelled():
                self._below_line.pop(waiting, None)
                self._admit_below()
            else:
                self.give_back_below(waiting.size)
            raise
        return waiting.size

    def give_back_below(self, size: int) -> None:
        self._below -= size
        self._running -= size
        self._admit()

    def _admit_below(self) -> None:
        """Let requests of batches go on, as long as there is room for them. One that has more sequences than batches
        may have beside others goes once no others run, and nobody waits behind it meanwhile."""
        for waiting in list(self._below_line):
            if self._line:
                return
            if not waiting.may_go.cancelled():  # else its task has not run since
                are_others = self._running > self._below
                room = max(1, int(self.places * (BUSY_SHARE if are_others else IDLE_SHARE)))
                if (self._running and self._running + waiting.size > self.places) or (
                    self._below and self._below + waiting.size > room
                ):
                    if are_others and waiting.size > room:
                        continue
                    return
                self._below += waiting.size
                self._running += waiting.size
                waiting.may_go.set_result(None)
            del self._below_line[waiting]

    def _admit(self) -> None:
        """Let those go on that have the next turns, as long as there are places."""
        self._admit_in_turns()
        self._admit_below()

    def _admit_in_turns(self) -> None:
        of_few = False
        while self._line:
            waiting = self._next(of_few)
            if waiting is None:
                return
            if waiting.may_go.cancelled():  # its task has not run since
                self._remove(waiting)
                continue
            project = waiting.caller.project
            if not self._fits(waiting.size, project):
                if of_few or self._has_few(project):
                    return
                of_few = True  # the places that are left are not for a project that has many
                continue
            self._charge(waiting)
            self._remove(waiting)
            self._grant(waiting.size, waiting.caller)
            waiting.may_go.set_result(None)

    def _next(self, of_few: bool) -> _Waiting | None:
        """The request that has the next turn; `of_few`: among the projects that have few sequences running."""
        level, key = self._line, NO_KEY
        if of_few:
            level = {project: line for project, line in level.items() if self._has_few(project)}
            if not level:
                return None
        for _ in Caller("").levels:
            name = min(level, key=lambda name: self._turn[*key, name])
            level, key = level[name], (*key, name)
        waiting: _Waiting = next(iter(level))
        return waiting

    def _add(self, waiting: _Waiting) -> None:
        level, key = self._line, NO_KEY
        for name in waiting.caller.levels:
            key = (*key, name)
            if name not in level:
                level[name] = {}
                self._begin(key)
            level = level[name]
        level[waiting] = None
        self._number += 1

    def _begin(self, key: _Key) -> None:
        """A caller comes that had nothing waiting: at the present time, or after what it has had."""
        self._turn[key] = max(self._now.get(key[:-1], 0), self._turn.get(key, 0))
        if len(self._turn) > _MOST_REMEMBERED:
            self._turn = {key: turn for key, turn in self._turn.items() if self._waits(key)}
            self._now = {key: now for key, now in self._now.items() if not key or self._waits(key)}

    def _waits(self, key: _Key) -> bool:
        level = self._line
        for name in key:
            if name not in level:
                return False
            level = level[name]
        return True

    def _charge(self, waiting: _Waiting) -> None:
        levels = waiting.caller.levels
        for depth in range(1, len(levels) + 1):
            key = levels[:depth]
            self._now[key[:-1]] = self._turn[key]
            self._turn[key] += waiting.size

    def _remove(self, waiting: _Waiting) -> None:
        levels: list[_Tree] = [self._line]
        for name in waiting.caller.levels:
            if name not in levels[-1]:
                return
            levels.append(levels[-1][name])
        if waiting not in levels[-1]:
            return
        del levels[-1][waiting]
        self._number -= 1
        for level, name in zip(reversed(levels[:-1]), reversed(waiting.caller.levels), strict=True):
            if not level[name]:
                del level[name]
        if not self._line:
            self._turn.clear()
            self._now.clear()


def _count_down(counts: dict[_K, int], key: _K, by: int = 1) -> None:
    number = counts[key] - by
    if number:
        counts[key] = number
    else:
        del counts[key]
