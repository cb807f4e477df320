"""The base models an operator allows, as the service needs to know them. Loading them is the trainer's and vLLM's."""

from pydantic import BaseModel, ConfigDict, Field


class BaseModelInfo(BaseModel):
    """Facts of one base model, read once from its `config.json` and tokenizer by whoever deploys it.

    Tenants name a base by `name` only; `source` is a local folder or a hub id chosen by the operator.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="Public id, never with '/' or ':'.")
    source: str
    fingerprint: str = Field(description="sha256 over config.json and the weight files' hashes or hub revision.")
    chat_template_sha256: str | None
    architecture: str = Field(description="First entry of config.architectures, for instance LlamaForCausalLM.")
    hidden_size: int = Field(gt=0)
    context_length: int = Field(gt=0, description="Tokens that one sequence may hold.")
    longest_token: int | None = Field(
        default=None, gt=0, description="Characters of the longest token, where known: none stands for more text."
    )
    tokenizer: str | None = Field(
        default=None, description="Its tokenizer.json, where the service can read it: it counts the tokens of files."
    )
    parameters: int | None = Field(default=None, description="Number of weights, where known.")
