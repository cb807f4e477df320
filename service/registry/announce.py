"""Telling of a change of an alias, in its transaction: the gateways, the audit log and the owner's webhooks."""

from typing import Any

from service.adapters.models import AliasRow, RegisteredRow
from service.db import ControlSession, TenantSession
from service.notifications import notify
from service.registry.history import Action, Why
from service.tenants import audit
from service.webhooks import outbox
from service.webhooks.outbox import EventType

TOLD: dict[Action, tuple[str, EventType]] = {
    "promote": ("adapter.alias.promoted", "adapter.promoted"),
    "rollback": ("adapter.alias.rolled_back", "adapter.rolled_back"),
    "automatic_rollback": ("adapter.alias.rolled_back", "adapter.rolled_back"),
    "traffic": ("adapter.alias.updated", "adapter.alias.updated"),
    "shadow": ("adapter.alias.updated", "adapter.alias.updated"),
    "update": ("adapter.alias.updated", "adapter.alias.updated"),
    "delete": ("adapter.alias.deleted", "adapter.alias.deleted"),
}
"""What the audit log and what webhooks call it."""


async def changed(
    session: TenantSession | ControlSession,
    registered: RegisteredRow,
    alias: AliasRow,
    from_version: int | None,
    to_version: int | None,
    why: Why,
) -> None:
    """The alias is given as it is after the change, a deleted one with the revision of its deletion."""
    await notify(session, "model")
    entry, event = TOLD[why.action]
    told = {"adapter": registered.name, "alias": alias.alias, "version": to_version, "revision": alias.revision}
    await audit.note(session, entry, registered.id, registered.project_id, **told)
    ended = to_version is None
    data: dict[str, Any] = {
        "id": registered.id,
        **told,
        "previous_version": from_version,
        "traffic": None if ended else alias.traffic,
        "shadow": None if ended else alias.shadow,
        "cause": why.cause,
        "evaluation_id": why.evaluation_id,
    }
    await outbox.emit(session, registered.project_id, event, data)
