"""A reward in Python, to be copied: any function of two texts in a file of its own."""


def exact(completion: str, answer: str) -> float:
    """1 if the completion is the answer, without surrounding white space; else 0."""
    return float(completion.strip() == answer.strip())
