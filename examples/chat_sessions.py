"""A chat of several turns: MLflow shows the traces of one session together, by user, with tags to filter by.

Needs no key and no network: the model is a line of Python. Put a call of yours into `reply()`.
"""

from __future__ import annotations

from mlflow_otlp_exporter import configure, set_usage, trace_context, traced

USERS = {"ada": ["Will it rain in Lyon?", "And in Paris?"], "grace": ["Which train takes bicycles?"]}


@traced(kind="LLM")
def reply(messages: list[dict[str, str]]) -> str:
    """What a model would say; its tokens are what MLflow counts and makes a cost of."""
    said = f"You asked: {messages[-1]['content']}"
    set_usage(input_tokens=sum(len(each["content"]) for each in messages) // 4, output_tokens=len(said) // 4)
    return said


@traced(kind="AGENT", name="turn")
def turn(question: str, history: list[dict[str, str]]) -> str:
    """One turn: it is the root of a trace, and has what was said before as its input."""
    history.append({"role": "user", "content": question})
    answer = reply(history)
    history.append({"role": "assistant", "content": answer})
    return answer


def main() -> None:
    """Holds a conversation with each user."""
    telemetry = configure(experiment="chat-sessions")
    for user, questions in USERS.items():
        history: list[dict[str, str]] = []
        # All spans inside belong to this session, those of instrumentations too.
        with trace_context(session=f"chat-{user}", user=user, tags={"release": "2.3.1"}):
            for question in questions:
                print(f"{user}: {question} -> {turn(question, history)}")
    print(telemetry.flush())
    print(telemetry.trace_url())


if __name__ == "__main__":
    main()
