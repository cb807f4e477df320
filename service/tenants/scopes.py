"""What a key may do. A key without scopes may do everything in its project; else each request needs one of its scopes.

The names are OpenAI's: `api.all.read`, `api.model.request`, `api.<area>.read`, and `api.<area>.write` that includes it.
"""

from service.errors import Forbidden

READ_ALL = "api.all.read"
REQUEST = "api.model.request"
AREAS = {
    "files": "files",
    "uploads": "files",
    "fine_tuning": "fine_tuning",
    "models": "model",
    "adapters": "model",
    "batches": "batch",
    "webhook_endpoints": "webhooks",
    "webhook_event_types": "webhooks",
}
"""The area of a route, by the first part of its path behind /v1."""
INFERENCE = frozenset({"chat", "completions", "responses", "embeddings"})
READING = frozenset({"GET", "HEAD"})
SCOPES = frozenset(
    {READ_ALL, REQUEST} | {f"api.{area}.{right}" for area in set(AREAS.values()) for right in ("read", "write")}
)


def require(scopes: frozenset[str], method: str, path: str) -> None:
    """Raises Forbidden where none of the scopes allows the request. No scopes at all allow every request."""
    if scopes and not scopes & (able := _enough(method, path)):
        named = " or ".join(sorted(able)) or "a key without restrictions"
        raise Forbidden(f"You have insufficient permissions for this operation. Missing scopes: {named}.")


def require_inference(scopes: frozenset[str]) -> None:
    """The same for what has models answer without being inference itself: else a key that may not ask them could."""
    require(scopes, "POST", "/v1/chat/completions")


def _enough(method: str, path: str) -> frozenset[str]:
    """The scopes of which each alone is enough."""
    place = path.removeprefix("/v1/").partition("/")[0]
    if place in INFERENCE and method == "POST":
        return frozenset({REQUEST})
    area = AREAS.get(place)
    writing = {f"api.{area}.write"} if area else set[str]()
    if method in READING:
        return frozenset({READ_ALL} | writing | ({f"api.{area}.read"} if area else set[str]()))
    return frozenset(writing)
