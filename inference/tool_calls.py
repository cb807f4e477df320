"""Which of vLLM's parsers reads the tool calls of a base: told by its chat template, where that is certain.

A template renders earlier calls as the model was taught to write them, so what stands in it is what will be written.
"""

TAGGED = "<tool_call>"
OTHERS_IN_TAGS = ("<arg_key>", "<|tool_call_argument_begin|>")


def parser_of(template: str | None) -> str | None:
    """vLLM's name of the parser, or None for a template that shows no calls or calls of another kind."""
    if template is None:
        return None
    if TAGGED in template and "<function=" in template:
        return "qwen3_coder"
    if TAGGED in template and "arguments" in template and not any(each in template for each in OTHERS_IN_TAGS):
        return "hermes"
    if "[TOOL_CALLS]" in template:
        return "mistral"
    if "<|python_tag|>" in template and '"parameters"' in template:
        return "llama3_json"
    return None
