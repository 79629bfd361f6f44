"""A scripted model of the OpenAI Agents SDK that refuses what the Responses API refuses."""

from __future__ import annotations

from typing import Any

from adapters_support import needs

agents: Any = needs("agents", "openai-agents")
models: Any = needs("agents.models.interface", "openai-agents")
responses: Any = needs("openai.types.responses", "openai-agents")


def check_input(items: list[Any]) -> None:
    """Fail as the API does: a result without its call, or a model's item without its reasoning.

    In this script every call, and every answer after calls, has reasoning of the same number
    before it.
    """
    assert items, "nothing was sent"
    assert items[0].get("role") == "user" or items[0].get("type") == "compaction", items[0]
    calls: set[str] = set()
    reasoned: set[str] = set()
    for item in items:
        kind = item.get("type")
        if kind == "reasoning":
            reasoned.add(item["id"].removeprefix("rs_"))
        elif kind == "function_call":
            assert item["id"].removeprefix("fc_") in reasoned, "a call without its reasoning"
            calls.add(item["call_id"])
        elif kind == "function_call_output":
            assert item["call_id"] in calls, "a result without its call"
    answered = {item["call_id"] for item in items if item.get("type") == "function_call_output"}
    assert calls == answered, "a call without its result"


class ScriptedModel(models.Model):  # type: ignore[misc]  # the SDK may be absent
    """Calls a tool once in every turn, after reasoning, and then answers.

    Attributes:
        sent: the input of each call.
    """

    def __init__(self) -> None:
        self.sent: list[list[Any]] = []

    @property
    def tool(self) -> Any:
        def add(item: str) -> str:
            """Add an item to the cart."""
            return f"{item} added"

        return agents.function_tool(add)

    async def get_response(self, *args: Any, **kwargs: Any) -> Any:
        items = kwargs["input"] if "input" in kwargs else args[1]
        items = [{"role": "user", "content": items}] if isinstance(items, str) else list(items)
        check_input(items)
        self.sent.append(items)
        newest = next(item for item in reversed(items) if item.get("role") == "user")
        number = newest["content"].split()[1]
        if items[-1].get("type") == "function_call_output":
            output = [_message(number)]
        else:
            output = [_reasoning(number), _call(number)]
        return agents.ModelResponse(
            output=output, usage=agents.Usage(), response_id=f"resp_{number}_{len(items)}"
        )

    async def stream_response(self, *args: Any, **kwargs: Any) -> Any:
        answer = await self.get_response(*args, **kwargs)
        response = responses.Response(
            id=answer.response_id,
            created_at=0,
            model="scripted",
            object="response",
            output=answer.output,
            parallel_tool_calls=True,
            tool_choice="auto",
            tools=[],
        )
        yield responses.ResponseCompletedEvent(
            type="response.completed", response=response, sequence_number=0
        )


def _reasoning(number: str) -> Any:
    return responses.ResponseReasoningItem(id=f"rs_{number}", summary=[], type="reasoning")


def _call(number: str) -> Any:
    return responses.ResponseFunctionToolCall(
        id=f"fc_{number}",
        call_id=f"call_{number}",
        name="add",
        arguments='{"item": "mug"}',
        type="function_call",
    )


def _message(number: str) -> Any:
    text = responses.ResponseOutputText(
        text=f"answer {number}", type="output_text", annotations=[], logprobs=[]
    )
    return responses.ResponseOutputMessage(
        id=f"msg_{number}", content=[text], role="assistant", status="completed", type="message"
    )
