"""Verifiers inside the compiled program: pure JAX on token bytes.

`vocabulary` says what bytes each token stands for, `text` decodes completions, `ending`
cuts a stop string off, `match` compares text, `numeral` compares numbers, and
`neighbours` says where a number stands alone. Add a verifier as a function of one text,
one answer and `finished`, and pass it to `text.text_verifier`. Everything here must
trace: no Python on the values of arrays. If you change what is read as a number, change
`host.numeral` as well; tests compare the two.
"""
