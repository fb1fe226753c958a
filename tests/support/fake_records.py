"""Records of a run, written by hand."""


def step(number, **values):
    where = {"phase": "rl", "step": number, "seconds": 0.5 * number}
    return {"kind": "step", **where, **values}


def evaluation(number, **values):
    return {**step(number, **values), "kind": "evaluation"}


def event(number, message="text"):
    return {**step(number), "kind": "event", "event": "some/thing", "message": message}
