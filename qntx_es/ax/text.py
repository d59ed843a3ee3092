"""The query as text: one grammar, and errors that point at the column.

`[entities] [is contexts] [by actors] [since …] [where …] [limit n]`. Times that lean on the present
are settled here, against an `as_of`, so that a query means the same whenever it is run.
"""

import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from difflib import get_close_matches
from functools import cache
from typing import Any, NoReturn, cast

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedInput

from qntx_es.ax.query import Ax, Glob, Name
from qntx_es.ax.where import (
    KEYWORDS,
    All,
    Compare,
    Contains,
    Exists,
    Not,
    OneOf,
    Scalar,
    Some,
    Where,
)
from qntx_es.errors import AxError, AxSyntaxError, AxTooComplex, InvalidId

TEXT_BYTES_MAX = 4_096
LIMIT_MAX, LIMIT_DIGITS = 10_000, 9
GRAMMAR = r"""
start: [entities] [_is contexts] [_by actors] [times] [_WHERE either] [_LIMIT WORD]
_is: _IS | _ARE | _EQUALS
_by: _BY | _VIA | _BY_SIGN
entities: _names
contexts: _names
actors: _names
_names: (WORD | STRING) ("," (WORD | STRING))*

times: since until? | until | on | between
since: _SINCE instant
until: _UNTIL instant
on: _ON instant
between: _BETWEEN instant _AND instant
instant: STRING | WORD+

either: both (_OR both)*
both: denial (_AND denial)*
?denial: _NOT denial -> negation | test
?test: "(" either ")"
     | path COMPARISON value -> compare
     | path _EQUALS value -> equals
     | path _IN "(" value ("," value)* ")" -> one_of
     | path _CONTAINS value -> contains
     | path _EXISTS -> exists
path: (WORD | STRING)+
value: WORD | STRING

_IS: "is"i
_ARE: "are"i
_BY: "by"i
_VIA: "via"i
_BY_SIGN: "⌬"
_SINCE: "since"i
_UNTIL: "until"i
_ON: "on"i
_BETWEEN: "between"i
_AND: "and"i
_OR: "or"i
_NOT: "not"i
_IN: "in"i
_CONTAINS: "contains"i
_EXISTS: "exists"i
_WHERE: "where"i
_LIMIT: "limit"i
_EQUALS: "="
COMPARISON: "!=" | "<=" | ">=" | "<" | ">"
STRING: /"(?:[^"\\\x00-\x1f]|\\.)*"/i
WORD: /[^\s,"()=<>!⌬]+/i
%ignore /\s+/
"""
UNITS = {
    "second": timedelta(seconds=1),
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
    "week": timedelta(weeks=1),
}
AGO = 3


def parse(text: str, *, as_of: datetime | None = None) -> Ax:
    """Return the query that a text means, its times relative to `as_of`, else to now.

    Raises `AxSyntaxError` with the column, `AxTooComplex`, or another `AxError`.
    """
    if len(text.encode("utf-8", "surrogatepass")) > TEXT_BYTES_MAX:
        raise AxTooComplex(f"a query has at most {TEXT_BYTES_MAX} bytes")
    return read(text, as_of or datetime.now(UTC))


def read(text: str, as_of: datetime) -> Ax:
    """Return the query that a text of any length means. Raises as `parse` does."""
    parser = _parser()
    try:
        tree = parser.parse(text)
    except UnexpectedInput as error:
        _refuse(text, error)
    try:
        return _Reader(text, as_of).ax(tree)
    except RecursionError:
        raise AxTooComplex from None


@cache
def _parser() -> Lark:
    return Lark(GRAMMAR, parser="lalr", maybe_placeholders=False)


def _refuse(text: str, error: UnexpectedInput) -> NoReturn:
    position = cast("int", error.pos_in_stream)  # declared None, and set by every kind
    if isinstance(error, UnexpectedCharacters):
        what = "a text needs its closing quote" if text[position] == '"' else "this fits nowhere"
        raise _error(text, position, what) from None
    token = getattr(error, "token", None)
    if token is None or token.type == "$END":
        raise _ended(text, error) from None
    raise _error(text, token.start_pos, _expected(token, error)) from None


