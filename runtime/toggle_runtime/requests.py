"""What a request of the host says, looked at before it is used."""

from typing import Any, Dict, Type, TypeVar

from toggle_runtime.wire import RequestError

Request = Dict[str, Any]
Value = TypeVar("Value")


def field(request: Request, name: str, kind: Type[Value]) -> Value:
    """A field that must be there. Raises RequestError where it is not, or is of another type."""
    value = request.get(name)
    if not isinstance(value, kind):
        raise RequestError("request", f"{name}: expected {kind.__name__}, got {str(value)[:60]!r}")
    return value


def flag(request: Request, name: str) -> bool:
    """A field that may be left out, for no."""
    return name in request and field(request, name, bool)
