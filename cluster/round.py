"""One asking of all hosts, as a tree of paths (``cluster/routing.py``): failover and hedging without counting twice.

A node is answered by its own host or by all of its children, never by both: the first of the two to be whole is taken,
the other is ignored whenever it comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from cluster.routing import Call, Routing, may_serve
from stemma.flow import HostReply

Path = tuple[str, ...]
Replies = Mapping[int, HostReply]
"""By position of the query in its batch."""


@dataclass(slots=True)
class _Node:
    path: Path
    waiting: bool = True
    replies: Replies | None = None
    children: list[_Node] | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """What a round has come to: disjoint replies by path, and the hosts behind what is missing."""

    replies: Mapping[Path, Replies]
    missing: frozenset[str]


@dataclass(slots=True)
class Round:
    """``refuse`` says which hosts must not be asked now (an open breaker); they fail at once."""

    routing: Routing
    demoted: frozenset[str]
    refuse: Callable[[str], bool]
    hedges: int = 0
    failed_hosts: set[str] = field(default_factory=set)
    _roots: list[_Node] = field(default_factory=list)
    _nodes: dict[Path, _Node] = field(default_factory=dict)

    def start(self) -> list[Path]:
        """Begin; returns the paths to ask."""
        self._roots, asks = self._grow(())
        return asks

    def call(self, path: Path) -> Call:
        return Call(key=self.routing.key, path=path, demoted=self.demoted)

    def answered(self, path: Path, replies: Replies) -> None:
        node = self._nodes[path]
        if node.waiting:
            node.waiting, node.replies = False, replies

    def failed(self, path: Path) -> list[Path]:
        """The host of ``path`` will not answer; returns the paths to ask instead."""
        node = self._nodes[path]
        if not node.waiting:
            return []
        node.waiting = False
        self.failed_hosts.add(path[-1])
        return self._branch(node)

    def hedge(self, path: Path) -> list[Path]:
        """The host of ``path`` is slow: returns the paths to ask as well."""
        node = self._nodes[path]
        if not node.waiting or node.children is not None or len(path) >= self.routing.copies_there:
            return []
        self.hedges += 1
        return self._branch(node)

    def waiting(self, path: Path) -> bool:
        return self._nodes[path].waiting

    @property
    def mute_hosts(self) -> frozenset[str]:
        """Hosts that failed and answered nothing: a further round need not wait for them again."""
        heard = {path[-1] for path, node in self._nodes.items() if node.replies is not None}
        return frozenset(self.failed_hosts - heard)

    @property
    def settled(self) -> bool:
        """Nothing that could still come would change what is taken."""
        return all(self._done(node) for node in self._roots)

    def taken(self) -> Taken:
        """The best that there is now."""
        replies: dict[Path, Replies] = {}
        missing: set[str] = set()
        for node in self._roots:
            self._take(node, replies, missing)
        return Taken(replies, frozenset(missing))

    # ------------------------------------------------------------------ the tree

    def _grow(self, stem: Path) -> tuple[list[_Node], list[Path]]:
        nodes, asks = [], []
        for host in self.routing.host_ids:
            path = (*stem, host)
            if not may_serve(self.routing, path, self.demoted):
                continue
            node = self._nodes[path] = _Node(path)
            nodes.append(node)
            if host in self.failed_hosts or self.refuse(host):
                node.waiting = False
                asks += self._branch(node)
            else:
                asks.append(path)
        return nodes, asks

    def _branch(self, node: _Node) -> list[Path]:
        if node.children is not None:
            return []
        node.children, asks = self._grow(node.path)
        return asks

    def _done(self, node: _Node) -> bool:
        if node.replies is not None:
            return True
        if self._whole(node):
            return True
        return not node.waiting and all(self._done(child) for child in node.children or ())

    def _whole(self, node: _Node) -> bool:
        """All of the node's units are answered for."""
        return node.replies is not None or (bool(node.children) and all(map(self._whole, node.children or ())))

    def _take(self, node: _Node, replies: dict[Path, Replies], missing: set[str]) -> None:
        if node.replies is not None:
            replies[node.path] = node.replies
        elif node.children:
            for child in node.children:
                self._take(child, replies, missing)
        else:
            missing.update(node.path)

    def __iter__(self) -> Iterator[Path]:
        return iter(self._nodes)
