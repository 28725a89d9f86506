"""The filter language: what a caller may say about declared metadata columns, and nothing else.

    filter     = or; or = and {OR and}; and = not {AND not}; not = [NOT] (comparison | "(" filter ")")
    comparison = column (= | <> | != | < | <= | > | >=) literal, or the literal first
               | column [NOT] IN (literal, ...) | column [NOT] BETWEEN literal AND literal
               | column [NOT] LIKE 'pattern' (% and _, case counts, no escapes) | column IS [NOT] NULL

sqlglot parses, we keep a tree of our own and write the SQL for Lance from it, so that nothing a caller typed reaches
Lance (a 2 kB expression crashed its process). ``Filter.evaluate`` is the slow twin: SQL's three-valued logic in Python.

The SQL has no NOT over a condition and no comparison that can be null: NOT is carried down to the leaves, and each leaf
says IS NOT NULL first. Lance's optimiser (DataFusion, pylance 14.0.2) makes ``x IN (1) AND x IN (2)`` false where x is
null, so that NOT of it selected rows that it must not; the property test found that.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError
from sqlglot.tokenizer_core import Token, TokenType

from stemma.catalog.schema import ColumnType, column_name
from stemma.config import LimitSettings
from stemma.errors import BadRequest

Value = str | int | float | bool
INTEGER_MAX = 2**63 - 1

_OPERATORS: dict[type[exp.Expr], str] = {
    exp.EQ: "=",
    exp.NEQ: "<>",
    exp.LT: "<",
    exp.LTE: "<=",
    exp.GT: ">",
    exp.GTE: ">=",
}
_MIRRORED = {"=": "=", "<>": "<>", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_OPPOSITE = {"=": "<>", "<>": "=", "<": ">=", "<=": ">", ">": "<=", ">=": "<"}
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_WORDS = {
    TokenType.AND, TokenType.OR, TokenType.NOT, TokenType.IN, TokenType.BETWEEN, TokenType.LIKE, TokenType.IS,
    TokenType.NULL, TokenType.TRUE, TokenType.FALSE,
}  # fmt: skip
_SIGNS = {
    TokenType.EQ, TokenType.NEQ, TokenType.LT, TokenType.LTE, TokenType.GT, TokenType.GTE,
    TokenType.L_PAREN, TokenType.R_PAREN, TokenType.COMMA, TokenType.DASH,
}  # fmt: skip
_EXAMPLE = "publisher = 'X' AND year BETWEEN 1990 AND 1999"


# Nodes: ``sql(truth)`` is a condition that is never null: true exactly where the node is true (or, for False, false).


@dataclass(frozen=True, slots=True)
class Comparison:
    """``column op value``; null where the column is."""

    column: str
    op: str
    value: Value

    def sql(self, truth: bool) -> str:
        op = self.op if truth else _OPPOSITE[self.op]
        return _guarded(self.column, f"{op} {_literal(self.value)}")

    def evaluate(self, metadata: Mapping[str, Any]) -> bool | None:
        found = metadata.get(self.column)
        return None if found is None else _COMPARE[self.op](found, self.value)


@dataclass(frozen=True, slots=True)
class Membership:
    """``column IN (values)``."""

    column: str
    values: tuple[Value, ...]

    def sql(self, truth: bool) -> str:
        return _guarded(self.column, f"{_not(truth)}IN ({', '.join(_literal(value) for value in self.values)})")

    def evaluate(self, metadata: Mapping[str, Any]) -> bool | None:
        found = metadata.get(self.column)
        return None if found is None else found in self.values


@dataclass(frozen=True, slots=True)
class Range:
    """``column BETWEEN low AND high``, both ends included."""

    column: str
    low: Value
    high: Value

    def sql(self, truth: bool) -> str:
        return _guarded(self.column, f"{_not(truth)}BETWEEN {_literal(self.low)} AND {_literal(self.high)}")

    def evaluate(self, metadata: Mapping[str, Any]) -> bool | None:
        found: Any = metadata.get(self.column)
        return None if found is None else bool(self.low <= found <= self.high)


@dataclass(frozen=True, slots=True)
class Pattern:
    """``column LIKE pattern``: % any run, _ any one character, the rest itself, case counts."""

    column: str
    pattern: str

    def sql(self, truth: bool) -> str:
        return _guarded(self.column, f"{_not(truth)}LIKE {_literal(self.pattern)}")

    def evaluate(self, metadata: Mapping[str, Any]) -> bool | None:
        found = metadata.get(self.column)
        if found is None:
            return None
        expression = "".join({"%": ".*", "_": "."}.get(char, re.escape(char)) for char in self.pattern)
        return re.fullmatch(expression, found, re.DOTALL) is not None


@dataclass(frozen=True, slots=True)
class Missing:
    """``column IS NULL``; never null itself."""

    column: str

    def sql(self, truth: bool) -> str:
        return f"({column_name(self.column)} IS {_not(truth)}NULL)"

    def evaluate(self, metadata: Mapping[str, Any]) -> bool | None:
        return metadata.get(self.column) is None


@dataclass(frozen=True, slots=True)
class Negation:
    """NOT; null stays null."""

    inner: Node

    def sql(self, truth: bool) -> str:
        return self.inner.sql(not truth)

    def evaluate(self, metadata: Mapping[str, Any]) -> bool | None:
        found = self.inner.evaluate(metadata)
        return None if found is None else not found


@dataclass(frozen=True, slots=True)
class Junction:
    """AND (``decides`` False: one false decides) or OR (True: one true decides) of many; else one null makes null."""

    parts: tuple[Node, ...]
    decides: bool

    def sql(self, truth: bool) -> str:
        word = " OR " if self.decides == truth else " AND "
        return "(" + word.join(part.sql(truth) for part in self.parts) + ")"

    def evaluate(self, metadata: Mapping[str, Any]) -> bool | None:
        found = [part.evaluate(metadata) for part in self.parts]
        if self.decides in found:
            return self.decides
        return None if None in found else not self.decides


Node = Comparison | Membership | Range | Pattern | Missing | Negation | Junction


@dataclass(frozen=True, slots=True)
class Filter:
    """A parsed filter. ``text`` as the caller wrote it; ``sql`` as we wrote it, over Lance's column names."""

    text: str
    node: Node

    @property
    def sql(self) -> str:
        return self.node.sql(True)

    def evaluate(self, metadata: Mapping[str, Any]) -> bool | None:
        """The slow twin of Lance: True, False, or None for SQL's unknown (which selects nothing)."""
        return self.node.evaluate(metadata)


