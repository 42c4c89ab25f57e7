"""Trace a chat of several turns. MLflow groups its traces by session and user, and can filter them by tag.

The example needs no API key and no network, because the model is a line of Python. Replace `reply()` with your own
call.
"""

from __future__ import annotations

from mlflow_otlp_exporter import configure, set_usage, trace_context, traced

USERS = {"ada": ["Will it rain in Lyon?", "And in Paris?"], "grace": ["Which train takes bicycles?"]}


@traced(kind="LLM")
def reply(messages: list[dict[str, str]]) -> str:
    """Return a model's answer. MLflow shows the token counts and computes a cost from them."""
    answer = f"You asked: {messages[-1]['content']}"
    set_usage(input_tokens=sum(len(message["content"]) for message in messages) // 4, output_tokens=len(answer) // 4)
    return answer


@traced(kind="AGENT", name="turn")
def take_turn(question: str, history: list[dict[str, str]]) -> str:
    """Run one turn: the root span of a trace. Its input includes the messages of earlier turns."""
    history.append({"role": "user", "content": question})
    answer = reply(history)
    history.append({"role": "assistant", "content": answer})
    return answer


def main() -> None:
    """Run a conversation with each user."""
    telemetry = configure(experiment="chat-sessions")
    for user, questions in USERS.items():
        history: list[dict[str, str]] = []
        # All spans inside belong to this session, including spans of instrumentations.
        with trace_context(session=f"chat-{user}", user=user, tags={"release": "2.3.1"}):
            for question in questions:
                print(f"{user}: {question} -> {take_turn(question, history)}")
    print(telemetry.flush())
    print(telemetry.trace_url())


if __name__ == "__main__":
    main()
