"""Commands about the device as a whole: what it is, whom it trusts, what its workers need, and leaving it."""

from typing import Any, Dict

from toggle_runtime import environments, removal
from toggle_runtime import facts as looking
from toggle_runtime import trust as trusting
from toggle_runtime.codec import from_data
from toggle_runtime.requests import Request, field, flag
from toggle_runtime.succession import Succession
from toggle_runtime.wire import Wire


def facts(request: Request, wire: Wire) -> Dict[str, Any]:
    return {"facts": looking.gather(request["root"])}


def trust(request: Request, wire: Wire) -> Dict[str, Any]:
    key, name = field(request, "key", str), field(request, "name", str)
    told = field(request, "successions", list) if "successions" in request else []
    successions = [from_data(Succession, data) for data in told]
    return trusting.trust(request["root"], key, name, flag(request, "force"), successions)


def revoke(request: Request, wire: Wire) -> Dict[str, Any]:
    return trusting.revoke(request["root"], field(request, "key", str), field(request, "name", str))


def environment(request: Request, wire: Wire) -> Dict[str, Any]:
    if "packages" in request:
        # Imported here, since it takes long, and wheels need none of it.
        from toggle_runtime.engines import adopt

        name, versions = adopt(request["root"], field(request, "packages", str))
        return {"id": name, "versions": versions}
    wheels = [from_data(environments.Wheel, data) for data in field(request, "wheels", list)]
    return {"path": str(environments.prepare(request["root"], field(request, "id", str), wheels))}


def packages(request: Request, wire: Wire) -> Dict[str, Any]:
    from toggle_runtime.engines import look

    return {"versions": look(field(request, "packages", str))}


def remove(request: Request, wire: Wire) -> Dict[str, Any]:
    return removal.remove(request["root"], field(request, "owner", str))
