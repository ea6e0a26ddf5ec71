"""Text to formula, in RTAMT's syntax, and with its meaning.

`until` binds tighter than `and`, `and` than `or`, `or` than `implies`, and a unary operator takes the comparison
that follows it: `always a <= 1 and b <= 1` is `(always (a <= 1)) and (b <= 1)`. Standard library only, Python 3.8.
"""

import math
import re
from typing import Callable, Dict, List, NoReturn, Optional, Tuple

from toggle_runtime.formula import (
    LOWER,
    UPPER,
    Always,
    And,
    Formula,
    FormulaError,
    Historically,
    Interval,
    Not,
    Predicate,
    Until,
    either,
    eventually,
    implies,
    once,
)

__all__ = ["parse"]

# A formula may come over the wire: these bounds keep the recursion below Python's own limit. Printing adds
# parentheses but never operators, so what was read once can be read again.
_MAX_OPERATORS, _MAX_NESTING = 40, 100
_TEMPORAL: Dict[str, Callable[[Formula, Optional[Interval]], Formula]] = {
    "always": Always,
    "eventually": eventually,
    "historically": Historically,
    "once": once,
}
_KEYWORDS = ("not", "and", "or", "implies", "until", *_TEMPORAL)
_TOKEN = re.compile(
    r"(?P<number>-?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)|(?P<name>[A-Za-z_]\w*)|(?P<symbol><=|>=|[<>()\[\],:])",
    re.ASCII,
)


def parse(text: str) -> Formula:
    """Read a formula such as `always ((jsd > 0.3) implies eventually[0,4] (jsd <= 0.1))`.

    Comparisons have the signal on the left and a number on the right. `implies` and `until` do not chain without
    parentheses, since readers disagree on what that means. Not every formula that can be read has a value at the
    first step of a trace: see `toggle_runtime.spans.lookback`. Raises FormulaError pointing at the column.
    """
    return _Parser(text).formula()


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: List[Tuple[str, int]] = []
        self.index = 0
        self.nesting = 0
        position = 0
        while position < len(text):
            if text[position].isspace():
                position += 1
                continue
            match = _TOKEN.match(text, position)
            if match is None:
                self.fail(f"expected a signal, a number or an operator, got {text[position]!r}", position)
            self.tokens.append((match.group(), position))
            position = match.end()
        operators = [position for token, position in self.tokens if token in _KEYWORDS]
        if len(operators) > _MAX_OPERATORS:
            self.fail(f"expected at most {_MAX_OPERATORS} operators", operators[_MAX_OPERATORS])

    def fail(self, message: str, position: Optional[int] = None) -> NoReturn:
        if position is None:
            position = self.tokens[self.index][1] if self.index < len(self.tokens) else len(self.text)
        shown = "".join(" " if character.isspace() else character for character in self.text)
        raise FormulaError(f"formula, column {position + 1}: {message}\n  {shown}\n  {' ' * position}^")

    def next(self) -> str:
        """The next token, empty at the end."""
        return self.tokens[self.index][0] if self.index < len(self.tokens) else ""

    def accept(self, *wanted: str) -> str:
        token = self.next()
        if token and token in wanted:
            self.index += 1
            return token
        return ""

    def expect(self, what: str, *wanted: str) -> str:
        return self.accept(*wanted) or self.fail(f"expected {what}, got {self.next() or 'the end'!r}")

    def formula(self) -> Formula:
        result = self.implication()
        if self.next():
            self.fail(f"expected 'and', 'or', 'implies', 'until' or the end, got {self.next()!r}")
        return result

    def implication(self) -> Formula:
        left = self.disjunction()
        if not self.accept("implies"):
            return left
        right = self.disjunction()
        if self.next() == "implies":
            self.fail("'implies' does not chain: put parentheses around one of the two")
        return implies(left, right)

    def disjunction(self) -> Formula:
        result = self.conjunction()
        while self.accept("or"):
            result = either(result, self.conjunction())
        return result

    def conjunction(self) -> Formula:
        result = self.until()
        while self.accept("and"):
            result = And(result, self.until())
        return result

    def until(self) -> Formula:
        left = self.unary()
        if not self.accept("until"):
            return left
        interval = self.interval()
        result = Until(left, self.unary(), interval)
        if self.next() == "until":
            self.fail("'until' does not chain: put parentheses around one of the two")
        return result

    def unary(self) -> Formula:
        self.nesting += 1
        if self.nesting > _MAX_NESTING:
            self.fail(f"expected at most {_MAX_NESTING} nested operators and parentheses")
        if self.accept("("):
            result = self.implication()
            self.expect("')'", ")")
        elif self.accept("not"):
            result = Not(self.unary())
        elif self.next() in _TEMPORAL:
            make = _TEMPORAL[self.accept(*_TEMPORAL)]
            interval = self.interval()
            result = make(self.unary(), interval)
        else:
            result = self.predicate()
        self.nesting -= 1
        return result

    def interval(self) -> Optional[Interval]:
        start = self.index
        if not self.accept("["):
            return None
        first = self.steps()
        self.expect("',' or ':'", ",", ":")
        last = self.steps()
        self.expect("']'", "]")
        if first > last:
            self.fail(f"expected an interval with a <= b, got [{first},{last}]", self.tokens[start][1])
        return first, last

    def steps(self) -> int:
        token = self.next()
        if not token.isdigit():
            self.fail(f"expected a whole number of steps >= 0, got {token or 'the end'!r}")
        self.index += 1
        return int(token)

    def predicate(self) -> Formula:
        signal = self.next()
        if _is_number(signal):
            self.fail(
                f"expected a signal on the left of a comparison and the number on its right, got {signal!r}"
            )
        if not signal or not (signal[0].isalpha() or signal[0] == "_") or signal in _KEYWORDS:
            self.fail(f"expected a signal, 'not', 'always', 'eventually' or '(', got {signal or 'the end'!r}")
        self.index += 1
        comparison = self.expect(f"a comparison (<=, <, >=, >) after {signal!r}", *UPPER, *LOWER)
        number = self.next()
        if not _is_number(number) or not math.isfinite(float(number)):
            self.fail(f"expected a finite number on the right of {comparison!r}, got {number or 'the end'!r}")
        self.index += 1
        return Predicate(signal, comparison, float(number))


def _is_number(token: str) -> bool:
    match = _TOKEN.fullmatch(token)
    return match is not None and match.lastgroup == "number"
