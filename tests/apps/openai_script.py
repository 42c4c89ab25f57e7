"""An agent without tracing code: OpenAI's client alone."""

from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

client = OpenAI()
messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Will it rain in Lyon?"}]
answer = client.chat.completions.create(model="gpt-4o-mini", messages=messages)
assert answer.choices[0].message.tool_calls
