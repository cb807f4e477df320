"""Messages between an inference replica and the service, and the headers between gateway and replica.

| call | by | request | answer |
|---|---|---|---|
| PUT /internal/replicas/{id} | replica launcher, each heartbeat | ReplicaHeartbeat | ReplicaOrders |
| DELETE /internal/replicas/{id} | replica launcher, at exit | | 204 |
| GET /internal/adapters/{adapter_id} | replica plugin, on a cold load | | AdapterSource |
| POST {replica}/v1/weft/adapters/ensure | gateway or operator | AdapterRef | AdapterResident |
| POST {replica}/v1/weft/adapters/evict | service | AdapterRef | AdapterResident |
| POST {replica}/v1/weft/spent | gateway, after a client left | RequestIds | Spent |
| GET {replica}/v1/weft/status | anyone with the replica's key | | ReplicaStatus |

A completion request to a replica names the adapter id (or the base model) as `model`. The replica makes the adapter
resident before vLLM sees the request. What stops it is answered in OpenAI's envelope, an `AdapterProblem` as `code`.
"""

from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from service.contracts.manifest import AdapterManifest

AdapterProblem = Literal[
    "adapter_not_found",
    "adapter_invalid",
    "adapter_corrupt",
    "adapter_storage_unavailable",
    "adapter_loading",
    "no_capacity",
]
"""404, 422, 503, 503, 503, 503 in this order. The last four carry Retry-After."""

Tier = Literal["gpu", "cpu", "disk", "store"]
"""`gpu`: of those that vLLM knows, one of the last used, as many as it has slots. It does not tell, but keeps those."""

CACHE_HEADER = "x-adapter-cache"
"""Answer header of a replica: the tier in which the request found its adapter. Absent for the base model."""

WAIT_HEADER = "x-weft-wait-ms"
"""Answer header of a replica: milliseconds that the request waited before vLLM, less its own adapter's load."""

TENANT_HEADER = "x-weft-tenant"
"""Request header of the gateway: an opaque word, the same for all requests of one tenant. It shares out the turns."""

REQUEST_ID_HEADER = "x-request-id"

QUARANTINE_SECONDS = 24 * 3600
"""How long an adapter is refused that made an engine compute values that are not numbers."""
NOT_NUMBERS = "This adapter cannot be served: it made the model compute values that are not numbers."

MOST_ADAPTERS = 1024
MOST_STORED = 512
MOST_QUARANTINED = 256

SPENT_PATH = "/v1/weft/spent"
MOST_REQUEST_IDS = 1000


class Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ReplicaHeartbeat(Message):
    url: str = Field(description="Where the gateway reaches the replica, for instance http://127.0.0.1:9001.")
    api_key: str = Field(min_length=16, description="Bearer for that URL; made anew by each launcher.")
    base_model: str
    base_fingerprint: str
    state: Literal["starting", "ready", "draining", "down"]
    max_loras: int = Field(ge=1)
    max_lora_rank: int = Field(ge=1)
    context_length: int = Field(ge=1)
    adapters: tuple[str, ...] = Field(
        default=(),
        max_length=MOST_ADAPTERS,
        description="Adapters that it holds, last used first; a hint for placement.",
    )
    stored: tuple[str, ...] = Field(
        default=(), max_length=MOST_STORED, description="Some of those beyond the first, others each time."
    )
    quarantined: dict[str, AwareDatetime] = Field(
        default={},
        max_length=MOST_QUARANTINED,
        description="Those that made its engine compute no numbers: since when.",
    )


class ReplicaOrders(Message):
    """What the service asks of a replica in answer to its heartbeat."""

    evict: tuple[str, ...] = Field(default=(), description="Which of the adapters that it named no longer exist.")
    heartbeat_seconds: float = 2.0


class AdapterSource(Message):
    """Where a replica may read one adapter from, for a few minutes."""

    adapter_id: str
    manifest: AdapterManifest
    urls: dict[str, str] = Field(description="Presigned GET for each file of the manifest, by path.")


class AdapterRef(Message):
    adapter_id: str = Field(pattern=r"^[0-9a-f]{64}$")


class AdapterResident(Message):
    adapter_id: str
    tier: Tier | None


class RequestIds(Message):
    """Of requests to the replica, as their REQUEST_ID_HEADER named them."""

    ids: tuple[str, ...] = Field(max_length=MOST_REQUEST_IDS)


class Tokens(Message):
    prompt: int = Field(ge=0)
    completion: int = Field(ge=0)


class Spent(Message):
    """What the engine did for requests, also for those whose client did not stay. Those it did nothing for, or that
    are not over yet or over for long, are absent.
    """

    tokens: dict[str, Tokens]


class ReplicaStatus(Message):
    base_model: str
    adapters: dict[str, Tier]
    in_flight: dict[str, int]
    waiting: int = 0
    disk_bytes: int
    quarantined: dict[str, AwareDatetime] = {}
