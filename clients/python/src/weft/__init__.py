"""The `openai` package's clients, pointed at a Weft service. Every resource and type is the `openai` package's own.

`WEFT_BASE_URL` (for instance http://127.0.0.1:8000/v1) and `WEFT_API_KEY` are read where the arguments are left out;
the variables of the `openai` package are not, so that a Weft client never talks to OpenAI by accident.
"""

from weft.client import AsyncWeft, Weft

__all__ = ["AsyncWeft", "Weft"]
