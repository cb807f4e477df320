"""What vLLM 0.32 sent, byte for byte, for one short request in each form. `MODEL` stands where it printed the model.

Taken from its OpenAI server over a random tiny model: `usage` in every event because `continuous_usage_stats` was asked
for, and the same stream without it.
"""

CHAT_HEAD = b'data: {"id":"chatcmpl-req_0","object":"chat.completion.chunk","created":1795461051,"model":"MODEL",'

CHAT_COUNTED = (
    CHAT_HEAD
    + b'"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],'
    b'"usage":{"prompt_tokens":6,"total_tokens":6,"completion_tokens":0,"completion_tokens_details":null},'
    b'"prompt_token_ids":null,"prompt_text":null}\n\n',
    CHAT_HEAD + b'"choices":[{"index":0,"delta":{"content":"He said "},"logprobs":null,"finish_reason":null,'
    b'"token_ids":null}],"usage":{"prompt_tokens":6,"total_tokens":7,"completion_tokens":1,'
    b'"completion_tokens_details":null}}\n\n',
    CHAT_HEAD + b'"choices":[{"index":0,"delta":{"content":"\\"usage\\":{}"},"logprobs":null,"finish_reason":null,'
    b'"token_ids":null}],"usage":{"prompt_tokens":6,"total_tokens":8,"completion_tokens":2,'
    b'"completion_tokens_details":null}}\n\n',
    CHAT_HEAD + b'"choices":[{"index":0,"delta":{"content":"!"},"logprobs":null,"finish_reason":"length",'
    b'"stop_reason":null,"token_ids":null}],"usage":{"prompt_tokens":6,"total_tokens":9,"completion_tokens":3,'
    b'"completion_tokens_details":null}}\n\n',
    CHAT_HEAD + b'"choices":[],"usage":{"prompt_tokens":6,"total_tokens":9,"completion_tokens":3},'
    b'"system_fingerprint":"vllm-0.32.0-7ceb7949"}\n\n',
    b"data: [DONE]\n\n",
)

CHAT_PLAIN = (
    CHAT_HEAD
    + b'"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],'
    b'"prompt_token_ids":null,"prompt_text":null}\n\n',
    CHAT_HEAD + b'"choices":[{"index":0,"delta":{"content":"He said "},"logprobs":null,"finish_reason":null,'
    b'"token_ids":null}]}\n\n',
    CHAT_HEAD + b'"choices":[{"index":0,"delta":{"content":"\\"usage\\":{}"},"logprobs":null,"finish_reason":null,'
    b'"token_ids":null}]}\n\n',
    CHAT_HEAD + b'"choices":[{"index":0,"delta":{"content":"!"},"logprobs":null,"finish_reason":"length",'
    b'"stop_reason":null,"token_ids":null}]}\n\n',
    CHAT_COUNTED[4],
    b"data: [DONE]\n\n",
)

CHAT_WHOLE = (
    b'{"id":"chatcmpl-req_0","object":"chat.completion","created":1795461051,"model":"MODEL","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"He said \\"usage\\":{}!","refusal":null,"annotations":null,"audio":null,'
    b'"function_call":null,"reasoning":null},"logprobs":null,"finish_reason":"length","stop_reason":null,'
    b'"token_ids":null,"routed_experts":null}],"service_tier":null,"system_fingerprint":"vllm-0.32.0-7ceb7949",'
    b'"usage":{"prompt_tokens":6,"total_tokens":9,"completion_tokens":3,"prompt_tokens_details":null,'
    b'"completion_tokens_details":null},"prompt_logprobs":null,"prompt_token_ids":null,"prompt_text":null,'
    b'"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}'
)

TEXT_HEAD = b'data: {"id":"cmpl-req_0","object":"text_completion","created":1795461078,"model":"MODEL",'

# Two prompts of 2 and 5 tokens, two tokens each.
TEXT_COUNTED = (
    TEXT_HEAD + b'"choices":[{"index":0,"text":"i","logprobs":null,"finish_reason":null,"stop_reason":null,'
    b'"prompt_token_ids":null,"token_ids":null}],"usage":{"prompt_tokens":2,"total_tokens":3,"completion_tokens":1}}\n\n',
    TEXT_HEAD + b'"choices":[{"index":1,"text":"","logprobs":null,"finish_reason":null,"stop_reason":null,'
    b'"prompt_token_ids":null,"token_ids":null}],"usage":{"prompt_tokens":5,"total_tokens":6,"completion_tokens":1}}\n\n',
    TEXT_HEAD + b'"choices":[{"index":0,"text":"","logprobs":null,"finish_reason":"length","stop_reason":null,'
    b'"prompt_token_ids":null,"token_ids":null}],"usage":{"prompt_tokens":2,"total_tokens":4,"completion_tokens":2}}\n\n',
    TEXT_HEAD + b'"choices":[{"index":1,"text":"","logprobs":null,"finish_reason":"length","stop_reason":null,'
    b'"prompt_token_ids":null,"token_ids":null}],"usage":{"prompt_tokens":5,"total_tokens":7,"completion_tokens":2}}\n\n',
    TEXT_HEAD + b'"choices":[],"usage":{"prompt_tokens":7,"total_tokens":11,"completion_tokens":4},'
    b'"system_fingerprint":"vllm-0.32.0-7ceb7949"}\n\n',
    b"data: [DONE]\n\n",
)

TOO_LONG = (
    b'{"error":{"message":"This model\'s maximum context length is 1024 tokens. However, your prompt contains at least '
    b"1025 input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the "
    b'input prompt. (parameter=input_tokens, value=1025)","type":"BadRequestError","param":"input_tokens","code":400}}'
)
BAD_TEMPERATURE = (
    b"{\"error\":{\"message\":\"1 validation error:\\n  {'type': 'float_parsing', 'loc': 'body.temperature', 'msg': "
    b"'Input should be a valid number, unable to parse string as a number', 'input': 'hot'}\",\"type\":\"Bad Request\","
    b'"param":"body.temperature","code":400}}'
)
UNKNOWN_MODEL = (
    b'{"error":{"message":"The model `nope` does not exist. Valid aliases: weft-tiny, 0123456789abcdef.",'
    b'"type":"NotFoundError","param":"model","code":404}}'
)
FAILED_EVENT = (
    b'data: {"error": {"message": "Internal server error", "type": "InternalServerError", '
    b'"param": null, "code": 500}}\n\n'
)
