"""Applications with a real instrumentation, each run in its own process.

    python -m support.instrumented APP INSTRUMENTOR URL

APP is one of APPS, INSTRUMENTOR `module:Class` or `none`, URL that of the simulated OpenAI API. The environment names
the destination of the traces. Packages that the environment of the tests lacks are imported by name.
"""

import importlib
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from mlflow_otlp_exporter import configure, shutdown, trace_context, traced

SYSTEM = "You are a terse travel assistant."
QUESTION = "What is the weather in Paris and London?"
MODEL = "gpt-4o-mini"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
DESCRIPTION = "Current weather in a city."


def weather_in(city: str) -> str:
    """Current weather in a city."""
    return f"{city}: 21 C, sunny"


@traced(kind="TOOL")
def get_weather(city: str) -> str:
    return weather_in(city)


def openai_calls(url: str) -> None:
    """Call each kind of OpenAI's API, in a trace of its own."""
    openai = importlib.import_module("openai")
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    system, user = {"role": "system", "content": SYSTEM}, {"role": "user", "content": "hello"}
    question = {"role": "user", "content": QUESTION}
    function = {"name": "get_weather", "description": DESCRIPTION, "parameters": SCHEMA}
    tools = [{"type": "function", "function": function}]
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    create = client.chat.completions.create

    create(model=MODEL, messages=[system, user], temperature=0.5)
    _agent(create, [system, question], tools)
    list(create(model=MODEL, messages=[system, user], **streamed))
    list(create(model=MODEL, messages=[system, question], tools=tools, **streamed))
    flat = [{"type": "function", "strict": False, **function}]
    client.responses.create(model=MODEL, input="hello", instructions=SYSTEM)
    client.responses.create(model=MODEL, input=[question], tools=flat)
    client.embeddings.create(model="text-embedding-3-small", input=["one", "two"])
    with suppress(openai.NotFoundError):
        create(model="bad-model", messages=[user])
    client.close()


@traced(kind="AGENT", name="travel-agent", capture_inputs=False)
def _agent(create: Callable[..., Any], messages: list[Any], tools: list[Any]) -> str:
    """A usual agent loop: the model calls tools, and gets their results."""
    while True:
        message = create(model=MODEL, messages=messages, tools=tools).choices[0].message
        if not message.tool_calls:
            return str(message.content)
        messages.append(message.model_dump(exclude_none=True))
        for call in message.tool_calls:
            result = get_weather(**json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})


def langgraph_agent(url: str) -> None:
    """Run LangChain's agent, which is a LangGraph, with a working and a failing tool, and a model alone."""
    agents, models = importlib.import_module("langchain.agents"), importlib.import_module("langchain_openai")
    tools = importlib.import_module("langchain_core.tools")
    model = models.ChatOpenAI(model=MODEL, base_url=url, api_key="none", max_retries=0)

    def broken_weather(city: str) -> str:
        raise ValueError(f"no station in {city}")

    weather = tools.StructuredTool.from_function(weather_in, name="get_weather", description=DESCRIPTION)
    failing = tools.StructuredTool.from_function(broken_weather, name="broken_weather", description=DESCRIPTION)
    question = {"messages": [{"role": "user", "content": QUESTION}]}
    agents.create_agent(model, [weather], system_prompt=SYSTEM, name="travel-agent").invoke(question)
    with suppress(ValueError):
        agents.create_agent(model, [failing], system_prompt=SYSTEM, name="travel-agent").invoke(question)
    model.invoke([("system", SYSTEM), ("user", "hello")])


def pydantic_agent(url: str) -> None:
    ai, models = importlib.import_module("pydantic_ai"), importlib.import_module("pydantic_ai.models.openai")
    providers = importlib.import_module("pydantic_ai.providers.openai")
    ai.Agent.instrument_all()
    model = models.OpenAIChatModel(MODEL, provider=providers.OpenAIProvider(base_url=url, api_key="none"))
    tool = ai.Tool(weather_in, name="get_weather", description=DESCRIPTION, takes_ctx=False)
    agent = ai.Agent(model, instructions=SYSTEM, tools=[tool], name="travel-agent")
    agent.run_sync(QUESTION)
    agent.run_sync("hello")


def agents_sdk(url: str) -> None:
    """Run OpenAI's Agents SDK, which calls the Responses API."""
    sdk, openai = importlib.import_module("agents"), importlib.import_module("openai")
    sdk.set_default_openai_client(
        openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0), use_for_tracing=False
    )
    tool = sdk.function_tool(weather_in, name_override="get_weather", description_override=DESCRIPTION)
    agent = sdk.Agent(name="travel-agent", instructions=SYSTEM, model=MODEL, tools=[tool])
    sdk.Runner.run_sync(agent, QUESTION)
    sdk.Runner.run_sync(agent, "hello")


APPS: dict[str, Callable[[str], None]] = {
    "openai": openai_calls,
    "langgraph": langgraph_agent,
    "pydantic-ai": pydantic_agent,
    "openai-agents": agents_sdk,
}


def main() -> None:
    app, instrumentor, url = sys.argv[1:]
    configure(auto_instrument=False)
    if instrumentor != "none":
        module, _, name = instrumentor.partition(":")
        getattr(importlib.import_module(module), name)().instrument()
    with trace_context(session="s-7", user="ada", tags={"release": "2.3.1"}):
        APPS[app](url)
    result = shutdown()
    assert (result.dropped, result.pending) == (0, 0), result


if __name__ == "__main__":
    main()
