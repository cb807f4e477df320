"""Adapters taken along and brought here: what plain PEFT makes of an exported one, and vLLM of one that PEFT trained.

Logits are compared where both sides can be asked for them: the log-probabilities of a prompt's own tokens, and which
token is the likeliest after each.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from openai import OpenAI
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from deploy.local.tiny_base.tasks import examples
from tests.e2e.stack import Stack
from tests.e2e.training import as_jsonl, wait_for_job

pytestmark = pytest.mark.stack

PROJECT = "bring-and-take"
BASE = Path(__file__).parents[2] / "deploy" / "local" / "tiny_base" / "model"
LINES = examples("support-desk", 48, seed=3)
HELD_OUT = examples("support-desk", 12, seed=9)
FILES = ("adapter_config.json", "adapter_model.safetensors")
TOLERANCE = 0.05
"""In the mean, of a log-probability: what bfloat16 leaves of one over five layers."""
MOST = 0.8
"""Of any one. Tokens that are next to impossible are the furthest off."""
LEAD = 0.5
"""By how much a token must lead the next one for rounding not to make that the likeliest."""


@dataclass(frozen=True)
class Apart:
    """How far what is served is from what is computed here, over the tokens of some prompts."""

    mean: float
    most: float
    leading: int
    """Places where one token leads by more than LEAD."""
    other_choices: int
    """Those of them where another one is served as the likeliest."""

    def same(self) -> bool:
        return self.mean < TOLERANCE and self.most < MOST and self.other_choices == 0 < self.leading


@dataclass
class Api:
    http: httpx.Client
    client: OpenAI

    def ask(self, method: str, path: str, **options: Any) -> Any:
        answer = self.http.request(method, path, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def settled(self, path: str) -> dict[str, Any]:
        deadline = time.monotonic() + 240
        while (found := self.ask("GET", path))["status"] in ("queued", "running"):
            assert time.monotonic() < deadline, found
            time.sleep(0.3)
        return found

    def bring(self, name: str, folder: Path) -> dict[str, Any]:
        """Uploads what PEFT wrote and imports it."""
        files = {
            file: self.client.files.create(file=(file, (folder / file).read_bytes()), purpose="user_data").id
            for file in FILES
        }
        return self.imported(adapter=name, files=files)

    def imported(self, **body: Any) -> dict[str, Any]:
        begun = self.ask("POST", "/adapters/imports", json=body)
        done = self.settled(f"/adapters/imports/{begun['id']}")
        assert done["status"] == "succeeded", done
        return done

    def take(self, name: str, version: int, kind: str, folder: Path) -> Path:
        """Exports a version and downloads it."""
        begun = self.ask("POST", f"/adapters/{name}/versions/{version}/exports", json={"format": kind})
        done = self.settled(f"/adapters/exports/{begun['id']}")
        assert done["status"] == "succeeded", done
        folder.mkdir()
        for file in done["files"]:
            answer = self.http.get(f"/adapters/exports/{done['id']}/files/{file['path']}")
            answer.raise_for_status()
            (folder / file["path"]).write_bytes(answer.content)
        return folder

    def served(self, model: str, tokens: list[int]) -> tuple[Tensor, Tensor]:
        """What vLLM gives each token of a prompt from the second on, and which it takes to be the likeliest there."""
        body = {"model": model, "prompt": tokens, "max_tokens": 1, "prompt_logprobs": 1, "temperature": 0}
        told = self.ask("POST", "/completions", json=body)["choices"][0]["prompt_logprobs"][1:]
        given = [each[str(token)]["logprob"] for token, each in zip(tokens[1:], told, strict=True)]
        likeliest = [int(min(each, key=lambda token: each[token]["rank"])) for each in told]
        return torch.tensor(given), torch.tensor(likeliest)

    def says(self, model: str) -> list[str]:
        answers = []
        for line in HELD_OUT[:6]:
            told = self.client.chat.completions.create(
                model=model, messages=line["messages"][:-1], temperature=0, max_tokens=60
            )
            answers.append(told.choices[0].message.content or "")
        return answers


@pytest.fixture(scope="module")
def api(stack: Stack) -> Api:
    key = stack.project(PROJECT)
    http = httpx.Client(base_url=stack.base_url, headers={"Authorization": f"Bearer {key}"}, timeout=120)
    return Api(http, OpenAI(base_url=stack.base_url, api_key=key))


@pytest.fixture(scope="module")
def validation(api: Api) -> str:
    return api.client.files.create(file=as_jsonl(HELD_OUT), purpose="fine-tune").id


def losses(api: Api, job: str) -> list[float]:
    events = api.client.fine_tuning.jobs.list_events(job, limit=100).data
    told = [event.data or {} for event in reversed(events)]
    return [each["full_valid_loss"] for each in told if isinstance(each, dict) and each.get("full_valid_loss")]


@pytest.fixture(scope="module")
def trained(api: Api, validation: str) -> tuple[str, float]:
    """Adapter `take` with one version, and the validation loss of that."""
    file = api.client.files.create(file=as_jsonl(LINES), purpose="fine-tune").id
    body = {"model": "weft-tiny", "training_file": file, "validation_file": validation, "seed": 1}
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "learning_rate": 2e-3}}}
    job = api.ask("POST", "/fine_tuning/jobs", json={**body, "method": method})["id"]
    wait_for_job(api.client, job)
    source = {"name": "take", "from": {"type": "job", "job_id": job}}
    assert api.ask("POST", "/adapters", json=source)["latest_version"] == 1
    return file, min(losses(api, job))


def tokens_of(line: dict[str, Any]) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    return tokenizer.apply_chat_template(line["messages"], tokenize=True, return_dict=True)["input_ids"]


@torch.no_grad()
def computed(model: Any, tokens: list[int]) -> Tensor:
    """Log-probabilities of every token after each but the last of these."""
    return model(input_ids=torch.tensor([tokens])).logits[0, :-1].float().log_softmax(-1)


def apart(api: Api, model: str, local: Any) -> Apart:
    distances, other_choices, leading = [], 0, 0
    for tokens in (tokens_of(line) for line in HELD_OUT[:6]):
        (given, likeliest), ours = api.served(model, tokens), computed(local, tokens)
        distances.append((given - ours.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]).abs())
        best = ours.topk(2)
        leads = best.values[:, 0] - best.values[:, 1] > LEAD
        leading += int(leads.sum())
        other_choices += int((leads & (likeliest != best.indices[:, 0])).sum())
    every = torch.cat(distances)
    return Apart(float(every.mean()), float(every.max()), leading, other_choices)


def base_model() -> Any:
    return AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()


def test_an_exported_adapter_says_in_plain_peft_what_it_says_here(
    api: Api, trained: tuple[str, float], tmp_path: Path
) -> None:
    folder = api.take("take", 1, "peft", tmp_path / "taken")
    local = PeftModel.from_pretrained(base_model(), folder).eval()
    near, far = apart(api, "take@v1", local), apart(api, "take@v1", base_model())
    print(f"served against plain peft: {near}; against the bare base: {far}")
    assert near.same()
    assert far.mean > 4 * TOLERANCE
    assert far.other_choices > 0
    merged = api.take("take", 1, "merged", tmp_path / "whole")
    whole = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    apart_merged = apart(api, "take@v1", whole)
    print(f"served against the merged weights: {apart_merged}")
    assert apart_merged.same()
    assert AutoTokenizer.from_pretrained(merged).chat_template == AutoTokenizer.from_pretrained(BASE).chat_template
    # And back again under another name.
    again = api.bring("again", folder)
    assert (again["version"], again["changes"]) == (1, [])
    assert api.says("again") == api.says("take")


def project_id(stack: Stack) -> str:
    headers = {"Authorization": f"Bearer {stack.admin_key}"}
    found = httpx.get(f"{stack.base_url}/organization/projects", params={"name": PROJECT}, headers=headers)
    return found.json()["data"][0]["id"]


def trained_elsewhere(folder: Path) -> PeftModel:
    """As anybody would with PEFT: rank-stabilised, uneven, over the base's chat template."""
    torch.manual_seed(0)
    config = LoraConfig(
        r=8, lora_alpha=16, use_rslora=True, rank_pattern={"down_proj": 4}, target_modules="all-linear",
        task_type="CAUSAL_LM",
    )  # fmt: skip
    model = get_peft_model(base_model(), config).train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=3e-3)
    for _ in range(2):
        for line in LINES[:24]:
            ids = torch.tensor([tokens_of(line)])
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.save_pretrained(folder)
    return model.eval()


