"""A reward function in Python, to copy into your own file."""


def exact(completion: str, answer: str) -> float:
    """1 if completion and answer are equal up to surrounding white space, else 0."""
    return float(completion.strip() == answer.strip())
