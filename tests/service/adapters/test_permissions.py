"""Models shared between projects: granted and taken back by the administrator, used by the other, changed by nobody."""

import itertools
from typing import Any

import openai
import pytest

from service.adapters import registry
from service.contracts.ids import ProjectId
from tests.service.conftest import Service
from tests.service.stage import Stage


class Team:
    """Two projects of the service's own organization, the first of which has a model."""

    def __init__(self, service: Service, stage: Stage) -> None:
        (organization,) = service.call(
            stage.rows("select id from organizations where name = :n", n=service.settings.organization_name)
        )
        self.projects: list[ProjectId] = [service.call(stage.project()) for _ in range(2)]
        move = "update projects set organization_id = :o where id = any(:p) returning id"
        service.call(stage.rows(move, o=organization.id, p=self.projects))
        self.owner, self.other = (service.client(service.call(stage.key(project))) for project in self.projects)
        service.call(stage.job(self.projects[0]))
        self.model: str = service.call(stage.succeed(service.call(stage.claimed()))).fine_tuned_model


@pytest.fixture(scope="module")
def stage(service: Service) -> Stage:
    return Stage(service.resources, itertools.count(100))


@pytest.fixture
def team(service: Service, stage: Stage) -> Team:
    return Team(service, stage)


@pytest.fixture(scope="module")
def permissions(service: Service) -> Any:
    return service.client(service.settings.admin_key.get_secret_value()).fine_tuning.checkpoints.permissions


def names(client: openai.OpenAI) -> set[str]:
    return {model.id for model in client.models.list()}


def test_a_shared_model_can_be_used_and_not_changed(
    service: Service, stage: Stage, team: Team, permissions: Any
) -> None:
    assert team.model not in names(team.other)
    (granted,) = permissions.create(team.model, project_ids=[team.projects[1]])
    assert granted.object == "checkpoint.permission"
    assert team.model in names(team.other) & names(team.owner)
    assert team.other.models.retrieve(team.model).id == team.model

    async def found(project: ProjectId) -> Any:
        async with service.resources.database.control() as session:
            return await registry.find(session, project, team.model)

    # As the gateway looks it up.
    assert service.call(found(team.projects[1])).adapter_id == service.call(found(team.projects[0])).adapter_id
    with pytest.raises(openai.NotFoundError):
        team.other.models.delete(team.model)
    file = service.call(stage.file(team.projects[1]))
    with pytest.raises(openai.BadRequestError) as refused:
        team.other.fine_tuning.jobs.create(model=team.model, training_file=file)
    assert refused.value.code == "model_not_trainable"
    assert permissions.delete(granted.id, fine_tuned_model_checkpoint=team.model).deleted
    assert team.model not in names(team.other)
    with pytest.raises(openai.NotFoundError):
        team.other.models.retrieve(team.model)
    with pytest.raises(openai.NotFoundError):
        permissions.delete(granted.id, fine_tuned_model_checkpoint=team.model)


def test_listed_in_pages_and_granted_once(service: Service, stage: Stage, team: Team, permissions: Any) -> None:
    more = Team(service, stage).projects
    first = permissions.create(team.model, project_ids=more).data
    again = permissions.create(team.model, project_ids=[*more, team.projects[1]]).data
    assert {each.id for each in first} < {each.id for each in again}
    assert len(again) == 3
    listed = [each.id for each in permissions.list(team.model, limit=2, order="ascending")]
    assert sorted(listed) == sorted(each.id for each in again)
    (one,) = permissions.list(team.model, project_id=team.projects[1])
    assert one.project_id == team.projects[1]


def test_changes_are_in_the_audit_log(service: Service, stage: Stage, team: Team, permissions: Any) -> None:
    (granted,) = permissions.create(team.model, project_ids=[team.projects[1]])
    permissions.delete(granted.id, fine_tuned_model_checkpoint=team.model)
    query = "select type, project_id, actor->>'type' from audit_logs where subject = :model order by created_at"
    entries = [tuple(row) for row in service.call(stage.rows(query, model=team.model))]
    kinds = ("checkpoint.permission.created", "checkpoint.permission.deleted")
    assert entries == [(kind, team.projects[1], "admin_key") for kind in kinds]


def test_a_deleted_model_is_shared_no_more(team: Team, permissions: Any) -> None:
    permissions.create(team.model, project_ids=[team.projects[1]])
    team.owner.models.delete(team.model)
    assert team.model not in names(team.other)
    with pytest.raises(openai.NotFoundError):
        permissions.list(team.model)


def test_unknown_models_and_projects_and_other_organizations(
    service: Service, stage: Stage, team: Team, permissions: Any
) -> None:
    outside = service.call(stage.project())
    for project in (outside, "proj_unknown"):
        with pytest.raises(openai.BadRequestError) as refused:
            permissions.create(team.model, project_ids=[project])
        assert refused.value.code == "project_not_found"
    with pytest.raises(openai.NotFoundError):
        permissions.create("ft:weft-tiny:x::unknown0", project_ids=[team.projects[1]])
    for call in (permissions.create, permissions.list):
        own = team.owner.fine_tuning.checkpoints.permissions
        with pytest.raises(openai.APIStatusError) as refused:
            getattr(own, call.__name__)(team.model, **({"project_ids": ["x"]} if call.__name__ == "create" else {}))
        assert refused.value.status_code in {401, 403}
