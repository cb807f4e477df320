"""Where the chat template of a base is found: in its folder, in whichever place its tokenizer keeps it."""

import json
from pathlib import Path
from typing import Any, cast

FILE = "chat_template.jinja"
OLDER = ("chat_template.json", "tokenizer_config.json")


def chat_template(folder: Path) -> str | None:
    """The default one, the newer place first. Raises ValueError where a file is not JSON."""
    file = folder / FILE
    if file.exists():
        return file.read_text()
    for name in OLDER:
        path = folder / name
        told: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        found: Any = told.get("chat_template")
        if isinstance(found, list):
            named = cast(list[dict[str, str]], found)
            found = next((each["template"] for each in named if each.get("name") == "default"), None)
        if found:
            return found
    return None
