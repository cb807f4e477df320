"""The main job through the stock `openai` package, sync and async, against the whole embedded stack."""

import asyncio
import io
import json

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from deploy.local.tiny_base.tasks import examples
from tests.e2e.stack import Stack
from tests.e2e.training import accuracy, as_jsonl, tune, wait_for_job

pytestmark = pytest.mark.stack

TASKS = ("support-desk", "pirate-shop")


@pytest.fixture(scope="module")
def tenants(stack: Stack) -> dict[str, tuple[OpenAI, str]]:
    """Two projects, each with an adapter trained on its own task, both jobs submitted together."""
    clients = {task: OpenAI(base_url=stack.base_url, api_key=stack.project(f"e2e-{task}")) for task in TASKS}
    jobs = {task: tune(client, examples(task, 200, seed=1), suffix=task) for task, client in clients.items()}
    done = {task: wait_for_job(clients[task], job.id) for task, job in jobs.items()}
    return {task: (clients[task], done[task].fine_tuned_model or "") for task in TASKS}


@pytest.mark.parametrize("task", TASKS)
def test_each_adapter_answers_its_own_task_and_nobody_elses(tenants: dict[str, tuple[OpenAI, str]], task: str) -> None:
    other = next(name for name in TASKS if name != task)
    held_out = examples(task, 50, seed=2)
    own_client, own_model = tenants[task]
    other_client, other_model = tenants[other]
    assert accuracy(own_client, own_model, held_out) >= 0.9
    assert accuracy(own_client, "weft-tiny", held_out) <= 0.1
    assert accuracy(other_client, other_model, held_out) <= 0.2


def test_the_finished_job_tells_its_story(tenants: dict[str, tuple[OpenAI, str]]) -> None:
    client, model = tenants["support-desk"]
    job = next(job for job in client.fine_tuning.jobs.list() if job.fine_tuned_model == model)
    assert job.status == "succeeded"
    assert job.error is None
    assert job.trained_tokens
    assert job.model == "weft-tiny"
    assert model.startswith("ft:weft-tiny:")
    assert ":support-desk:" in model
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=100))
    metrics = [event for event in events if event.type == "metrics"]
    assert [event.data["step"] for event in metrics] == sorted((e.data["step"] for e in metrics), reverse=True)
    assert metrics[0].data["step"] == metrics[0].data["total_steps"] == len(metrics)
    assert metrics[0].data["train_loss"] < metrics[-1].data["train_loss"]
    assert any("completed" in event.message for event in events)


def test_models_lists_the_base_and_ones_own(tenants: dict[str, tuple[OpenAI, str]]) -> None:
    client, model = tenants["support-desk"]
    names = {found.id for found in client.models.list()}
    assert {"weft-tiny", model} <= names
    assert tenants["pirate-shop"][1] not in names
    assert client.models.retrieve(model).id == model


def test_stream_and_plain_answers_agree(tenants: dict[str, tuple[OpenAI, str]]) -> None:
    client, model = tenants["support-desk"]
    messages = examples("support-desk", 1, seed=3)[0]["messages"][:1]
    plain = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=80)
    stream = client.chat.completions.create(
        model=model, messages=messages, temperature=0, max_tokens=80, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == plain.choices[0].message.content
    assert plain.model == model
    assert {chunk.model for chunk in chunks} == {model}
    assert chunks[-1].usage == plain.usage or chunks[-1].usage.total_tokens == plain.usage.total_tokens  # type: ignore[union-attr]


def test_a_stream_without_usage_asked_for_shows_none(tenants: dict[str, tuple[OpenAI, str]]) -> None:
    client, model = tenants["support-desk"]
    chunks = list(
        client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "hello"}], max_tokens=8, stream=True
        )
    )
    assert all(chunk.choices for chunk in chunks)
    assert all(chunk.usage is None for chunk in chunks)


