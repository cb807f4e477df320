"""What to do about each kind of problem of a line, in one sentence, by the problem's code; as the service says it."""

OTHER = "Correct the field that the message names."

FIXES = {
    "blank_line": "Remove the line; only the end of a file may have empty lines.",
    "byte_order_mark": "Save the file as UTF-8 without a byte order mark.",
    "empty_file": "Put at least one JSON object into the file, one on each line.",
    "line_too_long": "Shorten the example or split it into several.",
    "mixed_formats": "Put examples of each format into a file of their own.",
    "nul_character": "Save the file as UTF-8 text and remove NUL characters from its strings.",
    "invalid_json": "Write one complete JSON object on the line, with double quotes, and nothing after it.",
    "invalid_utf8": "Save the file as UTF-8.",
    "not_an_object": "Write the example as a JSON object, in braces.",
    "missing_messages": "Give 'messages', or 'prompt' and 'completion', or for preferences 'input' and two outputs.",
    "empty_messages": "Give the conversation's messages.",
    "invalid_messages": "Give 'messages' as a list of objects with 'role' and 'content'.",
    "unknown_role": "Use one of the roles system, developer, user, assistant, tool and function.",
    "invalid_content": "Give 'content' as a string or as a list of parts of type 'text'.",
    "empty_assistant": "Give the assistant message content or tool calls, or remove it.",
    "no_assistant_message": "Add the assistant message that is to be learned.",
    "no_trained_message": "Remove 'weight' or set it to 1 on an assistant message.",
    "invalid_weight": "Set 'weight' to 0 or 1, as a number.",
    "invalid_tool_calls": "Give each call 'function' with 'name' and, as JSON in a string, 'arguments'.",
    "invalid_tools": "Give each tool type 'function' and 'function' with a 'name'.",
    "invalid_prompt": "Give 'prompt' as a string.",
    "invalid_completion": "Give 'completion' as a string that is not empty.",
    "invalid_input": "Give 'input' as an object with 'messages'.",
    "not_an_assistant": "Give the answer the role 'assistant'.",
    "invalid_custom_id": "Give each request a 'custom_id' of its own, a string.",
    "duplicate_custom_id": "Give each request a 'custom_id' of its own.",
    "invalid_method": "Set 'method' to 'POST'.",
    "invalid_url": "Set 'url' to the endpoint of the batch, such as /v1/chat/completions.",
    "mismatched_url": "Put requests to each endpoint into a file of their own.",
    "invalid_body": "Give 'body' as the JSON object that you would send to the endpoint.",
    "missing_model": "Name the model in 'body'.",
    "too_many_requests": "Split the file; each batch takes up to 50,000 requests.",
}


def fix_of(code: str) -> str:
    return FIXES.get(code, OTHER)
