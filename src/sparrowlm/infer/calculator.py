"""A calculator in a process of its own: arithmetic by a reader that knows nothing else.

The expression is parsed by `ast` and walked; a node that is not on the list below is refused, so
there are no names, calls, attributes or strings. Sizes are bounded before a product or a power is
taken, and the process may hold a quarter of a GiB.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

from sparrowlm.infer.children import Answering, serve

LONGEST = 500  # characters of an expression
BITS = 2048  # of a whole number
MEMORY = 1 << 28  # bytes
OPERATIONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}


def calculate(expression: str) -> str:
    """The value of an arithmetic expression, or a sentence that begins with "error".

    >>> calculate("2 * (3 + 4)"), calculate("7 / 2"), calculate("8 / 2")
    ('14', '3.5', '4')
    >>> calculate("__import__('os')")
    'error: only numbers, + - * / // % ** and parentheses are understood'
    """
    if len(expression) > LONGEST:
        return f"error: the expression is longer than {LONGEST} characters"
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
    except ZeroDivisionError:
        return "error: division by zero"
    except (OverflowError, MemoryError, RecursionError):
        return "error: the result is too large"
    except SyntaxError:
        return "error: this is no arithmetic expression"
    except ValueError as fault:
        return f"error: {fault}"
    return _written(value)


def _value(node: ast.expr) -> int | float:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return _bounded(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATIONS:
            return _combined(op, _value(left), _value(right))
    raise ValueError("only numbers, + - * / // % ** and parentheses are understood")


def _combined(op: ast.operator, left: float, right: float) -> int | float:
    if isinstance(op, ast.Pow):
        size = left.bit_length() if isinstance(left, int) else 64
        if abs(right) > BITS or (isinstance(right, int) and size * abs(right) > BITS):
            raise OverflowError
    return _bounded(OPERATIONS[type(op)](left, right))


def _bounded(value: object) -> int | float:
    if isinstance(value, int) and value.bit_length() <= BITS:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, complex):
        raise ValueError("the result is no real number")
    raise OverflowError


def _written(value: float) -> str:
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else f"{value:.12g}"
    return str(value)


def prepare() -> tuple[dict[str, Any], Answering]:
    """{"expression"} becomes {"result"}."""
    limit_memory(MEMORY)
    return {}, lambda request: {"result": calculate(str(request["expression"]))}


def limit_memory(size: int) -> None:
    """Let this process hold no more than `size` bytes, where the system can say so."""
    try:
        import resource
    except ImportError:  # Windows
        return
    try:
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    except (ValueError, OSError):  # macOS refuses; the bounds above hold by themselves
        return


if __name__ == "__main__":
    raise SystemExit(serve(prepare))
