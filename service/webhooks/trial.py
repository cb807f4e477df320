"""A sample event, sent while its sender waits, so that an endpoint can be tried before anything happens."""

from service.contracts.ids import ProjectId, new_webhook_event_id
from service.errors import InvalidRequest
from service.resources import Resources
from service.webhooks import endpoints
from service.webhooks.deliver import send
from service.webhooks.guard import open_sender
from service.webhooks.outbox import EVENT_TYPES, body_of


async def send_sample(resources: Resources, project: ProjectId, endpoint_id: str, event_type: str) -> int:
    """The status that the endpoint answered. Raises NotFound, and InvalidRequest where no answer came."""
    if event_type not in EVENT_TYPES:
        raise InvalidRequest(
            f"This service has no events of type '{event_type}', only {', '.join(EVENT_TYPES)}.", param="event_type"
        )
    async with resources.database.tenant(project) as session:
        endpoint = await endpoints.find(session, endpoint_id)
    event_id = new_webhook_event_id()
    body = body_of(event_id, event_type, {"id": "sample"})
    async with open_sender(resources.settings.webhooks_to_private_networks) as sender:
        outcome = await send(resources, sender, endpoint, event_id, body)
    if outcome.status is None:
        raise InvalidRequest(
            f"The endpoint could not be reached: {outcome.error}.", code="webhook_unreachable", param="url"
        )
    return outcome.status
