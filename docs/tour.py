"""The life of an adapter through `weft`: python tour.py train.jsonl held-out.jsonl (WEFT_API_KEY, WEFT_BASE_URL)"""

import json
import sys
import tempfile

from weft import Weft

client = Weft()
train, held_out = (client.files.upload(path, "fine-tune").id for path in sys.argv[1:])
questions = [json.loads(line)["messages"][:-1] for line in open(sys.argv[2])][:5]


def learn(epochs: int) -> None:
    client.fine_tuning.jobs.create_and_wait(
        model="weft-tiny", training_file=train, validation_file=held_out, adapter="tour", seed=1,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": epochs, "batch_size": 8}}},
        on_event=lambda event: print(event.message),
    )  # fmt: skip


def ask(model: str) -> tuple[str, list[str | None]]:
    answers = [client.chat.completions.create(model=model, messages=each, temperature=0) for each in questions]
    return answers[0].model, [answer.choices[0].message.content for answer in answers]


learn(epochs=1)
client.adapters.promote("tour@v1", "prod")
first = ask("tour@prod")
learn(epochs=2)
client.adapters.split("tour@prod", {1: 90, 2: 10})
print("canary:", client.adapters.aliases.retrieve("tour", "prod").traffic, ask("tour@prod"))
client.adapters.promote("tour@v2", "prod")
second = ask("tour@prod")
assert client.adapters.rollback("tour@prod").version == 1 and ask("tour@prod") == first != second
client.adapters.pull("tour@v2", folder := tempfile.mkdtemp() + "/v2")
client.adapters.push(folder, "tour-copy")
assert ask("tour-copy@v1") == ("tour-copy@v1", second[1])
print("the copy says what the original says:", second[1][0])