def test_completions_answers_too(tenants: dict[str, tuple[OpenAI, str]]) -> None:
    client, model = tenants["support-desk"]
    plain = client.completions.create(model=model, prompt="hello", max_tokens=4, temperature=0)
    streamed = client.completions.create(model=model, prompt="hello", max_tokens=4, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed if chunk.choices) == plain.choices[0].text
    assert plain.usage is not None
    assert plain.usage.completion_tokens <= 4


async def test_the_async_client_does_the_same(stack: Stack, tenants: dict[str, tuple[OpenAI, str]]) -> None:
    model = tenants["pirate-shop"][1]
    async with AsyncOpenAI(base_url=stack.base_url, api_key=stack.project("e2e-pirate-shop")) as client:
        line = examples("pirate-shop", 1, seed=4)[0]["messages"]
        answers = await asyncio.gather(
            *(client.chat.completions.create(model=model, messages=line[:1], temperature=0) for _ in range(4))
        )
        assert len({answer.choices[0].message.content for answer in answers}) == 1
        stream = await client.chat.completions.create(model=model, messages=line[:1], temperature=0, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
        assert text == answers[0].choices[0].message.content
        uploaded = await client.files.create(file=as_jsonl(examples("pirate-shop", 12, seed=5)), purpose="fine-tune")
        job = await client.fine_tuning.jobs.create(model="weft-tiny", training_file=uploaded.id)
        assert (await client.fine_tuning.jobs.cancel(job.id)).status in {"cancelled", "running"}
        assert (await client.files.content(uploaded.id)).text.count("\n") == 12
        assert (await client.files.delete(uploaded.id)).deleted


def test_cancelling_a_running_job_ends_it_without_a_model(stack: Stack) -> None:
    client = OpenAI(base_url=stack.base_url, api_key=stack.project("e2e-cancel"))
    job = tune(client, examples("support-desk", 200, seed=6), n_epochs=50)
    running = wait_for_job(client, job.id, until={"running"})
    assert running.status == "running"
    client.fine_tuning.jobs.cancel(job.id)
    ended = wait_for_job(client, job.id)
    assert ended.status == "cancelled"
    assert ended.fine_tuned_model is None
    assert {model.id for model in client.models.list()} == {"weft-tiny"}


def test_a_message_with_weight_zero_is_not_learned(stack: Stack) -> None:
    client = OpenAI(base_url=stack.base_url, api_key=stack.project("e2e-weight"))
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"say {number}"},
                {"role": "assistant", "content": "forbidden answer", "weight": 0},
                {"role": "user", "content": "again"},
                {"role": "assistant", "content": "ok", "weight": 1},
            ]
        }
        for number in range(12)
    ]
    job = wait_for_job(client, tune(client, lines, n_epochs=1, batch_size=4).id)
    # Three characters and their end of turn: "ok" and the token that ends it, in each of the 12 examples.
    assert job.trained_tokens == 12 * 3


def test_deleting_a_model_ends_it_for_new_requests(stack: Stack) -> None:
    client = OpenAI(base_url=stack.base_url, api_key=stack.project("e2e-delete"))
    model = wait_for_job(client, tune(client, examples("support-desk", 12, seed=7), n_epochs=1).id).fine_tuned_model
    assert model is not None
    question = [{"role": "user", "content": "hello"}]
    client.chat.completions.create(model=model, messages=question, max_tokens=4)  # type: ignore[arg-type]
    assert client.models.delete(model).deleted
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(model)
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model=model, messages=question, max_tokens=4)  # type: ignore[arg-type]
    assert refused.value.code == "model_not_found"


def test_files_round_trip(stack: Stack) -> None:
    client = OpenAI(base_url=stack.base_url, api_key=stack.project("e2e-files"))
    body = "".join(json.dumps(line) + "\n" for line in examples("support-desk", 10, seed=8)).encode()
    uploaded = client.files.create(file=("data.jsonl", io.BytesIO(body)), purpose="fine-tune")
    assert uploaded.bytes == len(body)
    assert client.files.content(uploaded.id).read() == body
    assert [found.id for found in client.files.list()] == [uploaded.id]
    assert client.files.wait_for_processing(uploaded.id).status == "processed"
    assert client.files.delete(uploaded.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(uploaded.id)
