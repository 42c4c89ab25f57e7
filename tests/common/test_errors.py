"""Which exceptions of application code are never caught."""

import signal
import threading
from typing import Any

import pytest

from mlflow_otlp_exporter._internal.common.errors import must_propagate
from support.interruptions import Kill, TimeLimit, handle_signal


class Limits:
    """A handler that is a method, and calls the function that raises."""

    def handle(self, _number: int, _frame: Any) -> None:
        self._raise()

    def _raise(self) -> None:
        raise TimeLimit


def catch(call: Any) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - of any kind
        call()
    return caught.value


@pytest.mark.parametrize(
    ("error", "is_propagated"),
    [(KeyboardInterrupt(), True), (SystemExit(), True), (TimeLimit(), False), (Kill(), False)],
)
def test_only_exits_propagate(error: BaseException, is_propagated: bool) -> None:
    assert must_propagate(error) is is_propagated
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(must_propagate(error)))
    thread.start()
    thread.join()
    assert answers == [False]


@pytest.mark.parametrize("error", [TimeLimit(), Kill(), TimeoutError()])
def test_exception_of_a_signal_handler_propagates(error: BaseException) -> None:
    with handle_signal(error) as interrupt:
        caught = catch(interrupt)
        assert caught is error
        assert must_propagate(caught)
    assert not must_propagate(caught)  # the handler is not one any more


def test_exception_that_a_method_as_handler_causes_propagates() -> None:
    with handle_signal(TimeLimit()) as interrupt:
        signal.signal(signal.SIGINT, Limits().handle)
        assert must_propagate(catch(interrupt))