def parse(text: str, columns: Mapping[str, ColumnType], limits: LimitSettings) -> Filter:
    """The filter in ``text`` over ``columns``. Raises BadRequest naming the part that cannot be meant."""
    size_bytes = len(text.encode("utf-8", "replace"))
    if size_bytes > limits.filter_bytes_max:
        raise BadRequest(
            f"a filter has at most {limits.filter_bytes_max} bytes, this one {size_bytes}", subject="filter"
        )
    if text.encode("utf-8", "replace").decode() != text:
        raise _refusal(ascii(text), "a filter is text that UTF-8 can hold")
    safe = _safe_text(text, columns, limits)
    try:
        tree = sqlglot.parse_one(safe)
    except (SqlglotError, RecursionError) as error:
        raise _refusal(text, "this is not a condition") from error
    return Filter(text, _Reader(columns).node(tree))


def _safe_text(text: str, columns: Mapping[str, ColumnType], limits: LimitSettings) -> str:
    """``text`` rewritten from its tokens: only the language's own, nested no deeper than allowed, columns quoted.

    Tokens come from a loop, parsing recurses: so depth is counted here, before a parser sees it.
    """
    try:
        tokens = sqlglot.tokenize(text)
    except SqlglotError as error:
        raise _refusal(text, "this cannot be read") from error
    if not tokens:
        raise _refusal(text, "a filter is not empty")
    depth = prefixes = 0
    parts = []
    for token in tokens:
        prefixes = prefixes + 1 if token.token_type in (TokenType.NOT, TokenType.DASH) else 0
        depth += (token.token_type == TokenType.L_PAREN) - (token.token_type == TokenType.R_PAREN)
        if depth + prefixes > limits.filter_depth_max:
            raise BadRequest(f"a filter is nested at most {limits.filter_depth_max} deep", subject="filter")
        parts.append(_safe_token(token, columns))
    return " ".join(parts)


def _safe_token(token: Token, columns: Mapping[str, ColumnType]) -> str:
    if token.comments:
        raise _refusal(token.comments[0], "a filter has no comments")
    match token.token_type:
        case TokenType.STRING:
            return _literal(token.text)
        case TokenType.IDENTIFIER:
            return _identifier(token.text)
        case kind if kind in _WORDS or kind in _SIGNS or kind == TokenType.NUMBER:
            return token.text
        case _ if token.text in columns:
            return _identifier(token.text)  # `date` or `order` is a column here, whatever SQL makes of it
        case TokenType.VAR:
            return _identifier(token.text)
        case _:
            raise _refusal(token.text, "a filter does not know this")


