"""rljax: small pure transforms for the policy optimisation of language models.

A training step is a fixed dataflow,

    prompts -> sample -> verify -> measure -> credit -> per step: weigh -> loss -> gate

and the packages follow it. A package imports only what stands before it in this list
(tests/test_imports.py holds the table of who imports whom):

    1  types, layout, metric, numerics, check, keys, processes, mesh, digest,
       strict_json
                   what flows, and what everybody uses
    2  advantage   credit: transforms, terms, algorithms, reductions, controllers
       loss        functions per token, minimised
       policy      the interface, and what is measured of any policy
       verify      rewards: graph (in the program) and host (processes)
       verdict     a verifier is called, and what it returns is checked
       data        NumPy on the host: problems, encoding, streams, tokenizers
       run         the run loop: training, checkpoints, records, display
    3  algorithms  named methods, a dozen lines each
       model       networks behind the interface; flax lives here alone
       rollout     prompts to samples, on the device
       learn       a rollout to a new state: update, microbatches, gates
       analysis    what one looks at: masses, plots, the entropy law
    4  program     act, verify and learn as one program, fused or split; its sizes
       decoupled   the same with a sampler on devices of its own, ahead of the learner
       task        what is to be solved, and how it is judged
    5  evaluate    held-out problems: asking a policy, estimates, the report
       plan        what a run takes, before it runs
    6  experiment  a run as a value: program, task, evaluation, numbers of steps
       spread      experiments on meshes of devices
       export      a run's checkpoint as a Hugging Face folder: a command

Your own advantage is a function in your own file: README, "ten lines". The experiments,
which one copies, lie beside this package.
"""
