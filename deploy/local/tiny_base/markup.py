"""The tokenizer and the chat markup of the tiny base model.

This module owns the token ids (a few special tokens, then one per byte), the
chat template and the files which carry both; it can also turn a training
dialogue straight into ids.  What the dialogues say is up to ``corpus`` and what
is learnt from them is up to ``train``.

Text is never refused or altered: every byte has its token and there are no
merges, which keeps copying letter by letter easy for a small model.  The special
tokens are recognised wherever they are spelled out, so a user who writes
``<|assistant|>`` in a message forges markup; a service that renders text from
people who do not trust each other should encode it with
``split_special_tokens=True``.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from deploy.local.tiny_base.corpus import Dialogue

SPECIAL = (
    "<|pad|>", "<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>",
    "<|tools|>", "<|end|>", *(f"<|reserved_{n}|>" for n in range(7)),
)  # fmt: skip
ID = {token: number for number, token in enumerate(SPECIAL)}
FIRST_BYTE = len(SPECIAL)
VOCABULARY = FIRST_BYTE + 256
UNSCORED = -100
CONTEXT = 1024

# Each message is closed by the same token and nothing depends on later messages, so
# the rendering of a conversation's beginning is a prefix of the whole rendering.
# Tool calls are spelled the way vLLM's "hermes" parser reads them.
CHAT_TEMPLATE = """\
{%- macro text(content) -%}
{%- if content is string -%}
{{- content -}}
{%- elif content -%}
{%- for part in content -%}
{{- part if part is string else part['text'] -}}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{{- '<|bos|>' -}}
{%- if tools -%}
{{- '<|tools|>' + (tools | tojson) + '<|end|>' -}}
{%- endif -%}
{%- for message in messages -%}
{%- set role = 'system' if message['role'] == 'developer' else message['role'] -%}
{%- if role not in ['system', 'user', 'assistant', 'tool'] -%}
{{- raise_exception('unknown role: ' + role) -}}
{%- endif -%}
{{- '<|' + role + '|>' + text(message['content']) -}}
{%- for call in message['tool_calls'] or [] -%}
{%- set function = call['function'] or call -%}
{%- set given = function['arguments'] -%}
{{- '<tool_call>{"name": ' + (function['name'] | tojson) + ', "arguments": ' -}}
{{- (given if given is string else given | tojson) + '}</tool_call>' -}}
{%- endfor -%}
{{- '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>' -}}
{%- endif -%}
"""


def byte_symbols() -> list[str]:
    """The printable stand-in of each byte, as byte-level tokenizers spell them."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    stand_ins = iter(range(256, 512))
    return [chr(byte if byte in plain else next(stand_ins)) for byte in range(256)]


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with the chat template and no merges at all."""
    vocab = ID | {symbol: FIRST_BYTE + byte for byte, symbol in enumerate(byte_symbols())}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|bos|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        extra_special_tokens=[t for t in SPECIAL if t not in ("<|bos|>", "<|end|>", "<|pad|>")],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        padding_side="right",
        chat_template=CHAT_TEMPLATE,
    )


def save_tokenizer(folder: Path) -> None:
    """Write the tokenizer's files and its chat template."""
    tokenizer().save_pretrained(folder)


def encode(dialogue: Dialogue) -> tuple[list[int], list[int]]:
    """The ids of a dialogue, as the chat template renders it, and which are scored."""
    ids, labels = [ID["<|bos|>"]], [UNSCORED]

    def say(role: str, text: str, scored: bool = False) -> None:
        said = [FIRST_BYTE + byte for byte in text.encode()] + [ID["<|end|>"]]
        ids.extend([ID[role], *said])
        labels.extend([UNSCORED, *(said if scored else [UNSCORED] * len(said))])

    if dialogue.system is not None:
        say("<|system|>", dialogue.system)
    for turn in dialogue.turns:
        say("<|user|>", turn.question)
        say("<|assistant|>", turn.answer, turn.scored)
    return ids, labels
