"""What vLLM 0.32 sends for a response of three tokens, in both forms, as its own classes print it. See `captured`."""

BEGUN = (
    b'{"id":"resp_1","created_at":1,"incomplete_details":null,"instructions":null,"metadata":null,"mod'
    b'el":"MODEL","object":"response","output":[],"parallel_tool_calls":true,"temperature":1.0,"tool_c'
    b'hoice":"none","tools":[],"top_p":1.0,"background":false,"max_output_tokens":100,"max_tool_calls"'
    b':null,"previous_response_id":null,"prompt":null,"reasoning":null,"service_tier":"auto","status":'
    b'"in_progress","text":null,"top_logprobs":null,"truncation":"disabled","usage":null,"user":null,"'
    b'presence_penalty":0.0,"frequency_penalty":0.0,"kv_transfer_params":null,"ec_transfer_params":nul'
    b'l,"input_messages":null,"output_messages":null}'
)

WHOLE = (
    b'{"id":"resp_1","created_at":1,"incomplete_details":null,"instructions":null,"metadata":null,"mod'
    b'el":"MODEL","object":"response","output":[{"id":"msg_1","content":[{"annotations":[],"text":"He '
    b'said \\"usage\\":{}!","type":"output_text","logprobs":null}],"role":"assistant","status":"complete'
    b'd","type":"message","phase":null}],"parallel_tool_calls":true,"temperature":1.0,"tool_choice":"n'
    b'one","tools":[],"top_p":1.0,"background":false,"max_output_tokens":100,"max_tool_calls":null,"pr'
    b'evious_response_id":null,"prompt":null,"reasoning":null,"service_tier":"auto","status":"complete'
    b'd","text":null,"top_logprobs":null,"truncation":"disabled","usage":{"input_tokens":6,"input_toke'
    b'ns_details":{"cached_tokens":0,"cache_write_tokens":0,"input_tokens_per_turn":[],"cached_tokens_'
    b'per_turn":[]},"output_tokens":3,"output_tokens_details":{"reasoning_tokens":0,"tool_output_token'
    b's":0,"output_tokens_per_turn":[],"tool_output_tokens_per_turn":[]},"total_tokens":9},"user":null'
    b',"presence_penalty":0.0,"frequency_penalty":0.0,"kv_transfer_params":null,"ec_transfer_params":n'
    b'ull,"input_messages":null,"output_messages":null}'
)


def _event(kind: bytes, members: bytes) -> bytes:
    return b"event: " + kind + b"\ndata: {" + members + b',"type":"' + kind + b'"}\n\n'


def _delta(number: int, text: bytes) -> bytes:
    members = b'"content_index":0,"delta":"%b","item_id":"msg_1","logprobs":[],"output_index":0,"sequence_number":%d'
    return _event(b"response.output_text.delta", members % (text, number))


STREAM = (
    _event(b"response.created", b'"response":' + BEGUN + b',"sequence_number":0'),
    _event(b"response.in_progress", b'"response":' + BEGUN + b',"sequence_number":1'),
    _event(
        b"response.output_item.added",
        b'"item":{"id":"msg_1","content":[],"role":"assistant","status":"in_progress","type":"message"},'
        b'"output_index":0,"sequence_number":2',
    ),
    _event(
        b"response.content_part.added",
        b'"content_index":0,"item_id":"msg_1","output_index":0,'
        b'"part":{"annotations":[],"text":"","type":"output_text","logprobs":[]},"sequence_number":3',
    ),
    _delta(4, b"He said "),
    _delta(5, b'\\"usage\\":{}'),
    _delta(6, b"!"),
    _event(
        b"response.output_text.done",
        b'"content_index":0,"item_id":"msg_1","logprobs":[],"output_index":0,"sequence_number":7,'
        b'"text":"He said \\"usage\\":{}!"',
    ),
    _event(b"response.completed", b'"response":' + WHOLE + b',"sequence_number":8'),
)