def _ended(text: str, error: UnexpectedInput) -> AxSyntaxError:
    if "_CONTAINS" in (getattr(error, "accepts", None) or ()):
        # Words without an end may be a path, but for one that was meant as what is asked of it.
        for word in re.finditer(r"\S+", text):
            near = get_close_matches(word[0].lower(), ["contains", "exists"], 1, 0.7)
            if near:
                what = f"`{word[0]}` is not understood here; did you mean `{near[0]}`?"
                return _error(text, word.start(), what)
    return _error(text, len(text), "the query ends too early")


def _expected(token: Token, error: UnexpectedInput) -> str:
    accepted = {str(one) for one in getattr(error, "accepts", None) or ()}
    words = [one[1:].lower() for one in accepted if one.startswith("_") and one[1:].isalpha()]
    near = get_close_matches(str(token).lower(), words, 1, 0.5)
    if near:
        return f"`{token}` is not understood here; did you mean `{near[0]}`?"
    known = [one for one in words if one in KEYWORDS]
    if known:
        return f"`{token}` is not understood here; a query goes on with {', '.join(sorted(known))}"
    return f"`{token}` is not understood here"


def _error(text: str, position: int, what: str) -> AxSyntaxError:
    return AxSyntaxError(what, text=text, column=position + 1)


