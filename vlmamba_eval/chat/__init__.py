"""Chat with a model behind an OpenAI-compatible server: many requests at once, answered in order.

One client for served models and for judges. What it promises, whatever the server does:

- every request gives one `Reply` or one `Failure`, in the order of the requests, and never an exception;
- what may pass (dropped connections, 5xx, cut or malformed bodies, time-outs) is tried again, a limited number of times
  with growing waits; `Retry-After` and the rate-limit headers hold back all requests, not only the one they came with;
- a server that is gone fails each further request after one try, until it answers again;
- nothing that a server sends is unbounded in memory, and no waiting in time;
- the key is read from the environment and stands in no message, answer or telemetry, even if the server sends it back.

The wire format is https://platform.openai.com/docs/api-reference/chat; vLLM, SGLang, llama.cpp and `transformers serve`
speak it with extensions of their own (`Dialect`).

server    whom to ask, how patiently, and with which fields
client    many requests at once: order, new tries, pauses
wire      what a server sends, read with suspicion
usage     what was used, for the telemetry
"""

from vlmamba_eval.chat.client import Chat
from vlmamba_eval.chat.server import Decoding, Reply, Request, Server

__all__ = ["Chat", "Decoding", "Reply", "Request", "Server"]