def test_an_adapter_that_peft_trained_elsewhere_is_taken_from_a_bucket_served_and_trained_on(
    stack: Stack, api: Api, validation: str, trained: tuple[str, float], tmp_path: Path
) -> None:
    local = trained_elsewhere(tmp_path / "theirs")
    project = project_id(stack)
    for file in FILES:
        stack.bucket("bring").put(f"{project}/theirs/{file}", (tmp_path / "theirs" / file).read_bytes())
    done = api.imported(adapter="brought", source=f"s3://bring/{project}/theirs")
    assert done["model"] == "brought@v1"
    print(f"converted from a bucket: {done['changes']}")
    assert done["changes"]
    near, far = apart(api, "brought", local), apart(api, "brought", base_model())
    print(f"brought along: served against plain peft: {near}; against the bare base: {far}")
    assert near.same()
    assert far.mean > 4 * TOLERANCE
    assert goes_on(api, "brought@v1", trained[0], validation) is not None


def test_training_on_begins_at_the_versions_validation_loss(
    api: Api, validation: str, trained: tuple[str, float]
) -> None:
    file, loss = trained
    begun, ended = goes_on(api, "take@v1", file, validation)
    print(f"v1 ended at {loss:.6f}; going on begins at {begun:.6f} and ends at {ended:.6f}")
    assert begun == pytest.approx(loss, abs=1e-4)
    assert ended < loss


def goes_on(api: Api, model: str, file: str, validation: str) -> tuple[float, float]:
    """Validation loss of a job that changes nothing, which is where a job begins, and of one that learns."""
    found: list[float] = []
    for rate, epochs in ((1e-12, 1), (5e-4, 4)):
        settings = {"n_epochs": epochs, "learning_rate": rate}
        method = {"type": "supervised", "supervised": {"hyperparameters": settings}}
        body = {"model": model, "training_file": file, "validation_file": validation, "method": method, "seed": 1}
        job = api.ask("POST", "/fine_tuning/jobs", json=body)["id"]
        wait_for_job(api.client, job)
        told = losses(api, job)
        found.append(told[0] if rate < 1e-9 else min(told))
    assert found[1] < found[0]
    return found[0], found[1]