@dataclass(frozen=True)
class _Reader:
    """Makes the value of a tree."""

    text: str
    as_of: datetime

    def ax(self, tree: Tree[Token]) -> Ax:
        parts: dict[str, Any] = {}
        for child in tree.children:
            if isinstance(child, Token):
                parts["limit"] = self._limit(child)
            elif child.data == "either":
                parts["where"] = self._where(child)
            elif child.data == "times":
                parts |= self._times(child)
            else:
                names = [self._name(cast("Token", one)) for one in child.children]
                parts[child.data] = names
        try:
            return Ax(**parts)
        except InvalidId as error:
            raise AxError(str(error)) from error

    def _refuse(self, token: Token, what: str) -> NoReturn:
        raise _error(self.text, token.start_pos or 0, what)

    def _name(self, token: Token) -> Name:
        if token.type == "STRING":
            return self._string(token)
        try:
            return Glob(str(token)) if "*" in token else str(token)
        except InvalidId as error:
            self._refuse(token, str(error))

    def _string(self, token: Token) -> str:
        try:
            return cast("str", json.loads(token))
        except ValueError:
            self._refuse(token, "a text is written as in JSON, its escapes too")

    def _limit(self, token: Token) -> int:
        if not (token.isascii() and token.isdigit()):
            self._refuse(token, f"`{token}` is no limit: a whole number, such as 10")
        limit = int(token[:LIMIT_DIGITS])
        if limit > LIMIT_MAX or len(token) >= LIMIT_DIGITS:
            raise AxTooComplex(f"limit {token}: at most {LIMIT_MAX} at a time")
        return limit

    # Times.

    def _times(self, tree: Tree[Token]) -> dict[str, datetime]:
        found: dict[str, datetime] = {}
        for child in cast("list[Tree[Token]]", tree.children):
            spans = [self._instant(cast("Tree[Token]", one)) for one in child.children]
            if child.data != "until":
                found["since"] = spans[0][0]
            if child.data != "since":
                found["until"] = spans[-1][1]
        return found

    def _instant(self, tree: Tree[Token]) -> tuple[datetime, datetime]:
        """Return the first and the last instant that the words name."""
        tokens = cast("list[Token]", tree.children)
        words = [str(one).lower() for one in tokens]
        try:
            return self._relative(words) or self._absolute(tokens)
        except OverflowError:
            self._refuse(tokens[0], "no calendar reaches that far")

    def _relative(self, words: list[str]) -> tuple[datetime, datetime] | None:
        if words == ["now"]:
            return self.as_of, self.as_of
        if words == ["today"]:
            return _day(self.as_of.astimezone(UTC).date())
        if words == ["yesterday"]:
            return _day(self.as_of.astimezone(UTC).date() - timedelta(days=1))
        if len(words) == AGO and words[2] == "ago" and words[0].isascii() and words[0].isdigit():
            unit = UNITS.get(words[1].removesuffix("s"))
            if unit is not None:
                at = self.as_of - unit * int(words[0])
                return at, at
        return None

    def _absolute(self, tokens: list[Token]) -> tuple[datetime, datetime]:
        first = tokens[0]
        word = self._string(first) if first.type == "STRING" else str(first)
        found = _span_of(word) if len(tokens) == 1 else None
        if found is None:
            self._refuse(
                first, f"`{' '.join(tokens)}` is no time: 2026-01-04, 2026-01-04T12:00Z, 3 days ago"
            )
        return found

    # Conditions.

    def _where(self, tree: Tree[Token]) -> Where:
        make: Callable[[Tree[Token]], Where] = getattr(self, f"_{tree.data}")
        try:
            return make(tree)
        except AxSyntaxError:
            raise
        except AxTooComplex:
            raise
        except AxError as error:
            raise _error(self.text, _start(tree), str(error)) from error

    def _either(self, tree: Tree[Token]) -> Where:
        found = tuple(self._where(cast("Tree[Token]", one)) for one in tree.children)
        return found[0] if len(found) == 1 else Some(found)

    def _both(self, tree: Tree[Token]) -> Where:
        found = tuple(self._where(cast("Tree[Token]", one)) for one in tree.children)
        return found[0] if len(found) == 1 else All(found)

    def _negation(self, tree: Tree[Token]) -> Where:
        return Not(self._where(cast("Tree[Token]", tree.children[0])))

    def _compare(self, tree: Tree[Token]) -> Where:
        path, operator, value = cast("tuple[Any, Token, Any]", tuple(tree.children))
        return Compare(self._path(path), str(operator), self._value(value))

    def _equals(self, tree: Tree[Token]) -> Where:
        path, value = cast("list[Tree[Token]]", tree.children)
        return Compare(self._path(path), "=", self._value(value))

    def _one_of(self, tree: Tree[Token]) -> Where:
        path, *values = cast("list[Tree[Token]]", tree.children)
        return OneOf(self._path(path), tuple(self._value(one) for one in values))

    def _contains(self, tree: Tree[Token]) -> Where:
        path, value = cast("list[Tree[Token]]", tree.children)
        return Contains(self._path(path), self._value(value))

    def _exists(self, tree: Tree[Token]) -> Where:
        (path,) = cast("list[Tree[Token]]", tree.children)
        return Exists(self._path(path))

    def _path(self, tree: Tree[Token]) -> tuple[str, ...]:
        """Join what was cut at the quotes: `"a.b".c` is a text and a word."""
        keys: list[str] = []
        is_open = True  # a key may come, and need not be preceded by a dot
        for token in cast("list[Token]", tree.children):
            if token.type == "STRING":
                if not is_open:
                    self._refuse(token, "a dot stands between two keys")
                keys.append(self._string(token))
                is_open = False
                continue
            first, *others = str(token).split(".")
            if is_open == (first == ""):
                self._refuse(token, f"`{token}` is no path: keys with a dot between them")
            keys += [first] if first else []
            keys += others[:-1]
            if others and others[-1]:
                keys.append(others[-1])
            is_open = bool(others) and others[-1] == ""
        if is_open:
            self._refuse(cast("Token", tree.children[0]), "a path does not end in a dot")
        return tuple(keys)

    def _value(self, tree: Tree[Token]) -> Scalar:
        (token,) = cast("list[Token]", tree.children)
        if token.type == "STRING":
            return self._string(token)
        try:
            found = json.loads(token.lower(), parse_constant=_no_constant)
        except (ValueError, RecursionError):
            found = token
        if not isinstance(found, bool | int | float | None) or isinstance(found, str):
            self._refuse(token, f'`{token}` is no value: a text stands in quotes, "{token}"')
        return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _start(tree: Tree[Token]) -> int:
    token = next(iter(tree.scan_values(lambda one: isinstance(one, Token))), None)
    return 0 if token is None else token.start_pos or 0


def _span_of(word: str) -> tuple[datetime, datetime] | None:
    with suppress(ValueError):
        return _day(date.fromisoformat(word))
    with suppress(ValueError):
        at = datetime.fromisoformat(word)
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
        return at, at
    return None


def _day(day: date) -> tuple[datetime, datetime]:
    first = datetime.combine(day, time.min, UTC)
    return first, datetime.combine(day, time.max, UTC)
