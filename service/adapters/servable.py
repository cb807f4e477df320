"""What a model name leads to, whichever way it was given: one adapter, whose project it is, and its manifest."""

from dataclasses import dataclass
from datetime import datetime

from service.contracts.ids import AdapterId, ProjectId
from service.contracts.manifest import AdapterManifest


@dataclass(frozen=True)
class Model:
    """A servable name of one project. Of a registered adapter it is the version's own, `name@vN`."""

    name: str
    project_id: ProjectId
    adapter_id: AdapterId
    manifest: AdapterManifest
    created_at: datetime
