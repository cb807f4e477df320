"""Which fields of a completion request may pass to vLLM, as data.

vLLM takes any field and obeys more of them than a tenant may use: prompts as serialised tensors, media by URL,
templates as code, another tenant's cache. So only what is listed here passes. The tests compare these lists with vLLM's
own request classes: a release that adds a field has to be looked at.
"""

from typing import Final

_BOTH: Final = frozenset(
    {
        "add_special_tokens", "allowed_token_ids", "bad_words", "echo", "frequency_penalty", "ignore_eos",
        "include_stop_str_in_output", "logit_bias", "logprob_token_ids", "logprobs", "max_tokens", "min_p",
        "min_tokens", "model", "n", "presence_penalty", "prompt_logprobs", "repetition_detection",
        "repetition_penalty", "response_format", "return_token_ids", "return_tokens_as_token_ids", "seed",
        "skip_special_tokens", "spaces_between_special_tokens", "stop", "stop_token_ids", "stream", "stream_interval",
        "stream_options", "structured_outputs", "temperature", "thinking_token_budget", "top_k", "top_p",
        "truncate_prompt_tokens", "truncation_side",
    }
)  # fmt: skip

CHAT: Final = _BOTH | {
    "add_generation_prompt", "chat_template_kwargs", "continue_final_message", "include_reasoning",
    "max_completion_tokens", "messages", "parallel_tool_calls", "reasoning_effort", "tool_choice", "tools",
    "top_logprobs",
}  # fmt: skip

COMPLETION: Final = _BOTH | {"prompt", "suffix"}

RESPONSE: Final = frozenset(
    {
        "chat_template_kwargs", "frequency_penalty", "ignore_eos", "include", "include_reasoning",
        "include_stop_str_in_output", "input", "instructions", "logit_bias", "max_output_tokens", "max_tool_calls",
        "metadata", "min_p", "model", "parallel_tool_calls", "presence_penalty", "reasoning", "repetition_penalty",
        "seed", "service_tier", "skip_special_tokens", "stop", "stop_token_ids", "stream", "stream_options",
        "structured_outputs", "temperature", "text", "tool_choice", "tools", "top_k", "top_logprobs", "top_p",
        "truncation", "user",
    }
)  # fmt: skip
"""Of `/v1/responses`. Unlike the others, its answers repeat metadata, user and service tier."""

EMBEDDING: Final = frozenset({"dimensions", "encoding_format", "input", "model"})

IGNORED: Final = frozenset(
    {
        "access_programs", "metadata", "prediction", "prompt_cache_key", "prompt_cache_options",
        "prompt_cache_retention", "safety_identifier", "service_tier", "store", "user",
        # Ours to set, per tenant; what the client says is not even looked at.
        "cache_salt",
    }
)  # fmt: skip
"""Taken from OpenAI's clients without effect: hints, and labels for OpenAI's own records."""

REFUSED: Final = frozenset(
    {
        "chat_template", "documents", "ec_transfer_params", "kv_transfer_params", "length_penalty", "media_io_kwargs",
        "mm_payload", "mm_processor_kwargs", "priority", "prompt_embeds", "request_id", "return_mm_kwargs",
        "return_prompt_text", "return_token_offsets", "routed_experts_prompt_start", "session_id", "use_beam_search",
        "vllm_xargs", "watermarking",
    }
)  # fmt: skip
"""vLLM's own fields that no tenant may set. Refused as any unknown field is; listed so that each one was decided on."""

RESPONSE_REFUSED: Final = frozenset({"enable_response_messages", "previous_input_messages"})
"""The same of `/v1/responses` alone."""

UNSUPPORTED: Final = frozenset(
    {
        "audio", "background_options", "best_of", "function_call", "functions", "image", "modalities", "moderation",
        "verbosity", "web_search_options",
    }
)  # fmt: skip
"""OpenAI's own fields that nothing here can obey. Refused in other words than a typing error."""

STATEFUL: Final = frozenset({"background", "context_management", "conversation", "previous_response_id", "prompt"})
"""What in `/v1/responses` would need the service to keep responses or prompts. Null and false pass."""

ITEMS: Final = {
    "message": frozenset({"content", "id", "phase", "role", "status", "type"}),
    "function_call": frozenset({"arguments", "call_id", "id", "name", "namespace", "status", "type"}),
    "function_call_output": frozenset({"call_id", "id", "output", "status", "type"}),
    "reasoning": frozenset({"content", "encrypted_content", "id", "status", "summary", "type"}),
}
"""Items of a response's input and what each may hold. Others name things kept elsewhere, or have them fetched."""

STREAM_OPTIONS: Final = frozenset({"include_usage", "continuous_usage_stats", "include_obfuscation"})
TEMPLATE_SWITCHES: Final = frozenset({"enable_thinking", "thinking"})
"""All of `chat_template_kwargs` that passes, true or false: anything else could replace what the template was given."""

TEXT_PARTS: Final = frozenset({"text", "refusal", "input_text", "output_text", "thinking"})
PART_KEYS: Final = frozenset({"type", "text", "refusal", "thinking", "cache_control"})
OUTPUT_KEYS: Final = PART_KEYS | {"annotations", "logprobs"}
"""Content parts are text. vLLM would fetch media from any URL and load `prompt_embeds` from a part.

`OUTPUT_KEYS` are those of parts of an earlier answer of `/v1/responses`, which clients send back.
"""

MAX_CHOICES: Final = 128
MAX_SEQUENCES: Final = 1024
"""Choices times prompts of one request."""
