"""Where the chat template of a base is found: in its folder, in whichever place its tokenizer keeps it."""

import json
from pathlib import Path

FILE = "chat_template.jinja"
OLDER = ("chat_template.json", "tokenizer_config.json")


def chat_template(folder: Path) -> str | None:
    """The default one, the newer place first. Raises ValueError where a file is not JSON."""
    file = folder / FILE
    if file.exists():
        return file.read_text()
    for name in OLDER:
        path = folder / name
        found = json.loads(path.read_text()).get("chat_template") if path.exists() else None
        if isinstance(found, list):
            found = next((entry["template"] for entry in found if entry.get("name") == "default"), None)
        if found:
            return found
    return None
