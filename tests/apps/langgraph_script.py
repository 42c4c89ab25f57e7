"""An agent without tracing code: LangGraph with a model that returns scripted replies."""

from langchain.agents import create_agent
from langchain.tools import tool
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolCall


@tool
def get_weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"rain in {city}"


class Model(GenericFakeChatModel):
    def bind_tools(self, *_: object, **__: object) -> "Model":
        return self


REPLIES = [
    AIMessage(
        "", tool_calls=[ToolCall(name="get_weather", args={"city": "Lyon"}, id="call_1", type="tool_call")], id="m-1"
    ),
    AIMessage("Take an umbrella.", id="m-2"),
]
agent = create_agent(Model(messages=iter(REPLIES)), [get_weather], name="weather-agent")
state = agent.invoke({"messages": [HumanMessage("Will it rain in Lyon?", id="m-0")]})
assert state["messages"][-1].content == "Take an umbrella."
