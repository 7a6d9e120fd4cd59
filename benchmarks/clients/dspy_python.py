"""dspy: predictions, typed ones, and its agent that reasons and acts."""

import dspy
import harness

dspy.configure(
    lm=dspy.LM(
        f"openai/{harness.MODEL}", api_base=f"{harness.URL}/v1", api_key=harness.KEY,
        temperature=0, max_tokens=300, cache=False,
    ),
    adapter=dspy.JSONAdapter(),
)  # fmt: skip


def chat() -> str:
    return dspy.Predict("question -> answer")(question=harness.QUESTION).answer


def tools() -> str:
    agent = dspy.ReAct("question -> answer", tools=[harness.get_weather], max_iters=2)
    return agent(question=harness.WEATHER).answer


def structured() -> tuple[str, int]:
    found = dspy.Predict("text -> name: str, age: int")(text=harness.PERSON)
    return found.name, found.age


def embeddings() -> list[float]:
    embedder = dspy.Embedder(
        f"openai/{harness.MODEL}", api_base=f"{harness.URL}/v1", api_key=harness.KEY, caching=False
    )
    return [float(value) for value in embedder("hello")]


harness.run(["dspy"], chat=chat, tools=tools, structured=structured, embeddings=embeddings)
