"""rljax: small pure transforms for the policy optimisation of language models.

A training step is a fixed dataflow,

    prompts -> sample -> verify -> measure -> credit -> per step: weigh -> loss -> gate

and the packages follow it. A package imports only what stands before it in this list
(tests/test_imports.py holds the table of who imports whom):

    1  types, layout, metric, numerics, check, keys, processes, mesh, digest,
       strict_json
                   the types that flow, and what all packages use
    2  advantage   credit: transforms, terms, algorithms, reductions, controllers
       loss        functions per token, minimised
       policy      the interface of policies, measurements, transforms of policies
       verify      rewards: graph (in the program) and host (processes)
       verdict     calls verifiers and checks what they return
       data        NumPy on the host: problems, encoding, streams, tokenizers
       run         the run loop: training, checkpoints, records, display
    3  algorithms  named methods, a dozen lines each
       model       networks behind the interface; only this package uses flax
       rollout     prompts to samples, on the device
       learn       a rollout to a new state: update, microbatches, gates
       analysis    gradient masses, plots, the entropy law
    4  program     act, verify and learn as one program, fused or split; its sizes
       decoupled   the same with a sampler on its own devices, ahead of the learner
       task        problems, and how their solutions are judged
    5  evaluate    held-out problems: asking a policy, estimates, the report
       plan        time and memory of a run, before it runs
    6  experiment  a run as a value: program, task, evaluation, numbers of steps
       spread      experiments on meshes of devices
       export      a command: a run's checkpoint as a Hugging Face folder

Write your own advantage as a function in your own file: README, "ten lines". The
directory `experiments`, beside this package, has experiments to copy.
"""