class _Reader:
    """sqlglot's tree to ours; every node it does not know is refused by name."""

    def __init__(self, columns: Mapping[str, ColumnType]) -> None:
        self._columns = columns

    def node(self, tree: exp.Expr) -> Node:
        match tree:
            case exp.Paren():
                return self.node(tree.this)
            case exp.And() | exp.Or():
                parts = tuple(self.node(part) for part in _chain(tree, type(tree)))
                return Junction(parts, decides=isinstance(tree, exp.Or))
            case exp.Not():
                return Negation(self.node(tree.this))
            case exp.In() | exp.Between() | exp.Like() | exp.Is():
                inner = self._test(tree)
                return Negation(inner) if tree.args.get("negate") else inner
            case _ if type(tree) in _OPERATORS:
                return self._comparison(tree)
            case _:
                raise _refusal(tree.sql(), f"a filter is a condition like {_EXAMPLE}")

    def _test(self, tree: exp.Expr) -> Node:
        column = self._column(tree.this, tree)
        _only(tree, {"this", "expressions", "expression", "low", "high", "negate"})
        match tree:
            case exp.In() if tree.expressions:
                return Membership(column, tuple(self._value(one, column) for one in tree.expressions))
            case exp.Between():
                return Range(column, self._value(tree.args["low"], column), self._value(tree.args["high"], column))
            case exp.Like():
                return self._pattern(tree, column)
            case exp.Is() if isinstance(tree.expression, exp.Null):
                return Missing(column)
            case _:
                raise _refusal(tree.sql(), "a filter does not know this")

    def _pattern(self, tree: exp.Expr, column: str) -> Pattern:
        pattern = self._value(tree.expression, column)
        if not isinstance(pattern, str):
            raise _refusal(tree.sql(), "LIKE is for text")
        if "\\" in pattern:
            raise _refusal(pattern, "a LIKE pattern has no escapes; it may not hold a backslash")
        return Pattern(column, pattern)

    def _comparison(self, tree: exp.Expr) -> Comparison:
        op, left, right = _OPERATORS[type(tree)], tree.this, tree.expression
        if isinstance(right, exp.Column) and not isinstance(left, exp.Column):
            op, left, right = _MIRRORED[op], right, left
        column = self._column(left, tree)
        if self._columns[column] == "boolean" and op not in ("=", "<>"):
            raise _refusal(tree.sql(), "booleans have no order")
        return Comparison(column, op, self._value(right, column))

    def _column(self, tree: Any, whole: exp.Expr) -> str:
        if not isinstance(tree, exp.Column) or not isinstance(tree.this, exp.Identifier) or tree.args.get("table"):
            raise _refusal(whole.sql(), "a comparison is of one column with a literal")
        name = str(tree.this.this)
        if name not in self._columns:
            there = ", ".join(sorted(self._columns)) or "none"
            raise BadRequest(f"filter: there is no column {name!r}; declared are: {there}", subject=name)
        return name

    def _value(self, tree: Any, column: str) -> Value:
        kind = self._columns[column]
        negative = isinstance(tree, exp.Neg)
        literal = tree.this if negative else tree
        if isinstance(literal, exp.Boolean) and kind == "boolean" and not negative:
            return bool(literal.this)
        if isinstance(literal, exp.Literal):
            if literal.is_string and kind == "text" and not negative:
                return str(literal.this)
            if not literal.is_string and kind in ("integer", "float"):
                return _number(str(literal.this), kind, negative)
        raise _refusal(tree.sql(), f"column {column!r} is of type {kind}; this is no {kind} literal")


def _chain(tree: exp.Expr, kind: type[exp.Expr]) -> Iterator[exp.Expr]:
    """The operands of ``a AND b AND c``, left to right; sqlglot nests them to the left."""
    right: list[exp.Expr] = []
    while type(tree) is kind:
        right.append(tree.expression)
        tree = tree.this
    yield tree
    yield from reversed(right)


def _only(tree: exp.Expr, known: set[str]) -> None:
    extra = [name for name, value in tree.args.items() if value and name not in known]
    if extra:
        raise _refusal(tree.sql(), f"a filter does not know {extra[0]}")


def _number(text: str, kind: ColumnType, negative: bool) -> Value:
    sign = -1 if negative else 1
    if kind == "integer":
        if not text.isascii() or not text.isdigit() or int(text) > INTEGER_MAX:
            raise _refusal(text, "an integer column is compared with whole numbers of 63 bits")
        return sign * int(text)
    try:
        value = float(text)
    except ValueError as error:
        raise _refusal(text, "this is no number") from error
    if not math.isfinite(value):
        raise _refusal(text, "this number is too large")
    return sign * value + 0.0


def _guarded(column: str, test: str) -> str:
    name = column_name(column)
    return f"({name} IS NOT NULL AND {name} {test})"


def _not(truth: bool) -> str:
    return "" if truth else "NOT "


def _literal(value: Value) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return "'" + value.replace("'", "''") + "'"
        case float():
            return f"{value:.17e}"
        case _:
            return str(value)


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _refusal(part: str, why: str) -> BadRequest:
    return BadRequest(f"filter: {why}: {part[:80]!r}", subject=part[:80])
