"""Verifiers inside the compiled program: pure JAX on token bytes.

    vocabulary  the bytes of each token
    text        decodes completions; `text_verifier`
    ending      cuts a stop string off
    match       compares text
    numeral     compares numbers
    neighbours  decides whether a number stands alone

Write a verifier as a function of one text, one answer and `finished`, and pass it to
`text.text_verifier`. It must be traceable: no Python control flow on values of arrays.
If you change what is read as a number, change `host.numeral` as well; tests compare the
two.
"""
