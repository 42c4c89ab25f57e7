"""A framework that traces itself with attributes of its own. It does not need mlflow-otlp-exporter."""

from opentelemetry import trace


def ask(question: str) -> str:
    """Answer a question with a made-up model."""
    with trace.get_tracer("acme").start_as_current_span("acme.ask") as span:
        answer = f"{question} Yes."
        span.set_attributes(
            {
                "acme.step": "model",
                "acme.prompt": question,
                "acme.reply": answer,
                "acme.model": "acme-1",
                "acme.tokens.in": 12,
                "acme.tokens.out": 3,
                "acme.sources": ["rain.txt: It rains.", "sun.txt: It shines."],
            }
        )
        return answer
